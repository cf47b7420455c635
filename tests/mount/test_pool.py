"""A pool as one more door of a mount: one cache, one fetch, one limit, and each sees what came in by the other."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cachefs.client import NoDaemon
from cachefs.poolclient import Pool, PoolError
from tests.mount import programs
from tests.mount.harness import Mount, MountFailed, cachefs, environment, wait_until
from tests.mount.stores import LiveStore, Target

Mounting = Callable[..., Mount]
LATER = ("--upload", "background", "--upload-delay", "1h")


def pooled(mounting: Mounting, store: LiveStore, home: Path, *options: str) -> Mount:
    return mounting(store.target(), "--pool", str(home), *options)


@pytest.mark.parametrize("kind", ["moto", "swift"])
def test_one_fetch_serves_programs_in_the_mount_and_clients_of_its_pool(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path, kind: str
) -> None:
    store, home = new_store(kind), tmp_path / "pool"
    content = {"d/first": os.urandom(300_000), "second": os.urandom(200_000)}
    for key, each in content.items():
        store.put(key, each)
    with store.proxy() as proxy:
        mount = mounting(store.target(proxy), "--pool", str(home), "--pool-port", "0")
        with mount:
            assert mount.do(programs.read_file, mount / "d/first") == content["d/first"]
            with Pool(home=home) as pool:
                assert sorted(pool.glob(store.bucket, "**")) == sorted(content)
                pulled = pool.pull(store.bucket, *content)
                port = pool.status()["master"].rpartition(":")[2]
                assert pulled == [home / "data" / store.bucket / key for key in content]
                assert [path.read_bytes() for path in pulled] == list(content.values())
                assert mount.do(programs.read_file, mount / "second") == content["second"]
            with Pool(port=int(port)) as pool:
                assert pool.pull(store.bucket, "second")[0].read_bytes() == content["second"]
            for path in pulled:
                assert stat.S_IMODE(path.stat().st_mode) == 0o400
                cached = {each.stat().st_ino for each in (mount.cache_dir / "data").iterdir()}
                assert path.stat().st_ino in cached
            assert sorted(store.asked(proxy, "GET")) == sorted(content)


def test_what_comes_in_by_one_door_is_seen_by_the_other(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    store, home = new_store("moto"), tmp_path / "pool"
    with pooled(mounting, store, home, *LATER) as mount, Pool(home=home) as pool:
        mount.do(programs.write_file, mount / "written", b"by a program")
        assert list(pool.glob(store.bucket, "*")) == ["written"]
        assert pool.pull(store.bucket, "written")[0].read_bytes() == b"by a program"
        assert store.keys() == []

        (home / "tmp/new").write_bytes(b"by a client")
        assert not mount.do(os.path.exists, mount / "pushed")
        pool.push(store.bucket, "pushed", home / "tmp/new")
        wait_until(lambda: mount.do(os.path.exists, mount / "pushed"), "the kernel asks again")
        assert mount.do(programs.read_file, mount / "pushed") == b"by a client"
        assert store.get("pushed") == b"by a client"

        assert mount.umount().returncode == 0
    assert store.view() == {"pushed": b"by a client", "written": b"by a program"}


def test_a_pool_serves_the_part_of_the_bucket_that_is_mounted(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    store, home = new_store("moto"), tmp_path / "pool"
    store.put("2024/a", b"one")
    store.put("other", b"two")
    mount = mounting(store.target().below("2024"), "--pool", str(home))
    with mount, Pool(home=home) as pool:
        assert list(pool.glob(store.bucket, "**")) == ["2024/a"]
        assert pool.pull(store.bucket, "2024/a")[0].read_bytes() == b"one"
        with pytest.raises(PoolError, match="there is what lies below 2024/ alone"):
            pool.pull(store.bucket, "other")


def test_the_pool_ends_with_its_mount_and_what_a_kill_leaves_is_swept(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    store, home = new_store("file"), tmp_path / "pool"
    bucket = store.target()
    (Path(store.bucket) / "b").mkdir()
    store.put("b/a", b"one")
    mount = mounting(bucket, "--pool", str(home), "--allow-other")
    with mount:
        with Pool(home=home) as pool:
            (path,) = pool.pull("b", "a")
            assert stat.S_IMODE(path.stat().st_mode) == 0o444
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        mount.kill()
        assert path.read_bytes() == b"one"
        mount.options = ("--allow-other",)
        mount.start()  # which keeps no pool, and lets nothing keep what its cache gives up
        assert not path.exists()
        mount.stop()
        mount.options = ("--pool", str(home), "--allow-other")
        mount.start()
        with Pool(home=home) as pool, path_of(pool).open("rb") as file:
            told = mount.status()
            assert told["pool"]["home"] == str(home)
            assert told["leased"] == {"leases": 1, "files": 1, "bytes": 3}
            done = mount.umount()
            assert done.returncode == 0
            assert done.stderr == (
                f"cachefs: {mount.mountpoint} is unmounted; 1 client of its pool had to go; "
                "1 lease ended: what is open of those files can be read on\n"
            )
            assert file.read() == b"one"
    assert os.listdir(home / "data") == [".cachefs-pool"]
    with pytest.raises(NoDaemon):
        Pool(home=home)


def path_of(pool: Pool) -> Path:
    return pool.pull("b", "a")[0]


def test_a_pool_that_cannot_be_is_no_mount_and_told_in_one_line(
    new_store: Callable[[str], LiveStore], mounting: Mounting, tmp_path: Path
) -> None:
    store, home = new_store("file"), tmp_path / "pool"
    with pooled(mounting, store, home) as mount:
        beside = mounting(store.target(), "--pool", str(home), name="beside")
        with pytest.raises(MountFailed, match="another pool shows its files") as refused:
            beside.start()
        assert refused.value.returncode == 2
        assert refused.value.stderr.count("\n") == 1
        with Pool(home=home) as pool:
            assert pool.status()["is_master"] == "1"
    for where, complaint in (
        (mount.mountpoint, "lie in one another"),
        (mount.mountpoint / "pool", "lie in one another"),
        (mount.cache_dir, "lie in one another"),
        (Path(store.bucket) / "pool", "lie in one another"),
    ):
        done = cachefs(
            *("mount", store.target().source, mount.mountpoint, "--cache-dir", mount.cache_dir),
            *("--pool", where),
            env=mount.env,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert complaint in done.stderr
    lone = cachefs(
        *("mount", store.target().source, mount.mountpoint, "--pool-port", "9"), env=mount.env
    )
    assert lone.returncode == 2
    assert "--pool-port 9 says nothing without a pool — add --pool HOMEDIR" in lone.stderr


@contextmanager
def pool_of(target: Target, base: Path) -> Iterator[Pool]:
    """A pool that no mount keeps, in a process of its own."""
    home, log = base / "home", base / "log"
    command = [sys.executable, "-m", "cachefs", "pool", "-n", "-D", str(home)]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command, target.source, *target.options],
            env=environment(base, target.environment),
            stderr=file,
        ) as process,
    ):
        try:
            wait_until(lambda: process.poll() is not None or answers(home), "the pool answers")
            with Pool(home=home) as pool:
                yield pool
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()


def answers(home: Path) -> bool:
    with suppress(NoDaemon), Pool(home=home):
        return True
    return False


@pytest.mark.parametrize("kind", ["moto", "radosgw", "swift"])
def test_each_request_does_on_each_store_what_it_is_for(
    new_store: Callable[[str], LiveStore], tmp_path: Path, kind: str
) -> None:
    store = new_store(kind)
    bucket, data = store.bucket, tmp_path / "home/data" / store.bucket
    store.put("d/a", b"one")
    with pool_of(store.target().everything(), tmp_path) as pool:
        assert list(pool.glob(bucket, "*/[a-c]")) == ["d/a"]
        assert (data / "__list__").read_bytes() == b"d/a\n"
        (path,) = pool.pull(bucket, "d/a")
        assert (path, path.read_bytes()) == (data / "d/a", b"one")
        meta = json.loads((data / "d/a__meta__").read_text())
        assert (meta["ContentLength"], meta["AcceptRanges"]) == (3, "bytes")
        assert meta["ETag"] == f'"{pool.stat(bucket, "d/a")["etag"].strip(chr(34))}"'

        source = tmp_path / "home/tmp/source"
        source.write_bytes(b"pushed")
        pool.push(bucket, "e/b", source)
        assert store.get("e/b") == b"pushed"
        assert store.meta("e/b")["mode"] == str(source.stat().st_mode)
        assert pool.pull(bucket, "d/a", "e/b")[1].read_bytes() == b"pushed"

        store.put("d/a", b"another")
        pool.refresh(bucket)
        assert (data / "__list__").read_bytes() == b"d/a\ne/b\n"
        leased = pool.lease(bucket, "d/a", 600)
        assert leased.read_bytes() == b"another"
        assert int(pool.stat(bucket, "d/a")["leased"]) > 590
        with pytest.raises(PoolError, match="it is leased"):
            pool.evict(bucket, "d/a")
        pool.pin(bucket, "e/b")
        assert pool.stat(bucket, "e/b")["pinned"] == "1"
        pool.unpin(bucket, "e/b")
        pool.evict(bucket, "none")
        pool.set("refresh_interval", 7)
        told = pool.status()
        assert [told[f"count_{name}"] for name in ("glob", "pull", "push", "refresh")] == [*"1211"]
        assert told["refresh_interval"] == "7"
        for words in (("none", "a"), (bucket, "none"), (bucket, "d")):
            with pytest.raises(PoolError, match=r"no such (bucket|key)"):
                pool.pull(*words)
