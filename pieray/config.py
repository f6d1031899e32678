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
from pieray.mapping import from_mapping
from pieray.tenants import TenantSettings, check_tenants, settings_of

MIB = 1 << 20
LEAST_SUSPECT_S = 2.0
"""Longer than what `pieray.concurrency.stalls` takes for a stall: a launch that is given up must not start any more."""
MAX_COHORT_WAIT_S = 60.0
MAX_REPLICAS = 256
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
class ModelSettings:
    """One served model and its device group."""

    path: str = "pie-tiny"
    """Folder with config.json, *.safetensors and tokenizer.json, or the name of an embedded model."""
    name: str = ""
    """By which programs and clients ask for it; "": the folder's name."""
    device: str = "auto"
    """"auto" (cuda where there is one), "cpu", "cuda", "cuda:1"."""
    replicas: int = 1
    """Device groups that serve it, each with its weights and its pool of pages on a device of its own; 0: one for each
    GPU of the cluster that no other model takes."""
    gpu_share: float = 1.0
    """Part of a GPU that a replica takes, where there is one: replicas whose parts add up to 1 may share it."""
    dtype: str = "auto"
    """"auto" (the checkpoint's on cuda, float32 on cpu), "float32", "bfloat16", "float16"."""
    max_context: int = 0
    """Longest context in tokens; 0: the model's `max_position_embeddings`.  Ropes that grow with the text (`dynamic`,
    `longrope`) have the frequencies of a text of this length, whatever the length of a text."""
    page_size: int = 16
    num_pages: int = 0
    """KV pages in the pool; 0 sizes it from `kv_memory_bytes`."""
    kv_memory_bytes: int = 0
    """Device memory of the KV pool; 0: 256 MiB on a CPU, on a GPU by `gpu_memory_fraction`."""
    gpu_memory_fraction: float = 0.85
    """Of the GPU memory that is free once the weights are loaded, so much is for KV pages, of which there are then
    262,144 at most; the rest is for what steps compute in."""
    kv_dtype: str = "auto"
    """What KV pages hold: "auto", what the model computes in, or "fp8", E4M3 without scales: a byte a number."""
    swap_memory_bytes: int = -1
    """Host memory for KV pages that are swapped out, taken as it is used; 0: nothing is swapped; -1: four times the KV
    pool, and at most a quarter of the memory that is available at the start."""
    max_batch_tokens: int = 2048
    """Tokens that one step computes at most: longer prefills run in chunks."""
    max_batch_requests: int = 256
    cohort_wait_s: float = 0.004
    """How long a step waits at most for inferlets that have just been answered."""
    cuda_graphs: bool = True
    """Replay decode steps as CUDA graphs, captured at first use; of no meaning on a CPU."""
    image_pixels: int = 1 << 24
    """Pixels of an image, of a model that sees; more are refused before any is decoded."""
    adapters: dict[str, Any] = field(default_factory=dict)
    """LoRA adapters by name: a safetensors file, or a folder with adapter_config.json."""
    adapter_bytes: int = 512 * MIB
    """LoRA weights loaded at one time, those that inferlets load for themselves included."""
    threads: int = 0
    """CPU threads of the batcher; 0: one for each 32 MiB of weights, and half of the cores at most, which replicas
    share; the rest is the actors'."""
    bf16_products: str = "auto"
    """How a CPU multiplies with weights of bfloat16: "amx" and "avx512_bf16" (instructions of some processors, which
    round what they multiply to bfloat16), "float32" (on any), "auto" ("amx" where there is, else "float32")."""
    quantization: str = "none"
    """What the matrices of a checkpoint of floats become as they are loaded: "int8" (a scale for each output; rows are
    rounded to int8 too, each over its largest number), "fp8" (E4M3, likewise; on a CPU rows stay as they are), or
    "none"."""

    @property
    def served_name(self) -> str:
        """`name`, or that of the folder, if its path is whole."""
        return self.name or Path(self.path).name


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
        _check_choice("executor", self.executor, ("auto", "fiber", "thread"))
        _check_choice("transport", self.transport, ("socket", "tcp", "ray"))
        _check_choice("group_policy", self.group_policy, ("content", "least-loaded", "round-robin"))
        _check_choice("log_level", self.log_level.lower(), ("debug", "info", "warning", "error", "critical"))
        if not 0 < self.heartbeat_s <= self.lost_after_s / 2:
            raise ConfigError(
                f"heartbeat_s is above 0 and at most half of lost_after_s ({self.lost_after_s}); "
                f"given {self.heartbeat_s}"
            )
        _check_at_least("max_actors", self.max_actors, max(1, self.actor_pool))
        _check_at_least("suspect_after_s", self.suspect_after_s, LEAST_SUSPECT_S)
        _check_at_least("replace_after_s", self.replace_after_s, self.suspect_after_s)
        _check_numbers(self, "")
        check_tenants(self.tenants)
        for name, settings in self.all_models().items():
            _check_model(settings, f"models.{name}." if name else "model.")
        _check_share("tenant_pin_share", self.tenant_pin_share)
        _check_share("pin_share", self.pin_share)
        _check_share("trace_share", self.trace_share)
        _check_choice("log_format", self.log_format, ("text", "json"))

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


def _check_model(settings: ModelSettings, prefix: str) -> None:
    _check_numbers(settings, prefix)
    if settings.replicas > MAX_REPLICAS:
        raise ConfigError(f"{prefix}replicas is at most {MAX_REPLICAS}; given {settings.replicas}")
    _check_choice(f"{prefix}dtype", settings.dtype, ("auto", "float32", "bfloat16", "float16"))
    _check_choice(f"{prefix}bf16_products", settings.bf16_products, ("auto", "amx", "avx512_bf16", "float32"))
    _check_choice(f"{prefix}quantization", settings.quantization, ("none", "int8", "fp8"))
    _check_choice(f"{prefix}kv_dtype", settings.kv_dtype, ("auto", "fp8"))
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", settings.device):
        raise ConfigError(f"{prefix}device is auto, cpu, cuda or cuda:NUMBER; given {settings.device!r}")
    _check_share(f"{prefix}gpu_memory_fraction", settings.gpu_memory_fraction)
    _check_share(f"{prefix}gpu_share", settings.gpu_share)
    if not settings.cohort_wait_s <= MAX_COHORT_WAIT_S:
        raise ConfigError(f"{prefix}cohort_wait_s is from 0 to {MAX_COHORT_WAIT_S:g}; given {settings.cohort_wait_s}")


_AT_LEAST_1 = frozenset(
    {
        "inferlets_per_actor",
        "worker_threads",
        "lease_pages",
        "turn_timeout_s",
        "page_size",
        "max_waiting_launches",
        "max_batch_tokens",
        "image_pixels",
        "max_batch_requests",
    }
)
_LEAST = dict.fromkeys(_AT_LEAST_1, 1) | {"swap_memory_bytes": -1}


def _check_numbers(settings: object, prefix: str) -> None:
    """Every number is at least 0, or what `_LEAST` says."""
    for f in dataclasses.fields(settings):  # type: ignore[arg-type]  # always one of the dataclasses here
        value = getattr(settings, f.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_at_least(prefix + f.name, value, _LEAST.get(f.name, 0))


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}; given {value!r}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:  # NaN neither
        raise ConfigError(f"{name} is from 0 to 1; given {value}")


def _check_at_least(name: str, value: float, least: float) -> None:
    if not value >= least:  # NaN neither
        raise ConfigError(f"{name} is at least {least}; given {value}")


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
