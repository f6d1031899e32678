"""What InferletActors ask of exports, by message: the values that they are answered with."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from pieray.leases.exports import Export, ExportTable, Owner, Quota
from pieray.leases.ledger import Holder
from pieray.messages import ExportPages, ImportPages, ListExports, Unexport

ExportCall = ExportPages | ImportPages | Unexport | ListExports


def answer(table: ExportTable, holder: Holder, call: ExportCall, now: float) -> Any:
    """Serve a call; returns the value of its Completed.  Raises what the table raises."""
    owner = Owner(call.tenant, call.user)
    if isinstance(call, ExportPages):
        _put(table, holder, owner, call, now)
        return None
    if isinstance(call, ImportPages):
        found = table.open(holder, owner, call.name)
        pages = np.asarray(found.pages, "<u4").tobytes()
        return [pages, found.written, found.num_tokens, found.meta, found.access, found.owner.user]
    if isinstance(call, Unexport):
        if call.is_checking:
            table.check_removal(owner, call.access, call.name)
        else:
            table.remove(owner, call.access, call.name)
        return None
    return json.dumps([_facts(table, export, now) for export in table.visible(owner, call.prefix)])


def _put(table: ExportTable, holder: Holder, owner: Owner, call: ExportPages, now: float) -> None:
    export = Export(
        call.name,
        call.access,
        owner,
        np.frombuffer(call.pages, "<u4").tolist(),
        call.written,
        call.num_tokens,
        call.meta,
        now + call.pin_s if call.pin_s else -math.inf,
        now + call.ttl_s if call.ttl_s else math.inf,
    )
    table.put(holder, export, Quota(*call.quota), replace=call.is_replacing, now=now)


def all_facts(table: ExportTable, now: float) -> list[dict[str, Any]]:
    """Every export, for whoever runs the engine: as an inferlet's list has it, with the tenant."""
    return [{"tenant": export.owner.tenant, **_facts(table, export, now)} for export in table.all()]


def _facts(table: ExportTable, export: Export, now: float) -> dict[str, Any]:
    is_timed = export.expires_at != math.inf
    return {
        "name": export.name,
        "access": export.access,
        "owner": export.owner.user,
        "num_pages": len(export.pages),
        "num_tokens": export.num_tokens,
        "pinned": export.is_pinned(now),
        "expires_in_ms": max(0, round((export.expires_at - now) * 1000)) if is_timed else None,
        "num_importers": table.num_importers(export),
    }
