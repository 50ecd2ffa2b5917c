"""The API server's refusals: ``FieldError`` for one field, ``ApiError`` for a whole request.

An ApiError carries a Kubernetes ``Status`` and reads word for word as a real server's.
Sources: ``apimachinery/pkg/api/errors``, ``apimachinery/pkg/util/validation/field``,
``kubectl/pkg/cmd/util/helpers.go``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from testbed.documents import FieldPath, format_path
from testbed.errors import TestbedError
from testbed.objects.kinds import Kind, Object


def quoted(value: Any) -> str:
    """A value as the server prints it: strings quoted, lists and objects as compact JSON."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class FieldError:
    """One field that is wrong. message: without the path; reason: a cause's reason in a Status."""

    path: FieldPath
    message: str
    reason: str = "FieldValueInvalid"

    @property
    def field(self) -> str:
        """``spec.ports[0].port``; the root is ``<nil>``, as Go prints it."""
        return format_path(self.path) or "<nil>"

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def invalid(path: FieldPath, value: Any, why: str) -> FieldError:
    """``Invalid value: 0: must be between 1 and 65535, inclusive``."""
    return FieldError(path, f"Invalid value: {quoted(value)}: {why}")


def required(path: FieldPath, why: str = "") -> FieldError:
    """``Required value``, with a reason where the server gives one."""
    return FieldError(path, f"Required value: {why}" if why else "Required value", "FieldValueRequired")


def duplicate(path: FieldPath, value: Any) -> FieldError:
    """``Duplicate value: "http"``."""
    return FieldError(path, f"Duplicate value: {quoted(value)}", "FieldValueDuplicate")


def unsupported(path: FieldPath, value: Any, supported: Sequence[str]) -> FieldError:
    """``Unsupported value: "x": supported values: "A", "B"``."""
    known = ", ".join(quoted(one) for one in supported)
    return FieldError(
        path, f"Unsupported value: {quoted(value)}: supported values: {known}", "FieldValueNotSupported"
    )


def forbidden(path: FieldPath, why: str) -> FieldError:
    """``Forbidden: may not be set``."""
    return FieldError(path, f"Forbidden: {why}", "FieldValueForbidden")


def not_found_value(path: FieldPath, value: Any) -> FieldError:
    """``Not found: "volume"``."""
    return FieldError(path, f"Not found: {quoted(value)}", "FieldValueNotFound")


def too_long(path: FieldPath, limit: int) -> FieldError:
    """``Too long: may not be more than 1024 bytes``."""
    return FieldError(path, f"Too long: may not be more than {limit} bytes", "FieldValueTooLong")


class ApiError(TestbedError):
    """A request the API refuses. errors: the fields, if it names any; details: as in a Status."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Object | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.errors = code, reason, message, tuple(errors)
        self.details = dict(details or {})
        if errors:
            self.details["causes"] = [
                {"reason": error.reason, "message": error.message, "field": error.field} for error in errors
            ]
        self.exit_code = 2 if code < 500 else 4

    @property
    def status(self) -> Object:
        """The ``Status`` object a server answers with."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            **({"details": self.details} if self.details else {}),
            "code": self.code,
        }

    @classmethod
    def of(cls, code: int, reason: str, message: str, *, details: Object | None = None) -> ApiError:
        """Any refusal that has no constructor of its own here."""
        return cls(code, reason, message, details=details)

    @classmethod
    def not_found(cls, kind: Kind, name: str) -> ApiError:
        """404: no such object."""
        return cls(404, "NotFound", f'{kind.resource} "{name}" not found', details=_about(kind, name))

    @classmethod
    def already_exists(cls, kind: Kind, name: str) -> ApiError:
        """409: an object of that name is there."""
        message = f'{kind.resource} "{name}" already exists'
        return cls(409, "AlreadyExists", message, details=_about(kind, name))

    @classmethod
    def conflict(cls, kind: Kind, name: str, why: str = "") -> ApiError:
        """409: the caller's resourceVersion or uid is not the stored one."""
        why = why or (
            "the object has been modified; please apply your changes to the latest version and try again"
        )
        message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}'
        return cls(409, "Conflict", message, details=_about(kind, name))

    @classmethod
    def invalid(cls, kind: Kind, name: str, errors: Sequence[FieldError]) -> ApiError:
        """422: the object says something that cannot be."""
        texts = [str(error) for error in errors]
        what = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
        details = {**_about(kind, name), "kind": kind.kind}
        message = f'{kind.qualified} "{name}" is invalid: {what}'
        return cls(422, "Invalid", message, details=details, errors=errors)

    @classmethod
    def bad_request(cls, message: str, errors: Sequence[FieldError] = ()) -> ApiError:
        """400: the request or the object in it cannot be read."""
        return cls(400, "BadRequest", message, errors=errors)

    @classmethod
    def forbidden(cls, kind: Kind, name: str, why: str) -> ApiError:
        """403: not allowed in this state, e.g. creating something in a namespace that is going away."""
        message = f'{kind.resource} "{name}" is forbidden: {why}'
        return cls(403, "Forbidden", message, details=_about(kind, name))

    @classmethod
    def expired(cls, asked: int, oldest: int) -> ApiError:
        """410: a watch from a resourceVersion whose history is gone; list again."""
        return cls(410, "Expired", f"too old resource version: {asked} ({oldest})")

    @classmethod
    def no_such_kind(cls, api_version: str, kind: str) -> ApiError:
        """404: in the words of a client that maps kinds to resources."""
        return cls(404, "NotFound", f'no matches for kind "{kind}" in version "{api_version}"')


def _about(kind: Kind, name: str) -> Object:
    group = {"group": kind.group} if kind.group else {}
    return {"name": name, **group, "kind": kind.plural}


def as_kubectl_prints(status: Object, doing: str = "") -> str:
    """A Status of failure as kubectl prints it; doing: ``error when creating "web.yaml"``."""
    details: Object = status.get("details") or {}
    if status.get("reason") == "Invalid" and details:
        head = f'The {details.get("kind", "")} "{details.get("name", "")}" is invalid'
        causes = [f"{cause['field']}: {cause['message']}" for cause in details.get("causes") or ()]
        causes = list(dict.fromkeys(causes))
        if len(causes) == 1:
            return f"{head}: {causes[0]}\n"
        return "\n* ".join([f"{head}: ", *causes]) + "\n" if causes else f"{head}\n"
    parts = [f"Error from server ({status.get('reason', '')})", doing, status.get("message", "")]
    return ": ".join(part for part in parts if part) + "\n"
