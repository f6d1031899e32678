"""The references in docs/ from the docstrings: `python -m tools.references [--check]`.

What is public is read from the sources, without importing them: the names of `__all__`, and what a module of the SDK
defines without an underscore.  A public name without a docstring is an error.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SDK = ROOT / "pieray" / "guest" / "inferlet"
CLIENT = ROOT / "pieray"
HTTP_CLIENT = ROOT / "pieray-client" / "pieray_client"
WIDTH = 100
"""Of a signature in one line."""

#: Modules of the client's API, in the order of the page, and what is public in them.
CLIENT_NAMES = {
    "bring_up": ("start",),
    "client/connecting": ("connect",),
    "client/engine": ("Engine",),
    "client/process": ("Process", "Event"),
    "programs/sources": ("ProgramSource",),
    "programs/launches": ("LaunchRequest",),
    "config": ("Config", "Limits"),
    "model_settings": ("ModelSettings",),
    "errors": ("PierayError", "*"),
}

#: The same of the client of a server.
HTTP_CLIENT_NAMES = {
    "sync": ("Client", "Run"),
    "aio": ("AsyncClient", "AsyncRun"),
    "events": ("Text", "Log", "Data", "FilePart", "Result"),
    "wire": ("RunState", "ProgramFacts", "SentFile"),
    "errors": ("ClientError", "*"),
}

#: Classes whose objects a program gets, and does not make.
GIVEN = {"Engine", "Process", "Run", "AsyncRun", "Generation", "Child", "Adapter", "Matcher", "SamplerHandle"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """A source file: its docstring and what it defines at its top, in order."""

    name: str
    doc: str
    nodes: dict[str, ast.stmt]
    names: tuple[str, ...] | None
    """`__all__`, if it has one."""
    imported: dict[str, str]
    """Name -> the module of the package that it comes from."""


@functools.cache
def read(path: Path) -> Module:
    """The module in a file.  Raises SyntaxError."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: dict[str, ast.stmt] = {}
    imported: dict[str, str] = {}
    names: tuple[str, ...] | None = None
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if not _is_overload(node):
                    nodes[node.name] = node
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                names = tuple(ast.literal_eval(node.value))
            case ast.ImportFrom(level=1, module=str(module)):
                imported |= {alias.name: module for alias in node.names}
            case _:
                pass
    return Module(path.stem, ast.get_docstring(tree) or "", nodes, names, imported)


def pages() -> dict[Path, str]:
    """Path -> what it must hold.  Raises ValueError naming what has no docstring."""
    return {
        DOCS / "python-sdk.md": sdk_page(),
        DOCS / "python-client.md": client_page(),
        DOCS / "http-client-reference.md": http_client_page(),
    }


def sdk_page() -> str:
    """The reference of the guest SDK."""
    top = read(SDK / "__init__.py")
    assert top.names is not None
    modules = [name for name in top.names if (SDK / f"{name}.py").exists()]
    objects = [name for name in top.names if name in top.imported and name not in modules]
    sources = {name: _source(top.imported[name]) for name in objects}
    listed = {name: source.nodes[name] for name, source in sources.items() if name in source.nodes}
    parts = [
        "# The Python SDK of inferlets",
        "Made by `python -m tools.references` from the docstrings; do not edit. [The handler API](api.md) says what "
        "each handler beneath it costs and which errors it may give.",
        _prose(top.doc),
        "What a function cannot take is an `InvalidRequest`, or a `TypeError` where Python itself notices; no value "
        "ends the program otherwise. `TaskGroup`, `gather`, `sleep` and `timeout` are those of asyncio.",
        "\n".join(["| | |\n| --- | --- |", *map(_row, listed, listed.values()), *map(_module_row, modules)]),
        *(part for name, node in listed.items() for part in _section(name, node, SDK, 2)),
    ]
    for name in modules:
        module = read(SDK / f"{name}.py")
        parts += [f"## Module {name}", _prose(module.doc)]
        for key in module.names or tuple(key for key in module.nodes if not key.startswith("_")):
            if key in module.nodes and key not in listed:
                parts += _section(f"{name}.{key}", module.nodes[key], SDK, 3)
    testing = read(SDK / "testing.py")
    parts += ["## Module testing", _prose(testing.doc)]
    parts += [part for key in ("run", "Run") for part in _section(f"testing.{key}", testing.nodes[key], SDK, 3)]
    return "\n\n".join(parts) + "\n"


