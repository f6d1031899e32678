"""One object answers with all handler groups: none may take a name of another's."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict

from pieray.host.handlers import GuestHandlers
from pieray.host.handlers.base import HandlerGroup


def names_of(group: type) -> set[str]:
    """Methods that a group defines, and attributes that it sets on itself."""
    found = {name for name in vars(group) if not name.startswith("__")}
    for node in ast.walk(ast.parse(inspect.getsource(group))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    return found


def test_no_two_groups_share_a_name() -> None:
    groups = [g for g in GuestHandlers.__mro__ if issubclass(g, HandlerGroup) and g is not GuestHandlers]
    owners = defaultdict(list)
    for group in groups:
        for name in names_of(group):
            owners[name].append(group.__name__)
    assert len(groups) > 15
    assert {name: where for name, where in owners.items() if len(where) > 1} == {}
