"""The part of WASI 0.2 that guests may use, in Python: nothing of wasmtime-wasi is linked.

Clocks, random numbers and the output streams go through the handlers; `poll` parks the guest; arguments,
environment, stdin and the file system are empty; sockets are denied; the rest traps.  wasmtime's own
implementation is not used because its asynchronous form needs a Rust reactor (a guest's sleep aborts the
process), its synchronous form blocks the thread and ignores epochs, and its HTTP has no filter.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from ctypes import byref, c_void_p
from typing import Any

from pieray.errors import GuestTrapped, QuotaExceeded
from pieray.wasm import codecs, native
from pieray.wasm.binding import blocking_callback, plain_callback
from pieray.wasm.guest import Guest, running
from pieray.wasm.parks import Park, SleepPark

#: interfaces that a component may import; what is not defined below traps when it is called
INTERFACES = ("wasi:io/", "wasi:clocks/", "wasi:random/", "wasi:cli/", "wasi:filesystem/", "wasi:sockets/")

#: resources a guest may hold at one time
MAX_RESOURCES = 4096
MAX_RANDOM_BYTES = 1 << 20

#: host resource types: the number is the type's identity, for all guests
RESOURCES: dict[str, int] = {
    name: 100 + i
    for i, name in enumerate(
        (
            "pollable",
            "error",
            "output-stream",
            "input-stream",
            "terminal-input",
            "terminal-output",
            "descriptor",
            "directory-entry-stream",
            "network",
            "tcp-socket",
            "udp-socket",
            "incoming-datagram-stream",
            "outgoing-datagram-stream",
            "resolve-address-stream",
        )
    )
}

#: (guest, lifted arguments; a borrow as the number the resource was made with) -> image, or a Park
Function = Callable[..., Any]


class WasiState:
    """A guest's resources: when its pollables become ready, and how many handles it has."""

    def __init__(self) -> None:
        self.pollables: dict[int, float] = {}
        self.num_live = 0
        self.num_made = 0


def state_of(guest: Guest) -> WasiState:
    if guest.wasi is None:
        guest.wasi = WasiState()
    return guest.wasi


def _own(context: int, kind: str, rep: int) -> bytes:
    """The image of a new resource given to the running guest."""
    state = state_of(running.guest)
    state.num_live += 1
    if state.num_live > MAX_RESOURCES:
        raise QuotaExceeded(f"a guest holds at most {MAX_RESOURCES} WASI resources")
    host = native.resource_host_new(True, rep, RESOURCES[kind])
    any_ = c_void_p()
    _check(native.resource_host_to_any(context, host, byref(any_)))
    native.resource_host_delete(host)
    return _PACK_RESOURCE(native.RESOURCE, any_.value)


_PACK_RESOURCE = struct.Struct("<B7xQ16x").pack
_pack_variant = struct.Struct("<B7xQQQ").pack


def _rep(context: int, resource: int) -> int:
    """The number behind a borrowed resource.  Each borrow must be looked at, or the call traps."""
    host = c_void_p()
    _check(native.resource_any_to_host(context, resource, byref(host)))
    rep: int = native.resource_host_rep(host)
    native.resource_host_delete(host)
    return rep


def _check(error: int | None) -> None:
    if error:
        raise GuestTrapped(native.take_error(error))


def destructors() -> dict[str, Any]:
    """resource name -> the callback for when a guest drops one."""
    return {kind: native.ResourceDestructor(_dropper(kind)) for kind in RESOURCES}


def _dropper(kind: str) -> Callable[[int, int, int], int]:
    def dropped(_env: int, _context: int, rep: int) -> int:
        guest = running.guest
        try:
            state = state_of(guest)
            state.num_live -= 1
            if kind == "pollable":
                state.pollables.pop(rep, None)
            return 0
        except BaseException as error:  # noqa: BLE001 - nothing may leave a callback
            return guest.trap(error)

    return dropped


def _pollable(context: int, guest: Guest, ready_at: float) -> bytes:
    state = state_of(guest)
    state.num_made += 1
    state.pollables[state.num_made] = ready_at
    return _own(context, "pollable", state.num_made)


