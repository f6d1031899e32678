"""The key-value store: tenants, times, quotas, and what outlives it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.broker.store import ENTRY_OVERHEAD, Store
from pieray.errors import ConfigError, NotFound, QuotaExceeded

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock=clock)


def test_what_was_put_last_is_what_is_there(store: Store) -> None:
    store.put("t", "k", "one", max_bytes=MIB)
    store.put("t", "k", "two \0 é 😀", max_bytes=MIB)
    assert store.get("t", "k") == "two \0 é 😀"
    with pytest.raises(NotFound, match="'k'"):
        store.get("other", "k")
    assert store.delete("t", "k")
    assert not store.delete("t", "k")
    assert store.used_bytes("t") == 0
    store.check()


def test_put_if_is_one_step_of_many(store: Store) -> None:
    assert store.put_if("t", "k", None, "1", max_bytes=MIB)
    assert not store.put_if("t", "k", None, "2", max_bytes=MIB)
    assert not store.put_if("t", "k", "", "2", max_bytes=MIB)
    assert store.put_if("t", "k", "1", "2", max_bytes=MIB)
    assert not store.put_if("t", "absent", "x", "2", max_bytes=MIB)
    assert store.get("t", "k") == "2"


def test_an_entry_is_gone_when_its_time_is_over(store: Store, clock: Clock) -> None:
    store.put("t", "k", "v", ttl_s=2.0, max_bytes=MIB)
    clock.now += 1.9
    assert store.get("t", "k") == "v"
    clock.now += 0.2
    with pytest.raises(NotFound):
        store.get("t", "k")
    assert store.names("t", "", MIB) == "[]"
    assert not store.delete("t", "k")
    assert store.put_if("t", "k", None, "new", max_bytes=MIB)
    clock.now += 1e9
    assert store.get("t", "k") == "new"
    store.check()


def test_the_longest_time_is_taken(store: Store) -> None:
    store.put("t", "k", "v", ttl_s=(2**64 - 1) / 1e3, max_bytes=MIB)
    assert store.get("t", "k") == "v"


def test_names_begin_with_the_prefix_and_are_in_order(store: Store) -> None:
    for key in ("b/2", "a", "b/1", "b", "c", "é/x", "b/\U0010ffff", "B/1"):
        store.put("t", key, "", max_bytes=MIB)
    store.put("other", "b/9", "", max_bytes=MIB)
    assert json.loads(store.names("t", "b/", MIB)) == ["b/1", "b/2", "b/\U0010ffff"]
    assert json.loads(store.names("t", "", MIB)) == ["B/1", "a", "b", "b/1", "b/2", "b/\U0010ffff", "c", "é/x"]
    with pytest.raises(QuotaExceeded, match="message_bytes: the limit is 20"):
        store.names("t", "", 20)


def test_a_tenant_has_its_share_and_what_expired_makes_room(store: Store, clock: Clock) -> None:
    size = ENTRY_OVERHEAD + 11
    store.put("t", "a", "x" * 10, ttl_s=1.0, max_bytes=2 * size)
    store.put("t", "b", "x" * 10, max_bytes=2 * size)
    with pytest.raises(QuotaExceeded, match=rf"store_bytes: the limit is {2 * size}; {2 * size} are used"):
        store.put("t", "c", "x" * 10, max_bytes=2 * size)
    store.put("t", "b", "y" * 10, max_bytes=2 * size)  # in place of what is there
    store.put("other", "c", "x" * 10, max_bytes=2 * size)
    clock.now += 2
    store.put("t", "c", "x" * 10, max_bytes=2 * size)
    assert store.used_bytes("t") == 2 * size
    store.check()


def test_what_expired_is_swept_in_time(store: Store, clock: Clock) -> None:
    for i in range(10):
        store.put("t", f"k{i}", "v", ttl_s=1.0, max_bytes=MIB)
    clock.now += 100
    store.put("other", "k", "v", max_bytes=MIB)
    assert store.used_bytes("t") == 0
    store.check()


def test_a_file_outlives_its_store_and_has_one_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "store.sqlite")
    store = Store(path)
    store.put("t", "k", "v", max_bytes=MIB)
    with pytest.raises(ConfigError, match="store_path"):
        Store(path, timeout_s=0.1)
    store.close()
    again = Store(path)
    assert again.get("t", "k") == "v"
    assert again.used_bytes("t") == ENTRY_OVERHEAD + 2


def copied(path: Path, folder: Path) -> Store:
    """The store as it would be found if its process had died now."""
    folder.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, folder)
    return Store(str(folder / path.name))


def test_what_is_written_is_seen_at_once_and_kept_from_the_commit_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = Store(str(path))
    for i in range(100):
        store.put("t", f"k{i}", "v", max_bytes=MIB)
    assert store.is_changed
    assert store.get("t", "k99") == "v"
    assert copied(path, tmp_path / "before").used_bytes("t") == 0
    store.commit()
    assert not store.is_changed
    after = copied(path, tmp_path / "after")
    assert (after.get("t", "k0"), after.used_bytes("t")) == ("v", store.used_bytes("t"))


def test_a_disk_that_is_full_loses_what_was_not_committed_and_says_so(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"))
    store.put("t", "first", "v", max_bytes=MIB)
    store.commit()
    store._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(sqlite3.Error, match="full"):
        [store.put("t", f"k{i}", "x" * 4000, max_bytes=MIB) for i in range(100)]
    with pytest.raises(sqlite3.Error, match="full"):
        store.commit()
    store.check()
    assert json.loads(store.names("t", "", MIB)) == ["first"]
    store.put("t", "second", "v", max_bytes=MIB)
    store.commit()
    assert json.loads(store.names("t", "", MIB)) == ["first", "second"]


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("this is no database, and long enough to be told from one" * 20)
    for path in (str(bad), str(tmp_path), str(bad / "below")):
        with pytest.raises(ConfigError, match="store_path"):
            Store(path)


KEYS = st.sampled_from(["a", "b", "ab"])


@settings(max_examples=examples(50))
@given(st.lists(st.tuples(st.sampled_from(["put", "put_if", "delete", "wait"]), KEYS, st.integers(0, 3)), max_size=40))
def test_it_is_a_dictionary_with_times(steps: list[tuple[str, str, int]]) -> None:
    clock = Clock()
    store, model = Store(clock=clock), dict[str, tuple[str, float]]()
    for step, key, number in steps:
        live = {k: v for k, (v, end) in model.items() if end > clock.now}
        if step == "put":
            store.put("t", key, str(number), ttl_s=number, max_bytes=MIB)
            model[key] = (str(number), clock.now + number if number else float("inf"))
        elif step == "put_if":
            expected = None if number == 0 else str(number)
            if store.put_if("t", key, expected, "new", max_bytes=MIB):
                assert live.get(key) == expected
                model[key] = ("new", float("inf"))
            else:
                assert live.get(key) != expected
        elif step == "delete":
            assert store.delete("t", key) == (key in live)
            model.pop(key, None)
        else:
            clock.now += number
        live = {k: v for k, (v, end) in model.items() if end > clock.now}
        assert json.loads(store.names("t", "", MIB)) == sorted(live)
        assert all(store.get("t", k) == v for k, v in live.items())
        store.check()
