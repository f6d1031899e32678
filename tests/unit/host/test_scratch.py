"""The scratch folder: paths, bounds, what is read is what was written; the SDK's files on it."""

from __future__ import annotations

import pytest
from fakes import Bench
from hypothesis import given
from hypothesis import strategies as st
from sdk import SdkBench

import inferlet
from inferlet import scratch
from pieray.config import Limits
from pieray.errors import InvalidRequest, NotFound, QuotaExceeded
from pieray.host.session.scratch import FILE_BYTES, MAX_FILES, ScratchFolder, check_path
from pieray.texts import from_base64, to_base64

BAD_PATHS = [
    "",
    "/etc/passwd",
    "..",
    "../a",
    "a/../b",
    "a//b",
    "a/",
    "./a",
    "a/.",
    "a\0b",
    "a\nb",
    "a\\b",
    "\x9b",
    "\ud800",
    "x" * 256,
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    folder = ScratchFolder(1000)
    for use in (folder.read, folder.size, folder.remove, lambda p: folder.write(p, b"x")):
        with pytest.raises(InvalidRequest, match="a path"):
            use(path)
    assert folder.names() == []


@pytest.mark.parametrize("path", ["a", "a/b.c/..d", "ä/…", "x" * 255, ".hidden", "in/a b"])
def test_a_path_is_what_looks_like_one(path: str) -> None:
    assert check_path(path) == path


STEPS = st.tuples(st.sampled_from(["write", "append", "remove"]), st.sampled_from("abc"), st.binary(max_size=40))


@given(st.lists(STEPS))
def test_a_folder_holds_what_was_written_within_its_bound(steps: list[tuple[str, str, bytes]]) -> None:
    limit = 2 * FILE_BYTES + 60
    folder, model = ScratchFolder(limit), dict[str, bytes]()
    for kind, path, data in steps:
        after = dict(model)
        if kind == "remove":
            if path not in model:
                with pytest.raises(NotFound):
                    folder.remove(path)
                continue
            folder.remove(path)
            del after[path]
        else:
            after[path] = (model.get(path, b"") if kind == "append" else b"") + data
            if sum(FILE_BYTES + len(d) for d in after.values()) > limit:
                with pytest.raises(QuotaExceeded, match=f"scratch_bytes: the limit is {limit}"):
                    folder.write(path, data, append=kind == "append")
                continue
            folder.write(path, data, append=kind == "append")
        model = after
        assert folder.num_bytes == sum(FILE_BYTES + len(d) for d in model.values())
        assert {name: folder.read(name) for name in folder.names()} == model


def test_a_name_that_is_taken_gets_a_number() -> None:
    folder = ScratchFolder(1 << 20)
    names = [folder.write_new(p, b"") for p in ["in/a.txt", "in/a.txt", "in/a.txt", "b", "b", ".c", ".c"]]
    assert names == ["in/a.txt", "in/a-2.txt", "in/a-3.txt", "b", "b-2", ".c", ".c-2"]


def test_empty_files_are_bounded_too() -> None:
    folder = ScratchFolder(1 << 30)
    for i in range(MAX_FILES):
        folder.write(str(i), b"")
    with pytest.raises(QuotaExceeded, match=f"at most {MAX_FILES} files"):
        folder.write("one more", b"")
    with pytest.raises(QuotaExceeded, match="scratch_bytes"):
        ScratchFolder(10 * FILE_BYTES - 1).write("a", b"x" * (9 * FILE_BYTES))


@pytest.mark.parametrize("text", ["a", "ab==c", "a b=", "é", "YQ", "YQ===", "YQ=\n", "-_8="])
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(InvalidRequest, match="base64"):
        from_base64(text)


def test_handlers_move_bytes_and_not_too_many_at_once() -> None:
    bench = Bench()
    handlers = bench.handlers
    handlers.scratch.write("a/b", to_base64(b"hello"), False)
    handlers.scratch.write("a/b", to_base64(b", you"), True)
    assert handlers.scratch.size("a/b") == 10
    assert from_base64(handlers.scratch.read("a/b", 3, 4)) == b"lo, "
    assert handlers.scratch.read("a/b", 1 << 40, 4) == ""
    with pytest.raises(InvalidRequest, match="at most 262144 bytes"):
        handlers.scratch.write("a", "A" * (2 << 20), False)
    with pytest.raises(NotFound, match="'nothing'"):
        handlers.scratch.read("nothing", 0, 1)
    bench.services.close()


@pytest.fixture
def bench():
    bench = SdkBench(limits=Limits(scratch_bytes=4 << 20))
    yield bench
    bench.close()


def test_the_sdk_reads_what_it_wrote_in_pieces(bench: SdkBench) -> None:
    data = bytes(range(256)) * (10 << 10)  # 2.5 MiB: more than one call moves
    scratch.write("big", data)
    assert scratch.size("big") == len(data)
    assert scratch.read("big") == data
    assert scratch.read("big", 5, (1 << 20) + 7) == data[5 : (1 << 20) + 12]
    assert scratch.read("big", len(data) - 3, 100) == data[-3:]
    scratch.write("text", "zwölf\n")
    scratch.write("text", "mehr", append=True)
    assert scratch.read_text("text") == "zwölf\nmehr"
    assert scratch.names("b") == ["big"]
    scratch.remove("big")
    assert not scratch.exists("big")
    with pytest.raises(inferlet.NotFound, match="'big'"):
        scratch.read("big")
    with pytest.raises(inferlet.QuotaExceeded, match="scratch_bytes"):
        scratch.write("big", bytes(5 << 20))


def test_the_sdk_opens_files_as_python_does(bench: SdkBench) -> None:
    with scratch.open("a/log.txt", "w") as file:
        print("eins", file=file)
    with scratch.open("a/log.txt", "a") as file:
        file.write("zwei\n")
    with scratch.open("a/log.txt") as file:
        assert list(file) == ["eins\n", "zwei\n"]
    with scratch.open("raw", "wb") as file:
        file.write(b"\xff\0")
        assert scratch.read("raw") == b""  # not before it is flushed
    with scratch.open("raw", "rb") as file:
        assert (file.read(1), file.read()) == (b"\xff", b"\0")
    with pytest.raises(FileExistsError):
        scratch.open("raw", "x")
    with pytest.raises(inferlet.NotFound):
        scratch.open("none")
    with pytest.raises(ValueError, match="given 'rw'"):
        scratch.open("raw", "rw")
    with pytest.raises(inferlet.InvalidRequest, match="a path"):
        scratch.write("../x", b"")
