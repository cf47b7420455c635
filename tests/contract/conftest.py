"""One fixture, `store`: the contract suite runs once with each store of `STORES`."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from botocore.loaders import JSONFileLoader

from cachefs.core.source import StoreOptions
from cachefs.remote.buckets import Buckets
from cachefs.remote.file import FileStore
from cachefs.remote.memory import MemoryStore
from cachefs.remote.retry import Pace, Retrying
from cachefs.remote.s3 import S3Store
from cachefs.remote.s3_client import S3Client
from cachefs.remote.s3_probe import Findings
from cachefs.remote.scoped import Scoped
from cachefs.remote.store import Capabilities, ObjectStore
from cachefs.remote.swift import SwiftStore
from tests.contract.faulty import Faulty, FaultyStore
from tests.servers.moto import moto
from tests.servers.radosgw import missing_programs, radosgw
from tests.servers.s3 import S3Server
from tests.servers.swift import SwiftServer, is_installed, swift
from tests.servers.tls import Tls, make_tls

MIB: Final = 2**20
Opener = Callable[[pytest.FixtureRequest], ObjectStore]


def small(options: StoreOptions) -> StoreOptions:
    """The same, but with large objects that begin at 6 MiB, for the suite to reach them at little cost."""
    return replace(
        options,
        multipart_threshold=6 * MIB,
        segment_limit=6 * MIB,
        part_size=5 * MIB,
        transfers=4,
    )


@pytest.fixture(scope="session", autouse=True)
def _models_are_read_once() -> Iterator[None]:
    """Hundreds of clients are made here: let botocore read and parse its files of S3 for the first only."""
    read = JSONFileLoader.load_file
    kept: dict[str, Any] = {}

    def read_once(loader: JSONFileLoader, path: str) -> Any:  # noqa: ANN401
        if kept.get(path) is None:
            kept[path] = read(loader, path)
        return kept[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", read_once)
        yield


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def radosgw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    require_radosgw()
    with radosgw(tmp_path_factory.mktemp("radosgw")) as server:
        yield server


@pytest.fixture(scope="session")
def radosgw_tls_server(tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Iterator[S3Server]:
    require_radosgw()
    with radosgw(tmp_path_factory.mktemp("radosgw-tls"), tls=tls) as server:
        yield server


def require_radosgw() -> None:
    missing = missing_programs()
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert not missing, f"not installed: {', '.join(missing)}"


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    require_openstack("swift")
    with swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def swift_s3_server(swift_server: SwiftServer) -> S3Server:
    return swift_server.s3()


def require_openstack(package: str) -> None:
    there = is_installed(package)
    if not there and not os.environ.get("CI"):
        pytest.skip(f"{package} is not installed: tools/setup test")
    assert there, f"{package} is not installed: tools/setup test"


@pytest.fixture(scope="session")
def swift_sdk(swift_server: SwiftServer) -> Iterator[Any]:
    """Swift's own client, signed in."""
    with closing(swift_server.sdk()) as sdk:
        yield sdk


@pytest.fixture
def fresh_container(swift_sdk: Any) -> str:  # noqa: ANN401  # untyped
    """An empty container, made past cachefs."""
    container = f"container-{uuid.uuid4().hex[:12]}"
    swift_sdk.put_container(container)
    return container


@pytest.fixture(scope="session")
def sdks() -> Iterator[Callable[[S3Server], Any]]:
    """Plain boto3 clients, one for each server: making one takes a tenth of a second."""
    with ExitStack() as stack:
        made: dict[str, Any] = {}

        def sdk(server: S3Server) -> Any:  # noqa: ANN401
            if server.url not in made:
                made[server.url] = stack.enter_context(closing(server.sdk()))
            return made[server.url]

        yield sdk


