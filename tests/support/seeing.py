"""Small random models that see, in folders, with all that transformers and pieray load of them; and their images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pieray.assets import model_folder

MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
]
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
FAMILIES = ("qwen2_5_vl", "qwen2_vl", "llava")


def make_seeing(family: str, folder: Path, seed: int = 0) -> Any:
    """A random model of the family, as its processor and transformers load it, saved in `folder`; its module."""
    import transformers

    tokenizer = _tokenizer(family, folder)
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    if family == "llava":
        vision: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        vision |= {"intermediate_size": 48, "image_size": 56, "patch_size": 14, "model_type": "clip_vision_model"}
        config: Any = transformers.LlavaConfig(
            vision_config=vision, text_config={**text, "model_type": "llama"}, image_token_id=ids["<image>"]
        )
        processor: Any = transformers.LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=56)
    else:
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}
        vision = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
        if family == "qwen2_5_vl":
            vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48}
            vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        else:
            vision |= {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
        kind = {"qwen2_5_vl": transformers.Qwen2_5_VLConfig, "qwen2_vl": transformers.Qwen2VLConfig}[family]
        config = kind(
            vision_config=vision,
            text_config=text,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
        size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
        processor = transformers.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.1))
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if family == "llava":
        own = {"processor_class": "LlavaProcessor", "patch_size": 14, "vision_feature_select_strategy": "default"}
        own |= {"image_token": "<image>", "num_additional_image_tokens": 1}
        (folder / "processor_config.json").write_text(json.dumps(own))
    return model


def inputs_of(family: str, folder: Path, messages: list[dict[str, Any]], pictures: list[Any]) -> dict[str, Any]:
    """What transformers' model takes of a conversation with images.

    The LLaVA processor makes it; that of Qwen needs torchvision, for videos: here is what it does with images.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if family == "llava":
        processor = transformers.LlavaProcessor(
            images, tokenizer, 14, "default", None, "<image>", num_additional_image_tokens=1
        )
        return dict(processor(images=pictures, text=text, add_special_tokens=False, return_tensors="pt"))
    seen = images(pictures, return_tensors="pt")
    for grid in seen["image_grid_thw"]:
        text = text.replace("<|image_pad|>", "<|mark|>" * (int(grid.prod()) // images.merge_size**2), 1)
    found = tokenizer(text.replace("<|mark|>", "<|image_pad|>"), add_special_tokens=False, return_tensors="pt")
    is_image = found["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {**found, **seen, "mm_token_type_ids": is_image.int()}


def _tokenizer(family: str, folder: Path) -> Any:
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model_folder("pie-tiny") / "tokenizer.json"))
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS, "eos_token": "<|im_end|>"})
    tokenizer.chat_template = LLAVA_TEMPLATE if family == "llava" else QWEN_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Any:
    """A picture with something to see in every corner."""
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (max(height // 8, 2), max(width // 8, 2), 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def file_of(picture: Any, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
