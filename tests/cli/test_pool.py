"""``cachefs pool`` in a process of its own, asked by its own client and by its class."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs.client import NoDaemon
from cachefs.poolclient import Pool, PoolError
from tests.cli.running import cachefs, surroundings

PATIENCE_S = 120

pytestmark = pytest.mark.timeout(400)


def a_store(directory: Path) -> Path:
    store = directory / "store"
    (store / "photos/2024").mkdir(parents=True)
    (store / "photos/2024/a.jpg").write_bytes(b"jpeg")
    (store / "photos/b.txt").write_bytes(b"text")
    return store


def wait_for(home: Path) -> Pool:
    """Return a client as soon as the pool in *home* answers."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Pool(home=home)
        except NoDaemon:
            if time.monotonic() > give_up_at:
                raise


@contextmanager
def running(tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a pool in the foreground, with its directory ``home``, until the block ends."""
    command = [sys.executable, "-m", "cachefs", "pool", "-n", "-D", str(tmp_path / "home"), *words]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        env=surroundings(tmp_path),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_pool_gives_files_out_and_takes_them_in(tmp_path: Path) -> None:
    store, home = a_store(tmp_path), tmp_path / "home"
    where = ("-D", home)
    with running(tmp_path, f"file://{store}", "-p", "0", "-pidfile", f"{tmp_path}/pid") as process:
        with wait_for(home) as pool:
            assert list(pool.glob("photos", "**")) == ["2024/a.jpg", "b.txt"]
            (path,) = pool.pull("photos", "2024/a.jpg")
            assert path == home / "data/photos/2024/a.jpg"
            assert path.read_bytes() == b"jpeg"
            with pytest.raises(PoolError, match="no such key: none"):
                pool.pull("photos", "none")
            (home / "tmp/new").write_bytes(b"new")
            pool.push("photos", "2025/new", home / "tmp/new")
            assert (store / "photos/2025/new").read_bytes() == b"new"
            assert pool.stat("photos", "2024/a.jpg")["cached"] == "4"
            assert pool.lease("photos", "b.txt", 60).read_bytes() == b"text"
            address, _, port = pool.status()["master"].rpartition(":")
        assert address == "127.0.0.1"
        assert int((tmp_path / "pid").read_text()) == process.pid

        pulled = cachefs(
            "pool", "pull", "photos", "b.txt", "2024/a.jpg", "-p", port, home=tmp_path
        )
        assert pulled.out == f"{home}/data/photos/b.txt\n{home}/data/photos/2024/a.jpg\n"
        assert cachefs("pool", "glob", "photos", "*.txt", *where, home=tmp_path).out == "b.txt\n"
        assert cachefs("pool", "refresh", "photos", *where, home=tmp_path).code == 0
        told = json.loads(cachefs("pool", "status", "--json", *where, home=tmp_path).out)
        assert told["count_push"] == "1"
        refused = cachefs("pool", "push", "photos", "x", "/etc/passwd", *where, home=tmp_path)
        assert refused.code == 1
        assert "no directory that files may be pushed from" in refused.err

        pools = json.loads(cachefs("status", "--json", home=tmp_path).out)["pools"]
        (mine,) = [each for each in pools if each["home"] == str(home)]
        assert mine["pool"]["address"] == f"127.0.0.1:{port}"
        assert mine["pool"]["requests"]["push"] == 2
        shown = cachefs("status", home, home=tmp_path)
        assert shown.code == 0
        assert shown.out.startswith(f"pool of file://{store} at {home}\n")
        assert re.search(r"^  leased +2 files \(8 B\), ", shown.out, re.MULTILINE), shown.out

        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert not (home / "pool.sock").exists()
    assert not (tmp_path / "pid").exists()
    assert os.listdir(home / "data") == [".cachefs-pool"]
    pools = json.loads(cachefs("status", "--json", home=tmp_path).out)["pools"]
    assert str(home) not in [each["home"] for each in pools]
    gone = cachefs("pool", "status", *where, home=tmp_path)
    assert (gone.code, gone.err.count("\n")) == (4, 1)


def test_a_pool_in_the_background_ends_in_time_and_serves_one_bucket_where_that_is_said(
    tmp_path: Path,
) -> None:
    store, home = a_store(tmp_path), tmp_path / "home"
    words = (f"file://{store}", "-D", home, "--pidfile", "pid", "--lease", "10s", "-c", "5")
    started = cachefs("pool", *words, home=tmp_path)
    assert (started.code, started.err) == (0, "")
    pid = int((tmp_path / "pid").read_text())
    try:
        with Pool(home=home) as pool:
            assert pool.status()["pull_concurrency"] == "5"
        again = cachefs("pool", *words, home=tmp_path)
        assert again.code == 2
        assert "in use by process" in again.err
        assert "answers at" in (home / "log/pool.log").read_text()
    finally:
        os.kill(pid, signal.SIGTERM)
        give_up_at = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{pid}").exists() and time.monotonic() < give_up_at:
            pass
    assert not (home / "pool.sock").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("-p", "9"), "no directory given"),
        (("-D", "home", "-p", "70000"), "-p 70000 is no port"),
        (("-D", "home", "-c", "0"), "-c must be at least 1"),
        (("-D", "home", "--lease", "0"), "--lease"),
        (("-D", "home", "--lease", "8d"), "--lease"),
        (("-D", "home", "--refresh-interval", "1"), "--refresh-interval must be at least 2"),
        (("-D", "home", "--listen", "0.0.0.0"), "would let everybody on the network in"),
        (("-D", "home", "--listen", "localhost"), "is no address"),
        (("-D", "home", "--token-file", "none"), "cannot be read"),
        (("-D", "home", "s3://a", "s3://b"), "unexpected argument"),
        (("-D", "home", "--cache-dir", "home/data/c"), "lie in one another"),
        (("-D", "home", "--pool", "other"), "unknown option --pool"),
        (("pull", "photos", "-p", "9"), "cachefs pool pull BUCKET KEY"),
        (("status",), "which pool?"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    tmp_path: Path, words: tuple[str, ...], complaint: str
) -> None:
    done = cachefs("pool", *words, home=tmp_path)

    assert done.code == 2
    assert complaint in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "home").exists()


def test_a_directory_of_somebody_elses_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    precious = tmp_path / "home/data/precious"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"")
    done = cachefs("pool", "-n", "-D", "home", f"file://{a_store(tmp_path)}", home=tmp_path)

    assert done.code == 2
    assert "are not a pool's" in done.err
    assert precious.exists()


def test_the_class_says_what_a_broken_pool_does(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="no pool answers"):
        Pool(home=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for said in (b"", b"OK\n\n\0", b"OK\n\n\0OK\na\n"):
            pool = Pool(port=listener.getsockname()[1])
            connection, _ = listener.accept()
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            with pytest.raises(NoDaemon):
                pool.pull("b", "a")
            connection.close()
            pool.close()
