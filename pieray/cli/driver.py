"""The Ray driver of a command: a process of its own, in a session of its own.

A command talks to the engine over sockets and never loads Ray.  What only a Ray driver can do, its driver process does:
start an engine and keep it for as long as the command lives, find one on a cluster, leave one there, end one.  So a
signal for the command's process group, a crash in Ray and what Ray prints all stay away from the command.

The command writes one line of JSON to the driver's stdin, its request, and holds that pipe open; the driver ends, with
all that it has started, when the pipe is closed, which the death of the command does too.  It answers on stdout, a line
each: {"progress": TEXT}, then {"ready": FACTS} or {"failed": {"code", "message"}}.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from pieray.errors import EngineError, PierayError, error_from

if TYPE_CHECKING:
    from pieray.client.engine import Engine

Progress = Callable[[str], None]

START_TIMEOUT_S = 600.0
"""For an answer, or a word of progress, to come: the Python runtime may have to be built first."""
CLOSE_TIMEOUT_S = 20.0
"""For the driver to end its engine in good order; then it is ended by force."""


class Driver:
    """The command's side of it.  `facts` is what the request was answered with."""

    def __init__(self, request: dict[str, Any], show: Progress, *, is_own: bool = False) -> None:
        """Start the driver and wait for its answer.  Raises the PierayError that it reports, EngineError.

        `is_own`: the Ray that it uses ends with it, or with who asks; then nothing has to be put in order on a cluster
        of others if this is cut short, and the driver is ended at once.
        """
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the driver
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pieray.cli.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            self.facts = self._ask(request, show)
        except BaseException:
            self.kill() if is_own else self.close()
            raise

    def _ask(self, request: dict[str, Any], show: Progress) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: so does what it says
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        for answer in self._answers():
            if "progress" in answer:
                show(answer["progress"])
            elif "failed" in answer:
                raise error_from(answer["failed"]["code"], answer["failed"]["message"])
            else:
                ready: dict[str, Any] = answer["ready"]
                return ready
        raise EngineError(f"the engine's driver has ended: {self._last_words()}")

    def _answers(self) -> Iterator[dict[str, Any]]:
        """Lines as they come, until the driver closes its stdout; raises EngineError after START_TIMEOUT_S without."""
        assert self._process.stdout is not None
        descriptor, rest = self._process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                if not selector.select(START_TIMEOUT_S):
                    raise EngineError(f"the engine's driver has said nothing for {START_TIMEOUT_S:.0f} s")
                data = os.read(descriptor, 1 << 16)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from map(json.loads, lines)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-1000:] or "it said nothing"

    def close(self) -> None:
        """Have the driver end its engine and itself; by force after CLOSE_TIMEOUT_S.  Idempotent."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.kill()

    def _has_ended(self) -> bool:
        """Without reaping it: until then its number, which is that of its session, is nobody else's."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """End the driver, and whatever of its session is left, at once.  Idempotent."""
        from pieray.cli.processes import end, session_of

        if self._process.returncode is not None:
            return
        if not self._has_ended():
            self._process.kill()
        end(session_of(self._process.pid), grace_s=0.0)
        self._process.wait(CLOSE_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()


# --- the driver process ------------------------------------------------------------------------


class _Command:
    """The driver's side: the pipe to the command, which must not die unnoticed."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what Ray prints is no answer
        self.request: dict[str, Any] = json.loads(sys.stdin.buffer.readline() or b"null")
        self._is_ready = False
        self._gone = threading.Event()
        threading.Thread(target=self._watch, name="pieray-command", daemon=True).start()

    def tell(self, **answer: Any) -> None:
        with suppress(OSError):
            self._out.write(json.dumps(answer).encode() + b"\n")
            self._out.flush()

    def progress(self, text: str) -> None:
        self.tell(progress=text)

    def ready(self, facts: dict[str, Any]) -> None:
        """The request is done: from here on the end of the command interrupts nothing."""
        self._is_ready = True
        self.tell(ready=facts)

    def await_end(self) -> None:
        """Wait until the command closes the pipe, or dies."""
        self._gone.wait()

    def _watch(self) -> None:
        """A command that leaves in the middle of a start interrupts it: what was started is taken back."""
        sys.stdin.buffer.read()
        self._gone.set()
        if not self._is_ready:
            signal.raise_signal(signal.SIGINT)
            time.sleep(CLOSE_TIMEOUT_S)
            os._exit(1)


def _serve(command: _Command) -> None:
    request = command.request
    _REQUESTS[request.pop("do")](command, **request)


def _start(command: _Command, address: str | None, settings: dict[str, Any]) -> None:
    """An engine that ends with the command."""
    import pieray

    with pieray.start(address=address, progress=command.progress, **settings) as engine:
        command.ready(_facts_of(engine))
        command.await_end()


def _connect(command: _Command, address: str, namespace: str) -> None:
    """An engine that runs on a cluster.  Raises NotFound if there is none of that namespace."""
    import pieray

    with pieray.connect(address, namespace) as engine:
        command.ready(_facts_of(engine))


def _leave_up(command: _Command, address: str, settings: dict[str, Any]) -> None:
    """An engine that stays on a cluster."""
    import pieray

    with pieray.start(address=address, progress=command.progress, **settings) as engine:
        command.ready(_facts_of(engine))


def _end(command: _Command, address: str, namespace: str) -> None:
    """End the engine of a namespace on a cluster, politely where its Controller answers, by force where not."""
    from pieray.cluster import ray_cluster as cluster
    from pieray.cluster.ray_calls import ask_actor

    cluster.join(address, None)
    controller = cluster.find_controller(namespace)
    if controller is not None:
        try:
            ask_actor(controller, "shutdown", timeout_s=10.0)
        except EngineError as error:
            command.progress(error.message)
    cluster.end_engine(namespace)
    command.ready({})


_REQUESTS: dict[str, Callable[..., None]] = {"start": _start, "connect": _connect, "up": _leave_up, "end": _end}


def _facts_of(engine: Engine) -> dict[str, Any]:
    """What a process without Ray needs to use the engine: `address` is the cluster's, `endpoint` the Controller's."""
    import ray

    endpoint, token = engine.door()
    return {
        "address": str(ray.get_runtime_context().gcs_address),
        "namespace": engine.config.namespace,
        "endpoint": endpoint,
        "token": token,
    }


def main() -> None:
    command = _Command()
    try:
        _serve(command)
    except PierayError as error:
        command.tell(failed={"code": error.code, "message": error.message})
    except KeyboardInterrupt:
        sys.exit(130)  # the command has gone
    except Exception as error:  # noqa: BLE001 - the command says it
        import traceback

        traceback.print_exc()
        command.tell(failed={"code": "internal", "message": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
