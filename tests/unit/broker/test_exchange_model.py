"""Random requests, deaths and deadlines: no text is lost or doubled, queues keep their order, books balance."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.broker.buffer import Bounds, Caller
from pieray.broker.exchange import Exchange
from pieray.errors import PierayError

PEERS = st.sampled_from(["a", "b", "c"])
NAMES = st.sampled_from(["q", "r"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), PEERS, NAMES, st.integers(0, 600), st.integers(0, 9)),
        st.tuples(st.just("pull"), PEERS, NAMES),
        st.tuples(st.just("broadcast"), PEERS, st.integers(0, 600), st.integers(0, 9)),
        st.tuples(st.just("subscribe"), PEERS, st.integers(1, 2)),
        st.tuples(st.just("unsubscribe"), PEERS, st.integers(1, 2)),
        st.tuples(st.just("next"), PEERS, st.integers(1, 2)),
        st.tuples(st.just("settle"), st.integers(0, 99), st.booleans()),
        st.tuples(st.just("withdraw"), st.integers(0, 99)),
        st.tuples(st.just("drop"), PEERS),
        st.tuples(st.just("expire"), st.integers(0, 9)),
    ),
    max_size=60,
)


class Model:
    """Does the steps, and keeps account of every text by the answers alone."""

    def __init__(self) -> None:
        self.bounds = Bounds(num_texts=3, num_bytes=2000, tenant_bytes=5000)
        self.exchange = Exchange(self.bounds)
        self.now = 0.0
        self.ticket = 0
        self.asked: dict[int, tuple[str, Caller, Any]] = {}  # open requests
        self.given: dict[int, tuple[str, Caller, str]] = {}  # texts given and not settled: where, to whom
        self.in_queue: dict[str, list[str]] = defaultdict(list)  # accepted, and not taken for good
        self.taken: dict[str, list[str]] = defaultdict(list)
        self.accepted: dict[str, list[str]] = defaultdict(list)
        self.subscriptions: dict[tuple[str, int], list[str]] = {}  # what each is still to read, in order
        self.targets: dict[int, list[tuple[str, int]]] = {}

    def caller(self, peer: str) -> Caller:
        self.ticket += 1
        return Caller(peer, self.ticket, f"{peer}-it")

    def note(self, answers: list[Any]) -> None:
        """Pushes and broadcasts count before the texts that they give: both are answers of one call."""
        for caller, result in answers:
            kind, asker, what = self.asked[caller.ticket]
            assert asker == caller
            if kind in ("push", "broadcast") and result is None:
                self._accept(kind, caller, what)
        for caller, result in answers:
            kind, _, what = self.asked.pop(caller.ticket)
            if kind in ("pull", "next") and isinstance(result, str):
                self.given[caller.ticket] = (what, caller, result)
            else:
                assert result is None or isinstance(result, PierayError)

    def _accept(self, kind: str, caller: Caller, what: Any) -> None:
        place, text = what
        if kind == "push":
            self.in_queue[place].append(text)
            self.accepted[place].append(text)
        else:
            for target in self.targets.pop(caller.ticket):
                if target in self.subscriptions:
                    self.subscriptions[target].append(text)

    def do(self, step: tuple[Any, ...]) -> None:
        getattr(self, f"do_{step[0]}")(*step[1:])
        self.exchange.check()
        status = self.exchange.status()
        assert status["bytes"] <= self.bounds.tenant_bytes

    def do_push(self, peer: str, name: str, size: int, wait: int) -> None:
        caller = self.caller(peer)
        text = f"{caller.ticket}:".ljust(size, "x")
        self.asked[caller.ticket] = ("push", caller, (name, text))
        self.note(self.exchange.push(caller, "t", name, text, self.now + wait if wait else float("-inf")))

    def do_pull(self, peer: str, name: str) -> None:
        caller = self.caller(peer)
        self.asked[caller.ticket] = ("pull", caller, name)
        self.note(self.exchange.pull(caller, "t", name))

    def do_broadcast(self, peer: str, size: int, wait: int) -> None:
        caller = self.caller(peer)
        text = f"{caller.ticket}:".ljust(size, "x")
        self.asked[caller.ticket] = ("broadcast", caller, ("topic", text))
        self.targets[caller.ticket] = list(self.subscriptions)
        self.note(self.exchange.broadcast(caller, "t", "topic", text, self.now + wait if wait else float("-inf")))

    def do_subscribe(self, peer: str, number: int) -> None:
        if (peer, number) in self.subscriptions:
            return
        caller = self.caller(peer)
        self.asked[caller.ticket] = ("subscribe", caller, None)
        self.subscriptions[peer, number] = []
        self.note(self.exchange.subscribe(caller, "t", "topic", number))

    def do_unsubscribe(self, peer: str, number: int) -> None:
        self.subscriptions.pop((peer, number), None)
        self.given = {t: g for t, g in self.given.items() if g[0] != f"{peer}/{number}"}
        for waiting in self.targets.values():
            if (peer, number) in waiting:
                waiting.remove((peer, number))
        self.note(self.exchange.unsubscribe(peer, number))

    def do_next(self, peer: str, number: int) -> None:
        caller = self.caller(peer)
        self.asked[caller.ticket] = ("next", caller, f"{peer}/{number}")
        self.note(self.exchange.next(caller, number))

    def do_settle(self, index: int, is_taken: bool) -> None:
        if not self.given:
            return
        ticket = sorted(self.given)[index % len(self.given)]
        place, caller, text = self.given.pop(ticket)
        if is_taken:
            self._took(place, text)
        self.note(self.exchange.settle(caller.peer, ticket, is_taken))

    def _took(self, place: str, text: str) -> None:
        if "/" in place:
            peer, _, number = place.partition("/")
            self.subscriptions[peer, int(number)].remove(text)
        else:
            self.in_queue[place].remove(text)
        self.taken[place].append(text)

    def do_withdraw(self, index: int) -> None:
        if self.asked:
            ticket = sorted(self.asked)[index % len(self.asked)]
            self.note(self.exchange.withdraw(self.asked[ticket][1].peer, ticket))

    def do_drop(self, peer: str) -> None:
        answers = self.exchange.drop_peer(peer)
        assert all(caller.peer != peer for caller, _ in answers)
        gone = {key for key in self.subscriptions if key[0] == peer}
        for key in gone:
            del self.subscriptions[key]
        self.given = {t: g for t, g in self.given.items() if g[1].peer != peer}
        accepted_unseen = [a for a in self.asked.values() if a[1].peer == peer]
        for _, caller, _ in accepted_unseen:
            del self.asked[caller.ticket]
            self.targets.pop(caller.ticket, None)
        for waiting in self.targets.values():
            waiting[:] = [key for key in waiting if key not in gone]
        self.note(answers)

    def do_expire(self, seconds: int) -> None:
        self.now += seconds
        self.note(self.exchange.expire(self.now))
        assert (self.exchange.next_deadline() or self.now + 1) > self.now

    def drain(self) -> None:
        """Everything that was accepted can be had, once, in order."""
        for ticket in list(self.asked):
            if ticket in self.asked:
                self.note(self.exchange.withdraw(self.asked[ticket][1].peer, ticket))
        for ticket in sorted(self.given):
            _, caller, _ = self.given.pop(ticket)
            self.note(self.exchange.settle(caller.peer, ticket, False))
        assert not self.asked
        for name in ("q", "r"):
            assert self._read(lambda caller, name=name: self.exchange.pull(caller, "t", name)) == self.in_queue[name]
        for (peer, number), texts in self.subscriptions.items():
            assert self._read(lambda caller, n=number: self.exchange.next(caller, n), peer) == texts
        for peer, number in list(self.subscriptions):
            self.exchange.unsubscribe(peer, number)
        assert set(self.exchange.status().values()) == {0}

    def _read(self, ask: Any, peer: str = "reader") -> list[str]:
        found = []
        while True:
            caller = self.caller(peer)
            answers = ask(caller)
            if not answers:
                self.exchange.withdraw(peer, caller.ticket)
                return found
            ((_, text),) = answers
            found.append(text)
            assert not self.exchange.settle(peer, caller.ticket, True)


@settings(max_examples=examples(100))
@given(STEPS)
def test_texts_are_neither_lost_nor_doubled_nor_reordered(steps: list[tuple[Any, ...]]) -> None:
    model = Model()
    for step in steps:
        model.do(step)
    model.drain()
    for name, texts in model.taken.items():
        assert len(texts) == len(set(texts)), f"{name}: a text was taken twice"


@settings(max_examples=examples(50))
@given(st.lists(st.sampled_from(["push", "pull"]), max_size=60))
def test_with_one_reader_a_queue_is_first_in_first_out(steps: list[str]) -> None:
    model = Model()
    for step in steps:
        if step == "push":
            model.do(("push", "a", "q", 10, 9))
        else:
            model.do(("pull", "b", "q"))
            while model.given:
                model.do(("settle", 0, True))
    assert model.taken["q"] == model.accepted["q"][: len(model.taken["q"])]
