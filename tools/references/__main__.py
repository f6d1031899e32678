"""Write the pages, or with --check leave with 1 if one is not up to date."""

import sys

from tools.references import pages, stale

if "--check" in sys.argv:
    found = stale()
    sys.exit(f"not up to date: {', '.join(map(str, found))}: python -m tools.references" if found else 0)
for path, text in pages().items():
    path.write_text(text, encoding="utf-8")
