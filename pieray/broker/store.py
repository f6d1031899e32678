"""Text by key, per tenant, in SQLite: a file that outlives the engine, or memory."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Generator
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias, TypeVar

from pieray.errors import ConfigError, NotFound, QuotaExceeded
from pieray.texts import byte_size

ENTRY_OVERHEAD = 64
"""Counted for each entry beside the bytes of its key and value."""
SWEEP_EVERY_S = 60.0
STEP_ROWS = 500
"""Rows read or removed in one step."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    tenant TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, size INTEGER NOT NULL, expires_at REAL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS expiries ON entries (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS tenant_expiries ON entries (tenant, expires_at) WHERE expires_at IS NOT NULL;
"""


T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""Work in steps, short ones; others may be served between them, but for those of the same tenant."""


class Store:
    """One writer; what is written from one `commit` to the next is one transaction, seen by reads at once.

    What was committed survives the death of the process (write-ahead log), not always that of the machine: commits are
    not synced to the disk.  `clock` gives seconds since 1970.  Not thread-safe, but may be used by any thread.
    """

    def __init__(self, path: str = "", clock: Callable[[], float] = time.time, timeout_s: float = 10.0) -> None:
        """Open `path`, "": memory.

        Raises ConfigError for a file that cannot be used, or that another process has had open for `timeout_s`.
        """
        self._clock = clock
        self._swept_at = clock()
        self._used_before: dict[str, int] = {}  # of those whose use the transaction at hand has changed
        self._lost: sqlite3.Error | None = None  # why that transaction was rolled back
        try:
            self._db = self._open(path, timeout_s)
            self._used: dict[str, int] = dict(self._db.execute("SELECT tenant, SUM(size) FROM entries GROUP BY tenant"))
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"store_path {path!r} cannot be used as a key-value store: {error}") from error

    def _open(self, path: str, timeout_s: float) -> sqlite3.Connection:
        if path:
            Path(path).expanduser().resolve().parent.mkdir(parents=True, exist_ok=True)
        where = str(Path(path).expanduser()) if path else ":memory:"
        db = sqlite3.connect(where, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
        return db

    def get(self, tenant: str, key: str) -> str:
        """Raises NotFound."""
        found = self._find(tenant, key)
        if found is None:
            raise NotFound(f"the store has no key {key!r}")
        return found

    def put(self, tenant: str, key: str, value: str, *, ttl_s: float = 0.0, max_bytes: int) -> None:
        """Raises QuotaExceeded if the tenant would have more than `max_bytes` in the store."""
        all_at_once(self.putting(tenant, key, value, ttl_s=ttl_s, max_bytes=max_bytes))

    def put_if(self, tenant: str, key: str, expected: str | None, value: str, *, max_bytes: int) -> bool:
        """Put for ever if the value there is `expected` (None: if there is none); whether it did."""
        return all_at_once(self.putting_if(tenant, key, expected, value, max_bytes=max_bytes))

    def putting_if(self, tenant: str, key: str, expected: str | None, value: str, *, max_bytes: int) -> Steps[bool]:
        if self._find(tenant, key) != expected:
            return False
        yield from self.putting(tenant, key, value, ttl_s=0.0, max_bytes=max_bytes)
        return True

    def delete(self, tenant: str, key: str) -> bool:
        """Whether it was there."""
        is_there = self._find(tenant, key) is not None
        if is_there:
            self._remove("tenant = ? AND key = ?", (tenant, key))
        return is_there

    def names(self, tenant: str, prefix: str, max_bytes: int) -> str:
        """JSON list of the keys that begin with `prefix`, in order of code points; raises QuotaExceeded."""
        return all_at_once(self.naming(tenant, prefix, max_bytes))

    def naming(self, tenant: str, prefix: str, max_bytes: int) -> Steps[str]:
        parts: list[str] = []
        num_bytes = 0
        keys = self._keys(tenant, ">=", prefix, prefix)
        while keys:
            num_bytes += sum(map(byte_size, keys)) + 4 * len(keys)
            if num_bytes > max_bytes:
                raise QuotaExceeded(
                    f"message_bytes: the limit is {max_bytes}; the keys that begin with {prefix!r} "
                    "have more: give a longer prefix"
                )
            parts.append(json.dumps(keys, ensure_ascii=False)[1:-1])
            yield
            keys = self._keys(tenant, ">", keys[-1], prefix) if len(keys) == STEP_ROWS else []
        return f"[{', '.join(parts)}]"

    def _keys(self, tenant: str, comparison: str, start: str, prefix: str) -> list[str]:
        """Up to STEP_ROWS of them from `start` on, as far as they begin with `prefix`."""
        rows = self._db.execute(
            f"SELECT key FROM entries WHERE tenant = ? AND key {comparison} ? "  # noqa: S608 - `comparison` is ours
            "AND (expires_at IS NULL OR expires_at > ?) ORDER BY key LIMIT ?",
            (tenant, start, self._clock(), STEP_ROWS),
        )
        return list(takewhile(lambda key: key.startswith(prefix), (key for (key,) in rows)))

    def used_bytes(self, tenant: str) -> int:
        """What the tenant has in the store, as it is counted: what has expired, until it is swept, too."""
        return self._used.get(tenant, 0)

    def status(self) -> dict[str, int]:
        return {"store_bytes": sum(self._used.values())}

    @property
    def is_changed(self) -> bool:
        """Whether there is something to commit, or to be told that it is lost."""
        return self._db.in_transaction or self._lost is not None

    def commit(self) -> None:
        """Keep what was written.  Raises sqlite3.Error: nothing of it was, since the commit before."""
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost
        try:
            self._db.commit()
        except sqlite3.Error:
            self._db.rollback()
            self._undo_counts()
            raise
        self._used_before.clear()

    def close(self) -> None:
        """Commit, and close the file.  Idempotent."""
        with contextlib.suppress(sqlite3.Error):  # of what was written and not committed nobody has been told
            self.commit()
        self._db.close()

    def _change(self, statement: str, values: tuple[object, ...]) -> list[tuple[str, int]]:
        """Write, in the transaction at hand; what the statement returns."""
        if self._lost is not None:
            raise self._lost
        if not self._db.in_transaction:
            self._db.execute("BEGIN")
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            if not self._db.in_transaction:  # a full disk, say: SQLite has rolled all of it back
                self._lost = error
                self._undo_counts()
            raise

    def _count(self, tenant: str, used: int) -> None:
        self._used_before.setdefault(tenant, self.used_bytes(tenant))
        self._used[tenant] = used

    def _undo_counts(self) -> None:
        self._used |= self._used_before
        self._used_before.clear()

    def _find(self, tenant: str, key: str) -> str | None:
        row = self._db.execute(
            "SELECT value FROM entries WHERE tenant = ? AND key = ? AND (expires_at IS NULL OR expires_at > ?)",
            (tenant, key, self._clock()),
        ).fetchone()
        return None if row is None else str(row[0])

    def putting(self, tenant: str, key: str, value: str, *, ttl_s: float, max_bytes: int) -> Steps[None]:
        now = self._clock()
        if now - self._swept_at > SWEEP_EVERY_S and not self._remove_expired("expires_at <= ?", (now,)):
            self._swept_at = now
        size = ENTRY_OVERHEAD + byte_size(key) + byte_size(value)
        is_more = True
        while (grown := self._grown(tenant, key, size)) > max_bytes and is_more:
            is_more = self._remove_expired("tenant = ? AND expires_at <= ?", (tenant, now))
            yield
        if grown > max_bytes:
            raise QuotaExceeded(
                f"store_bytes: the limit is {max_bytes}; {self.used_bytes(tenant)} are used, and with "
                f"this entry {grown} would be"
            )
        self._change(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
            (tenant, key, value, size, now + ttl_s if ttl_s else None),
        )
        self._count(tenant, grown)

    def _grown(self, tenant: str, key: str, size: int) -> int:
        """What the tenant has once an entry of `size` is at the key."""
        row = self._db.execute("SELECT size FROM entries WHERE tenant = ? AND key = ?", (tenant, key)).fetchone()
        return self.used_bytes(tenant) + size - (0 if row is None else int(row[0]))

    def _remove_expired(self, where: str, values: tuple[object, ...]) -> bool:
        """Remove up to STEP_ROWS entries that have expired; whether there were as many, and perhaps there are more."""
        return (
            self._remove(
                f"(tenant, key) IN (SELECT tenant, key FROM entries WHERE {where} LIMIT ?)",  # noqa: S608 - `where` is ours
                (*values, STEP_ROWS),
            )
            == STEP_ROWS
        )

    def _remove(self, where: str, values: tuple[object, ...]) -> int:
        rows = self._change(f"DELETE FROM entries WHERE {where} RETURNING tenant, size", values)  # noqa: S608 - `where` is ours
        for tenant, size in rows:
            self._count(tenant, self._used[tenant] - size)
        return len(rows)

    def check(self) -> None:
        """What is counted is what is there."""
        found = dict(self._db.execute("SELECT tenant, SUM(size) FROM entries GROUP BY tenant"))
        counted = {tenant: used for tenant, used in self._used.items() if used}
        assert found == counted, f"{found} found, {counted} counted"


def all_at_once(steps: Steps[T]) -> T:
    """Do all steps; the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
