"""``cachefs verify --dir`` on real stores: a tree broken in every way is told rightly, and mended by ``push``.

``CACHEFS_TEST_VERIFY_FILES`` says how many files the soak takes.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mount.harness import cachefs, environment
from tests.mount.stores import LiveStore

SMALL: Final = 200
MANY: Final = int(os.environ.get("CACHEFS_TEST_VERIFY_FILES", "20000"))
LARGE: Final = 17 * 2**20
OLD_S: Final = 10**9
ODD: Final = ("sp ace", "né", "a+b%41&c", "~tilde", "\U0001f600")
ODDER: Final = ("new\nline", "tab\there", "'quo\"te", "\x7f")
"""Which moto does not bear."""
WATCHDOG_S: Final = 7000

pytestmark = pytest.mark.timeout(WATCHDOG_S + 60)


@dataclass
class Tool:
    """The command, run beside a store."""

    env: dict[str, str]
    options: Sequence[str]
    seconds: float = 0.0

    def run(
        self, *words: str | Path, code: int, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        began = time.monotonic()
        if given is None:
            done = cachefs(*words, *self.options, env=self.env, timeout_s=WATCHDOG_S)
        else:
            done = subprocess.run(
                [shutil.which("cachefs") or "cachefs", *map(str, words), *self.options],
                env=self.env,
                input=given,
                capture_output=True,
                text=True,
                timeout=WATCHDOG_S,
                check=False,
            )
        self.seconds = time.monotonic() - began
        assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done

    def states(self, *words: str | Path, code: int) -> tuple[dict[str, str], str]:
        """What ``verify --json`` says of each file that is not the same, and what it printed."""
        done = self.run("verify", *words, "--json", code=code)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        found = {row["path"]: row["state"] for row in rows}
        assert len(found) == len(rows)
        return found, done.stdout


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (OLD_S, OLD_S))


def grow(root: Path, files: int, store: LiveStore) -> list[str]:
    """Make a tree of so many files, some of odd names, and some large ones; return their names."""
    names = [f"d{number % 97:02}/f{number:05}" for number in range(files)]
    names += [f"odd/{name}/{name}" for name in ODD]
    names += [f"odd/{name}/{name}" for name in ODDER if store.name != "moto"]
    for number, name in enumerate(names):
        write(root / name, f"{name} {number}".encode() * (number % 50))
    for number in range(2):
        write(root / f"large{number}", os.urandom(LARGE + number))
    return [*names, "large0", "large1"]


def cost(out: str) -> tuple[str, int]:
    """How much was hashed, and how many single objects the store was asked about."""
    found = re.search(r"hashed \((.*?)\).* about (\d+) single object", out)
    assert found, out
    return found[1], int(found[2])


def on(kind: str, files: int, *, soak: bool = True) -> Any:  # noqa: ANN401 - pytest's own
    marks = [pytest.mark.soak] if soak else []
    return pytest.param(kind, files, marks=marks, id=f"{kind}-{files}")


def rclone_check(store: LiveStore, root: Path, home: Path) -> float:
    """How many seconds ``rclone check`` takes to find the same."""
    target = store.target()
    said = {"TYPE": "s3", "PROVIDER": "Ceph", "ENV_AUTH": "true", "ENDPOINT": store.endpoint}
    if store.name == "swift":
        env = target.environment
        said = {
            "TYPE": "swift",
            "AUTH": env["ST_AUTH"],
            "USER": env["ST_USER"],
            "KEY": env["ST_KEY"],
        }
    remote = {f"RCLONE_CONFIG_PEER_{name}": value for name, value in said.items()}
    began = time.monotonic()
    done = subprocess.run(
        ["rclone", "check", str(root), f"peer:{store.bucket}", "--config", "/dev/null"],
        env=environment(home, {**target.environment, **remote}),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    print(done.returncode, "\n".join(done.stderr.splitlines()[-6:]))
    return time.monotonic() - began


CELLS: Final = [on("moto", SMALL, soak=False), on("radosgw", MANY), on("swift", MANY)]


@pytest.fixture
def tool(store: LiveStore, tmp_path: Path) -> Tool:
    home = tmp_path / "home"
    home.mkdir()
    target = store.target()
    return Tool(environment(home, target.environment), target.options)


@pytest.mark.parametrize(("store", "files"), CELLS, indirect=["store"])
def test_a_tree_broken_in_every_way_is_told_and_push_mends_exactly_that(
    store: LiveStore, files: int, tool: Tool, tmp_path: Path
) -> None:
    root, dest = tmp_path / "tree", store.target().source
    names = grow(root, files, store)
    tool.run("push", root, dest, code=0)
    words = ("--dir", root, dest)

    first = tool.run("verify", *words, code=0)
    took = [tool.seconds]
    second = tool.run("verify", *words, code=0)
    took.append(tool.seconds)

    assert f"{len(names)} the same" in first.stdout
    assert cost(second.stdout) == ("0 B", 0)
    print(f"{store.name}: {len(names)} files: first {took[0]:.1f} s, second {took[1]:.1f} s")
    print(first.stdout + second.stdout)
    if files == MANY:
        print(f"rclone check: {rclone_check(store, root, tmp_path):.1f} s")

    write(root / "d00/new", b"new")
    write(root / names[1], b"changed here")
    os.utime(root / names[1], (OLD_S + 1, OLD_S + 1))
    (root / names[2]).unlink()
    store.put(names[3], b"replaced there")
    store.delete(names[4])
    store.delete("large0")
    broken = {
        "d00/new": "missing_remote",
        names[1]: "differs",
        names[2]: "missing_local",
        names[3]: "differs",
        names[4]: "missing_remote",
        "large0": "missing_remote",
    }

    found, out = tool.states(*words, code=1)
    assert found == broken

    pushed = tool.run("push", root, dest, "--manifest", "-", "--json", code=0, given=out)
    rows = map(json.loads, pushed.stdout.splitlines())
    sent = {row["path"] for row in rows if row.get("done") in ("new", "changed")}
    assert sent == {path for path, state in broken.items() if state != "missing_local"}
    left, _ = tool.states(*words, code=1)
    assert left == {names[2]: "missing_local"}
