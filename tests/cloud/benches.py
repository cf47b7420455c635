"""Cloud managers on each kind of storage, with what a test does to both ends behind their backs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cachefs import CloudManager
from cachefs.client import ControlClient
from tests.mount.harness import Mount
from tests.mount.stores import FileBucket


class Bench(ABC):
    """A database, a storage, and the directory that is the first remote."""

    remote: Path

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "db.sqlite3"

    @abstractmethod
    def manager(
        self,
        capacity: int = 1000,
        remotes: Sequence[str] = (),
        *,
        copies: int = 1,
        background: bool = False,
        database: str = "db.sqlite3",
    ) -> CloudManager:
        """A manager whose first remote is ours, with *remotes* beside."""

    @abstractmethod
    def lose(self, digest: str) -> None:
        """Let the bytes of an uploaded file leave this machine."""

    def touch(self, digest: str, content: bytes | None) -> None:
        """Give a file at the first remote other bytes, or none (None: remove it), behind everybody's back."""
        path = self.remote / digest
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    def at_remote(self, digest: str) -> bytes:
        """The bytes of a file at the first remote."""
        return (self.remote / digest).read_bytes()

    def source(self, content: bytes, name: str = "source") -> Path:
        """A file to upload."""
        path = self.directory / name
        path.write_bytes(content)
        return path


class OwnBench(Bench):
    """A storage of the manager's own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.remote = directory / "first"
        self.remote.mkdir()

    def manager(
        self,
        capacity: int = 1000,
        remotes: Sequence[str] = (),
        *,
        copies: int = 1,
        background: bool = False,
        database: str = "db.sqlite3",
    ) -> CloudManager:
        return CloudManager(
            self.directory / database,
            self.directory / f"storage-of-{database}",
            capacity,
            remotes=[f"file://{self.remote}", *remotes],
            copies=copies,
            background=background,
            timeout_s=2,
        )

    def lose(self, digest: str) -> None:
        (self.directory / "storage-of-db.sqlite3" / digest).unlink()


class MountBench(Bench):
    """The cache of a running mount."""

    def __init__(self, directory: Path, mount: Mount, remote: Path) -> None:
        super().__init__(directory)
        self.mount = mount
        self.remote = remote

    def manager(
        self,
        capacity: int = 1000,
        remotes: Sequence[str] = (),
        *,
        copies: int = 1,
        background: bool = False,
        database: str = "db.sqlite3",
    ) -> CloudManager:
        return CloudManager(
            self.directory / database,
            self.mount / "files",
            capacity,
            remotes=remotes or None,
            copies=copies,
            background=background,
            timeout_s=2,
        )

    def lose(self, digest: str) -> None:
        self.ask("evict", path=f"files/{digest}")

    def touch(self, digest: str, content: bytes | None) -> None:
        super().touch(digest, content)
        self.ask("refresh", path="")  # else it believes for a minute what it knows

    def ask(self, verb: str, *, path: str) -> object:
        """Ask the daemon."""
        with ControlClient(self.mount.cache_dir / "control.sock") as client:
            return client.ask(verb, path=path)


@contextmanager
def bench(kind: str, directory: Path, *options: str) -> Iterator[Bench]:
    """Make one; *options* are the mount's."""
    if kind == "own":
        yield OwnBench(directory)
        return
    store = FileBucket(directory / "bucket")
    chosen = ("--upload", "background", "--upload-delay", "1h")
    options = (*chosen, "--timeout", "2s", *options)
    with Mount(store.target(), directory / "mount", options, watchdog_s=100) as mount:
        yield MountBench(directory, mount, store.directory / "files")
