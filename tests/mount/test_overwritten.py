"""Stores that cannot hold two writers apart: who was overwritten unseen is told, and what he wrote is kept."""

import os
from collections.abc import Callable

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, wait_until
from tests.mount.proxy import HoldRequest, Proxy
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

CONDITIONS = frozenset({"if-match", "if-none-match", "x-amz-copy-source-if-match"})
FRESH = ("--metadata-ttl", "0", "--negative-ttl", "0")
OURS, THEIRS = b"ours, acknowledged", b"theirs, a moment later"


def weaken(store: LiveStore, proxy: Proxy) -> None:
    """Make an S3 of the kind that answers success whatever the condition says."""
    if store.name != "swift":
        proxy.ignored = CONDITIONS


def race(
    store: LiveStore, proxy: Proxy, early: Callable[[], object], late: Mount, path: str
) -> None:
    """Let *late*'s write, which has looked already, come to the store when *early* is acknowledged."""
    rule = proxy.on(lambda e: store.is_object(e, "PUT", path), HoldRequest(), times=1)
    writer = late.hands()
    writer.begin(programs.write_file, late / path, THEIRS)
    rule.wait_reached()
    early()
    rule.lift()
    writer.finish(30)


def copies(store: LiveStore, path: str) -> list[bytes]:
    return [v for k, v in store.view().items() if k.startswith(f"{path}.conflict-")]


@pytest.mark.parametrize(
    "store", ["swift", pytest.param("moto", marks=pytest.mark.soak)], indirect=True
)
def test_a_write_that_another_mount_overwrote_unseen_is_told_and_stored_again(
    store: LiveStore, mounting: Mounting
) -> None:
    names = ("one", "two", "renamed")
    for name in names:
        store.put(name, b"base")
    with store.proxy() as to_a, store.proxy() as to_b:
        weaken(store, to_a)
        weaken(store, to_b)
        with (
            mounting(store.target(to_a), *FRESH, name="a", watchdog_s=150) as a,
            mounting(store.target(to_b), *FRESH, name="b", watchdog_s=150) as b,
        ):
            if store.name == "moto":
                assert a.status()["capabilities"]["conditional_put"] == "ignored"
            race(store, to_b, lambda: a.do(programs.write_file, a / "one", OURS), b, "one")
            race(store, to_a, lambda: b.do(programs.write_file, b / "two", OURS), a, "two")
            a.do(programs.write_file, a / "tmp", OURS)
            rename = lambda: a.do(os.rename, a / "tmp", a / "renamed")  # noqa: E731
            race(store, to_b, rename, b, "renamed")
            assert [store.get(name) for name in names] == [THEIRS] * 3
            for mount, lost in ((a, {"one", "renamed"}), (b, {"two"})):
                mount.stop()  # which looks at once at what it would look at after --timeout
                said = [line for line in mount.log_text().splitlines() if "overwritten" in line]
                assert len(said) == len(lost)
                assert all(any(f"'{name}'" in line for line in said) for name in lost)
                mount.start()
                assert {each["key"] for each in mount.status()["conflicts"]} == lost
            assert set(a.do(os.listdir, a.mountpoint)) == set(store.keys())
        for name in names:
            assert store.get(name) == THEIRS
            assert copies(store, name) == [OURS]


@pytest.mark.soak
@pytest.mark.parametrize("store", ["swift", "moto"], indirect=True)
def test_it_is_told_after_a_while_by_itself(store: LiveStore, mounting: Mounting) -> None:
    store.put("file", b"base")
    with store.proxy() as proxy:
        weaken(store, proxy)
        with (
            mounting(
                store.target(proxy), "--timeout", "10s", *FRESH, name="a", watchdog_s=150
            ) as a,
            mounting(store.target(proxy), *FRESH, name="b", watchdog_s=150) as b,
        ):
            race(store, proxy, lambda: a.do(programs.write_file, a / "file", OURS), b, "file")
            wait_until(lambda: a.status()["conflicts"], "the loss is noticed", 60)
            assert copies(store, "file") == [OURS]


@pytest.mark.soak
@pytest.mark.parametrize("store", ["swift", "moto"], indirect=True)
def test_mounts_that_take_turns_are_never_told_of_a_conflict(
    store: LiveStore, mounting: Mounting
) -> None:
    with store.proxy() as proxy:
        weaken(store, proxy)
        with (
            mounting(store.target(proxy), *FRESH, name="a", watchdog_s=150) as a,
            mounting(store.target(proxy), *FRESH, name="b", watchdog_s=150) as b,
        ):
            for turn in range(2):
                for mount, other in ((a, b), (b, a)):
                    mount.do(programs.write_file, mount / "file", b"%d" % turn)
                    other.do(programs.append, other / "file", b"+")
                    mount.do(os.chmod, mount / "file", 0o600)
                    other.do(programs.write_file, other / "tmp", b"new")
                    other.do(os.rename, other / "tmp", other / "file")
                    mount.do(os.unlink, mount / "file")
                    other.do(programs.write_file, other / "file", b"")
                    mount.do(os.rename, mount / "file", mount / "other")
            for mount in (a, b):
                assert mount.stop() == 0
                assert "conflict" not in mount.log_text()
    assert store.view() == {"other": b""}
