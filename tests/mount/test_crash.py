"""A daemon that is killed: what was acknowledged is in the store after the next mount, and nothing is torn."""

import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, wait_until
from tests.mount.proxy import DropAnswer, Exchange, HoldAnswer, HoldRequest
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
MIB = 1 << 20

SEED = 20_240_601


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("store", "upload", "kills"),
    [
        ("moto", "close", 8),
        ("moto", "background", 7),
        *(
            pytest.param(name, upload, 100, marks=pytest.mark.soak)
            for name in ("file", "moto", "radosgw", "swift")
            for upload in ("close", "background")
        ),
    ],
    indirect=["store"],
)
def test_killed_at_any_moment_an_acknowledged_file_is_stored_and_none_is_torn(
    store: LiveStore, upload: str, kills: int, mounting: Mounting, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    journal, names = tmp_path / "journal", [f"file{i}" for i in range(8)]
    journal.touch()
    options = ("--upload", upload, "--upload-delay", "0.2s")
    acknowledged = 0
    with mounting(store.target(), *options, watchdog_s=1100) as mount:
        for kill in range(kills):
            first = kill * 10_000
            writer = mount.hands()
            writer.begin(programs.write_versions, mount.mountpoint, journal, names, first, kill)
            _wait_for_version(journal, first + 1)
            writer.wait_ended(chance.uniform(0, 1))
            mount.kill()
            mount.start()
            # Bytes that were never closed are kept for the operator, and are not the file.
            mount.wait_clean(but_parked=True)
            acknowledged = _check(store, journal, f"kill {kill}")

    print(f"{kills} kills, {acknowledged} acknowledged closes")
    assert acknowledged > kills
    extra = set(store.keys()) - set(names) - {f"{name}.tmp" for name in names}
    assert extra == set(), "no second copy, no false conflict"


def _wait_for_version(journal: Path, version: int) -> None:
    wait_until(lambda: f" {version}\n" in journal.read_text(), "the program writes")


def _check(store: LiveStore, journal: Path, when: str) -> int:
    """Compare the store with the journal; returns how many closes the journal holds."""
    begun: dict[str, list[int]] = {}
    closed: dict[str, int] = {}
    count = 0
    for line in journal.read_text().splitlines():
        word, name, version = line.split()
        if word == "begun":
            begun.setdefault(name, []).append(int(version))
        else:
            closed[name] = int(version)
            count += 1
    stored = store.view()
    for name, versions in begun.items():
        last = closed.get(name, 0)
        allowed = [v for v in versions if v >= last]
        if name not in stored:
            assert not last, f"{when}: {name} was closed at {last} and is not in the store"
            continue
        content = stored[name]
        said = [v for v in allowed if programs.version_content(name, v) == content]
        assert said, f"{when}: {name}, closed at {last}, is {_told(name, content, versions)}"
    return count


def _told(name: str, content: bytes, versions: list[int]) -> str:
    """In words, what that content is."""
    if not content:
        return "empty"
    for version in versions:
        whole = programs.version_content(name, version)
        if content == whole:
            return f"version {version}, which is older"
        if whole.startswith(content):
            return f"the first {len(content)} of {len(whole)} bytes of version {version}"
    return f"{len(content)} bytes that are no version"


def is_put(store: LiveStore, key: str) -> Callable[[Exchange], bool]:
    return lambda exchange: store.is_object(exchange, "PUT", key)


@pytest.mark.parametrize(
    ("store", "upload"),
    [
        ("moto", "close"),
        ("moto", "background"),
        ("radosgw", "close"),
        ("swift", "close"),
        pytest.param("radosgw", "background", marks=pytest.mark.soak),
        pytest.param("swift", "background", marks=pytest.mark.soak),
    ],
    indirect=["store"],
)
def test_killed_between_the_store_and_its_answer_the_file_is_stored_once(
    store: LiveStore, upload: str, mounting: Mounting
) -> None:
    store.put("file", b"old")
    new = programs.pattern("new", 0, 100_000)
    options = ("--upload", upload, "--upload-delay", "0s")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        rule = proxy.on(is_put(store, "file"), HoldAnswer(), times=1)
        mount.hands().begin(programs.write_file, mount / "file", new)
        rule.wait_reached()
        mount.kill()
        rule.lift()
        assert store.get("file") == new
        mount.start()
        mount.wait_clean()

        assert mount.do(programs.read_file, mount / "file") == new
        assert not mount.status()["conflicts"]
    assert store.view() == {"file": new}


@pytest.mark.parametrize("store", ["moto", "radosgw", "swift"], indirect=True)
def test_killed_before_the_store_had_anything_the_next_mount_uploads_it(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", b"old")
    new = programs.pattern("new", 0, 100_000)
    options = ("--upload", "background", "--upload-delay", "0s")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        rule = proxy.on(is_put(store, "file"), HoldRequest(), times=1)
        mount.do(programs.write_file, mount / "file", new)
        rule.wait_reached()
        assert store.get("file") == b"old"
        mount.kill()
        mount.start()
        mount.wait_clean()
        rule.lift()

        assert store.view() == {"file": new}


@pytest.mark.parametrize("store", ["moto", "radosgw", "swift"], indirect=True)
def test_a_lost_answer_makes_no_second_copy_and_no_conflict(
    store: LiveStore, mounting: Mounting
) -> None:
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        mount.do(programs.write_file, mount / "file", b"old")
        with proxy.during(is_put(store, "file"), DropAnswer(), times=1) as rule:
            mount.do(programs.write_file, mount / "file", b"new")
            rule.wait_reached(0)
        with proxy.during(lambda e: store.is_object(e, "DELETE"), DropAnswer(), times=1):
            mount.do(programs.write_file, mount / "other", b"x")
            mount.do(os.remove, mount / "other")
        with proxy.during(is_put(store, "made"), DropAnswer(), times=1):
            mount.do(programs.write_file, mount / "made", b"made")
        assert mount.do(programs.read_file, mount / "file") == b"new"
        assert not mount.status()["conflicts"]

    assert store.view() == {"file": b"new", "made": b"made"}


def is_copy(exchange: Exchange) -> bool:
    headers = exchange.headers
    return exchange.method == "COPY" or "x-amz-copy-source" in headers or "x-copy-from" in headers


def is_delete(exchange: Exchange) -> bool:
    return exchange.method == "DELETE" or exchange.query.partition("=")[0] == "delete"


@pytest.mark.parametrize("step", [is_copy, is_delete])
@pytest.mark.parametrize("store", ["moto", "radosgw", "swift"], indirect=True)
def test_a_rename_of_a_directory_that_is_killed_is_finished_or_undone(
    store: LiveStore, step: Callable[[Exchange], bool], mounting: Mounting
) -> None:
    content = {f"deep/f{i}": f"content {i}".encode() for i in range(6)}
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        mount.do(os.makedirs, mount / "old/deep")
        for name, value in content.items():
            mount.do(programs.write_file, mount / "old" / name, value)
        seen: list[Exchange] = []

        def third(exchange: Exchange) -> bool:
            seen.extend([exchange] if step(exchange) else [])
            return step(exchange) and len(seen) >= 3

        rule = proxy.on(third, HoldAnswer())
        mount.hands().begin(os.rename, mount / "old", mount / "new")
        rule.wait_reached()
        mount.kill()
        rule.lift()
        mount.start()
        mount.wait_clean()

        tree = mount.do(programs.read_tree, mount.mountpoint)
        (name,) = mount.do(os.listdir, mount.mountpoint)
        assert name in {"old", "new"}
        assert tree == {f"{name}/{key}": value for key, value in content.items()}
    assert store.view() == tree


def test_a_large_upload_that_is_killed_leaves_no_half_object(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    size = 80 * MIB
    options = ("--upload", "background", "--upload-delay", "0s", "--part-size", "8MiB")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        rule = proxy.on(
            lambda e: store.is_object(e, "PUT", "large") and "partNumber=3" in e.query,
            HoldAnswer(),
            times=1,
        )
        mount.do(programs.write_pattern, mount / "large", "large", size)
        rule.wait_reached()
        mount.kill()
        rule.lift()
        assert store.keys() == []
        mount.start()
        mount.wait_clean(60)

        assert store.keys() == ["large"]
        content = store.get("large")
        assert len(content) == size
        assert content == programs.pattern("large", 0, size)


def test_a_stale_mount_is_cleaned_up_by_the_next_one(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("file")
    with mounting(store.target()) as mount:
        mount.do(programs.write_file, mount / "file", b"content")
        mount.kill(leave_stale=True)
        with pytest.raises(OSError, match="not connected"):
            mount.do(os.stat, mount.mountpoint)

        mount.start()

        assert mount.do(programs.read_file, mount / "file") == b"content"
        assert mount.umount().returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_uploads_what_is_dirty_and_unmounts(
    new_store: Callable[[str], LiveStore], mounting: Mounting, number: signal.Signals
) -> None:
    store = new_store("moto")
    options = ("--upload", "background", "--upload-delay", "600s")
    with mounting(store.target(), *options) as mount:
        mount.do(programs.write_file, mount / "file", b"content")
        assert store.view() == {}
        code = mount.signalled(number)

    assert store.view() == {"file": b"content"}
    assert code in {0, 130}


def test_umount_with_a_dead_network_says_what_waits_and_leaves_the_mount(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    store = new_store("moto")
    options = ("--upload", "background", "--upload-delay", "600s", "--timeout", "3s")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        mount.do(programs.write_file, mount / "file", b"content")
        proxy.refuse()

        done = mount.umount("--timeout", "3")

        assert done.returncode == 5, done.stderr
        assert "file" in done.stderr
        assert re.fullmatch(r"cachefs: .*\n", done.stderr)
        assert mount.do(programs.read_file, mount / "file") == b"content"
        proxy.relay_again()
        assert mount.umount().returncode == 0
    assert store.view() == {"file": b"content"}
