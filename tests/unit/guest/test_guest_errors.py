"""Errors of handlers keep their class and text, whatever they pass through on their way to a program's `except`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_host import FakeHost
from guest_install import install

import inferlet
from inferlet import Context, Error, InvalidRequest, Plan, Sampler, _host, _raw, errors, forward, kv, queue
from inferlet._running import run
from pieray.errors import error_from
from pieray.wit import api


@contextlib.contextmanager
def plain() -> Iterator[None]:
    yield


@contextlib.asynccontextmanager
async def asynchronous() -> AsyncIterator[None]:
    yield


async def in_with(call: Any) -> None:
    with plain(), contextlib.ExitStack() as stack:
        stack.enter_context(plain())
        call()


async def in_async_with(call: Any) -> None:
    async with asynchronous(), contextlib.AsyncExitStack() as stack, asyncio.timeout(5):
        await stack.enter_async_context(asynchronous())
        call()


async def in_group(call: Any) -> None:
    async def child() -> None:
        call()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
    except BaseExceptionGroup as raised:
        (error,) = raised.exceptions
        raise error from None


async def in_gather(call: Any) -> None:
    async def child() -> None:
        call()

    await asyncio.gather(child(), asyncio.sleep(0))


async def in_generator(call: Any) -> None:
    async def values() -> AsyncIterator[int]:
        yield 1
        call()

    async for _ in values():
        pass


PATHS = {found.__name__: found for found in (in_with, in_async_with, in_group, in_gather, in_generator)}


def calls(sampler: Sampler) -> dict[str, tuple[str, Any]]:
    """The handler that fails, and a function of the SDK that calls it while it holds something open."""
    line, pages = queue.create(), kv.alloc(1)
    plan = Plan(line, pages, 0, [1], 2)
    step = forward.forward(line, pages, 0, [1, 2])
    return {
        "a plan is made": ("plans_create", lambda: Plan(line, pages, 0, [1], 2, sampler)),
        "a plan's sampler is set": ("plans_set_sampler", lambda: plan.set_sampler(sampler)),
        "drafts are verified": ("forward_verify", lambda: forward.verify(line, pages, 0, [1], [2], sampler=sampler)),
        "a token is sampled": ("forward_sample_with", lambda: step.sample(sampler=sampler)),
        "a chain is opened": ("samplers_allow", sampler.handle),
        "a page is allocated": ("kv_alloc", lambda: kv.alloc(1)),
    }


HANDLERS = ("plans_create", "plans_set_sampler", "forward_verify", "forward_sample_with", "samplers_allow", "kv_alloc")


@pytest.mark.parametrize("code", api().enums["error-code"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_every_error_keeps_its_class_on_every_path(path: Any, code: str) -> None:
    class Failing(FakeHost):
        failing = ""

    for name in HANDLERS:
        real = getattr(FakeHost, name, None)

        def handler(self: Any, *args: Any, _name: str = name, _real: Any = real) -> Any:
            if self.failing == _name:
                raise error_from(code, "as the host says")
            return _real(self, *args)

        setattr(Failing, name, handler)
    host = install(Failing())
    sampler = Sampler(temperature=1.0, seed=1, typical_p=0.5, allowed=[1, 2, 3])

    async def main() -> None:
        for what, (name, call) in calls(sampler).items():
            Failing.failing = name
            with pytest.raises(Error) as raised:
                await path(call)
            assert type(raised.value) is errors.BY_CODE[code], what
            assert raised.value.message == str(raised.value) == "as the host says"
            Failing.failing = ""
        assert not host.samplers, "what was open is given back"

    run(main())


def exceptions() -> list[type[BaseException]]:
    public = [getattr(inferlet, name) for name in inferlet.__all__]
    modules = [inferlet, errors, *filter(inspect.ismodule, public)]
    found = {v for m in modules for v in vars(m).values() if inspect.isclass(v) and issubclass(v, BaseException)}
    mine = [kind for kind in found if kind.__module__.startswith("inferlet.") and kind is not _raw.Err]
    return sorted(mine, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
def test_no_exception_of_the_sdk_is_frozen(kind: type[BaseException]) -> None:
    error = kind("text")
    error.__traceback__ = None
    error.__context__ = error.__cause__ = None
    error.add_note("a note")


def test_what_the_bindings_raise_does_not_leave_the_bindings() -> None:
    """componentize-py's own exception is a frozen dataclass: contextlib fails on it with FrozenInstanceError."""
    raised = _raw.Err(SimpleNamespace(code=SimpleNamespace(name="INVALID"), message="no"))
    with pytest.raises(AttributeError):
        raised.__traceback__ = None  # type: ignore[misc]

    install(FakeHost())

    async def main() -> None:
        async with Context("abc") as ctx:
            with pytest.raises(InvalidRequest):
                Plan(ctx.sequence.queue, [], 0, [2**31], 5, Sampler())
            with pytest.raises(errors.BadHandle):
                _host.kv.free([12345])

    run(main())
