"""From a request for a run to the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import HTTPConnection

from pieray.errors import ConfigError
from pieray.server.bodies import worked_out
from pieray.server.guard import caller_of, trace_of
from pieray.server.models import main_named
from pieray.server.problems import BadField
from pieray.server.runs.kept import Run, Runs
from pieray.server.runs.wanted import Wanted, read_run
from pieray.server.tenants import Tenants


async def read_wanted(tenants: Tenants, asker: HTTPConnection, name: str, body: Mapping[str, Any]) -> Wanted:
    """What a body asks for, its input checked against the program's `main`.  Raises HttpProblem 400, 404."""
    wanted = await worked_out(asker, read_run, body)
    wanted.options["trace"] = trace_of(asker) or wanted.options["trace"]
    main = await main_named(await tenants.engine_of(caller_of(asker)), name)
    try:
        await worked_out(asker, main.check, wanted.input)
    except ConfigError as error:
        raise BadField("input", error.message) from None
    return wanted


async def launch(runs: Runs, asker: HTTPConnection, name: str, body: Mapping[str, Any], wanted: Wanted) -> Run:
    """A run of it; with an idempotency key that was given before, the run that this has.  Raises HttpProblem."""
    return await runs.run_for(caller_of(asker), asker.headers.get("idempotency-key", ""), name, body, wanted)
