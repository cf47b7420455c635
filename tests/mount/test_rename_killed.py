"""A rename of a directory whose daemon is killed: afterwards every object has exactly one name, and its bytes."""

import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

SEED = 20_261_121


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("store", "upload", "count", "kills"),
    [
        ("file", "close", 40, 2),
        ("moto", "background", 20, 2),
        *(
            pytest.param(name, upload, 500, 50, marks=pytest.mark.soak)
            for name in ("file", "moto", "radosgw", "swift")
            for upload in ("close", "background")
        ),
    ],
    indirect=["store"],
)
def test_killed_at_any_moment_of_a_rename_every_object_has_one_name(
    store: LiveStore, upload: str, count: int, kills: int, mounting: Mounting, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    names = [f"d{i % 5}/{'deeper/' * (i % 3)}file {i}" for i in range(count)]
    content = {name: programs.version_content(name, -1)[:10_000] for name in names}
    ours = names[::2]
    for name in names[1::2]:  # made by somebody else: no token tells a copy from its source
        store.put(f"one/{name}", content[name])
    found: Counter[str] = Counter()
    options = ("--upload", upload, "--upload-delay", "2s")
    with mounting(store.target(), *options, watchdog_s=3500) as mount:
        mount.do(programs.write_all, mount / "one", {name: content[name] for name in ours})
        mount.do(os.mkdir, mount / "one/empty")
        mount.do(os.symlink, "nowhere", mount / "one/link")
        mount.wait_clean()
        took_s = mount.do(programs.timed, os.rename, mount / "one", mount / "two")
        here, there = "two", "one"
        for kill in range(kills):
            new = {name: programs.version_content(name, kill) for name in chance.sample(ours, 3)}
            mount.do(programs.write_all, mount / here, new)
            content |= new
            mover = mount.hands()
            mover.begin(os.rename, mount / here, mount / there)
            mover.wait_ended(chance.uniform(0, took_s))
            mount.kill()
            found[_left_behind(mount, tmp_path / f"kill{kill}")] += 1
            mount.start()
            mount.wait_clean(60)
            here = _check(mount, store, content, f"kill {kill}")
            there = "one" if here == "two" else "two"

    print(f"{store.name}: a rename takes {took_s:.2f} s; {kills} kills left behind {dict(found)}")
    assert found.keys() - {"nothing"}, "no kill came while a rename was under way"


def _left_behind(mount: Mount, copy: Path) -> str:
    """What of a rename the killed daemon's journal holds; looked up in a copy, for looking changes it."""
    copy.mkdir()
    for path in mount.cache_dir.glob("cachefs.sqlite3*"):
        shutil.copy(path, copy)
    with closing(sqlite3.connect(copy / "cachefs.sqlite3")) as db:
        states = {row[0] for row in db.execute("SELECT DISTINCT state FROM moves")}
    return " and ".join(sorted(states)) or "nothing"


def _check(mount: Mount, store: LiveStore, content: dict[str, bytes], when: str) -> str:
    """Compare mount and store with *content*, all of it below one name. Returns the name."""
    keys = store.keys()
    tops = {key.partition("/")[0] for key in keys}
    assert len(tops) == 1, f"{when}: {_said(keys)}"
    (top,) = tops
    assert keys == sorted(f"{top}/{name}" for name in (*content, "link")), when
    assert mount.do(os.listdir, mount.mountpoint) == [top], when
    assert mount.do(os.readlink, mount / top / "link") == "nowhere", when
    assert mount.do(os.listdir, mount / top / "empty") == [], when
    assert mount.do(os.remove, mount / top / "link") is None
    seen = mount.do(programs.read_tree, mount / top)
    mount.do(os.symlink, "nowhere", mount / top / "link")
    assert seen.keys() == content.keys(), when
    assert [name for name in content if seen[name] != content[name]] == [], when
    stored = {name: store.get(f"{top}/{name}") for name in content}
    assert [name for name in content if stored[name] != content[name]] == [], when
    return top


def _said(keys: list[str]) -> str:
    """The keys, counted by their name below the top."""
    times = Counter(key.partition("/")[2] for key in keys)
    twice = sorted(name for name, number in times.items() if number > 1)
    return f"{len(keys)} objects, {len(twice)} of them doubled: {twice[:5]}"
