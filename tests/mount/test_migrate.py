"""``cachefs cache migrate`` on real stores: the MD5s of objects that others sent in parts, each read once and never again."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachefs import MetadataDB
from tests.mount.harness import ROOT, Mount, cachefs, environment, wait_until
from tests.mount.proxy import Exchange, HoldRequest, Proxy
from tests.mount.stores import LiveStore, S3Bucket, SwiftContainer

Mounting = Callable[..., Mount]

WATCHDOG_S = 600
CELLS = [
    pytest.param("moto", 8, id="moto"),
    pytest.param("swift", 8, id="swift"),
    pytest.param("radosgw", 500, marks=pytest.mark.soak, id="radosgw-500"),
    pytest.param("swift", 500, marks=pytest.mark.soak, id="swift-500"),
]

pytestmark = pytest.mark.timeout(WATCHDOG_S + 60)


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def fill(store: LiveStore, count: int) -> list[str]:
    """Put objects in parts, some more whose MD5 nobody needs to read, and return the keys of the former."""
    assert isinstance(store, S3Bucket | SwiftContainer)
    keys = [f"d{number % 7}/100%_{number}" for number in range(count)]
    for number, key in enumerate(keys):
        parts = [os.urandom(10_000 + number)]
        if isinstance(store, SwiftContainer):
            parts.append(os.urandom(number + 1))
        elif not number:  # S3 has no shorter parts, but for the last one
            parts = [os.urandom(5 * 2**20), b"end"]
        store.put_parts(key, parts)
    for number in range(5):
        store.put(f"plain/{number}", os.urandom(1000))
    return keys


def through(store: LiveStore, proxy: Proxy) -> tuple[tuple[str, ...], dict[str, str]]:
    target = store.target(proxy)
    return target.options, dict(target.environment)


@pytest.mark.parametrize(("store", "count"), CELLS, indirect=["store"])
def test_killed_half_way_and_run_again_it_reads_each_object_once_and_then_none(
    store: LiveStore, count: int, mounting: Mounting, tmp_path: Path
) -> None:
    keys = fill(store, count)
    asked: set[str] = set()

    def is_late(exchange: Exchange) -> bool:
        if store.is_object(exchange, "GET") and "manifest" not in exchange.query:
            asked.add(exchange.path)
        return len(asked) > count // 2 and store.is_object(exchange, "GET")

    with (
        mounting(store.target(), watchdog_s=WATCHDOG_S) as mount,
        store.proxy() as proxy,
        MetadataDB(mount.cache_dir) as db,
    ):
        options, variables = through(store, proxy)
        env = environment(tmp_path, variables)
        words = ("cache", "migrate", str(mount.mountpoint), "--json", *options)

        def run(*more: str) -> dict[str, Any]:
            done = cachefs(*words, *more, env=env, timeout_s=WATCHDOG_S)
            assert done.returncode == 0, done.stderr
            told: dict[str, Any] = json.loads(done.stdout)
            return told

        planned = run("--dry-run")
        assert planned["read"] >= count
        assert reads(store, proxy) == []

        rule = proxy.on(is_late, HoldRequest())
        with subprocess.Popen(
            [sys.executable, "-m", "cachefs", *map(str, words), "--transfers", "1"],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
        ) as process:
            rule.wait_reached(WATCHDOG_S)
            wait_until(lambda: recorded(db, store, keys) >= count // 2 - 1, "half is kept", 30)
            process.kill()
        rule.lift()
        half = recorded(db, store, keys)
        assert count // 2 - 1 <= half < count

        again = run()
        assert again["read"] <= planned["read"] - half
        assert recorded(db, store, keys) == count
        for key in keys if count < 20 else keys[::25]:
            assert db.get_md5_by_key(store.bucket, key) == md5_of(store.get(key))
            told = mount.do(os.getxattr, str(mount / key), "user.cachefs.md5")
            assert told.decode() == md5_of(store.get(key))
        assert all(db.get_md5_by_key(store.bucket, key) == md5_of(store.get(key)) for key in keys)

        before = len(reads(store, proxy))
        last = run()
        assert (last["read"], last["read_bytes"], last["told"]) == (0, 0, 0)
        assert last["known"] == last["objects"] >= count + 5
        assert len(reads(store, proxy)) == before


def recorded(db: MetadataDB, store: LiveStore, keys: list[str]) -> int:
    return sum(db.find(store.bucket, key) is not None for key in keys)


def reads(store: LiveStore, proxy: Proxy) -> list[str]:
    """The objects whose content was asked for."""
    return [
        exchange.path
        for exchange in proxy.exchanges()
        if store.is_object(exchange, "GET") and "manifest" not in exchange.query
    ]


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_an_object_that_is_replaced_while_it_is_read_has_the_md5_of_the_newer(
    store: LiveStore, mounting: Mounting, tmp_path: Path
) -> None:
    assert isinstance(store, S3Bucket)
    store.put_parts("a", [b"old"])
    with (
        mounting(store.target(), watchdog_s=WATCHDOG_S) as mount,
        store.proxy() as proxy,
        contextlib.ExitStack() as stack,
    ):
        options, variables = through(store, proxy)
        rule = proxy.on(lambda e: store.is_object(e, "GET", "a"), HoldRequest(), times=1)
        process = stack.enter_context(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "cachefs",
                    "cache",
                    "migrate",
                    str(mount.mountpoint),
                    *options,
                ],
                env=environment(tmp_path, variables),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
            )
        )
        rule.wait_reached()
        store.put_parts("a", [b"newer"])
        rule.lift()

        assert process.wait(60) == 0
        with MetadataDB(mount.cache_dir) as db:
            found = db.find(store.bucket, "a")
            assert found is not None
            assert (found.md5, found.size) == (md5_of(b"newer"), 5)
