"""PageSpace: exact handles, exact pages, copy-on-write, and nothing lost."""

import numpy as np
import pytest
from arrays import u32

from pieray.errors import BadHandle, InvalidRequest, QuotaExceeded
from pieray.pages.prepared import Prepared
from pieray.pages.space import PageSpace


def space_with(num_pages: int, page_size: int = 4, limit: int = 64) -> PageSpace:
    space = PageSpace(page_size, limit)
    space.grant(list(range(100, 100 + num_pages)))
    return space


def bound(space: PageSpace, staged: Prepared) -> Prepared:
    """The staged command with its pages."""
    assert space.stager.bind(staged), f"{space.stager.shortfall([staged])} pages are short"
    return staged


def run(space: PageSpace, handles: np.ndarray, kv_len: int, num_tokens: int) -> tuple[list[int], list]:
    """A forward from staging to the end: its pages and copies."""
    prepared = bound(space, space.stager.forward(handles, kv_len, num_tokens))
    space.stager.finish(prepared)
    space.check()
    return prepared.pages.tolist(), prepared.copies


# --- handles ---------------------------------------------------------------------------------------


def test_handles_are_slot_and_generation():
    space = space_with(0)
    first = space.alloc(2)
    assert first.tolist() == [1 << 20, 1 << 20 | 1]
    space.free(first[:1])
    assert space.alloc(2).tolist() == [2 << 20, 1 << 20 | 2]


@pytest.mark.parametrize("bad", [0, 1, 1 << 20 | 5, 2 << 20, 0xFFFFFFFF, 1 << 20 | 0xFFFFF])
def test_forged_and_closed_handles_are_named(bad):
    space = space_with(4)
    good = space.alloc(2)
    gone = space.alloc(1)
    space.free(gone)
    for handle in (bad, int(gone[0])):
        for call in (
            lambda h=handle: space.free(u32(int(good[0]), h)),
            lambda h=handle: space.fork(u32(h)),
            lambda h=handle: space.stager.forward(u32(int(good[0]), h), 0, 1),
            lambda h=handle: space.stager.copy(h, 0, int(good[0]), 0, 1),
        ):
            with pytest.raises(BadHandle, match=f"page handle {handle} "):
                call()
    assert space.num_handles == 2
    space.check()


def test_free_checks_all_before_it_frees_any():
    space = space_with(4)
    handles = space.alloc(2)
    with pytest.raises(BadHandle, match=f"{handles[1]} is named twice"):
        space.free(handles[[0, 1, 1]])
    assert space.num_handles == 2
    space.free(handles)
    assert space.num_handles == 0
    space.free(u32())


def test_quota_names_limit_held_and_given():
    space = space_with(0, limit=8)
    handles = space.alloc(6)
    with pytest.raises(QuotaExceeded, match="limits.pages is 8: 6 handles are held, 3 more"):
        space.alloc(3)
    with pytest.raises(QuotaExceeded, match="limits.pages is 8"):
        space.fork(handles[:3])
    assert len(space.fork(handles[:2])) == 2
    space.check()


def test_no_handle_is_given_twice_and_old_ones_stay_closed():
    space = space_with(0, limit=1)
    seen: set[int] = set()
    for _ in range(9000):  # more than a slot has generations
        handles = space.alloc(1)
        assert int(handles[0]) not in seen
        seen.add(int(handles[0]))
        space.free(handles)
    assert 2 <= len({handle & 0xFFFFF for handle in seen}) <= 3
    with pytest.raises(BadHandle):
        space.fork(u32(1 << 20))
    space.check()


# --- binding ---------------------------------------------------------------------------------------


def test_pages_are_bound_at_first_use_in_order():
    space = space_with(3)
    handles = space.alloc(4)
    assert (space.num_spare, space.num_bound) == (3, 0)
    assert run(space, handles, 0, 6) == ([100, 101], [])
    assert run(space, handles, 6, 1) == ([100, 101], [])
    assert run(space, handles, 7, 2) == ([100, 101, 102], [])
    assert (space.num_spare, space.num_bound) == (0, 3)


def test_short_memory_changes_nothing_and_says_how_much():
    space = space_with(1)
    handles = space.alloc(3)
    staged = space.stager.forward(handles, 0, 12)
    assert not space.stager.bind(staged)
    assert (space.num_spare, space.num_bound) == (1, 0)
    assert space.stager.shortfall([staged]) == 2
    space.grant([7, 8])
    assert space.stager.shortfall([staged]) == 0
    assert space.stager.bind(staged)
    assert staged.pages.tolist() == [7, 8, 100]
    assert staged.pages.dtype == np.dtype("<u4")
    space.stager.finish(staged)
    space.check()


