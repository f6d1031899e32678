"""Things that a guest has opened, by handle."""

from __future__ import annotations

from typing import Generic, TypeVar

from pieray.errors import BadHandle, QuotaExceeded

T = TypeVar("T")


class OpenHandles(Generic[T]):
    """Handles of one kind of one inferlet, from 1 up and never used twice.  `limit_name` is a field of `Limits`."""

    def __init__(self, kind: str, limit_name: str, limit: int) -> None:
        self._kind = kind
        self._limit_name = limit_name
        self._limit = limit
        self._values: dict[int, T] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._values)

    def check_room(self) -> None:
        """Raise QuotaExceeded if one more would be over the limit."""
        if len(self._values) >= self._limit:
            raise QuotaExceeded(
                f"{self._limit_name}: the limit is {self._limit} {self._kind}s open; one more was asked for"
            )

    def put(self, value: T) -> int:
        """A handle for the value; raises QuotaExceeded."""
        self.check_room()
        handle = self._next
        self._next += 1
        self._values[handle] = value
        return handle

    def get(self, handle: int) -> T:
        """The value behind an open handle; raises BadHandle."""
        try:
            return self._values[handle]
        except KeyError:
            raise BadHandle(f"{self._kind} {handle} is not open") from None

    def replace(self, handle: int, value: T) -> None:
        """Another value behind an open handle; raises BadHandle."""
        self.get(handle)
        self._values[handle] = value

    def pop(self, handle: int) -> T:
        """Close the handle; raises BadHandle."""
        value = self.get(handle)
        del self._values[handle]
        return value

    def drop(self, handle: int) -> T | None:
        """Close the handle if it is open."""
        return self._values.pop(handle, None)

    def values(self) -> list[T]:
        return list(self._values.values())
