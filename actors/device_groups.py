"""All device groups of an engine: those of each model that it serves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from pieray.actors.device_group import bring_up
from pieray.actors.hosts import Hosts
from pieray.actors.kept_adapters import KeptAdapters
from pieray.actors.members import Member, Members
from pieray.actors.model_groups import ModelGroups
from pieray.actors.records import Restarts
from pieray.config import Config
from pieray.errors import EngineError, NotFound, PierayError


class DeviceGroups:
    """Thread-safe.  Which models there are never changes."""

    def __init__(
        self,
        config: Config,
        members: Members,
        hosts: Hosts,
        *,
        token: str,
        restarts: Restarts,
        num_groups: Mapping[str, int] | None = None,
    ) -> None:
        """`num_groups`: of each model, "" the default one; absent: as many as its settings say, or one."""
        counts, numbers = num_groups or {}, itertools.count()
        self._models = {
            name: ModelGroups(
                name,
                config,
                members,
                hosts,
                numbers,
                token=token,
                restarts=restarts,
                num_groups=counts.get(name) or settings.replicas or 1,
            )
            for name, settings in config.all_models().items()
        }
        self._default = self._models[""]

    def of(self, name: str) -> ModelGroups:
        """Of the model of that name, "" for the default one.  Raises NotFound."""
        found = self._models.get(name)
        if found is None:
            found = next((one for one in self._models.values() if one.served_name == name), None)
        if found is None:
            names = ", ".join(one.served_name for one in self._models.values())
            raise NotFound(f"no model is named {name!r}; served: {names}")
        return found

    # --- life ------------------------------------------------------------------------------------

    def bring_up(self) -> None:
        """Bring all up, side by side; raises what went wrong with the first that could not be."""
        bring_up([group for one in self._models.values() for group in one.groups])

    def keep(self) -> None:
        """From now on, replace those that die."""
        for one in self._models.values():
            one.keep()

    def scale(self, num_groups: int, drain_s: float, model: str = "") -> None:
        """See `ModelGroups.scale`; raises NotFound too."""
        self.of(model).scale(num_groups, drain_s)

    def stop(self) -> None:
        """Bring none up any more, and wait for none that is to go."""
        for one in self._models.values():
            one.stop()

    def lost(self, member: Member) -> bool:
        """A member has died; whether it was one of a group, which is replaced then."""
        return any(one.lost(member) for one in self._models.values())

    # --- facts -----------------------------------------------------------------------------------

    def running(self) -> list[Member]:
        """The ResourceManager and the Batcher of each that runs."""
        return [member for one in self._models.values() for member in one.running()]

    @property
    def failure(self) -> str | None:
        """Why no device group of the default model can be used at present; None while one can, or is being replaced in
        time."""
        return self._default.failure

    def models(self) -> list[dict[str, Any]]:
        """See `ModelGroups.facts`; the default one first."""
        return [facts for one in self._models.values() if (facts := one.facts()) is not None]

    def name_of(self, member: Member) -> str:
        """Of the model that the group of this member serves."""
        return self._models[member.model].served_name

    # --- work on them ----------------------------------------------------------------------------

    @property
    def adapters(self) -> KeptAdapters:
        """Those of the default model: no other one has any."""
        return self._default.adapters

    def load_adapter(self, file: dict[str, Any], data: bytes, owner: str) -> dict[str, Any]:
        """See `ModelGroups.load_adapter`."""
        return self._default.load_adapter(file, data, owner)

    def unload_adapter(self, name: str, owner: str) -> None:
        """See `ModelGroups.unload_adapter`."""
        self._default.unload_adapter(name, owner)

    def exports(self) -> list[dict[str, Any]]:
        """Facts of the exports of KV pages, of all groups; `group`: which has the pages, `model`: whose they are.
        Raises EngineError while there is none."""
        found: list[dict[str, Any]] = []
        for one, group, rows in self._ask_pages("exports"):
            found += [{**row, "group": group, "model": one.served_name} for row in rows]
        return sorted(found, key=lambda row: (row["name"], row["group"]))

    def drop_export(self, name: str, access: str, tenant: str, user: str) -> dict[str, Any]:
        """Take an export away, of the first group that has one so named; whose it was.  Raises NotFound, and
        InvalidRequest if several of that group match."""
        dropped: dict[str, Any]
        for _, _, dropped in self._ask_pages("drop_export", name, access, tenant, user):
            return dropped
        raise AssertionError("unreachable: what went wrong was raised")

    def _ask_pages(self, method: str, *args: Any) -> Iterator[tuple[ModelGroups, int, Any]]:
        """The model, the number of the group, and what each ResourceManager answers; those that have nothing to say
        are left out, if any has."""
        failures: list[PierayError] = []
        has_any = False
        for model, group in [(one, group) for one in self._models.values() for group in one.groups]:
            try:
                found = group.ask_pages(method, *args)
            except (EngineError, NotFound) as error:
                failures.append(error)
                continue
            has_any = True
            yield model, group.number, found
        if not has_any:
            raise next((error for error in failures if isinstance(error, NotFound)), failures[0])

    def steps(self, instance_id: str) -> list[dict[str, Any]]:
        """Steps that a traced inferlet has taken part in; none of a Batcher that is gone."""
        return [step for one in self._models.values() for step in one.steps(instance_id)]
