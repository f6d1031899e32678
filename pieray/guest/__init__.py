"""The guest side of Python inferlets: what is baked into the Python runtime component.

`inferlet/` is the SDK that an inferlet imports; `app.py` is the component's entry.  Nothing here runs on
the host, except that the SDK can be imported for tests, against a fake host (`inferlet._host.install`).
"""

from pathlib import Path

#: The folder that holds `app.py` and the package `inferlet`.
GUEST_ROOT = Path(__file__).resolve().parent
