"""CloudManagers beside each other on one storage, and what is left by one that was killed."""

import hashlib
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from cachefs import CloudManager
from tests.cloud import killed
from tests.cloud.benches import MountBench, bench

ROOT = Path(__file__).parents[2]
CAPACITY = 100_000
WORK = """
import sys
from pathlib import Path
from cachefs import CloudManager
base, turn = Path(sys.argv[1]), int(sys.argv[2])
with CloudManager(base / "db", sys.argv[3], 100_000) as manager:
    files = sorted((base / "files").iterdir())
    for path in files[turn:] + files[:turn]:
        digest = manager.upload(path)
        while digest is False:      # the others' files wait, and are being uploaded by them
            manager.cloud_sync()
            digest = manager.upload(path)
        assert digest == path.name, path
        manager.cloud_sync()
        got = manager.warm_up(digest)
        assert got is not None
        assert manager.used_space() <= manager.capacity()
"""


def bytes_in(storage: Path) -> int:
    """Bytes in the storage; a file that is renamed meanwhile counts once."""
    sizes: dict[int, int] = {}
    with os.scandir(storage) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


@pytest.mark.timeout(300)
def test_processes_beside_each_other_lose_nothing_and_keep_the_capacity(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for number in range(6):
        content = os.urandom(10_000 + 7_000 * number)
        (tmp_path / "files" / hashlib.sha256(content).hexdigest()).write_bytes(content)
    CloudManager(tmp_path / "db", tmp_path / "storage", CAPACITY).close()

    most = 0
    with ExitStack() as stack:
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORK, tmp_path, str(3 * turn), tmp_path / "storage"],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
            for turn in range(2)
        ]
        for worker in workers:
            stack.enter_context(worker)
            stack.callback(worker.kill)
        for worker in workers:
            while worker.poll() is None:
                most = max(most, bytes_in(tmp_path / "storage"))
                with suppress(subprocess.TimeoutExpired):
                    worker.wait(0.01)
            assert worker.stderr is not None
            assert worker.returncode == 0, worker.stderr.read()

    assert 0 < most <= CAPACITY
    with CloudManager(tmp_path / "db", tmp_path / "storage", CAPACITY) as manager:
        assert manager.cloud_sync()
        for path in (tmp_path / "files").iterdir():
            got = manager.warm_up(path.name)
            assert got
            assert Path(got).read_bytes() == path.read_bytes()
        total = sum(path.stat().st_size for path in (tmp_path / "files").iterdir())
        assert manager.total_outgoing() == total  # each file once


def check_remains(directory: Path) -> None:
    """What was told to be done is; the rest can be done."""
    told = (directory / "told").read_text("utf-8").split() if (directory / "told").exists() else []
    with CloudManager(
        directory / "db",
        directory / "storage",
        killed.CAPACITY,
        remotes=[f"file://{directory}/remote"],
    ) as manager:
        for digest in told[1::2]:
            name = Path(digest).name
            assert manager.exists(name)
            in_remote = (directory / "remote" / name).exists()
            assert manager.on_cache(name) or in_remote
        assert bytes_in(directory / "storage") == manager.used_space() <= killed.CAPACITY
        for name, content in killed.CONTENTS.items():
            digest = hashlib.sha256(content).hexdigest()
            assert manager.upload(directory / name) == digest
            path = manager.warm_up(digest)
            assert path
            assert Path(path).read_bytes() == content
        assert manager.cloud_sync()
        assert bytes_in(directory / "storage") == manager.used_space() <= killed.CAPACITY
    assert {
        path.name for path in (directory / "remote").iterdir() if not path.name.startswith(".")
    } == {hashlib.sha256(content).hexdigest() for content in killed.CONTENTS.values()}


def kill(base: Path, every: int, first: int) -> int:
    subprocess.run(
        [sys.executable, "-m", "tests.cloud.killed", base, str(every), str(first)],
        cwd=ROOT,
        check=True,
    )
    directories = sorted(base.iterdir())
    for directory in directories:
        check_remains(directory)
    return len(directories)


@pytest.mark.timeout(300)
def test_a_kill_leaves_what_was_acknowledged_and_nothing_in_the_way(tmp_path: Path) -> None:
    assert kill(tmp_path, 211, 30) > 3


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_kill_at_any_line_leaves_what_was_acknowledged_and_nothing_in_the_way(
    tmp_path: Path,
) -> None:
    assert kill(tmp_path, 1, 1) > 400


@pytest.mark.timeout(300)
def test_processes_beside_each_other_share_the_cache_of_a_mount(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for number in range(6):
        content = os.urandom(10_000 + 7_000 * number)
        (tmp_path / "files" / hashlib.sha256(content).hexdigest()).write_bytes(content)
    with bench("mount", tmp_path) as on, on.manager(CAPACITY, database="db") as manager:
        assert isinstance(on, MountBench)
        command = [sys.executable, "-c", WORK, str(tmp_path)]
        with ExitStack() as stack:
            workers = [
                subprocess.Popen(
                    [*command, str(3 * turn), str(on.mount / "files")],
                    cwd=ROOT,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for turn in range(2)
            ]
            for worker in workers:
                stack.enter_context(worker)
                stack.callback(worker.kill)
            for worker in workers:
                while worker.poll() is None:
                    assert manager.used_space() <= CAPACITY
                    with suppress(subprocess.TimeoutExpired):
                        worker.wait(0.05)
                assert worker.stderr is not None
                assert worker.returncode == 0, worker.stderr.read()
        assert manager.cloud_sync()
        for path in (tmp_path / "files").iterdir():
            assert Path(str(manager.warm_up(path.name))).read_bytes() == path.read_bytes()
            assert on.at_remote(path.name) == path.read_bytes()


@pytest.mark.parametrize("every", [211, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.timeout(1800)
def test_a_kill_beside_a_mount_leaves_what_was_acknowledged(tmp_path: Path, every: int) -> None:
    base = tmp_path / "killed"
    with bench("mount", tmp_path) as on:
        assert isinstance(on, MountBench)
        where = on.mount.mountpoint
        subprocess.run(
            [sys.executable, "-m", "tests.cloud.killed", base, str(every), "30", where],
            cwd=ROOT,
            check=True,
        )
        directories = sorted(base.iterdir())
        assert len(directories) > 3
        for directory in directories:
            check_shelf(directory, where, on.remote.parent / directory.name)


def check_shelf(directory: Path, mountpoint: Path, remote: Path) -> None:
    """What was told to be done is; the rest can be done."""
    told = (directory / "told").read_text("utf-8").split() if (directory / "told").exists() else []
    with killed.manager_of(directory, mountpoint) as manager:
        uploaded = [
            name for verb, name in zip(told[::2], told[1::2], strict=True) if verb == "upload"
        ]
        for digest in uploaded:
            assert manager.exists(digest)
            assert manager.on_cache(digest) or (remote / digest).exists()
        for name, content in killed.CONTENTS.items():
            digest = hashlib.sha256(content).hexdigest()
            assert manager.upload(directory / name) == digest
            assert Path(str(manager.warm_up(digest))).read_bytes() == content
            assert manager.used_space() <= killed.CAPACITY
        assert manager.cloud_sync()
    assert {path.name for path in remote.iterdir()} == {
        hashlib.sha256(content).hexdigest() for content in killed.CONTENTS.values()
    }
