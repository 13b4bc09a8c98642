"""Reading lineages and their versions in MLflow's model registry.

A registered model is a lineage. A model version is an adapter version: immutable, its parent's number in a
tag, its files in the store at `<artifacts of its run>/adapter`. The aliases in the registry are the truth, and
anybody may move them, in MLflow's own pages too; so a version is verified whenever it is read.
"""

import re
from collections.abc import Mapping
from typing import Any

from services.adapter import Adapter, Layout, TrainingState, check_digests, decode, decode_state
from services.canary import CANARY, Canary, Targets, canary_of
from services.errors import InputError, NotFoundError, RefusedError
from services.manifest import (
    ADAPTER_FILE,
    MANIFEST_FILE,
    NAME,
    STATE_FILE,
    TOKENS_FILE,
    BaseRef,
    Manifest,
    check_name,
)
from services.marks import Mark
from services.runs import ADAPTER_FOLDER, Runs
from services.versions import TAG, VersionInfo, info_of

LIVE, CANDIDATE = "live", "candidate"
RECORDED = (CANDIDATE, CANARY, LIVE)
"""Aliases of which the audit log tells; `live` last: what becomes live is no candidate any more."""

SCHEMA = {f"{TAG}schema": "1"}
"""Tag that tells a lineage from somebody else's registered model."""
DELETED_TAG = f"{TAG}deleted_versions"
"""Tag of a lineage: numbers of the versions that were deleted."""
_SUBMISSION = re.compile(r"[A-Za-z0-9._:@+/=-]{1,200}")  # nothing that could end a quoted string
_DECIMAL = re.compile(r"[0-9]+")
_PAGE = 1000
_MAX_NUMBER = 2**31 - 1  # what is beyond, MLflow's database cannot even look for