def client_page() -> str:
    """The reference of the client's API."""
    parts = [
        "# The Python API of clients",
        "Made by `python -m tools.references` from the docstrings; do not edit.",
        _prose(read(CLIENT / "__init__.py").doc),
        *_sections(CLIENT, CLIENT_NAMES),
    ]
    return "\n\n".join(parts) + "\n"


def http_client_page() -> str:
    """The reference of the client of a server."""
    parts = [
        "# The Python client of a server: reference",
        "Made by `python -m tools.references` from the docstrings; do not edit. [How it is used](http-client.md).",
        _prose(read(HTTP_CLIENT / "__init__.py").doc),
        *_sections(HTTP_CLIENT, HTTP_CLIENT_NAMES),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(package: Path, names: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for name, keys in names.items():
        module = read(package / f"{name}.py")
        chosen = [key for key in module.nodes if key in keys or ("*" in keys and _is_public_class(module, key))]
        for key in sorted(chosen, key=lambda key: keys.index(key) if key in keys else len(keys)):
            yield from _section(key, module.nodes[key], package, 2)


# -- names


def _is_public_class(module: Module, name: str) -> bool:
    return isinstance(module.nodes[name], ast.ClassDef) and not name.startswith("_")


def _source(module: str) -> Module:
    return read(SDK / f"{module}.py")


# -- sections


def _section(name: str, node: ast.stmt, package: Path, level: int) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        yield from _class(name, node, package, level)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield f"{'#' * level} {name}"
        yield _code(_signature(name, node))
        yield _doc(name, node)


def _class(name: str, node: ast.ClassDef, package: Path, level: int) -> Iterator[str]:
    yield f"{'#' * level} class {name}"
    bases = [ast.unparse(base) for base in node.bases]
    is_error = any(base.endswith(("Error", "Exception", "Mismatch")) for base in bases) or name.endswith("Error")
    init = _method(node, "__init__")
    if init is not None and not is_error and name not in GIVEN:
        yield _code(_signature(name, init, is_method=True, is_init=True))
    fields = list(_fields(node))
    if bases and is_error:
        yield f"A kind of `{'`, `'.join(bases)}`."
    yield _doc(name, node)
    if init is not None and not is_error and name not in GIVEN and (text := ast.get_docstring(init)):
        yield _prose(text)
    if fields:
        yield "\n".join(_field(*field) for field in fields)
    short = name.rpartition(".")[2]
    for key, member in _members(node, package).items():
        kinds = {ast.unparse(decorator) for decorator in member.decorator_list}
        if "property" in kinds:
            returns = f": {ast.unparse(member.returns)}" if member.returns else ""
            yield f"{'#' * (level + 1)} {short}.{key}{returns}"
        else:
            yield f"{'#' * (level + 1)} {short}.{key}"
            is_static = "staticmethod" in kinds
            yield _code(_signature(f"{short}.{key}", member, is_method=not is_static))
        yield _doc(f"{name}.{key}", member)


def _members(node: ast.ClassDef, package: Path) -> dict[str, FunctionNode]:
    """The public methods and properties, those of bases in the same package too."""
    found: dict[str, FunctionNode] = {}
    for base in node.bases:
        name = ast.unparse(base).partition("[")[0]
        for path in package.glob("*.py"):
            other = read(path).nodes.get(name)
            if isinstance(other, ast.ClassDef) and other is not node:
                found |= _members(other, package)
    for member in node.body:
        is_function = isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef))
        if is_function and not member.name.startswith("_") and not _is_overload(member):
            found[member.name] = member
    return found


