"""pieray: a programmable serving system for language models.

    import pieray
    with pieray.start() as engine:
        process = engine.launch("text-completion", {"prompt": "12+7="})
        for event in process:
            print(event.text, end="")
        print(process.result(timeout=30))

Importing this package imports neither Ray nor torch.
"""

import pkgutil

# A source tree, such as the working folder of a Ray job, has `actors` and `kernels` beside `pieray`, not inside: what
# is not here is taken from the installed package.
__path__ = pkgutil.extend_path(__path__, __name__)

from pieray.config import Config, Limits, ModelSettings
from pieray.engine import Engine, connect, start
from pieray.errors import PierayError
from pieray.process import Event, Process
from pieray.programs import ProgramSource

__version__ = "0.1.0"

__all__ = [
    "Config", "Engine", "Event", "Limits", "ModelSettings", "PierayError", "Process", "ProgramSource", "__version__",
    "connect", "start",
]  # fmt: skip
