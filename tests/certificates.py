"""Certificates for tests, made by openssl."""

import ssl
import subprocess
from pathlib import Path

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """An authority nobody knows; `file` is its certificate."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *_KEY, "-keyout", self._key, "-out", self.file, "-subj", f"/CN={name}")

    def server(self, name: str, *, days: int = 1) -> ssl.SSLContext:
        """A server's side of TLS, certified under a name; below zero days it has expired."""
        key, request, certificate = (self._folder / f"{name}{days}{suffix}" for suffix in (".key", ".csr", ".pem"))
        names = self._folder / f"{name}.names"
        names.write_text(f"subjectAltName=DNS:{name}\n")
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signed_by = ["-CA", self.file, "-CAkey", self._key, "-CAcreateserial"]
        arguments = ["-in", request, "-out", certificate, "-days", days, "-extfile", names]
        _openssl("x509", "-req", *signed_by, *arguments)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        return context


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
