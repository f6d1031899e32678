"""What an inferlet may reach beyond itself and its model: declared in its manifest, denied unless declared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pieray.errors import Denied

_EXAMPLES = {"http": '["HOST"]', "mcp": '["SERVER"]'}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities of one inferlet.  What the engine's own settings do not allow stays denied."""

    http: tuple[str, ...] = ()
    """Host patterns, as `Config.http_hosts`."""
    mcp: tuple[str, ...] = ()
    """Names of MCP servers; "*": all that there are."""
    messaging: bool = False
    store: bool = False
    children: bool = False

    def require(self, name: str) -> None:
        """Raise Denied unless the capability `name` was declared."""
        if not getattr(self, name):
            raise Denied(
                f"{name}: the inferlet does not have this capability; its manifest declares it so: "
                f"[capabilities] {name} = {_EXAMPLES.get(name, 'true')}"
            )

    def within(self, ceiling: Capabilities) -> Capabilities:
        """These, without what `ceiling` lacks: what a child gets of its parent.

        A host pattern is kept if one of the ceiling covers it, ports too; "*" stands for all that the ceiling has.
        """
        kept: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            mine, most = getattr(self, f.name), getattr(ceiling, f.name)
            if isinstance(mine, bool):
                kept[f.name] = mine and most
            elif f.name == "http":
                kept[f.name] = _hosts_within(mine, most)
            else:
                kept[f.name] = most if "*" in mine else mine if "*" in most else tuple(m for m in mine if m in most)
        return Capabilities(**kept)


def _hosts_within(mine: tuple[str, ...], most: tuple[str, ...]) -> tuple[str, ...]:
    from pieray.world.http.policy import covers

    kept = tuple(m for m in mine if any(covers(pattern, m) for pattern in most))
    wide = [m for m in mine if m in ("*", "*:*")]
    return kept if all(m in kept for m in wide) else most


ALL = Capabilities(http=("*:*",), mcp=("*",), messaging=True, store=True, children=True)
"""The ceiling that takes nothing away."""
