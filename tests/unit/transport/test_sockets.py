"""What only sockets have: raw bytes, authentication, files, dead and silent peers."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transport_peers import TOKEN, Client, Door, ScriptedService, forward, wait_until

from pieray.errors import ConfigError, DeadlineExceeded, Denied, EngineError, PeerLost, ProtocolError
from pieray.messages import MAX_FRAME_BYTES, Hello, Welcome, encode
from pieray.transport import Endpoint, Listener, SocketOptions, connect, serve
from pieray.transport.blocks import receive_block, receive_bytes, send_block
from pieray.transport.frames import PREFIX
from pieray.transport.handshake import GREETING_BYTES, MAGIC, ClientHandshake, ServerHandshake

Serve = Callable[..., Listener]
FAST = SocketOptions(heartbeat_s=0.05, lost_after_s=0.5, handshake_s=0.3, max_half_open=4)


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def listen(service: ScriptedService, tmp_path: Path) -> Iterator[Serve]:
    listeners: list[Listener] = []

    def make(**changes: Any) -> Listener:
        settings = {"peer_id": "batcher-0", "incarnation": 7, "token": TOKEN, "runtime_dir": str(tmp_path)}
        listeners.append(serve(service, **(settings | changes)))
        return listeners[-1]

    yield make
    for listener in listeners:
        listener.close()


def dial(endpoint: Endpoint, *, tcp: bool = False) -> socket.socket:
    """A bare socket to the listener."""
    if tcp:
        sock = socket.create_connection((endpoint.host, endpoint.port))
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(endpoint.unix_path)
    sock.settimeout(5)
    return sock


def authenticate(sock: socket.socket, endpoint: Endpoint) -> socket.socket:
    handshake, deadline = ClientHandshake(TOKEN, role="inferlets", peer_id="raw"), time.monotonic() + 5
    send_block(sock, handshake.answer(receive_bytes(sock, GREETING_BYTES, deadline)), deadline)
    handshake.finish(receive_block(sock, deadline), endpoint)
    sock.settimeout(5)
    return sock


# --- bytes on the wire ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        PREFIX.pack(MAX_FRAME_BYTES + 1),
        b"\xff" * 8,
        PREFIX.pack(3) + b"abc",
        PREFIX.pack(1) + b"\xc1",
        PREFIX.pack(len(encode([])) - 1) + encode([])[:-1],
    ],
    ids=["over-limit", "huge", "not-a-frame", "not-msgpack", "cut-msgpack"],
)
def test_garbage_closes_that_connection_and_allocates_nothing(
    listen: Serve, service: ScriptedService, data: bytes
) -> None:
    endpoint = listen().endpoint
    raw = authenticate(dial(endpoint), endpoint)
    raw.sendall(data)
    assert raw.recv(1) == b""
    assert wait_until(lambda: service.closed == ["raw"])
    client = Client()
    assert client.echo(Door(endpoint).connect(client)) == bytes(128)
    raw.close()


def test_frames_arrive_in_any_pieces(listen: Serve, service: ScriptedService) -> None:
    endpoint = listen().endpoint
    raw = authenticate(dial(endpoint), endpoint)
    frame = encode([forward(5)])
    stream = (PREFIX.pack(len(frame)) + frame) * 3 + PREFIX.pack(0)
    for byte in stream:
        raw.sendall(bytes([byte]))
    assert wait_until(lambda: service.num_frames == 3)
    raw.sendall(stream[:-4] * 400 + stream[:50])  # over many reads, with a frame across each border
    threading.Thread(target=lambda: [None for _ in iter(lambda: raw.recv(1 << 16), b"")], daemon=True).start()
    assert wait_until(lambda: service.num_frames == 3 + 1200)
    raw.shutdown(socket.SHUT_RDWR)
    assert wait_until(lambda: service.closed == ["raw"])


def test_peer_that_dies_within_a_large_frame_is_lost(listen: Serve, service: ScriptedService) -> None:
    endpoint = listen().endpoint
    raw = authenticate(dial(endpoint), endpoint)
    raw.sendall(PREFIX.pack(1 << 24) + bytes(1 << 20))
    raw.close()
    assert wait_until(lambda: service.closed == ["raw"])
    assert service.num_frames == 0


# --- who is let in -------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True])
def test_token_never_travels(listen: Serve, tcp: bool) -> None:
    endpoint, seen = listen().endpoint, bytearray()
    raw = dial(endpoint, tcp=tcp)
    handshake, deadline = ClientHandshake(TOKEN, role="client", peer_id="p"), time.monotonic() + 5
    seen += receive_bytes(raw, GREETING_BYTES, deadline)
    answer = handshake.answer(bytes(seen))
    send_block(raw, answer, deadline)
    seen += answer + receive_block(raw, deadline)
    assert TOKEN.encode() not in seen
    raw.close()


def test_replayed_handshake_is_denied(listen: Serve, service: ScriptedService) -> None:
    endpoint, deadline = listen().endpoint, time.monotonic() + 5
    handshake = ClientHandshake(TOKEN, role="client", peer_id="p")
    first, second = dial(endpoint), dial(endpoint)
    answer = handshake.answer(receive_bytes(first, GREETING_BYTES, deadline))
    send_block(first, answer, deadline)
    receive_block(first, deadline)
    receive_bytes(second, GREETING_BYTES, deadline)
    send_block(second, answer, deadline)
    with pytest.raises(Denied):
        handshake.finish(receive_block(second, deadline), endpoint)
    assert wait_until(lambda: service.num_connects == 1)
    first.close()
    second.close()


def test_handshake_is_accepted_once() -> None:
    server, client = ServerHandshake(TOKEN), ClientHandshake(TOKEN, role="client", peer_id="p")
    answer = client.answer(server.greeting)
    assert TOKEN.encode() not in answer
    assert server.accept(answer) == Hello("client", "p")
    with pytest.raises(Denied, match="used already"):
        server.accept(answer)


def test_every_changed_byte_of_an_answer_is_denied() -> None:
    client = ClientHandshake(TOKEN, role="client", peer_id="p")
    length = len(client.answer(ServerHandshake(TOKEN).greeting))
    for at in range(0, length, 3):
        server = ServerHandshake(TOKEN)
        answer = bytearray(client.answer(server.greeting))
        answer[at] ^= 1
        with pytest.raises(Denied):
            server.accept(bytes(answer))


def impostor(reply: Callable[[socket.socket], None]) -> tuple[Endpoint, socket.socket]:
    """A listener that is not ours."""
    door = socket.create_server(("127.0.0.1", 0))

    def serve_one() -> None:
        sock, _ = door.accept()
        with sock:
            reply(sock)

    threading.Thread(target=serve_one, daemon=True).start()
    return Endpoint("socket", "batcher-0", 7, host="127.0.0.1", port=door.getsockname()[1]), door


def test_listener_must_prove_that_it_knows_the_token() -> None:
    def reply(sock: socket.socket) -> None:
        handshake, deadline = ServerHandshake("another"), time.monotonic() + 5
        sock.sendall(handshake.greeting)
        receive_block(sock, deadline)
        send_block(sock, handshake.welcome(Welcome("batcher-0", 7)), deadline)

    endpoint, door = impostor(reply)
    with pytest.raises(Denied, match="the listener does not know"):
        Door(endpoint).connect(Client())
    door.close()


def test_proof_of_the_peer_reflected_is_denied() -> None:
    def reply(sock: socket.socket) -> None:
        sock.sendall(MAGIC + bytes(32))
        answer = receive_block(sock, time.monotonic() + 5)
        send_block(sock, answer[32:], time.monotonic() + 5)  # the peer's own proof and frame

    endpoint, door = impostor(reply)
    with pytest.raises(Denied):
        Door(endpoint).connect(Client())
    door.close()


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.9 and more of it, no pieray"), ProtocolError),
        (lambda sock: sock.sendall(b"short"), PeerLost),
        (lambda sock: time.sleep(0.6), DeadlineExceeded),
    ],
    ids=["other-protocol", "hangs-up", "silent"],
)
def test_what_is_no_listener_is_a_typed_error(reply: Callable[[socket.socket], None], error: type[Exception]) -> None:
    endpoint, door = impostor(reply)
    with pytest.raises(error):
        Door(endpoint).connect(Client(), timeout_s=0.2)
    door.close()


def test_other_schema_is_a_protocol_error(listen: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, schema_2 = listen().endpoint, encode([]).replace(b"\x01", b"\x02", 1)
    monkeypatch.setattr("pieray.transport.handshake.encode", lambda messages: schema_2)
    client = ClientHandshake(TOKEN, role="client", peer_id="p")
    monkeypatch.undo()
    raw, deadline = dial(endpoint), time.monotonic() + 5
    send_block(raw, client.answer(receive_bytes(raw, GREETING_BYTES, deadline)), deadline)
    with pytest.raises(ProtocolError, match="schema 1 is spoken here; the peer sent 2"):
        client.finish(receive_block(raw, deadline), endpoint)
    raw.close()


def still_open(raws: list[socket.socket]) -> list[socket.socket]:
    """Those that the listener has not hung up on; each has been greeted before."""
    return [raw for raw in raws if not select.select([raw], [], [], 0)[0]]


@pytest.mark.parametrize("tcp", [False, True])
def test_half_open_peers_are_few_and_short_lived(listen: Serve, tcp: bool) -> None:
    endpoint = listen(options=FAST).endpoint
    start, raws = time.monotonic(), []
    for n in range(8):
        raws.append(dial(endpoint, tcp=tcp))
        assert receive_bytes(raws[-1], GREETING_BYTES, start + 5)
        assert len(still_open(raws)) <= FAST.max_half_open, n
    assert still_open(raws[:4]) == []  # the oldest had to go
    last = raws[-1]
    last.sendall(PREFIX.pack(1 << 30))  # an answer of a gigabyte: refused at once
    assert receive_block(last, start + 5)
    assert wait_until(lambda: still_open(raws) == [])
    for raw in raws[:-1]:
        raw.settimeout(5)
        assert raw.recv(1) == b""
    assert 0.2 < time.monotonic() - start < 4
    client = Client()
    assert client.echo(Door(replace(endpoint, unix_path="") if tcp else endpoint).connect(client)) == bytes(128)
    for raw in raws:
        raw.close()


@pytest.mark.parametrize("tcp", [False, True])
def test_idle_peers_at_the_door_keep_nobody_waiting(listen: Serve, tcp: bool) -> None:
    """As many as the kernel lets in, and more whenever one is hung up on: those who know the token come in at once."""
    endpoint = listen(options=SocketOptions(handshake_s=30.0)).endpoint
    target = replace(endpoint, unix_path="") if tcp else endpoint
    idle = [dial(endpoint, tcp=tcp) for _ in range(300)]
    for raw in idle[::2]:
        with contextlib.suppress(OSError):  # hung up on already
            raw.sendall(b"\x40\0")  # the first half of a length: these are slow, not silent
    start = time.monotonic()
    for _ in range(5):
        client = Client()
        conn = Door(target).connect(client, timeout_s=10.0)
        assert client.echo(conn) == bytes(128)
        idle.append(dial(endpoint, tcp=tcp))
    assert time.monotonic() - start < 3.0  # of 30 s that idle ones are given
    for raw in idle:
        raw.close()


def test_a_flood_from_one_address_costs_those_of_others_nothing(listen: Serve) -> None:
    """The peer from elsewhere is slow, and older than all of them."""
    endpoint = listen(host="0.0.0.0", options=SocketOptions(handshake_s=30.0, max_half_open=8)).endpoint
    other = socket.create_connection(("127.0.0.1", endpoint.port), source_address=("127.0.0.2", 0))
    flood = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(100)]
    for raw in flood[:40]:
        raw.settimeout(5)
        receive_bytes(raw, GREETING_BYTES, time.monotonic() + 5)
        assert raw.recv(1) == b""
    authenticate(other, endpoint)
    for raw in [*flood, other]:
        raw.close()


def test_a_peer_hung_up_on_at_the_door_knocks_again(listen: Serve) -> None:
    """Where one address is all there is (a unix socket), a flood may cost a peer its turn, not its way in."""
    endpoint = listen(options=SocketOptions(handshake_s=30.0, max_half_open=2)).endpoint
    is_over, client = threading.Event(), Client()

    def flood() -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError):
                dial(endpoint).close()

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert client.echo(Door(endpoint).connect(client, timeout_s=10.0)) == bytes(128)
    finally:
        is_over.set()
        for thread in threads:
            thread.join(10)


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("tcp", [False, True])
def test_a_peer_that_goes_away_at_the_door_is_no_warning(
    listen: Serve, caplog: pytest.LogCaptureFixture, tcp: bool, how: str
) -> None:
    caplog.set_level("DEBUG", "pieray.transport.door")
    sock = dial(listen().endpoint, tcp=tcp)
    if how == "closed":
        sock.recv(GREETING_BYTES)
    elif tcp:  # the greeting that nobody has read, or the linger of no time, makes the kernel reset the connection
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    wait_until(lambda: "left during the handshake" in caplog.text)
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


def test_empty_token_protects_nothing(listen: Serve) -> None:
    with pytest.raises(ConfigError, match="token is empty"):
        listen(token="")
    with pytest.raises(ConfigError, match="token is empty"):
        Door(listen().endpoint).connect(Client(), token="")


class PanicError(BaseException):
    """A panic of native code is no Exception."""


@pytest.mark.parametrize("method", ["on_connect", "on_messages"])
def test_a_panic_in_a_service_closes_that_connection_only(
    listen: Serve, service: ScriptedService, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, bad, good = listen().endpoint, Client(), Client()

    def panic(*_: object) -> None:
        raise PanicError("native")

    with monkeypatch.context() as patch:
        patch.setattr(service, method, panic)
        with contextlib.suppress(PeerLost):  # where the connection was closed before `connect` had returned
            Door(endpoint).connect(bad).send([forward(1)])
        assert bad.is_closed.wait(5)
        assert wait_until(lambda: service.closed == ["host-3"])
    assert good.echo(Door(endpoint).connect(good)) == bytes(128)


def test_a_panic_in_a_callback_costs_that_call_only(listen: Serve, service: ScriptedService) -> None:
    client = Client()
    conn = Door(listen().endpoint).connect(client)

    def panic(_value: object, _error: object) -> None:
        raise PanicError("native")

    client.calls.submit(conn, forward, panic)  # of one call: the others are answered
    assert client.echo(conn) == bytes(128)


# --- where it listens ----------------------------------------------------------------------------


def test_unix_socket_is_private_and_removed(listen: Serve) -> None:
    listener = listen()
    path = Path(listener.endpoint.unix_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    listener.close()
    listener.close()
    assert list(path.parent.iterdir()) == []
    with pytest.raises(PeerLost, match="batcher-0 is not reached"):
        connect(listener.endpoint, Client(), role="client", peer_id="p", token=TOKEN)


def test_listener_closes_its_connections(listen: Serve) -> None:
    listener, client = listen(), Client()
    conn = Door(listener.endpoint).connect(client)
    client.echo(conn)
    listener.close()
    assert client.is_closed.wait(2)


def test_stale_sockets_are_removed_and_live_ones_kept(listen: Serve) -> None:
    first = listen()
    stale = Path(first.endpoint.unix_path).parent / "0123456789abcdef.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(stale))
    second, client = listen(), Client()
    assert not stale.exists()
    for listener in (first, second):
        assert client.echo(Door(listener.endpoint).connect(client)) == bytes(128)


def test_long_runtime_dir_is_refused_with_the_limit(listen: Serve, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the limit is 99"):
        listen(runtime_dir=str(tmp_path / ("x" * 99)))


def test_directory_of_another_kind_is_refused(listen: Serve, tmp_path: Path) -> None:
    (tmp_path / "sockets").symlink_to("/tmp")
    with pytest.raises(EngineError, match="is not a directory of user"):
        listen()


def test_taken_port_is_an_engine_error(listen: Serve) -> None:
    taken = listen()
    with pytest.raises(EngineError, match=f"cannot listen on 127.0.0.1:{taken.endpoint.port}"):
        listen(port=taken.endpoint.port)


def family_of(endpoint: Endpoint) -> int:
    conn = Door(endpoint).connect(Client())
    return int(conn._sock.family)  # type: ignore[attr-defined]


def test_unix_is_used_on_this_host_only(listen: Serve) -> None:
    endpoint = listen().endpoint
    assert family_of(endpoint) == socket.AF_UNIX
    assert family_of(replace(endpoint, boot_id="another boot")) == socket.AF_INET
    assert family_of(replace(endpoint, unix_path=endpoint.unix_path + "x")) == socket.AF_INET


def test_listener_without_tcp_opens_no_port(listen: Serve) -> None:
    endpoint = listen(host="").endpoint
    assert endpoint.port == 0
    assert family_of(endpoint) == socket.AF_UNIX
    with pytest.raises(PeerLost):
        Door(replace(endpoint, boot_id="another boot")).connect(Client())


# --- peers that die ------------------------------------------------------------------------------

PEER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from transport_peers import *
from pieray.transport import SocketOptions
conn = Door(Endpoint.from_wire(eval(sys.argv[2]))).connect(
    Client(), peer_id="doomed", options=SocketOptions(heartbeat_s=0.05)
)
conn.send([forward(1)])
time.sleep(60)
"""


