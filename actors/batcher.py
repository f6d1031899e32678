"""Batcher: the Ray actor that owns a device group's model, its KV page pool and its step loop.

What computes is imported when the model is loaded: the Controller imports this module too, and has no use for torch.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from pieray.actors.common import EXIT_FAILED, control
from pieray.actors.serving import ServingActor
from pieray.assets import model_folder
from pieray.errors import DeviceLost
from pieray.model_settings import ModelSettings
from pieray.models.adapter_file import AdapterFile, read_adapter
from pieray.transport import Connection, Endpoint, Service, connect

if TYPE_CHECKING:
    from pieray.sched.loop import StepLoop

EXIT_DEVICE_LOST = 71


class Batcher(ServingActor):
    """Shell around `StepLoop`."""

    _loop: StepLoop | None = None

    def load(self) -> dict[str, Any]:
        """Load the model; returns its facts and tokenizer as plain fields.  Raises ModelError."""
        from pieray.models.pooling import Pooling
        from pieray.models.runner import ModelRunner
        from pieray.models.tokenizer import TokenizerSpec
        from pieray.models.warm_up import warm_up
        from pieray.sched.calibration import calibrate
        from pieray.sched.core import BatcherCore
        from pieray.sched.costs import CostModel
        from pieray.sched.loop import StepLoop

        settings, tenant = self.config.model, self.config.tenant
        folder = model_folder(settings.path)
        runner = ModelRunner.load(
            folder,
            device=_device(settings),
            dtype=_dtype(settings),
            num_pages=settings.num_pages or None,
            page_size=settings.page_size,
            threads=settings.threads,
            kv_bytes=settings.kv_memory_bytes,
            gpu_fraction=settings.gpu_memory_fraction,
            cuda_graphs=settings.cuda_graphs,
            swap_bytes=settings.swap_memory_bytes,
            max_context=settings.max_context,
            bf16_products=settings.bf16_products,
            quantization=settings.quantization,
            kv_dtype=settings.kv_dtype,
            num_sharing=sum(max(1, one.replicas) for one in self.config.all_models().values()),
        )
        if runner.scores is None:  # what scores texts has no steps of rows
            warm_up(runner, settings.max_batch_requests, settings.max_batch_tokens)
        spec = TokenizerSpec.from_folder(folder)
        costs = CostModel(runner.config.vocab_size, runner.config.hidden_size)
        # elsewhere the first step of a size compiles kernels; what scores texts takes no steps of the measured kinds
        if runner.decoder.device.type == "cpu" and runner.scores is None:
            calibrate(runner, settings, spec, costs)
        core = BatcherCore(
            runner,
            settings,
            tokenizer=spec,
            costs=costs,
            num_swap_slots=runner.host_pool.num_slots,
            max_swap_pages=runner.host_pool.max_step_pages,
            weight_of=lambda name: tenant(name).weight,
        )
        core.plans.vocab_size = runner.config.vocab_size
        self._adapters = core.adapters
        self._trace = core.trace
        self._loop = StepLoop(core, on_failure=_end_process)
        info = {
            "name": settings.name or folder.name,
            "architecture": runner.config.family,
            "vocab_size": runner.config.vocab_size,
            "max_context": runner.config.max_position,
            "page_size": runner.pool.page_size,
            "num_pages": runner.pool.num_pages,
            "dtype": runner.dtype,
            "device": str(runner.decoder.device),
            "hidden_size": runner.config.hidden_size,
            "num_layers": runner.config.num_layers,
            "num_heads": runner.config.num_heads,
            "head_dim": runner.config.head_dim,
            "way": runner.way,
            "why": runner.why,
            "image": {} if runner.images is None else runner.images.rules.as_dict(),
            "pooling": dataclasses.asdict(Pooling.from_folder(folder)),
        }
        tokenizer = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
        return {"info": info, "tokenizer": tokenizer, "adapters": self._load_adapters(settings)}

    def _load_adapters(self, settings: ModelSettings) -> list[dict[str, Any]]:
        """Those of the settings, with numbers from 1 up; their facts."""
        facts = []
        for number, (name, path) in enumerate(settings.adapters.items(), 1):
            file = read_adapter(name, path, max_bytes=settings.adapter_bytes)
            facts.append(self._adapters.add(number, file).to_wire())
        return facts

    def add_adapter(self, number: int, file: dict[str, Any], data: bytes, owner: str) -> dict[str, Any]:
        """Load one more; its facts.  Raises ModelError, QuotaExceeded."""
        return self._adapters.add(number, AdapterFile(**file, data=data), owner).to_wire()

    def remove_adapter(self, number: int) -> None:
        """Let it go once no command runs through it."""
        self._adapters.remove(number)

    def open(self, token: str, resource_manager: tuple[Any, ...]) -> tuple[Any, ...]:
        """Begin to step; fences go to the resource manager.  Returns the endpoint for InferletActors."""
        from pieray.sched.fences import FenceLink

        assert self._loop is not None
        endpoint = Endpoint.from_wire(resource_manager)

        def dial(service: Service) -> Connection:
            return connect(endpoint, service, role="batcher", peer_id=self.peer_id, token=token, timeout_s=10.0)

        self._fences = FenceLink(dial, self._loop.lose)
        self._fences.open()
        self._loop.start(self._fences)
        return self.listen(self._loop, token)

    @control
    def steps(self, instance_id: str) -> list[dict[str, Any]]:
        """Steps that a traced inferlet has taken part in; see `StepTrace.steps`."""
        return self._trace.steps(instance_id)

    @property
    def busy_s(self) -> float:
        """How long the step thread has been at its present turn."""
        return self._loop.busy_s if self._loop is not None else 0.0

    @control
    def status(self) -> dict[str, Any]:
        assert self._loop is not None
        links = {"resource-manager": self._fences.status()}
        return {**self.describe(), **self._loop.status(), "links": links}


def _end_process(error: BaseException) -> None:
    """Peers see it by EOF, the Supervisor starts another pair; the log has the reason already."""
    os._exit(EXIT_DEVICE_LOST if isinstance(error, DeviceLost) else EXIT_FAILED)


def _device(settings: ModelSettings) -> str:
    import torch

    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(settings: ModelSettings) -> str | None:
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if _device(settings) == "cpu" else None
