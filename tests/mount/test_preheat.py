"""``cachefs preheat`` while the mount serves: the daemon fetches, and agrees with it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, cachefs, wait_until
from tests.mount.proxy import HoldBody
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
MIB = 1 << 20


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_what_was_preheated_is_read_without_the_store_and_an_interrupt_ends_in_a_summary(
    store: LiveStore, mounting: Mounting, tmp_path: Path
) -> None:
    contents = {f"d/f{number}": os.urandom(MIB // 4) for number in range(4)}
    for key, content in contents.items():
        store.put(key, content)
    (tmp_path / "list").write_text("".join(f"{key}\n" for key in contents))
    words = ("preheat", "--list", tmp_path / "list", "--threads", "2")
    options = ("--metadata-ttl", "600", "--trace", str(tmp_path / "trace.csv"))
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        held = HoldBody(1000)
        proxy.on(lambda e: store.is_object(e, "GET", "d/f2"), held, times=1)
        with subprocess.Popen(
            [sys.executable, "-m", "cachefs", *map(str, words), mount.mountpoint, "--json"],
            env=mount.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as job:
            assert held.reached.wait(30)
            job.send_signal(signal.SIGINT)
            _, said = job.communicate(timeout=30)
        held.gate.set()
        assert job.returncode == 130
        assert re.fullmatch(r"[0-3] files? fetched \(.*, 0 failed; interrupted\n", said)

        done = cachefs(*words, mount.mountpoint, env=mount.env)
        assert (done.returncode, done.stderr) == (0, "")
        proxy.forget()
        again = cachefs(*words, mount.mountpoint, env=mount.env)
        assert again.stdout == "0 files fetched (0 B, 0 B/s), 4 cached already, 0 failed\n"
        for key, content in contents.items():
            assert mount.do(programs.read_file, mount / key) == content
        assert store.asked(proxy, "GET") == []
        checked = cachefs(*words, mount.mountpoint, "--check", env=mount.env)
        assert checked.stdout.startswith("4 of 4 files cached (100.0%), 1.0 MiB of 1.0 MiB")
        by_history = cachefs(
            "preheat", mount.mountpoint, "--by", "frequency", "--check", env=mount.env
        )
        assert by_history.stdout == checked.stdout

        wait_until(
            lambda: mount.status()["trace"]["lines"] == len(contents), "the trace is written"
        )
        simulated = cachefs(
            *("simulate", mount.mountpoint, "--policy", "lru", "--sizes", "64MiB", "--json"),
            env=mount.env,
        )
        document = json.loads(simulated.stdout)
        assert document["trace"]["note"] == f"as {tmp_path}/trace.csv has it"
        assert document["results"][0]["opens"] == len(contents)


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_a_tree_whose_names_were_preheated_is_walked_without_the_store_also_by_a_later_mount(
    store: LiveStore, mounting: Mounting
) -> None:
    keys = [f"d{number}/e/{name}" for number in range(6) for name in "ab"]
    for key in keys:
        store.put(key, b"x")
    tops = [f"d{number}" for number in range(6)]
    expected = sorted([*keys, *tops, *(f"{top}/e" for top in tops)])
    options = ("--metadata-ttl", "600", "--attributes", "listing")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        done = cachefs("preheat", "--metadata", mount.mountpoint, env=mount.env)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "12 objects in 13 directories known, by 1 request\n"
        for _ in range(2):
            proxy.forget()
            assert mount.do(programs.names_below, mount.mountpoint) == expected
            assert list(proxy.exchanges()) == []
            mount.remount()
