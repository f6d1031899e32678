"""Claim: a message over a socket costs a fifth, or less, of what it costs as a Ray actor call.

Callers in this process ask an actor in another one; each message is a decode step over 32 pages, each answer
its result.  `ray call` is one actor call a message, `ray` the fallback transport (coalesced calls), `unix` and
`tcp` the socket transport.  All sides run in turn, `--repeats` times, medians are reported.  CPU is that of
both processes together.  The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import ray
from common import machine

from pieray.errors import PeerLost
from pieray.messages import Completed, Forward, Message, decode, encode
from pieray.transport import Connection, Endpoint, PendingCalls, connect, serve
from pieray.transport.ray_server import RayEndpointMixin, RayListener

CALLERS = (1, 16, 64)
TARGET = 5.0
TOKEN = "bench"


class Echo:
    """Answers every forward, one frame out for each frame in."""

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        conn.send([Completed(m.ticket, m.tokens) for m in messages if isinstance(m, Forward)])

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...


class Server(RayEndpointMixin):
    """The same service behind a socket, the Ray transport, and a plain method."""

    def __init__(self) -> None:
        who: dict[str, Any] = {"peer_id": "server", "incarnation": 1, "token": TOKEN}
        self.transport_listener = RayListener(Echo(), **who)
        self.listener = serve(Echo(), **who)

    def describe(self) -> tuple[int, tuple[Any, ...], tuple[Any, ...]]:
        return os.getpid(), self.listener.endpoint.to_wire(), self.transport_listener.endpoint.to_wire()

    def call(self, frame: bytes) -> bytes:
        return encode([Completed(m.ticket, m.tokens) for m in decode(frame) if isinstance(m, Forward)])


class Client:
    """A connection and the calls over it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.calls = PendingCalls()
        self.conn = connect(endpoint, self, role="bench", peer_id="client", token=TOKEN)

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        self.calls.resolve(conn, messages)

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        self.calls.fail_all(conn, error)


class Counter:
    """Counts what arrives."""

    def __init__(self, wanted: int) -> None:
        self.left, self.done = wanted, threading.Event()

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:  # noqa: ARG002
        self.left -= len(messages)
        if self.left == 0:
            self.done.set()

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...


@dataclass(frozen=True)
class Sample:
    per_s: float
    p50_us: float
    cpu_us: float


def measure(ask: Callable[[], Any], num_callers: int, seconds: float, server_pid: int) -> Sample:
    """Callers that ask one after the other, each on a thread, for so long."""
    latencies: list[list[float]] = [[] for _ in range(num_callers)]
    both = [psutil.Process(), psutil.Process(server_pid)]
    for _ in range(20):
        ask()
    end = time.perf_counter() + seconds

    def run(mine: list[float]) -> None:
        while (start := time.perf_counter()) < end:
            ask()
            mine.append(time.perf_counter() - start)

    cpu, start = sum(map(cpu_s, both)), time.perf_counter()
    threads = [threading.Thread(target=run, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - start, sum(map(cpu_s, both)) - cpu
    all_of = [latency for mine in latencies for latency in mine]
    return Sample(len(all_of) / wall, statistics.median(all_of) * 1e6, cpu / len(all_of) * 1e6)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def one_way(batch: int, message: Forward, num_messages: int = 25_600) -> float:
    """CPU us to send and receive one of `batch` messages in a frame, both ends in this process, over unix."""
    counter = Counter(num_messages)
    listener = serve(counter, peer_id="here", incarnation=1, token=TOKEN, host="")
    client, frame = Client(listener.endpoint), [message] * batch
    start = time.process_time()
    for _ in range(num_messages // batch):
        client.conn.send(frame)
    assert counter.done.wait(60)
    cpu = time.process_time() - start
    listener.close()
    return cpu / num_messages * 1e6


def sides(seed: int) -> tuple[int, dict[str, Callable[[], Any]]]:
    """The server's process, and one way to ask it for each side."""
    pages = random.Random(seed).randbytes(128)
    server = ray.remote(Server).options(name="server", num_cpus=0, max_concurrency=64).remote()
    pid, socket_wire, ray_wire = ray.get(server.describe.remote())
    endpoint = Endpoint.from_wire(socket_wire)

    def make(ticket: int) -> Forward:
        return Forward(ticket, 3, 0, 0, pages, 500, b"\1\0\0\0", b"", b"", [[8, 0, 0, 0.7, 40, 0.9, 0.0, seed]])

    def over(where: Endpoint) -> Callable[[], Any]:
        client = Client(where)
        return lambda: client.calls.call(client.conn, make, 30.0)

    return pid, {
        "ray call": lambda: decode(ray.get(server.call.remote(encode([make(1)])))),
        "ray": over(Endpoint.from_wire(ray_wire)),
        "unix": over(replace(endpoint, port=0)),
        "tcp": over(replace(endpoint, unix_path="")),
    }


def median(samples: list[Sample]) -> Sample:
    return Sample(*(statistics.median(getattr(s, name) for s in samples) for name in ("per_s", "p50_us", "cpu_us")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", include_dashboard=False, num_cpus=2, object_store_memory=100 << 20, log_to_driver=False)
    pid, asks = sides(args.seed)
    figures: dict[str, dict[str, float]] = {}
    print(f"{'':9} callers   messages/s   p50 us   CPU us/message")
    for num_callers in CALLERS:
        samples: dict[str, list[Sample]] = {name: [] for name in asks}
        for _ in range(args.repeats):
            for name, ask in asks.items():
                samples[name].append(measure(ask, num_callers, args.seconds, pid))
        for name in asks:
            s = median(samples[name])
            print(f"{name:9} {num_callers:7} {s.per_s:12.0f} {s.p50_us:8.0f} {s.cpu_us:16.1f}")
            figures[f"{name} {num_callers}"] = {
                "per_s": round(s.per_s),
                "p50_us": round(s.p50_us),
                "cpu_us": round(s.cpu_us, 1),
            }
    message = Forward(1, 3, 0, 0, bytes(128), 500, b"\1\0\0\0", b"", b"", [[8, 0, 0, 0.7, 40, 0.9, 0.0, 1]])
    figures["one way, CPU us"] = {
        str(batch): round(statistics.median(one_way(batch, message) for _ in range(args.repeats)), 1)
        for batch in CALLERS
    }
    print(f"one way, send and receive, CPU us a message by messages in a frame: {figures['one way, CPU us']}")
    ray.shutdown()
    ratio = figures["ray call 64"]["cpu_us"] / figures["unix 64"]["cpu_us"]
    claim = "a message over a socket costs at least 5x less CPU than as a Ray call, at 64 callers"
    print(
        json.dumps(
            {
                "claim": claim,
                "figures": figures,
                "ratio": round(ratio, 1),
                "target": TARGET,
                "ok": ratio >= TARGET,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
