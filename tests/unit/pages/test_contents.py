"""Hashes of pages: equal for equal text in equal places, and none for what is not plain text."""

from __future__ import annotations

import numpy as np

from pieray.messages import PRIVATE
from pieray.pages.contents import Contents, chain, positions_of, root_of
from pieray.pages.lineage import CopyStep, ForwardStep, Step

SIZE = 4
ROOT = root_of("acme", "pie-tiny", SIZE)


def u32(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def step(frames: list[int], kv_len: int, *tokens: int, **more: object) -> ForwardStep:
    return ForwardStep(np.array(frames, np.int64), kv_len, u32(*tokens), **more)  # type: ignore[arg-type]


def hashes(steps: list[Step], *frames: int, root: bytes = ROOT) -> list[bytes]:
    return Contents(steps, root, SIZE).chain_of(frames)


def expected(*tokens: int, adapter: int = 0, root: bytes = ROOT) -> list[bytes]:
    return chain(root, u32(*tokens), positions_of(0, len(tokens)), SIZE, adapter)


TEXT = tuple(range(10, 20))


def test_full_pages_have_hashes_however_they_came_to_be_written():
    whole = [step([1, 2, 3], 0, *TEXT)]
    parts = [step([1], 0, *TEXT[:3]), step([1, 2], 3, *TEXT[3:5]), step([1, 2, 3], 5, *TEXT[5:])]
    assert hashes(whole, 1, 2, 3) == hashes(parts, 1, 2, 3) == expected(*TEXT)
    assert len(expected(*TEXT)) == 2
    assert all(len(name) == 16 for name in expected(*TEXT))


def test_what_a_page_holds_depends_on_all_before_it():
    places = [
        expected(*TEXT)[1],
        expected(1, *TEXT[1:])[1],
        expected(*TEXT, adapter=1)[1],
        expected(*TEXT, root=root_of("other", "pie-tiny", SIZE))[1],
        chain(ROOT, u32(*TEXT), positions_of(1, 10), SIZE)[1],
    ]
    assert len(set(places)) == 5
    assert root_of("a", "bc") != root_of("ab", "c")


def test_a_page_of_an_image_is_known_by_the_image_however_it_came_to_be_written():
    row, other = (bytes([number]) * 15 + b"\0" for number in (1, 2))  # they may end like what says of text

    def seen(*rows: bytes) -> bytes:
        return b"".join(one or bytes(16) for one in rows)

    tokens = (10, 0, 0, 11, 12, 0, 13, 14)
    media = seen(b"", row, other, b"", b"", row, b"", b"")
    embeds = (b"rows", b"values")
    names = chain(ROOT, u32(*tokens), positions_of(0, 8), SIZE, 0, media)
    whole = [step([1, 2], 0, *tokens, embeds=embeds, media=media)]
    parts = [
        step([1], 0, 10),
        step([1], 1, 0, 0, embeds=embeds, media=seen(row, other)),
        step([1, 2], 3, 11, 12),
        step([1, 2], 5, 0, embeds=embeds, media=row),
        step([1, 2], 6, 13, 14),
    ]
    assert hashes(whole, 1, 2) == hashes(parts, 1, 2) == names
    turned = chain(ROOT, u32(*tokens), positions_of(0, 8), SIZE, 0, seen(b"", other, row, b"", b"", row, b"", b""))
    assert not {*names} & {*turned}, "what is behind an image hangs on it"
    assert not {*names} & {*expected(*tokens)}
    copied = [*parts, CopyStep(1, 0, 3, 0, 4), step([3, 4], 4, *TEXT[4:8])]
    assert hashes(copied, 3) == names[:1]
    assert hashes([*parts, step([1], 1, 5, 6)], 1) != names[:1]


def test_a_rewritten_page_has_the_hash_of_what_it_holds_now_and_those_behind_it_none():
    steps = [step([1, 2], 0, *TEXT[:8]), step([1], 2, 90, 91)]
    assert hashes(steps, 1, 2) == expected(10, 11, 90, 91)
    assert Contents(steps, ROOT, SIZE).place_of(2) == (expected(*TEXT)[1], expected(*TEXT)[0], 1)
    again = [*steps, step([1, 2], 4, *TEXT[4:8])]
    assert hashes(again, 1, 2) == expected(10, 11, 90, 91, *TEXT[4:8])
    cut = [*steps, step([1], 1, 80)]
    assert hashes(cut, 1) == []  # slots 2 and 3 are not behind what is there now


def test_masked_tokens_embeddings_elsewhere_and_adapters_of_its_own_have_none():
    assert hashes([step([1], 0, *TEXT[:4], mask=b"\xff\xff")], 1) == []
    plain = step([1], 0, *TEXT[:4])
    assert hashes([plain, step([1, 2], 4, *TEXT[4:8], visible=b"\xfe")], 1, 2) == expected(*TEXT[:4])
    masked = [plain, step([1, 2], 4, *TEXT[4:6], mask=b"\xff\xff"), step([1, 2], 6, *TEXT[6:8])]
    assert hashes(masked, 1, 2) == expected(*TEXT[:4])
    assert hashes([step([1], 0, *TEXT[:4], adapter=PRIVATE)], 1) == []
    assert hashes([step([1], 0, *TEXT[:4], adapter=3)], 1) == expected(*TEXT[:4], adapter=3)
    mixed = [step([1], 0, *TEXT[:2]), step([1], 2, *TEXT[2:4], adapter=3)]
    assert hashes(mixed, 1) == []


def test_positions_of_the_callers_own_count():
    places = u32(5, 6, 7, 8)
    found = hashes([step([1], 0, *TEXT[:4], positions=places)], 1)
    assert found == chain(ROOT, u32(*TEXT[:4]), places, SIZE) != expected(*TEXT[:4])


def test_a_copy_of_the_beginning_of_a_page_is_run_on_like_it():
    """Copy-on-write of a fork that diverges within a page."""
    steps = [step([1, 2], 0, *TEXT[:6]), CopyStep(2, 0, 3, 0, 2), step([1, 3], 6, 70, 71)]
    assert hashes(steps, 1, 3) == expected(*TEXT[:6], 70, 71)
    whole = [step([1, 2], 0, *TEXT[:8]), step([5], 0, 1, 2, 3, 4), CopyStep(2, 0, 6, 0, 4)]
    assert hashes(whole, 1, 6) == expected(*TEXT[:8])
    assert hashes(whole, 5, 6) == expected(1, 2, 3, 4)  # the copy is of a page behind another text


def test_what_is_built_on_a_page_of_another_text_has_none():
    steps = [step([1, 2], 0, *TEXT[:8]), step([5], 0, 1, 2, 3, 4), step([5, 2, 7], 8, *TEXT[:4])]
    contents = Contents(steps, ROOT, SIZE)
    assert contents.chain_of([5, 2, 7]) == expected(1, 2, 3, 4)
    assert contents.chain_of([1, 2, 7]) == expected(*TEXT[:8])
    assert contents.place_of(7) is None


def test_a_copy_into_a_page_takes_its_hash():
    assert hashes([step([1, 2], 0, *TEXT[:8]), CopyStep(2, 1, 1, 1, 2)], 1) == []
    assert hashes([step([1], 0, *TEXT[:4]), CopyStep(9, 0, 1, 0, 4)], 1) == []
