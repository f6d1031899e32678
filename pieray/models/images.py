"""Images to embeddings: decoded by Pillow, scaled by the family's image processor, seen by the model's vision tower.

    bytes --> header: format, size ----> pixels, RGB ----> processor's tensors ----> rows [n, hidden], and their places
              refused here: no image,     refused here:
              too many pixels or rows     what is damaged

Nothing of an image is decoded before its header has been looked at.  Of an animation the first frame counts; colours
of any kind become RGB, and the camera's orientation is applied, as transformers' own `load_image` does.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pieray.arrays import F32, I32
from pieray.errors import InvalidRequest, ModelError, PierayError, QuotaExceeded
from pieray.models.batch import PLACE_SIZE
from pieray.models.image_rules import PREPROCESSORS, SEEING, ImageRules
from pieray.models.transformers_probe import first_line, quiet

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Of images that are taken: decoders that much of the world tries to break."""
ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class SeenImage:
    """What an image has become."""

    values: F32
    """[rows, hidden]."""
    places: I32 | None
    """[rows, PLACE_SIZE], see `Embeddings`; None: as tokens stand."""
    digest: bytes
    """16 bytes: equal ones, equal values."""


class ImageEncoder:
    """Owns the processor; the vision tower is the model's.  Thread-safe beside steps: it shares no buffers with them.

    `hidden` is the size of a row.
    """

    def __init__(self, model: Any, processor: Any, rules: ImageRules, hidden: int, *, has_shifts: bool) -> None:
        self.rules = rules
        self.hidden = hidden
        self._model = model
        self._processor = processor
        self._has_shifts = has_shifts
        parameter = next(model.parameters())
        self._dtype, self._device = parameter.dtype, parameter.device
        self._stream: Any = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @classmethod
    def load(cls, folder: str | Path, model: Any, hidden: int) -> ImageEncoder | None:
        """That of a model whose module is loaded; None if its architecture does not see.  ModelError names what is
        missing."""
        name = type(model).__name__
        if name not in SEEING:
            return None
        if not any((Path(folder) / file).exists() for file in PREPROCESSORS):
            raise ModelError(f"{Path(folder) / PREPROCESSORS[0]}: no such file; it says how {name} scales images")
        from transformers import AutoImageProcessor

        with quiet():
            try:
                processor = AutoImageProcessor.from_pretrained(
                    str(folder), backend="pil", local_files_only=True, trust_remote_code=False
                )
            except Exception as error:
                raise ModelError(f"{folder}: transformers has no image processor: {first_line(error)}") from error
        encoder = cls(model, processor, ImageRules(_token(model.config)), hidden, has_shifts=SEEING[name])
        encoder.settle(str(folder))
        return encoder

    def settle(self, where: str) -> None:
        """See a small image, and find out the rules.  ModelError if it becomes another number of rows than these
        say."""
        from PIL import Image

        picture = Image.new("RGB", (48, 32), (90, 120, 30))
        try:
            num_rows = len(self._see(picture)[0])
            self.rules = _rules(self.rules.token, self._processor, num_rows)
        except Exception as error:  # whatever a module of theirs raises
            raise ModelError(f"{where}: it cannot see: {first_line(error)}") from error
        if num_rows != self.rules.rows(48, 32):
            raise ModelError(
                f"{where}: an image of 48 x 32 pixels becomes {num_rows} embeddings; "
                f"by its config {self.rules.rows(48, 32)}"
            )

    def encode(self, data: bytes, max_pixels: int, max_bytes: int) -> SeenImage:
        """See an image file.

        Raises InvalidRequest for what is no image, is damaged, or has a size that the model does not take, and
        QuotaExceeded for one of more than `max_pixels` pixels, or of embeddings of more than `max_bytes` (float32),
        before it is decoded.
        """
        with _opened(data, max_pixels) as picture:
            width, height = (
                picture.size
            )  # a note that it is to be turned may lie behind the pixels, and changes no count
            if width * height > max_pixels:
                raise QuotaExceeded(
                    f"image_pixels: the limit is {max_pixels}; the image has {width} x {height} = {width * height}"
                )
            num_rows = self.rules.rows(width, height)
            if num_rows * self.hidden * 4 > max_bytes:
                raise QuotaExceeded(
                    f"embed_bytes: {max_bytes} are left; the {num_rows} embeddings of an image of {width} x {height} "
                    f"pixels have {num_rows * self.hidden * 4}"
                )
            pixels = _pixels(picture)
        values, places = self._see(pixels)
        return SeenImage(values, places, hashlib.blake2b(data, digest_size=16).digest())

    def _see(self, picture: Image) -> tuple[F32, I32 | None]:
        try:
            given = dict(self._processor(images=picture, return_tensors="pt"))
        except ValueError as error:  # the processor does not take this one
            raise InvalidRequest(f"the model's image processor refuses the image: {first_line(error)}") from error
        if not given.keys() <= {"pixel_values", "image_grid_thw"}:
            raise InvalidRequest(f"the model's image processor gives {sorted(given)}, which is not served")
        with torch.inference_mode(), torch.cuda.stream(self._stream):  # steps go on meanwhile
            tensors = {name: value.to(self._device) for name, value in given.items()}
            tensors["pixel_values"] = tensors["pixel_values"].to(self._dtype)
            seen = self._model.get_image_features(**tensors, return_dict=True)
            values: F32 = torch.cat(list(seen.pooler_output)).float().cpu().numpy()
        if not np.isfinite(values).all():
            raise InvalidRequest("the embeddings of the image are not finite")
        if not self._has_shifts:
            return values, None
        _, high, wide = given["image_grid_thw"][0].tolist()
        merged = self._model.config.vision_config.spatial_merge_size
        return values, places_of(high // merged, wide // merged)


def places_of(high: int, wide: int) -> I32:
    """Where the rows of an image of so many from top to bottom, and from left to right, stand (M-RoPE, Wang et al.
    2024): all at one time, each at its height and width; what comes behind them follows the greatest."""
    index = np.arange(high * wide, dtype=np.int32)
    places = np.zeros((len(index), PLACE_SIZE), np.int32)
    places[:, 0] = -index
    places[:, 1] = index // wide - index
    places[:, 2] = index % wide - index
    places[-1, 3] = max(high, wide) - len(index)
    return places


def _token(config: Any) -> int:
    """What stands for an image; files of transformers 4 call it an index."""
    found = getattr(config, "image_token_id", None)
    return int(config.image_token_index if found is None else found)


def _rules(token: int, processor: Any, num_rows: int) -> ImageRules:
    """`num_rows`: of one image, and of all where the processor scales them to one size."""
    if not hasattr(processor, "merge_size"):
        return ImageRules(token, num_rows=num_rows)
    side, size = int(processor.patch_size) * int(processor.merge_size), processor.size
    return ImageRules(token, side=side, min_pixels=int(size["shortest_edge"]), max_pixels=int(size["longest_edge"]))


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image]:
    """The file, of which the header is read.  Whatever it fails with inside is InvalidRequest, or QuotaExceeded of a
    header that tells of more pixels than Pillow takes."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            yield picture
    except PierayError:
        raise
    except Image.DecompressionBombError as error:
        raise QuotaExceeded(f"image_pixels: the limit is {max_pixels}; {first_line(error)}") from error
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise InvalidRequest(f"not an image that can be read; taken are {kinds}; given {len(data)} bytes") from None
    except Exception as error:  # decoders raise much: OSError, SyntaxError, struct.error
        raise InvalidRequest(f"the image is damaged: {first_line(error)}") from error


def _orientation(picture: Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a damaged note on a picture that may be whole
        return 1


def _pixels(picture: Image) -> Image:
    from PIL import ImageOps

    picture.seek(0)
    picture.load()
    if _orientation(picture) != 1:
        picture = ImageOps.exif_transpose(picture)
    return picture.convert("RGB")
