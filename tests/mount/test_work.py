"""Real work done in a mount: what programs say while they do it, and what the store holds afterwards."""

import hashlib
import os
import re
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.stores import LiveStore
from tests.mount.test_programs import git_as_somebody, outside, spread

Mounting = Callable[..., Mount]

WATCHDOG_S = 1200
LONG = [
    pytest.param(store, upload, marks=pytest.mark.soak)
    for store in ("file", "moto", "radosgw", "swift")
    for upload in ("close", "background")
]


def on(*chosen: tuple[str, str]) -> pytest.MarkDecorator:
    """Run with these stores and modes always, with all others in the soak."""
    rest = [each for each in LONG if tuple(each.values) not in chosen]
    return pytest.mark.parametrize(("store", "upload"), [*chosen, *rest], indirect=["store"])


pytestmark = pytest.mark.timeout(WATCHDOG_S + 20)


def quietly(mount: Mount, *argv: str | Path, below: str = ".") -> str:
    """Run a program that must succeed and have nothing to complain about; returns what it says."""
    done = mount.run(*argv, below=below, timeout_s=1100)
    assert done.stderr == "", argv
    return done.stdout


def assert_stored(mount: Mount, store: LiveStore) -> dict[str, bytes]:
    """Unmount, and compare what was seen with what the store has. Returns that."""
    seen = mount.do(programs.inventory, mount.mountpoint)
    assert mount.status()["conflicts"] == []
    done = mount.umount()
    assert done.returncode == 0, done.stderr
    view = store.view()
    assert {k: hashlib.sha256(v).hexdigest() for k, v in view.items()} == seen
    return view


# ---- make -----------------------------------------------------------------------------------

MAKEFILE = """
objects := $(patsubst %.c,%.o,$(wildcard *.c))
app: $(objects)
\t$(CC) -o $@ $^
%.o: %.c
\t$(CC) -O0 -MMD -c -o $@ $<
-include $(objects:.o=.d)
"""
PARTS = 24


def c_project(directory: Path) -> Path:
    """Sources that each include every third header below them, and a program that adds their numbers up."""
    directory.mkdir()
    for i in range(PARTS):
        includes = "".join(f'#include "part{j}.h"\n' for j in range(i % 3, i + 1, 3))
        (directory / f"part{i}.h").write_text(f"int part{i}(void);\n#define NUMBER{i} {i * i}\n")
        total = " + ".join(f"NUMBER{j}" for j in range(i % 3, i + 1, 3))
        (directory / f"part{i}.c").write_text(
            f"{includes}int part{i}(void) {{ return {total}; }}\n"
        )
    calls = "".join(f'\tprintf("%d\\n", part{i}());\n' for i in range(PARTS))
    headers = "".join(f'#include "part{i}.h"\n' for i in range(PARTS))
    main = f"#include <stdio.h>\n{headers}int main(void) {{\n{calls}\treturn 0;\n}}\n"
    (directory / "main.c").write_text(main)
    (directory / "Makefile").write_text(MAKEFILE)
    return directory


def compiled(said: str) -> set[str]:
    return set(re.findall(r"-o (\w+)\.o ", said))


@on(("file", "background"))
def test_make_builds_a_project_and_then_only_what_changed(
    store: LiveStore, upload: str, mounting: Mounting, tmp_path: Path
) -> None:
    source = c_project(tmp_path / "source")
    numbers = [sum(j * j for j in range(i % 3, i + 1, 3)) for i in range(PARTS)]
    expected = "".join(f"{number}\n" for number in numbers)
    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        quietly(mount, "cp", "-r", source, "project")
        assert len(compiled(quietly(mount, "make", "-j4", below="project"))) == PARTS + 1
        assert quietly(mount, "./app", below="project") == expected
        assert "up to date" in quietly(mount, "make", "-j4", below="project")

        quietly(mount, "touch", "part20.h", below="project")
        again = quietly(mount, "make", "-j4", below="project")
        assert compiled(again) == {"part20", "part23", "main"}
        mount.remount()
        assert "up to date" in quietly(mount, "make", "-j4", below="project")
        view = assert_stored(mount, store)

    copy = spread(view, tmp_path / "copy") / "project/app"
    copy.chmod(0o755)
    assert outside(copy) == expected