class Catalogue(Runs):
    """All lineages of one MLflow server and one store. Safe to use from many threads.

    Every method raises UnavailableError if MLflow (within about ten seconds) or the store does not answer,
    and InputError if no lineage can be called so. Calls that are counted are calls to MLflow.
    """

    def lineages(self) -> list[str]:
        """Names of the lineages that have a version, sorted."""
        return sorted(model.name for model in self._models() if model.latest_versions)

    def exists(self, lineage: str) -> bool:
        """Whether there is such a lineage, or something else in MLflow that is called so."""
        try:
            self._server.ask(self._client.get_registered_model, check_name(lineage, "lineage"))
        except NotFoundError:
            return False
        return True

    def live_versions(self) -> dict[str, int]:
        """Lineage -> number of its `live` version, where there is one; one call for a thousand lineages."""
        models = self._models()
        return {model.name: int(model.aliases[LIVE]) for model in models if LIVE in model.aliases}

    def targets(self) -> dict[str, Targets]:
        """Every lineage and the versions that its requests may be sent to; one call for a thousand lineages."""
        return {model.name: _targets(model) for model in self._models()}

    def deleted(self) -> dict[str, frozenset[int]]:
        """Lineage -> versions that were deleted, of which nobody may keep a copy; one call for a thousand lineages."""
        found = {model.name: _deleted(model) for model in self._models()}
        return {name: numbers for name, numbers in found.items() if numbers}

    def canary(self, lineage: str) -> Canary | None:
        """The lineage's canary, if it has one. Raises as `aliases` does."""
        model = self._lineage(lineage)
        return canary_of(numbers_of(model), model.tags)

    def aliases(self, lineage: str) -> dict[str, int]:
        """Alias -> version number.

        Raises:
            NotFoundError: no such lineage.
        """
        return numbers_of(self._lineage(lineage))

    def _lineage(self, lineage: str) -> Any:
        """The registered model of a lineage. Raises as `aliases` does."""
        try:
            model = self._server.ask(self._client.get_registered_model, check_name(lineage, "lineage"))
        except NotFoundError:
            raise no_lineage(lineage) from None
        self._server.expect(model.name == lineage)
        if not SCHEMA.items() <= model.tags.items():
            raise NotFoundError(f"`{lineage}` in MLflow is not a lineage of Palimpsest.", param="lineage")
        return model

    def versions(self, lineage: str) -> list[VersionInfo]:
        """All versions, oldest first; what somebody else registered under the name is left out.

        Raises:
            NotFoundError: no such lineage.
        """
        return self._infos(lineage, self.aliases(lineage))

    def version(self, lineage: str, number: int) -> VersionInfo:
        """One version.

        Raises:
            NotFoundError: no such lineage or version, or somebody else registered it.
        """
        return self._version(lineage, number)[0]

    def resolve(self, lineage: str, ref: str) -> int:
        """The number of the version that `live`, `candidate` or a decimal number names.

        Raises:
            NotFoundError: there is none; the message says what exists.
        """
        versions = self._infos(lineage, numbers_of(self._lineage(lineage)))
        for info in versions:
            if ref == str(info.number) or (ref in {LIVE, CANDIDATE} and ref in info.aliases):
                return info.number
        known = f"1 to {versions[-1].number}" if versions else "none"
        named = [f"{alias} is {info.number}" for info in versions for alias in info.aliases]
        there = f"there are: {', '.join([known, *named])}"
        if ref == LIVE and versions:
            mend = f"`palimpsest promote N --lineage {lineage}` makes one live"
            raise NotFoundError(f"No version of `{lineage}` is live: {mend}; {there}.", param="version")
        raise NotFoundError(f"Lineage `{lineage}` has no version {ref[:40]!r}; {there}.", param="version")

    def find_submission(self, lineage: str, submission: str) -> VersionInfo | None:
        """The version that a submission made, if it did; the oldest, should a lost answer have left two.

        Raises:
            InputError: the key has other characters than letters, digits and `._:@+/=-`, or more than 200.
        """
        return self._tagged(lineage, "submission", submission)

    def find_intake(self, lineage: str, intake_id: str) -> VersionInfo | None:
        """The oldest version learned from images held under an intake id, though they are gone; None: there is none.

        Raises:
            InputError: not an intake id.
        """
        return self._tagged(lineage, "intake", intake_id)

    def manifest(self, lineage: str, number: int) -> Manifest:
        """A version's manifest, verified against the registry.

        Raises:
            NotFoundError: no such lineage or version.
            RefusedError: its files are not where they belong, are missing, or were changed.
        """
        return self._verified(lineage, number)[1]

    def verify(self, lineage: str, number: int) -> None:
        """Read a whole version and compare every byte with what was published; no base is needed for that.

        Raises:
            NotFoundError: no such lineage or version.
            RefusedError: its files are not where they belong, are missing, or were changed.
        """
        folder, manifest = self._verified(lineage, number)
        names = tuple(manifest.content.files)
        check_digests(manifest.content, {name: self._read(folder, name) for name in names}, names)

    def check_base(self, lineage: str, base: BaseRef) -> None:
        """Make sure that a lineage may be learned on with a base: all of its versions belong to that one.

        Raises:
            RefusedError: they belong to another.
        """
        others = {version.base_revision for version in self.versions(lineage)} - {base.revision}
        if others:
            raise RefusedError(
                f"`{lineage}` belongs to another base model ({min(others)}), but this is {base.id} ({base.revision}): "
                "set PALIMPSEST_BASE back, or learn in another lineage."
            )

    def fetch(self, lineage: str, number: int, *, layout: Layout, base: BaseRef) -> tuple[Manifest, Adapter]:
        """A version, read from the store and verified.

        Raises:
            NotFoundError: no such lineage or version.
            RefusedError: any doubt about its place, digest, lineage, base or weights.
        """
        folder, manifest = self._verified(lineage, number, base)
        files = {name: self._read(folder, name) for name in (ADAPTER_FILE, TOKENS_FILE)}
        return manifest, decode(manifest.content, layout, files)

    def fetch_state(self, lineage: str, number: int, *, layout: Layout, base: BaseRef) -> TrainingState:
        """What training on needs of a version besides `fetch`. Raises as `fetch` does."""
        folder, manifest = self._verified(lineage, number, base)
        return decode_state(manifest.content, layout, self._read(folder, STATE_FILE))

    def _tagged(self, lineage: str, key: str, value: str) -> VersionInfo | None:
        """The oldest version with a tag of ours."""
        check_name(lineage, "lineage")
        if not _SUBMISSION.fullmatch(value):
            raise InputError(f"A key of {key} is 1 to 200 of A-Z a-z 0-9 . _ : @ + / = -", param=key)
        tag = f"{TAG}{key}"
        found = self._search(f"name = '{lineage}' AND tag.`{tag}` = '{value}'")
        exact = (entity for entity in found if entity.tags[tag] == value)  # MySQL ignores case
        numbers = [info.number for entity in exact if (info := info_of(entity, {}))]
        return self.version(lineage, min(numbers)) if numbers else None

    def _models(self) -> list[Any]:
        ((key, value),) = SCHEMA.items()
        query = {"filter_string": f"tag.`{key}` = '{value}'", "max_results": _PAGE}
        found = self._server.search(self._client.search_registered_models, **query)
        return [model for model in found if NAME.fullmatch(model.name)]

    def _search(self, query: str) -> list[Any]:
        """Model versions; MLflow leaves their aliases out here."""
        search = self._client.search_model_versions
        return self._server.search(search, filter_string=query, max_results=_PAGE)

    def _infos(self, lineage: str, aliases: Mapping[str, int]) -> list[VersionInfo]:
        """All versions of a lineage with these aliases. See `versions`."""
        infos = (info_of(entity, aliases) for entity in self._search(f"name = '{lineage}'"))
        return sorted((info for info in infos if info), key=lambda info: info.number)

    def _version(self, lineage: str, number: int) -> tuple[VersionInfo, Any]:
        """One version, and as MLflow has it."""
        aliases = numbers_of(self._lineage(lineage))
        missing = NotFoundError(f"Lineage `{lineage}` has no version {number}.", param="version")
        if not 0 < number <= _MAX_NUMBER:
            raise missing
        try:
            entity = self._server.ask(self._client.get_model_version, lineage, str(number))
        except NotFoundError:
            raise missing from None
        self._server.expect((entity.name, entity.version) == (lineage, str(number)))
        if (info := info_of(entity, aliases)) is None:
            raise NotFoundError(f"Version {number} of `{lineage}` was not published by Palimpsest.")
        return info, entity

    def _verified(self, lineage: str, number: int, base: BaseRef | None = None) -> tuple[str, Manifest]:
        """The store's folder of a version and its manifest, which vouches for the files beside it."""
        info, entity = self._version(lineage, number)
        title = f"Version {number} of `{lineage}`"
        try:
            run = self._run(info.run_id)
        except NotFoundError:
            raise RefusedError(f"{title} names a run that MLflow does not have.") from None
        folder = f"{self._folder(run)}/{ADAPTER_FOLDER}"
        if entity.source != f"{run.info.artifact_uri}/{ADAPTER_FOLDER}":
            raise RefusedError(f"{title} claims files outside its own run's folder; it must not be used.")
        manifest = Manifest.from_bytes(self._read(folder, MANIFEST_FILE))
        if (manifest.digest, manifest.content.lineage) != (info.digest, lineage):
            raise RefusedError(f"{title}: its manifest is another version's; it must not be used.")
        made_for = manifest.content.base
        if base and made_for.revision != base.revision:
            raise RefusedError(
                f"{title} was made for another base model: {made_for.id} ({made_for.revision}), "
                f"but this is {base.id} ({base.revision})."
            )
        return folder, manifest

    def _read(self, folder: str, name: str) -> bytes:
        try:
            return self._store.get(f"{folder}/{name}")
        except NotFoundError:
            raise RefusedError(f"{name} is missing from the version.") from None