@pytest.fixture
def doomed(listen: Serve, service: ScriptedService) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(listener: Listener, **changes: Any) -> subprocess.Popen[bytes]:
        endpoint = replace(listener.endpoint, **changes)
        command = [sys.executable, "-c", PEER, str(Path(__file__).parent), repr(endpoint.to_wire())]
        started.append(subprocess.Popen(command))
        assert wait_until(lambda: service.num_frames == 1, 20)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_killed_peer_is_noticed_at_once(
    listen: Serve, service: ScriptedService, doomed: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = doomed(listen())
    start = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: service.closed == ["doomed"])
    assert time.monotonic() - start < 3  # a silent peer is given longer


def test_frozen_tcp_peer_is_noticed_in_bounded_time(
    listen: Serve, service: ScriptedService, doomed: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = doomed(listen(options=FAST), unix_path="")
    os.kill(process.pid, signal.SIGSTOP)
    start = time.monotonic()
    assert wait_until(lambda: service.closed == ["doomed"])
    assert 0.2 < time.monotonic() - start < 3


def test_silent_tcp_peer_is_lost_and_a_quiet_one_is_not(listen: Serve, service: ScriptedService) -> None:
    endpoint = replace(listen(options=FAST).endpoint, unix_path="")
    silent, client = authenticate(dial(endpoint, tcp=True), endpoint), Client()
    quiet = Door(endpoint).connect(client, options=FAST)
    assert wait_until(lambda: service.closed == ["raw"], 1.5)
    time.sleep(0.6)
    assert quiet.is_open
    assert client.echo(quiet) == bytes(128)
    silent.close()


def test_both_ends_go_by_the_heartbeats_of_the_listener(listen: Serve, service: ScriptedService) -> None:
    endpoint = replace(listen(options=FAST).endpoint, unix_path="")
    client = Client()
    conn = Door(endpoint).connect(client)  # whose own would be one each 2 s, four times as rare as the listener bears
    assert conn._heartbeat_s == FAST.heartbeat_s  # type: ignore[attr-defined]
    time.sleep(3 * FAST.lost_after_s)
    assert client.echo(conn) == bytes(128)
    assert service.closed == []


def test_long_handler_is_not_taken_for_a_dead_peer(listen: Serve) -> None:
    endpoint, client = replace(listen(options=FAST).endpoint, unix_path=""), Client()
    conn = Door(endpoint).connect(client, options=FAST)
    client.tell(conn, "sleep 0.8")
    assert conn.is_open
