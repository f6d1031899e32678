"""Write docs/api.md, or with --check leave with 1 if it is not up to date."""

import sys

from tools.apidoc import PAGE, fresh_page, render

if "--check" in sys.argv:
    sys.exit(0 if fresh_page() else f"{PAGE} is not up to date: python -m tools.apidoc")
PAGE.write_text(render(), encoding="utf-8")
