"""What is known of a model that sees without its weights: which architectures there are, and how many embeddings an
image becomes.  No torch: this runs in light processes.

The rules are those of transformers' image processors, from `preprocessor_config.json`; the Batcher, which runs these,
compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pieray.errors import InvalidRequest

#: architectures that see -> whether positions behind an image run on otherwise (M-RoPE)
SEEING = {
    "LlavaForConditionalGeneration": False,
    "Qwen2VLForConditionalGeneration": True,
    "Qwen2_5_VLForConditionalGeneration": True,
}
#: files that say how images are scaled: one of them is there
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
MOST_RATIO = 200
"""Of the longer side to the shorter one, of images whose size follows the model's grid."""


@dataclass(frozen=True, slots=True)
class ImageRules:
    """How images become embeddings.

    `num_rows` for each image, of a model that scales all images to one size.  Else 0: an image is scaled to a multiple
    of `side` pixels either way, from `min_pixels` to `max_pixels` in all, and each square of that side is a row.
    """

    token: int
    """What stands for an image in a text: a row each."""
    num_rows: int = 0
    side: int = 0
    min_pixels: int = 0
    max_pixels: int = 0

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> ImageRules | None:
        """From what travels; None of a model that does not see."""
        return cls(**facts) if facts else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows of embeddings from top to bottom, and from left to right, of an image of that size in pixels.

        Raises InvalidRequest for a size that no image has, or that the model does not take.
        """
        if width < 1 or height < 1:
            raise InvalidRequest(f"an image has at least 1 x 1 pixels; given {width} x {height}")
        if self.num_rows:
            return 1, self.num_rows
        if max(width, height) > MOST_RATIO * min(width, height):
            raise InvalidRequest(
                f"an image is at most {MOST_RATIO} times as long one way as the other; given {width} x {height}"
            )
        sizes = [round(length / self.side) * self.side for length in (height, width)]
        if sizes[0] * sizes[1] > self.max_pixels:
            ratio = math.sqrt(height * width / self.max_pixels)
            sizes = [max(self.side, self._floor(length / ratio)) for length in (height, width)]
        elif sizes[0] * sizes[1] < self.min_pixels:
            ratio = math.sqrt(self.min_pixels / (height * width))
            sizes = [math.ceil(length * ratio / self.side) * self.side for length in (height, width)]
        return sizes[0] // self.side, sizes[1] // self.side

    def rows(self, width: int, height: int) -> int:
        """How many embeddings an image of that size becomes.  Raises InvalidRequest."""
        high, wide = self.grid(width, height)
        return high * wide

    def _floor(self, length: float) -> int:
        return math.floor(length / self.side) * self.side
