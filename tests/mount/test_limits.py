"""The README's tables of what an object store cannot bear: each row is tried, and gives what the row says."""

import errno
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.mount import calls, programs
from tests.mount.harness import ROOT, Hands, Mount
from tests.mount.stores import LiveStore

MIB: Final = 1 << 20
LARGE: Final = 20 * MIB
"""More than the cache holds."""
SECTION: Final = (
    (ROOT / "README.md")
    .read_text("utf-8")
    .partition("## What an object store cannot bear")[2]
    .partition("\n## ")[0]
)
ROWS: Final = dict(re.findall(r"^\| (.+?) \| (.+) \|$", SECTION, re.MULTILINE))
REFUSALS: Final = {what: gets for what, gets in ROWS.items() if re.match(r"`E[A-Z0-9]+`", gets)}
DIFFERENCES: Final = {
    what: how
    for what, how in ROWS.items()
    if what not in REFUSALS and not what.startswith(("---", "what"))
}


@dataclass(frozen=True)
class Place:
    """Where a row is tried: a directory of its own in the mount, with a file and a directory in it."""

    store: LiveStore
    mount: Mount
    here: Path

    @property
    def file(self) -> Path:
        return self.here / "file"

    @property
    def directory(self) -> Path:
        return self.here / "dir"

    def refused(self, function: Callable[..., object], *args: object) -> str:
        """Call it in the mount; return the name of the error that it must give."""
        return self.refused_by(self.mount, function, *args)

    def refused_by(
        self, who: Mount | Hands, function: Callable[..., object], *args: object
    ) -> str:
        """As :meth:`refused`, by that process."""
        with pytest.raises(OSError, match="Errno") as refusal:
            who.do(function, *args)
        assert refusal.value.errno is not None
        return errno.errorcode[refusal.value.errno]


Try = Callable[[Place], set[str]]
TRIES: Final[dict[str, Try]] = {}


def row(what: str) -> Callable[[Try], Try]:
    """Note that the function tries the row that begins so. It returns the errors that the program got."""

    def note(function: Try) -> Try:
        (found,) = (each for each in ROWS if each.startswith(what))
        assert found not in TRIES
        TRIES[found] = function
        return function

    return note


@pytest.fixture(scope="module")
def kept(
    new_store: Callable[[str], LiveStore], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveStore, Mount]]:
    """A store and a mount with a small cache, shared by all rows."""
    store = new_store("moto")
    store.put("large/file", programs.pattern("large", 0, LARGE))
    base = tmp_path_factory.mktemp("kept") / "mount"
    with Mount(store.target(), base, ("--cache-size", "16MiB"), watchdog_s=280) as mount:
        yield store, mount


@pytest.fixture
def place(kept: tuple[LiveStore, Mount], request: pytest.FixtureRequest) -> Place:
    store, mount = kept
    number = sorted(ROWS).index(request.node.callspec.params["what"])
    here = mount / f"row {number}"
    mount.do(os.mkdir, here)
    mount.do(os.mkdir, here / "dir")
    mount.do(programs.write_file, here / "file", b"content")
    return Place(store, mount, here)


@pytest.mark.parametrize("what", REFUSALS)
def test_a_program_gets_the_error_that_the_readme_names_and_nothing_changes(
    what: str, place: Place
) -> None:
    wanted = set(re.findall(r"`(E[A-Z0-9]+)`", REFUSALS[what]))
    before = place.mount.do(programs.read_tree, place.here)

    got = TRIES[what](place)

    # One number with two names: which of them is said is the program's affair.
    assert {name.replace("EOPNOTSUPP", "ENOTSUP") for name in got} == {
        name.replace("EOPNOTSUPP", "ENOTSUP") for name in wanted
    }
    assert place.mount.do(programs.read_tree, place.here) == before
    assert sorted(place.mount.do(os.listdir, place.here)) == ["dir", "file"]


@pytest.mark.parametrize("what", DIFFERENCES)
def test_what_differs_from_a_local_disk_is_as_the_readme_says(what: str, place: Place) -> None:
    assert TRIES[what](place) == set()


def test_every_row_is_tried() -> None:
    assert len(REFUSALS) > 15
    assert len(DIFFERENCES) > 5
    assert set(TRIES) == set(REFUSALS) | set(DIFFERENCES)


# ---- what is refused ------------------------------------------------------------------------


@row("a hard link")
def _(place: Place) -> set[str]:
    return {place.refused(os.link, place.file, place.here / "link")}


@row("a device node")
def _(place: Place) -> set[str]:
    device = place.here / "device"
    place.mount.do(os.mkfifo, place.directory / "fifo")
    place.mount.do(calls.make_socket, place.directory / "socket")
    place.mount.do(os.remove, place.directory / "fifo")
    place.mount.do(os.remove, place.directory / "socket")
    return {
        place.refused(os.mknod, device, kind | 0o600, os.makedev(1, 3))
        for kind in (stat.S_IFCHR, stat.S_IFBLK)
    }


