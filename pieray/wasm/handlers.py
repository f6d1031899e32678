"""What the host of a guest must provide: an object per interface of the WIT, with a method per function.

`kv.alloc` is `handlers.kv.alloc(count)`: the parameters of the WIT, in its order.  Arguments arrive as int, float,
bool and str (enums too); `list<u32>` and `list<f32>` as numpy arrays that the callee owns, `list<string>` as a list.
A method returns the ok value of its result: numbers, str, sequences or arrays of numbers, sequences of str.  A
PierayError becomes the err arm; any other exception becomes `internal` there, with its traceback in the log.  In a
function without a result type an error ends the guest.

A method of DEFERRABLE may return a Future of a `parks.Answer` in place of its value: the guest is parked until it is
done, and charged with the CPU time that it names; if the guest ends before, the future is cancelled.  Or it may return
a `parks.Later`, which is asked for the value whenever the guest is unparked.

Methods run on the thread (and on the stack) that runs the guest: they must not block, and may be called
for different guests at once.  `tickets.wait` is the wasm layer's own: it is made of `tickets.flush`,
`tickets.ready` and `Guest.unpark`.
"""

from __future__ import annotations

from typing import Protocol

from pieray.arrays import U32

#: Functions that wait, or whose work grows with what a guest gives them, beyond what its neighbours may be made to
#: wait for.
DEFERRABLE = frozenset(
    {
        ("plans", "read"),
        ("model", "tokenize"),
        ("model", "detokenize"),
        ("model", "stream-push"),
        ("chat", "render"),
        ("chat", "parse"),
        ("grammar", "mask"),
        ("grammar", "accept"),
        ("grammar", "forced"),
        ("grammar", "rollback"),
    }
)


class Tickets(Protocol):
    """Interface `tickets`, as far as `wait` is made of it."""

    def flush(self) -> None:
        """Once per wait, before the guest parks: hand over all that is enqueued."""

    def ready(self, tickets: U32) -> list[int]:
        """Those with results now, without taking them.  Raises BadHandle."""
        ...


class Runtime(Protocol):
    """Interface `runtime`, as far as the guest's WASI is made of it."""

    def monotonic_now(self) -> int:
        """Nanoseconds."""
        ...

    def wall_now(self) -> int:
        """Nanoseconds since 1970."""
        ...

    def random_u64(self) -> int:
        """Also what the guest's WASI draws from."""
        ...


class Printed(Protocol):
    """What the guest prints."""

    def write(self, fd: int, text: bytes) -> None:
        """1: stdout, 2: stderr.  A PierayError ends the guest."""


class Handlers(Protocol):
    """What the wasm layer itself calls; the rest it finds by name (see `pieray/wit/pieray.wit`)."""

    @property
    def tickets(self) -> Tickets: ...

    @property
    def runtime(self) -> Runtime: ...

    @property
    def printed(self) -> Printed: ...
