"""What can go wrong, a class each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of all.

    `code`: the server's word for it; `status`: of HTTP, 0 if none came; `param`: the field that it is about."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int = 0,
        param: str | None = None,
        retry_after_s: float = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.param = param
        self.retry_after_s = retry_after_s
        """After so many seconds it is worth trying again; 0: nobody knows."""


class ConnectionFailed(ClientError):
    """The server cannot be reached, or has hung up."""


class TimedOut(ClientError):
    """It took longer than the `timeout` that was given; a run goes on."""


class InvalidRequest(ClientError):
    """Something in the request is wrong or too large (status 400, 408, 413, 415, 431)."""


class AuthenticationFailed(ClientError):
    """No key, or none that there is (status 401)."""


class Denied(ClientError):
    """The key may not do this (status 403)."""


class NotFound(ClientError):
    """No such run, program or file (status 404)."""


class Conflict(ClientError):
    """The run has ended, or an idempotency key was given for another request (status 409)."""


class Overloaded(ClientError):
    """The engine is full, or a rate of the key is used up (status 429)."""


class ServerFailed(ClientError):
    """The server failed (status 500 and above)."""


class Unavailable(ServerFailed):
    """The engine is gone, or the server is about to stop (status 503)."""


class RunFailed(ClientError):
    """The run has ended with an error; `code` says which: quota, out-of-pages, deadline, peer-lost, ..."""


class ProgramFailed(RunFailed):
    """The program raised an error or trapped (code guest-failed, guest-trapped)."""


class Cancelled(RunFailed):
    """The run was ended: killed, or left by its client for longer than it is kept."""


_BY_STATUS: Mapping[int, type[ClientError]] = {
    401: AuthenticationFailed,
    403: Denied,
    404: NotFound,
    409: Conflict,
    429: Overloaded,
    503: Unavailable,
}
_BY_CODE: Mapping[str, type[RunFailed]] = {
    "guest-failed": ProgramFailed,
    "guest-trapped": ProgramFailed,
    "cancelled": Cancelled,
}


def of_answer(status: int, body: bytes, headers: Mapping[str, str]) -> ClientError:
    """The error that an answer tells; its body is OpenAI's {"error": {...}}, if the server has sent it."""
    found: dict[str, Any] = {}
    try:
        parsed = json.loads(body)
        found = parsed["error"] if isinstance(parsed["error"], dict) else {}
    except (ValueError, KeyError, TypeError):
        pass
    kind = _BY_STATUS.get(status, ServerFailed if status >= 500 else InvalidRequest)
    retry_after = headers.get("retry-after", "")
    return kind(
        str(found.get("message") or f"the server has answered with status {status}"),
        code=found.get("code"),
        status=status,
        param=found.get("param"),
        retry_after_s=float(retry_after) if retry_after.isdigit() else 0.0,
    )


def of_run(problem: Mapping[str, Any]) -> RunFailed:
    """The error that a run has ended with."""
    code = str(problem.get("code"))
    return _BY_CODE.get(code, RunFailed)(str(problem.get("message")), code=code)
