"""The connection to MLflow, and its runs. `lineage.py` builds the registry on it.

Files never pass through MLflow. Its server only says where a run's artifacts belong, which must be a folder
of our object store, and everybody reads and writes there directly.
"""

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal
from urllib.parse import urlsplit

from services.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    PalimpsestError,
    RefusedError,
    UnavailableError,
)
from services.manifest import check_name
from services.objects import ObjectStore
from services.settings import Settings

ARTIFACTS = "mlflow"
"""Folder of the store that is the MLflow server's `--default-artifact-root`."""
ADAPTER_FOLDER = "adapter"
"""Folder of a run that only `Registry.publish` writes to."""
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_PAUSES = (0.2, 0.6)  # seconds before the second and the third try
_QUICK = 2.0  # what took longer than so many seconds to fail is not tried again
_PARAMS, _METRICS = 100, 1000  # MLflow's limits for one batch
_ALL = 3  # mlflow's ViewType.ALL: deleted experiments too
_ACCESS = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"}


class Server:
    """A connection to one MLflow server, with bounded patience and with errors of our own tree.

    Every call may raise UnavailableError (within about 10 seconds), NotFoundError, ConflictError (it exists
    already) or InputError (MLflow does not take such a value).

    Attributes:
        client: mlflow's `MlflowClient`; call its methods through `ask` or `once`.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise InputError(
                "The MLflow URI must be http://host:port or https://…; credentials go into "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
                param="mlflow_uri",
            )
        self._uri = uri
        self.client = _client(uri)

    def ask(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call, and if that failed quickly call again: for whatever may be done twice."""
        begun = time.monotonic()
        for pause in _PAUSES:
            try:
                return self.once(call, *args, **kwargs)
            except UnavailableError:
                if time.monotonic() - begun > _QUICK:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
        return self.once(call, *args, **kwargs)

    def once(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call one single time: for what must not be done twice."""
        with self._errors():
            return call(*args, **kwargs)

    def search(self, call: Callable[..., Any], **query: Any) -> list[Any]:
        """All pages of a search."""
        found = page = self.ask(call, **query)
        while page.token:
            page = self.ask(call, page_token=page.token, **query)
            found = [*found, *page]
        if not found:
            # An empty answer of a broken proxy reads as an empty list. Experiment 0 always exists.
            self.expect(bool(self.ask(self.client.search_experiments, view_type=_ALL, max_results=1)))
        return list(found)

    def expect(self, sane: bool) -> None:
        """Raise `UnavailableError` unless an answer made sense."""
        if not sane:
            raise self._unavailable("its answer makes no sense")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise self._mapped(error.error_code) from error
        except (ParseError, TypeError) as error:  # how mlflow stumbles over JSON of another shape
            raise self._unavailable("its answer makes no sense") from error

    def _mapped(self, code: str) -> PalimpsestError:
        if code == "RESOURCE_DOES_NOT_EXIST":
            return NotFoundError("MLflow knows no such experiment, run, model or version.")
        if code == "RESOURCE_ALREADY_EXISTS":
            return ConflictError("MLflow has an experiment or model of that name already.")
        if code == "INVALID_PARAMETER_VALUE":
            return InputError(f"MLflow at {self._uri} does not take one of the values.")
        if code in _ACCESS:
            return UnavailableError(
                f"MLflow at {self._uri} does not let us in ({code}): check MLFLOW_TRACKING_USERNAME, "
                "MLFLOW_TRACKING_PASSWORD and the server's --allowed-hosts."
            )
        return self._unavailable(code)

    def _unavailable(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"MLflow at {self._uri} does not answer ({why}): start it with `palimpsest up`, "
            "or set PALIMPSEST_MLFLOW_URI to where it runs."
        )


def _client(uri: str) -> Any:
    """An `MlflowClient`; mlflow takes two seconds to import, and reads some of this environment meanwhile."""
    # Its own retries would repeat a create_model_version whose answer was lost, and make two versions.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def experiment_of(lineage: str) -> str:
    """Name of the MLflow experiment that holds a lineage's runs."""
    return f"palimpsest/{lineage}"


class Runs:
    """The runs of all lineages: one MLflow experiment per lineage.

    Safe to use from many threads. Params, tags and metrics must never hold a prompt, an image or a secret.
    Every method raises UnavailableError if MLflow or the store does not answer.
    """

    def __init__(self, settings: Settings, store: ObjectStore) -> None:
        self._server = Server(settings.mlflow)
        self._client = self._server.client
        self._store = store

    def create_run(self, lineage: str, *, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Begin a run and return its id.

        Raises:
            InputError: not a lineage's name, or a param or tag that MLflow does not take.
            RefusedError: the MLflow server keeps artifacts outside our store.
        """
        from mlflow.entities import Param

        experiment_id = self._experiment(check_name(lineage, "lineage"))
        run = self._server.once(self._client.create_run, experiment_id, tags=dict(tags), run_name=name)
        self._server.expect(bool(run.info.run_id))
        entries = [Param(key, str(value)) for key, value in params.items()]
        for at in range(0, len(entries), _PARAMS):
            self._server.ask(self._client.log_batch, run.info.run_id, params=entries[at : at + _PARAMS])
        return str(run.info.run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers of one step, in as few calls as may be.

        Raises:
            NotFoundError: no such run.
        """
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000  # the same in every try, so that MLflow recognizes a repeat
        entries = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        for at in range(0, len(entries), _METRICS):
            self._server.ask(self._client.log_batch, run_id, metrics=entries[at : at + _METRICS])

    def metrics(self, lineage: str) -> dict[str, dict[str, float]]:
        """Run id -> the last value of each of its metrics, as far as that is a number, for all runs of a lineage."""
        experiment = self._server.ask(self._client.get_experiment_by_name, experiment_of(lineage))
        if experiment is None:
            return {}
        runs = self._server.search(
            self._client.search_runs, experiment_ids=[experiment.experiment_id], run_view_type=_ALL
        )
        return {
            run.info.run_id: {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
            for run in runs
        }

    def describe_run(self, run_id: str, page: str) -> None:
        """Set a run's description, in Markdown: what MLflow's page of the run says above everything else.

        Raises:
            NotFoundError: no such run.
        """
        self.tag_run(run_id, {"mlflow.note.content": page})

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set some tags of a run.

        Raises:
            NotFoundError: no such run.
        """
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in tags.items()]
        self._server.ask(self._client.log_batch, run_id, tags=entries)

    def end_run(self, run_id: str, status: RunStatus = "FINISHED") -> None:
        """Mark a run as ended; may be repeated.

        Raises:
            NotFoundError: no such run.
        """
        self._server.ask(self._client.set_terminated, run_id, status)

    def put_artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Write a file of a run, such as `samples/grid.png`, straight to the store.

        Raises:
            NotFoundError: no such run.
            InputError: not a plain relative path, or inside the adapter's folder.
            RefusedError: the run's artifacts are outside our store.
        """
        if path.partition("/")[0] == ADAPTER_FOLDER:
            raise InputError(f"{ADAPTER_FOLDER}/ holds the published version and nothing else.", param="path")
        self._store.put(f"{self._folder(self._run(run_id))}/{path}", data)

    def get_artifact(self, run_id: str, path: str) -> bytes:
        """Read what `put_artifact` wrote.

        Raises:
            NotFoundError: no such run or file.
            RefusedError: the run's artifacts are outside our store.
        """
        return self._store.get(f"{self._folder(self._run(run_id))}/{path}")

    def _run(self, run_id: str) -> Any:
        try:
            run = self._server.ask(self._client.get_run, run_id)
        except NotFoundError:
            raise NotFoundError(f"MLflow has no run {run_id[:40]!r}.") from None
        self._server.expect(run.info.run_id == run_id)
        return run

    def _experiment(self, lineage: str) -> str:
        """Id of a lineage's experiment, made if need be; several may try at once."""
        name = experiment_of(lineage)
        found = self._server.ask(self._client.get_experiment_by_name, name)
        if found is None:
            with suppress(ConflictError):  # somebody else has just made it
                self._server.ask(self._client.create_experiment, name)
            found = self._server.ask(self._client.get_experiment_by_name, name)
        self._server.expect(found is not None and found.name == name)
        self._check_place(found.artifact_location, f"{ARTIFACTS}/{found.experiment_id}")
        if found.lifecycle_stage == "deleted":
            self._server.ask(self._client.restore_experiment, found.experiment_id)
        return str(found.experiment_id)

    def _folder(self, run: Any) -> str:
        """The store's folder of a run's artifacts, without a slash at the end."""
        folder = f"{ARTIFACTS}/{run.info.experiment_id}/{run.info.run_id}/artifacts"
        self._check_place(run.info.artifact_uri, folder)
        return folder

    def _check_place(self, uri: str, key: str) -> None:
        """Raise `RefusedError` unless MLflow's `uri` is the place in our store that `key` names."""
        try:
            found = self._store.key_of(uri)
        except RefusedError:
            found = ""
        if found != key:
            raise RefusedError(
                f"MLflow keeps artifacts at {uri[:200]!r}, but they belong to {self._store.uri(key)}: start "
                f"its server with --default-artifact-root {self._store.uri(ARTIFACTS)} --no-serve-artifacts; "
                "experiments made before that keep their old place."
            )
