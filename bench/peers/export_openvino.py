"""A model folder as openvino-genai reads it: export_openvino.py FOLDER TARGET."""

from __future__ import annotations

import sys

import openvino
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino import main_export
from transformers import AutoTokenizer

folder, target = sys.argv[1:3]
main_export(folder, target, task="text-generation-with-past", library_name="transformers", stateful=True)
names = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
for made, name in zip(
    convert_tokenizer(AutoTokenizer.from_pretrained(folder), with_detokenizer=True), names, strict=True
):
    openvino.save_model(made, f"{target}/{name}")
