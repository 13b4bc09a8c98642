"""`palimpsest doctor`: what is wrong with an installation, and how to mend it."""

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from services.arguments import lineage_flag
from services.audit import AUDIT, AuditLog, Entry
from services.backends import Server, backend_servers
from services.catalogue import LIVE
from services.errors import PalimpsestError, RefusedError
from services.intake import Intake
from services.lease import LEASES, beats
from services.lineage import Registry, VersionInfo
from services.local_stack import Part, answers, parts
from services.manifest import BaseRef
from services.objects import ObjectStore, open_store
from services.processes import find
from services.settings import Settings

_FULL, _TIGHT = 2**30, 5 * 2**30
"""Free bytes below which learning fails sooner or later, and below which somebody should know."""

_MEND_LOG = (
    f"put the objects of {AUDIT}/{{lineage}}/ back from a backup; docs/operations.md, Who moved what, has what to do "
    "without one"
)

Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Attributes:
        level: `fault` where something does not work, `warning` where something should be looked at.
        what: in one line.
        mend: what to do; empty where nothing is.
    """

    level: Level
    what: str
    mend: str = ""


class Doctor:
    """Looks at what the settings name; changes nothing but an object of its own, which it deletes.

    Args:
        settings: of the installation.
        base: the base model that `settings.base` names; a function, as it takes seconds.
        thorough: verify the files of every version, not only of those that an alias names.
    """

    def __init__(self, settings: Settings, base: Callable[[], BaseRef], *, thorough: bool = False) -> None:
        self.settings, self._base, self._thorough = settings, base, thorough

    def examine(self) -> Iterator[Finding]:
        """Everything that was looked at, in order; an error in one look does not stop the others, and is told once."""
        yield from self.servers()
        yield from self.disk()
        try:
            store = open_store(self.settings)
            registry = Registry(self.settings, store)
        except PalimpsestError as error:
            yield Finding("fault", error.message, "correct the setting")
            return
        looks: list[Callable[[], Iterator[Finding]]] = [
            lambda: self.store(store),
            lambda: self.intake(store),
            lambda: self.leases(store),
            lambda: self.registry(registry),
            lambda: self.versions(registry),
            lambda: self.audit(registry, store),
        ]
        told = set()
        for look in looks:
            try:
                yield from look()
            except PalimpsestError as error:
                if error.message not in told:
                    yield Finding("fault", error.message)
                told.add(error.message)

    def servers(self) -> Iterator[Finding]:
        """Processes and ports of the local stack; of servers of one's own, whether they answer."""
        settings, own = self.settings, _own_servers(self.settings)
        servers: list[Server | Part] = [*backend_servers(settings), *parts(settings)]
        for server in servers:
            yield self._local(server) if server.name not in own else _elsewhere(server.name, *own[server.name])
        if settings.public_url or settings.ray_address:
            where, mend = f" at {settings.public}", "see that it runs, or correct PALIMPSEST_PUBLIC_URL"
        else:
            where, mend = "", f"`palimpsest up`; see {settings.home}/logs/deploy.log"
        if answers(f"{settings.public}/readyz"):
            yield Finding("ok", f"the HTTP API{where} is ready")
        else:
            yield Finding("warning", f"the HTTP API{where} is not ready", mend)

    def _local(self, server: Server | Part) -> Finding:
        settings = self.settings
        taken = [port for port in server.ports if _listening(settings.host, port)]
        if find(server.name, folder=settings.home / "run") is not None:
            mend = f"see {settings.home}/logs/{server.name}.log; `palimpsest down`, then `up`"
            running = Finding("ok", f"{server.name} answers")
            return running if server.ready() else Finding("fault", f"{server.name} does not answer", mend)
        if taken:
            mend = f"stop what uses it, or set {server.ports[taken[0]]}"
            return Finding("fault", f"{server.name} is down and its port {taken[0]} is somebody else's", mend)
        return Finding("warning", f"{server.name} is down", "`palimpsest up` starts it")

    def disk(self) -> Iterator[Finding]:
        """Free space of the home, and of the store where it is a directory."""
        folders = [self.settings.home]
        if "://" not in self.settings.store_uri:
            folders.append(Path(self.settings.store_uri))
        for folder in dict.fromkeys(_existing(folder) for folder in folders):
            free = shutil.disk_usage(folder).free
            level: Level = "fault" if free < _FULL else "warning" if free < _TIGHT else "ok"
            mend = "" if level == "ok" else "`palimpsest gc` shows what may go; or give it more space"
            yield Finding(level, f"{free / 2**30:.1f} GiB are free in {folder}", mend)

    def store(self, store: ObjectStore) -> Iterator[Finding]:
        """Whether the store can be written, and writes only once where it must."""
        key = f"doctor/{uuid4().hex}"
        try:
            once, twice = store.create(key, b"1"), store.create(key, b"2")
            whole = store.get(key) == b"1"
        finally:
            store.delete(key)
        if once and whole and not twice:
            yield Finding("ok", f"the store {store.root} takes, keeps and deletes objects")
        else:
            yield Finding(
                "fault", f"the store {store.root} overwrites on If-None-Match", "use one that has conditional writes"
            )

    def intake(self, store: ObjectStore) -> Iterator[Finding]:
        """Concept images that should be gone."""
        overdue = Intake(store, self.settings).overdue(time.time())
        if overdue:
            mend = "they go when a job starts or the HTTP API runs: `palimpsest up`"
            yield Finding("fault", f"{len(overdue)} submissions hold images past their time-to-live", mend)
        else:
            yield Finding("ok", "no concept image is overdue")

    def leases(self, store: ObjectStore) -> Iterator[Finding]:
        """Writers that are silent: watches those that hold a lease for twice the time between two beats."""
        before = beats(store)
        if before:
            time.sleep(self.settings.lease_seconds / 2)
        after = beats(store)
        silent = [name for name, beat in before.items() if after.get(name) == beat]
        for name in silent:
            mend = f"nothing: who writes or deletes next takes over, after {self.settings.lease_seconds:g} s of silence"
            yield Finding("warning", f"the writer of `{name}` has died and left its lease ({LEASES}/{name}/)", mend)
        if not silent:
            yield Finding("ok", f"{len(after)} lineages are being written to, no lease is abandoned")

    def registry(self, registry: Registry) -> Iterator[Finding]:
        """Whether MLflow answers, and whether lineages, live or not, are of the base that is configured."""
        lineages = registry.lineages()
        yield Finding("ok", f"MLflow at {self.settings.mlflow} answers and has {len(lineages)} lineages")
        base = self._base()
        for lineage in lineages:
            versions = registry.versions(lineage)
            others = {version.base_revision for version in versions} - {base.revision}
            if others:
                yield Finding(
                    "fault",
                    f"`{lineage}` belongs to the base {min(others)}; {base.id} is {base.revision}: with that it is "
                    "neither served nor learned on",
                    "set PALIMPSEST_BASE back, or learn its concepts anew in another lineage",
                )
            elif not any(LIVE in version.aliases for version in versions):
                mend = f"`palimpsest promote N{lineage_flag(lineage)}` makes one live"
                yield Finding("warning", f"no version of `{lineage}` is live", mend)

    def versions(self, registry: Registry) -> Iterator[Finding]:
        """Whether versions are what was published."""
        count = 0
        for lineage in registry.lineages():
            for version in registry.versions(lineage):
                if self._thorough or version.aliases:
                    count += 1
                    yield from _verify(registry, version)
        yield Finding("ok", f"{count} versions were looked at")

    def audit(self, registry: Registry, store: ObjectStore) -> Iterator[Finding]:
        """Whether the audit logs are whole, and what was moved behind them in the last day."""
        log = AuditLog(store)
        known, whole = set(registry.lineages()), 0
        for lineage in log.lineages():
            try:
                entries = registry.history(lineage) if lineage in known else log.entries(lineage)
            except RefusedError as error:
                yield Finding("fault", error.message, _MEND_LOG.format(lineage=lineage))
                continue
            whole += 1
            for entry in entries:
                if entry.via == "found" and entry.age() < 86400:  # noqa: PLR2004
                    yield _found(lineage, entry)
        yield Finding("ok", f"{whole} audit logs are whole")


