"""What all actors share: Ray options, names, process set-up."""

from __future__ import annotations

import logging
from typing import Any

from pieray.config import Config

TRANSPORT_GROUP = "transport"


def actor_options(config: Config) -> dict[str, Any]:
    """Every actor is named, detached (it outlives its driver) and takes no CPU slot: the Supervisor places work."""
    options: dict[str, Any] = {
        "num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 16,
        "namespace": config.namespace, "lifetime": "detached",
    }  # fmt: skip
    if config.transport == "ray":
        options["concurrency_groups"] = {TRANSPORT_GROUP: 64}
    return options


def set_up_process(config: Config) -> None:
    """Logging of an actor process."""
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")


def actor_name(role: str, number: int | None = None) -> str:
    """Name of an engine's actor in its namespace."""
    return f"pieray.{role}" if number is None else f"pieray.{role}.{number}"
