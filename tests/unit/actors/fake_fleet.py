"""A cluster of fake actors: they can be killed, frozen and woken up, as processes can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pieray.actors.members import BATCHER, INFERLETS, RESOURCE_MANAGER, Answer, Member
from pieray.errors import ActorGone, DeadlineExceeded, NoAnswer, NotFound, PierayError
from pieray.messages import Launch, decode

MODEL = {"info": {"name": "m", "num_pages": 8}, "tokenizer": {}, "adapters": []}


class FakeActor:
    """One process.  Calls to a frozen one wait in it and are carried out when it wakes up."""

    def __init__(self, fleet: FakeFleet, member: Member, near: Member | None) -> None:
        self.fleet = fleet
        self.member = member
        self.near = near
        self.is_dead = False
        self.running = threading.Event()
        self.running.set()
        self.calls: list[str] = []
        self.busy_s = 0.0
        self.groups: dict[int, tuple[Any, Any]] = {}  # as it has been told of them
        self.models: dict[int, str] = {}  # of these
        self.draining: set[int] = set()
        self.num_programs = 0  # of a ResourceManager
        self.exported: dict[str, dict[str, Any]] = {}
        self.served: list[dict[str, Any]] = []  # models, when it was opened
        self.broker: Any = None
        self.adapters: list[int] = []
        self.live: dict[str, float] = {}
        self.num_returned = self.num_granted = 0
        self.launched: list[tuple[str, str]] = []  # by grants
        self.tokens: dict[str, int] = {}  # by tenant, that it has not told yet
        self.lock = threading.Lock()

    def answer(self, method: str, args: tuple[Any, ...]) -> Any:
        self.calls.append(method)
        if (hook := self.fleet.hooks.get((self.member.role, method))) is not None:
            hook(self)
        return getattr(self, method)(*args)

    def describe(self) -> dict[str, Any]:
        return {"name": self.member.name, "pid": id(self) % 10_000, "node_id": f"node-of-{self.member.name}"}

    def pulse(self) -> dict[str, Any]:
        launched, self.launched = self.launched, []
        tokens, self.tokens = self.tokens, {}
        return {
            **self.describe(),
            "clock": time.monotonic(),
            "busy_s": self.busy_s,
            "num_returned": self.num_returned,
            "launched": launched,
            "tallies": {"live": list(self.live), "tokens": tokens},
        }

    def load(self) -> dict[str, Any]:
        return {**MODEL, "info": {**MODEL["info"], "name": self.member.model or "m"}}

    def open(self, *args: Any) -> tuple[str, int]:
        if self.member.role == INFERLETS:
            _, self.served, groups, self.broker, self.revision = args
            for group in groups:
                self.connect_group(*group)
        return self.member.name, self.member.incarnation

    def connect_group(self, number: int, model: str, batcher: Any, resource_manager: Any, is_draining: bool) -> None:
        self.groups[number] = batcher, resource_manager
        self.models[number] = model
        self.draining.discard(number)
        if is_draining:
            self.draining.add(number)

    def end_group(self, number: int) -> None:
        self.groups.pop(number, None)

    def reconnect_broker(self, broker: Any) -> None:
        self.broker = broker

    def add_adapter(self, number: int, file: dict[str, Any], data: Any, owner: str) -> dict[str, Any]:
        self.adapters.append(number)
        return {"name": file["name"], "owner": owner, "number": number}

    def remove_adapter(self, number: int) -> None:
        self.adapters.remove(number)

    def set_adapters(self, facts: Any) -> None: ...

    def set_registry(self, revision: int) -> None:
        self.revision = revision

    def launch(self, frame: bytes, _sent_at: float, deadline: float) -> None:
        (message,) = decode(frame)
        assert isinstance(message, Launch)
        with self.lock:
            if time.monotonic() > deadline:
                self.num_returned += 1
                raise DeadlineExceeded("too late")
            self.live[message.instance_id] = time.monotonic()
            self.fleet.started.append(message.instance_id)

    def kill(self, instance_id: str, _reason: str) -> None:
        with self.lock:
            if self.live.pop(instance_id, None) is None:
                raise NotFound(instance_id)
            self.num_returned += 1

    def inferlets(self) -> list[dict[str, Any]]:
        return [{"instance_id": i, "name": "it", "state": "running"} for i in list(self.live)]

    def recall_places(self) -> int:
        self.num_returned += self.num_granted
        self.num_granted = 0
        return self.num_returned

    def counted(self) -> list[str]:
        return list(self.live)

    def grant(self, grant_id: str, num_places: int, lifetime_s: float) -> float:
        self.num_granted += num_places
        return time.monotonic()

    def status(self) -> dict[str, Any]:
        return {**self.describe(), "programs": self.num_programs}

    def exports(self) -> list[dict[str, Any]]:
        return list(self.exported.values())

    def drop_export(self, name: str, _access: str, _tenant: str, _user: str) -> dict[str, Any]:
        if name not in self.exported:
            raise NotFound(f"there is no export {name!r}")
        return self.exported.pop(name)

    def tell_news(self) -> None: ...

    def close(self) -> None: ...


class FakeFleet:
    """A `pieray.actors.members.Fleet`.  `hooks[role, method]` is called with the actor before its method."""

    def __init__(self) -> None:
        self.actors: list[FakeActor] = []
        self.hooks: dict[tuple[str, str], Callable[[FakeActor], None]] = {}
        self.killed: list[str] = []
        self.started: list[str] = []
        self.is_watch_broken = False
        self._deaths: list[Member] = []
        self._changed = threading.Condition()

    def create(
        self, role: str, number: int | None, incarnation: int, near: Member | None = None, model: str = ""
    ) -> Member:
        name = f"pieray.{role}" if number is None else f"pieray.{role}.{number}"
        assert name not in [a.member.name for a in self.actors if not a.is_dead], "the name is taken"
        member = Member(role, name, None, incarnation, model=model)
        actor = member.handle = FakeActor(self, member, near)
        self.actors.append(actor)
        if (hook := self.hooks.get((role, "create"))) is not None:
            hook(actor)
        return member

    def keep(self, data: bytes) -> Any:
        return data

    def begin(self, member: Member, method: str, *args: Any) -> Answer:
        actor: FakeActor = member.handle
        outcome: list[Any] = []
        done = threading.Event()

        def work() -> None:
            actor.running.wait()
            try:
                outcome.append(ActorGone("killed") if actor.is_dead else actor.answer(method, args))
            except PierayError as error:
                outcome.append(error)
            done.set()

        threading.Thread(target=work, daemon=True).start()

        def wait(timeout_s: float) -> Any:
            deadline = time.monotonic() + max(timeout_s, 0.0)
            while not done.wait(min(0.01, max(0.0, deadline - time.monotonic()))):
                if actor.is_dead:
                    raise ActorGone(f"{member.name} died")
                if time.monotonic() >= deadline:
                    raise NoAnswer(f"{member.name} did not answer {method}")
            if isinstance(outcome[0], PierayError):
                raise outcome[0]
            return outcome[0]

        return wait

    def has_died(self, member: Member) -> bool:
        return bool(member.handle.is_dead)

    def deaths(self, timeout_s: float) -> list[Member]:
        if self.is_watch_broken:
            raise RuntimeError("ray.wait failed")
        with self._changed:
            self._changed.wait_for(lambda: self._deaths, timeout_s)
            found, self._deaths = self._deaths, []
            return found

    def kill(self, member: Member) -> None:
        self.killed.append(member.name)
        member.handle.is_dead = True

    # --- for tests -----------------------------------------------------------------------------

    def alive(self, role: str) -> list[FakeActor]:
        return [a for a in self.actors if a.member.role == role and not a.is_dead]

    def one(self, role: str) -> FakeActor:
        (actor,) = self.alive(role)
        return actor

    def die(self, actor: FakeActor) -> None:
        """As SIGKILL."""
        actor.is_dead = True
        with self._changed:
            self._deaths.append(actor.member)
            self._changed.notify_all()

    def freeze(self, actor: FakeActor) -> None:
        """As SIGSTOP."""
        actor.running.clear()

    def wake(self, actor: FakeActor) -> None:
        """As SIGCONT."""
        actor.running.set()


ROLES = (BATCHER, RESOURCE_MANAGER, INFERLETS)
