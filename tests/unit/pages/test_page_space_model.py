"""PageSpace against a pool of real slots: what a handle reads is what was written through it, whatever is forked,
freed, copied, staged early, bound late or failed; and no inferlet ever reads what another left behind."""

import random
from collections import deque

import numpy as np
import pytest
from rounds import seeds

from pieray.errors import InvalidRequest
from pieray.pages.prepared import Prepared
from pieray.pages.space import PageSpace

PAGE_SIZE, NUM_PAGES, STALE = 4, 8, -1


class Model:
    """`expected` holds each handle's slots as a guest that knows nothing of sharing would see them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.space = PageSpace(PAGE_SIZE, limit=12)
        self.leasable = list(range(NUM_PAGES))
        self.pool = {page: [STALE] * PAGE_SIZE for page in range(NUM_PAGES)}
        self.expected: dict[int, list[int | None]] = {}
        self.staged: deque[tuple[Prepared, list[tuple[int, int, int]], list[int]]] = deque()  # writes, values to read
        self.in_flight: deque[Prepared] = deque()
        self.next_value = 1

    def pick(self, count: int) -> list[int]:
        handles = sorted(self.expected)
        return self.rng.sample(handles, self.rng.randint(1, min(count, len(handles))))

    def step(self) -> None:
        rules = [self.alloc, self.forward, self.forward, self.send, self.send, self.complete, self.grant]
        if self.expected:
            rules += [self.fork, self.free, self.copy]
        if self.rng.random() < 0.1:
            rules.append(self.release)
        self.rng.choice(rules)()
        self.space.check()
        self.check_memory()

    def alloc(self) -> None:
        count = self.rng.randint(0, 3)
        if len(self.expected) + count <= 12:
            for handle in self.space.alloc(count).tolist():
                self.expected[handle] = [None] * PAGE_SIZE

    def fork(self) -> None:
        handles = self.pick(3)
        if len(self.expected) + len(handles) <= 12:
            for old, new in zip(handles, self.space.fork(np.array(handles, np.uint32)).tolist(), strict=True):
                self.expected[new] = list(self.expected[old])

    def free(self) -> None:
        handles = self.pick(2)
        self.space.free(np.array(handles, np.uint32))
        for handle in handles:
            del self.expected[handle]

    def forward(self) -> None:
        if not self.expected:
            return
        handles, num_tokens = self.pick(3), self.rng.randint(1, 6)
        slots = [(handle, offset) for handle in handles for offset in range(PAGE_SIZE)]
        values = [self.expected[h][o] for h, o in slots]
        filled = values.index(None) if None in values else len(slots)
        kv_len = self.rng.choice([0, filled, filled, filled // 2, filled + 1])
        reads = [self.expected[h][o] for h, o in slots[:kv_len]]
        is_valid = None not in reads and kv_len + num_tokens <= len(slots)
        try:
            prepared = self.space.stager.forward(np.array(handles, np.uint32), kv_len, num_tokens)
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

    def copy(self) -> None:
        src, dst = self.rng.choices(sorted(self.expected), k=2)
        src_offset, dst_offset, count = self.rng.randint(0, 3), self.rng.randint(0, 3), self.rng.randint(1, 3)
        values = self.expected[src][src_offset : src_offset + count]
        is_valid = max(src_offset, dst_offset) + count <= PAGE_SIZE and None not in values
        try:
            prepared = self.space.stager.copy(src, src_offset, dst, dst_offset, count)
        except InvalidRequest:
            assert not is_valid
            return
        assert is_valid
        self.expected[dst][dst_offset : dst_offset + count] = values
        self.staged.append((prepared, [], []))

    def send(self) -> None:
        """Bind, copy, read, write, as the batcher does it: in the order staged."""
        if not self.staged:
            return
        prepared, writes, reads = self.staged[0]
        if not self.space.stager.bind(prepared):
            assert self.space.stager.shortfall([prepared]) > 0
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

    def complete(self) -> None:
        if self.in_flight:
            self.space.stager.finish(self.in_flight.popleft())

    def grant(self, count: int = 2) -> None:
        pages, self.leasable = self.leasable[:count], self.leasable[count:]
        for page in pages:
            self.pool[page] = [STALE] * PAGE_SIZE  # whatever another inferlet left there
        self.space.grant(pages)

    def release(self) -> None:
        self.leasable += self.space.surplus(keep=1)

    def check_memory(self) -> None:
        """Every handle sees what was written through it."""
        if not self.staged:
            for handle, slots in self.expected.items():
                (row,) = self.space._handles.values(self.space._handles.find(np.array([handle], np.uint32)))
                memory = self.pool.get(int(self.space._frames.page[row]), [None] * PAGE_SIZE)
                assert [value for value in slots if value is not None] == [
                    have for have, value in zip(memory, slots, strict=True) if value is not None
                ]

    def end(self) -> None:
        """Run everything to its end, free everything: every page is spare again."""
        self.grant(NUM_PAGES)
        for _ in range(len(self.staged)):
            self.send()
        while self.in_flight:
            self.complete()
        self.check_memory()
        for prepared, _, _ in self.staged:  # more frames are in use than there are pages
            self.space.stager.finish(prepared, is_ok=False)
        self.space.free(np.array(list(self.expected), np.uint32))
        self.space.check()
        assert self.space.num_bound == 0
        assert sorted(self.space.surplus(0) + self.leasable) == list(range(NUM_PAGES))


@pytest.mark.parametrize("seed", seeds(60))
def test_every_handle_sees_what_was_written_through_it(seed):
    model = Model(seed)
    for _ in range(80):
        model.step()
    model.end()
