"""A real Keystone for tests, and the Swift that believes it."""

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cachefs.core.source import StoreOptions
from tests.servers.process import first_line, free_ports, running
from tests.servers.swift import python_with, swift

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Keystone:
    """Where it listens, and who may ask it for a token."""

    url: str
    user: str
    key: str
    project: str
    project_id: str
    application_credential_id: str
    application_credential_secret: str
    swift_url: str

    def password(self) -> Mapping[str, str]:
        """The environment of somebody who signs in with a password."""
        return {
            "OS_AUTH_URL": self.url,
            "OS_IDENTITY_API_VERSION": "3",
            "OS_USERNAME": self.user,
            "OS_PASSWORD": self.key,
            "OS_PROJECT_NAME": self.project,
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": "RegionOne",
        }

    def application_credential(self) -> Mapping[str, str]:
        """The environment of somebody who signs in with an application credential."""
        return {
            "OS_AUTH_URL": self.url,
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_APPLICATION_CREDENTIAL_ID": self.application_credential_id,
            "OS_APPLICATION_CREDENTIAL_SECRET": self.application_credential_secret,
            "OS_REGION_NAME": "RegionOne",
            "OS_INTERFACE": "publicURL",
        }

    def options(self) -> StoreOptions:
        """How cachefs reaches its Swift."""
        return StoreOptions()


@contextmanager
def keystone(directory: Path) -> Iterator[Keystone]:
    """A Keystone and its Swift, all state in *directory*; ready in five seconds, the first time in fifteen."""
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    swift_url = f"http://127.0.0.1:{port}"
    command = [python_with("keystone"), "-P", str(_HERE / "keystone_server.py")]
    command += ["--root", str(directory), "--swift", swift_url, "--template", str(_template())]
    with (
        (directory / "out").open("wb") as log,
        running(command, log=log, stdout=subprocess.PIPE) as process,
    ):
        said = {name: str(value) for name, value in first_line(process, within_s=120).items()}
        address = said["url"].removesuffix("/v3")
        with swift(directory / "swift", keystone=address, port=port):
            yield Keystone(**said, swift_url=swift_url)


def _template() -> Path:
    """Where the migrated database is kept between runs: one for each installation of Keystone."""
    which = hashlib.sha256(python_with("keystone").encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"cachefs-test-keystone-{which}.db"
