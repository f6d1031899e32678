"""Build the C guests of the tests: `python tests/inferlets/guests_c/build.py [OUT]` (OUT: this folder).

Needs what `pieray build` needs for C.  The components are committed with `manifest.json`, which holds the SHA-256
of each component and of the sources it was built from, comments left out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from pieray.errors import PierayError
from pieray.toolchain import c, component, find
from pieray.toolchain.sources import code_digest

HERE = Path(__file__).resolve().parent
GUESTS = ("completion", "misbehave", "fuzz")
HEADERS = ("pieray.h", "guest.h")


def missing_tools() -> list[str]:
    """What is needed to build and is not here."""
    missing = []
    for look in (find.clang, find.wasm_ld, find.node, lambda: find.node_modules(component.JCO, HERE)):
        try:
            look()
        except PierayError as error:
            missing.append(error.message)
    return missing


def sources(guest: str) -> dict[str, Path]:
    own = ("fuzz.c", "calls.h") if guest == "fuzz" else (f"{guest}.c",)
    return {**{name: HERE / name for name in own}, **{name: c.HEADERS / name for name in HEADERS}}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(guest: str, out: Path) -> Path:
    """Compile `guest`.c and wrap it as a component of the world `inferlet`."""
    target = out / f"{guest}.wasm"
    c.build(HERE / f"{guest}.c", target)
    return target


def main(out: Path) -> None:
    import calls  # beside this file: there when it runs as a script

    manifest = {}
    (HERE / "calls.h").write_text(calls.header())
    for guest in GUESTS:
        target = build(guest, out)
        manifest[target.name] = {
            "sha256": digest(target),
            "sources": {name: code_digest(path) for name, path in sources(guest).items()},
        }
        print(f"{target}: {target.stat().st_size} bytes")
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
