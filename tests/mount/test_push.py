"""A directory that was pushed: the mount shows it as it is, and a push that was killed goes on where it was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mount import programs
from tests.mount.harness import ROOT, Mount, environment
from tests.mount.large import Large, large_of
from tests.mount.proxy import BlackHole, Proxy
from tests.mount.smaller import MIB, S3_PART
from tests.mount.stores import LiveStore, Target

FILES: Final = int(os.environ.get("CACHEFS_TEST_PUSH_FILES", "20000"))
"""Of the soak."""
LONG_AGO: Final = 1_600_000_000
ODD: Final = (
    "line\nbreak",
    "tab\there",
    " blank ",
    "~",
    "%41",
    "a+b&c=d",
    "quote'\"",
    "back\\slash",
    "ä€😀",
    "n" * 255,
)

pytestmark = pytest.mark.timeout(7200)


def on(*names: str) -> pytest.MarkDecorator:
    """Try it on the stores of these names; on the others where time does not matter."""
    every = ("file", "moto", "radosgw", "swift")
    soaked = (pytest.param(name, marks=pytest.mark.soak) for name in every if name not in names)
    return pytest.mark.parametrize("store", [*names, *soaked], indirect=True)


@dataclass
class Pushing:
    """Runs pushes of one directory."""

    base: Path
    target: Target
    module: str = "cachefs"

    @property
    def root(self) -> Path:
        return self.base / "tree"

    @property
    def env(self) -> Mapping[str, str]:
        home = self.base / "home"
        home.mkdir(exist_ok=True)
        state = {"XDG_STATE_HOME": str(self.base / "state")}
        return environment(home, {**self.target.environment, **state})

    def argv(self, *words: str) -> list[str | Path]:
        where = self.target.source, *self.target.options
        return [sys.executable, "-m", self.module, "push", self.root, *where, "--json", *words]

    def run(self, *words: str, code: int = 0) -> "Pushed":
        done = subprocess.run(
            self.argv(*words),
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=1100,
            check=False,
        )
        assert done.returncode == code, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return Pushed(lines[:-1], lines[-1]["summary"])

    def begin(self, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self.argv(*words), cwd=ROOT, env=self.env, stdout=subprocess.DEVNULL
        )


@dataclass
class Pushed:
    """What a push told."""

    lines: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def changed(self) -> set[str]:
        return {line["path"] for line in self.lines}


def make_tree(root: Path, files: int, odd: Sequence[str] = ODD) -> None:
    """Files with all that an archive keeps, some of them with names that need care."""
    chance = random.Random(files)
    for number in range(files):
        directory = root / f"d{number % max(1, files // 50)}"
        directory.mkdir(parents=True, exist_ok=True)
        name = odd[number] if number < len(odd) else f"file{number:05}.txt"
        (directory / name).write_bytes(chance.randbytes(chance.randrange(3000)))
    (root / "d0" / "empty").mkdir()
    (root / "d0" / "link").symlink_to("../d0/empty")
    (root / "a-b").write_bytes(b"sorts before a/")
    (root / "a").mkdir()
    (root / "large").write_bytes(chance.randbytes(3 * MIB))
    os.setxattr(root / "large", "user.colour", b"\0blue")
    os.chown(root / "large", 1234, 567)
    (root / "large").chmod(0o4751)
    (root / "d0").chmod(0o700)
    for at, (top, dirs, names) in enumerate(os.walk(root, topdown=False)):
        for name in (*dirs, *names):
            stamp = LONG_AGO * 10**9 + at * 10**9 + 123_456_789
            os.utime(Path(top, name), ns=(stamp, stamp), follow_symlinks=False)


@on("file")
def test_a_mount_shows_the_tree_that_was_pushed(
    store: LiveStore, tmp_path: Path, mounting: Callable[..., Mount]
) -> None:
    target = store.target() if store.name == "file" else store.target().below("pre/fix")
    pushing = Pushing(tmp_path, target)
    # moto's web server knows no path with a line break in it.
    odd = [name for name in ODD if store.name != "moto" or "\n" not in name]
    make_tree(pushing.root, 60, odd)
    fresh = programs.describe_tree(pushing.root)

    first, second = pushing.run(), pushing.run()
    (pushing.root / "large").chmod(0o600)
    (pushing.root / "a-b").write_bytes(b"other")
    third = pushing.run()

    assert first.summary["new"] == len(fresh)
    assert second.changed == set()
    assert second.summary["bytes_hashed"] == second.summary["bytes_sent"] == 0
    assert set(second.summary["requests"]) == {"check", "list"}
    assert third.changed == {"large", "a-b"}
    assert third.summary["bytes_sent"] == len(b"other")
    with mounting(target, "--attributes", "exact") as mount:
        shown = mount.do(programs.describe_tree, mount.mountpoint)
    assert shown == programs.describe_tree(pushing.root)


@dataclass
class Cut:
    """A push of one large file, and a proxy on the way."""

    pushing: Pushing
    large: Large
    proxy: Proxy

    def killed_before_part(self, number: int, how: signal.Signals) -> None:
        with self.proxy.during(
            lambda e: self.large.is_part(e, number), BlackHole(), times=1
        ) as rule:
            process = self.pushing.begin("--transfers", "1", "--part-size", f"{S3_PART // MIB}MiB")
            rule.wait_reached()
            process.send_signal(how)
            process.wait(60)
        self.proxy.forget()

    def parts_sent(self) -> int:
        sent = [e for e in self.proxy.exchanges() if self.large.is_part(e)]
        return len([e for e in sent if e.status is not None and e.status < 300])


@pytest.mark.parametrize(
    ("store", "how"),
    [
        ("moto", signal.SIGKILL),
        pytest.param("moto", signal.SIGINT, marks=pytest.mark.soak),
        pytest.param("radosgw", signal.SIGKILL, marks=pytest.mark.soak),
        pytest.param("swift", signal.SIGKILL, marks=pytest.mark.soak),
    ],
    indirect=["store"],
)
def test_a_push_that_was_killed_sends_only_the_parts_that_are_missing(
    store: LiveStore, tmp_path: Path, how: signal.Signals
) -> None:
    with store.proxy() as proxy:
        large = large_of(store)
        pushing = Pushing(tmp_path, store.target(proxy), "tests.mount.smaller")
        pushing.root.mkdir()
        content = programs.pattern("large", 0, large.size)
        (pushing.root / "large").write_bytes(content)
        cut = Cut(pushing, large, proxy)
        cut.killed_before_part(4, how)

        done = pushing.run("--transfers", "1", "--part-size", f"{S3_PART // MIB}MiB")

        assert done.summary["new"] == 1
        assert cut.parts_sent() == 2
        assert store.view() == {"large": content}
        assert not large.left()
        assert pushing.run().changed == set()


@pytest.mark.soak
@pytest.mark.parametrize("store", ["radosgw", "swift"], indirect=True)
def test_many_files_are_pushed_and_pushed_again_for_nothing(
    store: LiveStore, tmp_path: Path, mounting: Callable[..., Mount]
) -> None:
    pushing = Pushing(tmp_path, store.target())
    make_tree(pushing.root, FILES)
    (pushing.root / "huge").write_bytes(random.Random(5).randbytes(100 * MIB))
    began = time.monotonic()
    first = pushing.run()
    middle = time.monotonic()
    second = pushing.run()
    ended = time.monotonic()
    print(f"{store.name}: {middle - began:.1f} s {first.summary}")
    print(f"{store.name}: {ended - middle:.1f} s {second.summary}")

    assert first.summary["failed"] == 0
    assert second.changed == set()
    assert second.summary["bytes_hashed"] == second.summary["bytes_sent"] == 0
    assert set(second.summary["requests"]) == {"check", "list"}
    with mounting(store.target(), watchdog_s=7000) as mount:
        hands = mount.hands()
        hands.begin(programs.inventory, mount.mountpoint)
        assert hands.finish(7000) == programs.inventory(pushing.root)
