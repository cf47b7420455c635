"""What clients see below HOMEDIR, and for how long; a cache that is too small for all of them; bytes at random."""

import json
import os
import random
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from cachefs.core.errors import UsageError
from cachefs.local.views import Views
from cachefs.pool import shown
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import FOREVER_ASKING, store, until
from tests.pool.rig import PoolRig, answering, filled

ODD = (
    "a",
    "a/b",
    "a/b/c",
    "a//b",
    "/lead",
    "__list__",
    "a__meta__",
    "x__meta__/y",
    "new\nline",
    "quo\"te and 'blank",
    "ü/日本",
    "back\\slash",
    "n" * 255,
    "l" * 300,
    "/".join(["d" * 100] * 9),
    "~cachefs~odd/x",
    "-rf *",
)


async def test_every_key_can_be_pulled_whatever_its_name(tmp_path: Path) -> None:
    contents = {key: f"content of {key!r}".encode() for key in ODD}
    async with answering(tmp_path, filled(**contents)) as pool:
        for _ in range(2):
            for key, content in contents.items():
                (path,) = await pool.pull("b", key)
                assert path.read_bytes() == content, key
                assert path.is_relative_to(pool.home / "data/b")
                assert path.resolve() == path
                meta = json.loads(path.with_name(path.name + "__meta__").read_text())
                assert meta["ContentLength"] == len(content)
        listed = (await pool.ask("GLOB", "b", "**")).decode().split("\n")[1:-1]
        assert sorted(listed) == sorted(key for key in ODD if "\n" not in key)
        pool.check()


def unleased(pool: PoolRig) -> Callable[[], bool]:
    return lambda: pool.rig.service.leases.status()["leases"] == 0


async def test_a_path_stays_after_its_lease_until_the_cache_gives_the_file_up(
    tmp_path: Path,
) -> None:
    async with answering(tmp_path, filled(**{"d/e/a": b"one"}), pool={"lease_s": 0.1}) as pool:
        (path,) = await pool.pull("b", "d/e/a")
        await until(unleased(pool))
        assert pool.data() == ["b/d/e/a", "b/d/e/a__meta__"]
        before = path.stat()
        meta = path.with_name("a__meta__").stat()
        assert await pool.pull("b", "d/e/a") == [path]
        assert path.stat().st_ino == before.st_ino
        assert path.with_name("a__meta__").stat().st_ino == meta.st_ino  # it was not made anew
        assert (await pool.ask("EVICT", "b", "d/e/a")).startswith(b"ERROR\nit is leased")
        await until(unleased(pool))
        with path.open("rb") as file:
            assert (await pool.ask("EVICT", "b", "d/e/a")) == b"OK\n\n"
            assert pool.data() == []
            assert not list(pool.rig.cache.data.iterdir())
            assert file.read() == b"one"
        await until(lambda: not (pool.home / "data/b/d").exists())
        assert (await pool.pull("b", "d/e/a"))[0].read_bytes() == b"one"
        assert len(pool.rig.watched.of("get_range")) == 2


async def test_a_path_whose_lease_is_over_goes_when_room_is_needed(tmp_path: Path) -> None:
    contents = {name: os.urandom(2**20) for name in "abcdef"}
    async with answering(
        tmp_path, filled(**contents), cache_size=3 * 2**20, pool={"lease_s": 0.05}
    ) as pool:
        for name, content in contents.items():
            (path,) = await pool.pull("b", name)
            assert path.read_bytes() == content
            await until(unleased(pool))
            pool.check()
        assert (pool.home / "data/b/f").read_bytes() == contents["f"]
        assert not (pool.home / "data/b/a").exists()
        assert not (pool.home / "data/b/a__meta__").exists()


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_path_of_what_is_removed_goes_with_the_last_who_needs_it(
    tmp_path: Path, is_open: bool
) -> None:
    content = os.urandom(2**20)
    async with answering(
        tmp_path, filled(a=content), pool={"lease_s": 0.3}, **FOREVER_ASKING
    ) as pool:
        (path,) = await pool.pull("b", "a")
        fh = await pool.rig.open("b/a") if is_open else None
        await pool.rig.unlink("b/a")
        assert path.read_bytes() == content
        assert pool.rig.cache.used >= 2**20
        await until(unleased(pool))
        if fh is not None:
            assert await pool.rig.read_fh(fh) == content
            await pool.rig.fs.release(fh)
        await until(lambda: not path.exists())
        await until(lambda: pool.rig.cache.used < 2**19)
        pool.check()


