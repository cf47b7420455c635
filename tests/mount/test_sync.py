"""From one real store to another by `cachefs sync`: what arrives, what a second run does, what a kill costs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from cachefs.cli.sync_sides import End
from cachefs.config import Environment, mount_config, read_config_file
from cachefs.config.given import Given, read_arguments
from cachefs.config.option import Group
from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.open import open_store
from cachefs.remote.retry import Retrying
from tests.contract.bodies import BytesBody, fetched
from tests.mount import programs
from tests.mount.harness import ROOT, environment, wait_until
from tests.mount.large import large_of
from tests.mount.measured import PEAK
from tests.mount.proxy import BlackHole
from tests.mount.smaller import MIB, S3_PART
from tests.mount.stores import LiveStore, Target

KEYS: Final = int(os.environ.get("CACHEFS_TEST_SYNC_KEYS", "10000"))
"""Of the soak."""
FEW: Final = 150
TRANSFERS: Final = 16
MEASURED: Final = "tests.mount.measured"
META: Final = {"mtime": "1.000000000", ":cache-control": "max-age=60"}
ODD: Final = ("a+b&c=d", "%41", " blank ", "ä€😀", "quote'\"", "dir/", "dir/x", "dir-y", "n" * 255)

pytestmark = pytest.mark.timeout(10_800)


def opened(target: Target, monkeypatch: pytest.MonkeyPatch) -> Retrying:
    """The store that *target* names, as cachefs opens it."""
    for name, value in target.environment.items():
        monkeypatch.setenv(name, value)
    surroundings = Environment(variables=dict(target.environment))
    given: Given = read_arguments(list(target.options), (Group.REMOTE,))[0]
    config = mount_config(
        target.source,
        None,
        given.settings,
        file=read_config_file(surroundings),
        environment=surroundings,
    )
    end = End(config, target.environment)
    return open_store(end.source, config.store, timeout_s=config.timeout_s, environ=end.environ)


def every(store: Retrying) -> dict[str, ObjectInfo]:
    return {info.key: info for page in store.list(Key(""), deep=True) for info in page.objects}


def content_of(key: str) -> bytes:
    return random.Random(key).randbytes(100)


def fill(store: Retrying, keys: Sequence[str]) -> None:
    """Make the objects, quickly."""
    store.probe()

    def put(key: str) -> None:
        content = b"" if key.endswith("/") else content_of(key)
        store.put(
            Key(key), BytesBody(content), meta=META, content_type="text/x-test", if_match=None
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, keys))


def names(count: int) -> list[str]:
    return [*ODD, *(f"{number % 97:02}/{number:07}" for number in range(count - len(ODD)))]


@dataclass
class Ran:
    """How a run ended."""

    summary: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    peak_kib: int
    """Of memory, of a run that is measured."""
    took_s: float
    cpu_s: float


@dataclass
class Syncing:
    """Runs of one sync."""

    base: Path
    source: Target
    target: Target
    module: str = "cachefs"

    @property
    def env(self) -> Mapping[str, str]:
        home = self.base / "home"
        home.mkdir(exist_ok=True)
        state = {"XDG_STATE_HOME": str(self.base / "state"), PEAK: str(self.base / "peak")}
        return environment(home, {**self.source.environment, **self.target.environment, **state})

    def begin(
        self, action: str, *words: str, out: int = subprocess.DEVNULL
    ) -> "subprocess.Popen[bytes]":
        options = self.source.options or self.target.options
        ends = (self.source.source, self.target.source)
        argv = [
            sys.executable,
            "-m",
            self.module,
            "sync",
            action,
            *ends,
            *options,
            "--json",
            *words,
        ]
        where = ("--out", str(self.base / "out"))
        return subprocess.Popen([*argv, *where], cwd=ROOT, env=self.env, stdout=out)

    def run(self, action: str, *words: str, code: int = 0) -> Ran:
        began = time.monotonic()
        with (self.base / "lines").open("w+b") as out:
            process = self.begin(action, *words, out=out.fileno())
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            lines = [json.loads(line) for line in out]
        assert process.returncode == code
        return Ran(
            lines[-1]["summary"],
            lines[:-1],
            int((self.base / "peak").read_text()) if self.module == MEASURED else 0,
            time.monotonic() - began,
            usage.ru_utime + usage.ru_stime,
        )


def pairs(*always: tuple[str, str]) -> pytest.MarkDecorator:
    """Try it from the first to the second of these stores; from and to others where time does not matter."""
    kinds = [
        ("moto", "file"), ("moto", "moto"), ("radosgw", "radosgw"), ("radosgw", "swift"),
        ("swift", "swift"), ("swift", "radosgw"), ("file", "swift"),
    ]  # fmt: skip
    params = [
        pytest.param(*pair, marks=() if pair in always else pytest.mark.soak, id="-".join(pair))
        for pair in kinds
    ]
    return pytest.mark.parametrize(("one", "other"), params)


def look_alike(ours: ObjectInfo, theirs: ObjectInfo, *, etags: bool) -> bool:
    return ours.size == theirs.size and (not etags or ours.etag == theirs.etag)


@pairs(("moto", "file"))
def test_everything_arrives_and_the_second_run_copies_nothing(
    one: str,
    other: str,
    new_store: Callable[[str], LiveStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = new_store(one).target(), new_store(other).target()
    syncing = Syncing(tmp_path, source, target)
    keys = [key for key in names(FEW) if not (one == "file" and key == "dir/")]
    large = random.Random(1).randbytes(9 * MIB + 1)
    with closing(opened(source, monkeypatch)) as near, closing(opened(target, monkeypatch)) as far:
        fill(near, keys)
        near.put(
            Key("large"), BytesBody(large), meta=META, content_type="text/x-large", if_match=None
        )
        fill(far, ["only here"])
        made = time.time()
        wait_until(lambda: time.time() >= made + 1.1, "a second, which stores tell times in")

        planned = syncing.run("dryrun")
        first = syncing.run("sync")
        second = syncing.run("sync")

        here, there = every(near), every(far)
        assert (planned.summary["new"], planned.summary["duplicate"]) == (len(here), 1)
        assert (first.summary["copied"], first.summary["deleted"]) == (len(here), 1)
        assert (second.summary["copied"], second.lines) == (0, [])
        assert set(here) == set(there)
        assert all(
            look_alike(here[key], there[key], etags="file" not in (one, other)) for key in here
        )
        for key in ("large", *keys[::40]):
            assert_arrived(far, key, large if key == "large" else content_of(key))


def assert_arrived(store: Retrying, key: str, content: bytes) -> None:
    seen = store.head(Key(key))
    assert fetched(store, Key(key), Extent(0, len(content)), seen.etag) == content
    assert seen.content_type == ("text/x-large" if key == "large" else "text/x-test")
    meta = seen.meta or {}
    assert {name: meta.get(name) for name in META} == META


@pytest.mark.parametrize(
    "store",
    [
        "moto",
        pytest.param("radosgw", marks=pytest.mark.soak),
        pytest.param("swift", marks=pytest.mark.soak),
    ],
    indirect=True,
)
def test_a_sync_that_was_killed_sends_only_the_parts_that_are_missing(
    store: LiveStore, tmp_path: Path
) -> None:
    with store.proxy() as proxy:
        large = large_of(store)
        (tmp_path / "from").mkdir()
        content = programs.pattern("large", 0, large.size)
        (tmp_path / "from" / "large").write_bytes(content)
        source = Target(f"file://{tmp_path}/from")
        syncing = Syncing(tmp_path, source, store.target(proxy), "tests.mount.smaller")
        words = ("--transfers", "1", "--part-size", f"{S3_PART // MIB}MiB")
        with proxy.during(lambda e: large.is_part(e, 4), BlackHole(), times=1) as rule:
            process = syncing.begin("copy", *words)
            rule.wait_reached()
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        proxy.forget()

        done = syncing.run("copy", *words)

        sent = [e for e in proxy.exchanges() if large.is_part(e)]
        assert done.summary["copied"] == 1
        assert len([e for e in sent if e.status is not None and e.status < 300]) == 2
        assert store.view() == {"large": content}
        assert not large.left()


@pytest.mark.soak
@pairs()
def test_many_keys_arrive_in_memory_that_does_not_grow_and_a_killed_run_goes_on(
    one: str,
    other: str,
    new_store: Callable[[str], LiveStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "moto" in (one, other):
        pytest.skip("one process that keeps all in memory shows nothing of this")
    source, target = (new_store(kind).target() for kind in (one, other))
    with closing(opened(source, monkeypatch)) as near:
        fill(near, names(KEYS))
        here = every(near)
        syncing = Syncing(tmp_path, source, target, MEASURED)
        tenth = syncing.run(
            "copy", *(word for digit in range(10) for word in ("--include", f"{digit:02}/"))
        )

        process = syncing.begin("copy")
        report = tmp_path / "out" / ".report.jsonl.part"
        wait_until(
            lambda: report.exists() and report.stat().st_size > 30 * KEYS, "a third of it", 7200
        )
        process.kill()
        process.wait()
        with closing(opened(target, monkeypatch)) as far:
            there = len(every(far))
        rest = syncing.run("copy")
        again = syncing.run("copy")
        for name, ran in (("tenth", tenth), (f"the rest after {there}", rest), ("again", again)):
            print(
                f"{one} to {other}, {name}: {ran.summary['copied']} copied of {ran.summary['compared']} compared, "
                f"{ran.took_s:.1f} s, processor {ran.cpu_s:.1f} s, peak {ran.peak_kib / 1024:.0f} MiB"
            )

        assert tenth.summary["copied"] < there < len(here)
        # What was under way at the kill may have arrived since it was counted.
        assert len(here) - there - TRANSFERS <= rest.summary["copied"] <= len(here) - there
        assert again.summary["copied"] == 0
        assert rest.peak_kib < 1.25 * tenth.peak_kib
        assert again.peak_kib < 1.25 * tenth.peak_kib
        assert_all_there(here, target, monkeypatch, one)


def assert_all_there(
    here: Mapping[str, ObjectInfo], target: Target, monkeypatch: pytest.MonkeyPatch, one: str
) -> None:
    with closing(opened(target, monkeypatch)) as far:
        there = every(far)
        assert set(here) == set(there)
        assert all(look_alike(here[key], there[key], etags=one != "file") for key in here)
        for key in random.Random(3).sample(sorted(here), 50):
            content = b"" if key.endswith("/") else content_of(key)
            assert (
                fetched(far, Key(key), Extent(0, len(content)), ETag(there[key].etag)) == content
            )
