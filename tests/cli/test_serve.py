"""The end of a daemon that cannot wait any longer: what it tidies up, and what it leaves alone."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cachefs.cli import serve
from cachefs.cli.serve import Daemon, Left
from cachefs.config import ConfigFile, Environment, mount_config
from cachefs.mounts import Mount
from cachefs.remote.open import open_store

DRIVE = Path("/mnt/drive")
OURS = Mount(DRIVE, "file:///store", "fuse.cachefs", "0:52", 101)
ELSEWHERE = Mount(Path("/mnt/elsewhere"), "file:///store", "fuse.cachefs", "0:52", 102)
OTHERS = Mount(Path("/mnt/others"), "tmpfs", "tmpfs", "0:52", 101)
"""What has got the number of a file system that is gone."""


@dataclass
class Kernel:
    """The table of what is mounted, and who serves it."""

    table: list[Mount]
    is_served: bool = True
    """Whether what the daemon serves is still in the table."""
    unmounted: list[Mount] = field(default_factory=list)

    def mount_at(self, mountpoint: Path) -> Mount | None:
        return next((each for each in self.table if each.mountpoint == mountpoint), None)

    def mounts_of(self, device: str) -> list[Mount]:
        return [each for each in self.table if each.device == device]

    def serves_a_mount(self) -> bool:
        return self.is_served

    def unmount(self, mountpoint: Path, *, as_root: bool, lazily: bool) -> str | None:
        found = self.mount_at(mountpoint)
        assert found is not None
        self.table.remove(found)
        self.unmounted.append(found)
        return None


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel([OURS, ELSEWHERE])
    for name in ("mount_at", "mounts_of", "serves_a_mount", "unmount"):
        monkeypatch.setattr(serve, name, getattr(made, name))
    return made


@pytest.fixture
def left() -> list[Left | None]:
    """What a daemon has said to be left, each time that it left."""
    return []


@pytest.fixture
def daemon(kernel: Kernel, left: list[Left | None], tmp_path: Path) -> Daemon:
    """One that is mounted, with a cache directory of its own."""
    store = tmp_path / "store"
    store.mkdir()
    variables = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    environment = Environment(variables, uid=1000, gid=1000)
    config = mount_config(
        f"file://{store}", str(DRIVE), (), file=ConfigFile(), environment=environment
    )
    config.cache_dir.mkdir(parents=True)
    made = Daemon(
        config,
        DRIVE,
        environment,
        open_store(config.source, config.store, timeout_s=1, environ={}),
        lambda: None,
        left.append,
    )
    made._ready()
    return made


def test_who_leaves_takes_its_own_file_system_out_of_the_tree_wherever_it_is(
    daemon: Daemon, kernel: Kernel, left: list[Left | None]
) -> None:
    daemon._give_up([])

    assert kernel.unmounted == [OURS, ELSEWHERE]
    assert left == [[]]


def test_who_leaves_when_its_file_system_is_gone_leaves_alone_what_has_its_number(
    daemon: Daemon, kernel: Kernel, left: list[Left | None]
) -> None:
    kernel.table, kernel.is_served = [OTHERS], False

    daemon._give_up([])

    assert kernel.unmounted == []
    assert left == [[]]


def test_what_was_taken_away_once_is_not_ours_when_it_is_there_again(
    daemon: Daemon, kernel: Kernel
) -> None:
    assert daemon._is_seen()
    kernel.is_served = False  # the serving ends, and with it the mount that was seen
    kernel.table = [ELSEWHERE]
    daemon._clear_elsewhere()
    assert kernel.unmounted == [ELSEWHERE]
    kernel.table = [
        ELSEWHERE
    ]  # another daemon's: the kernel gives the lowest numbers that are free

    daemon._give_up([])

    assert kernel.table == [ELSEWHERE]


def test_who_cannot_tidy_up_leaves_all_the_same(
    daemon: Daemon, left: list[Left | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(serve, "mounts_of", fail)

    daemon._give_up([])

    assert left == [[]]
