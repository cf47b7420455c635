"""What people do with a drive, done by the programs they do it with, and checked behind the mount's back."""

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

ALL = [
    (store, upload)
    for store in ("file", "moto", "radosgw", "swift", "keystone")
    for upload in ("close", "background")
]


def on(*chosen: tuple[str, str]) -> pytest.MarkDecorator:
    """Run with these stores and modes always, with all others in the soak."""
    rest = [pytest.param(*each, marks=pytest.mark.soak) for each in ALL if each not in chosen]
    return pytest.mark.parametrize(("store", "upload"), [*chosen, *rest], indirect=["store"])


EVERYWHERE = on(
    ("file", "background"), ("moto", "close"), ("radosgw", "close"), ("swift", "close")
)


def outside(*argv: str | Path) -> str:
    """Run a program that has nothing to do with the mount."""
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def spread(view: dict[str, bytes], directory: Path) -> Path:
    """Lay the objects of a store out as files."""
    for key, content in view.items():
        path = directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as people have them: depths, sizes, an empty file, spaces and other alphabets."""
    root = tmp_path_factory.mktemp("tree")
    sizes = [0, 1, 4095, 4096, 4097, 70_000, 131_072, 300_001]
    for i in range(32):
        path = root / f"d{i % 4}" / f"sub {i % 3}" / f"file{i}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(programs.pattern(f"tree{i}", 0, sizes[i % len(sizes)]))
    (root / "Größe ñ 漢字.txt").write_bytes(b"names are bytes\n")
    (root / "big.bin").write_bytes(programs.pattern("big", 0, 3_000_001))
    (root / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    return root


@on(
    *((store, "close") for store in ("moto", "radosgw", "swift", "keystone")),
    ("file", "background"),
)
def test_a_tree_copied_into_the_mount_is_in_the_store(
    store: LiveStore, upload: str, mounting: Mounting, tree: Path
) -> None:
    with mounting(store.target(), "--upload", upload) as mount:
        mount.run("cp", "-r", f"{tree}/.", mount / "copy")
        mount.run("diff", "-r", tree, mount / "copy")
        assert mount.umount().returncode == 0

    assert store.view() == {f"copy/{k}": v for k, v in programs.read_tree(tree).items()}


@EVERYWHERE
def test_tar_unpacks_into_the_mount_and_packs_out_of_it(
    store: LiveStore, upload: str, mounting: Mounting, tree: Path, tmp_path: Path
) -> None:
    outside("tar", "-C", tree, "-cf", tmp_path / "in.tar", ".")

    with mounting(store.target(), "--upload", upload) as mount:
        mount.run("mkdir", "here")
        mount.run("tar", "-xpf", tmp_path / "in.tar", below="here")
        mount.run("tar", "-cf", tmp_path / "out.tar", "-C", mount / "here", ".")
        mount.run("tar", "-df", tmp_path / "in.tar", below="here")
        assert mount.umount().returncode == 0

    assert store.view() == {f"here/{k}": v for k, v in programs.read_tree(tree).items()}
    (tmp_path / "out").mkdir()
    outside("tar", "-C", tmp_path / "out", "-xf", tmp_path / "out.tar")
    outside("diff", "-r", tree, tmp_path / "out")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with a history."""
    root = tmp_path_factory.mktemp("repository")
    outside("git", "init", "-q", "-b", "main", root)
    for i in range(6):
        (root / f"file{i}.txt").write_bytes(programs.pattern(f"commit{i}", 0, 2000 * i + 1))
        outside("git", "-C", root, "add", ".")
        outside(*git_as_somebody(), "-C", root, "commit", "-q", "-m", f"change {i}")
    return root


def git_as_somebody() -> tuple[str, ...]:
    return ("git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")


