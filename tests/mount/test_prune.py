"""``cachefs prune`` and ``pin`` while the mount works: what programs, uploads and the operator need stays."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, cachefs
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
KIB = 1 << 10


@dataclass(frozen=True)
class Load:
    """How much is done while the cache is pruned."""

    files: int
    seconds: float
    rounds: int
    policies: tuple[str, ...]
    watchdog_s: float = 55


SHORT = Load(40, 1.5, 1, ("gdsf", "size * idle"))
LONG = Load(400, 20, 10, ("gdsf", "size * idle", "lru", "lfu", "s3fifo"), 550)


def pruned(mount: Mount, *words: str, code: int = 0) -> dict[str, list[str]]:
    """Prune; return the paths by what became of them, in order."""
    done = cachefs("prune", mount.mountpoint, "--json", *words, env=mount.env, timeout_s=120)
    assert done.returncode == code, done.stderr
    found: dict[str, list[str]] = {}
    for row in map(json.loads, done.stdout.splitlines()):
        found.setdefault(row["state"], []).append(row.get("path", row["reason"]))
    return found


def attribute(mount: Mount, name: str, path: str) -> bytes:
    return mount.do(os.getxattr, mount / path, f"user.cachefs.{name}")


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("store", "load"),
    [
        pytest.param("file", SHORT, id="file"),
        *(
            pytest.param(name, LONG, id=f"{name}-long", marks=pytest.mark.soak)
            for name in ("radosgw", "swift")
        ),
    ],
    indirect=["store"],
)
def test_pruning_under_load_takes_nothing_that_anybody_needs_and_what_it_explains_is_what_goes(
    store: LiveStore, mounting: Mounting, load: Load
) -> None:
    sizes = {f"f{number}": 200 * KIB + number for number in range(load.files)}
    pins = {f"pinned/p{number}": 200 * KIB for number in range(4)}
    for name, size in {**sizes, **pins}.items():
        store.put(name, programs.pattern(name, 0, size))
    limit = sum(sizes.values()) * 5 // 4
    options: tuple[str, ...] = (
        "--upload",
        "background",
        "--upload-delay",
        "1h",
        "--metadata-ttl",
        "1h",
    )
    options += ("--cache-size", str(limit))
    with mounting(store.target(), *options, watchdog_s=load.watchdog_s) as mount:
        done = cachefs("pin", mount / "pinned", env=mount.env)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{mount / 'pinned'}: 4 files pinned (800.0 KiB)\n"
        read_all(mount, list(sizes))
        held, refused = mount.do(programs.open_many, mount.mountpoint, ["f0", "f1", "f2"])
        assert not refused
        dirty = {f"dirty{number}": os.urandom(100 * KIB) for number in range(3)}
        mount.do(programs.write_all, mount.mountpoint, dirty)
        needed = {*held, *dirty, *pins}
        prune_under_load(mount, sizes, load, needed)
        for policy in load.policies:
            prune_as_explained(mount, policy, list(sizes), needed)
        assert mount.status()["cache"]["used"] <= limit * 35 // 100

        for name, fd in held.items():
            assert mount.do(programs.read_fd, fd) == programs.pattern(name, 0, sizes[name])
        mount.do(programs.close_all, list(held.values()))
        for name, size in pins.items():
            assert attribute(mount, "pinned", name) == b"1"
            assert attribute(mount, "cached_bytes", name) == str(size).encode()
        mount.flush()
        assert {name: store.get(name) for name in dirty} == dirty


def read_all(mount: Mount, names: list[str]) -> None:
    for name in names:
        mount.do(programs.read_file, mount / name)


def prune_under_load(mount: Mount, sizes: dict[str, int], load: Load, needed: set[str]) -> None:
    """What is open, dirty or pinned stays, while a program opens, reads and closes files without a pause."""
    worker = mount.hands()
    busy = dict(list(sizes.items())[: load.files // 2])
    for turn in range(load.rounds):
        worker.begin(programs.read_while_holding, mount.mountpoint, busy, turn, load.seconds)
        gone = pruned(mount, "--threshold", "80%", "--to", "70%")
        assert gone["removed"]
        assert not needed & set(gone["removed"])
        assert {"waits for upload", "is pinned", "is in use"} <= set(gone["spared"])
        _, wrong = worker.finish(load.seconds + 60)
        assert wrong == []
        read_all(mount, list(sizes))


def prune_as_explained(mount: Mount, policy: str, names: list[str], needed: set[str]) -> None:
    """What goes is what was explained, in that order."""
    read_all(mount, names)
    words = ("--threshold", "40%", "--to", "35%", "--policy", policy)
    planned = pruned(mount, *words, "--dry-run", "--explain")
    gone = pruned(mount, *words)
    assert gone["removed"] == planned["would go"]
    assert not needed & set(gone["removed"])


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_pins_are_said_and_refused_and_let_go_as_they_are_typed(
    store: LiveStore, mounting: Mounting
) -> None:
    for number in range(6):
        store.put(f"d/f{number}", bytes(200 * KIB))
    with mounting(store.target(), "--cache-size", "1MiB") as mount:

        def run(*words: str) -> tuple[int, str, str]:
            done = cachefs(*words, env=mount.env)
            return done.returncode, done.stdout, done.stderr

        where = str(mount / "d")
        code, out, err = run("pin", where)
        assert (code, out) == (1, "")
        assert err.startswith(f"cachefs: {where} was not pinned: it needs 1.2 MiB, 0.0 MiB are")
        assert run("pin", f"{where}/f0", f"{where}/f1") == (
            0,
            f"{where}/f0: 1 file pinned (200.0 KiB)\n{where}/f1: 1 file pinned (200.0 KiB)\n",
            "",
        )
        assert ", 2 pinned (400.0 KiB), in " in run("status", str(mount.mountpoint))[1]
        code, out, _ = run("unpin", where, "--json")
        assert (code, json.loads(out)["unpinned"]) == (
            0,
            [{"path": where, "files": 2, "bytes": 400 * KIB}],
        )
        assert attribute(mount, "pinned", "d/f0") == b"0"
        code, _, err = run("pin", f"{where}/none")
        assert code != 0
        assert "d/none" in err
