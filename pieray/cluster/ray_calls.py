"""Calls to Ray actors with a deadline, and their failures as pieray's errors.  Imports Ray only when called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pieray.concurrency.deadlines import Deadline
from pieray.errors import ActorGone, EngineError, NoAnswer, PierayError


def ask_actor(actor: Any, method: str, *args: Any, timeout_s: float) -> Any:
    """Call an actor's method and wait, a day at most: its PierayErrors come through, its death and silence are
    EngineErrors."""
    return await_answer(begin_call(actor, method, *args), method, timeout_s=timeout_s)


def begin_call(actor: Any, method: str, *args: Any) -> Any:
    """Call an actor's method; what it answers is waited for with `await_answer`.  Raises EngineError."""
    try:
        return getattr(actor, method).remote(*args)
    except Exception as error:
        # a bare Exception is what Ray raises for an actor of a cluster that this process has left
        raise EngineError(f"the engine cannot be asked to {method}: {error}") from error


def asker(actor: Any) -> Callable[..., Callable[[float], Any]]:
    """The `begin` of a `pieray.client.controller_calls.ControllerCalls`, for a Ray handle."""

    def begin(method: str, *args: Any) -> Callable[[float], Any]:
        return _Answer(begin_call(actor, method, *args), method)

    return begin


class _Answer:
    """Waits for the answer of a call.  Ray is to be silent of an error that nobody waits for any more."""

    def __init__(self, ref: Any, method: str) -> None:
        self._ref = ref
        self._method = method
        self._is_read = False

    def __call__(self, timeout_s: float) -> Any:
        try:
            return await_answer(self._ref, self._method, timeout_s=timeout_s)
        except NoAnswer:
            if not self._is_read:
                self._is_read = True
                self._ref.future().add_done_callback(lambda done: done.exception())
            raise


def await_answer(ref: Any, what: str, *, timeout_s: float) -> Any:
    """Wait for a call that is under way; `what` names it in errors."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

    try:
        return ray.get(ref, timeout=Deadline(timeout_s).left_s())
    except RayTaskError as error:
        if isinstance(error.cause, NoAnswer):  # to what the actor has asked others: it has answered itself
            raise EngineError(error.cause.message) from None
        if isinstance(error.cause, PierayError):
            raise error.cause from None
        raise EngineError(f"{what} failed in the engine: {_one_line(error.cause)}") from error
    except GetTimeoutError as error:
        raise NoAnswer(f"the engine did not answer {what} within {timeout_s:.3g} s") from error
    except RayActorError as error:
        why = f": {_one_line(error)}" if error.actor_init_failed else ""  # else Ray guesses, in many lines
        raise ActorGone(f"the engine's actor that was asked to {what} is gone{why}") from error
    except RayError as error:
        raise EngineError(f"Ray failed while the engine was asked to {what}: {error}") from error


def _one_line(cause: BaseException) -> str:
    """What a person can use of it; the actor's traceback is in the chain, and in Ray's logs."""
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
