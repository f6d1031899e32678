"""The handler groups are one object: what one of them calls its own, no other may."""

from __future__ import annotations

import ast
import inspect
import textwrap

from pieray.host.handlers import GuestHandlers
from pieray.host.handlers.base import HandlerGroup


def private_names(group: type) -> set[str]:
    """Methods of the group and attributes that it assigns to itself; what the base gives to all is not its own."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(group)))
    assigned = {
        node.attr for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name) and node.value.id == "self"
    }  # fmt: skip
    return {name for name in (*vars(group), *assigned) if not name.startswith("__")}


def test_no_two_groups_have_a_name_in_common() -> None:
    owners: dict[str, str] = dict.fromkeys(private_names(HandlerGroup), "HandlerGroup")
    groups = [g for g in GuestHandlers.__mro__[1:] if issubclass(g, HandlerGroup) and g is not HandlerGroup]
    assert len(groups) > 10
    for group in groups:
        for name in private_names(group):
            assert name not in owners, f"{name} is both {owners[name]}'s and {group.__name__}'s"
            owners[name] = group.__name__