@pytest.fixture
def fresh_bucket(
    sdks: Callable[[S3Server], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[S3Server], str]:
    """Makes an empty bucket, and puts the server's credentials into the environment."""

    def make(server: S3Server) -> str:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        sdks(server).create_bucket(Bucket=bucket)
        return bucket

    return make


class LastingClient(S3Client):
    """Serves one store after the other: making a client takes a third of a second."""

    def close(self) -> None:
        """Stay open."""

    def end(self) -> None:
        super().close()


@pytest.fixture(scope="session")
def s3_clients() -> Iterator[Callable[[S3Server], S3Client]]:
    """A client for each server."""
    made: dict[str, LastingClient] = {}

    def client(server: S3Server) -> S3Client:
        if server.url not in made:
            made[server.url] = LastingClient(small(server.options()))
        return made[server.url]

    yield client
    for each in made.values():
        each.end()


def _s3(name: str) -> Opener:
    def open_it(request: pytest.FixtureRequest) -> ObjectStore:
        server: S3Server = request.getfixturevalue(f"{name}_server")
        bucket: str = request.getfixturevalue("fresh_bucket")(server)
        client: S3Client = request.getfixturevalue("s3_clients")(server)
        options = small(server.options())
        return S3Store(bucket, options, copy_limit=6 * MIB, page_size=3, client=client)

    return open_it


def _swift(request: pytest.FixtureRequest) -> ObjectStore:
    server: SwiftServer = request.getfixturevalue("swift_server")
    container: str = request.getfixturevalue("fresh_container")
    return SwiftStore(
        container, small(server.options()), environ=server.environment(), page_size=3
    )


def _file(request: pytest.FixtureRequest) -> ObjectStore:
    root: Path = request.getfixturevalue("tmp_path") / "root"
    root.mkdir()
    return FileStore(str(root))


def _memory(_: pytest.FixtureRequest) -> ObjectStore:
    return MemoryStore(page_size=3)


def _retrying(_: pytest.FixtureRequest) -> ObjectStore:
    """Every request fails twice before it succeeds."""
    faulty = FaultyStore(MemoryStore(page_size=3), Faulty.times(2))
    return Retrying(faulty, timeout_s=60, pace=Pace(wait=lambda _: False))


def _scoped(_: pytest.FixtureRequest) -> ObjectStore:
    return Scoped(MemoryStore(page_size=3), "some/where/")


def _buckets(_: pytest.FixtureRequest) -> ObjectStore:
    one = MemoryStore(page_size=3)
    return Scoped(Buckets(lambda: ["one"], lambda _: one, description="all"), "one/")


STORES: Final[dict[str, Opener]] = {
    "memory": _memory,
    "file": _file,
    "scoped": _scoped,
    "buckets": _buckets,
    "retrying": _retrying,
    "s3-moto": _s3("moto"),
    "s3-radosgw": _s3("radosgw"),
    "s3-swift": _s3("swift_s3"),
    "swift": _swift,
}


@pytest.fixture(scope="session")
def found() -> dict[str, Findings | Capabilities]:
    """What each server honours, once it was asked: to ask takes longer than most tests do."""
    return {}


@pytest.fixture(params=STORES)
def store(
    request: pytest.FixtureRequest, found: dict[str, Findings | Capabilities]
) -> Iterator[ObjectStore]:
    """An empty store, probed."""
    name: str = request.param
    with closing(STORES[name](request)) as opened:
        opened.check()
        known = found.get(name)
        if isinstance(opened, S3Store) and isinstance(known, Findings):
            opened._found = known
        elif isinstance(opened, SwiftStore) and isinstance(known, Capabilities):
            opened._capabilities = known
        else:
            opened.probe()
            if isinstance(opened, S3Store):
                found[name] = opened._found
            elif isinstance(opened, SwiftStore):
                found[name] = opened.capabilities
        yield opened


@pytest.fixture
def kind(request: pytest.FixtureRequest, store: ObjectStore) -> str:
    """Which of `STORES` it is."""
    name: str = request.node.callspec.params["store"]
    return name
