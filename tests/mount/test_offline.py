"""The store cannot be reached: what goes on, what fails and when, and what happens by itself when it is back."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from _pytest.mark.structures import ParameterSet

from tests.mount import programs
from tests.mount.harness import Mount, MountFailed, cachefs, wait_until
from tests.mount.proxy import Answer, BlackHole, HoldBody
from tests.mount.stores import LiveStore, Target
from tests.servers.moto import moto
from tests.servers.tls import make_tls

Mounting = Callable[..., Mount]

TIMEOUT_S: Final = 2
GRACE_S: Final = TIMEOUT_S
"""What one request may take that is under way at the deadline: as long as the socket waits for an answer."""
SLACK_S: Final = 3
"""What two busy cores may add."""
FAILURES: Final = {errno.EIO, errno.EHOSTUNREACH}


def _longer_form(*values: object) -> ParameterSet:
    """A case that is left to the longer runs, because another one is near it."""
    return pytest.param(*values, marks=pytest.mark.soak)


def operations(root: Path) -> dict[str, programs.Call]:
    """One call of each kind, each in a directory of its own: the kernel has a directory changed by one at a time."""
    return {
        "lookup": (os.stat, (root / "unlisted/unknown",)),
        "readdir": (os.listdir, (root / "unread",)),
        "open, read": (programs.read_file, (root / "0/file",)),
        "create, close": (programs.write_file, (root / "1/new", b"new")),
        "replace, close": (programs.write_file, (root / "2/file", b"new")),
        "write in place": (programs.write_at, (root / "3/file", 10, b"new")),
        "append": (programs.append, (root / "4/file", b"new")),
        "truncate": (os.truncate, (root / "5/file", 10)),
        "unlink": (os.unlink, (root / "6/file",)),
        "mkdir": (os.mkdir, (root / "7/made",)),
        "rmdir": (os.rmdir, (root / "8/empty",)),
        "rename": (os.rename, (root / "9/file", root / "9/new")),
        "rename over": (os.rename, (root / "10/file", root / "10/other")),
        "rename a directory": (os.rename, (root / "11/moved", root / "11/new")),
        "symlink": (os.symlink, ("target", root / "12/link")),
        "mkfifo": (os.mkfifo, (root / "13/fifo",)),
        "chmod": (os.chmod, (root / "14/file", 0o600)),
        "utimes": (os.utime, (root / "15/file", (1, 1))),
        "setxattr": (os.setxattr, (root / "16/file", "user.a", b"b")),
        "fsync": (programs.write_and_sync, (root / "17/file", b"new")),
    }


@pytest.mark.soak
@pytest.mark.parametrize(
    ("store", "ttl", "questions"),
    [
        ("moto", "60s", 1),
        ("moto", "0", 2),
        ("swift", "60s", 1),
    ],
    indirect=["store"],
)
def test_no_operation_waits_longer_than_the_deadline_and_one_request(
    store: LiveStore, ttl: str, questions: int, mounting: Mounting
) -> None:
    """With nothing believed, a call on a path is two requests of the kernel: the name, and what is done with it."""
    content = programs.pattern("file", 0, 300_000)
    directories = [str(number) for number in range(18)]
    for key in ("unlisted/file", "unread/file", "cached", "10/other", "11/moved/a", "11/moved/b"):
        store.put(key, content)
    for name in directories:
        store.put(f"{name}/file", content)
    with (
        store.proxy() as proxy,
        mounting(
            store.target(proxy), "--timeout", f"{TIMEOUT_S}s", "--metadata-ttl", ttl
        ) as mount,
    ):
        mount.do(os.mkdir, mount / "8/empty")
        # Backwards: who goes on from one directory to the next has those behind listed, too.
        for name in ("", *reversed(directories), "11/moved"):
            mount.do(os.listdir, mount / name)
        assert mount.do(programs.read_file, mount / "cached") == content
        workers, holder = mount.hands(), mount.hands()
        fd = holder.do(os.open, mount / "cached", os.O_RDONLY)

        with proxy.during(lambda _: True, BlackHole()):
            workers.begin(programs.outcomes, operations(mount.mountpoint))
            reads = []
            while workers.busy():
                start = time.monotonic()
                assert mount.do(programs.read_file, mount / "cached") == content
                assert holder.do(programs.read_fd, fd) == content
                assert mount.do(os.statvfs, mount.mountpoint)
                reads.append(time.monotonic() - start)
            found: dict[str, tuple[float, int]] = workers.finish(1)

        table = "".join(
            f"{name:20} {took:5.1f} s  {errno.errorcode.get(number, 'done')}\n"
            for name, (took, number) in found.items()
        )
        print(f"{store.name}\n{table}cached: {len(reads)} reads, the longest {max(reads):.2f} s")
        assert {number for _, number in found.values()} <= FAILURES, table
        longest = max(took for took, _ in found.values())
        assert longest < questions * TIMEOUT_S + GRACE_S + SLACK_S, table
        # The first question is asked for the whole deadline, for the store might come back.
        assert reads[0] < TIMEOUT_S + GRACE_S + SLACK_S
        assert max(reads[1:]) < SLACK_S
        mount.wait_clean()


def is_offline(mount: Mount) -> bool:
    return bool(mount.status()["remote"]["is_offline"])


def fails(mount: Mount, function: Callable[..., object], *arguments: object) -> None:
    """Assert that a call fails as what the store was not asked about must, and in time."""
    took, number = mount.do(programs.outcome, function, *arguments)
    assert number in FAILURES
    assert took < 2 * TIMEOUT_S + GRACE_S + SLACK_S


def test_offline_what_is_known_is_shown_what_is_written_waits_and_the_return_is_noticed(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    for key in ("dir/file", "dir/other", "dir/changed", "unlisted/file"):
        store.put(key, b"old")
    options = (
        *("--timeout", "2s", "--metadata-ttl", "0", "--negative-ttl", "0"),
        *("--upload", "background", "--upload-delay", "0s"),
    )
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        mount.do(os.listdir, mount / "dir")
        assert mount.do(programs.read_file, mount / "dir/file") == b"old"

        proxy.refuse()
        fails(mount, os.stat, mount / "unlisted/file")
        assert is_offline(mount)
        start = time.monotonic()
        for _ in range(10):
            assert mount.do(programs.read_file, mount / "dir/file") == b"old"
            assert sorted(mount.do(os.listdir, mount / "dir")) == ["changed", "file", "other"]
            assert mount.do(programs.outcome_of_stat, mount / "dir/other") == 0
        assert time.monotonic() - start < 10  # each would have waited for two seconds
        fails(mount, programs.read_file, mount / "dir/other")
        fails(mount, os.listdir, mount / "unlisted")
        fails(mount, os.mkdir, mount / "dir/made")
        mount.do(programs.write_file, mount / "dir/changed", b"queued")
        mount.do(programs.write_file, mount / "dir/tmp", b"made offline")
        mount.do(os.rename, mount / "dir/tmp", mount / "dir/new")
        assert mount.do(programs.read_file, mount / "dir/new") == b"made offline"
        assert [one["state"] for one in mount.status()["dirty"]] == ["queued", "queued"]
        told = cachefs("status", mount.mountpoint, env=mount.env).stdout
        assert "offline since " in told
        assert store.get("dir/changed") == b"old"

        store.put("dir/file", b"new")
        proxy.relay_again()
        assert mount.do(programs.read_file, mount / "dir/file") == b"new"
        mount.wait_clean()
        assert not is_offline(mount)
        assert mount.do(programs.read_file, mount / "dir/other") == b"old"

    assert store.get("dir/changed") == b"queued"
    assert store.get("dir/new") == b"made offline"
    assert "dir/tmp" not in store.view()


@pytest.mark.soak
def test_what_was_queued_is_stored_by_itself_when_the_black_hole_ends(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    options = ("--timeout", "2s", "--upload", "background", "--upload-delay", "0s")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        with proxy.during(lambda _: True, BlackHole()):
            for number in range(10):
                mount.do(programs.write_file, mount / f"file{number}", b"content")
            wait_until(lambda: is_offline(mount), "the store is known to be offline")
        # No question is asked of the mount but for its status, which asks nothing of the store.
        mount.wait_clean(15)

    assert len(store.view()) == 10


@pytest.mark.soak
def test_a_close_that_waits_for_an_offline_store_fails_in_time_and_the_bytes_stay_queued(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    store.put("file", b"old")
    with store.proxy() as proxy, mounting(store.target(proxy), "--timeout", "2s") as mount:
        mount.do(os.listdir, mount.mountpoint)
        proxy.refuse()
        for _ in range(2):  # before it is known that the store is offline, and after
            fails(mount, programs.write_file, mount / "file", b"new")
        assert [one["path"] for one in mount.status()["dirty"]] == ["file"]
        assert mount.do(programs.read_file, mount / "file") == b"new"
        proxy.relay_again()
        mount.wait_clean()

    assert store.view() == {"file": b"new"}


@pytest.mark.soak
def test_without_offline_reads_an_open_fails_whose_version_cannot_be_asked_for(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    store.put("file", b"content")
    options = ("--timeout", "2s", "--metadata-ttl", "0", "--offline-reads", "off")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        assert mount.do(programs.read_file, mount / "file") == b"content"
        fd = mount.do(os.open, mount / "file", os.O_RDONLY)
        proxy.refuse()
        fails(mount, programs.read_file, mount / "file")
        fails(mount, programs.read_file, mount / "file")
        assert mount.do(programs.outcome_of_stat, mount / "file") == 0
        assert mount.do(programs.read_fd, fd) == b"content"
        proxy.relay_again()
        assert mount.do(programs.read_file, mount / "file") == b"content"


@pytest.mark.soak
def test_one_object_that_cannot_be_had_makes_nobody_believe_what_is_old(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    store.put("stuck", b"stuck")
    store.put("file", b"old")
    options = ("--timeout", "2s", "--metadata-ttl", "0")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        assert mount.do(programs.read_file, mount / "file") == b"old"
        mount.do(programs.outcome_of_stat, mount / "stuck")
        store.put("file", b"new")
        with proxy.during(lambda e: store.key_in(e.path) == "stuck", BlackHole()):
            # Nothing else is asked meanwhile: as far as requests tell, the store is gone.
            mount.do(programs.outcome_of_stat, mount / "stuck")
            assert mount.do(programs.read_file, mount / "file") == b"new"


@pytest.mark.soak
@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_a_body_that_stands_still_is_an_error_in_time_and_other_files_go_on(
    store: LiveStore, mounting: Mounting
) -> None:
    content = programs.pattern("file", 0, 3_000_000)
    store.put("stuck", content)
    store.put("other", b"other")
    with store.proxy() as proxy, mounting(store.target(proxy), "--timeout", "2s") as mount:
        mount.do(os.listdir, mount.mountpoint)
        proxy.on(lambda e: store.is_object(e, "GET", "stuck"), BlackHole())
        proxy.on(lambda e: store.is_object(e, "GET", "stuck"), HoldBody(1_000_000), times=1)
        waiting = mount.hands()
        waiting.begin(programs.outcome, programs.read_file, mount / "stuck")
        assert mount.do(programs.read_file, mount / "other") == b"other"
        took, number = waiting.finish(30)
        assert number in FAILURES
        assert took < TIMEOUT_S + GRACE_S + SLACK_S
        proxy.lift_all()
        assert mount.do(programs.read_file, mount / "stuck") == content


@pytest.mark.soak
def test_the_commands_about_a_mount_end_in_time_while_the_store_is_silent(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    options = ("--timeout", "2s", "--upload", "background", "--upload-delay", "0s")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        hole = proxy.on(lambda _: True, BlackHole())
        for number in range(10):
            mount.do(programs.write_file, mount / f"file{number}", b"content")
        hole.wait_reached()
        took = {}
        for words in (("status",), ("flush", "--wait"), ("umount", "--timeout", "1s")):
            start = time.monotonic()
            done = cachefs(words[0], mount.mountpoint, *words[1:], env=mount.env)
            took[words[0]] = time.monotonic() - start
            assert done.returncode in {"status": {0}, "flush": {1, 5}, "umount": {5}}[words[0]]
            assert "Traceback" not in done.stderr
        assert took["status"] < SLACK_S + 2
        assert took["flush"] < TIMEOUT_S + GRACE_S + SLACK_S + 2
        assert took["umount"] < 1 + SLACK_S + 2
        hole.lift()
        mount.wait_clean()
    assert len(store.view()) == 10


SAYINGS: Final = {
    "503": Answer(503),
    "a long Retry-After": Answer(503, {"Retry-After": "86400"}),
    "429": Answer(429, {"Retry-After": "1"}),
}


@pytest.mark.soak
@pytest.mark.parametrize("fault", SAYINGS)
def test_a_store_that_says_it_cannot_is_asked_until_the_deadline_and_no_longer(
    fault: str, new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    store.put("dir/file", b"content")
    with store.proxy() as proxy, mounting(store.target(proxy), "--timeout", "2s") as mount:
        assert mount.do(os.listdir, mount.mountpoint) == ["dir"]
        with proxy.during(lambda _: True, SAYINGS[fault]):
            fails(mount, os.stat, mount / "dir/file")
            fails(mount, os.listdir, mount / "dir")
        assert mount.do(programs.read_file, mount / "dir/file") == b"content"


@pytest.mark.parametrize("fault", ["untrusted", _longer_form("plain")])
def test_a_broken_way_to_the_store_ends_the_mounting_with_one_line(
    fault: str, tmp_path: Path
) -> None:
    tls = make_tls(tmp_path / "tls")
    with moto(tls=tls if fault == "untrusted" else None) as server:
        port = urlsplit(server.url).port
        reason = "certificate is not trusted" if fault == "untrusted" else "SSL"
        target = Target(
            "s3://bucket",
            ("--endpoint-url", f"https://127.0.0.1:{port}", "--timeout", "1s"),
            server.environment(),
        )
        with pytest.raises(MountFailed) as refusal, Mount(target, tmp_path / "mount"):
            pass
    assert refusal.value.returncode == 4
    assert refusal.value.stderr.startswith("cachefs: cannot mount s3://bucket: cannot reach")
    assert reason in refusal.value.stderr
    assert refusal.value.stderr.count("\n") == 1


class Unconnected(Mount):
    """A mount in a network of its own, where nobody is."""

    def argv(self) -> list[str]:
        return ["unshare", "--net", *super().argv()]


@pytest.mark.soak
def test_an_endpoint_that_has_no_address_ends_the_mounting_with_one_line(tmp_path: Path) -> None:
    target = Target(
        "s3://bucket",
        ("--endpoint-url", "http://store.invalid:9000", "--timeout", "1s"),
        {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"},
    )
    with pytest.raises(MountFailed) as refusal, Unconnected(target, tmp_path / "mount"):
        pass
    assert refusal.value.returncode == 4
    assert refusal.value.stderr.startswith("cachefs: cannot mount s3://bucket: cannot reach")
    assert refusal.value.stderr.count("\n") == 1


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["black hole", "503"])
def test_a_store_that_does_not_serve_ends_the_mounting_with_one_line(
    fault: str, new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    action = BlackHole() if fault == "black hole" else Answer(503)
    with (
        store.proxy() as proxy,
        proxy.during(lambda _: True, action),
        pytest.raises(MountFailed) as refusal,
        mounting(store.target(proxy), "--timeout", "1s"),
    ):
        pass
    assert refusal.value.returncode == 4
    assert refusal.value.stderr.startswith(f"cachefs: cannot mount s3://{store.bucket}: no answer")
    assert refusal.value.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [_longer_form(signal.SIGINT), signal.SIGKILL])
@pytest.mark.parametrize(
    ("key", "timeout_s", "bound_s"),
    [
        # The kernel lets go of who waits for pages.
        pytest.param("file", 30, 10, id="for bytes"),
        # Who waits for a name, it lets go when that is answered.
        pytest.param("dir/file", 2, 2 + 2 + SLACK_S, id="for a name", marks=pytest.mark.soak),
    ],
)
def test_a_program_that_is_killed_while_it_waits_ends_at_the_deadline_at_the_latest(
    number: signal.Signals,
    key: str,
    timeout_s: int,
    bound_s: int,
    new_store: Callable[[str], LiveStore],
    mounting: Mounting,
) -> None:
    store = new_store("moto")
    store.put(key, programs.pattern(key, 0, 100_000))
    with (
        store.proxy() as proxy,
        mounting(store.target(proxy), "--timeout", f"{timeout_s}s") as mount,
    ):
        mount.do(os.listdir, mount.mountpoint)
        with proxy.during(lambda _: True, BlackHole()) as hole:
            program = subprocess.Popen(["cat", mount / key], stdout=subprocess.DEVNULL)
            try:
                hole.wait_reached()
                program.send_signal(number)
                start = time.monotonic()
                assert program.wait(60) == -number
                took = time.monotonic() - start
            finally:
                if program.poll() is None:
                    mount.abort()
                    program.kill()
        print(f"{key}, {number.name}: {took:.1f} s of {timeout_s}")
        assert took < bound_s
