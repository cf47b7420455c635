"""Stores to mount, made when they are first wanted, and mounts that leave nothing behind."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import swiftclient
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session

from tests.mount.harness import Mount
from tests.mount.stores import FileBucket, LiveStore, S3Bucket, SwiftContainer, Target
from tests.servers.keystone import Keystone, keystone
from tests.servers.moto import moto
from tests.servers.radosgw import RadosGateway, missing_programs, radosgw
from tests.servers.s3 import S3Server
from tests.servers.swift import is_installed, swift


def pytest_configure() -> None:
    """Let a run that is told to end take its mounts away, as an interrupted one does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Servers:
    """The servers of this run, each started when a test first wants it."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._gateway: RadosGateway | None = None
        self._makers: dict[str, Callable[[], LiveStore]] = {}

    def bucket(self, kind: str) -> LiveStore:
        """A fresh bucket on the server of that kind."""
        if kind not in self._makers:
            start: dict[str, Callable[[], Callable[[], LiveStore]]] = {
                "file": self._file,
                "moto": self._moto,
                "radosgw": self._radosgw,
                "swift": self._swift,
                "keystone": self._keystone,
            }
            self._makers[kind] = start[kind]()
        return self._makers[kind]()

    def _file(self) -> Callable[[], LiveStore]:
        numbers = iter(range(1_000_000))
        return lambda: FileBucket(self._directory / f"file{next(numbers)}")

    def _moto(self) -> Callable[[], LiveStore]:
        return self._s3("moto", self._stack.enter_context(moto()))

    def _s3(self, name: str, server: S3Server) -> Callable[[], LiveStore]:
        # One for all buckets: making a client takes longer than most of what it is asked.
        client = self._stack.enter_context(contextlib.closing(server.sdk()))
        return lambda: S3Bucket(name, server, client)

    def gateway(self) -> RadosGateway:
        """The one radosgw."""
        if self._gateway is None:
            if missing := missing_programs():
                pytest.skip(f"radosgw: {', '.join(missing)} not installed")
            self._gateway = self._stack.enter_context(radosgw(self._directory / "radosgw"))
        return self._gateway

    def _radosgw(self) -> Callable[[], LiveStore]:
        return self._s3("radosgw", self.gateway())

    def _swift(self) -> Callable[[], LiveStore]:
        if not is_installed("swift"):
            pytest.skip("swift is not installed")
        server = self._stack.enter_context(swift(self._directory / "swift"))
        connection = server.sdk()
        return lambda: SwiftContainer("swift", server.url, connection, server.environment())

    def _keystone(self) -> Callable[[], LiveStore]:
        if not (is_installed("keystone") and is_installed("swift")):
            pytest.skip("keystone or swift is not installed")
        server = self._stack.enter_context(keystone(self._directory / "keystone"))
        connection = _keystone_sdk(server)
        return lambda: SwiftContainer("keystone", server.swift_url, connection, server.password())


def _keystone_sdk(server: Keystone) -> swiftclient.Connection:
    said = server.password()
    password = Password(
        auth_url=said["OS_AUTH_URL"],
        username=said["OS_USERNAME"],
        password=said["OS_PASSWORD"],
        project_name=said["OS_PROJECT_NAME"],
        user_domain_name=said["OS_USER_DOMAIN_NAME"],
        project_domain_id=said["OS_PROJECT_DOMAIN_ID"],
    )
    return swiftclient.Connection(
        session=Session(auth=password), os_options={"region_name": said["OS_REGION_NAME"]}
    )


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("servers"), stack)


@pytest.fixture(scope="module")
def new_store(servers: Servers) -> Iterator[Callable[[str], LiveStore]]:
    """Makes buckets on the server named by its argument; they go with the module."""
    with contextlib.ExitStack() as stack:

        def make(kind: str) -> LiveStore:
            return stack.enter_context(contextlib.closing(servers.bucket(kind)))

        yield make


@pytest.fixture
def store(request: pytest.FixtureRequest, servers: Servers) -> Iterator[LiveStore]:
    """A fresh bucket on the server that the test's parameter names."""
    with contextlib.closing(servers.bucket(request.param)) as bucket:
        yield bucket


@pytest.fixture
def mounting(tmp_path: Path) -> Callable[..., Mount]:
    """Makes mounts, to be entered by ``with``."""

    def make(
        target: Target,
        *options: str,
        name: str = "mount",
        watchdog_s: float = 55,
        fresh: bool = False,
    ) -> Mount:
        return Mount(target, tmp_path / name, options, watchdog_s=watchdog_s, fresh=fresh)

    return make
