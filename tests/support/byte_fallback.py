"""A small tokenizer of the shape that Llama 2's and Mistral's have: words with ▁, and bytes to fall back on."""

from __future__ import annotations

import json

WORDS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?\u2581")
JOINS = ["\u2581 t", "h e", "\u2581t he", "\u2581 a", "i n", "n g", "in g", "\u2581 \u2581"]


def byte_fallback_json(*, strip: bool = True, metaspace: bool = False) -> bytes:
    """tokenizer.json; `strip`: a text as a whole begins without the blank that stands before its first word."""
    merged = [join.replace(" ", "") for join in JOINS]
    vocabulary = {text: number for number, text in enumerate([*WORDS, *BYTES, *LETTERS, *merged])}
    added = [
        {
            "id": number,
            "content": text,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for number, text in enumerate(WORDS)
    ]
    steps = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    decoder = {"type": "Sequence", "decoders": steps}
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    if metaspace:
        decoder = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    normalizers = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": JOINS,
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": decoder,
            "model": model,
        }
    ).encode()
