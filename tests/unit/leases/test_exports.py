"""ExportTable: names and who may use them, quotas, time, exact order of eviction; pages come back."""

import pytest

from pieray.errors import Denied, Evicted, InvalidRequest, NotFound, QuotaExceeded
from pieray.leases import exports as module
from pieray.leases.exports import Export, ExportTable, Owner, PinShares, Quota
from pieray.leases.ledger import Holder, PageLedger

ANN, BOB, EVE = Owner("acme", "ann"), Owner("acme", "bob"), Owner("evil", "eve")
A, B, C = Holder("peer-a", 1), Holder("peer-b", 1), Holder("peer-b", 2)
QUOTA = Quota(8, 32, 1000)
NEVER = float("inf")


class Table(ExportTable):
    def __init__(self, num_pages: int = 16, pins: PinShares | None = None) -> None:
        self.ledger = PageLedger(num_pages)
        super().__init__(self.ledger, pins)

    def add(
        self,
        name: str,
        pages: list[int],
        owner: Owner = ANN,
        access: str = "owner",
        holder: Holder = A,
        quota: Quota = QUOTA,
        meta: str = "",
        pinned: bool | float = False,
        until: float = NEVER,
        replace: bool = False,
        now: float = 0.0,
    ) -> Export:
        pinned_until = (NEVER if pinned else -NEVER) if isinstance(pinned, bool) else pinned
        export = Export(name, access, owner, pages, b"\xff" * 8 * len(pages), 4 * len(pages), meta, pinned_until, until)
        self.put(holder, export, quota, replace=replace, now=now)
        self.ledger.check()
        return export

    def names(self, owner: Owner, prefix: str = "") -> list[str]:
        return [f"{e.access}:{e.owner.user}:{e.name}" for e in self.visible(owner, prefix)]


def table_with(held: int = 8, num_pages: int = 16) -> Table:
    table = Table(num_pages)
    table.ledger.lease(A, held)
    return table


# --- names -----------------------------------------------------------------------------------------


def test_names_are_looked_up_as_owner_tenant_public():
    table = table_with()
    public = table.add("x", [0], EVE, "public")
    tenant = table.add("x", [1], BOB, "tenant")
    own = table.add("x", [2], ANN)
    assert [table.open(B, who, "x") for who in (ANN, BOB, EVE)] == [own, tenant, public]
    table.remove(ANN, "owner", "x")
    assert table.open(B, ANN, "x") is tenant
    table.remove(BOB, "tenant", "x")
    assert table.open(B, ANN, "x") is public


def test_another_user_or_tenant_sees_neither_the_name_nor_the_pages():
    table = table_with()
    table.add("mine", [0], ANN)
    table.add("ours", [1], ANN, "tenant")
    table.add("all's", [2], ANN, "public")
    assert table.names(ANN) == ["public:ann:all's", "owner:ann:mine", "tenant:ann:ours"]
    assert table.names(BOB) == ["public:ann:all's", "tenant:ann:ours"]
    assert table.names(EVE) == ["public:ann:all's"]
    assert table.names(ANN, "ou") == ["tenant:ann:ours"]
    for who, name in ((BOB, "mine"), (EVE, "mine"), (EVE, "ours"), (ANN, "nobody's")):
        with pytest.raises(NotFound, match=name):
            table.open(B, who, name)
    assert table.ledger.pages_of(B) == []


def test_same_user_name_in_another_tenant_is_another_user():
    table = table_with()
    table.add("x", [0], Owner("acme", "ann"))
    with pytest.raises(NotFound):
        table.open(B, Owner("evil", "ann"), "x")
    table.add("y", [1], Owner("acme", "ann"), "public")
    with pytest.raises(Denied):
        table.remove(Owner("evil", "ann"), "public", "y")


def test_only_who_made_an_export_replaces_or_removes_it():
    table = table_with()
    table.add("x", [0], ANN, "tenant")
    with pytest.raises(Denied, match="another user's"):
        table.add("x", [1], BOB, "tenant", replace=True)
    with pytest.raises(Denied):
        table.remove(BOB, "tenant", "x")
    with pytest.raises(NotFound):
        table.remove(EVE, "tenant", "x")
    with pytest.raises(InvalidRequest, match="exists"):
        table.add("x", [1], ANN, "tenant")
    table.add("x", [1], ANN, "tenant", replace=True)
    assert table.open(B, BOB, "x").pages == [1]
    table.ledger.close(A)
    assert (table.ledger.num_free, table.ledger.num_leased, table.ledger.num_cached) == (15, 1, 0)


def test_an_unknown_access_is_refused():
    with pytest.raises(InvalidRequest, match="owner, tenant or public"):
        table_with().add("x", [0], access="world")


# --- pages -----------------------------------------------------------------------------------------


