"""Lineages and their versions, in MLflow's model registry: reading (`catalogue.py`), moving (`moves.py`), publishing.

Two aliases matter: `live` is what is served and what the next concept builds on, `candidate` the newest version that
was not promoted. Jobs exclude one another with the lineage's lease (`lease.py`).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from services.adapter import check_digests
from services.catalogue import CANDIDATE, LIVE, SCHEMA
from services.describe import describe_lineage, describe_version
from services.errors import ConflictError, NotFoundError, RefusedError, UnavailableError
from services.manifest import MANIFEST_FILE, Manifest
from services.moves import Moves
from services.runs import ADAPTER_FOLDER
from services.versions import TAG, Verdict, VersionInfo, tags_of

__all__ = ["CANDIDATE", "LIVE", "Registry", "Verdict", "VersionInfo"]

_log = logging.getLogger("palimpsest.registry")


class Registry(Moves):
    """All lineages of one MLflow server and one store. Safe to use from many threads.

    Every method raises UnavailableError if MLflow (within about ten seconds) or the store does not answer,
    and InputError if no lineage can be called so.
    """

    def publish(
        self,
        lineage: str,
        run_id: str,
        manifest: Manifest,
        files: Mapping[str, bytes],
        *,
        submission: str,
        verdict: Verdict,
        job: str,
        check: Callable[[], None],
        intake: str = "",
        images: str = "",
        pictures: str = "",
        actor: str = "",
    ) -> VersionInfo:
        """Make a version of some files and call it `candidate`; the same submission again returns it.

        Nothing is visible before the one call that registers it, which comes right after `check`. If that
        call's answer is lost, repeating `publish` finds the version.

        Args:
            lineage: name; made if it is new.
            run_id: the run that trained it; its artifacts get the files.
            manifest: names the files and their digests.
            files: file name -> bytes, all but the manifest.
            submission: key of the request that the version answers.
            verdict: what the gate said.
            job: id of the job.
            check: raises if the caller may no longer write to the lineage.
            intake: id under which the concept's images were held.
            images: digest of the images, by which the same ones are known again when they are gone.
            pictures: path of a picture among the run's artifacts, for the version's page.
            actor: who asked for it; empty: the user that this process belongs to.

        Raises:
            ConflictError: the run has published another version, or MLflow has a foreign model of that name.
            RefusedError: the files are not the manifest's, or the run's artifacts are outside the store.
            NotFoundError: no such run.
        """
        done = self.find_submission(lineage, submission)
        if done is None:
            run = self._run(run_id)
            source = self._upload(lineage, run, manifest, files)
            self._make_lineage(lineage)
            tags = tags_of(manifest, submission=submission, verdict=verdict, job=job, intake=intake, images=images)
            experiment_id = run.info.experiment_id
            page = describe_version(manifest, verdict=verdict, job=job, experiment_id=experiment_id, pictures=pictures)
            check()
            done = self._register(lineage, run_id, source, tags, page)
        self._propose(done, actor)
        if not verdict.passed:
            self._tell(lineage)  # else its promotion does it
        return self.version(lineage, done.number)

    def _upload(self, lineage: str, run: Any, manifest: Manifest, files: Mapping[str, bytes]) -> str:
        """Write a version's files, the manifest last, read them back, and return the source to register."""
        content = manifest.content
        if content.lineage != lineage or content.files.keys() != files.keys():
            raise RefusedError("The manifest is of another lineage, or names other files than there are.")
        check_digests(content, files, tuple(files))
        folder = f"{self._folder(run)}/{ADAPTER_FOLDER}"
        if self._search(f"run_id = '{run.info.run_id}'"):
            raise ConflictError(
                f"Run {run.info.run_id} has published a version, and versions never change: begin a new run."
            )
        written = {**files, MANIFEST_FILE: manifest.to_bytes()}
        for name, data in written.items():
            self._store.put(f"{folder}/{name}", data)
        for name, data in written.items():
            if self._read(folder, name) != data:
                raise UnavailableError(f"The store gave back other bytes of {name} than were written.")
        return f"{run.info.artifact_uri}/{ADAPTER_FOLDER}"

    def _make_lineage(self, lineage: str) -> None:
        """Make the registered model; several may try at once."""
        try:
            self._server.ask(self._client.create_registered_model, lineage, tags=SCHEMA)
        except ConflictError:
            try:
                self.aliases(lineage)
            except NotFoundError as error:
                raise ConflictError(error.message, param="lineage") from None

    def _register(self, lineage: str, run_id: str, source: str, tags: dict[str, str], page: str) -> VersionInfo:
        """The one irreversible step."""
        create = self._client.create_model_version
        try:
            entity = self._server.once(
                create, lineage, source, run_id, tags=tags, description=page, await_creation_for=0
            )
            self._server.expect(entity.name == lineage)
        except UnavailableError:
            done = self.find_submission(lineage, tags[f"{TAG}submission"])
            if done is None:
                raise
            return done
        return self.version(lineage, int(entity.version))

    def _tell(self, lineage: str) -> None:
        """Renew what MLflow's page of the lineage says; an outage leaves the old text."""
        try:
            page = describe_lineage(lineage, self.versions(lineage))
            self._server.ask(self._client.update_registered_model, lineage, page)
        except UnavailableError as error:
            _log.warning("the page of %s in MLflow was not renewed: %s", lineage, error.message)
