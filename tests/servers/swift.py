"""Real Swift servers for tests: `swift_server.py`, run by the Python that has OpenStack's packages."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import swiftclient

from cachefs.core.source import StoreOptions
from tests.servers.process import first_line, running
from tests.servers.s3 import S3Server
from tests.servers.tls import Tls

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class SwiftServer:
    """Where a Swift listens, and who may ask it."""

    url: str
    user: str = "test:tester"
    key: str = "testing"
    ca: str | None = None

    @property
    def auth(self) -> str:
        """Where version 1 signs in."""
        return f"{self.url}/auth/v1.0"

    def environment(self) -> Mapping[str, str]:
        """The credentials, as the environment holds them."""
        return {"ST_AUTH": self.auth, "ST_USER": self.user, "ST_KEY": self.key}

    def options(self) -> StoreOptions:
        """How cachefs reaches it, given the credentials."""
        return StoreOptions(ca_bundle=self.ca)

    def sdk(self) -> Any:  # noqa: ANN401  # swiftclient is untyped
        """Swift's own client, to look at the store past cachefs; for the caller to close."""
        return swiftclient.Connection(
            authurl=self.auth, user=self.user, key=self.key, retries=0, cacert=self.ca
        )

    def s3(self) -> S3Server:
        """The same server's S3: strict about signatures and checksums."""
        return S3Server(url=self.url, access=self.user, secret=self.key, ca=self.ca)


def python_with(package: str) -> str:
    """The Python that has *package* of OpenStack: `$CACHEFS_TEST_SWIFT_PYTHON`, or what the set-up made."""
    made = _HERE.parent.parent / ".venv-servers" / "bin" / "python"
    return os.environ.get(f"CACHEFS_TEST_{package.upper()}_PYTHON", str(made))


def is_installed(package: str) -> bool:
    """Whether that Python has *package*."""
    try:
        done = subprocess.run(
            [python_with(package), "-P", "-c", f"import {package}"],
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


@contextmanager
def swift(
    directory: Path,
    *,
    tls: Tls | None = None,
    keystone: str = "",
    port: int = 0,
    token_life_s: int = 86400,
) -> Iterator[SwiftServer]:
    """An empty Swift with all its state in *directory*; ready in half a second.

    *keystone*: the address of the Keystone that knows its users; else it has its own.
    """
    command = [python_with("swift"), "-P", str(_HERE / "swift_server.py")]
    command += ["--root", str(directory), "--port", str(port)]
    command += ["--token-life", str(token_life_s)]
    if tls is not None:
        command += ["--cert", str(tls.cert), "--key", str(tls.key)]
    if keystone:
        command += ["--keystone", keystone]
    directory.mkdir(parents=True, exist_ok=True)
    with (
        (directory / "log").open("wb") as log,
        running(command, log=log, stdout=subprocess.PIPE) as process,
    ):
        said = first_line(process)
        yield SwiftServer(url=str(said["url"]), ca=None if tls is None else str(tls.ca))