# ---- python ---------------------------------------------------------------------------------


def wheel(directory: Path) -> Path:
    """A package with a module and a command."""
    path = directory / "parcel-1.0-py3-none-any.whl"
    info = "parcel-1.0.dist-info"
    files = {
        "parcel/__init__.py": 'def main():\n    print("delivered")\n',
        **{f"parcel/part{i}.py": f"NUMBER = {i}\n" for i in range(30)},
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nparcel = parcel:main\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("store", "upload", "with_pip"),
    [
        ("file", "close", False),
        *(pytest.param(*each.values, True, marks=pytest.mark.soak) for each in LONG),
    ],
    indirect=["store"],
)
def test_a_virtual_environment_with_what_pip_puts_into_it(
    store: LiveStore, upload: str, with_pip: bool, mounting: Mounting, tmp_path: Path
) -> None:
    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        python = mount / "env/bin/python"
        pip: tuple[str, ...]
        if with_pip:
            quietly(mount, sys.executable, "-m", "venv", "env")
            pip = (str(python), "-m", "pip")
        else:  # a second, not twenty: its two thousand files are what the long form is for
            quietly(mount, sys.executable, "-m", "venv", "--without-pip", "env")
            pip = (sys.executable, "-m", "pip", "--python", str(python))
        options = ("--no-index", "--no-cache-dir", "--disable-pip-version-check")
        mount.run(*pip, "install", *options, wheel(tmp_path), timeout_s=1100)
        assert quietly(mount, mount / "env/bin/parcel") == "delivered\n"
        mount.remount()
        assert quietly(mount, mount / "env/bin/parcel") == "delivered\n"
        assert_stored(mount, store)


# ---- git ------------------------------------------------------------------------------------


@on(("file", "background"))
def test_git_commits_rebases_and_collects_garbage(
    store: LiveStore, upload: str, mounting: Mounting, tmp_path: Path
) -> None:
    def git(*argv: str, below: str = "work") -> str:
        return mount.run(*git_as_somebody(), *argv, below=below).stdout

    def commit(name: str, content: str) -> None:
        mount.do(programs.write_file, mount / "work" / name, content.encode())
        git("add", ".")
        git("commit", "-q", "-m", name)

    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        git("init", "-q", "-b", "main", "work", below=".")
        commit("first", "1\n")
        git("switch", "-q", "-c", "topic")
        commit("on the topic", "2\n")
        commit("on the topic, too", "3\n")
        git("switch", "-q", "main")
        commit("on main", "4\n")
        git("switch", "-q", "topic")
        git("rebase", "-q", "main")
        git("clone", "-q", "work", "clone", below=".")
        git("gc", "-q", "--prune=now")
        assert git("fsck", "--full", "--strict", "--no-dangling") == ""
        assert git("status", "--porcelain") == ""
        log = git("log", "--format=%H %s")
        mount.remount()
        assert git("status", "--porcelain") == ""
        assert git("log", "--format=%H %s", below="clone") == log
        view = assert_stored(mount, store)

    copy = spread(view, tmp_path / "copy") / "work"
    for empty in ("objects", "refs/heads", "refs/tags"):
        (copy / ".git" / empty).mkdir(parents=True, exist_ok=True)
    assert outside("git", "-C", copy, "fsck", "--full", "--strict", "--no-dangling") == ""
    assert outside("git", "-C", copy, "log", "--format=%H %s") == log
    assert outside("git", "-C", copy, "diff", "HEAD") == ""


