"""The ends of a mount: whoever asks for it, whatever waits, whatever the network does."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, cachefs, mounted, wait_until
from tests.mount.proxy import BlackHole, Exchange, HoldRequest
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

LATER = ("--upload", "background", "--upload-delay", "1h")
SLACK_S = 20
"""What a loaded machine may add to a bound."""
HANGING_END_S = 10
"""How long a request that hangs may hold up the end."""


def stop_by(*command: str) -> Callable[[Mount], int]:
    def stop(mount: Mount) -> int:
        subprocess.run([*command, str(mount.mountpoint)], check=True, timeout=20)
        return mount.wait_ended()

    return stop


WAYS: dict[str, Callable[[Mount], int]] = {
    "SIGTERM": lambda mount: mount.signalled(signal.SIGTERM),
    "SIGINT": lambda mount: mount.signalled(signal.SIGINT),
    "cachefs umount": lambda mount: mount.umount().returncode,
    "umount": stop_by("umount"),
    "umount -l": stop_by("umount", "-l"),
    "fusermount3 -u": stop_by("fusermount3", "-u"),
    "fusermount3 -u -z": stop_by("fusermount3", "-u", "-z"),
}


def is_put(exchange: Exchange) -> bool:
    return exchange.method in {"PUT", "POST"}


def is_left_tidy(mount: Mount) -> bool:
    """Whether neither mount nor process nor socket are left."""
    return mounted(mount.mountpoint) is None and not (mount.cache_dir / "control.sock").exists()


@pytest.mark.parametrize(
    "way",
    [
        "SIGTERM",
        *(pytest.param(way, marks=pytest.mark.soak) for way in WAYS if way != "SIGTERM"),
    ],
)
def test_every_way_out_uploads_what_waits(
    new_store: Callable[[str], LiveStore], mounting: Mounting, way: str
) -> None:
    store = new_store("moto")
    with mounting(store.target(), *LATER) as mount:
        mount.do(programs.write_file, mount / "late", b"later")
        assert store.keys() == []

        assert WAYS[way](mount) == 0

        assert store.view() == {"late": b"later"}
        assert is_left_tidy(mount)


CASES = [
    ("SIGTERM", "refuses", "background"),
    pytest.param("umount -l", "is silent", "close", marks=pytest.mark.soak),
    *(
        pytest.param(way, network, upload, marks=pytest.mark.soak)
        for way in ("SIGINT", "umount", "fusermount3 -u -z")
        for network in ("refuses", "is silent")
        for upload in ("close", "background")
    ),
]


@pytest.mark.parametrize(("way", "network", "upload"), CASES)
def test_what_cannot_be_uploaded_is_named_and_stored_by_the_next_mount(
    new_store: Callable[[str], LiveStore],
    mounting: Mounting,
    way: str,
    network: str,
    upload: str,
) -> None:
    store = new_store("moto")
    options = ("--timeout", "2s", "--upload", upload, "--upload-delay", "1h")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        mount.do(os.listdir, mount.mountpoint)
        silence = proxy.on(lambda _: network == "is silent", BlackHole())
        if network == "refuses":
            proxy.refuse()
        written = mount.do(programs.fill, mount / "late", 5)
        assert (written[1] == 0) == (upload == "background")

        began = time.monotonic()
        assert WAYS[way](mount) == 5
        assert time.monotonic() - began < 2 * 2 + HANGING_END_S + SLACK_S

        assert is_left_tidy(mount)
        said = mount.log_text().splitlines()[-1]
        assert said.startswith(f"cachefs: {store.target().source} is unmounted, but 1 file still")
        assert "late (" in said
        silence.lift()
        if network == "refuses":
            proxy.relay_again()
        mount.start()
        wait_until(store.keys, "the next mount has stored it")
        assert store.view() == {"late": programs.pattern("late", 0, 5)}


@pytest.mark.soak
def test_a_second_signal_ends_the_wait_for_a_silent_store(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    with store.proxy() as proxy, mounting(store.target(proxy), *LATER) as mount:
        mount.do(programs.write_file, mount / "late", b"later")
        silence = proxy.on(is_put, BlackHole())
        assert mount.process is not None
        mount.process.send_signal(signal.SIGTERM)
        silence.wait_reached()

        began = time.monotonic()
        assert mount.signalled(signal.SIGINT) == 5
        assert time.monotonic() - began < SLACK_S

        silence.lift()
        mount.start()
        wait_until(store.keys, "the next mount has stored it")
    assert store.view() == {"late": b"later"}


@pytest.mark.parametrize("store", ["swift"], indirect=True)
def test_a_second_signal_ends_the_last_look_at_a_store_that_is_silent(
    store: LiveStore, mounting: Mounting
) -> None:
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        mount.do(programs.write_file, mount / "file", b"content")
        silence = proxy.on(lambda e: store.is_object(e, "HEAD", "file"), BlackHole())
        assert mount.process is not None
        mount.process.send_signal(signal.SIGTERM)
        silence.wait_reached()

        began = time.monotonic()
        assert mount.signalled(signal.SIGINT) == 0
        assert time.monotonic() - began < SLACK_S
        assert is_left_tidy(mount)
    assert store.view() == {"file": b"content"}


@pytest.mark.soak
def test_a_read_that_hangs_does_not_hold_up_the_end(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    store.put("stuck", b"x" * 1000)
    with store.proxy() as proxy, mounting(store.target(proxy), *LATER) as mount:
        mount.do(os.listdir, mount.mountpoint)
        mount.do(programs.write_file, mount / "late", b"later")
        with proxy.during(lambda e: store.is_object(e, "GET", "stuck"), BlackHole()) as rule:
            reader = mount.hands()
            reader.begin(programs.read_file, mount / "stuck")
            rule.wait_reached()
            assert mount.process is not None
            mount.process.send_signal(signal.SIGTERM)
            with pytest.raises(OSError, match=r"."):
                reader.finish(HANGING_END_S + SLACK_S)
            assert mount.wait_ended() == 0
        assert is_left_tidy(mount)
    assert store.get("late") == b"later"


@pytest.mark.soak
def test_uploads_that_hang_while_reads_go_on_do_not_hold_up_the_end(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    options = ("--timeout", "2s", "--metadata-ttl", "0", *LATER)
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        for number in range(12):  # more than are uploaded at once
            mount.do(programs.write_file, mount / f"late{number}", b"later")
        store.put("other", b"other")
        asking = mount.hands()
        asking.begin(programs.stat_until_gone, mount / "other")
        with proxy.during(is_put, BlackHole()):
            assert mount.process is not None
            began = time.monotonic()
            mount.process.send_signal(signal.SIGTERM)
            assert asking.finish(45) > 0
            assert mount.wait_ended() == 5
            assert time.monotonic() - began < 2 * 2 + HANGING_END_S + SLACK_S
        assert "12 files still wait" in mount.log_text().splitlines()[-1]
        assert "and 9 more" in mount.log_text().splitlines()[-1]
        mount.start()
        wait_until(lambda: len(store.keys()) == 13, "the next mount has stored all")


@pytest.mark.soak
@pytest.mark.parametrize("upload", ["close", "background"])
def test_a_file_that_is_being_written_is_kept_and_not_stored_half_done(
    new_store: Callable[[str], LiveStore], mounting: Mounting, upload: str
) -> None:
    store = new_store("moto")
    store.put("half", b"old")
    with mounting(store.target(), "--upload", upload, "--upload-delay", "1h") as mount:
        writer = mount.hands()
        fd = writer.do(os.open, mount / "half", os.O_WRONLY | os.O_TRUNC)
        writer.do(os.write, fd, b"half of")
        assert mount.process is not None
        mount.process.send_signal(signal.SIGTERM)
        assert mount.wait_ended() == 5

        with pytest.raises(OSError, match=r"."):
            writer.do(os.write, fd, b" it")
        said = mount.log_text().splitlines()[-1]
        assert "1 file still waits for upload: half (being written) — cachefs recover list" in said
        assert store.view() == {"half": b"old"}
        listed = cachefs(
            *("recover", "list", "--cache-dir", mount.cache_dir, "--json"), env=mount.env
        )
        files = json.loads(listed.stdout)["caches"][0]["files"]
        assert [(file["path"], file["size"]) for file in files] == [("half", 7)]
        mount.start()
        assert mount.do(programs.read_file, mount / "half") == b"old"


@pytest.mark.soak
def test_a_close_that_comes_while_the_mount_ends_is_uploaded(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    with store.proxy() as proxy, mounting(store.target(proxy), *LATER) as mount:
        writer = mount.hands()
        fd = writer.do(os.open, mount / "open", os.O_WRONLY | os.O_CREAT)
        writer.do(os.write, fd, b"written before")
        mount.do(programs.write_file, mount / "late", b"later")
        held = proxy.on(lambda e: store.is_object(e, "PUT", "late"), HoldRequest())
        assert mount.process is not None
        mount.process.send_signal(signal.SIGTERM)
        held.wait_reached()
        with pytest.raises(OSError, match=r"Read-only"):
            mount.do(programs.write_file, mount / "too-late", b"refused")
        writer.do(os.close, fd)
        held.lift()
        assert mount.wait_ended() == 0
    assert store.view() == {"late": b"later", "open": b"written before"}