async def test_only_so_many_paths_stay_beyond_their_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "_MOST_LEFT", 2)
    contents = {name: name.encode() for name in "abcd"}
    async with answering(tmp_path, filled(**contents), pool={"lease_s": 0.05}) as pool:
        for name in contents:
            await pool.pull("b", name)
            await until(unleased(pool))
        await until(lambda: pool.data() == ["b/c", "b/c__meta__", "b/d", "b/d__meta__"])
        assert [path.read_bytes() for path in await pool.pull("b", *"abcd")] == [
            *contents.values()
        ]
        assert len(pool.rig.watched.of("get_range")) == 4
        pool.check()


async def test_a_path_never_shows_what_is_written_by_another_door(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"before"), pool={"lease_s": 0.05}) as pool:
        (path,) = await pool.pull("b", "a")
        await until(unleased(pool))
        with path.open("rb") as file:
            fh = await pool.rig.open("b/a", os.O_RDWR)
            await pool.rig.fs.write(fh, 0, b"AFTER")
            assert not path.exists()
            assert file.read() == b"before"
            await pool.rig.close(fh)
        (again,) = await pool.pull("b", "a")
        assert (again, again.read_bytes()) == (path, b"AFTERe")

        await until(unleased(pool))
        await pool.ask("LEASE", "b", "a", "100")  # from here on it does not go, either
        fh = await pool.rig.open("b/a", os.O_RDWR)
        await pool.rig.fs.write(fh, 0, b"LATER")
        await pool.rig.close(fh)
        assert path.read_bytes() == b"AFTERe"


async def test_what_was_shown_of_an_old_version_takes_nothing_of_the_new_one_away(
    tmp_path: Path,
) -> None:
    async with answering(
        tmp_path, filled(a=b"one"), pool={"lease_s": 0.05}, **FOREVER_ASKING
    ) as pool:
        (path,) = await pool.pull("b", "a")
        fh = await pool.rig.open("b/a")  # which keeps the version that it has
        await until(unleased(pool))
        pool.rig.store("b/a", b"another")
        assert await pool.pull("b", "a") == [path]
        await pool.rig.fs.release(fh)
        await until(unleased(pool))
        assert path.read_bytes() == b"another"
        pool.check()


