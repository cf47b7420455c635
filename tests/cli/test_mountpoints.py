"""Mountpoints in every state: in use, covered, moved, stale, taken, and named in a roundabout way."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.mounts import mount_at
from tests.cli.running import Done
from tests.cli.test_lifecycle import PATIENCE_S, Place, in_foreground
from tests.cli.test_lifecycle import place as place

LATER = ("--upload", "background", "--upload-delay", "1h")
USERS = {
    "works in it": "import os, sys; os.chdir(sys.argv[1]); print(); input()",
    "has a file of it open": "import sys; file = open(sys.argv[1] + '/a.txt'); print(); input()",
    "has a file of it in its memory": (
        "import ctypes, os, sys\n"
        "held = os.open(sys.argv[1] + '/a.txt', os.O_RDONLY)\n"
        "assert ctypes.CDLL(None).mmap(None, 4096, 1, 2, held, 0) != -1\n"
        "os.close(held)\n"
        "print(); input()"
    ),
}
HOLDERS = (
    "import sys; from pathlib import Path; from cachefs.mounts import holders, mount_at;"
    "print(*holders(mount_at(Path(sys.argv[1]))))"
)


@contextlib.contextmanager
def using(drive: Path, how: str) -> Iterator["subprocess.Popen[str]"]:
    """A program that uses what is mounted at *drive*, from when it does on."""
    with subprocess.Popen(
        [sys.executable, "-c", USERS[how], drive],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def covered(drive: Path) -> Iterator[None]:
    """Another file system is mounted over *drive*."""
    subprocess.run(["mount", "-t", "tmpfs", "cover", drive], check=True, timeout=PATIENCE_S)
    try:
        yield
        found = mount_at(drive)
        assert found is not None
        assert found.kind == "tmpfs"
    finally:
        subprocess.run(["umount", drive], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("how", USERS)
def test_whoever_keeps_a_mount_busy_is_named(place: Place, how: str) -> None:
    place.mount()
    with using(place.drive, how) as process:
        done = place.cachefs("umount", place.drive)
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()

        assert done.code == 1
        assert done.err == (
            f"cachefs: cannot unmount {place.drive}: it is in use by {name} ({process.pid}) — "
            "end them, or wait for them\n"
        )
    assert place.cachefs("umount", place.drive) == Done(0, "", "")


def test_the_users_of_a_mount_that_does_not_answer_are_named(place: Place) -> None:
    place.mount()
    with using(place.drive, "has a file of it open") as process:
        os.kill(place.daemon, signal.SIGSTOP)
        try:
            said = subprocess.run(
                [sys.executable, "-c", HOLDERS, place.drive],
                capture_output=True,
                text=True,
                check=True,
                timeout=PATIENCE_S,
            ).stdout
        finally:
            os.kill(place.daemon, signal.SIGCONT)
        assert f"({process.pid})" in said
    assert place.cachefs("umount", place.drive).code == 0


def test_a_mount_that_is_covered_is_not_taken_for_what_covers_it(place: Place) -> None:
    place.mount(*LATER)
    place.write("late.txt", "later")
    with covered(place.drive):
        done = place.cachefs("umount", place.drive)

        assert done.code == 2
        assert done.err == (
            f"cachefs: the cachefs mount at {place.drive} is covered by another (tmpfs) — "
            f"unmount that first: umount {place.drive}\n"
        )
    assert place.read("late.txt") == "later"
    assert place.cachefs("umount", place.drive).code == 0
    assert (place.store / "late.txt").read_text() == "later"


def test_a_signal_does_not_unmount_what_covers_the_mount(place: Place) -> None:
    with in_foreground(place, *LATER) as process:
        place.write("late.txt", "later")
        with covered(place.drive):
            process.terminate()
            _, err = process.communicate(timeout=PATIENCE_S)

            assert process.returncode == 0
            assert f"{place.drive} stays mounted, for tmpfs is mounted over it" in err
    assert (place.store / "late.txt").read_text() == "later"
    assert place.cachefs("umount", place.drive).code == 0
    assert mount_at(place.drive) is None


def test_a_mount_that_was_moved_is_found(place: Place) -> None:
    above = place.home / "above"
    elsewhere = place.home / "elsewhere"
    (above / "drive").mkdir(parents=True)
    words = [word if word != str(place.drive) else str(above / "drive") for word in place.words]
    assert place.cachefs(*words, *LATER).code == 0
    subprocess.run(
        ["dd", f"of={above}/drive/late.txt", "status=none"],
        input=b"later",
        check=True,
        timeout=PATIENCE_S,
    )
    above.rename(elsewhere)
    try:
        lost = place.cachefs("umount", above / "drive")
        found = place.cachefs("umount", elsewhere / "drive")

        assert lost.code == 2
        assert f"it has been moved to {elsewhere}/drive: cachefs umount" in lost.err
        assert found == Done(0, "", "")
        assert (place.store / "late.txt").read_text() == "later"
        assert mount_at(elsewhere / "drive") is None
    finally:
        while mount_at(elsewhere / "drive") is not None:
            subprocess.run(["umount", "-l", elsewhere / "drive"], check=True, timeout=PATIENCE_S)


def test_a_mount_that_was_moved_goes_away_with_its_daemon(place: Place) -> None:
    above = place.home / "above"
    elsewhere = place.home / "elsewhere"
    (above / "drive").mkdir(parents=True)
    words = [word if word != str(place.drive) else str(above / "drive") for word in place.words]
    assert place.cachefs(*words).code == 0
    above.rename(elsewhere)
    with contextlib.closing(_Ended(place.daemon)) as ended:
        os.kill(place.daemon, signal.SIGTERM)
        ended.wait()

    assert mount_at(elsewhere / "drive") is None


class _Ended:
    """The end of a process that is not our child."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def wait(self) -> None:
        assert select.select([self._fd], [], [], PATIENCE_S)[0], "it has not ended"

    def close(self) -> None:
        os.close(self._fd)


def test_a_mountpoint_that_another_file_system_has_is_refused(place: Place) -> None:
    with covered(place.drive):
        done = place.mount()
        gone = place.cachefs("umount", place.drive)

    assert (done.code, gone.code) == (2, 2)
    assert f"{place.drive} is already a mount (of cover)" in done.err
    assert gone.err == f"cachefs: {place.drive} is no cachefs mount but tmpfs — use umount\n"


def test_a_mountpoint_may_be_a_link_or_relative(place: Place) -> None:
    (place.home / "link").symlink_to("drive")
    words = [word if word != str(place.drive) else "link" for word in place.words]

    assert place.cachefs(*words) == Done(0, "", "")
    assert mount_at(place.drive) is not None
    twice = place.cachefs(*words)
    assert (twice.code, twice.err.count("\n")) == (2, 1)
    assert "is already a mount" in twice.err
    assert place.cachefs("umount", "./link/") == Done(0, "", "")
    assert mount_at(place.drive) is None
