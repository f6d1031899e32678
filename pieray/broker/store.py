"""Text by key, per tenant, in SQLite: a file that outlives the engine, or memory."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from pieray.errors import ConfigError, NotFound, QuotaExceeded
from pieray.texts import byte_size

ENTRY_OVERHEAD = 64
"""Counted for each entry beside the bytes of its key and value."""
SWEEP_EVERY_S = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    tenant TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, size INTEGER NOT NULL, expires_at REAL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS expiries ON entries (expires_at) WHERE expires_at IS NOT NULL;
"""


class Store:
    """One writer; each operation is a transaction of its own.  Not thread-safe, but may be used by any thread.

    What was answered survives the death of the process (write-ahead log), not always that of the machine: commits are
    not synced to the disk.  `clock` gives seconds since 1970.
    """

    def __init__(self, path: str = "", clock: Callable[[], float] = time.time, patience_s: float = 10.0) -> None:
        """Open `path`, "": memory.

        Raises ConfigError for a file that cannot be used, or that another process has had open for `patience_s`.
        """
        self._clock = clock
        self._swept_at = clock()
        try:
            self._db = self._open(path, patience_s)
            self._used: dict[str, int] = dict(self._db.execute("SELECT tenant, SUM(size) FROM entries GROUP BY tenant"))
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"store_path {path!r} cannot be used as a key-value store: {error}") from error

    def _open(self, path: str, patience_s: float) -> sqlite3.Connection:
        if path:
            Path(path).expanduser().resolve().parent.mkdir(parents=True, exist_ok=True)
        where = str(Path(path).expanduser()) if path else ":memory:"
        db = sqlite3.connect(where, timeout=patience_s, isolation_level=None, check_same_thread=False)
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
        self._put(tenant, key, value, ttl_s, max_bytes)

    def put_if(self, tenant: str, key: str, expected: str | None, value: str, *, max_bytes: int) -> bool:
        """Put for ever if the value there is `expected` (None: if there is none); whether it did."""
        if self._find(tenant, key) != expected:
            return False
        self._put(tenant, key, value, 0.0, max_bytes)
        return True

    def delete(self, tenant: str, key: str) -> bool:
        """Whether it was there."""
        is_there = self._find(tenant, key) is not None
        if is_there:
            self._remove("tenant = ? AND key = ?", (tenant, key))
        return is_there

    def names(self, tenant: str, prefix: str, max_bytes: int) -> str:
        """JSON list of the keys that begin with `prefix`, in order of code points; raises QuotaExceeded."""
        rows = self._db.execute(
            "SELECT key FROM entries WHERE tenant = ? AND key >= ? AND (expires_at IS NULL OR expires_at > ?) "
            "ORDER BY key", (tenant, prefix, self._clock()),
        )  # fmt: skip
        names: list[str] = []
        num_bytes = 0
        for (key,) in rows:
            if not key.startswith(prefix):
                break
            names.append(key)
            num_bytes += byte_size(key) + 4
            if num_bytes > max_bytes:
                raise QuotaExceeded(f"message_bytes: the limit is {max_bytes}; the keys that begin with {prefix!r} "
                                    "have more: give a longer prefix")  # fmt: skip
        return json.dumps(names, ensure_ascii=False)

    def used_bytes(self, tenant: str) -> int:
        """What the tenant has in the store, as it is counted: what has expired, until it is swept, too."""
        return self._used.get(tenant, 0)

    def status(self) -> dict[str, int]:
        return {"store_bytes": sum(self._used.values())}

    def close(self) -> None:
        self._db.close()

    def _find(self, tenant: str, key: str) -> str | None:
        row = self._db.execute(
            "SELECT value FROM entries WHERE tenant = ? AND key = ? AND (expires_at IS NULL OR expires_at > ?)",
            (tenant, key, self._clock()),
        ).fetchone()
        return None if row is None else str(row[0])

    def _put(self, tenant: str, key: str, value: str, ttl_s: float, max_bytes: int) -> None:
        now = self._clock()
        if now - self._swept_at > SWEEP_EVERY_S:
            self._sweep(now)
        size = ENTRY_OVERHEAD + byte_size(key) + byte_size(value)
        grown = self._grown(tenant, key, size)
        if grown > max_bytes:
            self._sweep(now)
            grown = self._grown(tenant, key, size)
        if grown > max_bytes:
            raise QuotaExceeded(f"store_bytes: the limit is {max_bytes}; {self.used_bytes(tenant)} are used, and with "
                                f"this entry {grown} would be")  # fmt: skip
        self._db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
                         (tenant, key, value, size, now + ttl_s if ttl_s else None))  # fmt: skip
        self._used[tenant] = grown

    def _grown(self, tenant: str, key: str, size: int) -> int:
        """What the tenant has once an entry of `size` is at the key."""
        row = self._db.execute("SELECT size FROM entries WHERE tenant = ? AND key = ?", (tenant, key)).fetchone()
        return self.used_bytes(tenant) + size - (0 if row is None else int(row[0]))

    def _sweep(self, now: float) -> None:
        """Remove what has expired."""
        self._swept_at = now
        self._remove("expires_at <= ?", (now,))

    def _remove(self, where: str, values: tuple[object, ...]) -> None:
        for tenant, size in self._db.execute(f"DELETE FROM entries WHERE {where} RETURNING tenant, size", values):  # noqa: S608 - `where` is ours
            self._used[tenant] -= size

    def check(self) -> None:
        """What is counted is what is there."""
        found = dict(self._db.execute("SELECT tenant, SUM(size) FROM entries GROUP BY tenant"))
        counted = {tenant: used for tenant, used in self._used.items() if used}
        assert found == counted, f"{found} found, {counted} counted"
