"""How a client launches: straight at actors where it has places, and by the Controller where it has to decide."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pieray.client.controller_calls import ControllerCalls
from pieray.client.controller_link import LaunchPath
from pieray.client.link import ActorLink, ActorLinks, GrantedLaunch
from pieray.client.placements import Grant, Placements
from pieray.client.process import Process
from pieray.config import Config
from pieray.errors import DeadlineExceeded, DeviceLost, EngineError, NoAnswer, NotFound, PeerLost, PierayError
from pieray.programs.launches import InstalledPrograms, PreparedLaunch, frame_of, may_have_run
from pieray.transport import Endpoint

if TYPE_CHECKING:
    from pieray.client.tools import ClientTools

log = logging.getLogger(__name__)

_Outcome: TypeAlias = "tuple[Process, ActorLink] | PierayError"

START_S = 900.0
"""For a component to be compiled, its turn included: the engine gives up before."""
GRANT_S = 20.0
"""For the Controller over places for launches, which it grants at once or not at all."""
CONTROLLER_LAUNCHES = 16
"""Of those of one call that the Controller has to place, so many are under way at one time."""
BATCH_BYTES = 8 << 20
"""Of launches in one message."""


class Launching:
    """Thread-safe.  `kill(instance_id, reason)` ends an inferlet by the Controller, see `Engine.kill`."""

    def __init__(
        self,
        config: Config,
        calls: ControllerCalls,
        links: ActorLinks,
        installed: InstalledPrograms,
        *,
        path: LaunchPath | None,
        kill: Callable[[str, str], None],
    ) -> None:
        """`path`: how the Controller is asked to launch; None: as all else, by `calls`."""
        self._config = config
        self._calls = calls
        self._links = links
        self._installed = installed
        self._path = path
        self._kill = kill
        self._placements = Placements(self._granted)

    def close(self) -> None:
        """Hang up the path to the Controller.  Idempotent."""
        if self._path is not None:
            self._path.close()

    def launch(self, prepared: PreparedLaunch, tools: ClientTools | None) -> Process:
        """The process, which has been compiled and has the client's MCP servers; raises as `Engine.launch`."""
        if (launched := self._launched_by_grant(prepared)) is None:
            launched = self._launched_by_controller(prepared.renamed())
        process, link = launched
        try:
            if tools is not None:
                link.serve_tools(process, tools)
            if prepared.may_compile:
                link.await_start(process.id, START_S)
            return process
        except BaseException:  # a Ctrl-C too: nobody has a handle of it, nobody else would end it
            link.tell_kill(process.id, "its client could not attach")
            raise

    def launch_many(self, wanted: Sequence[PreparedLaunch | PierayError]) -> list[Process | PierayError]:
        """See `Engine.launch_many`; the errors among `wanted` come back as they are."""
        outcomes: dict[int, _Outcome] = {i: w for i, w in enumerate(wanted) if isinstance(w, PierayError)}
        launches = {i: w for i, w in enumerate(wanted) if isinstance(w, PreparedLaunch)}
        try:
            self._launch_by_grants(launches, outcomes)
            left = [number for number in launches if number not in outcomes]
            if left:
                from concurrent.futures import ThreadPoolExecutor  # here: few clients need it

                left.sort(key=lambda number: launches[number].rank)
                with ThreadPoolExecutor(min(len(left), CONTROLLER_LAUNCHES), "pieray-launch") as threads:
                    placed = threads.map(lambda number: self._placed_or_error(launches[number]), left)
                    outcomes.update(zip(left, placed, strict=True))
            for number, launch in launches.items():
                if launch.may_compile and isinstance(outcome := outcomes[number], tuple):
                    outcomes[number] = _started_or_error(outcome)
        except BaseException:  # a Ctrl-C too: nobody has their handles
            _give_up(outcomes)
            raise
        return [outcome if isinstance(outcome, PierayError) else outcome[0] for _, outcome in sorted(outcomes.items())]

    def _launched_by_grant(self, prepared: PreparedLaunch) -> tuple[Process, ActorLink] | None:
        """Launch straight at an actor; None if the Controller has to place it.  Raises what refuses the program."""
        outcomes: dict[int, _Outcome] = {}
        self._launch_by_grants({0: prepared}, outcomes)
        outcome = outcomes.get(0)
        if isinstance(outcome, PierayError):
            raise outcome
        return outcome

    def _launch_by_grants(self, launches: Mapping[int, PreparedLaunch], outcomes: dict[int, _Outcome]) -> None:
        """Launch straight at actors; into `outcomes` goes what is launched or refused, the Controller has to place the
        others.  If it is interrupted, what is in `outcomes` runs, and nothing else."""
        frames: dict[int, bytes] = {}
        for number, launch in launches.items():
            if not launch.has_content or self._config.tenant(launch.whole.tenant).is_counted:
                continue
            try:
                frames[number] = frame_of(launch.whole)
            except PierayError as error:
                outcomes[number] = error
        by_actor: dict[Endpoint, list[tuple[int, Grant]]] = {}
        for number, grant in zip(frames, self._placements.take_many(len(frames)), strict=False):
            by_actor.setdefault(grant.endpoint, []).append((number, grant))
        try:
            for endpoint, taken in by_actor.items():
                while taken:
                    batch = [taken.pop(0)]
                    num_bytes = len(frames[batch[0][0]])
                    while taken and (num_bytes := num_bytes + len(frames[taken[0][0]])) <= BATCH_BYTES:
                        batch.append(taken.pop(0))
                    self._launch_at(endpoint, launches, frames, batch, outcomes)
        finally:  # of those that it has not come to
            for taken in by_actor.values():
                for _, grant in taken:
                    self._placements.give_back(grant)

    def _launch_at(
        self,
        endpoint: Endpoint,
        launches: Mapping[int, PreparedLaunch],
        frames: Mapping[int, bytes],
        taken: Sequence[tuple[int, Grant]],
        outcomes: dict[int, _Outcome],
    ) -> None:
        """Those with a place of that actor, in one message."""
        refusals: Sequence[PierayError | None]
        processes: list[Process] = []
        is_sent = False
        try:
            link = self._links.get(endpoint)
            processes = [Process(launches[n].whole.instance_id, launches[n].name, link) for n, _ in taken]
            refusals = link.launch(
                [
                    GrantedLaunch(process, grant, frames[n], launches[n].revision)
                    for process, (n, grant) in zip(processes, taken, strict=True)
                ]
            )
            is_sent = True
        except (EngineError, PeerLost, DeadlineExceeded) as error:
            refusals = [error] * len(taken)
        except BaseException:
            for _, grant in taken:
                self._placements.give_back(grant)
            raise
        for place, ((number, grant), refused) in enumerate(zip(taken, refusals, strict=True)):
            if refused is None:
                processes[place].at_end(partial(self._placements.give_back, grant))
                outcomes[number] = processes[place], link
            elif isinstance(refused, PeerLost) and is_sent:
                self._placements.drop(grant)
                self._calls.tell("kill", processes[place].id, "its client has lost it")  # if the link alone was lost
                outcomes[number] = may_have_run(endpoint.peer_id, processes[place].id)
            elif isinstance(refused, (EngineError, PeerLost, DeviceLost, DeadlineExceeded)):  # of the actor
                log.info("%s is placed by the Controller: %s", launches[number].name, refused)
                self._placements.drop(grant)
            else:
                self._placements.give_back(grant)
                if isinstance(refused, NotFound) and launches[number].revision:  # the program may be another by now
                    self._installed.forget()
                else:
                    outcomes[number] = refused

    def _placed_or_error(self, launch: PreparedLaunch) -> _Outcome:
        try:
            return self._launched_by_controller(launch.renamed())
        except PierayError as error:
            return error

    def _launched_by_controller(self, launch: PreparedLaunch) -> tuple[Process, ActorLink]:
        message = launch.by_name
        frame = frame_of(message)
        try:
            calls = self._calls if self._path is None else self._path.calls()
            wire = calls.launch(frame, self._config.launch_wait_s)
        except NoAnswer:
            self._calls.tell("kill", message.instance_id, "its launch was given up")
            raise
        try:
            return self.attached(message.instance_id, launch.name, wire, is_bound=message.is_attached)
        except BaseException:  # a Ctrl-C too: nobody has a handle of it, nobody else would end it
            with contextlib.suppress(PierayError):
                self._kill(message.instance_id, "its client could not attach")
            raise

    def _granted(self, num_places: int) -> Sequence[Sequence[Any]]:
        granted: Sequence[Sequence[Any]] = self._calls.ask("grant", num_places, timeout_s=GRANT_S)
        return granted

    def attached(
        self, instance_id: str, name: str, wire: Sequence[Any], *, is_bound: bool = False
    ) -> tuple[Process, ActorLink]:
        """The handle of an inferlet, and the link to its actor, whose endpoint is `wire`; it ends with it if bound."""
        link = self._link(Endpoint.from_wire(wire))
        process = Process(instance_id, name, link)
        if is_bound:
            link.bind(instance_id)
        link.attach(process)
        return process, link

    def _link(self, endpoint: Endpoint) -> ActorLink:
        try:
            return self._links.get(endpoint)
        except PeerLost as error:
            raise EngineError(f"the InferletActor at {endpoint.peer_id} is gone: {error.message}") from error


def _started_or_error(launched: tuple[Process, ActorLink]) -> _Outcome:
    process, link = launched
    try:
        link.await_start(process.id, START_S)
    except PierayError as error:
        link.tell_kill(process.id, "its client could not attach")
        return error
    return launched


def _give_up(outcomes: Mapping[int, _Outcome]) -> None:
    for outcome in outcomes.values():
        if isinstance(outcome, tuple):
            process, link = outcome
            link.tell_kill(process.id, "its launch was given up")
