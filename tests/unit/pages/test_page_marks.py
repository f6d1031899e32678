"""Masks and truncation of pages: what a pass may see, and that nothing unwritten is ever seen."""

import numpy as np
import pytest
from arrays import u32

from pieray.errors import BadHandle, InvalidRequest, Unsupported
from pieray.pages.space import PageSpace


def space_with(num_pages: int, page_size: int = 4) -> PageSpace:
    space = PageSpace(page_size, 64)
    space.grant(list(range(100, 100 + num_pages)))
    return space


def run(space: PageSpace, handles: np.ndarray, kv_len: int, num_tokens: int) -> tuple[list[int], list]:
    prepared = space.stager.forward(handles, kv_len, num_tokens, is_masked=True)
    assert space.stager.bind(prepared)
    assert prepared.error is None
    space.stager.finish(prepared)
    space.check()
    return prepared.pages.tolist(), prepared.copies


def seen(space: PageSpace, handles: np.ndarray, kv_len: int) -> str:
    visible = space.visible(handles, kv_len)
    return "all" if visible is None else "".join("x" if bit else "." for bit in visible)


# --- masks -----------------------------------------------------------------------------------------


def test_masked_slots_are_not_seen_through_the_handle_and_its_later_forks():
    space = space_with(8)
    pages = space.alloc(2)
    run(space, pages, 0, 7)
    before = space.fork(pages)
    space.mask(int(pages[0]), 1, 2, is_visible=False)
    after = space.fork(pages)
    space.mask(int(pages[0]), 2, 1, is_visible=True)
    assert [seen(space, p, 7) for p in (pages, before, after)] == ["x.xxxxx", "all", "x..xxxx"]
    assert seen(space, pages, 1) == "all"  # none of these tokens is hidden
    space.free(after)
    assert seen(space, space.fork(before), 7) == "all"  # the slot of a closed handle brings no mask along


def test_partly_filled_pages_of_several_contexts_are_run_as_one_once_their_rest_is_masked():
    space = space_with(8)
    a, b, c = space.alloc(3).tolist()
    run(space, u32(a), 0, 2)
    run(space, u32(b), 0, 3)
    with pytest.raises(InvalidRequest, match="kv_len 8: not all slots"):
        space.stager.forward(u32(a, b, c), 8, 1, is_masked=True)
    space.mask(a, 2, 2, is_visible=False)
    space.mask(b, 3, 1, is_visible=False)
    assert seen(space, u32(a, b, c), 8) == "xx..xxx."
    assert run(space, u32(a, b, c), 8, 1) == ([100, 101, 102], [])
    with pytest.raises(InvalidRequest, match="kv_len 4: not all slots"):  # seven tokens in the second page's order
        space.stager.forward(u32(c, a, b), 4, 1, is_masked=True)


def test_a_slot_never_written_is_refused_as_soon_as_it_is_shown_again_also_through_forks_and_copies():
    space = space_with(8)
    page = space.alloc(2)
    run(space, page[:1], 0, 2)
    space.mask(int(page[0]), 2, 2, is_visible=False)
    run(space, page, 4, 1)
    twin = space.fork(page)
    assert run(space, twin, 4, 2) == ([100, 102], [])
    for handles in (page, twin):
        space.mask(int(handles[0]), 2, 1, is_visible=True)
        with pytest.raises(InvalidRequest, match="not all slots"):
            space.stager.forward(handles, 5, 1, is_masked=True)
    with pytest.raises(InvalidRequest, match=r"slots \[1, 3\)"):
        space.stager.copy(int(twin[0]), 1, int(twin[1]), 0, 2)


def test_copy_on_write_of_a_masked_page_does_not_make_its_unwritten_slots_written():
    space = space_with(8)
    page = space.alloc(1)
    run(space, page, 0, 1)
    space.mask(int(page[0]), 1, 2, is_visible=False)
    twin = space.fork(page)
    assert run(space, twin, 3, 1) == ([101], [(100, 0, 101, 0, 1)])
    space.mask(int(twin[0]), 1, 2, is_visible=True)
    with pytest.raises(InvalidRequest, match="not all slots"):
        space.stager.forward(np.concatenate((twin, space.alloc(1))), 4, 1, is_masked=True)


def test_a_command_that_cannot_heed_masks_is_refused():
    space = space_with(8)
    pages = space.alloc(2)
    run(space, pages, 0, 5)
    space.mask(int(pages[0]), 0, 1, is_visible=False)
    with pytest.raises(Unsupported, match=r"kv\.mask"):
        space.stager.forward(pages, 5, 1)
    space.mask(int(pages[0]), 0, 1, is_visible=True)
    space.mask(int(pages[1]), 1, 3, is_visible=False)  # behind what it reads
    space.stager.finish(space.stager.forward(pages, 5, 1))


