"""What all actors share: Ray options, names, process set-up."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from typing import Any, TypeVar

import ray

from pieray.config import Config
from pieray.errors import InvalidRequest
from pieray.messages import Launch, Message, decode

M = TypeVar("M", bound=Message)
TRANSPORT_GROUP = "transport"


def create_actor(cls: type, config: Config, name: str, *args: Any, num_gpus: float = 0.0) -> Any:
    """A new actor of the engine: named, so that other drivers find it, without a CPU slot; returns its handle.

    Its place is the Supervisor's business, not Ray's scheduler's.  It ends with whoever creates it (the Controller
    with its driver, the others with the Controller) unless the engine is detached.  Raises ActorAlreadyExistsError.
    """
    groups = {"concurrency_groups": {TRANSPORT_GROUP: 64}} if config.transport == "ray" else {}
    actor = ray.remote(num_cpus=0, num_gpus=num_gpus, max_restarts=0, max_task_retries=0, **groups)(cls)
    options = {"name": name, "namespace": config.namespace, "max_concurrency": 16,
               "lifetime": "detached" if config.detached else "non_detached"}  # fmt: skip
    return actor.options(**options).remote(dataclasses.asdict(config), *args)


ORPHAN_CHECK_S = 1.0


def set_up_process(config: Config) -> None:
    """Logging of an actor process, and its end when the node's raylet, its parent, is gone.

    Ray ends its workers then too, but not one that is in the middle of a graceful exit and waits for a method.
    """
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    threading.Thread(target=_end_with, args=(os.getppid(),), name="pieray-orphan", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_S)
    os._exit(1)


def actor_name(role: str, number: int | None = None) -> str:
    """Name of an engine's actor in its namespace."""
    return f"pieray.{role}" if number is None else f"pieray.{role}.{number}"


def launch_of(frame: bytes) -> Launch:
    """The Launch that a client has sent; raises ProtocolError, InvalidRequest."""
    return message_of(frame, Launch)


def message_of(frame: bytes, cls: type[M]) -> M:
    """The one message of a frame, with fields of their types; raises ProtocolError, InvalidRequest."""
    messages = decode(frame)
    kind = cls.__name__.lower()
    if len(messages) != 1 or not isinstance(message := messages[0], cls):
        raise InvalidRequest(f"here comes one {cls.__name__} message; {[type(m).__name__ for m in messages]} came")
    for field in dataclasses.fields(cls):
        given = type(getattr(message, field.name)).__name__
        if given != str(field.type).partition("[")[0]:
            raise InvalidRequest(f"{field.name} of a {kind} is {field.type}; given {given}")
    return message
