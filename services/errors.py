"""The errors a user can meet. Every one says what is wrong and what to do.

    PalimpsestError                 status  code
    ├── InputError                  422     invalid_value           a field, flag or prompt is not acceptable
    │   ├── TooLargeError           413     too_large
    │   └── UnsupportedImageError   415     unsupported_image
    ├── UnauthorizedError           401     unauthorized            no token, or none that is valid
    ├── ForbiddenError              403     forbidden               the token's owner may not do that
    ├── NotFoundError               404     not_found               lineage, version, concept, job, object
    ├── ConflictError               409     conflict                somebody else was first
    ├── RefusedError                409     refused                 an adapter or base that must not be used
    ├── QuotaError                  429     rate_limit_exceeded     a person's share is used up; retry_after says when
    ├── BusyError                   503     busy                    the queue is full; retry_after says when
    ├── UnavailableError            503     unavailable             MLflow, S3 or Ray does not answer
    └── DeadlineError               504     deadline_exceeded

Errors of third parties are mapped to this tree in the one file that speaks to the third party
(`runs.py` for MLflow, `objects.py` for S3, `jobs.py` for Ray's job API, `cp_serve/replicas.py` for Ray Serve).
"""


class PalimpsestError(Exception):
    """Base of the tree.

    Attributes:
        message: one line for a person: what is wrong and what to do.
        param: the field, flag or parameter at fault, where there is one.
        retry_after: seconds after which trying again makes sense, where it does.
    """

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the attributes when the error crosses a process border (Ray pickles it)."""
        return _rebuild, (type(self), self.message, self.param, self.retry_after)


def _rebuild(
    kind: type[PalimpsestError], message: str, param: str | None, retry_after: float | None
) -> PalimpsestError:
    return kind(message, param=param, retry_after=retry_after)


def unexpected() -> PalimpsestError:
    """What people are told of an error that nobody foresaw: nothing of it."""
    return PalimpsestError(
        "Something went wrong on our side; the server's log has more, under this request's X-Request-Id."
    )


class InputError(PalimpsestError):
    """A field, flag or prompt that cannot be accepted; `param` names it."""

    status, code, type = 422, "invalid_value", "invalid_request_error"


class TooLargeError(InputError):
    """More bytes, pixels or images than the limits allow."""

    status, code = 413, "too_large"


class UnsupportedImageError(InputError):
    """Bytes that are not a PNG, JPEG or WebP picture, judged by content."""

    status, code = 415, "unsupported_image"


class UnauthorizedError(PalimpsestError):
    """No token, or none that is valid."""

    status, code, type = 401, "unauthorized", "authentication_error"


class ForbiddenError(PalimpsestError):
    """The token's owner may not do that."""

    status, code, type = 403, "forbidden", "permission_error"


class NotFoundError(PalimpsestError):
    """No such lineage, version, concept, job or object."""

    status, code, type = 404, "not_found", "invalid_request_error"


class ConflictError(PalimpsestError):
    """The state moved on meanwhile; read it again and decide."""

    status, code, type = 409, "conflict", "invalid_request_error"


class RefusedError(PalimpsestError):
    """An adapter, source or base that failed verification and must not be used."""

    status, code, type = 409, "refused", "invalid_request_error"


class QuotaError(PalimpsestError):
    """A person has had their share for now."""

    status, code, type = 429, "rate_limit_exceeded", "rate_limit_error"


class BusyError(PalimpsestError):
    """The queue is full; nothing was started."""

    status, code, type = 503, "busy", "server_error"


class UnavailableError(PalimpsestError):
    """An outside system (MLflow, S3, Ray) does not answer."""

    status, code, type = 503, "unavailable", "server_error"


class DeadlineError(PalimpsestError):
    """The request's deadline passed before it was done."""

    status, code, type = 504, "deadline_exceeded", "server_error"