# ---- sqlite ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "upload", "journal"),
    [
        ("moto", "close", "wal"),
        ("file", "background", "delete"),
        *(
            pytest.param(store, *how, marks=pytest.mark.soak)
            for store in ("file", "moto", "radosgw", "swift")
            for how in (
                ("background", "wal"),
                ("close", "delete"),
                ("close", "truncate"),
                ("background", "persist"),
            )
        ),
    ],
    indirect=["store"],
)
def test_two_programs_write_one_database(
    store: LiveStore, upload: str, journal: str, mounting: Mounting, tmp_path: Path
) -> None:
    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        mount.do(programs.make_database, mount / "a.db", journal)
        writers = [mount.hands(), mount.hands()]
        for number, writer in enumerate(writers):
            writer.begin(programs.insert_rows, mount / "a.db", journal, number, 15)
        for writer in writers:
            writer.finish(120)
        assert mount.do(programs.ask_database, mount / "a.db") == ("ok", 30)
        view = assert_stored(mount, store)

    assert set(view) - {"a.db-journal"} == {"a.db"}
    assert not any(view.get("a.db-journal", b"")[:28]), "nothing is left to roll back"
    copy = spread(view, tmp_path / "copy") / "a.db"
    with sqlite3.connect(copy) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = database.execute("SELECT writer, n FROM t ORDER BY 1, 2").fetchall()
    database.close()
    assert rows == [(writer, n) for writer in range(2) for n in range(15)]


# ---- copies ---------------------------------------------------------------------------------


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """A directory with what an archive has to keep: modes, times, links, attributes, holes."""
    root = tmp_path / "varied"
    (root / "sub/empty").mkdir(parents=True)
    (root / "sub/run").write_bytes(b"#!/bin/sh\n")
    (root / "sub/run").chmod(0o750)
    (root / "secret").write_bytes(b"secret")
    (root / "secret").chmod(0o600)
    (root / "odd name ü").write_bytes(b"odd")
    os.symlink("sub/run", root / "link")
    os.symlink("/no/where", root / "dangling")
    os.mkfifo(root / "fifo", 0o640)
    with (root / "holes").open("wb") as file:
        file.truncate(2_000_000)
        file.seek(1_000_000)
        file.write(b"in the middle")
    os.setxattr(root / "secret", "user.colour", b"blue")
    os.utime(root / "secret", ns=(1_500_000_000_123_456_789, 1_400_000_000_987_654_321))
    os.utime(root / "link", ns=(10**18, 10**18), follow_symlinks=False)
    os.utime(root / "sub", ns=(10**18, 10**18 + 1))
    return root


@on(("moto", "background"))
def test_rsync_with_links_and_attributes_finds_nothing_to_do_the_second_time(
    store: LiveStore, upload: str, mounting: Mounting, varied: Path
) -> None:
    options = ("-aHAX", "--numeric-ids", "-i")
    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        quietly(mount, "rsync", *options, f"{varied}/", "copy/")
        assert quietly(mount, "rsync", *options, f"{varied}/", "copy/") == ""
        mount.remount()
        assert quietly(mount, "rsync", *options, f"{varied}/", "copy/") == ""
        assert quietly(mount, "rsync", *options, "copy/", f"{varied}/") == ""
        os.link(varied / "secret", varied / "sub/hard")
        done = mount.run("rsync", *options, f"{varied}/", "copy/", check=False)
        assert done.returncode == 23, "the one thing it cannot: hard links"
        assert "Operation not permitted" in done.stderr


@on(("file", "background"))
def test_tar_keeps_holes_links_modes_and_times(
    store: LiveStore, upload: str, mounting: Mounting, varied: Path, tmp_path: Path
) -> None:
    pack = ("tar", "--xattrs", "-S", "-cf")
    outside(*pack, tmp_path / "in.tar", "-C", varied, ".")
    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        quietly(mount, "mkdir", "here")
        quietly(mount, "tar", "--xattrs", "-S", "-xpf", tmp_path / "in.tar", below="here")
        mount.remount()
        quietly(mount, "tar", "--xattrs", "-df", tmp_path / "in.tar", below="here")
        quietly(mount, *pack, tmp_path / "out.tar", "-C", mount / "here", ".")
        seen = mount.do(programs.describe_tree, mount / "here")
        assert mount.umount().returncode == 0
    assert seen == programs.describe_tree(varied)
    (tmp_path / "out").mkdir()
    outside("tar", "--xattrs", "-xpf", tmp_path / "out.tar", "-C", tmp_path / "out")
    assert programs.describe_tree(tmp_path / "out") == seen
    assert store.get("here/holes") == (varied / "holes").read_bytes()