def test_freed_pages_go_back_to_spare_and_surplus_leaves_with_the_oldest():
    space = space_with(4)
    handles = space.alloc(2)
    run(space, handles, 0, 8)
    space.free(handles)
    assert space.num_spare == 4
    assert space.surplus(keep=1) == [103, 102, 100]
    assert (space.num_granted, space.num_released, space.num_spare) == (4, 3, 1)
    assert space.surplus(keep=1) == []
    space.check()


def test_page_in_flight_is_not_reused_before_its_command_ends():
    space = space_with(1)
    handles = space.alloc(1)
    first = bound(space, space.stager.forward(handles, 0, 1))
    second = bound(space, space.stager.forward(handles, 1, 1))
    space.free(handles)
    space.check()
    other = space.stager.forward(space.alloc(1), 0, 1)
    assert not space.stager.bind(other)
    space.stager.finish(first)
    assert not space.stager.bind(other)
    space.stager.finish(second)
    assert bound(space, other).pages.tolist() == [100]


def test_frames_live_as_long_as_something_uses_them_and_their_identities_are_never_used_again():
    space = PageSpace(4, 64)
    space.grant([9])
    handles = space.alloc(2)
    assert space.live_frames() == space.frame_ids(handles).tolist() == [1, 2]
    twin = space.fork(handles)
    space.free(handles)
    assert space.live_frames() == [1, 2]
    staged = space.stager.forward(twin, 0, 1)
    space.free(twin)
    assert space.live_frames() == [1]
    space.stager.finish(staged)
    assert space.live_frames() == []
    assert space.frame_ids(space.alloc(2)).tolist() == [3, 4]


# --- what a forward may do -----------------------------------------------------------------------


@pytest.mark.parametrize(("kv_len", "num_tokens"), [(0, 9), (8, 1), (-1, 2), (0, 0), (4, -1)])
def test_tokens_must_fit_in_the_pages(kv_len, num_tokens):
    space = space_with(4)
    handles = space.alloc(2)
    with pytest.raises(InvalidRequest, match=rf"kv_len {kv_len} \+ {num_tokens} tokens.* 2 pages of 4 \(8 slots\)"):
        space.stager.forward(handles, kv_len, num_tokens)


def test_slots_never_written_cannot_be_read():
    space = space_with(4)
    handles = space.alloc(2)
    for kv_len in (1, 4):
        with pytest.raises(InvalidRequest, match=f"kv_len {kv_len}: not all slots"):
            space.stager.forward(handles, kv_len, 1)
    run(space, handles, 0, 3)
    with pytest.raises(InvalidRequest, match="kv_len 4"):
        space.stager.forward(handles, 4, 1)
    run(space, handles, 3, 1)
    run(space, handles, 4, 1)
    run(space, handles, 2, 1)  # going back is fine, and loses nothing
    run(space, handles, 5, 1)


def test_page_written_to_cannot_be_named_twice():
    space = space_with(4)
    a, b = space.alloc(2).tolist()
    run(space, u32(a, b), 0, 8)
    for handles, kv_len, num_tokens in ((u32(a, a), 4, 1), (u32(a, b, b), 4, 8), (u32(a, b, a), 7, 2)):
        with pytest.raises(InvalidRequest, match="named twice"):
            space.stager.forward(handles, kv_len, num_tokens)
    c = int(space.alloc(1)[0])
    assert run(space, u32(a, a, c), 8, 1) == ([100, 100, 102], [])  # reading one twice is allowed


# --- copy-on-write -------------------------------------------------------------------------------


def test_first_write_through_either_handle_of_a_fork_copies_the_valid_part():
    space = space_with(8)
    parent = space.alloc(2)
    run(space, parent, 0, 6)
    child = space.fork(parent)
    assert run(space, child, 6, 1) == ([100, 102], [(101, 0, 102, 0, 2)])
    assert run(space, parent, 6, 1) == ([100, 101], [])  # the last owner writes in place
    assert run(space, child, 7, 1) == ([100, 102], [])
    assert space.frame_ids(parent).tolist() == [1, 2]
    assert space.frame_ids(child).tolist() == [1, 3]


def test_write_that_begins_a_page_copies_nothing():
    space = space_with(8)
    parent = space.alloc(2)
    run(space, parent, 0, 4)
    child = space.fork(parent)
    assert run(space, child, 4, 2) == ([100, 101], [])
    assert run(space, parent, 4, 2) == ([100, 102], [])


def test_write_inside_a_shared_page_keeps_what_lies_behind():
    space = space_with(8, page_size=8)
    parent = space.alloc(1)
    run(space, parent, 0, 7)
    child = space.fork(parent)
    assert run(space, child, 2, 2) == ([101], [(100, 0, 101, 0, 2), (100, 4, 101, 4, 3)])
    run(space, child, 7, 1)  # all seven slots count as written


