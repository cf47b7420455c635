"""CloudManager in the cache of a mount: one limit, leases, and what the mount's other doors do."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs import CloudManager
from cachefs.client import ControlError
from cachefs.cloud.shelf import Shelf
from cachefs.core.errors import Stale, Unreachable, UsageError
from tests.cloud.benches import MountBench, bench
from tests.mount import programs
from tests.mount.harness import cachefs

MIB = 2**20

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def on(tmp_path: Path) -> Iterator[MountBench]:
    with bench("mount", tmp_path, "--cache-size", "4MiB") as made:
        assert isinstance(made, MountBench)
        yield made


def test_its_files_are_the_mounts_own_and_leased_until_it_is_closed(on: MountBench) -> None:
    content = os.urandom(MIB)
    with on.manager(8 * MIB) as manager:
        digest = manager.upload(on.source(content))
        assert digest
        assert manager.cloud_sync()
        path = Path(str(manager.warm_up(digest)))
        assert on.mount.do(programs.read_file, on.mount / f"files/{digest}") == content
        cached = {each.stat().st_ino for each in (on.mount.cache_dir / "data").iterdir()}
        assert path.stat().st_ino in cached
        with pytest.raises(ControlError, match="is leased"):
            on.ask("evict", path=f"files/{digest}")
        assert manager.warm_up(digest) == str(path)
        assert on.mount.status()["leased"]["leases"] == 1
    assert on.mount.status()["leased"]["leases"] == 0
    assert not path.exists()
    on.ask("evict", path=f"files/{digest}")


def test_the_limit_of_the_cache_holds_whatever_its_capacity(on: MountBench) -> None:
    contents = {name: os.urandom(MIB) for name in "abcdef"}
    with on.manager(64 * MIB) as manager:
        digests = {}
        for name, content in contents.items():
            digests[name] = manager.upload(on.source(content))
            assert digests[name], name
            assert manager.cloud_sync()
            assert on.mount.status()["cache"]["used"] <= 4 * MIB
        for name, content in contents.items():
            assert Path(str(manager.warm_up(str(digests[name])))).read_bytes() == content
            assert on.mount.status()["cache"]["used"] <= 4 * MIB
        assert manager.used_space() <= 4 * MIB


def test_what_the_mount_uploads_and_evicts_by_itself_is_had_again(on: MountBench) -> None:
    content = os.urandom(MIB)
    with on.manager(8 * MIB) as manager:
        digest = manager.upload(on.source(content))
        assert digest
        on.mount.flush()
        on.mount.wait_clean()
        on.lose(digest)  # and nothing was noted of the copy in the bucket
        assert Path(str(manager.warm_up(digest))).read_bytes() == content

        other = manager.upload(on.source(content[:1000]))
        assert other
        on.mount.flush()
        on.mount.wait_clean()
        on.lose(other)
        assert manager.cloud_sync()
        assert manager.upload_queue_info()["count"] == 0
        assert not manager.on_cache(other)  # it was not fetched for that


def test_what_another_door_holds_is_not_removed_for_its_room(on: MountBench) -> None:
    held, free = os.urandom(MIB), os.urandom(MIB)
    with on.manager(2 * MIB + 1000) as manager:
        first, second = manager.upload(on.source(held)), manager.upload(on.source(free))
        assert first
        assert second
        assert manager.cloud_sync()
        fd = on.mount.do(os.open, on.mount / f"files/{first}", os.O_RDONLY)
        assert manager.make_room_for(MIB)
        assert manager.on_cache(first)
        assert not manager.on_cache(second)
        assert not manager.make_room_for(int(1.5 * MIB))
        assert on.mount.do(programs.read_fd, fd) == held
        on.mount.do(os.close, fd)


def test_what_changes_while_it_is_read_never_takes_the_place_of_a_good_copy(
    on: MountBench,
) -> None:
    source = on.source(b"before")
    with on.manager() as manager:
        digest = manager.upload(source)
        assert digest
        assert manager.cloud_sync()
        known = manager._known(digest)
        assert known is not None
        storage = manager._storage
        assert isinstance(storage, Shelf)
        assert storage._evict(digest)
        storage._note(known, None, "said")  # by a dump: nobody has seen it there
        with source.open("rb") as file:
            source.write_bytes(b"after!")
            with pytest.raises(Stale):
                storage.take_in(file, known)

        assert on.at_remote(digest) == b"before"
        assert Path(str(manager.warm_up(digest))).read_bytes() == b"before"


def test_what_was_uploaded_survives_a_kill_of_the_mount(on: MountBench) -> None:
    with on.manager(2 * MIB) as manager:
        digest = manager.upload(on.source(b"waits"))
        assert digest
        on.mount.kill()
        with pytest.raises(Unreachable):
            manager.warm_up(digest)
        on.mount.start()
        assert Path(str(manager.warm_up(digest))).read_bytes() == b"waits"
        assert manager.cloud_sync()
    assert on.at_remote(digest) == b"waits"


def test_a_mistake_is_said(on: MountBench, tmp_path: Path) -> None:
    mine = f"file://{on.mount.target.source.removeprefix('file://')}/files"
    with pytest.raises(UsageError, match="named once"):
        on.manager(remotes=[mine])
    with pytest.raises(UsageError, match="number of remotes"):
        on.manager(copies=2)
    on.mount.kill(leave_stale=True)
    with pytest.raises(UsageError, match="no running cachefs mount"):
        on.manager()
    on.mount.unmount_lazily()
    with CloudManager(tmp_path / "own", on.mount / "files", 1000) as manager:
        assert manager.upload(on.source(b"of its own"))  # a directory like any other now
    cleared = cachefs("status", "--json", env=on.mount.env)
    assert cleared.returncode in {0, 1}
