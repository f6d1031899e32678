"""`calls.h` for fuzz.c: every function of the WIT behind one signature, in its order."""

from __future__ import annotations

from pieray.wit import Function, api

INTRO = """\
// Every handler behind one signature.  Generated from pieray.wit by build.py: do not edit.
#pragma once
#include "pieray.h"

#define OK 255
typedef struct { uint8_t code; uint64_t value; text message; } answer;

static float float_of(uint64_t bits) { union { uint32_t i; float f; } u = {(uint32_t)bits}; return u.f; }
static answer failed(error e) { return (answer){e.code, 0, e.message}; }
static answer of(const result *r, uint64_t value) {
  return r->is_err ? failed(r->error) : (answer){OK, value, {0, 0}};
}
static uint64_t first(const result *r) { return r->is_err || !r->numbers.count ? 0 : r->numbers.data[0]; }
"""
CASTS = {
    "u32": "(uint32_t)a[{}]",
    "s32": "(int32_t)a[{}]",
    "u64": "a[{}]",
    "f32": "float_of(a[{}])",
    "bool": "(uint32_t)a[{}]",
}
POINTERS = {
    "string": "const char *",
    "list<u32>": "const uint32_t *",
    "list<f32>": "const float *",
    "list<string>": "const text *",
}
#: what the number of a good result is
VALUES = {"u32": "r.value", "list<u32>": "first(&r)", "bool": "r.flag"}


def header() -> str:
    """The text of calls.h."""
    found = [(i.name, f) for i in api().interfaces for f in i.functions]
    bodies = [f"static answer call_{n}(const uint64_t *a) {{ {_body(i, f)} }}" for n, (i, f) in enumerate(found)]
    table = ", ".join(f"call_{n}" for n in range(len(found)))
    return "\n".join(
        [
            INTRO,
            *bodies,
            f"\n#define NUM_CALLS {len(found)}",
            f"static answer (*const CALLS[])(const uint64_t *) = {{{table}}};",
            "",
        ]
    )


def _body(interface: str, function: Function) -> str:
    name = f"{interface}_{function.name}".replace("-", "_")
    args = []
    at = 0
    for _, kind in function.params:
        if kind in POINTERS:
            args.append(f"({POINTERS[kind]})(uintptr_t)a[{at}], (uint32_t)a[{at + 1}]")
            at += 2
        else:
            args.append(CASTS["u32" if kind in api().enums else kind].format(at))
            at += 1
    if not function.is_fallible:
        return _infallible(name, args, function.ok)
    if function.ok == "u64":
        call = f"{name}({', '.join([*args, '&r'])})"
        return f"result64 r; {call}; return r.is_err ? failed(r.error) : (answer){{OK, r.value, {{0, 0}}}};"
    value = VALUES.get(function.ok or "", "0")
    return f"result r; {name}({', '.join([*args, '&r'])}); return of(&r, {value});"


def _infallible(name: str, args: list[str], ok: str | None) -> str:
    if ok in ("u32", "u64"):
        return f"return (answer){{OK, {name}({', '.join(args)}), {{0, 0}}}};"
    out = {"string": "text", "list<string>": "texts", "list<u32>": "u32s"}[ok or ""]
    return f"{out} t; {name}({', '.join([*args, '&t'])}); return (answer){{OK, 0, {{0, 0}}}};"