def _own_servers(settings: Settings) -> dict[str, tuple[str, str]]:
    """Servers that are not the local stack's: name -> the URL that answers even without a token, and the setting."""
    own = {}
    if settings.mlflow_uri:
        own["mlflow"] = f"{settings.mlflow.rstrip('/')}/health", "PALIMPSEST_MLFLOW_URI"
    if settings.ray_address:
        own["ray"] = f"{settings.jobs.rstrip('/')}/api/gcs_healthz", "PALIMPSEST_RAY_ADDRESS"
    return own


def _elsewhere(name: str, url: str, setting: str) -> Finding:
    if answers(url):
        return Finding("ok", f"{name} answers at {url}")
    return Finding("fault", f"{name} does not answer at {url}", f"see that it runs, or correct {setting}")


def _verify(registry: Registry, version: VersionInfo) -> Iterator[Finding]:
    try:
        registry.verify(version.lineage, version.number)
    except PalimpsestError as error:
        mend = "move its alias to another version, or restore its files from a backup"
        yield Finding("fault", f"{version.lineage}@{version.number} does not verify: {error.message}", mend)


def _found(lineage: str, entry: Entry) -> Finding:
    """What was done in MLflow itself."""
    if entry.action == "overruled":
        mend = f"if {entry.before} was meant: `palimpsest promote {entry.before} --lineage {lineage}`"
        what = f"a move of {entry.alias} of `{lineage}` to {entry.before} in MLflow itself was overruled ({entry.at})"
        return Finding("warning", what, mend)
    moved = f"{entry.alias} of `{lineage}` was moved from {entry.before} to {entry.after}"
    return Finding("warning", f"{moved} in MLflow itself ({entry.at})", "see `palimpsest history`")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _listening(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
