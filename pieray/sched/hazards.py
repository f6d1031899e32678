"""Which commands of one inferlet must wait for which: conflicts on pages, in order of arrival.

Two commands conflict on a page when one writes what the other reads or writes.  A forward is taken to
read all pages that it uses.  What one inferlet writes, no other inferlet uses.
"""

from __future__ import annotations

from collections.abc import Iterable

from pieray.sched.commands import Command, Slots
from pieray.sched.lanes import LaneKey, Lanes


class PageIndex:
    """The last writer of each page, and its readers since, among the unfinished commands of one inferlet.

    O(pages) per command: earlier users of a page are waited for by way of its last writer.  So commands must leave in
    an order in which they could have run; when one leaves that still waits for others, build the index anew.
    """

    def __init__(self, commands: Iterable[Command] = ()) -> None:
        self._writer: dict[int, Command] = {}
        self._readers: dict[int, dict[Command, None]] = {}
        for command in commands:
            command.dependents.clear()
        for command in commands:
            self.add(command)

    def add(self, command: Command) -> None:
        """Note the command and what blocks it."""
        blockers: dict[Command, None] = {}
        used, written = dict.fromkeys(command.used_pages()), command.written_pages()
        for page in used:
            if (writer := self._writer.get(page)) is not None:
                blockers[writer] = None
        for page in written:
            blockers.update(self._readers.pop(page, {}))
            self._writer[page] = command
            used.pop(page, None)
        for page in used:
            self._readers.setdefault(page, {})[command] = None
        blockers.pop(command, None)
        command.num_blockers = len(blockers)
        for blocker in blockers:
            blocker.dependents.append(command)

    def extend(self, command: Command, pages: list[int]) -> None:
        """The command uses, and writes, more pages.  It waits for nobody because of that: to others of its inferlet,
        the pages are new."""
        for page in pages:
            if self._writer.setdefault(page, command) is not command:
                self._readers.setdefault(page, {})[command] = None

    def remove(self, command: Command) -> None:
        """The command is finished: it blocks nothing that comes."""
        for page in dict.fromkeys(command.used_pages()):
            if self._writer.get(page) is command:
                del self._writer[page]
            readers = self._readers.get(page)
            if readers is not None:
                readers.pop(command, None)
                if not readers:
                    del self._readers[page]


class UnwrittenSlots:
    """Slots of one inferlet that a failed command was to write and nothing has written since.

    They still hold what the page's last owner left: a command that reads one fails too, and so on.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._slots: Slots = {}

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, failed: Command) -> None:
        self.add_slots(failed.written_slots(self._page_size))

    def add_slots(self, slots: Slots) -> None:
        """These have not been written."""
        for page, bits in slots.items():
            self._slots[page] = self._slots.get(page, 0) | bits

    def admit(self, command: Command) -> bool:
        """Whether the command, the next in order of arrival, may run: it then writes, else its slots stay unwritten."""
        if not self._slots:
            return True
        reads = command.read_slots(self._page_size)
        if any(self._slots.get(page, 0) & bits for page, bits in reads.items()):
            self.add(command)
            return False
        self.clear(command.written_slots(self._page_size))
        return True

    def clear(self, written: Slots) -> None:
        """Those slots have been written."""
        for page, bits in written.items():
            if left := self._slots.get(page, 0) & ~bits:
                self._slots[page] = left
            else:
                self._slots.pop(page, None)


class UnwrittenByInferlet:
    """Those of all inferlets that have any; `has_any` says which inferlets, by number."""

    def __init__(self, lanes: Lanes, page_size: int) -> None:
        self._lanes = lanes
        self._page_size = page_size
        self._slots: dict[LaneKey, UnwrittenSlots] = {}
        self.has_any = lanes.column(bool, False)

    def __contains__(self, key: LaneKey) -> bool:
        return key in self._slots

    def open(self, key: LaneKey) -> UnwrittenSlots:
        """An inferlet's, to be added to."""
        self.has_any.values[self._lanes.open(key)] = True
        return self._slots.setdefault(key, UnwrittenSlots(self._page_size))

    def admit(self, command: Command) -> bool:
        """Whether the command, the next of its inferlet, may run; see `UnwrittenSlots.admit`."""
        if (slots := self._slots.get(command.lane)) is None:
            return True
        is_admitted = slots.admit(command)
        self.settle(command.lane)
        return is_admitted

    def clear(self, key: LaneKey, written: Slots) -> None:
        """Those slots of the inferlet have been written."""
        self._slots[key].clear(written)
        self.settle(key)

    def settle(self, key: LaneKey) -> None:
        """Forget the inferlet's if none is left."""
        if not self._slots[key]:
            del self._slots[key]
            self.has_any.values[self._lanes.open(key)] = False

    def close(self, key: LaneKey) -> None:
        """The inferlet has ended."""
        self._slots.pop(key, None)