async def test_a_pull_and_a_lease_make_the_time_longer_never_shorter(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one"), pool={"lease_s": 0.1}) as pool:
        assert (await pool.ask("LEASE", "b", "a", "100")).startswith(b"OK\n/")
        await pool.pull("b", "a")
        told = (await pool.ask("STAT", "b", "a")).decode()
        assert "leased 99" in told
        for seconds in ("0", "-1", "x", "9" * 30):
            assert (await pool.ask("LEASE", "b", "a", seconds)).startswith(b"ERROR\n")
        assert (await pool.ask("EVICT", "b", "a")).startswith(b"ERROR\nit is leased, for ")


async def test_stat_pin_and_evict(tmp_path: Path) -> None:
    memory = MemoryStore()
    info = store(memory, "b/a", b"one")
    async with answering(tmp_path, memory, pool={"lease_s": 0.05}) as pool:
        told = (await pool.ask("STAT", "b", "a")).decode()
        assert f'cached 0\netag "{info.etag}"\nlast_modified ' in told
        assert told.endswith(" GMT\nleased 0\npinned 0\nsize 3\n")
        assert await pool.ask("STAT", "b", "none") == b"ERROR\nno such key: none"

        assert await pool.ask("PIN", "b", "a") == b"OK\n\n"
        await until(lambda: pool.rig.service.presence(["b/a"]) == [(3, 3)])
        assert "cached 3" in (await pool.ask("STAT", "b", "a")).decode()
        assert await pool.ask("EVICT", "b", "a") == b"ERROR\nis pinned"
        assert await pool.ask("UNPIN", "b", "a") == b"OK\n\n"
        assert await pool.ask("EVICT", "b", "a") == b"OK\n\n"
        assert pool.rig.service.presence(["b/a"]) == [(3, 0)]


async def test_what_an_earlier_pool_left_is_swept_and_what_is_not_a_pools_is_left_alone(
    tmp_path: Path,
) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        (path,) = await pool.pull("b", "a")
    assert path.exists()  # it was not the daemon's end, but its death
    async with answering(tmp_path, filled(a=b"two")) as pool:
        assert pool.data() == []

    (tmp_path / "other/data/photos").mkdir(parents=True)
    with pytest.raises(UsageError, match="not a pool's"):
        Views(tmp_path / "other", umask=0o022)
    assert (tmp_path / "other/data/photos").exists()


async def test_who_may_read_the_files_is_up_to_the_umask(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    source = tmp_path / "source"
    source.write_bytes(b"")
    with closing(Views(home, umask=0o077)) as views:
        path = views.place("b", "d/a", source, b"{}")

    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.with_name("a__meta__").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("clients", "keys", "pulls"),
    [
        (16, 40, 3),
        pytest.param(64, 10_000, 400, marks=pytest.mark.soak),
    ],
)
async def test_a_cache_too_small_for_its_clients_takes_no_path_away(
    tmp_path: Path, clients: int, keys: int, pulls: int
) -> None:
    """Half of the keys would fill the cache; each client opens each path before its lease is over."""
    memory = MemoryStore()
    size = 64 * 1024
    contents = {f"d{number % 7}/{number}": os.urandom(16) * (size // 16) for number in range(keys)}
    for key, content in contents.items():
        store(memory, f"b/{key}", content)
    limit = max(keys * size // 2, (clients + 4) * (size + 4096) * 2)
    limit = min(limit, keys * size * 2 // 3)
    async with answering(
        tmp_path, memory, cache_size=limit, pool={"lease_s": 1.0}, timeout_s=60
    ) as pool:
        seen: dict[str, set[int]] = {}
        late = 0

        async def client(number: int) -> None:
            nonlocal late
            chosen = random.Random(number)
            for _ in range(pulls):
                wanted = chosen.sample(sorted(contents), 2)
                paths = await pool.pull("b", *wanted)
                answered_at = trio.current_time()
                for key, path in zip(wanted, paths, strict=True):
                    try:
                        file = path.open("rb")
                    except FileNotFoundError:  # of a machine that is too busy to open it in time
                        assert trio.current_time() - answered_at >= 0.5
                        late += 1
                        continue
                    with file:
                        assert file.read() == contents[key]
                        seen.setdefault(key, set()).add(os.fstat(file.fileno()).st_ino)
                assert pool.rig.cache.used <= limit

        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(client, number)
        assert late < clients * pulls
        evicted = pool.rig.service._room.evicted
        assert evicted
        # No more than once for each time that it had to be fetched.
        assert len(pool.rig.watched.of("get_range")) <= len(seen) + evicted
        pool.check()


def noise(chosen: random.Random) -> bytes:
    """A line that may be a request, nearly one, or none."""
    words = ["PULL", "GLOB", "PUSH", "REFRESH", "SET", "STATUS", "STAT", "EVICT", "LEASE", "PIN"]
    pieces = [
        "b",
        "a",
        "d/c",
        "*",
        "",
        "..",
        "../..",
        "/etc/passwd",
        "\0",
        "ü",
        "[",
        "**/*",
        "5",
        "x" * 300,
    ]
    kind = chosen.randrange(5)
    if kind == 0:
        return chosen.randbytes(chosen.randrange(200)).replace(b"\n", b"") + b"\n"
    request = [chosen.choice(words)] + [chosen.choice(pieces) for _ in range(chosen.randrange(5))]
    line = json.dumps(request).encode()
    if kind == 1:
        at = chosen.randrange(len(line))
        line = line[:at] + chosen.randbytes(1).replace(b"\n", b"") + line[at + 1 :]
    if kind == 2:
        return line[: chosen.randrange(len(line))]
    return line + b"\n"


@pytest.mark.parametrize("requests", [400, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_bytes_at_random_leave_no_trace(
    tmp_path: Path, requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(
        tmp_path, filled(**{"a": b"one", "d/c": b"two"}), **FOREVER_ASKING
    ) as pool:
        await pool.pull("b", "a")
        descriptors = len(os.listdir("/proc/self/fd"))

        async def client(seed: int, count: int) -> None:
            chosen = random.Random(seed)
            for _ in range(count):
                answer = await pool.raw(noise(chosen), eof=True)
                assert answer == b"" or answer.startswith((b"OK\n", b"ERROR\n")), answer

        async with trio.open_nursery() as nursery:
            for seed in range(8):
                nursery.start_soon(client, seed, requests // 8)
        await until(lambda: not pool.pool.clients)
        await settled(pool, descriptors)
        assert (await pool.pull("b", "a"))[0].read_bytes() == b"one"
        assert set(pool.rig.objects()) == {"b/a", "b/d/c"}
        assert pool.rig.service.leases.status()["leases"] <= 2
        assert len(pool.rig.service.leases._due) < 3000
        pool.check()
    assert not [record for record in caplog.records if record.exc_info]


async def settled(pool: PoolRig, descriptors: int) -> None:
    """Wait until there are no more descriptors than there were."""
    await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 2)
