"""``cachefs verify`` beside a mount of real stores: a cache broken in every way is told rightly, and mended."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.client import ControlClient
from tests.mount import programs
from tests.mount.harness import Mount, environment
from tests.mount.stores import LiveStore
from tests.mount.test_verify import CELLS, LARGE, OLD_S, WATCHDOG_S, Tool, cost, grow

Mounting = Callable[..., Mount]

pytestmark = pytest.mark.timeout(WATCHDOG_S + 60)


@pytest.fixture
def tool(store: LiveStore, tmp_path: Path) -> Tool:
    home = tmp_path / "home"
    home.mkdir()
    target = store.target()
    return Tool(environment(home, target.environment), target.options)


def cached_file(mount: Mount, path: str) -> Path:
    """The file in the cache directory that holds the bytes of *path*."""
    with ControlClient(mount.cache_dir / "control.sock") as client:
        after = 0
        while page := client.ask("entries", after=after):
            assert isinstance(page, list)
            for row in page:
                if row["path"] == path:
                    return mount.cache_dir / "data" / str(row["id"])
            after = page[-1]["id"]
    raise AssertionError(f"{path} is not cached")


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def age(mount: Mount) -> None:
    """Let cache files be old enough for what is hashed of them to be believed."""
    for path in (mount.cache_dir / "data").iterdir():
        os.utime(path, (OLD_S, OLD_S))


@pytest.mark.parametrize(("store", "files"), CELLS, indirect=["store"])
def test_a_cache_broken_in_every_way_is_told_and_mended_while_the_mount_serves(
    store: LiveStore, files: int, tool: Tool, mounting: Mounting, tmp_path: Path
) -> None:
    root, dest = tmp_path / "tree", store.target().source
    names = grow(root, files, store)
    tool.run("push", root, dest, code=0)
    # Nothing is uploaded until somebody asks for it, and the mount itself does not notice what others do.
    patient = ("--upload", "background", "--upload-delay", "3600s", "--metadata-ttl", "3600s")
    with mounting(store.target(), *patient, watchdog_s=WATCHDOG_S) as mount:
        # What the mount was told of the store is what verify goes by: no options are repeated.
        beside = Tool(mount.env, ())
        beside.run("preheat", mount.mountpoint, "--from-dir", root, code=0)
        age(mount)

        first = beside.run("verify", mount.mountpoint, code=0)
        took = [beside.seconds]
        second = beside.run("verify", mount.mountpoint, code=0)
        took.append(beside.seconds)
        cached = sum((root / name).stat().st_size > 0 for name in names)
        assert f"{cached} files: {cached} the same" in first.stdout
        assert cost(second.stdout) == ("0 B", 0)
        print(f"{store.name}: {len(names)} files: first {took[0]:.1f} s, second {took[1]:.1f} s")
        print(first.stdout + second.stdout)

        flip(cached_file(mount, "large1"), LARGE // 2)
        flip(cached_file(mount, names[7]), 0)
        store.put(names[3], b"replaced there")
        store.delete(names[4])
        store.delete("large0")
        mount.do(programs.write_file, mount / "d00/waiting", b"not stored yet")
        found, _ = beside.states(mount.mountpoint, code=1)
        assert found == {
            "large1": "rotted",
            names[7]: "rotted",
            names[3]: "stale",
            names[4]: "missing_remote",
            "large0": "missing_remote",
            "d00/waiting": "queued",
        }

        beside.states(mount.mountpoint, "--repair", "--wait", code=0)

        assert beside.states(mount.mountpoint, code=0)[0] == {names[3]: "stale"}
        for name in ("large0", "large1", names[4], names[7]):
            wanted = (root / name).read_bytes()
            assert store.get(name) == wanted
            assert mount.do(programs.read_file, mount / name) == wanted
        assert store.get("d00/waiting") == b"not stored yet"
        assert mount.status()["conflicts"] == []
