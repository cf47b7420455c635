"""Faults of the store, of the network and of ourselves, as programs in the mount see them."""

import errno
import os
import sqlite3
import time
from collections.abc import Callable

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.proxy import Action, Answer, BlackHole, CutBody, Exchange, FlipBit, Reset
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

FAULTS = {
    "500": Answer(500),
    "503": Answer(503),
    "429": Answer(429, {"Retry-After": "0"}),
    "reset": Reset(),
}


def is_question(exchange: Exchange) -> bool:
    """Whether it asks for attributes or for a listing."""
    return exchange.method in {"HEAD", "GET"}


@pytest.mark.parametrize(
    ("store", "fault"),
    [*(("moto", fault) for fault in FAULTS), ("swift", "503"), ("swift", "reset")],
    indirect=["store"],
)
def test_a_transient_fault_is_never_reported_as_absence(
    store: LiveStore, fault: str, mounting: Mounting
) -> None:
    store.put("dir/file", b"content")
    action: Action = FAULTS[fault]
    with store.proxy() as proxy, mounting(store.target(proxy), "--metadata-ttl", "0") as mount:
        steps: list[Callable[[], int]] = [
            lambda: mount.do(programs.outcome_of_stat, mount / "dir/file"),
            lambda: mount.do(programs.outcome_of_stat, mount / "dir"),
            lambda: 0 if mount.do(os.listdir, mount / "dir") == ["file"] else -1,
            lambda: 0 if mount.do(programs.read_file, mount / "dir/file") == b"content" else -1,
        ]
        for step in steps:
            with proxy.during(is_question, action, times=3):
                assert step() == 0
        with proxy.during(is_question, action, times=3):
            assert mount.do(programs.outcome_of_stat, mount / "dir/nothing") == errno.ENOENT


