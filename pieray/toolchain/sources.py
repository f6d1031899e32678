"""Digests of C and Rust sources that a built component is compared with."""

from __future__ import annotations

import hashlib
from pathlib import Path


def code_digest(path: Path) -> str:
    """SHA-256 of a source without the lines that are only a comment: the WIT's documentation is not in a component."""
    lines = path.read_text(encoding="utf-8").splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith("//"))
    return hashlib.sha256(code.encode()).hexdigest()
