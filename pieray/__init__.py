"""pieray: a programmable serving system for language models.

    import pieray
    with pieray.start() as engine:
        process = engine.launch("text-completion", {"prompt": "12+7="})
        for event in process:
            print(event.text, end="")
        print(process.result(timeout=30))

`Client` and `AsyncClient` are those of `pieray_client`, which ask a server over HTTP (`pieray serve`).

Importing this package imports neither Ray nor torch, nor any of its own modules before they are used.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pieray.bring_up import start
    from pieray.client.connecting import connect
    from pieray.client.engine import Engine
    from pieray.client.process import Event, Process
    from pieray.config import Config, Limits
    from pieray.errors import PierayError
    from pieray.model_settings import ModelSettings
    from pieray.programs.launches import LaunchRequest
    from pieray.programs.sources import ProgramSource
    from pieray_client import AsyncClient, Client

# A source tree, such as the working folder of a Ray job, has `actors` and `kernels` beside `pieray`, not inside: what
# is not here is taken from the installed package.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "Config",
    "Engine",
    "Event",
    "LaunchRequest",
    "Limits",
    "ModelSettings",
    "PierayError",
    "Process",
    "ProgramSource",
    "__version__",
    "connect",
    "start",
]

_MODULES = {
    "Config": "config",
    "Limits": "config",
    "ModelSettings": "model_settings",
    "Engine": "client.engine",
    "connect": "client.connecting",
    "start": "bring_up",
    "LaunchRequest": "programs.launches",
    "PierayError": "errors",
    "Event": "client.process",
    "Process": "client.process",
    "ProgramSource": "programs.sources",
}


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from its module, when it is first used (PEP 562)."""
    if name in ("Client", "AsyncClient"):
        return getattr(importlib.import_module("pieray_client"), name)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
