"""PageSpace against a pool of real slots: what a handle reads is what was written through it, whatever is forked,
freed, copied, staged early, bound late or failed; and no inferlet ever reads what another left behind."""

from collections import deque

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pieray.errors import InvalidRequest
from pieray.pages.handles import PageSpace, Prepared

PAGE_SIZE, NUM_PAGES, STALE = 4, 8, -1


class PageSpaceMachine(RuleBasedStateMachine):
    """`expected` holds each handle's slots as a guest that knows nothing of sharing would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.space = PageSpace(PAGE_SIZE, limit=12)
        self.leasable = list(range(NUM_PAGES))
        self.pool = {page: [STALE] * PAGE_SIZE for page in range(NUM_PAGES)}
        self.expected: dict[int, list[int | None]] = {}
        self.staged: deque[tuple[Prepared, list[tuple[int, int, int]], list[int]]] = deque()  # writes, values to read
        self.in_flight: deque[Prepared] = deque()
        self.next_value = 1

    def pick(self, data: st.DataObject, count: int) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(self.expected)), min_size=1, max_size=count, unique=True))

    @rule(count=st.integers(0, 4))
    def alloc(self, count: int) -> None:
        if len(self.expected) + count <= 12:
            for handle in self.space.alloc(count).tolist():
                self.expected[handle] = [None] * PAGE_SIZE

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        if self.expected:
            handles = self.pick(data, 3)
            if len(self.expected) + len(handles) <= 12:
                for old, new in zip(handles, self.space.fork(np.array(handles, np.uint32)).tolist(), strict=True):
                    self.expected[new] = list(self.expected[old])

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.expected:
            handles = self.pick(data, 3)
            self.space.free(np.array(handles, np.uint32))
            for handle in handles:
                del self.expected[handle]

    @rule(data=st.data(), num_tokens=st.integers(1, 6))
    def forward(self, data: st.DataObject, num_tokens: int) -> None:
        if not self.expected:
            return
        handles = self.pick(data, 3)
        kv_len = data.draw(st.integers(0, len(handles) * PAGE_SIZE))
        slots = [(handle, offset) for handle in handles for offset in range(PAGE_SIZE)]
        reads = [self.expected[h][o] for h, o in slots[:kv_len]]
        is_valid = None not in reads and kv_len + num_tokens <= len(slots)
        try:
            prepared = self.space.stage_forward(np.array(handles, np.uint32), kv_len, num_tokens)
        except InvalidRequest:
            assert not is_valid
            return
        assert is_valid
        writes = []
        for index in range(kv_len, kv_len + num_tokens):
            handle, offset = slots[index]
            self.expected[handle][offset] = self.next_value
            writes.append((index // PAGE_SIZE, offset, self.next_value))
            self.next_value += 1
        self.staged.append((prepared, writes, reads))

    @rule(data=st.data(), src_offset=st.integers(0, 3), dst_offset=st.integers(0, 3), count=st.integers(1, 3))
    def copy(self, data: st.DataObject, src_offset: int, dst_offset: int, count: int) -> None:
        if not self.expected:
            return
        src, dst = data.draw(st.tuples(*[st.sampled_from(sorted(self.expected))] * 2))
        values = self.expected[src][src_offset : src_offset + count]
        is_valid = max(src_offset, dst_offset) + count <= PAGE_SIZE and None not in values
        try:
            prepared = self.space.stage_copy(src, src_offset, dst, dst_offset, count)
        except InvalidRequest:
            assert not is_valid
            return
        assert is_valid
        self.expected[dst][dst_offset : dst_offset + count] = values
        self.staged.append((prepared, [], []))

    @rule()
    def send(self) -> None:
        """Bind, copy, read, write, as the batcher does it: in the order staged."""
        if not self.staged:
            return
        prepared, writes, reads = self.staged[0]
        if not self.space.bind(prepared):
            assert self.space.shortfall([prepared]) > 0
            return
        self.staged.popleft()
        self.in_flight.append(prepared)
        values = [self.pool[src][so : so + n] for src, so, _, _, n in prepared.copies]
        for (_, _, dst, do, n), value in zip(prepared.copies, values, strict=True):
            self.pool[dst][do : do + n] = value
        pages = prepared.pages.tolist()
        assert [self.pool[pages[i // PAGE_SIZE]][i % PAGE_SIZE] for i in range(len(reads))] == reads
        for page, offset, value in writes:
            self.pool[pages[page]][offset] = value

    @rule()
    def complete(self) -> None:
        if self.in_flight:
            self.space.finish(self.in_flight.popleft())

    @rule(count=st.integers(1, 3))
    def grant(self, count: int) -> None:
        pages, self.leasable = self.leasable[:count], self.leasable[count:]
        for page in pages:
            self.pool[page] = [STALE] * PAGE_SIZE  # whatever another inferlet left there
        self.space.grant(pages)

    @rule(keep=st.integers(0, 2))
    def release(self, keep: int) -> None:
        self.leasable += self.space.surplus(keep)

    @invariant()
    def balances(self) -> None:
        self.space.check()

    def teardown(self) -> None:
        """Run everything to its end, read everything back, free everything: every page is spare again."""
        self.grant(NUM_PAGES)
        for _ in range(len(self.staged)):
            self.send()
            self.complete()
        while self.in_flight:
            self.complete()
        if not self.staged:  # else the frames in use are more than the pages there are
            for handle, slots in list(self.expected.items()):
                length = next((i for i, value in enumerate(slots) if value is None), PAGE_SIZE)
                if 0 < length < PAGE_SIZE and self.space.num_spare:
                    prepared = self.space.stage_forward(np.array([handle], np.uint32), length, 1)
                    if self.space.bind(prepared):
                        self.staged.append((prepared, [], slots[:length]))
                        self.send()
                        self.complete()
        for prepared, _, _ in self.staged:
            self.space.finish(prepared, is_ok=False)
        self.space.free(np.array(list(self.expected), np.uint32))
        self.space.check()
        assert self.space.num_bound == 0
        assert sorted(self.space.surplus(0) + self.leasable) == list(range(NUM_PAGES))


TestPageSpaceModel = PageSpaceMachine.TestCase
TestPageSpaceModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
