"""Models that see: what images become, where their rows stand, and what is made of them, equal to transformers'."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from families import Sequence, all_logits, u32
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from seeing import FAMILIES, file_of, make_seeing, picture
from seen import ROOM, Seen

from pieray.errors import InvalidRequest, ModelError, PierayError, QuotaExceeded, Unsupported
from pieray.models.batch import ForwardItem
from pieray.models.image_rules import ImageRules
from pieray.models.images import ImageEncoder, places_of
from pieray.models.runner import ModelRunner


@pytest.fixture(scope="module", params=FAMILIES)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(request.param, tmp_path_factory.mktemp(request.param))


def greedy(seen: Seen, sequence: Sequence, logits: np.ndarray, count: int) -> list[int]:
    found = [int(logits[-1].argmax())]
    while len(found) < count:
        (result,) = seen.runner.step([item := sequence.item(found[-1:])], [all_logits(item)])
        found.append(int(result[-1].argmax()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1000, 7, 1], ids=["whole", "in chunks", "token by token"])
def test_logits_behind_images_equal_transformers(seen: Seen, chunk: int) -> None:
    assert seen.difference(seen.run(chunk)[1]) < 1e-4


@pytest.mark.slow
def test_images_beside_others_and_greedy_texts_equal_transformers(seen: Seen) -> None:
    words = Sequence(seen.runner, 100, 100)
    other, _ = seen.run(9, 64)
    sequence, logits = seen.run(11, beside=[lambda: words.item([5, 9, 4]), lambda: other.item([7])])
    assert seen.difference(logits) < 1e-4
    want = seen.model.generate(**seen.inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    text = seen.model.generate(**seen.inputs, max_new_tokens=12, do_sample=False)[0, len(seen.tokens) :].tolist()
    assert greedy(seen, sequence, logits, len(text)) == text
    assert len(want[0]) == len(seen.tokens) + 12


@pytest.mark.slow
def test_a_fork_behind_an_image_and_a_page_that_was_away_equal_the_original(seen: Seen) -> None:
    """Shifts of positions move with the pages: copied, swapped out and in, read and written."""
    sequence, logits = seen.run(1000)
    pages, runner = sequence.pages[: -(-sequence.kv_len // 4)].astype(np.int64), seen.runner
    want = greedy(seen, Sequence.__new__(Sequence), logits, 1)
    copied, swapped, written = (np.arange(start, start + len(pages)) for start in (40, 90, 140))
    runner.copy_tokens([(int(old), 0, int(new), 0, 4) for old, new in zip(pages, copied, strict=True)])
    runner.host_pool = type(runner.host_pool)(runner.pool, 1 << 24)
    slots = np.arange(len(pages))
    runner.swap_out(pages, slots)
    runner.swap_in(slots, swapped)
    runner.write_pages(written, runner.read_pages(pages))
    items = []
    for first in (pages, copied, swapped, written):
        room = u32([*first, 200 + len(items)])
        items.append(ForwardItem(room, sequence.kv_len, u32(want), u32([sequence.kv_len])))
    found = np.stack([result[0] for result in runner.step(items, [all_logits(item) for item in items])])
    assert (found == found[0]).all()
    ids = torch.cat([seen.inputs["input_ids"], torch.tensor([want])], 1)
    more = {**seen.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in more:
        more["mm_token_type_ids"] = torch.nn.functional.pad(more["mm_token_type_ids"], (0, 1))
    with torch.inference_mode():
        expected = seen.model(**more).logits[0, -1].numpy()
    assert np.abs(found[0] - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_rules_say_how_many_embeddings_an_image_becomes(seen: Seen) -> None:
    assert seen.runner.images is not None
    for size in [(1, 1), (8, 8), (9, 12), (50, 30), (300, 20), (64, 64), (65, 64), (640, 480), (2, 390)]:
        image = seen.runner.see(file_of(picture(*size)), ROOM, ROOM)
        assert len(image.values) == seen.runner.images.rules.rows(*size), size
    assert ImageRules.of(seen.runner.images.rules.as_dict()) == seen.runner.images.rules


def test_rows_of_an_image_stand_side_by_side() -> None:
    places, index = places_of(2, 3), np.arange(6)
    assert (places[:, 0] + index).tolist() == [0] * 6
    assert (places[:, 1] + index).tolist() == [0, 0, 0, 1, 1, 1]
    assert (places[:, 2] + index).tolist() == [0, 1, 2, 0, 1, 2]
    assert places[:, 3].tolist() == [0, 0, 0, 0, 0, 3 - 6]


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> ImageEncoder:
    folder = tmp_path_factory.mktemp("eye")
    make_seeing("qwen2_5_vl", folder)
    found = ModelRunner.load(folder, num_pages=8, page_size=4).images
    assert found is not None
    return found


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "I;16", "RGBA"])
def test_colours_of_any_kind_are_seen(eye: ImageEncoder, mode: str) -> None:
    kind = {"CMYK": "JPEG"}.get(mode, "PNG")
    shown = picture(40, 24, mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        shown = Image.fromarray(np.arange(40 * 24, dtype=np.uint16).reshape(24, 40) * 60)
    assert len(eye.encode(file_of(shown, kind), ROOM, ROOM).values) == eye.rules.rows(40, 24)


def test_animations_show_their_first_frame_and_cameras_may_be_turned(eye: ImageEncoder) -> None:
    first, others = picture(40, 24), [picture(40, 24, seed) for seed in range(1, 5)]
    moving = file_of(first.convert("P"), "GIF", save_all=True, append_images=[one.convert("P") for one in others])
    still = file_of(first.convert("P"), "GIF")
    assert np.array_equal(eye.encode(moving, ROOM, ROOM).values, eye.encode(still, ROOM, ROOM).values)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = eye.encode(file_of(first.transpose(Image.Transpose.ROTATE_90), exif=exif), ROOM, ROOM)
    assert np.array_equal(turned.values, eye.encode(file_of(first), ROOM, ROOM).values)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(50_000_000), 9)
HOSTILE: dict[str, tuple[bytes, type[PierayError], str]] = {
    "nothing": (b"", InvalidRequest, "not an image"),
    "a text": (b"GIF is a format" * 50, InvalidRequest, "not an image"),
    "a program": (b"<svg onload='x'/>", InvalidRequest, "not an image"),
    "a kind that is not taken": (file_of(picture(40, 24), "TIFF"), InvalidRequest, "not an image"),
    "truncated PNG": (file_of(picture(400, 240))[:900], InvalidRequest, "damaged"),
    "truncated JPEG": (file_of(picture(400, 240), "JPEG")[:900], InvalidRequest, "damaged"),
    "a header alone": (file_of(picture(40, 24), "WEBP")[:40], InvalidRequest, "not an image|damaged"),
    "no pixels": (png(0, 0), InvalidRequest, "not an image|at least 1 x 1"),
    "no pixel data": (png(32, 32), InvalidRequest, "damaged"),
    "a bomb by its header": (png(60_000, 60_000, chunk(b"IDAT", BOMB)), QuotaExceeded, "image_pixels"),
    "a bomb within the pixels": (png(30, 30, chunk(b"zTXt", b"a\0\0" + BOMB)), InvalidRequest, "damaged"),
    "a line": (file_of(Image.new("RGB", (4000, 2))), InvalidRequest, "200 times"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_by_name(eye: ImageEncoder, name: str) -> None:
    data, kind, text = HOSTILE[name]
    with pytest.raises(kind, match=text):
        eye.encode(data, 1 << 22, ROOM)
    assert len(eye.encode(file_of(picture(40, 24)), ROOM, ROOM).values) == eye.rules.rows(40, 24)


def test_bytes_that_are_turned_over_never_do_more_than_fail(eye: ImageEncoder) -> None:
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        data = bytearray(file_of(picture(40, 24), kind))
        for _ in range(60):
            broken = data.copy()
            for place in random.integers(0, len(broken), 3):
                broken[place] = int(random.integers(256))
            with contextlib.suppress(InvalidRequest, QuotaExceeded):
                eye.encode(bytes(broken), 1 << 16, ROOM)


def test_nothing_is_decoded_of_what_its_header_refuses(eye: ImageEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the camera's orientation either, which may lie behind the pixels of a PNG."""
    decoded: list[tuple[int, int]] = []
    load = PngImageFile.load

    def noted(self: PngImageFile) -> object:
        decoded.append(self.size)
        return load(self)

    monkeypatch.setattr(PngImageFile, "load", noted)
    data = file_of(picture(400, 240))
    with pytest.raises(QuotaExceeded, match="image_pixels: the limit is 1000; the image has 400 x 240 = 96000"):
        eye.encode(data, 1000, ROOM)
    with pytest.raises(QuotaExceeded, match="embed_bytes"):
        eye.encode(data, ROOM, 100)
    assert not decoded
    eye.encode(data, ROOM, ROOM)
    assert decoded


def test_many_embeddings_are_refused_before_the_image_is_decoded(eye: ImageEncoder) -> None:
    with pytest.raises(QuotaExceeded, match="embed_bytes: 100 are left"):
        eye.encode(png(64, 64), ROOM, 100)


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    make_seeing("llava", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(ModelError, match="preprocessor_config.json: no such file; it says how Llava"):
        ModelRunner.load(tmp_path, num_pages=8, page_size=4)


def test_a_model_that_does_not_see_says_so() -> None:
    runner = ModelRunner.load("pieray/assets/pie-tiny", num_pages=8, page_size=4)
    with pytest.raises(Unsupported, match="LlamaForCausalLM does not see images"):
        runner.see(b"", ROOM, ROOM)