def no_lineage(lineage: str) -> NotFoundError:
    """The error for a lineage that there is not, or that is not to be known of; it names no other."""
    mend = "a first concept makes it, and `palimpsest lineages` lists those that you may draw with"
    return NotFoundError(f"There is no lineage `{lineage}`: {mend}.", param="lineage")


def numbers_of(model: Any) -> dict[str, int]:
    """Aliases of a registered model, as numbers."""
    return {alias: int(number) for alias, number in model.aliases.items()}


def number_of(model: Any, alias: str) -> int | None:
    """The version that an alias of a registered model names."""
    return numbers_of(model).get(alias)


def unrecorded(model: Any) -> list[str]:
    """Aliases of a registered model that are not where the audit log's last move of them left them."""
    return [alias for alias in RECORDED if number_of(model, alias) != Mark.of(model, alias).number]


def _targets(model: Any) -> Targets:
    aliases = numbers_of(model)
    return Targets(
        aliases.get(LIVE),
        aliases.get(CANDIDATE),
        canary_of(aliases, model.tags),
        created=int(model.creation_timestamp),
        deleted=_deleted(model),
        unrecorded=bool(unrecorded(model)),
    )


def _deleted(model: Any) -> frozenset[int]:
    return frozenset(map(int, _DECIMAL.findall(model.tags.get(DELETED_TAG, ""))))
