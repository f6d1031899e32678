"""All settings, as one tree of frozen dataclasses.

The same names are command-line flags (`--num-pages`), keys of a config file and environment variables
(`PIERAY_NUM_PAGES`, `PIERAY_LIMITS_MEMORY_BYTES`).  An unknown key is an error with a suggestion.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pieray.errors import ConfigError
from pieray.mapping import check_at_least, check_choice, check_numbers, check_share, from_mapping
from pieray.model_settings import ModelSettings, check_model
from pieray.tenants import TenantSettings, check_tenants, settings_of

MIB = 1 << 20
LEAST_SUSPECT_S = 2.0
"""Longer than what `pieray.concurrency.stalls` takes for a stall: a launch that is given up must not start any more."""
MAX_MODELS = 16
"""Page handles tell models apart in four bits, see `pieray.pages.handles`."""
MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one inferlet may use.  Passing a limit is `quota` (or `deadline` for times), naming the field."""

    memory_bytes: int = 128 * MIB
    """Linear memory of the guest.  The Python runtime itself needs about 17 MiB."""
    wall_time_s: float = 600.0
    """From launch to the end, waiting included."""
    cpu_time_s: float = 60.0
    """Time that the guest itself computes, and that is computed for its calls: long texts, grammars' masks."""
    pages: int = 4096
    """KV page handles held at one time."""
    page_wait_s: float = 600.0
    """How long a command waits for memory behind its pages."""
    queues: int = 64
    tickets: int = 4096
    """Tickets issued and not yet taken."""
    message_bytes: int = 4 * MIB
    """One session message, either way; also one string or list handed to a handler."""
    pass_bytes: int = 64 * MIB
    """Results of passes (logits, distributions, log-probabilities, hidden states, embeddings) asked for and not yet
    taken, and what goes with passes under way (masks, embeddings, lists of tokens)."""
    tokenize_bytes: int = 256 << 10
    """Text tokenized, or rendered by a chat template, in one call."""
    mailbox_bytes: int = 16 * MIB
    """Messages sent and not yet received, each way."""
    log_bytes: int = MIB
    """All that the inferlet logs or prints."""
    output_bytes: int = 64 * MIB
    """All that the inferlet sends to its client, the result included."""
    source_bytes: int = 4 * MIB
    """Source text or component given by a client at launch."""
    embed_bytes: int = 64 * MIB
    """Embeddings held by handles; of images as much again may be kept, so that pages can be computed again."""
    exports: int = 256
    """Exports of one user that exist at one time."""
    export_pages: int = 4096
    """KV pages in them."""
    export_bytes: int = 64 * MIB
    """Text kept with them."""
    pin_time_s: float = 3600.0
    """How long a pinned export is kept although memory is short; then it is one like any other."""
    plans: int = 256
    """Decode plans open at one time; samplers and matchers likewise."""
    grammar_bytes: int = 256 << 10
    """Source text of one grammar."""
    grammar_time_s: float = 5.0
    """Compiling one grammar."""
    adapter_bytes: int = 64 * MIB
    """LoRA weights that an inferlet has loaded for itself."""
    programs: int = 64
    """Tensor programs open at one time."""
    program_bytes: int = 4 * MIB
    """Of all of them: code, constants and states."""
    program_ops: int = 256
    """Operations that one tensor program is written with."""
    program_work: int = 64_000_000
    """Numbers that one tensor program computes for a row, in all its layers, in a context as long as the model's."""
    scratch_bytes: int = 64 * MIB
    """Files in the scratch folder."""
    subscriptions: int = 64
    """To topics, open at one time."""
    queue_bytes: int = 16 * MIB
    """Texts in one message queue, or unread in one subscription."""
    broker_bytes: int = 256 * MIB
    """Texts of the inferlet's tenant that nobody has taken, those that wait for room included."""
    children: int = 64
    """Children that run at one time."""
    child_depth: int = 4
    """Generations below an inferlet that a client has launched."""
    http_calls: int = 256
    """HTTP requests in all, redirects included."""
    http_bytes: int = 32 * MIB
    """Bytes of HTTP bodies in all, both ways."""
    http_time_s: float = 30.0
    """One HTTP request, redirects included."""
    store_bytes: int = 64 * MIB
    """What the inferlet's tenant keeps in the key-value store."""
    mcp_calls: int = 1024
    """Calls of MCP tools in all."""
    mcp_time_s: float = 60.0
    """One call of an MCP tool."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not value >= 0:  # NaN neither
                raise ConfigError(f"limits.{f.name} is at least 0; given {value}")


@dataclass(frozen=True, slots=True)
class Config:
    """An engine."""

    namespace: str = "pieray"
    """Ray namespace of the engine's named actors."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The default one: what programs use that name none."""
    models: dict[str, Any] = field(default_factory=dict)
    """Models served beside it, by name: fields of `ModelSettings`, or a path.
    {"draft": "/models/small", "embedder": {"path": "/models/e5", "replicas": 2}}."""
    limits: Limits = field(default_factory=Limits)
    inferlets_per_actor: int = 64
    """Inferlets in one actor process; 1 gives each an actor of its own."""
    ready_guests: int = 32
    """Guests for Python source that an InferletActor starts ahead of launches, at most; each takes about 8 MiB."""
    actor_pool: int = 0
    """InferletActors started ahead and kept; 0: one for each two cores of the cluster, and 8 at most.  Launches go to
    the one with the most room."""
    max_actors: int = 64
    """InferletActors at most; launches that find no room wait, see `launch_wait_s`."""
    max_waiting_launches: int = 1024
    """Launches that wait for a place at one time; where more come, some are `overloaded` at once."""
    launch_wait_s: float = 60.0
    """How long a launch waits for a place and for its start; then it is `overloaded`."""
    tenants: dict[str, Any] = field(default_factory=dict)
    """Shares and quotas by tenant, fields of `TenantSettings`; "*": of each that is not named.
    {"lab": {"weight": 2, "inferlets": 8}, "*": {"tokens_per_minute": 60000}}."""
    suspect_after_s: float = 3.0
    """An actor that has not answered for so long is set aside: nothing is placed on it, nobody waits for it."""
    replace_after_s: float = 15.0
    """After so long it is taken for frozen: it is killed and replaced."""
    turn_timeout_s: float = 300.0
    """One turn of an actor's work (a step of the batcher, a host function) that takes longer hangs: it is replaced."""
    executor: str = "auto"
    """"fiber", "thread", or "auto": fibers where the feature test passes."""
    transport: str = "socket"
    """"socket" (unix on a node, TCP across nodes), "tcp" (on one node too) or "ray" (plain actor calls)."""
    heartbeat_s: float = 2.0
    """An idle TCP connection carries an empty frame this often."""
    lost_after_s: float = 10.0
    """A TCP peer that is silent for so long is lost (a host that vanished, a frozen process); at least twice
    `heartbeat_s`."""
    worker_threads: int = 1
    """Threads of an InferletActor that run guests."""
    group_policy: str = "content"
    """Which device group of several a program computes on, chosen when it first has something to compute: "content"
    (where most of its prompt is computed already, unless that one has much more to do), "least-loaded", "round-robin".
    """
    lease_pages: int = 8
    """Pages that an inferlet's lease grows by, ahead of need."""
    prefix_cache: bool = True
    """Whether inferlets of a tenant find what others have computed, and what they themselves have: pages that hold what
    a pass is to compute take its place.  Pages that nobody has stay until the space is wanted."""
    tenant_pin_share: float = 0.5
    """Largest part of the KV pool that the pinned exports of one tenant may hold."""
    pin_share: float = 0.75
    """Largest part that those of all tenants together may hold: the rest is left to who computes."""
    child_ceiling: int = 256
    """No child is launched while so many inferlets run on the engine: a family that grows without end leaves room."""
    http_hosts: tuple[str, ...] = ()
    """Hosts that inferlets may ask over HTTP, if their manifests name them too: "api.example.org", "*.example.org",
    "example.org:8080", "*" (all, at their default ports), "*:*" (all, at any port).  None at first."""
    http_private: bool = False
    """Whether those may have private addresses (loopback, link-local, RFC 1918, ...)."""
    mcp: dict[str, Any] = field(default_factory=dict)
    """MCP servers by name: {"command": [...], "env": {...}} or {"url": "...", "headers": {...}}."""
    store_path: str = ""
    """File of the key-value store of tenants; "": in memory, for as long as the engine lives."""
    registry_path: str = ""
    """Folder of installed programs; "": for as long as the engine lives."""
    registry_programs: int = 1000
    """Installed programs, each version counted."""
    registry_bytes: int = 256 * MIB
    """What they take in all."""
    detached: bool = False
    """Outlive the driver that starts the engine, until somebody shuts it down.  Otherwise it ends with that driver."""
    start_timeout_s: float = 120.0
    log_level: str = "info"
    log_format: str = "text"
    """"text", or "json": a line of JSON for each entry of the log, of actors too."""
    ray_metrics_s: float = 0.0
    """Ray's metrics agent is told the engine's metrics so often; 0: never."""
    trace_share: float = 0.0
    """Part of the launches that are traced without their asking for it; 1: all."""

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, ("auto", "fiber", "thread"))
        check_choice("transport", self.transport, ("socket", "tcp", "ray"))
        check_choice("group_policy", self.group_policy, ("content", "least-loaded", "round-robin"))
        check_choice("log_level", self.log_level.lower(), ("debug", "info", "warning", "error", "critical"))
        if not 0 < self.heartbeat_s <= self.lost_after_s / 2:
            raise ConfigError(
                f"heartbeat_s is above 0 and at most half of lost_after_s ({self.lost_after_s}); "
                f"given {self.heartbeat_s}"
            )
        check_at_least("max_actors", self.max_actors, max(1, self.actor_pool))
        check_at_least("suspect_after_s", self.suspect_after_s, LEAST_SUSPECT_S)
        check_at_least("replace_after_s", self.replace_after_s, self.suspect_after_s)
        check_numbers(self, "", dict.fromkeys(_AT_LEAST_1, 1))
        check_tenants(self.tenants)
        for name, settings in self.all_models().items():
            check_model(settings, f"models.{name}." if name else "model.")
        check_share("tenant_pin_share", self.tenant_pin_share)
        check_share("pin_share", self.pin_share)
        check_share("trace_share", self.trace_share)
        check_choice("log_format", self.log_format, ("text", "json"))

    def all_models(self) -> dict[str, ModelSettings]:
        """Settings of what is served, by name; "" is the default one.  Raises ConfigError."""
        found = {"": self.model}
        default = self.model.served_name
        if len(self.models) >= MAX_MODELS:
            raise ConfigError(f"an engine serves at most {MAX_MODELS} models; given {len(self.models) + 1}")
        is_known = bool(self.model.name) or Path(self.model.path).is_absolute()
        if self.models and is_known and not re.fullmatch(MODEL_NAME, default):  # see `serving`
            raise ConfigError(
                "beside others the default model's name is from 1 to 100 letters, digits and ._:/-; its folder's is "
                f"{default!r}: give it a `name`"
            )
        for name, given in self.models.items():
            if not re.fullmatch(MODEL_NAME, name):
                raise ConfigError(f"the name of a model is from 1 to 100 letters, digits and ._:/-; given {name!r}")
            if name == default:
                raise ConfigError(f"models.{name}: the default model is named so too; give one of them a `name`")
            values = {"path": given} if isinstance(given, str) else given
            if isinstance(values, ModelSettings):
                values = dataclasses.asdict(values)
            if not isinstance(values, Mapping) or "path" not in values:
                raise ConfigError(f"models.{name} is a path, or a mapping of settings with one; given {given!r}")
            if values.get("adapters"):
                raise ConfigError(f"models.{name}.adapters: adapters are of the default model alone")
            if (own := values.get("name", "")) not in ("", name):
                raise ConfigError(f"models.{name}.name is {name!r}, or not given; given {own!r}")
            found[name] = from_mapping(ModelSettings, {**values, "name": name}, f"models.{name}.")
        return found

    def serving(self, name: str) -> Config:
        """The same with the model of that name as the default one, and the default one among the others."""
        if not name:
            return self
        found = self.all_models()
        first, default = found.pop(name), found.pop("")
        others = {default.served_name: dataclasses.replace(default, name="", adapters={}), **found}
        return dataclasses.replace(
            self, model=first, models={key: dataclasses.asdict(one) for key, one in others.items()}
        )

    def tenant(self, name: str) -> TenantSettings:
        """What the tenant may have."""
        return settings_of(self.tenants, name)

    def limits_of(self, tenant: str) -> Limits:
        """The most that a launch of the tenant may ask for: `limits`, with its own quotas in their place."""
        own = self.tenant(tenant)
        given = {name: value for name in ("store_bytes", "broker_bytes") if (value := getattr(own, name))}
        return dataclasses.replace(self.limits, **given) if given else self.limits


_AT_LEAST_1 = ("inferlets_per_actor", "worker_threads", "lease_pages", "turn_timeout_s", "max_waiting_launches")


def from_environment(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The nested mapping that `PIERAY_*` variables describe: `PIERAY_LIMITS_PAGES=8` is limits.pages."""
    environ = os.environ if environ is None else environ
    found: dict[str, Any] = {}
    for f in dataclasses.fields(Config):
        group = {"model": ModelSettings, "limits": Limits}.get(f.name)
        if group is None:
            if (text := environ.get(f"PIERAY_{f.name.upper()}")) is not None:
                found[f.name] = text
            continue
        for g in dataclasses.fields(group):
            if (text := environ.get(f"PIERAY_{f.name.upper()}_{g.name.upper()}")) is not None:
                found.setdefault(f.name, {})[g.name] = text
    return found


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other; later ones win."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                below = out.get(key)
                out[key] = merge(below if isinstance(below, Mapping) else {}, value)
            else:
                out[key] = value
    return out


def load(overrides: Mapping[str, Any] | None = None) -> Config:
    """Defaults, then `PIERAY_*`, then `overrides`."""
    return from_mapping(Config, merge(from_environment(), overrides or {}))
