"""Page spaces, ledger and exports together over a pool of real slots: whatever inferlets fork, mask, truncate, export,
import and drop, and whoever dies, all books balance, every read is of what was written, and all pages come back."""

import random
from collections import deque

import numpy as np
import pytest
from rounds import seeds

from pieray.errors import Evicted, InvalidRequest, NotFound, QuotaExceeded
from pieray.leases.exports import Export, ExportTable, Owner, Quota
from pieray.leases.ledger import Holder, PageLedger
from pieray.pages.handles import PageSpace, Prepared

SIZE, NUM_PAGES, STALE = 4, 24, -1
OWNER, QUOTA = Owner("acme", "ann"), Quota(6, 16, 1000)
Values = list[int | None]


class Inferlet:
    """`expected` holds each handle's slots as a guest that knows nothing of sharing would see them."""

    def __init__(self, number: int) -> None:
        self.holder = Holder(f"peer-{number % 2}", number)
        self.space = PageSpace(SIZE, limit=24)
        self.expected: dict[int, Values] = {}
        self.hidden: dict[int, set[int]] = {}
        self.in_flight: deque[Prepared] = deque()


class Model:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ledger = PageLedger(NUM_PAGES)
        self.table = ExportTable(self.ledger)
        self.pool = {page: [STALE] * SIZE for page in range(NUM_PAGES)}
        self.exported: dict[str, list[Values]] = {}
        self.live: list[Inferlet] = []
        self.num_inferlets = self.next_value = 0
        self.dead: list[str] = []
        self.num_imports = 0

    def step(self) -> None:
        rng = self.rng
        if len(self.live) < 3:
            self.live.append(Inferlet(self.num_inferlets))
            self.num_inferlets += 1
        one = rng.choice(self.live)
        rules = [self.alloc, self.forward, self.forward, self.forward, self.finish, self.finish, self.give_back]
        if one.expected:
            rules += [self.fork, self.free, self.mask, self.truncate]
            rules += [self.export] * 2 + [self.open] * 3
        rare = {0: self.end, 1: self.die, 2: self.fence, 3: self.unexport, 4: self.evict}
        rule = rare.get(rng.randrange(120)) or rng.choice(rules)
        rule(one)
        self.ledger.check()
        for inferlet in self.live:
            inferlet.space.check()
            held = inferlet.space.num_granted - inferlet.space.num_released
            assert self.ledger.num_pages_of(inferlet.holder) <= held
        states = (self.ledger.num_free, self.ledger.num_leased, self.ledger.num_cached, self.ledger.num_quarantined)
        assert sum(states) == NUM_PAGES

    def pick(self, one: Inferlet, most: int = 3) -> np.ndarray:
        handles = sorted(one.expected)
        return np.array(self.rng.sample(handles, self.rng.randint(1, min(most, len(handles)))), np.uint32)

    def alloc(self, one: Inferlet) -> None:
        if len(one.expected) < 8:
            for handle in one.space.alloc(2).tolist():
                one.expected[handle], one.hidden[handle] = [None] * SIZE, set()

    def fork(self, one: Inferlet) -> None:
        handles = self.pick(one)
        if len(one.expected) + len(handles) <= 12:
            for old, new in zip(handles.tolist(), one.space.fork(handles).tolist(), strict=True):
                one.expected[new], one.hidden[new] = list(one.expected[old]), set(one.hidden[old])

    def free(self, one: Inferlet) -> None:
        handles = self.pick(one)
        one.space.free(handles)
        for handle in handles.tolist():
            del one.expected[handle], one.hidden[handle]

    def mask(self, one: Inferlet) -> None:
        handle, offset, is_visible = int(self.pick(one)[0]), self.rng.randrange(SIZE), self.rng.random() < 0.4
        one.space.mask(handle, offset, SIZE - offset, is_visible=is_visible)
        slots = set(range(offset, SIZE))
        one.hidden[handle] = one.hidden[handle] - slots if is_visible else one.hidden[handle] | slots

    def truncate(self, one: Inferlet) -> None:
        handles = self.pick(one)
        length = self.rng.randint(0, len(handles) * SIZE)
        one.space.truncate(handles, length)
        for index, handle in enumerate(handles.tolist()):
            for offset in range(max(0, length - index * SIZE), SIZE):
                one.expected[handle][offset] = None

    def forward(self, one: Inferlet) -> None:
        """Stage, bind (leasing what is short), copy, read what is visible, write."""
        if not one.expected:
            return
        handles, num_tokens = self.pick(one), self.rng.randint(1, 5)
        slots = [(h, o) for h in handles.tolist() for o in range(SIZE)]
        may = [one.expected[h][o] is not None or o in one.hidden[h] for h, o in slots]
        kv_len = self.rng.choice([0, may.index(False) if False in may else len(slots), self.rng.randint(0, len(slots))])
        visible = one.space.visible(handles, kv_len)
        shown = [o not in one.hidden[h] for h, o in slots[:kv_len]]
        assert (visible is None and all(shown)) or (visible is not None and visible.tolist() == shown)
        try:
            prepared = one.space.stage_forward(handles, kv_len, num_tokens, is_masked=True)
        except InvalidRequest:
            assert not all(may[:kv_len]) or kv_len + num_tokens > len(slots)
            return
        assert all(may[:kv_len])
        reads = [(i, one.expected[h][o]) for i, (h, o) in enumerate(slots[:kv_len]) if shown[i]]
        writes = []
        for index in range(kv_len, kv_len + num_tokens):
            handle, offset = slots[index]
            one.expected[handle][offset] = self.next_value
            writes.append((index // SIZE, offset, self.next_value))
            self.next_value += 1
        self.run(one, prepared, reads, writes)

    def run(
        self, one: Inferlet, prepared: Prepared, reads: list[tuple[int, int | None]], writes: list[tuple[int, int, int]]
    ) -> None:
        while not one.space.bind(prepared):
            pages = self.ledger.lease(one.holder, one.space.shortfall([prepared]))
            if pages is None:
                self.make_room()
                continue
            for page in pages:
                self.pool[page] = [STALE] * SIZE
            one.space.grant(pages)
        values = [self.pool[src][so : so + n] for src, so, _, _, n in prepared.copies]
        for (_, _, dst, do, n), value in zip(prepared.copies, values, strict=True):
            self.pool[dst][do : do + n] = value
        pages = prepared.pages.tolist()
        assert [self.pool[pages[i // SIZE]][i % SIZE] for i, _ in reads] == [value for _, value in reads]
        for page, offset, value in writes:
            self.pool[pages[page]][offset] = value
        one.in_flight.append(prepared)

    def make_room(self) -> None:
        """What the engine does under pressure, and the guests in the end."""
        for inferlet in self.live:
            while inferlet.in_flight:
                self.finish(inferlet)
            self.give_back(inferlet, all_spare=True)
        for peer in list(self.dead):
            self.fence(None, peer)
        if self.table.evict(NUM_PAGES) == 0 and self.ledger.num_free < 4:
            for export in list(self.table.visible(OWNER, "")):
                self.table.remove(OWNER, export.access, export.name)
            for inferlet in self.live:
                while inferlet.expected and self.ledger.num_free < 8:
                    self.free(inferlet)
                    self.give_back(inferlet, all_spare=True)

    def finish(self, one: Inferlet) -> None:
        if one.in_flight:
            one.space.finish(one.in_flight.popleft())

    def give_back(self, one: Inferlet, *, all_spare: bool = False) -> None:
        pages = one.space.take_returned() + one.space.surplus(keep=0 if all_spare else 2)
        self.ledger.release(one.holder, pages)

    def export(self, one: Inferlet) -> None:
        handles, name = self.pick(one), self.rng.choice("abcd")
        values = [list(one.expected[h]) for h in handles.tolist()]
        flat = [value for page in values for value in page]
        filled = flat.index(None) if None in flat else len(flat)
        num_tokens = self.rng.choice([filled, filled, self.rng.randint(1, 12)])
        try:
            lent = one.space.begin_export(handles, num_tokens)
        except (InvalidRequest, QuotaExceeded):
            return
        while one.in_flight:
            self.finish(one)
        written = lent.written.astype("<u8").tobytes()
        pinned_until = float("inf") if self.rng.random() < 0.2 else float("-inf")
        try:
            pages = one.space.freeze(lent)
            export = Export(name, "owner", OWNER, pages, written, num_tokens, "", pinned_until, float("inf"))
            self.table.put(one.holder, export, QUOTA, replace=True)
            flat[num_tokens:] = [None] * (len(flat) - num_tokens)
            self.exported[name] = [flat[i * SIZE : (i + 1) * SIZE] for i in range(len(pages))]
        except (InvalidRequest, QuotaExceeded):
            pass
        one.space.end_export(lent)

    def open(self, one: Inferlet) -> None:
        name = self.rng.choice("abcd")
        try:
            found = self.table.open(one.holder, OWNER, name)
        except (NotFound, Evicted):
            return
        try:
            handles = one.space.adopt(found.pages, np.frombuffer(found.written, "<u8"))
        except QuotaExceeded:
            self.ledger.release(one.holder, found.pages)
            return
        self.num_imports += 1
        for handle, page, values in zip(handles.tolist(), found.pages, self.exported[name], strict=True):
            memory = zip(self.pool[page], values, strict=True)
            assert [None if value is None else have for have, value in memory] == values
            one.expected[handle], one.hidden[handle] = list(values), set()

    def end(self, one: Inferlet) -> None:
        self.live.remove(one)
        self.ledger.close(one.holder)

    def die(self, one: Inferlet) -> None:
        peer = one.holder.peer_id
        self.live = [inferlet for inferlet in self.live if inferlet.holder.peer_id != peer]
        self.ledger.drop_peer(peer, fenced=False)
        self.dead.append(peer)
        self.num_inferlets += 1 if self.num_inferlets % 2 == int(peer[-1]) else 0
        self.fence(None, peer)

    def fence(self, _one: Inferlet | None, peer: str | None = None) -> None:
        for dead in [peer] if peer is not None else list(self.dead):
            self.ledger.fence(dead)
            self.dead = [p for p in self.dead if p != dead]

    def unexport(self, _one: Inferlet) -> None:
        for export in list(self.table.visible(OWNER, ""))[:1]:
            self.table.remove(OWNER, "owner", export.name)

    def evict(self, _one: Inferlet) -> None:
        self.table.evict(self.rng.randint(1, 4))


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(12))
def test_pages_are_conserved_and_hold_what_was_written(seed):
    model = Model(seed)
    for _ in range(250):
        model.step()
    for inferlet in list(model.live):
        while inferlet.in_flight:
            model.finish(inferlet)
        inferlet.space.free(np.array(list(inferlet.expected), np.uint32))
        model.give_back(inferlet, all_spare=True)
        assert inferlet.space.num_bound == 0
        assert model.ledger.num_pages_of(inferlet.holder) == 0
    model.table.clear()
    model.ledger.check()
    assert model.ledger.num_free == NUM_PAGES


def test_the_model_does_import():
    models = [Model(seed) for seed in range(5)]
    for model in models:
        for _ in range(250):
            model.step()
    assert sum(model.num_imports for model in models) > 20
