"""A conversation with two images, as pieray's runner and as transformers' model take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import Sequence, all_logits, u32
from seeing import file_of, inputs_of, make_seeing, picture

from pieray.models.batch import ForwardItem
from pieray.models.runner import ModelRunner

ROOM = 1 << 24  # bytes of embeddings, and pixels
SIZES = [(50, 30), (20, 60)]  # one wide, one high
ASKED = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A cloud."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this one?"}]},
]


class Seen:
    """A conversation with two images, as pieray's runner and as transformers' model take it."""

    def __init__(self, family: str, folder: Path) -> None:
        self.model = make_seeing(family, folder)
        self.runner = ModelRunner.load(folder, num_pages=256, page_size=4)
        pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
        self.inputs = inputs_of(family, folder, ASKED, pictures)
        self.tokens = u32(self.inputs["input_ids"][0].numpy())
        images = [self.runner.see(file_of(one), ROOM, ROOM) for one in pictures]
        assert self.runner.images is not None
        self.rows = np.flatnonzero(self.tokens == self.runner.images.rules.token)
        self.values = np.concatenate([one.values for one in images])
        self.places = None if images[0].places is None else np.concatenate([one.places for one in images])
        assert len(self.rows) == len(self.values)
        with torch.inference_mode():
            self.logits = self.model(**self.inputs).logits[0].numpy()

    def item(self, sequence: Sequence, num_tokens: int) -> ForwardItem:
        """The next tokens, with the rows of images among them."""
        start = sequence.kv_len
        item = sequence.item(self.tokens[start : start + num_tokens])
        first, last = np.searchsorted(self.rows, [start, sequence.kv_len])
        if first < last:
            item.embeds = u32(self.rows[first:last] - start), self.values[first:last]
            item.places = None if self.places is None else self.places[first:last]
        return item

    def run(self, chunk: int, first_page: int = 0, beside: Any = ()) -> tuple[Sequence, np.ndarray]:
        """All of it in chunks, each beside a step of other sequences; its logits."""
        sequence, found = Sequence(self.runner, first_page, 32), []
        while sequence.kv_len < len(self.tokens):
            items = [self.item(sequence, chunk), *(other() for other in beside)]
            results = self.runner.step(items, [all_logits(item) for item in items])
            assert all(isinstance(one, list) for one in results), results
            found += results[0]
        return sequence, np.stack(found)

    def difference(self, found: np.ndarray) -> float:
        return float(np.abs(found - self.logits).max() / np.abs(self.logits).max())

    def forked(self) -> float:
        """Behind the images a context goes on beside its copy, in pages of its own: difference of their logits over the
        largest."""
        sequence, _ = self.run(1000)
        pages = sequence.pages[: -(-sequence.kv_len // self.runner.pool.page_size)]
        copied = np.arange(200, 200 + len(pages), dtype=np.uint32)
        size = self.runner.pool.page_size
        copies = zip(pages.tolist(), copied.tolist(), strict=True)
        self.runner.copy_tokens([(old, 0, new, 0, size) for old, new in copies])
        start = u32([sequence.kv_len])
        items = [
            ForwardItem(u32([*first, last]), sequence.kv_len, u32([7]), start)
            for first, last in ((pages, 180), (copied, 181))
        ]
        one, other = (result[0] for result in self.runner.step(items, [all_logits(item) for item in items]))
        return float(np.abs(one - other).max() / np.abs(one).max())
