"""Build the embedded inferlets in C and Rust, whose components are committed: `python tools/build_inferlets.py`.

Beside each component, `built.json` has its SHA-256 and those of the sources it was built from, comments left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pieray.programs import manifest
from pieray.programs.manifest import Manifest
from pieray.toolchain import c, rust
from pieray.toolchain.build import build
from pieray.toolchain.sources import code_digest

ROOT = Path(__file__).resolve().parents[1]
SDK_SOURCES = {"c": (c.HEADERS, "*.h"), "rust": (rust.CRATE.parent, "*.rs")}


def committed() -> dict[Path, Manifest]:
    """Folders of the inferlets whose components are committed, with their manifests."""
    found = {path.parent: manifest.of_folder(path.parent) for path in sorted(ROOT.glob("inferlets/*/inferlet.toml"))}
    return {folder: declared for folder, declared in found.items() if declared.language in SDK_SOURCES}


def record(folder: Path, declared: Manifest) -> dict[str, object]:
    """What built.json must hold."""
    sdk, pattern = SDK_SOURCES[declared.language]
    sources = [folder / declared.entry_file, *sorted(sdk.glob(pattern))]
    return {
        "sha256": _digest(folder / declared.main_file),
        "sources": {str(path.relative_to(ROOT)): code_digest(path) for path in sources},
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    for place, its_manifest in committed().items():
        print(build(place))
        (place / "built.json").write_text(json.dumps(record(place, its_manifest), indent=2) + "\n")
