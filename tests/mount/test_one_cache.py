"""One cache directory, and every door into it at once: the mount, its pool, a CloudManager, a Client and fsspec."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

import cachefs
from cachefs import CloudManager
from cachefs.poolclient import Pool, PoolError
from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.harness import cachefs as command
from tests.mount.proxy import Proxy
from tests.mount.stores import LiveStore

MIB = 2**20
LIMIT = 8 * MIB
HELD = 512 * 1024
"""What each door holds."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class House:
    """A mount with all of its doors open."""

    store: LiveStore
    proxy: Proxy
    mount: Mount
    pool: Pool
    manager: CloudManager
    client: cachefs.Client
    files: Any
    """fsspec's file system."""

    def reads(self) -> Mapping[str, Callable[[str], bytes]]:
        """How each door reads a file of the manager's directory."""
        return {
            "mount": lambda name: self.mount.do(programs.read_file, self.mount / f"files/{name}"),
            "pool": lambda name: self.pool.pull(self.store.bucket, f"files/{name}")[
                0
            ].read_bytes(),
            "manager": lambda name: Path(str(self.manager.warm_up(name))).read_bytes(),
            "client": lambda name: self.client.read(f"files/{name}"),
            "fsspec": lambda name: self.files.cat_file(self.url(name)),
        }

    def url(self, name: str) -> str:
        """What fsspec calls a file."""
        return f"cachefs://{self.store.bucket}/files/{name}"

    def fetches(self, name: str) -> int:
        """How often the store was asked for the bytes of a file."""
        return self.store.asked(self.proxy, "GET").count(f"files/{name}")

    def know(self, *contents: bytes) -> None:
        """Let the manager know of objects that the bucket has."""
        rows = [
            {
                "version": "0.2",
                "filename": "known",
                "filesize": len(content),
                "filehash": sha256(content),
                "datetime": "2026-11-27T07:00:00Z",
                "uploads": [
                    {
                        "remote": f"s3://{self.store.bucket}/files",
                        "key": sha256(content),
                        "etag": None,
                    }
                ],
            }
            for content in contents
        ]
        self.manager.data_load(json.dumps(rows), "known")


@pytest.fixture
def new_house(
    new_store: Callable[[str], LiveStore], mounting: Callable[..., Mount], tmp_path: Path
) -> Iterator[Callable[..., House]]:
    with ExitStack() as stack:

        def make(*contents: bytes) -> House:
            store = new_store("moto")
            for content in contents:
                store.put(f"files/{sha256(content)}", content)
            proxy = stack.enter_context(store.proxy())
            home = tmp_path / "pool"
            options = ("--pool", str(home), "--pool-lease", "1s", "--cache-size", str(LIMIT))
            mount = stack.enter_context(mounting(store.target(proxy), *options, "--timeout", "5s"))
            pool = stack.enter_context(Pool(home=home))
            manager = stack.enter_context(
                CloudManager(tmp_path / "db.sqlite3", mount / "files", 4 * MIB)
            )
            client = stack.enter_context(cachefs.connect(mount.mountpoint))
            files = fsspec.filesystem("cachefs", skip_instance_cache=True)
            stack.callback(files.close)
            house = House(store, proxy, mount, pool, manager, client, files)
            house.know(*contents)
            return house

        yield make


def test_one_fetch_serves_all_whoever_comes_first(new_house: Callable[..., House]) -> None:
    contents = [os.urandom(HELD) for _ in range(5)]
    house = new_house(*contents)
    doors = list(house.reads().values())
    for turn, content in enumerate(contents):
        name = sha256(content)
        for door in doors[turn:] + doors[:turn]:
            assert door(name) == content
        assert house.fetches(name) == 1
    entries = [each.stat() for each in (house.mount.cache_dir / "data").iterdir()]
    assert sum(each.st_blocks * 512 for each in entries) < len(contents) * HELD * 1.1
    assert house.mount.status()["cache"]["used"] <= LIMIT


def test_what_is_written_by_one_is_read_by_all(new_house: Callable[..., House]) -> None:
    house = new_house()
    source = house.mount.base / "source"
    written: dict[str, bytes] = {}
    writes: list[Callable[[bytes], object]] = [
        lambda content: house.manager.upload(source),
        lambda content: house.client.write(f"files/{sha256(content)}", content),
        lambda content: house.files.pipe_file(house.url(sha256(content)), content),
        lambda content: house.mount.do(
            programs.write_file, house.mount / f"files/{sha256(content)}", content
        ),
    ]
    for write in writes:
        content = os.urandom(1000)
        source.write_bytes(content)
        write(content)
        written[sha256(content)] = content
    house.know(*written.values())
    for name, content in written.items():
        for door, read in house.reads().items():
            assert read(name) == content, door


def test_no_door_evicts_what_another_holds(new_house: Callable[..., House]) -> None:
    held = [os.urandom(HELD) for _ in range(5)]
    others = [os.urandom(MIB) for _ in range(12)]
    house = new_house(*held, *others)
    names = [sha256(content) for content in held]
    others_names = [sha256(content) for content in others]
    bucket, manager, mount = house.store.bucket, house.manager, house.mount

    fd = mount.do(os.open, mount / f"files/{names[0]}", os.O_RDONLY)
    mount.do(programs.read_fd, fd)
    leased = house.pool.lease(bucket, f"files/{names[1]}", 600)
    opened = house.files.open(house.url(names[4]))
    lease = house.client.lease(f"files/{names[3]}")

    assert all(
        map(manager.warm_up, names)
    )  # it may give all of them up, as far as it is concerned
    fetched = [1] * 5

    def check() -> None:
        assert mount.do(os.lseek, fd, 0, os.SEEK_SET) == 0
        assert mount.do(programs.read_fd, fd) == held[0]
        paths = (leased, Path(str(manager.warm_up(names[2]))), Path(lease))
        assert [path.read_bytes() for path in paths] == held[1:4]
        opened.seek(0)
        assert opened.read() == held[4]
        assert [house.fetches(name) for name in names] == fetched
        assert mount.status()["cache"]["used"] <= LIMIT

    check()
    pruned = command("prune", mount.mountpoint, "--threshold", "1%", "--to", "0%", env=mount.env)
    assert pruned.returncode in {0, 1}, pruned.stderr
    check()
    for name in names:
        with pytest.raises(PoolError, match=r"it is leased|is leased|is in use"):
            house.pool.evict(bucket, f"files/{name}")
    check()
    reads = dict(house.reads())
    by_manager = reads.pop("manager")
    for read in reads.values():
        for name, content in zip(others_names, others, strict=True):
            assert read(name) == content
        check()
    assert manager.make_room_for(int(1.9 * MIB))  # for which its own leased file has to go
    fetched[2] += not manager.on_cache(names[2])
    check()
    for name, content in zip(others_names, others, strict=True):
        assert by_manager(name) == content
    fetched[2] += not manager.on_cache(names[2])
    check()
    lease.release()
    opened.close()
    mount.do(os.close, fd)
