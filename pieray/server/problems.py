"""What goes wrong over HTTP, in the shape of OpenAI's API."""

from __future__ import annotations

import math
from typing import Any

from pieray.errors import (
    Cancelled,
    ConfigError,
    DeviceLost,
    EngineError,
    GuestFailed,
    GuestTrapped,
    NotFound,
    Overloaded,
    PeerLost,
    PierayError,
    Unsupported,
)

RETRY_S = 1.0
"""After so long a request that found no place is worth another try, where nobody knows better."""

MOST_NAME = 100
"""Characters of a field's name in an error: a client may have made it up."""


class HttpProblem(Exception):
    """A request that is answered with an error.  `param`: the field that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's shape: {"error": {message, type, param, code}}."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(math.ceil(self.retry_after_s))} if self.retry_after_s else {}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class BadField(HttpProblem):
    """A field that is not there, is not what it may be, or asks for what there is not."""

    def __init__(self, name: str, message: str, *, code: str | None = None) -> None:
        name = name[:MOST_NAME]
        super().__init__(400, f"{name}: {message}", param=name, code=code)


def problem_of(error: PierayError) -> HttpProblem:
    """What an error of the engine, or of the inferlet that serves the request, is over HTTP.

    What a program says of itself (its traceback) stays with the operator, who sees it in the log.
    """
    text = error.message.partition("\n")[0]
    if isinstance(error, Overloaded):
        return HttpProblem(429, text, code=error.code, retry_after_s=error.retry_after_s or RETRY_S)
    if isinstance(error, (EngineError, PeerLost, DeviceLost)):
        return HttpProblem(503, text, code=error.code, retry_after_s=error.retry_after_s or RETRY_S)
    if isinstance(error, (GuestFailed, GuestTrapped)):
        return HttpProblem(500, f"the program failed: {text}", code=error.code)
    if isinstance(error, Cancelled):
        return HttpProblem(503, f"the run was ended: {text}", code=error.code)
    if isinstance(error, Unsupported):
        return HttpProblem(400, text, code=error.code)
    status = {ConfigError: 400, NotFound: 404}.get(type(error), error.http_status)
    return HttpProblem(status, text, code=error.code)
