"""`docs/api.md` from the WIT and the notes beside this file: `python -m tools.apidoc [--check]`.

The WIT says what a handler does and its types; `notes/<interface>.toml` says who answers it, which errors it may
give, and shows two lines of Python, which `tests/inferlets/test_api_examples.py` runs on the embedded model.
"""

from __future__ import annotations

import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pieray.wit import Function, Interface, api

ROOT = Path(__file__).resolve().parents[2]
NOTES = Path(__file__).resolve().parent / "notes"
PAGE = ROOT / "docs" / "api.md"

COSTS = {
    "actor": "the InferletActor, at once: a few microseconds",
    "wait": "the InferletActor; sends what is enqueued, then parks the guest",
    "batcher": "the Batcher, in a step with what others ask",
    "resource-manager": "the ResourceManager: one message there and back",
    "broker": "the Broker: one message there and back",
    "controller": "the Controller: a Ray call",
    "child": "the child's InferletActor: one message there and back",
    "client": "the client: one message there and back",
    "worker": "a thread of the InferletActor beside the guests",
    "world": "a server outside, through the InferletActor",
}


#: What every example finds there.
PRELUDE = (
    "line = queue.create()",
    "pages = kv.alloc(2)",
    'tokens = model.tokenize("12+7=")',
    "step = forward.forward(line, pages, 0, tokens)",
)
#: What those of one interface find besides.
SETUP = {
    "plans": ("plan = plans.Plan(line, kv.alloc(2), 0, tokens, max_tokens=8)",),
    "adapters": ('# the engine has an adapter "style", and the client sends the file of another',),
    "mcp": ('# the client brought a server "calculator"',),
}


@dataclass(frozen=True, slots=True)
class Note:
    """What the WIT does not say of a handler."""

    by: str
    errors: tuple[str, ...]
    example: str


def notes_of(interface: Interface) -> dict[str, Note]:
    """Notes by function.  Raises ValueError unless every function of the interface has one, and nothing else has."""
    table = tomllib.loads((NOTES / f"{interface.name}.toml").read_text(encoding="utf-8"))
    functions = [f.name for f in interface.functions]
    if sorted(table) != sorted(functions):
        wrong = set(table).symmetric_difference(functions)
        raise ValueError(f"notes/{interface.name}.toml and the WIT disagree on {', '.join(sorted(wrong))}")
    return {name: _note(interface, name, table[name]) for name in functions}


def _note(interface: Interface, name: str, fields: dict[str, str]) -> Note:
    errors = tuple(fields.get("errors", "").split())
    unknown = [e for e in errors if e not in api().enums["error-code"]]
    if fields["by"] not in COSTS or unknown:
        raise ValueError(f"{interface.name}.{name}: unknown cost {fields['by']!r} or errors {unknown}")
    return Note(fields["by"], errors, fields["example"].strip())


def render() -> str:
    """The whole page."""
    found = api()
    parts = [
        f"# The handler API, version {found.version}",
        "Made by `python -m tools.apidoc` from [pieray/wit/pieray.wit](../pieray/wit/pieray.wit); do not edit. "
        "Every example runs in the tests, on the embedded model.",
        _plain(found.doc),
        "Names are those of the WIT; in Python `-` is `_`, and `from inferlet import kv` gives `kv.export_pages`. A "
        "ticket's value is what awaiting it gives.  All examples stand behind these lines:",
        "```python\nfrom inferlet import *\n\n" + "\n".join(PRELUDE) + "\n```",
        "| interface | what it is |\n| --- | --- |\n" + "\n".join(map(_row, found.interfaces)),
        *map(_section, found.interfaces),
        "## Enums\n\n" + "\n".join(map(_enum, found.enums.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _enum(item: tuple[str, tuple[str, ...]]) -> str:
    name, cases = item
    return f"* `{name}`: {', '.join(f'`{case}`' for case in cases)}"


def _row(interface: Interface) -> str:
    first = _plain(interface.doc).split(". ")[0].rstrip(".:")
    return f"| [{interface.name}](#{interface.name}) | {first} |"


def _section(interface: Interface) -> str:
    notes = notes_of(interface)
    functions = [_entry(interface, function, notes[function.name]) for function in interface.functions]
    setup = SETUP.get(interface.name, ())
    intro = ["In the examples also:", "```python\n" + "\n".join(setup) + "\n```"] if setup else []
    return "\n\n".join([f"## {interface.name}", *filter(None, [_plain(interface.doc)]), *intro, *functions])


def _entry(interface: Interface, function: Function, note: Note) -> str:
    params = ", ".join(f"{name}: {kind}" for name, kind in function.params)
    result = f" -> {function.ok}" if function.ok else ""
    errors = ", ".join(f"`{code}`" for code in note.errors) or "none"
    return "\n\n".join(
        [
            f"### {interface.name}.{function.name}",
            f"`{function.name}({params}){result}`",
            *([_plain(function.doc)] if function.doc else []),
            f"Answered by {COSTS[note.by]}. Errors: {errors}.",
            f"```python\n{note.example}\n```",
        ]
    )


def _plain(doc: str) -> str:
    return textwrap.dedent(doc).replace("\n* ", "\n\n* ").strip()


def fresh_page() -> bool:
    """Whether docs/api.md is what `render` gives."""
    return PAGE.exists() and PAGE.read_text(encoding="utf-8") == render()
