"""Makes docs/openai-fields.md from the tables of `pieray.server.openai`: `python -m tools.fields`."""

from __future__ import annotations

import json
from pathlib import Path

from pieray.server.openai.fields import Field
from pieray.server.openai.requests import ROUTES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "openai-fields.md"
HEAD = """# Fields of OpenAI's and vLLM's requests

Made by `python -m tools.fields` from the tables that the server reads (`pieray/server/openai`); do not edit. Each
row is tested. A field works, or a request that has it is refused with status 400 and the field's name; none is ignored.
Of those refused, the values in the last column ask for nothing, and are taken. `null` is a field that is not given.
"""


def page() -> str:
    parts = [HEAD]
    for route, fields in ROUTES.items():
        parts.append(f"\n## {route}\n\n| field | of | | |\n| --- | --- | --- | --- |\n")
        parts += [row(field) for field in sorted(fields, key=lambda one: not one.works)]
    return "".join(parts)


def row(field: Field) -> str:
    neutral = ", ".join(f"`{json.dumps(value)}`" for value in field.neutral if not isinstance(value, float))
    state = "works" if field.works else "refused"
    return f"| `{field.name}` | {field.source} | {state}: {field.note} | {neutral} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
