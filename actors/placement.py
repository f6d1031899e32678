"""Which InferletActor an inferlet goes to, whether it may run at all, and where those that run are."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pieray.actors.admission import Standing
from pieray.actors.members import FACTS_S, SLICE_S, Answer, Member, Members, Wire
from pieray.actors.pool import HostPool
from pieray.actors.quotas import Quotas
from pieray.actors.records import Locations
from pieray.concurrency.stalls import Stalls
from pieray.config import Config
from pieray.errors import ActorGone, ChildCeiling, EngineError, NoAnswer, NotFound, Overloaded, PierayError, Stalled
from pieray.messages import Launch, decode_one, encode
from pieray.programs.launches import may_have_run
from pieray.programs.registry import Registry
from pieray.urgency import admitted

log = logging.getLogger(__name__)

GRANT_S = 30.0
"""How long a client may launch at places that were granted to it."""
GRANT_TIMEOUT_S = 1.0
"""How long an actor may take to hear of a grant."""
OTHERS_TIMEOUT_S = 0.05
"""For further actors, once one has opened a grant: nobody waits for one that is slow."""


class Placement:
    """Thread-safe.  `failure` says why nothing can be served at present, `lost` is told of an actor that has died."""

    def __init__(
        self,
        config: Config,
        members: Members,
        pool: HostPool,
        stalls: Stalls,
        *,
        registry: Callable[[], Registry],
        failure: Callable[[], str | None],
        lost: Callable[[Member, str], None],
    ) -> None:
        self._config = config
        self._members = members
        self._pool = pool
        self._stalls = stalls
        self._registry = registry
        self._failure = failure
        self._lost = lost
        self._locations = Locations()
        self._quotas = Quotas(config.tenant, self._ask_counted)

    # --- launches --------------------------------------------------------------------------------

    def launch(self, frame: bytes, sent_at: float | None = None, deadline: float | None = None) -> Wire:
        """Start an inferlet on the actor with the most room; a new actor is added when all are full.

        Times are of this process's time.monotonic.  Raises Stalled, having started nothing, if it stood still since
        the launch was sent: its client may have given it up.  Raises Overloaded where there is no place for it, and
        PeerLost where its actor died so that it may have run.
        """
        sent_at = time.monotonic() if sent_at is None else sent_at
        deadline = min(time.monotonic() + self._config.launch_wait_s, float("inf") if deadline is None else deadline)
        message = decode_one(frame, Launch)
        standing = self._standing_of(message)
        if not message.source and not message.component:
            message = self._registry().filled(message, self._config.limits)
            frame = encode([message])
        if (failure := self._failure()) is not None:
            raise EngineError(failure)
        ceiling = self._config.child_ceiling
        if message.depth and self._pool.num_live() >= ceiling and (num_live := self._pool.num_live_now()) >= ceiling:
            raise ChildCeiling(
                f"child_ceiling: no child is launched while {ceiling} inferlets run on this engine; {num_live} do"
            )

        def start(host: Member) -> None:
            self._check_stall(sent_at)
            if self._members.has_died(host):  # before anything was sent to it: the launch has its place elsewhere
                self._lost(host, "died")
                raise ActorGone(f"{host.describe()} has died")
            self._launch_on(host, frame, message.instance_id, deadline)

        with self._counted(message):
            host = self._pool.launch(start, deadline, standing)
        self._quotas.placed(message.instance_id, host)
        self._locations.add(message.instance_id, message.name, host)
        self._check_stall(sent_at, lambda: self._give_up(host, message.instance_id))
        return host.endpoint

    def _standing_of(self, message: Launch) -> Standing:
        """Raises InvalidRequest for a priority or a deadline that is none."""
        ranked = admitted(message, self._config.tenant(message.tenant), time.time())
        return Standing(ranked.tenant, ranked.priority, ranked.deadline, is_child=bool(ranked.depth))

    @contextlib.contextmanager
    def _counted(self, message: Launch) -> Iterator[None]:
        """The launch counts against its tenant's quotas, unless it comes to nothing.  Raises Overloaded."""
        try:
            self._quotas.take(message.tenant, message.instance_id)
        except Overloaded:
            self._pool.note_refused(message.tenant)
            raise
        try:
            yield
        except BaseException:
            self._quotas.give_back(message.instance_id)
            raise

    def grant(self, num_places: int) -> list[tuple[Any, ...]]:
        """Up to so many places of actors for a client, which launches there without a word to the Controller:

        for each actor (endpoint, id of the grant, places, for how many seconds, the actor's time.monotonic); none where
        there is no room, or no actor that answers at once: `launch` waits for one.  Raises EngineError while nothing
        can be served.
        """
        if (failure := self._failure()) is not None:
            raise EngineError(failure)
        opening = []
        for host, count in self._pool.grant(num_places):
            grant_id = secrets.token_hex(8)
            try:
                answer = self._members.begin(host, "grant", grant_id, count, GRANT_S)
            except EngineError as error:
                self._pool.not_granted(host, count)
                log.warning("%s could not be asked for places: %s", host.name, error.message)
                continue
            opening.append((host, grant_id, count, answer))
        deadline = time.monotonic() + GRANT_TIMEOUT_S
        granted = []
        for host, grant_id, count, answer in opening:
            try:
                clock = answer(deadline - time.monotonic())
            except ActorGone:
                self._lost(host, "died")
            except EngineError:  # should it open it later, the places come back when the grant ends there
                continue
            else:
                granted.append((host.endpoint, grant_id, count, GRANT_S, clock))
                deadline = min(deadline, time.monotonic() + OTHERS_TIMEOUT_S)
        return granted

    def _check_stall(self, sent_at: float, undo: Callable[[], None] = lambda: None) -> None:
        if self._stalls.is_since(sent_at):
            undo()
            raise Stalled("the Controller was frozen while it had the launch: launch again")

    def _launch_on(self, host: Member, frame: bytes, instance_id: str, deadline: float) -> None:
        """Launch there, and wait while the actor lives.  One that is given up does not start any more."""
        while True:
            now = time.monotonic()
            answer = self._members.begin(host, "launch", frame, host.clock.at(now), host.clock.at(deadline))
            try:
                return self._launched(host, answer, deadline)
            except Stalled:  # the actor woke up with it, and has not started it
                self._pool.sent_again(host)
            except NoAnswer:
                self._give_up(host, instance_id)
                raise
            except ActorGone as gone:
                self._lost(host, "died with a launch under way")
                raise may_have_run(host.describe(), instance_id) from gone

    def _launched(self, host: Member, answer: Answer, deadline: float) -> None:
        while True:
            try:
                answer(SLICE_S)
            except NoAnswer:
                if host.is_suspect:
                    raise NoAnswer(
                        f"{host.describe()} does not answer, for {host.silent_s:.0f} s now: it is frozen or "
                        "out of reach"
                    ) from None
                if time.monotonic() > deadline + FACTS_S:
                    raise NoAnswer(f"{host.describe()} did not launch it in time") from None
            else:
                return

    def _give_up(self, host: Member, instance_id: str) -> None:
        """Should it have started just before its actor fell silent, it ends when that wakes up."""
        try:
            self._members.begin(host, "kill", instance_id, "its launch was given up")(0.0)
        except PierayError as error:
            log.info("%s: %s", host.name, error)

    # --- those that run --------------------------------------------------------------------------

    def locate(self, instance_id: str) -> tuple[str, Wire]:
        """Name of an inferlet and endpoint of its actor.  Raises NotFound, NoAnswer: it may run on a silent one."""
        name, host = self._location(instance_id)
        return name, host.endpoint

    def kill(self, instance_id: str, reason: str) -> None:
        """End an inferlet.  Raises NotFound, NoAnswer naming the actor: it ends when that wakes up, or with it."""
        _, host = self._location(instance_id)
        answer = self._members.begin(host, "kill", instance_id, reason)
        try:
            answer(0.1 if host.is_suspect else FACTS_S)
        except NoAnswer:
            raise NoAnswer(
                f"{host.describe()} does not answer: {instance_id} ends when it wakes up, or when it is "
                f"replaced, after {self._config.replace_after_s:.0f} s of silence"
            ) from None

    def trace(self, instance_id: str) -> dict[str, Any]:
        """What a traced inferlet has done, as its actor knows it.  Raises NotFound, NoAnswer."""
        _, host = self._location(instance_id)
        found: dict[str, Any] = self._members.ask(host, "trace", instance_id, timeout_s=FACTS_S)
        return found

    def _location(self, instance_id: str) -> tuple[str, Member]:
        if (found := self._locations.find(instance_id)) is not None:
            return found
        for host, row in self._inferlets():  # launched by a grant just now, or for longer than locations are kept
            if row["instance_id"] == instance_id:
                return row["name"], host
        if silent := [host.describe() for host in self._pool.hosts() if host.is_suspect]:
            raise NoAnswer(f"{', '.join(silent)} does not answer: {instance_id} may run there")
        raise NotFound(f"no inferlet {instance_id!r} was launched here lately; see `pieray ps`")

    def ps(self) -> list[dict[str, Any]]:
        """Inferlets that run or have ended lately; those on an actor that does not answer are "unreachable"."""
        return [row for _, row in self._inferlets()]

    def _inferlets(self) -> Iterator[tuple[Member, dict[str, Any]]]:
        hosts = self._pool.hosts()
        for host, rows in zip(hosts, self._members.facts_of(hosts, "inferlets"), strict=True):
            for row in self._unreachable(host, rows) if isinstance(rows, PierayError) else rows:
                yield host, row

    def _unreachable(self, host: Member, why: PierayError) -> Iterator[dict[str, Any]]:
        log.info("%s: %s", host.name, why)
        for instance_id, name in self._locations.on(host):
            yield {
                "instance_id": instance_id,
                "name": name,
                "state": "unreachable",
                "cpu_time_s": 0.0,
                "pages": 0,
                "swapped": 0,
                "output_bytes": 0,
                "error": f"{host.describe()} does not answer",
            }

    # --- what is known of them -------------------------------------------------------------------

    def admission(self) -> dict[str, Any]:
        """By tenant, launches that wait for a place ("waiting") and that were refused one ("refused"), and what is used
        of quotas ("quotas": inferlets, tokens_left)."""
        return {**self._pool.launches(), "quotas": self._quotas.facts()}

    def note(self, host: Member) -> None:
        """Take what an actor has said lately: of launches by grants, and of tenants that have quotas."""
        while host.launched:
            self._locations.add(*host.launched.popleft(), host)
        while host.tallies:
            asked_at, tallies = host.tallies.popleft()
            self._quotas.reported(host, tallies["live"], asked_at)
            for tenant, num_tokens in tallies["tokens"].items():
                self._quotas.used(tenant, num_tokens)

    def forget(self, host: Member) -> None:
        """An actor has ended."""
        self._locations.forget(host)
        self._quotas.lost(host)

    def _ask_counted(self, hosts: Collection[Member]) -> None:
        """Ask them which of the inferlets that count against quotas live there."""
        asked = [host for host in hosts if not host.is_suspect]
        asked_at = time.monotonic()
        for host, found in zip(asked, self._members.gather(asked, "counted", timeout_s=1.0), strict=True):
            if not isinstance(found, PierayError):
                self._quotas.reported(host, found, asked_at)
