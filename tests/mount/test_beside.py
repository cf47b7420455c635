"""What else works on a cache directory: tools beside a daemon, a program that locks the database, what a kill leaves."""

import contextlib
import fcntl
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, MountFailed, cachefs, wait_until
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
LATER = ("--upload", "background", "--upload-delay", "600s")


def recover(mount: Mount, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return cachefs("recover", *words, "--cache-dir", mount.cache_dir, env=mount.env)


def waiting(mount: Mount) -> list[str]:
    """The paths of what waits, as ``cachefs recover list`` tells it."""
    done = recover(mount, "list", "--json")
    assert done.returncode == 0, done.stderr
    (cache,) = json.loads(done.stdout)["caches"]
    return sorted(file["path"] for file in cache["files"])


def test_every_tool_beside_a_daemon_asks_it_and_takes_no_lock(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    store = new_store("file")
    with mounting(store.target(), *LATER) as mount:
        assert mount.process is not None
        for name in ("a", "b", "c", "d"):
            mount.do(programs.write_file, mount / name, name.encode())
        holder = (mount.cache_dir / "lock").read_text()
        assert waiting(mount) == ["a", "b", "c", "d"]
        assert recover(mount, "export", "a", "--to", tmp_path / "out").returncode == 0
        assert (tmp_path / "out" / "a").read_bytes() == b"a"
        assert recover(mount, "discard", "b", "--yes").returncode == 0
        assert recover(mount, "upload", "c").returncode == 0
        assert store.view() == {"c": b"c"}
        assert [file["path"] for file in mount.status()["dirty"]] == ["a", "d"]
        done = cachefs("flush", mount / "a", "--wait", env=mount.env)
        assert done.returncode == 0, done.stderr
        assert store.view() == {"a": b"a", "c": b"c"}
        assert (mount.cache_dir / "lock").read_text() == holder == f"{mount.process.pid}\n"
        assert mount.do(os.listdir, mount.mountpoint) == ["a", "c", "d"]


def test_what_is_named_is_one_whole_cache_and_never_another_one_than_the_mounts(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    store = new_store("file")
    store.put("d/a", b"a")
    with mounting(store.target()) as mount:
        place, other = mount.mountpoint, tmp_path / "other"

        def asked(*words: str | Path) -> tuple[int, str]:
            done = cachefs(*words, env=mount.env)
            return done.returncode, done.stdout + done.stderr

        by_source = asked("prune", store.target().source)
        by_both = asked("prune", place, "--cache-dir", mount.cache_dir)
        told = {
            command: (
                asked(command, place, "--cache-dir", other),
                asked(command, mount / "d"),
            )
            for command in ("prune", "verify", "preheat")
        }

    assert by_source == by_both
    assert by_both[0] == 0
    assert by_both[1].startswith("nothing to do: the cache takes 0 B")
    for of_other, of_part in told.values():
        assert of_other == (
            2,
            f"cachefs: --cache-dir {other} is not the cache of {place}, which is in {mount.cache_dir}"
            " — name one of the two\n",
        )
        assert of_part == (
            2,
            f"cachefs: {place}/d lies in the mount {place} — name that: this is about the whole of a cache\n",
        )
    assert not other.exists()


@pytest.mark.soak
def test_without_a_daemon_a_tool_takes_the_lock_and_respects_that_of_another(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    with mounting(store.target(), *LATER) as mount:
        mount.do(programs.write_file, mount / "a", b"a")
        mount.kill()
        # Whatever the kill has left hinders nobody: neither a tool nor the next mount.
        assert (mount.cache_dir / "control.sock").exists()
        assert waiting(mount) == ["a"]
        with (mount.cache_dir / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.truncate()
            lock.write("4711\n")
            lock.flush()
            for words in (("discard", "a", "--yes"), ("export", "a", "--to", "/tmp/nowhere")):
                done = recover(mount, *words)
                assert done.returncode == 2
                assert "4711" in done.stderr
            with pytest.raises(MountFailed, match="4711") as refused:
                mount.start()
            assert refused.value.returncode == 2
        mount.start()
        mount.flush()
        mount.wait_clean()
        assert store.view() == {"a": b"a"}


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(mount: Mount) -> Iterator[None]:
    """A process of its own holds the database, as long as the block runs."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(mount.cache_dir / "cachefs.sqlite3")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"locked\n"
            yield
        finally:
            process.stdin.close()
            process.wait(20)


@pytest.mark.soak
def test_a_database_that_another_program_holds_locked_is_said_and_nothing_is_lost(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    store.put("cached", b"cached")
    with mounting(store.target(), *LATER) as mount:
        mount.do(programs.write_file, mount / "a", b"acknowledged")
        assert mount.do(programs.read_file, mount / "cached") == b"cached"
        holding = mount.hands()
        fd = holding.do(os.open, mount / "cached", os.O_RDONLY)
        with locked(mount):
            with pytest.raises(OSError, match="Errno 5"):
                mount.do(programs.write_file, mount / "b", b"x")
            assert holding.do(programs.read_fd, fd) == b"cached"
        mount.do(programs.write_file, mount / "b", b"y")
        mount.kill()

        with (
            locked(mount),
            pytest.raises(MountFailed, match="locked by another program") as refused,
        ):
            mount.start()
        assert refused.value.returncode == 1
        assert not list(mount.cache_dir.glob("*.broken-*"))
        mount.start()
        mount.flush()
        mount.wait_clean()
    assert store.view() == {"a": b"acknowledged", "b": b"y", "cached": b"cached"}


@pytest.mark.parametrize(
    "harm",
    [
        "garbage",
        pytest.param("older", marks=pytest.mark.soak),
        pytest.param("removed", marks=pytest.mark.soak),
        pytest.param("log removed", marks=pytest.mark.soak),
    ],
)
def test_a_database_that_is_harmed_is_made_anew_by_the_next_mount_and_nothing_is_lost(
    new_store: Callable[[str], LiveStore], mounting: Mounting, harm: str
) -> None:
    store = new_store("moto")
    store.put("kept", b"of another")
    store.put("replaced", b"old")
    store.put("half", b"whole")
    with mounting(store.target(), *LATER) as mount:
        older = {path.name: path.read_bytes() for path in mount.cache_dir.glob("cachefs.sqlite3")}
        mount.remount()
        assert mount.do(programs.read_file, mount / "kept") == b"of another"
        mount.do(os.mkdir, mount / "new")
        mount.do(programs.write_file, mount / "new/file", b"acknowledged")
        mount.do(programs.write_file, mount / "replaced", b"newer")
        mount.do(programs.write_file, mount / "before", b"renamed")
        mount.do(os.rename, mount / "before", mount / "after")
        hands = mount.hands()
        fd = hands.do(os.open, mount / "half", os.O_RDWR)
        hands.do(os.pwrite, fd, b"half", 0)
        mount.kill()
        do_harm(mount.cache_dir, harm, older)
        mount.start()
        assert "it is set aside" in mount.log_text()
        assert list(mount.cache_dir.glob("*.broken-*"))
        assert mount.do(programs.read_file, mount / "new/file") == b"acknowledged"
        mount.flush()
        mount.wait_clean(but_parked=True)
        assert [file["path"] for file in mount.status()["dirty"]] == ["half"]
    assert store.view() == {
        "kept": b"of another",
        "replaced": b"newer",
        "half": b"whole",
        "new/file": b"acknowledged",
        "after": b"renamed",
    }


def do_harm(cache_dir: Path, harm: str, older: dict[str, bytes]) -> None:
    main = cache_dir / "cachefs.sqlite3"
    if harm == "garbage":
        main.write_bytes(os.urandom(main.stat().st_size))
    if harm == "removed":
        main.write_bytes(b"\0" * 100)
    if harm == "older":
        main.write_bytes(older[main.name])
    if harm != "garbage":
        for suffix in ("-wal", "-shm"):
            Path(f"{main}{suffix}").unlink(missing_ok=True)


def test_a_database_of_a_newer_version_is_refused_with_one_line(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    mount = mounting(new_store("file").target())
    with mount:
        mount.stop()
        with sqlite3.connect(mount.cache_dir / "cachefs.sqlite3") as connection:
            connection.execute("UPDATE meta SET value = '999' WHERE name = 'schema'")
        connection.close()
        before = (mount.cache_dir / "cachefs.sqlite3").read_bytes()
        with pytest.raises(MountFailed, match="written by a newer cachefs") as refused:
            mount.start()
        assert refused.value.returncode == 2
        assert refused.value.stderr.count("\n") == 1
        assert (mount.cache_dir / "cachefs.sqlite3").read_bytes() == before


@pytest.mark.soak
def test_garbage_in_the_database_under_a_running_daemon_is_an_error_and_the_next_mount_recovers(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    with mounting(store.target(), *LATER) as mount:
        for i in range(40):
            mount.do(programs.write_file, mount / f"file{i}", b"acknowledged %d" % i)
        main = mount.cache_dir / "cachefs.sqlite3"
        with contextlib.closing(sqlite3.connect(main)) as connection:
            # What others change is read anew; the rest the daemon has in memory.
            connection.execute("UPDATE inodes SET checked_ns = 0 WHERE ino = 1")
            connection.commit()
            for path in (main, Path(f"{main}-wal")):
                with path.open("r+b") as file:
                    file.write(os.urandom(path.stat().st_size))

        def is_noticed() -> bool:
            mount.do(programs.outcome, programs.write_file, mount / "more", b"x")
            return "damaged" in mount.log_text()

        wait_until(is_noticed, "the damage is met")
        assert mount.process is not None
        assert mount.process.poll() is None
        mount.tracebacks_expected = True
        mount.stop()
        mount.start()
        mount.flush()
        mount.wait_clean(but_parked=True)
        kept = {f"file{i}": b"acknowledged %d" % i for i in range(40)}
        assert kept.items() <= store.view().items()
        assert store.view().keys() - kept.keys() <= {"more"}
