"""A mount that owes the store something ends, and its database is harmed: the next mount says so and owes the same.

Each trial can be repeated by its number alone: ``CACHEFS_TEST_HARMS=17,40`` runs these two.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.mount import life, programs
from tests.mount.harness import Mount, cachefs, wait_until
from tests.mount.life import Tree
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
Harm = Callable[[random.Random, Path, Path], str]

NAME: Final = "cachefs.sqlite3"
_ODD: Final = (
    "plain",
    "with a space",
    "per%cent_and_under",
    "\u00fcml\u00e4ut",
    "line\nbreak",
    "no \udcff text",
    "'quoted\"",
    "n" * 200,
)
_KEPT: Final = "kept"
"""A directory of which the program at work knows nothing."""


# ---- harm: each returns in words what it did ---------------------------------------------------


def files_of(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"{NAME}*"))


def delete_all(chance: random.Random, cache: Path, older: Path) -> str:
    for path in files_of(cache):
        path.unlink()
    return "deleted"


def delete_one(chance: random.Random, cache: Path, older: Path) -> str:
    path = chance.choice(files_of(cache))
    path.unlink()
    return f"{path.name} deleted"


def truncate(chance: random.Random, cache: Path, older: Path) -> str:
    path = chance.choice(files_of(cache))
    length = chance.randrange(path.stat().st_size + 1)
    os.truncate(path, length)
    return f"{path.name} truncated at {length}"


def scatter_garbage(chance: random.Random, cache: Path, older: Path) -> str:
    path, said = chance.choice(files_of(cache)), []
    with path.open("r+b") as file:
        for _ in range(chance.choice((1, 3, 30))):
            place, count = _place_in(chance, path), chance.choice((1, 2, 100, 5000))
            file.seek(place)
            file.write(chance.randbytes(count))
            said.append(f"{count} at {place}")
    return f"{path.name}: garbage, {', '.join(said)}"


def flip_a_bit(chance: random.Random, cache: Path, older: Path) -> str:
    path = chance.choice(files_of(cache))
    if not path.stat().st_size:
        return "nothing to flip"
    place, bit = _place_in(chance, path), chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    return f"{path.name}: bit {bit} of byte {place} flipped"


def swap_pages(chance: random.Random, cache: Path, older: Path) -> str:
    path = cache / NAME
    count = path.stat().st_size // 4096
    if count < 2:
        return "no pages to swap"
    one, other = chance.sample(range(count), 2)
    with path.open("r+b") as file:
        pages = [os.pread(file.fileno(), 4096, 4096 * each) for each in (one, other)]
        os.pwrite(file.fileno(), pages[1], 4096 * one)
        os.pwrite(file.fileno(), pages[0], 4096 * other)
    return f"pages {one} and {other} swapped"


def put_older_back(chance: random.Random, cache: Path, older: Path) -> str:
    chosen = chance.choice(sorted(older.iterdir()))
    delete_all(chance, cache, older)
    for path in files_of(chosen):
        shutil.copy(path, cache)
    return f"copy {chosen.name} put back"


def _place_in(chance: random.Random, path: Path) -> int:
    """A place where something is: the log is taken from the disk in advance, and most of it is empty."""
    content = path.read_bytes()
    length = len(content.rstrip(b"\0")) or len(content)
    return chance.randrange(max(1, length))


HARMS: Final[list[Harm]] = [
    delete_all,
    truncate,
    scatter_garbage,
    flip_a_bit,
    swap_pages,
    put_older_back,
    delete_one,
    flip_a_bit,
    scatter_garbage,
]


def _move_log(cache: Path) -> None:
    """Put the rows into the tables, where a checkpoint would have put them in time."""
    # The first connection to a database that was left behind restores it, the second moves what that found.
    connection = sqlite3.connect(cache / NAME, isolation_level=None)
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


# ---- what goes before ------------------------------------------------------------------------


@dataclass
class Owed:
    """What a trial leaves to the next mount."""

    tree: list[Tree]
    """What the program was told of, and where it was stopped in the middle of a step, also how it may have ended."""
    kept: dict[str, bytes]
    """What the files below ``kept`` must hold."""
    beside: bytes | None
    """What must be at the store under a conflict name, too."""


def _copy_database(cache: Path, older: Path) -> None:
    target = older / f"{len(list(older.iterdir())):03}"
    target.mkdir()
    for path in files_of(cache):
        if not path.name.endswith("-shm"):
            shutil.copy(path, target)


def _work(
    chance: random.Random, store: LiveStore, mount: Mount, base: Path, seed: int
) -> tuple[Owed, Path]:
    """Have programs make dirty files of all kinds, and end the daemon. Return what is owed, and older databases."""
    older, journal = base / "older", base / "journal"
    older.mkdir()
    journal.touch()
    first = {
        f"{_KEPT}/{each}": chance.randbytes(chance.choice((1, 5000, 70_000))) for each in "abcd"
    }
    tree = Tree({"f0": b"of old", "with a space": chance.randbytes(3000)}, set())
    for key, content in {**first, **tree.files}.items():
        store.put(key, content)
    with mount:
        for key, content in {**first, **tree.files}.items():
            if chance.random() < 0.8:
                assert mount.do(programs.read_file, mount / key) == content
        _copy_database(mount.cache_dir, older)
        if chance.random() < 0.5:
            mount.remount()
            _copy_database(mount.cache_dir, older)
        is_cut = chance.random() < 0.3
        turns = chance.randrange(6, 30)
        one = mount.hands()
        one.begin(
            life.live,
            mount.mountpoint,
            journal,
            tree,
            f"{seed}",
            turns=None if is_cut else turns,
            files=_ODD,
        )
        wait_until(lambda: journal.read_text().count("done") >= turns // 2, "it works")
        _copy_database(mount.cache_dir, older)
        beside = _conflict(chance, store, mount, first)
        if is_cut:
            wait_until(lambda: journal.read_text().count("done") >= turns, "it works")
            mount.kill()
        else:
            one.finish(60)
            _leave(chance, store, mount, first)
        states, _, _ = life.replayed(tree, journal.read_text())
    return Owed(states, first, beside), older


def _conflict(
    chance: random.Random, store: LiveStore, mount: Mount, kept: dict[str, bytes]
) -> bytes | None:
    """Now and then, have a file parked because another client changed it."""
    name = f"{_KEPT}/b"
    if chance.random() < 0.5:
        return None
    mine, theirs = chance.randbytes(4000), chance.randbytes(4000)
    mount.do(programs.write_file, mount / name, mine)
    store.put(name, theirs)
    done = cachefs("flush", mount / name, "--wait", env=mount.env, fresh=False)
    assert done.returncode == 1, done.stderr
    kept[name] = theirs
    return mine


def _leave(chance: random.Random, store: LiveStore, mount: Mount, kept: dict[str, bytes]) -> None:
    """End the daemon with data that waits: by a kill, or in order, while the store cannot be reached."""
    content = chance.randbytes(chance.choice((0, 10, 6000)))
    mount.do(programs.write_file, mount / _KEPT / "new", content)
    kept[f"{_KEPT}/new"] = content
    addition = chance.randbytes(100)
    mount.do(programs.append, mount / _KEPT / "c", addition)
    kept[f"{_KEPT}/c"] += addition
    if chance.random() < 0.7:
        half = mount.hands()
        for name in "de":  # neither is ever closed, nor acknowledged
            fd = half.do(os.open, mount / _KEPT / name, os.O_RDWR | os.O_CREAT)
            half.do(os.pwrite, fd, b"half", 0)
        mount.kill()
        return
    away = Path(f"{store.bucket}.away")
    Path(store.bucket).rename(away)
    try:
        assert mount.signalled(signal.SIGTERM) == 5
    finally:
        away.rename(store.bucket)


# ---- and what comes after ----------------------------------------------------------------------


def _check(store: LiveStore, owed: Owed, found: Tree, what: str) -> None:
    _check_tree(owed, found, what)
    assert owed.beside is None or any(
        ".conflict-" in name and content == owed.beside for name, content in found.files.items()
    ), f"{what}: what was parked is gone"
    assert store.view() == found.files, f"{what}: the store has something else"


def _check_tree(owed: Owed, found: Tree, what: str) -> None:
    sure, *further = owed.tree
    for name, content in owed.kept.items():
        assert found.files.get(name) == content, f"{what}: {name}"
    kept = {name for name in found.files if name.partition("/")[0] == _KEPT}
    copies = {name for name in kept if ".conflict-" in name}
    assert kept - copies == owed.kept.keys(), what
    assert len(copies) <= (owed.beside is not None), f"{what}: {copies}"
    rest = {
        name: content for name, content in found.files.items() if name.partition("/")[0] != _KEPT
    }
    if not further:
        assert rest == sure.files, f"{what}: {life.difference(Tree(rest, sure.dirs), owed.tree)}"
        assert found.dirs - {_KEPT} == sure.dirs, what
        return
    # The program was stopped in the middle of a step, and what noted how far it was may be lost: of a rename, both
    # names may have the content; nothing that was acknowledged is gone.
    maybe = further[0].files
    for name, content in rest.items():
        # Of a rename over a file that waits for upload, the one may be found as a copy beside the other.
        own = name.partition(".conflict-")[0]
        assert content in (sure.files.get(own), maybe.get(own)), f"{what}: {name!a}"
    moved = set(maybe.values())
    for name, content in sure.files.items():
        is_touched = maybe.get(name) != content
        assert rest.get(name) == content or is_touched, f"{what}: {name!a}"
        is_lost = content not in rest.values() and content in moved
        assert not is_lost, f"{what}: what {name!a} had is gone"


def _check_said(mount: Mount, said: str, what: str) -> None:
    """The log names every database that was set aside, and an end that nobody noticed is no end."""
    for path in mount.cache_dir.glob(f"{NAME}.broken-*"):
        if not path.name.endswith(("-wal", "-shm")):
            assert f"set aside as {path.name}" in said, f"{what}: {said}"
    assert "Traceback" not in said, f"{what}: {said}"


def _seeds() -> list[object]:
    if chosen := os.environ.get("CACHEFS_TEST_HARMS"):
        return [int(each) for each in re.findall(r"\d+", chosen)]
    many = [range(start, start + 50) for start in range(100, 300, 50)]
    # 337: pages that, swapped, hid from the start that anything was owed.
    return [*range(6), 337, *(pytest.param(each, marks=pytest.mark.soak) for each in many)]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seeds", _seeds())
def test_whatever_happens_to_its_database_a_mount_comes_up_says_so_and_stores_what_it_owed(
    seeds: int | range, new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    for seed in [seeds] if isinstance(seeds, int) else seeds:
        store = new_store("file")
        _try(seed, store, mounting, tmp_path / str(seed))
        for path in (tmp_path / str(seed), Path(store.bucket)):
            shutil.rmtree(path)


def _try(seed: int, store: LiveStore, mounting: Mounting, base: Path) -> None:
    chance = random.Random(seed)
    harm = HARMS[seed % len(HARMS)]
    base.mkdir()
    options = ("--upload", "background", "--upload-delay", "1h")
    before = mounting(store.target(), *options, "--conflict", "fail", name=f"{seed}/mount")
    owed, older = _work(chance, store, before, base, seed)
    if chance.random() < 0.5:
        _move_log(before.cache_dir)
    what = f"trial {seed}, {harm(chance, before.cache_dir, older)}"
    before.options = options
    begin = before.log.stat().st_size
    with before as mount:
        seen = mount.do(life.seen, mount.mountpoint)
        _check_tree(owed, seen, f"{what}, before the upload")
        mount.flush()
        mount.wait_clean(but_parked=True)
        said = mount.log.read_bytes()[begin:].decode(errors="replace")
        _check_said(mount, said, what)
        _check(store, owed, mount.do(life.seen, mount.mountpoint), what)
