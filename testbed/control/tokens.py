"""Service account tokens: what a pod shows the API to say who it is.

JSON Web Tokens as real ones, but signed with a secret of the cluster (HS256) where real ones are signed with
the API server's key (RS256), and without an end: nobody but our own API has to believe them.
"""

from __future__ import annotations

import base64
import hmac
from typing import Any

import msgspec


def issue(key: str, issuer: str, namespace: str, account: str, pod: str, uid: str) -> str:
    """The token of a pod. key: the cluster's secret."""
    claims = {
        "aud": [issuer],
        "iss": issuer,
        "kubernetes.io": {
            "namespace": namespace,
            "pod": {"name": pod, "uid": uid},
            "serviceaccount": {"name": account},
        },
        "sub": f"system:serviceaccount:{namespace}:{account}",
    }
    said = f"{_HEADER}.{_encode(claims)}"
    return f"{said}.{_signature(key, said)}"


def subject(key: str, token: str) -> str | None:
    """Who a token is of, ``system:serviceaccount:NAMESPACE:NAME``; None where it is none of ours."""
    if not token.isascii():  # of a header's odd bytes, text that cannot even be encoded
        return None
    said, _, signature = token.rpartition(".")
    if not key or not hmac.compare_digest(_signature(key, said).encode(), signature.encode()):
        return None
    claims = msgspec.json.decode(_decode(said.partition(".")[2]))
    return str(claims["sub"])


def _encode(value: dict[str, Any]) -> str:
    return _letters(msgspec.json.encode(value))


def _signature(key: str, said: str) -> str:
    return _letters(hmac.digest(key.encode(), said.encode(), "sha256"))


def _letters(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


_HEADER = _encode({"alg": "HS256", "typ": "JWT"})
