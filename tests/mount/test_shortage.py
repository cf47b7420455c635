"""The daemon is out of descriptors, of threads, of memory: what programs get, and that it passes."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]


def _limit(mount: Mount, what: int, soft: int) -> None:
    """Lower a limit of the running daemon, or raise it again."""
    assert mount.process is not None
    _, hard = resource.prlimit(mount.process.pid, what)
    resource.prlimit(mount.process.pid, what, (soft, hard))


def _descriptors(mount: Mount) -> int:
    assert mount.process is not None
    return len(os.listdir(f"/proc/{mount.process.pid}/fd"))


@pytest.mark.soak
def test_the_daemon_takes_as_many_descriptors_as_it_may(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = new_store("file").target()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))  # which the daemon inherits
    try:
        with mounting(target) as mount:
            assert mount.process is not None
            assert resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", ["file", pytest.param("moto", marks=pytest.mark.soak)])
def test_more_open_files_than_descriptors_is_emfile_and_passes(
    new_store: Callable[[str], LiveStore], mounting: Mounting, kind: str
) -> None:
    store = new_store(kind)
    contents = {f"f{i:03}": programs.pattern(f"f{i}", 0, 5000 + i) for i in range(100)}
    for key, content in contents.items():
        store.put(key, content)
    with mounting(store.target(), "--timeout", "5s") as mount:
        assert sorted(mount.do(os.listdir, mount.mountpoint)) == sorted(contents)
        _limit(mount, resource.RLIMIT_NOFILE, 64)
        opened, refused = mount.do(programs.open_many, mount.mountpoint, sorted(contents))
        assert set(refused.values()) == {errno.EMFILE}, refused
        assert len(opened) >= 16
        for name, fd in opened.items():
            assert mount.do(programs.read_fd, fd) == contents[name]
        assert mount.do(programs.outcome_of_stat, mount / "nothing") == errno.ENOENT
        assert mount.status()["open_handles"] == len(opened)

        mount.do(programs.close_all, list(opened.values()))
        assert mount.do(programs.read_tree, mount.mountpoint) == contents
        mount.do(programs.write_file, mount / "new", b"new")
        _limit(mount, resource.RLIMIT_NOFILE, 1024)
        opened, refused = mount.do(programs.open_many, mount.mountpoint, sorted(contents))
        assert (len(opened), refused) == (100, {})
    assert store.view() == {**contents, "new": b"new"}


def test_writers_without_descriptors_lose_nothing(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    options = ("--upload", "background", "--upload-delay", "0s", "--timeout", "5s")
    with mounting(store.target(), *options) as mount:
        mount.do(programs.write_file, mount / "acknowledged", b"before")
        fd = mount.do(os.open, mount / "open", os.O_RDWR | os.O_CREAT)
        mount.do(os.write, fd, b"first ")
        _limit(mount, resource.RLIMIT_NOFILE, _descriptors(mount))
        outcomes = [mount.do(programs.fill, mount / f"f{i}", 5000) for i in range(6)]
        assert {number for _, number in outcomes} <= {0, errno.EMFILE, errno.EIO}
        assert {number for _, number in outcomes} != {0}
        _limit(mount, resource.RLIMIT_NOFILE, 1024)
        mount.do(os.write, fd, b"second")
        assert mount.do(programs.errno_of_close, fd) == 0
        mount.flush()
        mount.wait_clean()
        for i in range(6):
            assert mount.do(programs.fill, mount / f"f{i}", 5000) == (5000, 0)
    assert store.view() == {
        "acknowledged": b"before",
        "open": b"first second",
        **{f"f{i}": programs.pattern(f"f{i}", 0, 5000) for i in range(6)},
    }


@pytest.mark.soak
def test_without_memory_programs_get_errors_and_then_everything_goes_on(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    contents = {f"f{i}": programs.pattern(f"f{i}", 0, 700_000) for i in range(6)}
    for key, content in contents.items():
        store.put(key, content)
    with mounting(store.target(), "--timeout", "3s") as mount:
        mount.tracebacks_expected = True
        assert mount.process is not None
        mount.do(programs.write_file, mount / "acknowledged", b"safe")
        pages = int(Path(f"/proc/{mount.process.pid}/statm").read_text().split()[0])
        size = pages * resource.getpagesize()
        # No further thread has a stack: those there are do what there is to do.
        _limit(mount, resource.RLIMIT_AS, size)
        outcomes = [
            mount.do(programs.outcome, programs.read_file, mount / name) for name in contents
        ]
        assert {number for _, number in outcomes} <= {
            0,
            errno.ENOMEM,
            errno.EIO,
            errno.EHOSTUNREACH,
        }
        assert mount.process.poll() is None
        _limit(mount, resource.RLIMIT_AS, resource.RLIM_INFINITY)

        assert mount.do(programs.read_tree, mount.mountpoint) == {
            **contents,
            "acknowledged": b"safe",
        }
        mount.do(programs.write_file, mount / "new", b"new")
    assert store.view() == {**contents, "acknowledged": b"safe", "new": b"new"}
