"""The texts of errors: bounded, whoever wrote them, on both sides of a process's edge."""

from __future__ import annotations

import pickle

import pytest

from pieray.errors import ERRORS, MAX_REPORT, MAX_TEXT, GuestFailed, InvalidRequest, PierayError, error_from


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_a_text_is_bounded_and_keeps_its_begin_and_its_end(kind: type[PierayError]) -> None:
    error = kind("begin" + "x" * 3_100_000 + "end")
    assert len(error.message) <= kind.max_text + 60
    assert error.message.startswith("begin")
    assert error.message.endswith("end")
    again = error_from(error.code, error.message)
    assert (type(again), str(again)) == (kind, pickle.loads(pickle.dumps(error)).message)


def test_what_a_program_wrote_is_kept_longer() -> None:
    assert (InvalidRequest.max_text, GuestFailed.max_text) == (MAX_TEXT, MAX_REPORT) == (2048, 32768)
    assert GuestFailed("x" * MAX_REPORT).message == "x" * MAX_REPORT