@pytest.mark.parametrize("fault", ["500", "reset", "black hole"])
@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_a_lasting_fault_is_an_error_within_the_deadline_and_not_absence(
    store: LiveStore, fault: str, mounting: Mounting
) -> None:
    store.put("dir/file", b"content")
    store.put("cached", b"here")
    options = ("--timeout", "2s", "--negative-ttl", "0")
    action = BlackHole() if fault == "black hole" else FAULTS[fault]
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        assert mount.do(programs.read_file, mount / "cached") == b"here"
        with proxy.during(lambda _: True, action):
            start = time.monotonic()
            outcome = mount.do(programs.outcome_of_stat, mount / "dir/file")
            with pytest.raises(OSError, match=r".") as refusal:
                mount.do(os.listdir, mount / "dir")
            took = time.monotonic() - start
            assert mount.do(programs.read_file, mount / "cached") == b"here"
        assert mount.do(programs.read_file, mount / "dir/file") == b"content"

    assert outcome in {errno.EIO, errno.EHOSTUNREACH}
    assert refusal.value.errno in {errno.EIO, errno.EHOSTUNREACH}
    assert took < 9


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_what_is_cached_is_read_while_the_store_cannot_be_asked(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("dir/file", b"content")
    options = ("--timeout", "2s", "--metadata-ttl", "0")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        assert mount.do(programs.read_file, mount / "dir/file") == b"content"
        proxy.refuse()
        assert mount.do(programs.read_file, mount / "dir/file") == b"content"
        proxy.relay_again()
        store.put("dir/file", b"changed")
        assert mount.do(programs.read_file, mount / "dir/file") == b"changed"


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_a_black_hole_under_one_file_does_not_stop_the_others(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("stuck", b"x" * 1000)
    store.put("other", b"other")
    with store.proxy() as proxy, mounting(store.target(proxy), "--timeout", "20s") as mount:
        mount.do(os.listdir, mount.mountpoint)
        with proxy.during(lambda e: store.is_object(e, "GET", "stuck"), BlackHole()) as rule:
            waiting = mount.hands()
            waiting.begin(programs.read_file, mount / "stuck")
            rule.wait_reached()

            start = time.monotonic()
            assert mount.do(programs.read_file, mount / "other") == b"other"
            mount.do(programs.write_file, mount / "new", b"new")
            assert time.monotonic() - start < 5
            assert waiting.busy()
        assert waiting.finish(40) == b"x" * 1000


@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_an_answer_that_is_cut_is_fetched_again(store: LiveStore, mounting: Mounting) -> None:
    content = programs.pattern("file", 0, 300_000)
    store.put("file", content)
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        rule = proxy.on(lambda e: store.is_object(e, "GET"), CutBody(70_000), times=2)
        assert mount.do(programs.read_file, mount / "file") == content
        assert rule.hits == 2


@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_an_answer_with_a_flipped_bit_is_fetched_again(
    store: LiveStore, mounting: Mounting
) -> None:
    content = programs.pattern("file", 0, 300_000)
    store.put("file", content)
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        rule = proxy.on(lambda e: store.is_object(e, "GET"), FlipBit(1234), times=1)
        assert mount.do(programs.read_file, mount / "file") == content
        rule.wait_reached(0)


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_an_answer_that_makes_no_sense_is_an_error_and_the_mount_lives(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("dir/file", b"content")
    garbage = Answer(200, {"Content-Type": "application/xml"}, b"<ListBucketResult><Contents>")
    with store.proxy() as proxy, mounting(store.target(proxy), "--timeout", "2s") as mount:
        with (
            proxy.during(lambda e: e.method == "GET" and "list-type" in e.query, garbage),
            pytest.raises(OSError, match=r".") as refusal,
        ):
            mount.do(os.listdir, mount / "dir")

        assert refusal.value.errno == errno.EIO
        assert mount.do(os.listdir, mount / "dir") == ["file"]


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_credentials_that_stop_working_are_eacces_and_dirty_data_waits(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", b"content")
    denial = Answer(
        403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>"
    )
    options = ("--upload", "background", "--upload-delay", "0s", "--metadata-ttl", "0")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        with proxy.during(lambda _: True, denial):
            assert mount.do(programs.outcome_of_stat, mount / "file") == errno.EACCES
        with proxy.during(lambda e: e.method == "PUT", denial) as rule:
            mount.do(programs.write_file, mount / "new", b"kept")
            rule.wait_reached()
            assert mount.do(programs.read_file, mount / "new") == b"kept"
            assert mount.status()["dirty"]
        assert mount.run("true", check=False).returncode == 0
        mount.flush()
        mount.wait_clean()

    assert store.view() == {"file": b"content", "new": b"kept"}


def test_an_exception_in_a_handler_is_eio_with_a_traceback_and_the_mount_lives(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    store.put("file", b"content")
    with mounting(store.target(), "--metadata-ttl", "0") as mount:
        mount.tracebacks_expected = True
        assert mount.do(programs.read_file, mount / "file") == b"content"
        # Nobody has foreseen that a table goes away under a running daemon.
        _rename_table(mount, "inodes", "taken_away")
        outcomes = {mount.do(programs.outcome_of_stat, mount / f"some{i}") for i in range(3)}
        assert outcomes == {errno.EIO}
        assert mount.process is not None
        assert mount.process.poll() is None
        _rename_table(mount, "taken_away", "inodes")

        assert mount.do(programs.read_file, mount / "file") == b"content"
        assert mount.do(programs.outcome_of_stat, mount / "some") == errno.ENOENT
        mount.do(programs.write_file, mount / "new", b"new")
        assert "Traceback" in mount.log_text()
    assert store.view() == {"file": b"content", "new": b"new"}


def _rename_table(mount: Mount, old: str, new: str) -> None:
    connection = sqlite3.connect(mount.cache_dir / "cachefs.sqlite3", timeout=10)
    try:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
        connection.commit()
    finally:
        connection.close()


@pytest.mark.parametrize("harm", ["truncated", "removed"])
def test_a_cache_file_that_was_harmed_between_mounts_is_fetched_again(
    new_store: Callable[[str], LiveStore], mounting: Mounting, harm: str
) -> None:
    store = new_store("moto")
    content = programs.pattern("file", 0, 100_000)
    store.put("file", content)
    with mounting(store.target()) as mount:
        assert mount.do(programs.read_file, mount / "file") == content
        mount.stop()
        for path in (mount.cache_dir / "data").rglob("*"):
            if path.is_file():
                if harm == "removed":
                    path.unlink()
                else:
                    os.truncate(path, 1000)
        mount.start()
        assert mount.do(programs.read_file, mount / "file") == content
