"""Passes of one token with one sample, as guests drive them: columns of a message, rows of the table, columns again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pieray.arrays import I64, U32
from pieray.errors import InvalidRequest, PierayError
from pieray.messages import DecodePasses, Forward, Message, Sample, Sampled
from pieray.models.sampler import choices_of
from pieray.sched.failures import failed
from pieray.sched.table import ROW, RUN, SPECIAL, Own, Records

if TYPE_CHECKING:
    from pieray.models.lora import LoraAdapter
    from pieray.sched.scheduler import Scheduler

Answers: TypeAlias = list[tuple[str, Message]]
FindAdapter: TypeAlias = Callable[[tuple[str, int], int], "LoraAdapter"]


class PassTable:
    """The part of the decode table that guests drive.  A pass that could meet another of its inferlet's commands on
    a page, or that does not fit together, is a Forward like any other."""

    def __init__(self, scheduler: Scheduler, find_adapter: FindAdapter) -> None:
        self._scheduler = scheduler
        self._find_adapter = find_adapter

    def add(self, peer_id: str, message: DecodePasses, now: float) -> tuple[I64, list[Forward]]:
        """Take the passes of a message; the inferlets whose passes are rows now, by number, and what must be enqueued
        one by one.  Raises InvalidRequest or ValueError if the columns do not fit together."""
        columns = _columns(message)
        pages = _padded(columns["num_pages"], np.frombuffer(message.pages, "<u4"))
        inferlets = (columns["tickets"] >> np.uint64(32)).tolist()
        lanes = np.array([self._scheduler.open((peer_id, inferlet)) for inferlet in inferlets], np.int64)
        room = columns["num_pages"].astype(np.int64) * self._scheduler.page_size
        is_row = self._scheduler.may_be_rows(lanes, pages, columns["kv_lens"].astype(np.int64))
        is_row &= columns["kv_lens"] < room
        own = self._own(peer_id, message, columns, is_row)
        odd = [_forward(message, columns, pages, row) for row in np.flatnonzero(~is_row).tolist()]
        if not is_row.all():
            columns = {name: column[is_row] for name, column in columns.items()}
            pages, lanes, room = pages[is_row], lanes[is_row], room[is_row]
        records: Records = np.zeros(len(lanes), ROW)
        for name, column in (
            ("ticket", "tickets"),
            ("sample_ticket", "sample_tickets"),
            ("queue", "queues"),
            ("priority", "priorities"),
            ("token", "tokens"),
            ("position", "positions"),
            ("kv_len", "kv_lens"),
        ):
            records[name] = columns[column]
        records["lane"], records["room"], records["left"] = lanes, room, 1
        choices = choices_of(message.samplers, [0] * len(message.samplers))
        records["choice"] = choices[columns["sampler_of"]]
        records["choice"]["counter"] = columns["kv_lens"]
        special = np.array([bool(one.bias_tokens or one.allowed) for one in message.samplers])
        records["flags"] = np.where(special[columns["sampler_of"]], SPECIAL, 0)
        if columns["adapters"].any():
            records["adapter"] = [0 if one.adapter is None else one.adapter.serial for one in own]
        self._scheduler.add_passes(records, pages, own, now)
        return lanes, odd

    def _own(self, peer_id: str, message: DecodePasses, columns: dict[str, Any], is_row: Any) -> list[Own]:
        """What of each row is no number; a pass whose adapter is gone is no row."""
        shared = [Own(sampler, None, None) for sampler in message.samplers]
        own = [shared[sampler] for sampler in columns["sampler_of"].tolist()]
        for row in np.flatnonzero(columns["adapters"] * is_row).tolist():
            try:
                key = peer_id, int(columns["tickets"][row]) >> 32
                own[row] = own[row]._replace(adapter=self._find_adapter(key, int(columns["adapters"][row])))
            except PierayError:
                is_row[row] = False
        return own if is_row.all() else [one for one, is_one in zip(own, is_row.tolist(), strict=True) if is_one]

    def give_up(self, key: tuple[str, int]) -> list[tuple[Forward, LoraAdapter | None]]:
        """The inferlet's passes are rows no more: the same as messages, with their adapters, in order."""
        rows = self._scheduler.passes_of(key)
        if not len(rows):
            return []
        table = self._scheduler.table
        found = []
        for row in sorted(rows.tolist(), key=lambda row: int(table.rows["turn"][row])):
            one, own = table.rows[row], table.own[row]
            pages = table.pages[row, : int(one["room"]) // table.page_size].astype("<u4").tobytes()
            found.append(
                (
                    Forward(
                        int(one["ticket"]),
                        key[1],
                        int(one["queue"]),
                        int(one["priority"]),
                        pages,
                        int(one["kv_len"]),
                        one["token"].astype("<u4").tobytes(),
                        one["position"].astype("<u4").tobytes(),
                        b"",
                        [Sample(0, own.sampler, int(one["sample_ticket"]))],
                    ),
                    own.adapter,
                )
            )
        self._scheduler.remove_passes(rows)
        return found

    def stepped(self, rows: I64, errors: dict[int, PierayError], answers: Answers) -> I64:
        """These rows have run, those of `errors` in vain: answer and remove them; their inferlets, by number."""
        if not len(rows):
            return rows
        table = self._scheduler.table
        records = table.rows[rows]
        lanes: I64 = records["lane"].copy()
        for row, error in [(row, error) for row, error in errors.items() if not table.rows["flags"][row] & RUN]:
            self._scheduler.fail_pass(row)
            peer_id = self._scheduler.lanes.key(int(table.rows["lane"][row]))[0]
            answers += self.failures(row, peer_id, error)
        good = records[~np.isin(rows, list(errors))] if errors else records
        for peer_id, mine in self._scheduler.by_peer(good["lane"]):
            one = good[mine]
            answers.append(
                (
                    peer_id,
                    Sampled(
                        one["ticket"].astype("<u8").tobytes(),
                        one["sample_ticket"].astype("<u8").tobytes(),
                        one["token"].astype("<u4").tobytes(),
                    ),
                )
            )
        self._scheduler.remove_passes(rows)
        return lanes

    def failures(self, row: int, peer_id: str, error: PierayError) -> Answers:
        """What tells that a pass has failed."""
        one = self._scheduler.table.rows[row]
        return [(peer_id, failed(int(one[name]), error)) for name in ("ticket", "sample_ticket")]

    def fail_all(self, error: PierayError) -> Answers:
        """All passes fail, and are rows no more."""
        table = self._scheduler.table
        rows = np.flatnonzero(table.rows["flags"] & RUN == 0)
        answers: Answers = []
        for row in rows.tolist():
            peer_id = self._scheduler.lanes.key(int(table.rows["lane"][row]))[0]
            answers += self.failures(row, peer_id, error)
        self._scheduler.remove_passes(rows)
        return answers


def passes_tickets(message: DecodePasses) -> list[int]:
    """All that are to be answered of a message whose columns do not fit together."""
    tickets = message.tickets + message.sample_tickets
    found: list[int] = np.frombuffer(tickets[: len(tickets) // 8 * 8], "<u8").tolist()
    return found


def _columns(message: DecodePasses) -> dict[str, Any]:
    kinds = {"tickets": "<u8", "sample_tickets": "<u8", "priorities": "<i4"}
    names = (
        "tickets",
        "sample_tickets",
        "queues",
        "priorities",
        "kv_lens",
        "tokens",
        "positions",
        "adapters",
        "num_pages",
        "sampler_of",
    )
    columns = {name: np.frombuffer(getattr(message, name), kinds.get(name, "<u4")) for name in names}
    num_bytes = 4 * int(columns["num_pages"].sum())
    if len({len(column) for column in columns.values()}) > 1 or num_bytes != len(message.pages):
        raise InvalidRequest("columns of passes are equally long, and their pages as many as they say")
    if int(columns["sampler_of"].max(initial=0)) >= max(len(message.samplers), 1):
        raise InvalidRequest(f"sampler {int(columns['sampler_of'].max())} of {len(message.samplers)}")
    return columns


def _padded(num_pages: Any, pages: U32) -> U32:
    """Pages of rows in a line to a row each, 0 behind its own."""
    width = int(num_pages.max(initial=0))
    if (num_pages == width).all():
        return pages.reshape(len(num_pages), width)
    table = np.zeros((len(num_pages), width), np.uint32)
    table[np.arange(width) < num_pages[:, None]] = pages
    return table


def _forward(message: DecodePasses, columns: dict[str, Any], pages: U32, row: int) -> Forward:
    """A pass as a message of its own."""
    ticket, sample, queue, priority, kv_len, adapter, count, sampler = (
        int(columns[name][row])
        for name in (
            "tickets",
            "sample_tickets",
            "queues",
            "priorities",
            "kv_lens",
            "adapters",
            "num_pages",
            "sampler_of",
        )
    )
    token, position = (columns[name][row : row + 1].tobytes() for name in ("tokens", "positions"))
    return Forward(
        ticket,
        ticket >> 32,
        queue,
        priority,
        pages[row, :count].tobytes(),
        kv_len,
        token,
        position,
        b"",
        [Sample(0, message.samplers[sampler], sample)],
        adapter,
    )
