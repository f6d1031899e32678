"""Lineage: any page can be lost and rebuilt, and the log stays small."""

import random

import numpy as np
import pytest
from rounds import seeds

from pieray.errors import InvalidRequest, Unsupported
from pieray.pages.lineage import CopyStep, ForwardStep, Lineage, Step, steps_on
from pieray.pages.space import PageSpace

PAGE = 4


class Memory(dict):
    """KV by frame: a slot holds a hash of token, position and all slots that the token sees, in order."""

    def page(self, frame: int) -> list:
        return self.setdefault(frame, [None] * PAGE)

    def run(self, step: Step) -> None:
        if isinstance(step, CopyStep):
            values = self.page(step.src)[step.src_offset : step.src_offset + step.count]
            assert None not in values
            self.page(step.dst)[step.dst_offset : step.dst_offset + step.count] = values
            return
        tokens = np.frombuffer(step.tokens, "<u4").tolist()
        width = step.kv_len + len(tokens)
        positions = np.frombuffer(step.positions, "<u4").tolist() or list(range(step.kv_len, width))
        bits = np.unpackbits(np.frombuffer(step.mask, np.uint8), bitorder="little")
        sees = bits[: len(tokens) * width].reshape(-1, width) if step.mask else np.ones((len(tokens), width))
        frames = step.frames.tolist()
        slots = [self.page(frames[i // PAGE])[i % PAGE] for i in range(step.kv_len)]
        assert None not in slots
        for row, (token, position) in enumerate(zip(tokens, positions, strict=True)):
            seen = tuple(s for s, visible in zip(slots, sees[row], strict=False) if visible)
            slots.append(hash((token, position, seen)))
        for i in range(step.kv_len, width):
            self.page(frames[i // PAGE])[i % PAGE] = slots[i]


class Guest:
    """Programs over alloc, fork, free, forward and copy; `memory` is what the device holds."""

    def __init__(self, seed: int = 0, limit: int = 10, **kwargs) -> None:
        self.rng = random.Random(seed)
        self.space = PageSpace(PAGE, limit)
        self.lineage = Lineage(PAGE, self.space.live_frames, **kwargs)
        self.space.grant(list(range(64)))
        self.memory = Memory()
        self.handles: list[int] = []

    def alloc(self, count: int) -> list[int]:
        self.handles += (new := self.space.alloc(count).tolist())
        return new

    def fork(self, handles: list[int]) -> list[int]:
        self.handles += (new := self.space.fork(np.array(handles, np.uint32)).tolist())
        return new

    def free(self, handles: list[int]) -> None:
        self.space.free(np.array(handles, np.uint32))
        self.handles = [handle for handle in self.handles if handle not in handles]

    def forward(self, handles, kv_len, tokens, positions=(), mask=b"") -> None:
        prepared = self.space.stager.forward(np.array(handles, np.uint32), kv_len, len(tokens))
        assert self.space.stager.bind(prepared)
        tokens, positions = np.array(tokens, np.uint32), np.array(positions, np.uint32)
        self.lineage.add_copies(prepared.frame_copies)
        for copy in prepared.frame_copies:
            self.memory.run(CopyStep(*copy))
        step = ForwardStep(prepared.frames, kv_len, tokens.tobytes(), positions.tobytes(), mask)
        self.lineage.add_forward(step.frames, kv_len, step.tokens, step.positions, mask)
        self.memory.run(step)
        self.space.stager.finish(prepared)

    def copy(self, src, src_offset, dst, dst_offset, count) -> None:
        prepared = self.space.stager.copy(src, src_offset, dst, dst_offset, count)
        assert self.space.stager.bind(prepared)
        self.lineage.add_copies(prepared.frame_copies)
        for copy in prepared.frame_copies:
            self.memory.run(CopyStep(*copy))
        self.space.stager.finish(prepared)

    def frames(self) -> list[int]:
        return self.space.frame_ids(np.array(self.handles, np.uint32)).tolist()

    def check_rebuild(self, frames: list[int]) -> list[Step]:
        """Rebuild the frames on fresh memory: every written slot is what it was."""
        plan = self.lineage.rebuild_plan(frames)
        scratch = Memory()
        for step in plan:
            scratch.run(step)
        for frame in frames:
            for have, lost in zip(scratch.page(frame), self.memory.page(frame), strict=True):
                assert lost is None or have == lost
        return plan

    def check_rebuild_on(self, lost: list[int]) -> int:
        """The same on top of what is there; how many frames of that are read."""
        full = {frame for frame in self.frames() if None not in self.memory.page(frame)}
        there = full.difference(lost)
        plan, given = steps_on(self.lineage.rebuild_plan(there.union(lost)), lost, there, PAGE)
        scratch = Memory({frame: list(self.memory.page(frame)) for frame in given})
        for step in plan:
            assert given.isdisjoint(frame for frame, _ in step.writes(PAGE))
            scratch.run(step)
        for frame in lost:
            for have, was in zip(scratch.page(frame), self.memory.page(frame), strict=True):
                assert was is None or have == was
        return len(given)

    def act(self) -> None:
        rng = self.rng
        try:
            match rng.randrange(9):
                case 0 if len(self.handles) < 7:
                    self.alloc(rng.randint(1, 3))
                case 1 if 0 < len(self.handles) < 7:
                    self.fork(rng.sample(self.handles, rng.randint(1, min(3, len(self.handles)))))
                case 2 if self.handles:
                    self.free(rng.sample(self.handles, rng.randint(1, min(2, len(self.handles)))))
                case 3 if self.handles:
                    src, dst = rng.choices(self.handles, k=2)
                    self.copy(src, rng.randrange(3), dst, rng.randrange(3), rng.randint(1, 2))
                case _ if self.handles:
                    self.act_forward()
        except InvalidRequest:
            pass

    def act_forward(self) -> None:
        rng = self.rng
        handles = rng.sample(self.handles, rng.randint(1, min(3, len(self.handles))))
        ids = self.space.frame_ids(np.array(handles, np.uint32)).tolist()
        slots = [value for frame in ids for value in self.memory.get(frame, [None] * PAGE)]
        filled = slots.index(None) if None in slots else len(slots)
        kv_len = rng.choice([0, filled, filled, filled, filled // 2])
        for _ in range(rng.randint(1, 3)):  # often runs on: records merge
            n = rng.choice([1, 1, 2, 5])
            if kv_len + n > len(slots):
                return
            positions = [rng.randrange(100) for _ in range(n)] if rng.random() < 0.2 else []
            mask = rng.randbytes((n * (kv_len + n) + 7) // 8) if rng.random() < 0.2 else b""
            self.forward(handles, kv_len, [rng.randrange(1000) for _ in range(n)], positions, mask)
            kv_len += n


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(40))
def test_any_lost_pages_can_be_rebuilt(seed):
    guest = Guest(seed)
    for _ in range(60):
        guest.act()
        frames = sorted(set(guest.frames()))
        lost = guest.rng.sample(frames, guest.rng.randint(0, len(frames)))
        guest.check_rebuild(lost)
        guest.check_rebuild_on(lost)
        if guest.rng.random() < 0.1:
            guest.lineage.compact()
    guest.check_rebuild(sorted(set(guest.frames())))
    guest.free(guest.handles)
    guest.lineage.compact()
    assert (guest.lineage.num_steps, guest.lineage.num_bytes) == (0, 0)


def test_generation_is_one_step_of_its_tokens():
    guest = Guest(limit=64)
    pages = guest.alloc(16)
    guest.forward(pages, 0, range(10))
    for kv_len in range(10, 60):
        guest.forward(pages, kv_len, [kv_len])
    frames = guest.frames()[:15]
    (step,) = guest.check_rebuild(frames)
    assert (step.frames.tolist(), step.kv_len, step.tokens) == (frames, 0, np.arange(60, dtype="<u4").tobytes())
    assert guest.lineage.num_steps == 51, "the log itself is only appended to"
    guest.lineage.compact()
    assert guest.lineage.num_steps == 1


def test_spans_seen_otherwise_are_steps_of_their_own():
    guest = Guest()
    frames = np.array([1, 2, 3], np.int64)
    token = np.array([7], "<u4").tobytes()
    for kv_len, more in enumerate([{}, {}, {"adapter": 3}, {"adapter": 3}, {"visible": b"\x05"}, {}]):
        guest.lineage.add_forward(frames, kv_len, token, **more)
    found = [
        (step.kv_len, len(step.tokens) // 4, step.adapter, step.visible) for step in guest.lineage.rebuild_plan([1, 2])
    ]
    assert found == [(0, 2, 0, b""), (2, 2, 3, b""), (4, 1, 0, b"\x05"), (5, 1, 0, b"")]


def test_interleaved_forks_are_a_step_each():
    guest = Guest(limit=64)
    trunk = guest.alloc(2)
    guest.forward(trunk, 0, range(6))
    branches = [trunk, *(guest.fork(trunk) + guest.alloc(4) for _ in range(3))]
    branches[0] = trunk + guest.alloc(4)
    for kv_len in range(6, 20):
        for number, branch in enumerate(branches):
            guest.forward(branch, kv_len, [100 * number + kv_len])
    plan = guest.check_rebuild(sorted(set(guest.frames())))
    assert len(plan) == 1 + 3 * 2  # the trunk, run on by the last branch in place; copy and forward


def test_what_is_drawn_again_and_again_for_ever_does_not_make_the_log_grow():
    guest = Guest()
    pages = guest.alloc(2)
    guest.forward(pages, 0, range(6))
    for turn in range(2000):
        guest.forward(pages, 5, [turn, turn])
    assert guest.lineage.num_bytes < 300_000
    assert len(guest.check_rebuild(guest.frames())) == 2


def test_the_end_of_a_text_is_computed_on_its_beginning_if_that_is_there():
    guest = Guest()
    pages = guest.alloc(4)
    guest.forward(pages, 0, range(10))
    guest.forward(pages, 10, range(4))
    assert guest.check_rebuild_on(guest.frames()[2:]) == 2
    assert guest.check_rebuild_on(guest.frames()[:1]) == 0


def test_pages_given_back_leave_the_log():
    guest = Guest(limit=64)
    for _ in range(300):
        pages = guest.alloc(8)
        guest.forward(pages, 0, range(32))
        guest.free(pages)
    guest.lineage.compact()
    assert guest.lineage.num_steps == 0


def test_a_log_past_its_limit_is_given_up_and_says_so():
    guest = Guest(max_bytes=20_000)
    a, b = guest.alloc(2)
    guest.forward([a], 0, [1, 2])
    for _ in range(50):  # each copy needs the one before
        guest.copy(a, 0, b, 2, 2)
        guest.copy(b, 2, a, 0, 2)
    assert not guest.lineage.is_complete
    with pytest.raises(Unsupported, match="passed 20000 bytes"):
        guest.lineage.rebuild_plan(guest.frames())
    assert guest.lineage.num_steps == 0
