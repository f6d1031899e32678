"""Write the parts of the SDKs that follow from the WIT: `python tools/generate_sdk.py`."""

from __future__ import annotations

from pieray.toolchain.generated import files

if __name__ == "__main__":
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path)
