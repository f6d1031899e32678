"""PageSpace and exports: what is exported and adopted, by whom it is copied, and where each page goes in the end."""

import numpy as np
import pytest

from pieray.errors import Cancelled, InvalidRequest, QuotaExceeded
from pieray.pages.handles import PageSpace


def space_with(num_pages: int, limit: int = 64) -> PageSpace:
    space = PageSpace(4, limit)
    space.grant(list(range(100, 100 + num_pages)))
    return space


def run(space: PageSpace, handles: np.ndarray, kv_len: int, num_tokens: int) -> tuple[list[int], list]:
    prepared = space.stage_forward(handles, kv_len, num_tokens, is_masked=True)
    assert space.bind(prepared)
    space.finish(prepared)
    space.check()
    return prepared.pages.tolist(), prepared.copies


def export(space: PageSpace, handles: np.ndarray, num_tokens: int) -> tuple[list[int], np.ndarray]:
    exported = space.begin_export(handles, num_tokens)
    pages = space.freeze(exported)
    space.end_export(exported)
    space.check()
    return pages, exported.written


def test_who_exported_pages_copies_them_before_it_writes_also_as_their_only_user():
    space = space_with(8)
    pages = space.alloc(2)
    run(space, pages, 0, 6)
    exported, written = export(space, pages, 6)
    assert (exported, written.tolist()) == ([100, 101], [0b1111, 0b0011])
    assert run(space, pages, 6, 1) == ([100, 102], [(101, 0, 102, 0, 2)])
    assert run(space, pages, 7, 1) == ([100, 102], [])
    assert space.take_returned() == [101]
    space.free(pages)
    assert space.take_returned() == [100]
    space.check()
    assert (space.num_bound, space.num_spare) == (0, 6)


def test_a_write_that_copies_nothing_of_a_shared_page_lets_it_go_at_once():
    space = space_with(8)
    pages = space.alloc(1)
    run(space, pages, 0, 2)
    export(space, pages, 2)
    assert run(space, pages, 0, 2) == ([101], [])
    assert space.take_returned() == [100]


def test_shared_page_with_a_reader_in_flight_is_returned_when_that_has_finished():
    space = space_with(8)
    pages = space.alloc(2)
    run(space, pages, 0, 4)
    export(space, pages, 4)
    reader = space.stage_forward(pages, 4, 1)
    assert space.bind(reader)
    space.free(pages)
    assert space.take_returned() == []
    space.finish(reader)
    assert space.take_returned() == [100]
    space.check()


def test_what_is_lent_stays_as_it_was_when_it_was_asked_for():
    space = space_with(8)
    page = space.alloc(1)
    writer = space.stage_forward(page, 0, 2)
    exported = space.begin_export(page, 2)
    later = space.stage_forward(page, 2, 1)  # copies first: the export has the old page
    space.free(page)
    for command in (writer, later):
        assert space.bind(command)
        space.finish(command)
    space.check()
    assert (space.freeze(exported), later.copies) == ([100], [(100, 0, 101, 0, 2)])
    space.end_export(exported)
    assert space.take_returned() == [100]
    space.check()


def test_what_a_failed_command_was_to_write_is_not_exported():
    space = space_with(8)
    page = space.alloc(1)
    writer = space.stage_forward(page, 0, 2)
    exported = space.begin_export(page, 2)
    assert space.bind(writer)
    space.finish(writer, is_ok=False)
    with pytest.raises(Cancelled, match="exported"):
        space.freeze(exported)
    space.end_export(exported)
    space.check()


