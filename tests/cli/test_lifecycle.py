"""The commands on a real mount: from mount to unmount, and every way in which that can go wrong."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cachefs.cli.progress import line_of
from cachefs.mounts import mount_at
from tests.cli.running import Done, cachefs, surroundings

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """A store, a cache and a mountpoint of one test."""

    home: Path

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def drive(self) -> Path:
        return self.home / "drive"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def words(self) -> list[str]:
        return [
            "mount",
            f"file://{self.store}",
            str(self.drive),
            "--cache-dir",
            str(self.cache),
            "--timeout",
            "5s",
        ]

    def cachefs(self, *words: str | Path, **variables: str) -> Done:
        return cachefs(*words, home=self.home, **variables)

    def mount(self, *options: str) -> Done:
        return self.cachefs(*self.words, *options)

    def status(self) -> dict[str, Any]:
        found = json.loads(self.cachefs("status", self.drive, "--json").out)
        assert isinstance(found, dict)
        return found

    def write(self, name: str, text: str) -> None:
        """Write through the mount, in a process of its own."""
        subprocess.run(
            ["dd", f"of={self.drive / name}", "status=none"],
            input=text,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )

    def read(self, name: str) -> str:
        return subprocess.run(
            ["cat", self.drive / name],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        ).stdout

    @property
    def daemon(self) -> int:
        return int((self.cache / "lock").read_text())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    found.store.mkdir()
    found.drive.mkdir()
    (found.store / "a.txt").write_text("from the store")
    yield found
    while mount_at(found.drive) is not None:
        subprocess.run(["umount", "-l", found.drive], check=True, timeout=PATIENCE_S)
    with contextlib.suppress(OSError, ValueError):
        if (
            found.cache.exists()
            and b"cachefs" in Path(f"/proc/{found.daemon}/cmdline").read_bytes()
        ):
            os.kill(found.daemon, signal.SIGKILL)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"waited in vain until {what}"
        select.select([], [], [], 0.02)


@contextlib.contextmanager
def in_foreground(
    place: Place, *options: str, **variables: str
) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-m", "cachefs", *place.words, "-f", *options],
        env=surroundings(place.home, **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(
                lambda: mount_at(place.drive) is not None or process.poll() is not None,
                "it is mounted",
            )
            assert process.poll() is None, process.communicate()
            wait_until(lambda: "pid" in place.status(), "it is registered")
            yield process
        finally:
            process.kill()


def test_a_mount_answers_when_the_command_returns(place: Place) -> None:
    done = place.mount()

    assert done == Done(0, "", "")
    assert place.read("a.txt") == "from the store"
    place.write("b.txt", "from the mount")
    assert (place.store / "b.txt").read_text() == "from the mount"
    assert place.cachefs("umount", place.drive) == Done(0, "", "")
    assert mount_at(place.drive) is None
    assert not (place.cache / "control.sock").exists()
    assert str(place.drive) not in place.cachefs("status").out


def test_status_tells_of_the_mount_in_words_and_in_json(place: Place) -> None:
    place.mount()
    place.read("a.txt")

    every = json.loads(place.cachefs("status", "--json").out)
    one = place.status()
    words = place.cachefs("status", place.drive / "a.txt")

    assert str(place.drive) in [
        each["mountpoint"] for each in every["mounts"]
    ]  # root may have more
    assert one["source"] == f"file://{place.store}"
    assert one["cache_dir"] == str(place.cache)
    assert one["dirty"] == []
    assert one["cache"]["used"] > 0
    assert one["reads"]["opens"] == 1
    assert one["version"]
    assert words.code == 0
    assert words.out.startswith(f"file://{place.store} at {place.drive}\n")
    assert place.cachefs("umount", place.drive).code == 0


def test_status_can_be_watched(place: Place) -> None:
    place.mount()
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cachefs",
            "status",
            place.drive,
            "--watch",
            "--interval",
            "50ms",
            "--json",
        ],
        env=surroundings(place.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        reports = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)

    assert [report["mountpoint"] for report in reports] == [str(place.drive)] * 3
    assert (process.returncode, err) == (130, "")
    assert place.cachefs("umount", place.drive).code == 0


def test_a_terminal_shows_how_the_upload_goes_on_and_a_pipe_does_not(place: Place) -> None:
    place.mount("--upload", "background", "--upload-delay", "1h")
    place.write("late.txt", "later")
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cachefs", "umount", place.drive],
        env=surroundings(place.home),
        stderr=slave,
        stdout=subprocess.PIPE,
    ) as process:
        os.close(slave)
        process.communicate(timeout=PATIENCE_S)
    shown = os.read(master, 4096)
    os.close(master)

    assert process.returncode == 0
    assert shown.startswith(b"\r\x1b[K")
    assert line_of([{"size": 2048, "state": "uploading"}, {"size": 0, "state": "queued"}]) == (
        "2 files, 2.0 KiB to go; 1 under way"
    )


def test_what_waits_is_told_and_flushed(place: Place) -> None:
    place.mount("--upload", "background", "--upload-delay", "1h")
    place.write("late.txt", "later")

    waiting = place.status()["dirty"]
    assert [file["path"] for file in waiting] == ["late.txt"]
    assert not (place.store / "late.txt").exists()
    listed = place.cachefs("recover", "--of", place.drive)
    assert "late.txt" in listed.out

    done = place.cachefs("flush", place.drive / "late.txt", "--wait", "--json")

    assert done.code == 0
    assert json.loads(done.out) == {
        "mounts": [{"mountpoint": str(place.drive), "uploaded": 1, "waiting": [], "failed": []}]
    }
    assert (place.store / "late.txt").read_text() == "later"
    assert place.cachefs("umount", place.drive).code == 0


def test_umount_uploads_what_waits(place: Place) -> None:
    place.mount("--upload", "background", "--upload-delay", "1h")
    place.write("late.txt", "later")

    assert place.cachefs("umount", f"{place.drive}/") == Done(0, "", "")

    assert (place.store / "late.txt").read_text() == "later"


def test_what_cannot_be_uploaded_keeps_the_mount_and_is_named(place: Place) -> None:
    place.mount("--upload", "background", "--upload-delay", "1h")
    place.write("late.txt", "later")
    away = place.store.rename(place.home / "away")

    done = place.cachefs("umount", place.drive, "--timeout", "5s", "--json")

    assert done.code == 5
    assert f"cannot unmount {place.drive}: 1 file could not be uploaded: late.txt (" in done.err
    assert done.err.count("\n") == 1
    report = json.loads(done.out)
    assert not report["unmounted"]
    assert [file["path"] for file in report["left"]] == ["late.txt"]
    assert mount_at(place.drive) is not None

    away.rename(place.store)
    place.write("again.txt", "writes are taken again")
    assert place.cachefs("recover", "upload", "--of", place.drive).code == 0
    assert (place.store / "late.txt").read_text() == "later"
    assert place.cachefs("umount", place.drive).code == 0
    assert (place.store / "again.txt").read_text() == "writes are taken again"


def test_a_busy_mount_stays_and_takes_writes(place: Place) -> None:
    place.mount()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=place.drive) as process:
        done = place.cachefs("umount", place.drive)

        assert done.code == 1
        assert done.err == (
            f"cachefs: cannot unmount {place.drive}: it is in use by cat ({process.pid}) — end them, or wait for them\n"
        )
        place.write("b.txt", "still here")
        process.communicate(timeout=PATIENCE_S)
    assert place.cachefs("umount", place.drive).code == 0


def test_a_second_mount_is_refused_at_the_same_place_and_on_the_same_cache(place: Place) -> None:
    place.mount()
    second = place.home / "second"
    second.mkdir()

    here = place.mount()
    there = place.cachefs("mount", f"file://{place.store}", second, "--cache-dir", place.cache)

    assert here.code == there.code == 2
    assert "is already a mount (of file://" in here.err
    assert f"in use by process {place.daemon}" in there.err
    assert there.err.count("\n") == 1
    assert mount_at(second) is None
    assert place.read("a.txt") == "from the store"
    assert place.cachefs("umount", place.drive).code == 0


def test_a_killed_daemon_leaves_a_mount_that_the_next_one_replaces(place: Place) -> None:
    place.mount("--upload", "background", "--upload-delay", "1h")
    place.write("late.txt", "later")
    os.kill(place.daemon, signal.SIGKILL)

    status = place.cachefs("status", place.drive)
    again = place.mount("--quiet")

    assert status.code == 1
    assert "no daemon of yours serves it" in status.out
    assert again.code == 0
    assert place.read("late.txt") == "later"
    assert place.cachefs("umount", place.drive).code == 0
    assert (place.store / "late.txt").read_text() == "later"


def test_umount_clears_away_a_killed_daemons_mount(place: Place) -> None:
    place.mount()
    os.kill(place.daemon, signal.SIGKILL)

    done = place.cachefs("umount", place.drive)

    assert done.code == 0
    assert done.err.startswith(f"cachefs: the daemon of {place.drive} was dead")
    assert mount_at(place.drive) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_uploads_and_unmounts(place: Place, number: signal.Signals) -> None:
    with in_foreground(place, "--upload", "background", "--upload-delay", "1h") as process:
        place.write("late.txt", "later")

        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, out) == (0, "")
    assert number.name in err
    assert "Traceback" not in err
    assert mount_at(place.drive) is None
    assert (place.store / "late.txt").read_text() == "later"


def test_a_terminal_that_goes_away_leaves_the_mount_as_it_is(place: Place) -> None:
    with in_foreground(place, "--upload", "background", "--upload-delay", "1h") as process:
        process.send_signal(signal.SIGHUP)
        place.write("late.txt", "later")
        assert place.read("late.txt") == "later"
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0
    assert "SIGHUP: the mount stays" in err
    assert (place.store / "late.txt").read_text() == "later"


def left_behind(place: Place) -> None:
    """Stop a mount while its store is away, so that a file is left in the cache directory."""
    with in_foreground(place, "--upload", "background", "--upload-delay", "1h") as process:
        place.write("late.txt", "later")
        away = place.store.rename(place.home / "away")
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE_S)
    away.rename(place.store)
    assert process.returncode == 5
    said = err.splitlines()[-1]
    assert said.startswith(
        f"cachefs: file://{place.store} is unmounted, but 1 file still waits for upload: late.txt ("
    )
    assert said.endswith(
        f") — cachefs recover list --cache-dir {place.cache} tells why, cachefs recover upload tries again"
    )
    assert mount_at(place.drive) is None


def test_what_is_left_behind_can_be_listed_exported_and_discarded(place: Place) -> None:
    left_behind(place)

    listed = json.loads(place.cachefs("recover", "list", "--cache-dir", place.cache, "--json").out)
    exported = place.cachefs(
        "recover", "export", "late.txt", "--cache-dir", place.cache, "--to", place.home / "rescued"
    )
    unsure = place.cachefs("recover", "discard", "--all", "--cache-dir", place.cache)
    still = place.cachefs("recover", "--cache-dir", place.cache)
    discarded = place.cachefs("recover", "discard", "--all", "--yes", "--cache-dir", place.cache)
    nothing = place.cachefs("recover", "--cache-dir", place.cache)

    assert [file["path"] for file in listed["caches"][0]["files"]] == ["late.txt"]
    assert exported == Done(0, f"{place.home}/rescued/late.txt\n", "")
    assert (place.home / "rescued" / "late.txt").read_text() == "later"
    assert unsure.code == 2
    assert "nothing was discarded" in unsure.err
    assert "late.txt" in still.out
    assert discarded == Done(0, "1 file discarded\n", "")
    assert nothing == Done(0, "nothing waits for upload\n", "")
    assert not (place.store / "late.txt").exists()


def test_what_is_left_behind_can_be_uploaded_without_a_mount(place: Place) -> None:
    left_behind(place)

    done = place.cachefs(
        "recover", "upload", "--cache-dir", place.cache, "--of", f"file://{place.store}"
    )

    assert done == Done(0, "late.txt\n", "")
    assert (place.store / "late.txt").read_text() == "later"


def test_the_service_manager_hears_of_the_beginning_and_the_end(place: Place) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place.home / "notify"))
        manager.settimeout(PATIENCE_S)
        with in_foreground(place, NOTIFY_SOCKET=str(place.home / "notify")) as process:
            ready = manager.recv(4096).decode()
            process.terminate()
            stopping = manager.recv(4096).decode()
            waiting = manager.recv(4096).decode()
            process.communicate(timeout=PATIENCE_S)

    assert ready.startswith("READY=1\nSTATUS=file://")
    assert stopping.startswith("STOPPING=1\nSTATUS=uploading 0 files")
    assert waiting == "EXTEND_TIMEOUT_USEC=20000000"
    assert process.returncode == 0


def test_a_mount_of_the_configuration_file_is_mounted_by_its_name(place: Place) -> None:
    config = place.home / "config.toml"
    config.write_text(
        f"""
        [remotes.local]
        type = "file"

        [mounts.photos]
        source = "local:{place.store}"
        mountpoint = "{place.drive}"
        cache_dir = "{place.cache}"
        read_only = true
        log_format = "json"
        log_file = "{place.home}/log"
        """
    )

    done = place.cachefs("mount", "photos", CACHEFS_CONFIG=str(config))

    assert done == Done(0, "", "")
    assert place.read("a.txt") == "from the store"
    with pytest.raises(subprocess.CalledProcessError):
        place.write("b.txt", "refused")
    assert place.cachefs("umount", place.drive).code == 0
    records = [json.loads(line) for line in (place.home / "log").read_text().splitlines()]
    assert any(record["message"].startswith("mounted file://") for record in records)
    assert (place.home / "log").stat().st_mode & 0o077 == 0


def test_no_secret_of_the_environment_is_in_the_log(place: Place) -> None:
    done = place.cachefs(
        *place.words,
        "-v",
        AWS_SECRET_ACCESS_KEY="correct-horse-battery",
        OS_PASSWORD="stapled-together",
    )
    assert done.code == 0
    place.read("a.txt")
    place.cachefs("umount", place.drive)

    log = (place.cache / "cachefs.log").read_text()
    assert "mounted" in log
    assert "correct-horse-battery" not in log
    assert "stapled-together" not in log


def test_the_demo_does_what_it_says(tmp_path: Path) -> None:
    done = cachefs("demo", home=tmp_path, TMPDIR=str(tmp_path))

    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(
        "All of that really happened; the temporary directory is gone again.\n"
    )
    assert list(tmp_path.glob("cachefs-demo-*")) == []