@row("to exchange two names")
def _(place: Place) -> set[str]:
    other = place.here / "other"
    got = {
        place.refused(calls.rename, place.file, place.directory, calls.RENAME_EXCHANGE),
        place.refused(calls.rename, place.file, other, calls.RENAME_WHITEOUT),
    }
    exists = place.refused(calls.rename, place.file, place.directory, calls.RENAME_NOREPLACE)
    assert exists == "EEXIST"
    place.mount.do(calls.rename, place.file, other, calls.RENAME_NOREPLACE)
    place.mount.do(calls.rename, other, place.file, calls.RENAME_NOREPLACE)
    return got


@row("to rename from one bucket to another")
def _(place: Place) -> set[str]:
    base = place.mount.base.parent / "everything"
    with Mount(place.store.target().everything(), base, watchdog_s=60) as mount:
        there = mount / place.store.bucket / place.here.name / "file"
        return {Place(place.store, mount, there).refused(os.rename, there, mount / "file")}


def _acl() -> bytes:
    """A list that gives user 1 more than the mode does: owner, that user, group, mask, others."""
    everybody = 0xFFFFFFFF
    entries = (
        (1, 6, everybody),
        (2, 6, 1),
        (4, 4, everybody),
        (16, 6, everybody),
        (32, 4, everybody),
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


@row("a POSIX access control list")
def _(place: Place) -> set[str]:
    access, default = "system.posix_acl_access", "system.posix_acl_default"
    return {
        place.refused(os.setxattr, place.file, access, _acl()),
        place.refused(os.setxattr, place.directory, default, _acl()),
        place.refused(os.getxattr, place.file, access),
    }


@row("an attribute of `security.`")
def _(place: Place) -> set[str]:
    return {
        place.refused(os.setxattr, place.file, name, b"x")
        for name in ("security.selinux", "trusted.x", "system.x")
    }


@row("`user.*` attributes of more")
def _(place: Place) -> set[str]:
    place.mount.do(os.setxattr, place.file, "user.one", b"x" * 1000)
    return {place.refused(os.setxattr, place.file, "user.two", b"x" * 1000)}


@row("one attribute of more than")
def _(place: Place) -> set[str]:
    return {place.refused(os.setxattr, place.file, "user.one", b"x" * (64 * 1024 + 1))}


@row("an attribute's name")
def _(place: Place) -> set[str]:
    return {place.refused(os.setxattr, place.file, f"user.{'n' * 251}", b"x")}


@row("to set `user.cachefs.*`")
def _(place: Place) -> set[str]:
    key = place.mount.do(os.getxattr, place.file, "user.cachefs.key")
    assert key == f"{place.here.name}/file".encode()
    assert place.mount.do(os.listxattr, place.file) == []
    return {place.refused(os.setxattr, place.file, "user.cachefs.key", b"x")}


@row("`fallocate(2)`")
def _(place: Place) -> set[str]:
    got = {
        place.refused(calls.fallocate, place.file, mode, 0, 4096)
        for mode in calls.FALLOCATE_MODES.values()
    }
    place.mount.do(programs.write_file, place.directory / "new", b"kept")
    place.mount.do(calls.posix_fallocate, place.directory / "new", 0, 10_000)
    found = place.mount.do(programs.read_file, place.directory / "new")
    assert found == b"kept".ljust(10_000, b"\0")
    place.mount.do(os.remove, place.directory / "new")
    return got


@row("a file without a name")
def _(place: Place) -> set[str]:
    return {place.refused(calls.open_unnamed, place.here)}


@row("to share blocks")
def _(place: Place) -> set[str]:
    target = place.directory / "clone"
    got = {place.refused(calls.clone, place.file, target)}
    place.mount.do(os.remove, target)
    return got


@row("flags of `chattr`")
def _(place: Place) -> set[str]:
    return {place.refused(calls.file_flags, place.file)}


@row("a swap file")
def _(place: Place) -> set[str]:
    return {place.refused(calls.swap_on, place.file)}


@row("a name of more than 255 bytes")
def _(place: Place) -> set[str]:
    long = place.here / ("n" * 256)
    return {
        place.refused(programs.write_file, long, b"x"),
        place.refused(os.mkdir, long),
        place.refused(os.rename, place.file, long),
    }


@row("a path that makes a key")
def _(place: Place) -> set[str]:
    deep = place.directory / "/".join(["p" * 240] * 4)
    place.mount.do(os.makedirs, deep)
    got = {
        place.refused(programs.write_file, deep / ("k" * 240), b"x"),
        place.refused(os.mkdir, deep / ("k" * 240)),
        place.refused(os.rename, place.file, deep / ("k" * 240)),
    }
    place.mount.run("rm", "-r", place.directory / ("p" * 240))
    return got


@row("a reserved name")
def _(place: Place) -> set[str]:
    reserved = place.here / "a~cachefs~b"
    return {
        place.refused(programs.write_file, reserved, b"x"),
        place.refused(os.mkdir, reserved),
        place.refused(os.symlink, "file", reserved),
        place.refused(os.rename, place.file, reserved),
    }


@row("a name that is not UTF-8")
def _(place: Place) -> set[str]:
    odd = place.here / "no text \udcff"
    return {
        place.refused(programs.write_file, odd, b"x"),
        place.refused(os.mkdir, odd),
        place.refused(os.symlink, "file", odd),
        place.refused(os.mkfifo, odd),
        place.refused(os.rename, place.file, odd),
    }


@row("a file of more than 5 TiB")
def _(place: Place) -> set[str]:
    return {
        place.refused(os.truncate, place.file, 5 * 2**40 + 1),
        place.refused(calls.extend, place.file, 2**63 - 1),
        place.refused(programs.write_at, place.file, 5 * 2**40, b"x"),
    }


@row("to change a part of a file that is larger")
def _(place: Place) -> set[str]:
    path = place.mount / "large/file"
    got = {place.refused(programs.write_at, path, 10, b"x")}
    assert place.mount.do(programs.wrong_ranges, path, "large", LARGE) == []
    place.mount.do(programs.write_file, path, b"replaced")
    assert place.store.get("large/file") == b"replaced"
    return got


# ---- what differs ---------------------------------------------------------------------------


@row("locks")
def _(place: Place) -> set[str]:
    place.mount.do(calls.lock_elsewhere, place.file)
    assert place.refused_by(place.mount.hands(), calls.lock_elsewhere, place.file) == "EAGAIN"
    with Mount(place.store.target(), place.mount.base.parent / "other", watchdog_s=60) as other:
        other.do(calls.lock_elsewhere, other / place.here.name / "file")
    return set()


@row("times of access")
def _(place: Place) -> set[str]:
    place.mount.do(os.utime, place.file, ns=(1_000_000_000, 2_000_000_000))
    place.mount.do(programs.read_file, place.file)
    assert place.mount.do(os.stat, place.file).st_atime_ns == 1_000_000_000
    return set()


@row("times of directories")
def _(place: Place) -> set[str]:
    place.mount.do(os.utime, place.directory, ns=(1_000_000_000, 2_000_000_000))
    assert place.mount.do(os.stat, place.directory).st_mtime_ns == 2_000_000_000
    place.mount.do(programs.write_file, place.directory / "new", b"")
    place.mount.do(os.remove, place.directory / "new")
    moved = place.mount.do(os.stat, place.directory).st_mtime_ns
    assert moved > 10**18
    place.mount.remount()
    assert place.mount.do(os.stat, place.directory).st_mtime_ns == moved
    with Mount(place.store.target(), place.mount.base.parent / "second", watchdog_s=60) as other:
        found = other.do(os.stat, other / place.here.name / "dir")
    assert found.st_mtime_ns == 2_000_000_000
    return set()


@row("sizes and links of directories")
def _(place: Place) -> set[str]:
    place.mount.do(os.mkdir, place.directory / "inner")
    found = place.mount.do(os.stat, place.directory)
    assert (found.st_size, found.st_nlink) == (0, 1)
    below = place.mount.run("find", place.here, "-type", "d").stdout
    assert below.count("\n") == 3, "find looks into each, whatever the links say"
    place.mount.do(os.rmdir, place.directory / "inner")
    return set()


@row("holes")
def _(place: Place) -> set[str]:
    path = place.directory / "sparse"
    place.mount.do(programs.write_file, path, b"start")
    place.mount.do(os.truncate, path, 12 * MIB)
    assert place.mount.do(calls.seek, path, 0, os.SEEK_HOLE) == 12 * MIB
    assert place.mount.do(calls.seek, path, 1 * MIB, os.SEEK_DATA) == 1 * MIB
    assert place.store.get(f"{place.here.name}/dir/sparse") == b"start".ljust(12 * MIB, b"\0")
    place.mount.do(os.remove, path)
    return set()


@row("`df`")
def _(place: Place) -> set[str]:
    found = place.mount.do(os.statvfs, place.here)
    assert found.f_blocks * found.f_frsize == 2**50
    assert found.f_blocks == found.f_bfree == found.f_bavail
    assert found.f_namemax == 255
    assert "1.0P" in place.mount.run("df", "-h", ".").stdout
    return set()


@row("`inotify`")
def _(place: Place) -> set[str]:
    listener = place.mount.hands()
    watch = listener.do(calls.watch, place.directory)
    place.store.put(f"{place.here.name}/dir/theirs", b"theirs")
    place.mount.do(programs.write_file, place.directory / "ours", b"ours")
    assert {name for name, _ in listener.do(calls.events, watch)} == {"ours"}
    listener.kill()
    return set()