def test_a_masked_slot_whose_writer_fails_does_not_void_who_does_not_see_it():
    space = space_with(8)
    page = space.alloc(2)
    run(space, page, 0, 2)
    failing = space.stager.forward(page, 2, 2, is_masked=True)
    sees = space.stager.forward(page, 4, 1, is_masked=True)
    space.mask(int(page[0]), 2, 2, is_visible=False)
    blind = space.stager.forward(page, 4, 1, is_masked=True)
    assert space.stager.bind(failing)
    space.stager.finish(failing, is_ok=False)
    assert space.stager.bind(sees)
    assert space.stager.bind(blind)
    assert (sees.error is None, blind.error is None) == (False, True)


@pytest.mark.parametrize(("offset", "count"), [(0, 5), (4, 1), (3, 2), (1 << 31, 1 << 31)])
def test_a_mask_stays_in_its_page(offset, count):
    space = space_with(2)
    page = int(space.alloc(1)[0])
    with pytest.raises(InvalidRequest, match="outside a page of 4 tokens"):
        space.mask(page, offset, count, is_visible=False)
    with pytest.raises(BadHandle):
        space.mask(page + 1, 0, 1, is_visible=False)
    space.mask(page, 4, 0, is_visible=False)
    assert seen(space, u32(page), 4) == "all"


def test_pages_of_64_tokens_are_masked_and_truncated_whole():
    space = space_with(2, page_size=64)
    pages = space.alloc(2)
    run(space, pages, 0, 100)
    space.mask(int(pages[0]), 0, 64, is_visible=False)
    assert seen(space, pages, 100) == "." * 64 + "x" * 36
    space.mask(int(pages[0]), 63, 1, is_visible=True)
    assert seen(space, pages, 64) == "." * 63 + "x"
    space.truncate(pages, 0)
    with pytest.raises(InvalidRequest, match="kv_len 64"):
        space.stager.forward(pages, 64, 1, is_masked=True)


# --- truncation ------------------------------------------------------------------------------------


def test_truncated_tokens_count_as_not_written_until_they_are_written_anew():
    space = space_with(8)
    pages = space.alloc(2)
    run(space, pages, 0, 7)
    space.truncate(pages, 5)
    with pytest.raises(InvalidRequest, match="kv_len 6"):
        space.stager.forward(pages, 6, 1)
    run(space, pages, 5, 1)
    run(space, pages, 6, 1)
    space.truncate(pages, 3)
    with pytest.raises(InvalidRequest, match=r"slots \[2, 4\)"):
        space.stager.copy(int(pages[0]), 2, int(pages[1]), 0, 2)
    assert run(space, pages, 3, 2) == ([100, 101], [])


def test_truncation_through_one_handle_leaves_the_other_and_what_is_staged_alone():
    space = space_with(8)
    parent = space.alloc(2)
    run(space, parent, 0, 6)
    staged = space.stager.forward(parent, 6, 1)
    child = space.fork(parent)
    space.truncate(child, 4)
    grandchild = space.fork(child)
    assert space.stager.bind(staged)
    assert staged.error is None
    space.stager.finish(staged)
    run(space, parent, 7, 1)
    for handles in (child, grandchild):
        with pytest.raises(InvalidRequest, match="kv_len 6"):
            space.stager.forward(handles, 6, 1)
    pages, copies = run(space, child, 4, 1)
    assert (pages, copies) == ([100, 103], [])  # 102 is the parent's since; nothing of the second page was left to copy
    with pytest.raises(InvalidRequest, match="kv_len 6"):
        space.stager.forward(child, 6, 1)


def test_truncation_checks_its_arguments_before_it_changes_anything():
    space = space_with(8)
    pages = space.alloc(2)
    run(space, pages, 0, 8)
    for num_tokens in (9, -1):
        with pytest.raises(InvalidRequest, match=f"from 0 to 8 tokens.*given {num_tokens}"):
            space.truncate(pages, num_tokens)
    with pytest.raises(BadHandle, match="named twice"):
        space.truncate(pages[[0, 0]], 0)
    with pytest.raises(BadHandle):
        space.truncate(u32(int(pages[0]), 77), 0)
    space.truncate(pages, 8)
    space.truncate(u32(), 0)
    run(space, np.concatenate((pages, space.alloc(1))), 8, 1)


def test_a_write_through_a_truncated_handle_that_fails_shows_nothing_unwritten():
    space = space_with(8)
    page = space.alloc(2)
    run(space, page, 0, 2)
    space.truncate(page, 1)
    failed = space.stager.forward(page, 1, 2)
    assert space.stager.bind(failed)
    space.stager.finish(failed, is_ok=False)
    with pytest.raises(InvalidRequest):
        space.stager.forward(page, 2, 1)
    run(space, page, 1, 1)
