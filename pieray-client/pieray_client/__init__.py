"""Runs programs on a pieray server over HTTP.

    from pieray_client import Client

    with Client("http://localhost:8000", api_key="pk-...") as client:
        print(client.run("text-completion", prompt="12+7="))
        with client.launch("chat") as run:
            run.send("12+7=?")
            for event in run.events():
                print(event)

`AsyncClient` and `AsyncRun` are the same for an event loop.
"""

from pieray_client.aio import AsyncClient, AsyncRun
from pieray_client.errors import (
    AuthenticationFailed,
    Cancelled,
    ClientError,
    Conflict,
    ConnectionFailed,
    Denied,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProgramFailed,
    RunFailed,
    ServerFailed,
    TimedOut,
    Unavailable,
)
from pieray_client.events import Data, Event, FilePart, Log, Result, Text
from pieray_client.sync import Client, Run
from pieray_client.wire import ProgramFacts, RunState, SentFile

__all__ = [
    "AsyncClient",
    "AsyncRun",
    "AuthenticationFailed",
    "Cancelled",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "Data",
    "Denied",
    "Event",
    "FilePart",
    "InvalidRequest",
    "Log",
    "NotFound",
    "Overloaded",
    "ProgramFacts",
    "ProgramFailed",
    "Result",
    "Run",
    "RunFailed",
    "RunState",
    "SentFile",
    "ServerFailed",
    "Text",
    "TimedOut",
    "Unavailable",
]