def test_only_tokens_that_are_there_are_exported():
    space = space_with(8)
    pages = space.alloc(3)
    run(space, pages, 0, 6)
    for num_tokens in (0, 13):
        with pytest.raises(InvalidRequest, match=f"from 1 to 12 tokens; given {num_tokens}"):
            space.begin_export(pages, num_tokens)
    with pytest.raises(InvalidRequest, match="not all of the first 7 tokens"):
        space.begin_export(pages, 7)
    with pytest.raises(InvalidRequest, match="named twice"):
        space.begin_export(np.concatenate((pages[:1], space.fork(pages[:1]))), 8)
    space.mask(int(pages[1]), 2, 2, is_visible=False)
    assert export(space, pages, 8)[1].tolist() == [0b1111, 0b0011]
    space.mask(int(pages[2]), 0, 4, is_visible=False)
    with pytest.raises(InvalidRequest, match="never written"):
        space.begin_export(pages, 12)
    space.mask(int(pages[1]), 2, 2, is_visible=True)
    space.truncate(pages, 5)
    with pytest.raises(InvalidRequest, match="not all of the first 6"):
        space.begin_export(pages, 6)
    space.check()


def test_lent_frames_count_against_the_limit_of_handles():
    space = space_with(4, limit=3)
    pages = space.alloc(2)
    run(space, pages, 0, 8)
    with pytest.raises(QuotaExceeded, match=r"limits.pages is 3: 2 handles are held, 2 more"):
        space.begin_export(pages, 8)
    exported = space.begin_export(pages, 4)
    with pytest.raises(QuotaExceeded, match="3 handles are held"):
        space.alloc(1)
    space.end_export(exported)
    space.alloc(1)


def test_adopted_pages_are_read_in_place_and_copied_before_they_are_written():
    space = space_with(2)
    pages = space.adopt([7, 8], np.array([0b1111, 0b0001], np.uint64))
    space.check()
    with pytest.raises(InvalidRequest, match="kv_len 6"):
        space.stage_forward(pages, 6, 1)
    twin = space.adopt([7, 8], np.array([0b1111, 0b0001], np.uint64))  # opened a second time
    assert run(space, pages, 5, 1) == ([7, 100], [(8, 0, 100, 0, 1)])
    assert run(space, twin, 5, 1) == ([7, 101], [(8, 0, 101, 0, 1)])
    assert space.take_returned() == [8, 8]
    space.free(pages)
    space.free(twin)
    assert space.take_returned() == [7, 7]
    assert (space.num_bound, space.num_spare) == (0, 2)
    space.check()


def test_slots_that_the_exporter_never_wrote_are_not_read_by_who_imports():
    space = space_with(2)
    page = space.adopt([7], np.array([0b0101], np.uint64))
    for kv_len in (2, 3):
        with pytest.raises(InvalidRequest, match=f"kv_len {kv_len}"):
            space.stage_forward(page, kv_len, 1)
    space.mask(int(page[0]), 1, 1, is_visible=False)
    assert run(space, page, 3, 1) == ([100], [(7, 0, 100, 0, 3)])
    space.mask(int(page[0]), 1, 1, is_visible=True)
    with pytest.raises(InvalidRequest, match="kv_len 3"):
        space.stage_forward(page, 3, 1, is_masked=True)


def test_adoption_past_the_limit_takes_nothing_in():
    space = space_with(0, limit=1)
    with pytest.raises(QuotaExceeded):
        space.adopt([7, 8], np.zeros(2, np.uint64))
    assert (space.num_granted, space.num_handles) == (0, 0)
    space.check()


def test_reserved_pages_are_kept_until_they_are_used_and_others_get_the_rest():
    space = space_with(3)
    assert space.reserve(5) == 2
    space.grant([1, 2])
    assert (space.num_reserved, space.surplus(keep=space.num_reserved)) == (5, [])
    run(space, space.alloc(2), 0, 8)
    assert (space.num_reserved, space.num_spare) == (3, 3)
    assert space.reserve(2) == 0
    assert space.num_reserved == 3
    with pytest.raises(QuotaExceeded, match="2 pages are in use, 63 more"):
        space.reserve(63)
    space.unreserve()
    assert len(space.surplus(keep=space.num_reserved)) == 3
    space.check()
