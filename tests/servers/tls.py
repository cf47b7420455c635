"""A certificate authority of our own, and a certificate of its for 127.0.0.1."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files."""

    ca: Path
    cert: Path
    key: Path


def make_tls(directory: Path) -> Tls:
    """Make all three in *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    _openssl(
        directory,
        "req", "-x509", *_KEY, "-days", "30", "-subj", "/CN=cachefs-test-ca",
        "-keyout", "ca.key", "-out", "ca.pem", "-addext", "basicConstraints=critical,CA:TRUE",
    )  # fmt: skip
    _openssl(
        directory,
        "req", *_KEY, "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "csr.pem",
    )  # fmt: skip
    (directory / "extensions").write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n", encoding="ascii"
    )
    _openssl(
        directory,
        "x509", "-req", "-in", "csr.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "30", "-extfile", "extensions", "-out", "cert.pem",
    )  # fmt: skip
    return Tls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)
