"""Keys in their file, and the rates that they have."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pieray.cli.app import application
from pieray.errors import ConfigError, NotFound
from pieray.server.keys import FRESH_S, MOST_ADDRESSES, MOST_FAILURES, Bucket, Caller, Keys, Rates


def test_the_file_has_no_key_and_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "keys.db"
    keys = Keys(path, create=True)
    made = keys.create(tenant="lab", user="ada", role="admin", requests=3, tokens=4, max_priority=5)
    _, key_id, secret = made.split("-", 2)
    assert keys.find(made, 0.0) == Caller(key_id, "lab", "ada", True, 3, 4, 5)
    assert secret.encode() not in path.read_bytes()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [(row["id"], row["tenant"], row["user"]) for row in keys.rows()] == [(key_id, "lab", "ada")]
    keys.close()


def test_a_file_of_before_keys_had_priorities_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    keys = Keys(path, create=True)
    made = keys.create(tokens=7, max_priority=3)
    keys.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("ALTER TABLE keys DROP COLUMN max_priority")
    for _ in range(2):
        keys = Keys(path)
        caller = keys.find(made, 0.0)
        assert caller is not None
        assert (caller.tokens_per_minute, caller.max_priority) == (7, 0)
        keys.close()


@pytest.mark.parametrize("wrong", ["", "pk", "pk-000000000000-" + "A" * 43, "x" * 100_000, "pk-\u0660-\x00"])
def test_a_wrong_key_is_nobodys(tmp_path: Path, wrong: str) -> None:
    keys = Keys(tmp_path / "keys.db", create=True)
    made = keys.create()
    assert keys.find(wrong, 0.0) is None
    for at in (4, 20, len(made) - 2):
        assert keys.find(made[:at] + ("0" if made[at] != "0" else "1") + made[at + 1 :], 0.0) is None
    assert keys.find(made + "A", 0.0) is None
    keys.close()


def test_a_key_that_is_revoked_elsewhere_is_refused_soon(tmp_path: Path) -> None:
    serving, other = (Keys(tmp_path / "keys.db", create=True) for _ in range(2))
    made = other.create()
    assert serving.find(made, 10.0) is not None
    other.revoke(made.split("-")[1])
    assert serving.find(made, 10.0 + FRESH_S) is None
    with pytest.raises(NotFound):
        other.revoke("nothing")
    serving.close()
    other.close()


def test_what_is_no_file_of_keys_is_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x" * 4096)
    for path in (tmp_path / "text", tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="file of keys"):
            Keys(path)
    keys = Keys(tmp_path / "keys.db", create=True)
    for wrong in ({"role": "boss"}, {"tenant": "a b"}, {"user": ""}, {"tokens": -1}, {"max_priority": 101}):
        with pytest.raises(ConfigError):
            keys.create(**wrong)  # type: ignore[arg-type]
    keys.close()


def test_a_bucket_fills_evenly_and_may_be_overdrawn() -> None:
    bucket = Bucket(60, 0.0)
    for _ in range(60):
        assert bucket.wait_s(0.0) == 0
        bucket.take(1)
    assert bucket.wait_s(0.0) == pytest.approx(1)
    assert bucket.wait_s(1.0) == 0
    bucket.take(121)
    assert bucket.wait_s(1.0) == pytest.approx(121)
    assert bucket.wait_s(1000.0) == 0
    bucket.take(60)
    assert bucket.wait_s(1000.0) > 0, "it holds a minute's worth"


def test_rates_are_a_keys_own() -> None:
    rates = Rates()
    one, other = (Caller(name, "lab", requests_per_minute=1, tokens_per_minute=10) for name in "ab")
    assert rates.admit(one, 0.0) == (0.0, "")
    assert rates.admit(one, 0.0) == (60.0, "1 requests a minute")
    assert rates.admit(other, 0.0) == (0.0, "")
    rates.count_tokens(other, 30)
    wait_s, what = rates.admit(other, 60.0)
    assert (wait_s, what) == (pytest.approx(66), "10 tokens a minute")


def test_wrong_keys_from_one_address_are_looked_at_rarely() -> None:
    rates = Rates()
    assert [rates.failed("here", 0.0) for _ in range(MOST_FAILURES)] == [0.0] * MOST_FAILURES
    assert rates.failed("here", 0.0) > 0
    assert rates.failed("there", 0.0) == 0
    for number in range(2 * MOST_ADDRESSES):
        rates.failed(str(number), 0.0)
    assert len(rates._failures) == MOST_ADDRESSES


def test_the_command_line_makes_shows_and_revokes(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.db")

    def call(*words: str) -> str:
        done = CliRunner().invoke(application("keys"), ["keys", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    made = call("create", "--tenant", "lab", "--requests-per-minute", "5", "--file", file).strip()
    (row,) = json.loads(call("--json", "--file", file))
    assert (row["tenant"], row["role"], row["requests_per_minute"]) == ("lab", "user", 5)
    assert made.startswith(f"pk-{row['id']}-")
    assert row.keys() == {
        "id", "tenant", "user", "role", "requests_per_minute", "tokens_per_minute", "max_priority",
        "created_at",
    }  # fmt: skip
    call("revoke", row["id"], "--file", file)
    assert json.loads(call("--json", "--file", file)) == []