def _poll(_context: int, guest: Guest, pollables: list[int]) -> Park:
    if not pollables:
        raise GuestTrapped("poll of an empty list")
    return SleepPark([state_of(guest).pollables[p] for p in pollables], gives_list=True)


def _block(_context: int, guest: Guest, pollable: int) -> Park:
    return SleepPark([state_of(guest).pollables[pollable]], gives_list=False)


def _instant(_context: int, guest: Guest, when: int) -> bytes:
    delay = (when - guest.handlers.runtime.monotonic_now()) / 1e9
    return _pollable(_context, guest, time.monotonic() + delay)


def _datetime(seconds: int, nanoseconds: int) -> bytes:
    entries = codecs.record_entry("seconds", codecs.encode_u64(seconds))
    entries += codecs.record_entry("nanoseconds", codecs.encode_u32(nanoseconds))
    return codecs.vector_image(native.RECORD, 2, entries, native.record_new)


def _random_bytes(_context: int, guest: Guest, count: int) -> bytes:
    if count > MAX_RANDOM_BYTES:
        raise QuotaExceeded(f"a guest may ask for {MAX_RANDOM_BYTES} random bytes at once; {count} asked")
    return codecs.encode_u8s(random_bytes(guest, count))


def random_bytes(guest: Guest, count: int) -> bytes:
    """`count` bytes out of at most four of the guest's random numbers, stretched by SHAKE-256.

    The numbers are journalled one by one; CPython asks for 2500 bytes when it seeds its generator.
    """
    words = [guest.handlers.runtime.random_u64() for _ in range(min(4, (count + 7) // 8))]
    return hashlib.shake_256(struct.pack(f"<{len(words)}Q", *words)).digest(count)


def _seed(_context: int, guest: Guest) -> bytes:
    words = b"".join(codecs.encode_u64(guest.handlers.runtime.random_u64()) for _ in range(2))
    return codecs.vector_image(native.TUPLE, 2, words, native.tuple_new)


def _write(_context: int, guest: Guest, stream: int, data: bytes) -> bytes:
    if stream == 2:
        guest.stderr_tail = (guest.stderr_tail + data)[-512:]
    guest.handlers.printed.write(stream, data)
    return codecs.OK_NONE


def _exit(_context: int, _guest: Guest, is_ok: bool) -> bytes:
    raise GuestTrapped(f"exited with status {0 if is_ok else 1}")


def _closed(_context: int, *_args: Any) -> bytes:
    """`err(stream-error.closed)`."""
    name = codecs.encode_enum("closed")
    return codecs.err_image(_pack_variant(native.VARIANT, *struct.unpack_from("<QQ", name, 8), 0))


def _denied(_context: int, *_args: Any) -> bytes:
    return codecs.err_image(codecs.encode_enum("access-denied"))


_OPTION_NONE = struct.pack("<B31x", native.OPTION)


def _list_none(*_args: Any) -> bytes:
    return codecs.encode_u32s([])


def _ok(*_args: Any) -> bytes:
    return codecs.OK_NONE


_OUT, _IN = "[method]output-stream.", "[method]input-stream."

#: interface -> function -> (types of its parameters, what it does)
FUNCTIONS: dict[str, dict[str, tuple[tuple[str, ...], Function]]] = {
    "wasi:io/poll": {
        "poll": (("list<borrow>",), _poll),
        "[method]pollable.block": (("borrow",), _block),
        "[method]pollable.ready": (
            ("borrow",),
            lambda _c, g, p: codecs.encode_bool(state_of(g).pollables[p] <= time.monotonic()),
        ),
    },
    "wasi:io/streams": {
        _OUT + "check-write": (("borrow",), lambda *_: codecs.ok_image(codecs.encode_u64(1 << 16))),
        _OUT + "write": (("borrow", "list<u8>"), _write),
        _OUT + "blocking-write-and-flush": (("borrow", "list<u8>"), _write),
        _OUT + "flush": (("borrow",), _ok),
        _OUT + "blocking-flush": (("borrow",), _ok),
        _OUT + "subscribe": (("borrow",), lambda c, g, _s: _pollable(c, g, 0.0)),
        _IN + "read": (("borrow", "u64"), _closed),
        _IN + "blocking-read": (("borrow", "u64"), _closed),
        _IN + "subscribe": (("borrow",), lambda c, g, _s: _pollable(c, g, 0.0)),
    },
    "wasi:clocks/monotonic-clock": {
        "now": ((), lambda _c, g: codecs.encode_u64(g.handlers.runtime.monotonic_now())),
        "resolution": ((), lambda *_: codecs.encode_u64(1)),
        "subscribe-instant": (("u64",), _instant),
        "subscribe-duration": (("u64",), lambda c, g, d: _pollable(c, g, time.monotonic() + d / 1e9)),
    },
    "wasi:clocks/wall-clock": {
        "now": ((), lambda _c, g: _datetime(*divmod(g.handlers.runtime.wall_now(), 10**9))),
        "resolution": ((), lambda *_: _datetime(0, 1)),
    },
    "wasi:random/random": {
        "get-random-bytes": (("u64",), _random_bytes),
        "get-random-u64": ((), lambda _c, g: codecs.encode_u64(g.handlers.runtime.random_u64())),
    },
    "wasi:random/insecure": {
        "get-insecure-random-bytes": (("u64",), _random_bytes),
        "get-insecure-random-u64": ((), lambda _c, g: codecs.encode_u64(g.handlers.runtime.random_u64())),
    },
    "wasi:random/insecure-seed": {"insecure-seed": ((), _seed)},
    "wasi:cli/stdin": {"get-stdin": ((), lambda c, _g: _own(c, "input-stream", 0))},
    "wasi:cli/stdout": {"get-stdout": ((), lambda c, _g: _own(c, "output-stream", 1))},
    "wasi:cli/stderr": {"get-stderr": ((), lambda c, _g: _own(c, "output-stream", 2))},
    "wasi:cli/environment": {
        "get-environment": ((), _list_none),
        "get-arguments": ((), _list_none),
        "initial-cwd": ((), lambda *_: _OPTION_NONE),
    },
    "wasi:cli/terminal-stdin": {"get-terminal-stdin": ((), lambda *_: _OPTION_NONE)},
    "wasi:cli/terminal-stdout": {"get-terminal-stdout": ((), lambda *_: _OPTION_NONE)},
    "wasi:cli/terminal-stderr": {"get-terminal-stderr": ((), lambda *_: _OPTION_NONE)},
    "wasi:cli/exit": {"exit": (("result<_, _>",), _exit)},
    "wasi:filesystem/preopens": {"get-directories": ((), _list_none)},
    "wasi:sockets/instance-network": {"instance-network": ((), lambda c, _g: _own(c, "network", 0))},
    "wasi:sockets/tcp-create-socket": {"create-tcp-socket": (("enum{ipv4, ipv6}",), _denied)},
    "wasi:sockets/udp-create-socket": {"create-udp-socket": (("enum{ipv4, ipv6}",), _denied)},
    "wasi:sockets/ip-name-lookup": {"resolve-addresses": (("borrow", "string"), _denied)},
}

_BLOCKING = {_poll, _block}


def callbacks(executor: str) -> dict[str, dict[str, Any]]:
    """interface (no version) -> function -> callback."""
    return {
        interface: {name: _callback(params, function, executor) for name, (params, function) in functions.items()}
        for interface, functions in FUNCTIONS.items()
    }


def _callback(params: tuple[str, ...], function: Function, executor: str) -> Any:
    lift = codecs.lifter(params)

    def call(guest: Guest, context: int, args: int) -> Any:
        values = [
            _rep(context, v) if p == "borrow" else [_rep(context, b) for b in v] if p == "list<borrow>" else v
            for p, v in zip(params, lift(args, guest.message_cap), strict=True)
        ]
        return function(context, guest, *values)

    return blocking_callback(call, executor) if function in _BLOCKING else plain_callback(call)
