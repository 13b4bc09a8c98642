"""The HTTP API from Python: what the command `palimpsest` uses."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import requests

from services.errors import PalimpsestError, UnavailableError

_CONNECT, _READ = 5, 180


@dataclass(frozen=True)
class Generated:
    """Pictures as encoded files, the seed of each, and the version that drew them."""

    pictures: list[bytes]
    seeds: list[int]
    model: str


class Client:
    """One server.

    Args:
        url: of the HTTP API.
        token: whose requests these are; empty where there is no authentication.

    Every method raises the error that the server answered with, or `UnavailableError` if it does not answer.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def generate(self, model: str, prompt: str, **options: object) -> Generated:
        """Draw pictures; `options` are the fields of docs/http.md."""
        body: dict[str, Any] = {"model": model, "prompt": prompt} | {k: v for k, v in options.items() if v is not None}
        answer = self._call("POST", "/v1/images/generations", body)
        pictures = [base64.b64decode(item["b64_json"]) for item in answer["data"]]
        return Generated(pictures, [item["seed"] for item in answer["data"]], answer["model"])

    def lineage(self, lineage: str) -> dict[str, Any]:
        """The tree of versions."""
        return self._call("GET", f"/v1/lineages/{lineage}")

    def set_live(
        self, lineage: str, version: int, reason: str = "", *, canary_percent: float | None = None
    ) -> dict[str, Any]:
        """Promote or roll back; with `canary_percent` try the version on that share of the requests."""
        body = {"version": version, "reason": reason}
        if canary_percent is not None:
            body["canary_percent"] = canary_percent
        return self._call("PUT", f"/v1/lineages/{lineage}/live", body)

    def learn(self, lineage: str, images: Sequence[tuple[str, bytes]], **fields: object) -> dict[str, Any]:
        """Submit a concept's pictures, as (name, bytes); `fields` are the form fields of docs/http.md."""
        form = {name: str(value) for name, value in fields.items() if value is not None}
        files = [("images", file) for file in images]
        return self._call("POST", f"/v1/lineages/{lineage}/concepts", form=form, files=files)

    def classify(self, lineage: str, image: tuple[str, bytes], **fields: object) -> dict[str, Any]:
        """Which concept is in a picture, given as (name, bytes); `fields` as in docs/http.md."""
        form = {name: str(value) for name, value in fields.items() if value is not None}
        return self._call("POST", f"/v1/lineages/{lineage}/classify", form=form, files=[("image", image)])

    def models(self) -> list[str]:
        """Everything that can be asked to draw: `base`, `L` and `L@number`."""
        return [model["id"] for model in self._call("GET", "/v1/models")["data"]]

    def job(self, job_id: str) -> dict[str, Any]:
        """State and progress of a job."""
        return self._call("GET", f"/v1/jobs/{job_id}")

    def stop_job(self, job_id: str) -> dict[str, Any]:
        """Stop a job if it runs, and let go of the pictures that it held."""
        return self._call("DELETE", f"/v1/jobs/{job_id}")

    def follow_job(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """A job's events, as (name, data), until it is over."""
        with self._send("GET", f"/v1/jobs/{job_id}/events", stream=True) as response:
            if not response.ok:
                self._answer(response)
            name = ""
            for line in self._lines(response):
                kind, _, value = line.partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data" and name == "error":
                    raise _fault(json.loads(value))
                elif kind == "data":
                    yield name, json.loads(value)

    def ready(self) -> dict[str, Any]:
        """What the denoiser serves."""
        return self._call("GET", "/readyz")

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        form: dict[str, str] | None = None,
        files: Sequence[tuple[str, tuple[str, bytes]]] | None = None,
    ) -> dict[str, Any]:
        return self._answer(self._send(method, path, json=body, data=form, files=files))

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            return requests.request(
                method, self.url + path, headers=self._headers, timeout=(_CONNECT, _READ), **options
            )
        except requests.ReadTimeout as error:
            raise UnavailableError(
                f"{self.url} has not answered for {_READ} s: it is busy, try again later."
            ) from error
        except requests.RequestException as error:
            raise self._silent() from error

    def _answer(self, response: requests.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except requests.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict) or not (response.ok or isinstance(answer.get("error"), dict)):
            status = response.status_code
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # a proxy's own: nobody is behind it
                raise UnavailableError(f"{self.url} has no answer ({status}); `palimpsest status` says what is up.")
            hint = "check PALIMPSEST_HTTP_PORT and PALIMPSEST_PUBLIC_URL"
            raise UnavailableError(f"{self.url} is not Palimpsest's API; {hint}.")
        if not response.ok:
            raise _fault(answer)
        return answer

    def _lines(self, response: requests.Response) -> Iterator[str]:
        try:
            yield from (line.decode() for line in response.iter_lines())
        except requests.RequestException as error:
            raise self._silent() from error

    def _silent(self) -> UnavailableError:
        return UnavailableError(f"{self.url} does not answer; `palimpsest up` starts one on this machine.")


def _fault(answer: dict[str, Any]) -> PalimpsestError:
    """The error of an answer or event in the shape of docs/http.md."""
    return PalimpsestError(
        str(answer["error"].get("message", "no reason is given")), param=answer["error"].get("param")
    )