def test_pages_outlive_the_exporter_and_importers_outlive_the_name():
    table = table_with(held=4)
    table.add("x", [1, 3])
    table.ledger.close(A)
    assert (table.ledger.num_free, table.ledger.num_cached) == (14, 2)
    found = table.open(B, ANN, "x")
    assert table.num_importers(found) == 1
    table.open(C, ANN, "x")
    table.open(C, ANN, "x")
    assert table.num_importers(found) == 2
    table.remove(ANN, "owner", "x")
    assert (table.ledger.num_free, table.ledger.num_leased) == (14, 2)
    table.ledger.close(B)
    table.ledger.release(C, [1, 3])
    assert table.ledger.num_free == 14
    table.ledger.release(C, [1, 3])
    assert table.ledger.num_free == 16


def test_pages_that_the_exporter_does_not_hold_are_refused_and_nothing_changes():
    table = table_with(held=2)
    for pages in ([0, 2], [99], [0, 0]):
        with pytest.raises(InvalidRequest):
            table.add("x", pages)
    assert (len(table), table.ledger.num_cached) == (0, 0)
    table.add("x", [0])
    with pytest.raises(InvalidRequest):
        table.add("x", [5], replace=True)
    assert table.open(B, ANN, "x").pages == [0]


def test_importers_that_gave_the_pages_back_are_not_counted_nor_kept(monkeypatch):
    monkeypatch.setattr(module, "MANY_IMPORTERS", 4)
    table = table_with()
    found = table.add("x", [0])
    for number in range(50):
        table.open(Holder("peer-b", number), ANN, "x")
        table.ledger.close(Holder("peer-b", number))
    assert len(found.importers) <= 5
    assert table.num_importers(found) == 0


# --- quotas ----------------------------------------------------------------------------------------


def test_quotas_are_of_all_exports_of_a_user_and_name_limit_used_and_given():
    table = table_with()
    quota = Quota(2, 3, 10)
    table.add("a", [0], quota=quota, meta="12345")
    table.add("a", [1, 2, 3], BOB, quota=quota)
    with pytest.raises(QuotaExceeded, match="export_pages: the limit is 3 for user 'ann'; 1 are used, 3 more"):
        table.add("b", [1, 2, 3], quota=quota)
    with pytest.raises(QuotaExceeded, match="export_bytes: the limit is 10"):
        table.add("b", [1], quota=quota, meta="ä" * 3)
    table.add("b", [1], ANN, "public", quota=quota)
    with pytest.raises(QuotaExceeded, match="exports: the limit is 2"):
        table.add("c", [2], quota=quota)
    table.add("a", [1, 2], quota=quota, meta="1234567890", replace=True)  # what is replaced does not count
    assert table.open(B, ANN, "a").pages == [1, 2]


# --- time ------------------------------------------------------------------------------------------


def test_exports_expire_in_time_and_their_pages_come_back():
    table = table_with(held=3)
    table.add("late", [0], until=20.0)
    table.add("soon", [1], until=10.0)
    table.add("never", [2])
    table.ledger.close(A)
    assert table.next_expiry() == 10.0
    assert table.expire(9.9) == 0
    table.add("soon", [1], holder=sharer(table, 1), until=15.0, replace=True)
    assert table.expire(12.0) == 0
    assert table.names(ANN) == ["owner:ann:late", "owner:ann:never", "owner:ann:soon"]
    assert table.expire(100.0) == 1  # page 0; page 1 is held
    assert table.next_expiry() is None
    with pytest.raises(NotFound):
        table.open(B, ANN, "late")


def sharer(table: Table, *pages: int) -> Holder:
    table.ledger.share(B, list(pages))
    return B


def test_replacing_a_name_for_ever_leaves_no_heap_of_expiries():
    table = table_with()
    for at in range(1000):
        table.add("x", [0], until=1000.0 + at, replace=True)
    assert len(table._expiries) < 100
    assert table.next_expiry() == 1999.0


# --- eviction --------------------------------------------------------------------------------------


def test_eviction_takes_the_least_recently_used_that_nobody_has_open_and_no_more_than_needed():
    table = table_with(held=6)
    for page, name in enumerate(["a", "pinned", "b", "c", "open"]):
        table.add(name, [page], pinned=name == "pinned")
    table.ledger.close(A)
    table.open(B, ANN, "open")
    table.open(C, ANN, "a")
    table.ledger.close(C)  # used last
    assert table.evict(2) == 2
    assert table.names(ANN) == ["owner:ann:a", "owner:ann:open", "owner:ann:pinned"]
    for name in ("b", "c"):
        with pytest.raises(Evicted, match=name):
            table.open(C, ANN, name)
    with pytest.raises(Evicted):
        table.remove(ANN, "owner", "b")
    assert table.evict(99) == 1
    assert table.names(ANN) == ["owner:ann:open", "owner:ann:pinned"]
    table.ledger.close(B)
    assert table.evict(99) == 1
    assert table.ledger.num_cached == 1


def test_eviction_spares_what_would_free_nothing():
    table = table_with(held=3)
    table.add("prefix", [0, 1])
    table.add("longer", [0, 1, 2], pinned=True)
    table.ledger.close(A)
    assert table.evict(1) == 0
    assert table.names(ANN) == ["owner:ann:longer", "owner:ann:prefix"]
    table.remove(ANN, "owner", "longer")
    assert table.evict(1) == 2


