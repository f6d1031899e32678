"""Messages are imported when they are used, and none is missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pieray import messages


def test_every_module_and_every_name_is_found() -> None:
    folder = Path(messages.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(messages._MODULES)
    for name in messages.__all__:
        assert getattr(messages, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'dataclass'"):
        _ = messages.dataclass


def test_a_frame_of_a_kind_that_was_not_imported_is_read() -> None:
    code = (
        "import sys; from pieray.messages import decode, encode; frame = bytes.fromhex(sys.argv[1]); "
        "assert 'pieray.messages.leases' not in sys.modules; print(decode(frame))"
    )
    frame = messages.encode([messages.CloseLease(7)])
    done = subprocess.run([sys.executable, "-c", code, frame.hex()], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("[CloseLease("), done.stderr
