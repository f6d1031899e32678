"""A fake engine behind the real command line, and what a command gives back."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pieray.client.process import Event, Process
from pieray.config import Config
from pieray.errors import InvalidRequest, NotFound, PierayError
from pieray.programs.sources import ProgramSource


class FakeLink:
    """Remembers kills."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.sent: list[str] = []
        self.files: list[tuple[str, bytes]] = []
        self.on_text: Callable[[str], None] = lambda _: None

    def send_text(self, instance_id: str, text: str, timeout_s: float) -> None:
        self.sent.append(text)
        self.on_text(text)

    def send_file(self, instance_id: str, name: str, data: bytes, timeout_s: float) -> None:
        self.files.append((name, data))

    def install(self, program: ProgramSource) -> dict[str, Any]:
        self.installed[program.name] = program
        return {"name": program.name, "version": program.version, "num_bytes": len(program.source), "sha256": "0" * 64}

    def uninstall(self, name: str) -> list[str]:
        if self.installed.pop(name, None) is None:
            raise NotFound(f"no program {name!r} is installed here")
        return [f"{name}@1.0.0"]

    def programs(self) -> list[dict[str, Any]]:
        return [{"name": p.name, "version": p.version, "description": p.description} for p in self.installed.values()]

    def program(self, name: str) -> ProgramSource:
        return self.installed[name.partition("@")[0]]

    def find(self, name: str) -> ProgramSource:
        if name not in self.installed:
            raise NotFound(f"no program {name!r} is installed here")
        return dataclasses.replace(self.installed[name], source="", component=b"")

    def kill(self, instance_id: str, reason: str, timeout_s: float) -> None:
        self.killed.append(instance_id)


@dataclass
class FakeEngine:
    """Answers each launch with the given texts, logs and ending."""

    texts: Sequence[str] = ("19",)
    logs: Sequence[str] = ()
    others: Sequence[tuple[str, str]] = ()
    """Kind and text of further events."""
    result: Any = None
    error: PierayError | None = None
    refusal: BaseException | None = None
    ends: bool = True
    start_settings: dict[str, Any] = field(default_factory=dict)
    connected_to: list[tuple[str, str]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    mcp: Any = None
    is_attached: bool = False
    urgency: tuple[int, float | None] = (0, None)
    """Priority and deadline_s of the last launch."""
    admitted: dict[str, Any] = field(default_factory=lambda: {"waiting": {}, "refused": {}, "quotas": {}})
    page_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
    is_closed: bool = False
    link: FakeLink = field(default_factory=FakeLink)
    installed: dict[str, ProgramSource] = field(default_factory=dict)
    on_launch: Callable[[], None] = lambda: None

    def launch(
        self,
        program: Any,
        input: Any = None,
        /,
        *,
        limits: Any = None,
        mcp: Any = None,
        attached: bool = False,
        priority: int = 0,
        deadline_s: float | None = None,
        trace: bool = False,
        on_model: str = "",
        **arguments: Any,
    ) -> Process:
        self.mcp = mcp
        self.is_attached = attached
        self.urgency, self.on_model = (priority, deadline_s), on_model
        self.on_launch()
        if self.refusal is not None:
            raise self.refusal
        self.launches.append({"name": program.name, "arguments": {**(input or {}), **arguments}, "limits": limits})
        return self._process(program.name)

    def attach(self, instance_id: str) -> Process:
        if instance_id != "fake-1":
            raise NotFound(f"no inferlet {instance_id!r}")
        return self._process("fake")

    def _process(self, name: str) -> Process:
        process = Process("fake-1", name, self.link)
        told = [("text", text) for text in self.texts] + [("log", line) for line in self.logs]
        told.extend(self.others)
        if self.error is not None:
            told.append(("error", json.dumps({"code": self.error.code, "message": self.error.message})))
        elif self.ends:
            told.append(("result", json.dumps(self.result)))
        process.add([Event(kind, text, number) for number, (kind, text) in enumerate(told)])
        return process

    def ps(self) -> list[dict[str, Any]]:
        facts = {"cpu_time_s": 0.5, "pages": 3, "swapped": 2, "output_bytes": 7, "tenant": "lab", "user": "ada"}
        return [
            {
                "instance_id": "fake-1",
                "name": "fake",
                "state": "running",
                "error": "",
                "parent": "",
                "started_at": time.time() - 200.5,
                "ended_at": None,
                **facts,
            },
            {
                "instance_id": "\x1b[2Jfake-2",
                "name": "a\tb\n",
                "state": "failed",
                "error": "quota: \x9b1m",
                "parent": "fake-1",
                "started_at": time.time() - 90000.5,
                "ended_at": time.time(),
                **facts,
            },
        ]

    def status(self) -> dict[str, Any]:
        states = {"total": 64, "free": 9, "cached": 20, "leased": 35, "quarantined": 0}
        return {
            "actors": [
                {"role": "resource-manager", "state": "up", **states, "tenants": self.page_counts},
                {"role": "batcher", "state": "up", "swap": {"used": 7}},
            ]
        }

    def admission(self) -> dict[str, Any]:
        return self.admitted

    def models(self) -> list[dict[str, Any]]:
        return [{"name": "pie-tiny", "num_pages": 64, "device": "cpu"}]

    def scale(self, replicas: int, *, model: str, drain_s: float) -> list[dict[str, Any]]:
        if replicas < 1:
            raise InvalidRequest(f"a model has from 1 to 256 replicas; given {replicas}")
        found = {"name": model or "pie-tiny", "replicas": replicas, "drain_s": drain_s}
        return [{"name": "pie-tiny", "replicas": 1}, found] if model else [found]

    def exports(self) -> list[dict[str, Any]]:
        facts = {"num_pages": 3, "num_tokens": 40, "expires_in_ms": None, "num_importers": 1}
        return [{"name": "prefix", "access": "tenant", "tenant": "lab", "owner": "ada", "pinned": True, **facts}]

    def drop_export(self, name: str, *, access: str, tenant: str, user: str) -> dict[str, Any]:
        (found,) = self.exports()
        if name != "prefix" or (tenant and tenant != "lab"):
            raise NotFound(f"there is no export {name!r}")
        return {"name": name, "access": access or found["access"], "tenant": found["tenant"], "owner": user or "ada"}

    def adapters(self) -> list[dict[str, Any]]:
        return [{"name": "tiny", "rank": 8, "alpha": 16.0, "targets": ["q_proj"], "num_bytes": 64, "owner": "me"}]

    def install(self, program: ProgramSource) -> dict[str, Any]:
        self.installed[program.name] = program
        return {"name": program.name, "version": program.version, "num_bytes": len(program.source), "sha256": "0" * 64}

    def uninstall(self, name: str) -> list[str]:
        if self.installed.pop(name, None) is None:
            raise NotFound(f"no program {name!r} is installed here")
        return [f"{name}@1.0.0"]

    def programs(self) -> list[dict[str, Any]]:
        return [{"name": p.name, "version": p.version, "description": p.description} for p in self.installed.values()]

    def program(self, name: str) -> ProgramSource:
        return self.installed[name.partition("@")[0]]

    def find(self, name: str) -> ProgramSource:
        if name not in self.installed:
            raise NotFound(f"no program {name!r} is installed here")
        return dataclasses.replace(self.installed[name], source="", component=b"")

    def kill(self, instance_id: str, reason: str = "") -> None:
        if instance_id != "fake-1":
            raise NotFound(f"no inferlet {instance_id!r}")
        self.link.killed.append(instance_id)

    def close(self) -> None:
        self.is_closed = True

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]