def test_what_the_exporter_still_uses_is_not_evicted():
    table = table_with(held=2)
    table.add("x", [0])
    assert table.evict(5) == 0
    assert table.open(B, ANN, "x").pages == [0]


def test_a_bounded_number_of_evicted_names_is_remembered_and_a_new_export_is_found(monkeypatch):
    monkeypatch.setattr(module, "KEEP_EVICTED", 2)
    table = table_with(held=3)
    for page, name in enumerate("abc"):
        table.add(name, [page])
    table.ledger.close(A)
    table.evict(3)
    with pytest.raises(NotFound):
        table.open(B, ANN, "a")
    with pytest.raises(Evicted):
        table.open(B, ANN, "b")
    table.ledger.lease(A, 1)
    table.add("b", [table.ledger.pages_of(A)[0]])
    assert table.open(B, ANN, "b").name == "b"


def test_death_of_the_batcher_ends_all():
    table = table_with(held=3)
    table.add("a", [0], pinned=True, until=5.0)
    table.add("b", [1])
    table.ledger.close(A)
    table.clear()
    assert (table.ledger.num_free, len(table), table.next_expiry()) == (16, 0, None)
    with pytest.raises(NotFound):
        table.open(B, ANN, "a")


def test_one_tenants_pins_hold_no_more_than_its_share_and_all_together_leave_a_rest() -> None:
    table = Table(16, PinShares(tenant=0.5, all=0.75))
    for holder in (A, B, C):
        assert table.ledger.lease(holder, 5) is not None
    table.add("one", [0, 1, 2, 3, 4], pinned=True)
    dan = Owner("acme", "dan")
    with pytest.raises(QuotaExceeded, match=r"tenant_pin_share: 0.5 of the pool, 8 pages, .* 'acme' may pin; 5 are"):
        table.add("two", [5, 6, 7, 8], holder=B, owner=dan, pinned=True)
    table.add("two", [5, 6, 7], holder=B, owner=dan, pinned=True)
    table.add("shared", [0, 1, 2], pinned=True)  # pages that are pinned already
    table.add("open to eviction", [8, 9], holder=B)
    with pytest.raises(QuotaExceeded, match=r"pin_share: 0.75 of the pool, 12 pages, .* all tenants may pin; 8 are"):
        table.add("theirs", [10, 11, 12, 13, 14], holder=C, owner=EVE, pinned=True)
    table.add("theirs", [10, 11, 12, 13], holder=C, owner=EVE, pinned=True)
    for holder in (A, B, C):
        table.ledger.close(holder)
    assert table.evict(99) == 2
    assert table.ledger.num_free == 4


def test_replacing_a_pinned_export_counts_the_new_one_alone() -> None:
    table = Table(16, PinShares(tenant=0.25))
    assert table.ledger.lease(A, 8) is not None
    table.add("name", [0, 1, 2, 3], pinned=True)
    table.add("name", [4, 5, 6, 7], pinned=True, replace=True)
    with pytest.raises(QuotaExceeded, match="tenant_pin_share"):
        table.add("name", [0, 1, 2, 3, 4], pinned=True, replace=True)


def test_a_pin_lapses_and_its_export_is_one_like_any_other_then() -> None:
    table = Table(16, PinShares(tenant=0.25))
    assert table.ledger.lease(A, 8) is not None
    table.add("first", [0, 1, 2, 3], pinned=100.0)
    table.ledger.close(A)
    assert table.evict(99, now=99.9) == 0
    assert table.ledger.lease(A, 4) is not None
    table.add("second", [4, 5, 6, 7], pinned=300.0, now=100.0)  # the first counts no more
    table.ledger.close(A)
    assert table.evict(99, now=100.0) == 4
    assert table.names(ANN) == ["owner:ann:second"]


def test_an_export_is_dropped_from_outside_whosever_it_is() -> None:
    table = Table(16)
    assert table.ledger.lease(A, 8) is not None
    table.add("name", [0], pinned=True)
    table.add("name", [1], owner=BOB)
    table.add("name", [2], owner=EVE, access="public")
    table.open(B, EVE, "name")
    assert [e.owner.user for e in table.all()] == ["ann", "bob", "eve"]
    with pytest.raises(InvalidRequest, match="3 exports .* 'name': owner of acme/ann; owner of acme/bob; public"):
        table.drop("name")
    with pytest.raises(InvalidRequest, match="2 exports"):
        table.drop("name", tenant="acme")
    with pytest.raises(NotFound, match="there is no export 'name', user 'nobody'"):
        table.drop("name", user="nobody")
    assert table.drop("name", access="public").owner == EVE
    assert table.drop("name", user="ann").owner == ANN
    assert table.drop("name").owner == BOB
    assert len(table) == 0
    table.ledger.close(A)
    assert table.ledger.num_free == 15  # who has imported it keeps its page
    table.ledger.check()
