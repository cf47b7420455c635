"""A cache directory is private, and one process's at a time."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs.core.errors import InUse, UsageError
from cachefs.local.db import Database
from cachefs.local.directory import CacheDirectory, Sessions, boot_id

HOLD = """
import sys
from pathlib import Path
from cachefs.local.directory import CacheDirectory
held = CacheDirectory(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


def test_a_new_directory_is_its_owners_alone_and_backups_skip_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache"
    directory = CacheDirectory(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "lock").stat().st_mode & 0o777 == 0o600
    tag = (path / "CACHEDIR.TAG").read_text("ascii")
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55")
    directory.close()


def test_the_lock_tells_the_holders_pid(tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path / "c")
    assert (tmp_path / "c" / "lock").read_text() == f"{os.getpid()}\n"
    directory.close()


def test_a_directory_in_use_names_the_process_that_has_it(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path / "c") as holder:
        with pytest.raises(InUse, match=rf"in use by process {holder.pid}\b"):
            CacheDirectory(tmp_path / "c")
        # To be refused changes nothing: the next one is told the same.
        with pytest.raises(InUse, match=rf"in use by process {holder.pid}\b"):
            CacheDirectory(tmp_path / "c")


def test_a_killed_holder_leaves_the_directory_free(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path / "c") as holder:
        holder.kill()
        holder.wait()
        CacheDirectory(tmp_path / "c").close()


def test_the_pid_of_a_longer_number_does_not_linger(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(mode=0o700)
    (tmp_path / "c" / "lock").write_text("12345678901\n")
    directory = CacheDirectory(tmp_path / "c")
    assert (tmp_path / "c" / "lock").read_text() == f"{os.getpid()}\n"
    directory.close()


def test_a_directory_can_be_taken_again_after_close(tmp_path: Path) -> None:
    first = CacheDirectory(tmp_path / "c")
    with pytest.raises(InUse):
        CacheDirectory(tmp_path / "c")
    first.close()
    first.close()
    CacheDirectory(tmp_path / "c").close()


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o740, 0o755, 0o777, 0o702])
def test_a_directory_that_is_open_to_others_is_refused_and_left_alone(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "c"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(UsageError, match="open to other users"):
        CacheDirectory(path)
    assert list(path.iterdir()) == []
    assert path.stat().st_mode & 0o777 == mode


def test_a_symlink_is_refused_for_whoever_made_it_could_turn_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "c").symlink_to(tmp_path / "real")
    with pytest.raises(UsageError, match="not a directory"):
        CacheDirectory(tmp_path / "c")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_lock_that_is_a_symlink_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (tmp_path / "c").mkdir(mode=0o700)
    (tmp_path / "c" / "lock").symlink_to(precious)
    with pytest.raises(UsageError, match="cannot use the cache directory"):
        CacheDirectory(tmp_path / "c")
    assert precious.read_text() == "keep me"


@pytest.mark.parametrize("below", ["c", "c/d"])
def test_a_file_in_the_way_is_one_line_for_the_operator(tmp_path: Path, below: str) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UsageError, match="cannot use the cache directory"):
        CacheDirectory(tmp_path / below)


def test_the_boot_has_an_id_that_stays() -> None:
    assert boot_id()
    assert boot_id() == boot_id()


def test_a_full_disk_still_has_room_for_the_next_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path)
    sessions = Sessions(tmp_path, database)
    sessions.begin()
    before = (tmp_path / "session").read_text()
    synced, calls = os.fsync, iter([OSError(errno.ENOSPC, "full")])

    def fsync(descriptor: int) -> None:
        named = os.readlink(f"/proc/self/fd/{descriptor}")
        if named.endswith("session.new") and (failure := next(calls, None)):
            raise failure
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    sessions.begin()
    database.close()

    after = (tmp_path / "session").read_text()
    assert len(after) == len(before)
    assert after != before
    database = Database(tmp_path)
    assert Sessions(tmp_path, database).is_latest
    database.close()


def test_a_disk_without_room_for_the_lock_is_told_of_and_the_lock_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"

    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", pwrite)
        with pytest.raises(UsageError, match="make room"):
            CacheDirectory(place)
    CacheDirectory(place).close()
