"""The programs installed on an engine: by name and version, immutable, each name with one owner."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieray.config import Limits
from pieray.errors import Denied, InvalidRequest, NotFound, QuotaExceeded
from pieray.mapping import from_mapping
from pieray.messages import Install, Launch
from pieray.programs.launches import filled_with
from pieray.programs.manifest import Manifest, version_key
from pieray.programs.registry_files import ProgramFiles
from pieray.programs.sources import COMPONENT_MAGIC, ProgramSource, embedded, is_embedded

NO_VERSION = "0.0.0"
"""Of a program whose manifest gives none."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a registry holds."""

    programs: int = 1000
    total_bytes: int = 256 << 20
    program_bytes: int = 4 << 20


class Registry:
    """Programs by name and version; a folder keeps them past the engine's life.  Thread-safe, plain.

    What it holds of a program is the checked `Install` that brought it: immutable, so a version means one program.
    """

    def __init__(self, folder: Path | None = None, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._files = ProgramFiles(folder) if folder is not None else None
        self._programs: dict[str, dict[str, Install]] = {}
        self._lock = threading.RLock()
        self._revision = time.time_ns()
        self._refresh()

    def install(self, given: Install) -> dict[str, Any]:
        """Take a program in; its facts.  The same program again changes nothing.

        Raises ConfigError and InvalidRequest (the program, its manifest), Denied (the name is another owner's or an
        embedded inferlet's), InvalidRequest (that version is another program), QuotaExceeded.
        """
        program = _checked(given, self._bounds)
        with self._lock:
            self._refresh()
            versions = self._programs.get(program.name, {})
            self._check_name(program, versions)
            there = versions.get(program.version)
            if there is not None and there != program:
                raise InvalidRequest(
                    f"{spec_of(program)} is installed with other contents (SHA-256 {digest_of(there)[:16]}..., given "
                    f"{digest_of(program)[:16]}...; or another manifest): a version never changes, raise it"
                )
            if there is None:
                self._check_room(program)
                if self._files is not None:
                    self._files.write(program)
                self._programs.setdefault(program.name, {})[program.version] = program
                self._revise()
        return facts_of(program)

    def uninstall(self, spec: str, tenant: str, user: str) -> list[str]:
        """Drop `name@version`, or all versions of `name`; what was dropped.  Raises NotFound, Denied."""
        with self._lock:
            self._refresh()
            name, version = split_spec(spec)
            versions = self._programs.get(name, {})
            dropped = [p for v, p in versions.items() if version in ("", v)]
            if not dropped:
                raise NotFound(self._unknown(spec))
            for program in dropped:
                _check_owner(program, tenant, user)
            for program in dropped:
                if self._files is not None:
                    self._files.remove(program)
                del versions[program.version]
            if not versions:
                del self._programs[name]
            self._revise()
        return [spec_of(program) for program in dropped]

    def find(self, spec: str) -> Install:
        """The program `name@version`, or the latest version of `name`; raises NotFound.

        A version before a release, such as 1.0.0-rc.1, is the latest only while there is no release.
        """
        with self._lock:
            self._refresh()
            name, version = split_spec(spec)
            versions = self._programs.get(name, {})
            if version in versions:
                return versions[version]
            if version or not versions:
                raise NotFound(self._unknown(spec))
            return versions[max(versions, key=lambda v: ("-" not in v, version_key(v)))]

    def programs(self) -> list[dict[str, Any]]:
        """Facts of all programs, by name and rising version."""
        with self._lock:
            self._refresh()
            return [
                facts_of(versions[version])
                for _, versions in sorted(self._programs.items())
                for version in sorted(versions, key=version_key)
            ]

    @property
    def revision(self) -> int:
        """A number that rises with each change of what it holds, also past the process's end."""
        with self._lock:
            self._refresh()
            return self._revision

    def resolve(self, spec: str) -> tuple[int, Install]:
        """`find`, with the revision as of which the name means that program."""
        with self._lock:
            program = self.find(spec)
            return self._revision, program

    def filled(self, launch: Launch, ceiling: Limits) -> Launch:
        """A launch by name with the program that it means: an installed one, then an embedded one.

        See `filled_with`.  Raises NotFound.
        """
        return filled_with(launch, self._program(launch.name), ceiling)

    def _program(self, spec: str) -> Install | ProgramSource:
        try:
            return self.find(spec)
        except NotFound as missing:
            name, version = split_spec(spec)
            found = embedded(name)
            if found is None or version not in ("", found.version):
                raise missing from None
            return found

    def _refresh(self) -> None:
        """Take in what other engines have done with the same folder."""
        if self._files is None or not self._files.has_changed():
            return
        self._programs = {}
        for program in self._files.read_all():
            self._programs.setdefault(program.name, {})[program.version] = program
        self._revise()

    def _revise(self) -> None:
        self._revision = max(self._revision + 1, time.time_ns())

    def _check_name(self, program: Install, versions: Mapping[str, Install]) -> None:
        if is_embedded(program.name):
            raise Denied(f"{program.name} is the name of an embedded inferlet; choose another")
        for other in versions.values():
            _check_owner(other, program.tenant, program.user)

    def _check_room(self, program: Install) -> None:
        held = [p for versions in self._programs.values() for p in versions.values()]
        num_bytes = sum(map(size_of, held)) + size_of(program)
        if len(held) >= self._bounds.programs:
            raise QuotaExceeded(f"registry_programs: the limit is {self._bounds.programs}; all are taken")
        if num_bytes > self._bounds.total_bytes:
            raise QuotaExceeded(
                f"registry_bytes: the limit is {self._bounds.total_bytes}; with this program it would be {num_bytes}"
            )

    def _unknown(self, spec: str) -> str:
        name, _ = split_spec(spec)
        there = sorted(self._programs.get(name, {}), key=version_key)
        hint = f"there is {', '.join(there)}" if there else f"installed: {', '.join(sorted(self._programs)) or 'none'}"
        return f"no program {spec[:100]!r} is installed here; {hint}"


def split_spec(spec: str) -> tuple[str, str]:
    """("name", "version" or "") of `name` or `name@version`."""
    name, _, version = spec.partition("@")
    return name, version


def spec_of(program: Install) -> str:
    return f"{program.name}@{program.version}"


def digest_of(program: Install) -> str:
    """SHA-256 of the source or component."""
    return hashlib.sha256(program.component or program.source.encode()).hexdigest()


def size_of(program: Install) -> int:
    return len(program.component) + len(program.source.encode())


def facts_of(program: Install) -> dict[str, Any]:
    """What a listing shows of a program."""
    return {
        "name": program.name,
        "version": program.version,
        "description": program.description,
        "sha256": digest_of(program),
        "num_bytes": size_of(program),
        "filename": program.filename,
        "owner": f"{program.tenant}/{program.user}",
        "capabilities": program.capabilities,
        "limits": program.limits,
    }


def _check_owner(program: Install, tenant: str, user: str) -> None:
    if (program.tenant, program.user) != (tenant, user):
        raise Denied(f"{program.name} belongs to {program.tenant}/{program.user}, not to {tenant}/{user}")


def _checked(given: Install, bounds: Bounds) -> Install:
    """The program with its manifest in one form, so that equal ones are equal.  Raises as `Registry.install`."""
    values = {
        "name": given.name,
        "version": given.version or NO_VERSION,
        "description": given.description,
        "capabilities": given.capabilities,
        "limits": given.limits,
    }
    manifest = from_mapping(Manifest, values)
    if not manifest.name:
        raise InvalidRequest("a program is installed under a name; its manifest gives none")
    if bool(given.source) == bool(given.component):
        raise InvalidRequest(f"{manifest.name}: a program is Python source or a component, and one of them")
    if given.component and not given.component.startswith(COMPONENT_MAGIC):
        raise InvalidRequest(f"{manifest.name} is no WebAssembly component: it begins with {given.component[:8]!r}")
    if (size := size_of(given)) > bounds.program_bytes:
        raise QuotaExceeded(f"source_bytes: the limit is {bounds.program_bytes}; {manifest.name} has {size}")
    limits = {name: getattr(from_mapping(Limits, given.limits), name.replace("-", "_")) for name in given.limits}
    capabilities = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(manifest.capabilities).items()
    }
    return dataclasses.replace(
        given,
        version=manifest.version,
        capabilities=capabilities,
        limits={name.replace("-", "_"): value for name, value in limits.items()},
    )
