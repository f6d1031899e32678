"""Build the C guests: `python tests/inferlets/guests_c/build.py [OUT]` (OUT: this folder).

Needs clang-19 and lld-19 (`apt-get update && apt-get install clang-19 lld-19`) and, for the step from core
module to component, node with jco: `npm install @bytecodealliance/jco` in this folder, or anywhere with
PIERAY_JCO naming that folder.  The components are committed with `manifest.json`, which holds the SHA-256
of each component and of the sources it was built from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIT = HERE.parents[2] / "pieray" / "wit" / "pieray.wit"
GUESTS = ("completion", "misbehave")
HEADERS = ("pieray.h", "support.h")
CLANG = "clang-19"
FLAGS = (
    "--target=wasm32", "-std=c2x", "-O2", "-Wall", "-Werror", "-Wno-unused-function", "-nostdlib", "-fno-builtin",
    "-Wl,--no-entry", "-Wl,--strip-debug", "-Wl,--stack-first", "-Wl,-z,stack-size=65536",
)  # fmt: skip


def jco_folder() -> Path:
    return Path(os.environ.get("PIERAY_JCO", HERE))


def missing_tools() -> list[str]:
    """What is needed to build and is not here."""
    missing = [tool for tool in (CLANG, "wasm-ld-19", "node") if shutil.which(tool) is None]
    if not (jco_folder() / "node_modules" / "@bytecodealliance" / "jco").is_dir():
        missing.append("@bytecodealliance/jco (set PIERAY_JCO)")
    return missing


def sources(guest: str) -> tuple[str, ...]:
    return (f"{guest}.c", *HEADERS)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(guest: str, out: Path) -> Path:
    """Compile `guest`.c and wrap it as a component of the world `inferlet`."""
    with tempfile.TemporaryDirectory() as folder:
        core = Path(folder, "core.wasm")
        subprocess.run([CLANG, *FLAGS, "-o", str(core), f"{guest}.c"], cwd=HERE, check=True)
        target, wit = out / f"{guest}.wasm", Path(folder, "pieray.wit")
        wit.write_text(WIT.read_text().replace("(stream:", "(%stream:"))  # a keyword of newer WIT
        arguments = [str(jco_folder().resolve()), str(core), str(wit), "inferlet", str(target)]
        subprocess.run(["node", str(HERE / "embed.mjs"), *arguments], check=True)
    return target


def main(out: Path) -> None:
    manifest = {}
    for guest in GUESTS:
        target = build(guest, out)
        manifest[target.name] = {
            "sha256": digest(target),
            "sources": {name: digest(HERE / name) for name in sources(guest)},
        }
        print(f"{target}: {target.stat().st_size} bytes")
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