@on(("file", "close"))
def test_copies_that_keep_everything(
    store: LiveStore, upload: str, mounting: Mounting, varied: Path
) -> None:
    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        quietly(mount, "cp", "--preserve=all", "-r", varied, "one")
        quietly(mount, "cp", "-a", "one", "two")
        quietly(mount, "mv", "one", "three")
        two, three = (mount.do(programs.describe_tree, mount / name) for name in ("two", "three"))
        assert two == three == programs.describe_tree(varied)


# ---- small saves ----------------------------------------------------------------------------


@on(("moto", "close"))
def test_editors_save_without_a_word_and_leave_nothing_behind(
    store: LiveStore, upload: str, mounting: Mounting
) -> None:
    vim = ("vim.tiny", "-u", "NONE", "-i", "NONE", "-es", "-c")
    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        mount.do(programs.write_file, mount / "text", b"one\ntwo\nthree\n")
        quietly(mount, "chmod", "640", "text")
        quietly(mount, *vim, "set directory=. swapfile writebackup|%s/one/1/|wq", "text")
        quietly(mount, *vim, "set backup backupskip= backupcopy=yes|%s/two/2/|wq", "text")
        quietly(mount, *vim, "set backup backupskip= backupcopy=no|%s/three/3/|wq", "text")
        quietly(mount, "sed", "-i", "s/1/ONE/", "text")
        quietly(mount, "sed", "-i.orig", "s/2/TWO/", "text")
        change = "--- text\n+++ text\n@@ -1,3 +1,3 @@\n ONE\n TWO\n-3\n+THREE\n"
        mount.do(programs.write_file, mount / "change", change.encode())
        assert quietly(mount, "patch", "-i", "change") == "patching file text\n"
        assert quietly(mount, "stat", "-c", "%a", "text", "text~") == "640\n640\n"
        view = assert_stored(mount, store)

    assert view == {
        "text": b"ONE\nTWO\nTHREE\n",
        "text~": b"1\n2\nthree\n",
        "text.orig": b"ONE\n2\n3\n",
        "change": change.encode(),
    }


@on(("moto", "close"))
def test_find_and_du_see_what_is_newer_and_how_large(
    store: LiveStore, upload: str, mounting: Mounting
) -> None:
    store.put("dir/theirs", b"x" * 10_000)
    with mounting(store.target(), "--upload", upload, watchdog_s=WATCHDOG_S) as mount:
        quietly(mount, "touch", "-d", "2001-02-03 04:05:06.789", "old")
        quietly(mount, "touch", "stamp")
        mount.do(programs.write_file, mount / "dir/new", b"y" * 1_000_000)
        newer = ("find", ".", "-type", "f", "-newer", "stamp")
        assert quietly(mount, *newer) == "./dir/new\n"
        quietly(mount, "touch", "-r", "old", "dir/new")
        assert quietly(mount, *newer) == ""
        since, until = "2001-02-03 04:05:06.788", "2001-02-03 04:05:06.790"
        aged = quietly(mount, "find", ".", "-newermt", since, "!", "-newermt", until)
        assert sorted(aged.splitlines()) == ["./dir/new", "./old"]
        assert quietly(mount, "du", "-b", "--apparent-size", "dir/new") == "1000000\tdir/new\n"
        assert 980 <= int(quietly(mount, "du", "-sk", "dir").split()[0]) <= 1000
        assert sorted(quietly(mount, "find", ".", "-type", "f").splitlines()) == [
            *("./dir/new", "./dir/theirs", "./old", "./stamp")
        ]
        assert_stored(mount, store)
