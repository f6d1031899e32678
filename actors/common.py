"""What all actors share: Ray options, names, process set-up."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pieray.concurrency.stalls import Stalls
from pieray.config import Config
from pieray.json_log import JsonLines

F = TypeVar("F", bound=Callable[..., Any])
TRANSPORT_GROUP = "transport"
CONTROL_GROUP, CONTROL_THREADS = "control", 8
"""Methods of this group answer within milliseconds, however many others are under way."""

log = logging.getLogger(__name__)


def control(method: F) -> F:
    """Marks an actor's method as one of CONTROL_GROUP."""
    marked: F = ray.method(concurrency_group=CONTROL_GROUP)(method)
    return marked


def create_actor(
    cls: type,
    config: Config,
    name: str,
    *args: Any,
    num_gpus: float = 0.0,
    node: str | None = None,
    max_concurrency: int = 16,
) -> Any:
    """A new actor of the engine: named, so that other drivers find it, without a CPU slot; returns its handle.

    `node`: the id of the node where it lives, or nowhere; None: Ray chooses.  It ends with whoever creates it (the
    Controller with its driver, the others with the Controller) unless the engine is detached.  Raises
    ActorAlreadyExistsError.
    """
    groups = {CONTROL_GROUP: CONTROL_THREADS}
    if config.transport == "ray":
        groups[TRANSPORT_GROUP] = 64
    actor = ray.remote(num_cpus=0, num_gpus=num_gpus, max_restarts=0, max_task_retries=0, concurrency_groups=groups)(
        cls
    )
    lifetime = "detached" if config.detached else "non_detached"
    options: dict[str, Any] = {
        "name": name,
        "namespace": config.namespace,
        "max_concurrency": max_concurrency,
        "lifetime": lifetime,
    }
    if node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    return actor.options(**options).remote(dataclasses.asdict(config), *args)


COLLECT_AT = 10_000
"""New objects, from which on the youngest are looked through for cycles."""


def keep_heap() -> None:
    """What this process has so far it has for good: collections of garbage need not look through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AT)


TICK_S = 0.25
EXIT_FAILED = 70


def set_up_process(config: Config) -> Stalls:
    """Logging of an actor process, and its ends: with the node's raylet, its parent, and when a thread of ours dies.

    Ray ends its workers with their raylet too, but not one that is in the middle of a graceful exit and waits for a
    method.  A thread that ends by an exception would leave others waiting for it; a process that ends is replaced.
    Returns when the process has stood still.
    """
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    if config.log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    threading.excepthook = _end_process
    stalls = Stalls()
    threading.Thread(target=_watch_process, args=(os.getppid(), stalls), name="pieray-watch", daemon=True).start()
    return stalls


def _watch_process(parent: int, stalls: Stalls) -> None:
    while os.getppid() == parent:
        if stall_s := stalls.tick():
            log.warning("this process stood still for %.1f s", stall_s)
        time.sleep(TICK_S)
    os._exit(1)


def _end_process(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else ""
    log.critical("thread %s failed", name, exc_info=args.exc_value)
    if name.startswith("pieray-"):  # others are of libraries: nobody of ours waits for them
        os._exit(EXIT_FAILED)
