"""The certificates of a cluster's API, made by openssl when the cluster starts and kept in memory only."""

from __future__ import annotations

import shutil
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.kernel.run import run

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256")
_DAYS = "3650"


@dataclass(frozen=True)
class Identity:
    """Who a server is. authority: the certificate (PEM) that clients trust; context: for its TLS sockets."""

    authority: str
    context: ssl.SSLContext


def available() -> bool:
    """Whether certificates can be made here."""
    return shutil.which("openssl") is not None


def make_identity(names: Sequence[str], addresses: Sequence[str]) -> Identity:
    """A new authority, and a server's certificate from it for these DNS names and addresses.

    Raises CommandFailed.
    """
    alternatives = ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses)])
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, name)) for name in ("ca.crt", "ca.key", "server.crt", "server.key")}
        ca = ("-keyout", files["ca.key"], "-out", files["ca.crt"])
        certificate = ("openssl", "req", "-x509", "-days", _DAYS, *_NEW_KEY)
        usage = ("-addext", "keyUsage=critical,digitalSignature,keyCertSign")
        run((*certificate, *ca, "-subj", "/CN=kubernetes", *usage))
        run(
            (
                *(*certificate, "-CA", files["ca.crt"], "-CAkey", files["ca.key"]),
                *("-keyout", files["server.key"], "-out", files["server.crt"], "-subj", "/CN=kube-apiserver"),
                *("-addext", f"subjectAltName={alternatives}", "-addext", "extendedKeyUsage=serverAuth"),
                *("-addext", "basicConstraints=critical,CA:FALSE"),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files["server.crt"], files["server.key"])
        return Identity(Path(files["ca.crt"]).read_text(), context)