def test_writing_through_both_handles_of_a_fork_in_one_pass():
    space = space_with(8)
    page = space.alloc(1)
    run(space, page, 0, 2)
    twin = space.fork(page)
    both = np.concatenate((page, twin))
    assert run(space, both, 2, 4) == ([101, 100], [(100, 0, 101, 0, 2)])
    assert space.frame_ids(both).tolist() == [2, 1]


def test_fork_between_staging_and_binding_keeps_what_was_staged():
    space = space_with(8)
    parent = space.alloc(1)
    staged = space.stager.forward(parent, 0, 2)
    child = space.fork(parent)
    later = space.stager.forward(child, 2, 1)  # reads what `staged` will write
    space.free(parent)
    assert space.stager.bind(staged)
    assert space.stager.bind(later)
    assert staged.pages.tolist() == [100]
    assert (later.pages.tolist(), later.copies) == ([101], [(100, 0, 101, 0, 2)])
    for prepared in (staged, later):
        space.stager.finish(prepared)
    space.check()
    assert (space.num_spare, space.num_bound) == (7, 1)


# --- copies ----------------------------------------------------------------------------------------


def test_copy_between_pages():
    space = space_with(8)
    a, b = space.alloc(2).tolist()
    run(space, u32(a), 0, 3)
    prepared = bound(space, space.stager.copy(a, 1, b, 0, 2))
    assert (prepared.copies, prepared.pages.tolist()) == ([(100, 1, 101, 0, 2)], [100, 101])
    space.stager.finish(prepared)
    run(space, u32(b), 2, 1)


def test_copy_into_a_shared_page_copies_the_rest_of_it_first():
    space = space_with(8)
    a, b = space.alloc(2).tolist()
    run(space, u32(a, b), 0, 8)
    twin = int(space.fork(u32(b))[0])
    prepared = bound(space, space.stager.copy(a, 0, twin, 1, 2))
    assert prepared.copies == [(101, 0, 102, 0, 1), (101, 3, 102, 3, 1), (100, 0, 102, 1, 2)]
    space.stager.finish(prepared)
    space.check()


@pytest.mark.parametrize(("src", "dst", "count"), [(3, 0, 2), (0, 3, 2), (-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 5)])
def test_copy_stays_in_its_pages(src, dst, count):
    space = space_with(8)
    a, b = space.alloc(2).tolist()
    run(space, u32(a), 0, 4)
    with pytest.raises(InvalidRequest, match=f"{count} tokens at"):
        space.stager.copy(a, src, b, dst, count)


def test_copy_of_slots_never_written_is_refused():
    space = space_with(8)
    a, b = space.alloc(2).tolist()
    run(space, u32(a), 0, 2)
    with pytest.raises(InvalidRequest, match=r"slots \[1, 3\) of page"):
        space.stager.copy(a, 1, b, 0, 2)


# --- failures --------------------------------------------------------------------------------------


def test_slots_of_a_failed_command_count_as_not_written():
    space = space_with(8)
    handles = space.alloc(2)
    run(space, handles, 0, 2)
    failed = bound(space, space.stager.forward(handles, 2, 4))
    behind = space.stager.forward(handles, 6, 1)
    space.stager.finish(failed, is_ok=False)
    assert space.stager.bind(behind)
    assert behind.error is not None
    space.stager.finish(behind, is_ok=False)
    with pytest.raises(InvalidRequest):
        space.stager.forward(handles, 3, 1)
    run(space, handles, 2, 4)
    run(space, handles, 6, 1)


def test_handle_moved_by_a_command_that_was_never_sent_moves_back():
    space = space_with(1)
    parent = space.alloc(1)
    run(space, parent, 0, 3)
    child = space.fork(parent)
    staged = space.stager.forward(child, 3, 1)
    assert not space.stager.bind(staged)
    space.stager.finish(staged, is_ok=False)  # no memory came
    space.check()
    space.free(parent)
    assert run(space, child, 3, 1) == ([100], [])  # the three tokens are still there


def test_command_that_builds_on_a_move_that_was_never_sent_gets_an_error_and_no_stale_memory():
    space = space_with(1)
    parent = space.alloc(1)
    run(space, parent, 0, 2)
    child = space.fork(parent)
    first = space.stager.forward(child, 2, 1)
    second = space.stager.forward(child, 3, 1)
    assert not space.stager.bind(first)
    space.stager.finish(first, is_ok=False)
    assert space.stager.bind(second)
    assert second.error is not None
    space.stager.finish(second, is_ok=False)
    space.check()
    with pytest.raises(InvalidRequest):
        space.stager.forward(child, 2, 1)
    run(space, parent, 2, 1)