def _method(node: ast.ClassDef, name: str) -> FunctionNode | None:
    for member in node.body:
        if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)) and member.name == name:
            return member
    return None


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    """Annotated attributes and what stands below them: (declaration, default, docstring)."""
    bodies = [node.body]
    if (init := _method(node, "__init__")) is not None:
        bodies.append(init.body)
    for body in bodies:
        for this, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(this, ast.AnnAssign) or "ClassVar" in ast.unparse(this.annotation):
                continue
            name = ast.unparse(this.target).removeprefix("self.")
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = inspect.cleandoc(str(following.value.value))
            if not name.startswith("_") and (body is node.body or text):
                default = "" if this.value is None or body is not node.body else ast.unparse(this.value)
                yield f"{name}: {ast.unparse(this.annotation)}", default, text


def _field(declared: str, default: str, text: str) -> str:
    is_made = default.startswith("field(")
    value = f" = {default}" if default and not is_made else ""
    return f"* `{declared}{value}`" + (f": {' '.join(text.split())}" if text else "")


# -- text


def _signature(name: str, node: FunctionNode, *, is_method: bool = False, is_init: bool = False) -> str:
    params = list(_params(node.args))[1 if is_method else 0 :]
    head = f"{'async ' if isinstance(node, ast.AsyncFunctionDef) else ''}{name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and not is_init else ""
    line = f"{head}({', '.join(params)}){returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{head}(", *(f"    {param}," for param in params), f"){returns}"])


def _params(given: ast.arguments) -> Iterator[str]:
    """Each parameter as it is written, and the signs that divide them."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    for place, (arg, default) in enumerate(zip(plain, defaults, strict=True), 1):
        yield _param(arg, default)
        if place == len(given.posonlyargs):
            yield "/"
    if given.vararg:
        yield f"*{_param(given.vararg, None)}"
    elif given.kwonlyargs:
        yield "*"
    for arg, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _param(arg, value)
    if given.kwarg:
        yield f"**{_param(given.kwarg, None)}"


def _param(arg: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(arg.annotation)}" if arg.annotation else ""
    value = "" if default is None else ast.unparse(default).replace("'", '"')
    return f"{arg.arg}{kind}" + (f" = {value}" if value and kind else f"={value}" if value else "")


def _doc(name: str, node: FunctionNode | ast.ClassDef) -> str:
    text = ast.get_docstring(node)
    if not text:
        raise ValueError(f"{name} has no docstring")
    return _prose(text)


def _prose(text: str) -> str:
    """A docstring as Markdown: lines with a deeper indent are code, as are runs of lines that look like it."""
    joined: list[tuple[bool, str]] = []
    for part in text.split("\n\n"):
        is_code = _is_code(part)
        if is_code and joined and joined[-1][0]:
            joined[-1] = True, f"{joined[-1][1]}\n\n{part}"
        else:
            joined.append((is_code, part))
    return "\n\n".join(_code(textwrap.dedent(part)) if is_code else part for is_code, part in joined)


def _is_code(part: str) -> bool:
    lines = part.splitlines()
    is_program = re.match(r"(async |for |with |await |[a-z_.]+ = |[a-z_]+\.[a-z_]+\()", lines[0]) is not None
    return all(line.startswith("    ") for line in lines) or (is_program and not part.rstrip().endswith("."))


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _first(doc: str) -> str:
    return doc.split("\n\n", maxsplit=1)[0].replace("\n", " ").split(".  ")[0].rstrip(".:")


def _row(name: str, node: ast.stmt) -> str:
    assert isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    title = f"class-{name.lower()}" if isinstance(node, ast.ClassDef) else name.lower()
    return f"| [`{name}`](#{title}) | {_first(ast.get_docstring(node) or '')} |"


def _module_row(name: str) -> str:
    return f"| [`{name}`](#module-{name}) | {_first(_source(name).doc)} |"


def _is_overload(node: ast.stmt) -> bool:
    decorators = getattr(node, "decorator_list", ())
    return any(ast.unparse(decorator) == "overload" for decorator in decorators)


def stale() -> list[Path]:
    """Pages that are not what `pages` gives."""
    return [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
