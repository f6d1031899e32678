"""The tensor programs that inferlets have handed in: found by number, read, let go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from pieray.errors import BadHandle, PierayError
from pieray.messages import Completed, LoadProgram, Message, ReadProgram, Sampler, UnloadProgram
from pieray.sched.failures import failed, known
from pieray.sched.lanes import LaneKey
from pieray.tensor.program import Bounds

if TYPE_CHECKING:
    from pieray.models.tensor_programs import ProgramInstance

Answers: TypeAlias = list[tuple[str, Message]]


class ProgramReader(Protocol):
    """What is needed of `pieray.models.runner.ModelRunner`."""

    def load_program(self, code: bytes, bounds: Bounds, states: Sequence[bytes]) -> ProgramInstance: ...


class LoadedPrograms:
    """Used by the step thread alone.  One that is let go stays for as long as a command holds it."""

    def __init__(self, reader: ProgramReader) -> None:
        self._reader = reader
        self._own: dict[LaneKey, dict[int, ProgramInstance | PierayError]] = {}

    def submit(self, peer_id: str, message: LoadProgram | UnloadProgram | ReadProgram) -> Answers:
        """Take a message; its answer."""
        lane = peer_id, message.inferlet
        if isinstance(message, UnloadProgram):
            self._own.get(lane, {}).pop(message.number, None)
            return [(peer_id, Completed(message.ticket, None))]
        try:
            if isinstance(message, LoadProgram):
                self._load(lane, message)
                return [(peer_id, Completed(message.ticket, None))]
            return [(peer_id, Completed(message.ticket, _read(self.find(lane, message.number))))]
        except BaseException as error:  # noqa: BLE001 - whatever is thrown, it fails alone
            return [(peer_id, failed(message.ticket, known(error)))]

    def _load(self, lane: LaneKey, message: LoadProgram) -> None:
        own = self._own.setdefault(lane, {})
        try:
            own[message.number] = self._reader.load_program(message.code, Bounds(*message.bounds), message.states)
        except BaseException as error:
            own[message.number] = known(error)  # for the commands that name it
            raise

    def find(self, lane: LaneKey, number: int) -> ProgramInstance:
        """What an inferlet means by `number`; raises BadHandle, or why it could not be loaded."""
        found = self._own.get(lane, {}).get(number)
        if found is None:
            raise BadHandle(f"tensor program {number} is not open")
        if isinstance(found, PierayError):
            raise found
        return found

    def of_draws(self, lane: LaneKey, samplers: Iterable[Sampler]) -> Mapping[int, ProgramInstance]:
        """Those that samplers name, by number.  Raises as `find`."""
        numbers = {number for one in samplers for number in (one.processor, one.program) if number}
        return {number: self.find(lane, number) for number in numbers}

    def drop(self, peer_id: str, inferlet: int | None = None) -> None:
        """An inferlet, or all of a peer, has ended."""
        for lane in [key for key in self._own if key[0] == peer_id and inferlet in (None, key[1])]:
            del self._own[lane]


def _read(instance: ProgramInstance) -> list[bytes]:
    sizes = [one.numel() for one in instance.states]
    counts = np.array(list(instance.counts.values()), "<u8")
    return [instance.state_values().astype("<f4").tobytes(), np.array(sizes, "<u4").tobytes(), counts.tobytes()]
