"""Answers that are JSON."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from pieray.server.json_texts import encoded


def json_reply(value: object, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Response:
    return encoded_reply(encoded(value), headers, status=status)


def encoded_reply(body: bytes, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Response:
    """Of JSON that is encoded already."""
    return Response(body, status, headers, "application/json")
