"""API keys: who may ask the server, as which tenant, how often and for how many tokens.

A key is `pk-ID-SECRET`; the file, an SQLite database of its user alone, has the SHA-256 of its secret, which is 32
random bytes: nobody finds them by trying.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieray.errors import ConfigError, NotFound
from pieray.tenants import MAX_PRIORITY

ROLES = ("user", "admin")
FRESH_S = 1.0
"""A key that was taken back is refused after so long at most."""
MOST_FAILURES = 20
"""Wrong keys from one address within a minute: then it is told to wait."""
MOST_ADDRESSES = 4096

_KEY = re.compile(r"pk-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_COLUMNS = "id, tenant, user, role, requests_per_minute, tokens_per_minute, max_priority, created_at"
_READ = "hash, tenant, user, role, requests_per_minute, tokens_per_minute, max_priority"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL, tenant TEXT NOT NULL, user TEXT NOT NULL, role TEXT NOT NULL,
    requests_per_minute INTEGER NOT NULL, tokens_per_minute INTEGER NOT NULL, created_at INTEGER NOT NULL,
    max_priority INTEGER NOT NULL DEFAULT 0
)
"""
_ADDED = "ALTER TABLE keys ADD COLUMN max_priority INTEGER NOT NULL DEFAULT 0"
"""To a file that was made before keys had one."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.  Rates of 0 are none."""

    key_id: str
    tenant: str
    user: str = "local"
    is_admin: bool = False
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_priority: int = MAX_PRIORITY
    """The highest that its launches may have."""


ANYBODY = Caller("", "local")
"""Where no key is asked for."""


class Keys:
    """The keys in a file.  For one thread at a time."""

    def __init__(self, path: Path, *, create: bool = False, wait_s: float = 5.0) -> None:
        """`wait_s`: for others that write to the file; then `find` and the others raise sqlite3.Error.

        Raises ConfigError: there is no such file (unless `create`), or it is none of keys."""
        if not create and not path.is_file():
            raise ConfigError(f"there is no file of keys {path}: `pieray keys create` makes one")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=wait_s)
            self._file.execute(_SCHEMA)
            if "max_priority" not in {row[1] for row in self._file.execute("PRAGMA table_info(keys)")}:
                self._file.execute(_ADDED)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path} is no file of keys: {error}") from None
        self._known: dict[str, tuple[bytes, Caller]] = {}
        self._read_at = -FRESH_S

    def create(
        self,
        *,
        tenant: str = "local",
        user: str = "local",
        role: str = "user",
        requests: int = 0,
        tokens: int = 0,
        max_priority: int = 0,
    ) -> str:
        """A new key, which is told this once.  `requests`, `tokens`: a minute; 0: any number.  Raises ConfigError.

        `max_priority`: the highest that its launches may have."""
        if role not in ROLES:
            raise ConfigError(f"the role of a key is one of {', '.join(ROLES)}; given {role!r}")
        for what, name in (("tenant", tenant), ("user", user)):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise ConfigError(f"a {what} is up to 64 letters, digits and . _ -; given {name[:100]!r}")
        if min(requests, tokens) < 0 or max(requests, tokens) >= 1 << 62:
            raise ConfigError(f"rates are from 0 to 2**62 a minute; given {requests} requests, {tokens} tokens")
        if abs(max_priority) > MAX_PRIORITY:
            raise ConfigError(f"a priority is from {-MAX_PRIORITY} to {MAX_PRIORITY}; given {max_priority}")
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        row = (key_id, _hash(secret), tenant, user, role, requests, tokens, int(time.time()), max_priority)
        self._file.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return f"pk-{key_id}-{secret}"

    def rows(self) -> list[dict[str, Any]]:
        """What is known of each, in the order in which they were made; no key can be told from it."""
        found = self._file.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, rowid")  # noqa: S608 - constants
        return [dict(zip(_COLUMNS.split(", "), row, strict=True)) for row in found]

    def revoke(self, key_id: str) -> None:
        """Raises NotFound."""
        if not self._file.execute("DELETE FROM keys WHERE id = ?", (key_id,)).rowcount:
            raise NotFound(f"there is no key {key_id[:100]!r}; `pieray keys` shows them")

    def find(self, key: str, now: float) -> Caller | None:
        """Whose key it is.  `now`: seconds of a clock that only goes on."""
        if now - self._read_at >= FRESH_S:  # a key that was taken back is forgotten
            self._read_at = now
            self._known.clear()
        parts = _KEY.fullmatch(key)
        if parts is None:
            return None
        key_id, given = parts[1], _hash(parts[2])
        digest, caller = self._known.get(key_id) or self._read(key_id) or (b"", None)
        return caller if hmac.compare_digest(digest, given) else None

    def _read(self, key_id: str) -> tuple[bytes, Caller] | None:
        row = self._file.execute(
            f"SELECT {_READ} FROM keys WHERE id = ?",  # noqa: S608 - constants
            (key_id,),
        ).fetchone()
        if row is None:
            return None
        digest, tenant, user, role, *bounds = row
        found = self._known[key_id] = digest, Caller(key_id, tenant, user, role == "admin", *bounds)
        return found

    def close(self) -> None:
        self._file.close()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


class Bucket:
    """So much a minute: it fills evenly, up to a minute's worth, and may be overdrawn by what is counted afterwards."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def wait_s(self, now: float) -> float:
        """How long until one may be taken; 0: now."""
        self._level = min(self._level + (now - self._at) * self._per_minute / 60, float(self._per_minute))
        self._at = now
        return 0.0 if self._level >= 1 else (1 - self._level) * 60 / self._per_minute

    def take(self, amount: int) -> None:
        self._level -= amount


class Rates:
    """What each key has used of its rates, and how often each address has come with a wrong key.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[Caller, Bucket] = {}
        self._tokens: dict[Caller, Bucket] = {}
        self._failures: dict[str, Bucket] = {}

    def admit(self, caller: Caller, now: float) -> tuple[float, str]:
        """Count a request: (0, ""), or how long it is to wait, and what for."""
        with self._lock:
            return self._admitted(caller, now)

    def _admitted(self, caller: Caller, now: float) -> tuple[float, str]:
        if caller.tokens_per_minute:
            bucket = self._tokens.setdefault(caller, Bucket(caller.tokens_per_minute, now))
            if wait_s := bucket.wait_s(now):
                return wait_s, f"{caller.tokens_per_minute} tokens a minute"
        if caller.requests_per_minute:
            bucket = self._requests.setdefault(caller, Bucket(caller.requests_per_minute, now))
            if wait_s := bucket.wait_s(now):
                return wait_s, f"{caller.requests_per_minute} requests a minute"
            bucket.take(1)
        return 0.0, ""

    def count_tokens(self, caller: Caller, tokens: int) -> None:
        """Tokens that runs of the caller, who has been admitted, have used."""
        with self._lock:
            self._tokens[caller].take(tokens)

    def failed(self, address: str, now: float) -> float:
        """Count a wrong key; how long the address is to wait before it is looked at again."""
        with self._lock:
            bucket = self._failures.pop(address, None) or Bucket(MOST_FAILURES, now)
            wait_s = bucket.wait_s(now)
            if not wait_s:
                bucket.take(1)
            self._failures[address] = bucket
            if len(self._failures) > MOST_ADDRESSES:
                del self._failures[next(iter(self._failures))]
            return wait_s
