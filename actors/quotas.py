"""Quotas that the Controller keeps: live inferlets, and tokens a minute, of the tenants that have such a quota."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pieray.actors.admission import FreeRate
from pieray.actors.members import Member
from pieray.errors import Overloaded
from pieray.tenants import TenantSettings

MINUTE_S = 60.0


@dataclass(eq=False, slots=True)
class _Inferlet:
    """A launch that was let in: it waits for a place, is under way, or runs."""

    tenant: str
    host: Member | None = None
    placed_at: float = 0.0


class Allowance:
    """Tokens of a minute that fill steadily, up to a whole minute's; what runs may overdraw it."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._left = float(per_minute)
        self._at = now

    def use(self, num_tokens: int, now: float) -> None:
        self._left = self.left(now) - num_tokens
        self._at = now

    def left(self, now: float) -> float:
        """Below 0 if it is overdrawn."""
        return min(float(self._per_minute), self._left + (now - self._at) * self._per_minute / MINUTE_S)

    def wait_s(self, now: float) -> float:
        """Until a token is left, if nothing runs meanwhile."""
        return max(0.0, 1.0 - self.left(now)) * MINUTE_S / self._per_minute


class Quotas:
    """Thread-safe.  `settings_of` gives a tenant's settings; `ask` asks actors which of the inferlets that are counted
    live there, and passes the answers to `heard`."""

    def __init__(
        self,
        settings_of: Callable[[str], TenantSettings],
        ask: Callable[[Collection[Member]], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings_of = settings_of
        self._ask = ask
        self._now = now
        self._live: dict[str, _Inferlet] = {}  # by instance id
        self._by_tenant: dict[str, set[str]] = {}
        self._ends: dict[str, FreeRate] = {}  # of tenants that have some
        self._allowances: dict[str, Allowance] = {}
        self._lock = threading.Lock()

    def take(self, tenant: str, instance_id: str) -> None:
        """Let a launch in, and count it until it has ended or `give_back`.  Raises Overloaded."""
        settings = self._settings_of(tenant)
        if not settings.is_counted:
            return
        self._check_tokens(tenant, settings)
        if not settings.inferlets or self._taken(tenant, instance_id, settings.inferlets):
            return
        with self._lock:
            hosts = {host for i in self._by_tenant.get(tenant, ()) if (host := self._live[i].host) is not None}
        self._ask(hosts)  # some may have ended just now
        if self._taken(tenant, instance_id, settings.inferlets):
            return
        with self._lock:
            num_live = len(self._by_tenant.get(tenant, ()))
            retry_after_s = self._ends[tenant].retry_after_s(1, self._now()) if tenant in self._ends else 1.0
        raise Overloaded(
            f"inferlets: the quota of tenant {tenant!r} is {settings.inferlets} at one time; {num_live} "
            f"run or wait for a place; try again in about {retry_after_s:g} s",
            retry_after_s,
        )

    def _taken(self, tenant: str, instance_id: str, most: int) -> bool:
        with self._lock:
            found = self._by_tenant.setdefault(tenant, set())
            if instance_id in found:  # it is sent once more
                return True
            if len(found) >= most:
                return False
            found.add(instance_id)
            self._live[instance_id] = _Inferlet(tenant)
            self._ends.setdefault(tenant, FreeRate(self._now()))
            return True

    def _check_tokens(self, tenant: str, settings: TenantSettings) -> None:
        with self._lock:
            allowance = self._allowances.get(tenant)
            wait_s = 0.0 if allowance is None else allowance.wait_s(self._now())
            left = 0.0 if allowance is None else allowance.left(self._now())
        if settings.tokens_per_minute and wait_s:
            retry_after_s = max(0.1, round(wait_s, 1))
            raise Overloaded(
                f"tokens_per_minute: the quota of tenant {tenant!r} is {settings.tokens_per_minute}; its "
                f"inferlets have computed {1 - left:.0f} too many; try again in {retry_after_s:g} s, if "
                "none of them runs on",
                retry_after_s,
            )

    def placed(self, instance_id: str, host: Member) -> None:
        """The launch has a place there and has begun."""
        with self._lock:
            if (found := self._live.get(instance_id)) is not None:
                found.host, found.placed_at = host, self._now()

    def give_back(self, instance_id: str) -> None:
        """The launch has come to nothing, or the inferlet has ended."""
        with self._lock:
            self._end(instance_id)

    def _end(self, instance_id: str) -> None:
        if (found := self._live.pop(instance_id, None)) is None:
            return
        if found.host is not None:
            self._ends[found.tenant].note(1, self._now())
        ids = self._by_tenant[found.tenant]
        ids.discard(instance_id)
        if not ids:
            del self._by_tenant[found.tenant], self._ends[found.tenant]

    def reported(self, host: Member, live: Collection[str], asked_at: float) -> None:
        """The actor was asked then, and says what lives there: what was placed before and is not among it has ended."""
        with self._lock:
            ended = [
                i
                for i, found in self._live.items()
                if found.host is host and found.placed_at < asked_at and i not in live
            ]
            for instance_id in ended:
                self._end(instance_id)

    def lost(self, host: Member) -> None:
        """The actor is gone, and what was there with it."""
        with self._lock:
            for instance_id in [i for i, found in self._live.items() if found.host is host]:
                self._end(instance_id)

    def used(self, tenant: str, num_tokens: int) -> None:
        """Inferlets of the tenant have computed so many more tokens."""
        quota = self._settings_of(tenant).tokens_per_minute
        if not quota:
            return
        now = self._now()
        with self._lock:
            full = [t for t, a in self._allowances.items() if a.left(now) >= self._settings_of(t).tokens_per_minute]
            for other in full:  # as if it had never used any
                del self._allowances[other]
            self._allowances.setdefault(tenant, Allowance(quota, now)).use(num_tokens, now)

    def facts(self) -> dict[str, dict[str, float]]:
        """By tenant, of those that have anything: live inferlets that count, and tokens left of the minute's."""
        now = self._now()
        with self._lock:
            found: dict[str, dict[str, float]] = {t: {"inferlets": len(ids)} for t, ids in self._by_tenant.items()}
            for tenant, allowance in self._allowances.items():
                found.setdefault(tenant, {})["tokens_left"] = int(allowance.left(now))
            return found
