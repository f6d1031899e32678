"""`pieray run` and what goes beside texts: files, structured events, lines of stdin."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine, Outcome

from pieray.cli.exchange import save
from pieray.client.process import Event, Process, ReceivedFile

Call = Callable[..., Outcome]
RUN = ("run", "text-completion", "--input", '{"prompt": "12+7="}')


def parts(name: str, data: bytes, step: int = 4) -> list[tuple[str, str]]:
    """A file as its events."""
    offsets = range(0, max(len(data), 1), step)
    return [
        (
            "file",
            json.dumps(
                {"name": name, "size": len(data), "offset": i, "data": base64.b64encode(data[i : i + step]).decode()}
            ),
        )
        for i in offsets
    ]


def test_files_are_sent_and_received_ones_are_saved(engine: FakeEngine, call: Call, tmp_path: Path) -> None:
    given, out = tmp_path / "given.bin", tmp_path / "new" / "out"
    given.write_bytes(b"\0\xff")
    engine.others = [*parts("notes/a.txt", b"0123456789"), *parts("a.txt", b"")]
    done = call(*RUN, "--file", str(given), "--out", str(out))
    assert (done.exit_code, done.stdout) == (0, "19\n")
    assert engine.link.files == [("given.bin", b"\0\xff")]
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"a.txt": b"0123456789", "a-2.txt": b""}
    assert f"file notes/a.txt, 10 bytes: saved as {out}/a.txt" in done.stderr


def test_without_a_folder_nothing_is_written(engine: FakeEngine, call: Call) -> None:
    engine.others = parts("a.txt", b"0123456789")
    assert "file a.txt, 10 bytes: not kept; --out FOLDER keeps it" in call(*RUN).stderr
    assert call(*RUN, "--json").events[2] == {"event": "file", "name": "a.txt", "size": 10, "saved_as": None}


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("../../x", "x"),
        ("a/b/../c", "c"),
        (".bashrc", "_bashrc"),
        ("..", "_"),
        ("a\x1b[2Jb", "a_[2Jb"),
        ("/etc/passwd", "passwd"),
        ("a\\..\\b", "a_.._b"),
        ("", "_"),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_file_lands_in_the_folder_whatever_its_name(tmp_path: Path, name: str, saved: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert save(folder, ReceivedFile(name, b"x")) == folder / saved
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_replaces_nothing_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").symlink_to(tmp_path / "target")
    assert save(out, ReceivedFile("a.txt", b"theirs")).name == "a-2.txt"
    assert (tmp_path / "target").read_text() == "mine"


def test_structured_events_go_to_stderr_and_to_programs(engine: FakeEngine, call: Call) -> None:
    engine.others = [("data", json.dumps({"name": "progress", "value": {"done": 0.5}}))]
    done = call(*RUN)
    assert (done.stdout, done.stderr.splitlines()[-1]) == ("19\n", 'progress: {"done": 0.5}')
    assert call(*RUN, "--json").events[2] == {"event": "data", "name": "progress", "value": {"done": 0.5}}


def test_lines_of_stdin_are_messages_and_its_end_is_an_empty_one(
    engine: FakeEngine, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.ends = False
    processes: list[Process] = []
    launch = engine.launch
    monkeypatch.setattr(engine, "launch", lambda *a, **k: processes.append(launch(*a, **k)) or processes[0])

    def on_text(text: str) -> None:
        if not text:
            processes[0].add([Event("result", "7", processes[0].num_events)])

    engine.link.on_text = on_text
    done = call(*RUN, "-i", input="one\r\ntwo\n\nlast")
    assert engine.link.sent == ["one", "two", "", "last", ""]
    assert done.stdout == "19\n7\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--file", "/no/such/file"), "--file"),
        (("--out", "/proc/none"), "--out"),
        (("-i", "--input", "@-"), "both read stdin"),
    ],
)
def test_what_cannot_be_exchanged_is_told_before_anything_is_started(
    engine: FakeEngine, call: Call, words: tuple[str, ...], message: str
) -> None:
    done = call(*RUN, *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not engine.start_settings


def test_mcp_servers_are_brought_with_the_launch(engine: FakeEngine, call: Call) -> None:
    assert call(*RUN, "--mcp", "calc=python 'my calc.py'", "--mcp", "web=https://a.example/mcp").exit_code == 0
    assert engine.mcp == {"calc": {"command": ["python", "my calc.py"]}, "web": {"url": "https://a.example/mcp"}}
    assert call(*RUN, "--mcp", "calc").exit_code == 2