@on(("moto", "background"), ("swift", "close"))
def test_a_git_clone_in_the_mount_is_sound_there_and_in_the_store(
    store: LiveStore, upload: str, mounting: Mounting, repository: Path, tmp_path: Path
) -> None:
    with mounting(store.target(), "--upload", upload) as mount:
        mount.run("git", "clone", "-q", repository, "clone")
        mount.run("git", "fsck", "--full", "--strict", below="clone")
        mount.do(programs.append, mount / "clone/file1.txt", b"one more line\n")
        mount.run(*git_as_somebody(), "commit", "-q", "-a", "-m", "from the mount", below="clone")
        mount.run("git", "fsck", "--full", "--strict", below="clone")
        head = mount.run("git", "rev-parse", "HEAD", below="clone").stdout
        digests = mount.do(programs.content_digests, mount.mountpoint)
        assert mount.umount().returncode == 0

    view = store.view()
    assert {k: hashlib.sha256(v).hexdigest() for k, v in view.items()} == digests
    copy = spread(view, tmp_path / "copy") / "clone"
    # git wants these, and a store of objects has no empty directories.
    (copy / ".git/refs/tags").mkdir(parents=True, exist_ok=True)
    (copy / ".git/objects").mkdir(parents=True, exist_ok=True)
    outside("git", "-C", copy, "fsck", "--full", "--strict")
    assert outside("git", "-C", copy, "rev-parse", "HEAD") == head
    assert outside("git", "-C", copy, "status", "--porcelain") == ""


@EVERYWHERE
def test_an_sqlite_database_lives_in_the_mount(
    store: LiveStore, upload: str, mounting: Mounting, tmp_path: Path
) -> None:
    insert = "INSERT INTO t SELECT value, hex(randomblob(200)) FROM generate_series({}, {});"
    with mounting(store.target(), "--upload", upload) as mount:
        mount.run("sqlite3", "a.db", "CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT);")
        mount.run("sqlite3", "a.db", insert.format(1, 300) + insert.format(301, 500))
        mount.run(
            "sqlite3", "a.db", "DELETE FROM t WHERE n % 7 = 0; UPDATE t SET text = n WHERE n < 50;"
        )
        assert mount.run("sqlite3", "a.db", "PRAGMA integrity_check;").stdout == "ok\n"
        assert (
            mount.run("sqlite3", "a.db", "SELECT count(*), sum(n) FROM t;").stdout
            == "429|107358\n"
        )
        assert mount.umount().returncode == 0

    view = store.view()
    assert list(view) == ["a.db"], "the journals are gone"
    copy = spread(view, tmp_path / "copy") / "a.db"
    assert outside("sqlite3", copy, "PRAGMA integrity_check;") == "ok\n"
    assert outside("sqlite3", copy, "SELECT count(*), sum(n) FROM t;") == "429|107358\n"


@on(("moto", "background"), ("radosgw", "close"), ("swift", "close"))
def test_a_second_rsync_transfers_nothing(
    store: LiveStore, upload: str, mounting: Mounting, tree: Path
) -> None:
    with mounting(store.target(), "--upload", upload) as mount:
        mount.run("rsync", "-a", f"{tree}/", mount / "copy/")
        again = mount.run("rsync", "-a", "-i", f"{tree}/", mount / "copy/")
        assert again.stdout == ""
        mount.stop()
        mount.start()
        again = mount.run("rsync", "-a", "-i", f"{tree}/", mount / "copy/")
        assert again.stdout == "", "times and modes outlive the mount"
        assert mount.umount().returncode == 0

    assert store.view() == {f"copy/{k}": v for k, v in programs.read_tree(tree).items()}


@pytest.mark.parametrize(
    "store",
    ["moto", *(pytest.param(name, marks=pytest.mark.soak) for name in ("file", "swift"))],
    indirect=True,
)
def test_an_rsync_through_another_mount_transfers_nothing_either(
    store: LiveStore, mounting: Mounting, tree: Path
) -> None:
    with mounting(store.target(), name="first") as first:
        first.run("rsync", "-a", f"{tree}/", first / "copy/")
        assert first.umount().returncode == 0

    with mounting(store.target(), name="second") as second:
        again = second.run("rsync", "-a", "-i", f"{tree}/", second / "copy/")

    files = [line for line in again.stdout.splitlines() if line[1:2] == "f"]
    assert files == [], "times, modes and sizes of the files come from the store"
