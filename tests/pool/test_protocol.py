"""The s3pool protocol, byte for byte: every request, every error, and clients that are slow, cut off or many."""

import json
import os
import re
import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs import pool as door
from cachefs.pool import line, lists
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import FOREVER_ASKING, LATER, MIB, store, together, until
from tests.engine.watched import Gate
from tests.pool.rig import answering, filled, read_all

KEYS = ("a/1.txt", "a/2.csv", "a/b/3.txt", "a/b/c/4.txt", "z")


def listed() -> MemoryStore:
    return filled(**dict.fromkeys(KEYS, b"x"))


# ---- the six requests -----------------------------------------------------------------------


async def test_pull_answers_with_one_absolute_path_a_line_in_the_order_of_the_request(
    tmp_path: Path,
) -> None:
    async with answering(tmp_path, filled(**{"d/a": b"one", "c": b"two"})) as pool:
        data = pool.home / "data/b"
        answer = await pool.ask("PULL", "b", "d/a", "c", "d/a")

        assert answer == f"OK\n{data}/d/a\n{data}/c\n{data}/d/a\n".encode()
        assert (data / "d/a").read_bytes() == b"one"
        assert (data / "c").read_bytes() == b"two"
        assert stat.S_IMODE((data / "c").stat().st_mode) == 0o444
        pool.check()


async def test_the_meta_file_tells_what_get_object_does(tmp_path: Path) -> None:
    memory = MemoryStore()
    info = store(memory, "b/a.txt", b"one", {"colour": "red"})
    async with answering(tmp_path, memory) as pool:
        (path,) = await pool.pull("b", "a.txt")
        meta = json.loads(path.with_name("a.txt__meta__").read_text())

    assert list(meta) == [
        "LastModified",
        "ETag",
        "ContentLength",
        "ContentType",
        "Metadata",
        "AcceptRanges",
    ]
    assert meta["ETag"] == f'"{info.etag}"'
    assert meta["ContentLength"] == 3
    assert meta["Metadata"] == {"colour": "red"}
    assert meta["AcceptRanges"] == "bytes"
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", meta["LastModified"])


async def test_a_pull_fetches_only_where_the_version_is_another(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one"), **FOREVER_ASKING) as pool:
        await pool.pull("b", "a")
        await pool.pull("b", "a")
        assert len(pool.rig.watched.of("get_range")) == 1

        pool.rig.store("b/a", b"other")
        (path,) = await pool.pull("b", "a")

        assert path.read_bytes() == b"other"
        assert len(pool.rig.watched.of("get_range")) == 2
        assert json.loads(path.with_name("a__meta__").read_text())["ContentLength"] == 5
        assert pool.pool.counts["pull_hit"] == 1
        pool.check()


async def test_one_fetch_serves_any_number_of_clients(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=os.urandom(MIB))) as pool:
        found: set[bytes] = set()

        async def pull() -> None:
            found.add(await pool.ask("PULL", "b", "a"))

        await together(*[pull] * 64)

        assert len(found) == 1
        assert len(pool.rig.watched.of("get_range")) == 1
        assert pool.rig.service.leases.status()["leases"] == 1


async def test_if_any_key_fails_the_whole_pull_does(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        assert await pool.ask("PULL", "b", "a", "none") == b"ERROR\nno such key: none"
        assert await pool.ask("PULL", "nowhere", "a") == b"ERROR\nno such key: a"


async def test_glob_matches_truly(tmp_path: Path) -> None:
    async with answering(tmp_path, listed()) as pool:
        for pattern, keys in (
            ("*", ["z"]),
            ("**", list(KEYS)),
            ("a/*", ["a/1.txt", "a/2.csv"]),
            ("a/*.txt", ["a/1.txt"]),
            ("**/*.txt", ["a/1.txt", "a/b/3.txt", "a/b/c/4.txt"]),
            ("a/**", list(KEYS[:4])),
            ("a/?.*", ["a/1.txt", "a/2.csv"]),
            ("a/[2-9].csv", ["a/2.csv"]),
            ("a/[!2].*", ["a/1.txt"]),
            ("none*", []),
            ("a/1.txt", ["a/1.txt"]),
            ("", []),
        ):
            answer = await pool.ask("GLOB", "b", pattern)
            assert answer == b"OK\n" + "".join(f"{key}\n" for key in keys).encode(), pattern


async def test_glob_by_prefix_alone_is_there_for_who_wants_it(tmp_path: Path) -> None:
    async with answering(tmp_path, listed(), pool={"is_prefix_glob": True}) as pool:
        answer = await pool.ask("GLOB", "b", "a/b*.csv")

    assert answer == b"OK\na/b/3.txt\na/b/c/4.txt\n"


async def test_a_long_list_comes_in_pieces_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "_LINES", 7)
    keys = [f"k{number:04}" for number in range(500)]
    async with answering(tmp_path, filled(**dict.fromkeys(keys, b""))) as pool:
        answer = await pool.ask("GLOB", "b", "k*[05]")

    assert answer.decode().splitlines() == ["OK", *(key for key in keys if key[-1] in "05")]


async def test_refresh_makes_the_list_anew_and_has_the_store_asked(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        assert await pool.ask("GLOB", "b", "*") == b"OK\na\n"
        await pool.pull("b", "a")
        pool.rig.store("b/new", b"")
        pool.rig.store("b/a", b"other")
        assert await pool.ask("GLOB", "b", "*") == b"OK\na\n"

        assert await pool.ask("REFRESH", "b") == b"OK\n\n"

        assert (pool.home / "data/b/__list__").read_bytes() == b"a\nnew\n"
        assert await pool.ask("GLOB", "b", "*") == b"OK\na\nnew\n"
        (path,) = await pool.pull("b", "a")
        assert path.read_bytes() == b"other"


async def test_lists_are_made_anew_after_a_while_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "_MINUTE_S", 0.1)
    async with answering(tmp_path, filled(a=b"one")) as pool:
        await pool.ask("GLOB", "b", "*")
        pool.rig.store("b/new", b"")

        await until(lambda: (pool.home / "data/b/__list__").read_bytes() == b"a\nnew\n")


async def test_push_stores_a_file_and_the_next_pull_gets_it(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        await pool.pull("b", "a")
        await pool.ask("GLOB", "b", "*")
        source = pool.home / "tmp/source"
        source.write_bytes(b"other")

        assert await pool.ask("PUSH", "b", "a", str(source)) == b"OK\n\n"
        assert await pool.ask("PUSH", "b", "deep/new", str(source)) == b"OK\n\n"

        assert pool.rig.objects()["b/a"] == b"other"
        assert [each.read_bytes() for each in await pool.pull("b", "a", "deep/new")] == [
            b"other"
        ] * 2
        assert await pool.ask("GLOB", "b", "**") == b"OK\na\ndeep/new\n"
        assert "b/deep/" not in pool.rig.objects()


async def test_what_is_pushed_has_the_attributes_of_the_file(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        source = pool.home / "tmp/source"
        source.write_bytes(b"other")
        source.chmod(0o640)
        os.utime(source, ns=(1, 1_234_567_890_123_456_789))
        assert await pool.ask("PUSH", "b", "d/a", str(source)) == b"OK\n\n"

        attrs = (await pool.rig.fs.lookup(*await pool.rig.spot("b/d/a"))).attrs
        assert (attrs.mode, attrs.uid, attrs.size) == (0o640, os.getuid(), 5)
        assert attrs.mtime_ns == 1_234_567_890_123_456_789


async def test_nothing_is_pushed_where_nothing_is_to_be_changed(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one"), read_only=True) as pool:
        source = pool.home / "tmp/source"
        source.write_bytes(b"other")
        answer = await pool.ask("PUSH", "b", "a", str(source))

        assert answer.startswith(b"ERROR\nnothing is stored")
        assert pool.rig.objects() == {"b/a": b"one"}
        assert (await pool.pull("b", "a"))[0].read_bytes() == b"one"


async def test_what_another_door_has_taken_in_is_there_before_the_store_has_it(
    tmp_path: Path,
) -> None:
    async with answering(tmp_path, filled(old=b"one"), **LATER) as pool:
        await pool.ask("GLOB", "b", "*")
        await pool.rig.write("b/new", b"written")

        assert await pool.ask("GLOB", "b", "*") == b"OK\nold\nnew\n"
        (path,) = await pool.pull("b", "new")
        assert path.read_bytes() == b"written"
        assert json.loads(path.with_name("new__meta__").read_text())["ETag"] == '""'
        assert b"\nsize 7\n" in await pool.ask("STAT", "b", "new")
        assert "b/new" not in pool.rig.objects()
        await pool.rig.write("b/new", b"once more")
        assert path.read_bytes() == b"written"
        assert (await pool.pull("b", "new"))[0].read_bytes() == b"once more"
        pool.check()


async def test_keys_are_those_of_the_bucket_where_a_part_of_it_is_served(tmp_path: Path) -> None:
    memory = MemoryStore()
    for key in ("a", "d/b"):
        store(memory, key, key.encode())
    async with answering(tmp_path, memory, pool={"bucket": "b", "prefix": "2024/"}) as pool:
        (path,) = await pool.pull("b", "2024/d/b")
        assert path == pool.home / "data/b/2024/d/b"
        assert path.read_bytes() == b"d/b"
        assert await pool.ask("GLOB", "b", "2024/**") == b"OK\n2024/a\n2024/d/b\n"
        (pool.home / "tmp/source").write_bytes(b"new")
        pushed = await pool.ask("PUSH", "b", "2024/new", str(pool.home / "tmp/source"))
        assert pushed == b"OK\n\n"
        assert pool.rig.objects()["new"] == b"new"
        for key in ("a", "2023/a", "2024"):
            answer = await pool.ask("PULL", "b", key)
            assert (
                answer
                == f"ERROR\nno such key: {key}: there is what lies below 2024/ alone".encode()
            )
        answer = await pool.ask("PULL", "c", "2024/a")
        assert answer == "ERROR\nno such bucket: c — there is b alone".encode()


async def test_set_and_status_are_those_of_s3pool(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        await pool.pull("b", "a")
        for name, value in (
            ("verbose", "1"),
            ("refresh_interval", "2"),
            ("pull_concurrency", "5"),
        ):
            assert await pool.ask("SET", name, value) == b"OK\n\n"
        for name, value in (
            ("verbose", "-1"),
            ("refresh_interval", "1"),
            ("pull_concurrency", "4"),
            ("pull_concurrency", "x"),
            ("colour", "1"),
        ):
            assert (await pool.ask("SET", name, value)).startswith(b"ERROR\n")
        answer = (await pool.ask("STATUS")).decode()

    assert answer.startswith("OK\n")
    told = dict(line.partition(" ")[::2] for line in answer[3:].splitlines())
    assert list(told) == [
        "count_glob",
        "count_pull",
        "count_pull_hit",
        "count_push",
        "count_refresh",
        "is_master",
        "master",
        "pull_concurrency",
        "refresh_interval",
        "revision",
        "standby",
        "up_since",
        "verbose",
    ]
    assert told["count_pull"] == "1"
    assert (told["refresh_interval"], told["pull_concurrency"], told["verbose"]) == ("2", "5", "1")


async def test_commands_are_in_any_case(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        assert await pool.ask("gLoB", "b", "*") == b"OK\na\n"


# ---- errors ---------------------------------------------------------------------------------


async def test_what_is_wrong_is_told_in_the_words_that_clients_know(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        for line, message in (
            (b"nonsense", "Invalid JSON in request"),
            (b"{}", "Invalid JSON in request"),
            (b"[]", "Invalid JSON in request"),
            (b'"PULL"', "Invalid JSON in request"),
            (b'["PULL", null, []]', "Invalid JSON in request"),
            (b'["PULL", "b", true]', "Invalid JSON in request"),
            (b'["PULL", "b", "\\ud800"]', "Invalid JSON in request"),
            (b'["\xff"]', "Invalid JSON in request"),
            (b"[" * 100_000, "Invalid JSON in request"),
            (b'["FETCH", "b"]', "Bad command: FETCH"),
            (b'["fe\\ntch"]', "Bad command: fe\\ntch"),
            (b'["PULL", "b"]', "Expected at least 2 arguments for PULL"),
            (b'["PULL"]', "Expected at least 2 arguments for PULL"),
            (b'["GLOB", "b"]', "expects 2 arguments for GLOB"),
            (b'["GLOB", "b", "*", "*"]', "expects 2 arguments for GLOB"),
            (b'["PUSH", "b", "k"]', "Expected 3 arguments for PUSH"),
            (b'["PUSH", "b", "k", "relative"]', "Path parameter must be an absolute path"),
            (b'["REFRESH"]', "Expected 1 argument for REFRESH"),
            (b'["SET", "verbose"]', "Expected 2 arguments for SET"),
            (b'["STATUS", "b"]', "Expected 0 arguments for STATUS"),
            (b'["GLOB", "none", "*"]', "no such bucket: none"),
            (b'["REFRESH", "none"]', "no such bucket: none"),
            (b'["PULL", "b", ""]', "a key that is empty or ends in a slash is no file"),
            (b'["PULL", "b", "d/"]', "a key that is empty or ends in a slash is no file"),
            (b'["PULL", "..", "etc/passwd"]', "no such bucket: .."),
            (b'["PULL", "b/..", "passwd"]', "no such bucket: b/.."),
        ):
            assert await pool.raw(line + b"\n") == b"ERROR\n" + message.encode()
        assert await pool.ask("GLOB", "b", "*") == b"OK\na\n"
        assert pool.data() == ["b/__list__"]


async def test_a_key_that_climbs_out_is_refused_whatever_is_asked(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        (pool.home / "tmp/f").write_bytes(b"")
        for key in ("../x", "a/../../x", "..", ".", "a/./b", "a\0b"):
            for words in (
                ("PULL", "b", key),
                ("PUSH", "b", key, f"{pool.home}/tmp/f"),
                ("STAT", "b", key),
                ("EVICT", "b", key),
                ("PIN", "b", key),
                ("LEASE", "b", key, "1"),
            ):
                answer = await pool.ask(*words)
                assert answer.startswith(b"ERROR\na key must not climb out"), words
        assert set(pool.rig.objects()) == {"b/a"}


async def test_only_files_of_allowed_directories_are_pushed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    async with answering(tmp_path, filled(a=b"one")) as pool:
        link = pool.home / "tmp/link"
        link.symlink_to(secret)
        (pool.home / "tmp/d").mkdir()
        os.mkfifo(pool.home / "tmp/fifo")
        for path in (secret, link, Path("/etc/passwd"), pool.home / "tmp/../../secret"):
            assert b"lies in no directory" in await pool.ask("PUSH", "b", "k", str(path)), path
        for name in ("d", "fifo"):
            assert b"not a plain file" in await pool.ask(
                "PUSH", "b", "k", f"{pool.home}/tmp/{name}"
            )
        assert b"no such file" in await pool.ask("PUSH", "b", "k", f"{pool.home}/tmp/none")
        assert set(pool.rig.objects()) == {"b/a"}


# ---- clients --------------------------------------------------------------------------------


async def test_a_client_that_asks_nothing_is_let_go_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LINE_S", 0.1)
    async with answering(tmp_path) as pool:
        for sent in (b"", b"\n", b"\r\n", b'["STATUS"]'):
            assert await pool.raw(sent) == b""
            assert await pool.raw(sent, eof=True) == b""


async def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    async with answering(tmp_path) as pool:
        assert await pool.raw(b"x" * (2**20 + 2**17)) == b"ERROR\nRequest too long"
        assert (await pool.ask("STATUS")).startswith(b"OK\n")


async def test_a_client_that_takes_nothing_in_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_SLOWEST_S", 0.1)
    keys = [f"{number:04}" + "k" * 200 for number in range(5000)]
    async with answering(tmp_path, filled(**dict.fromkeys(keys, b""))) as pool:
        stream = await trio.open_unix_socket(pool.home / "pool.sock")
        async with stream:
            await stream.send_all(b'["GLOB", "b", "*"]\n')
            await until(lambda: pool.pool.counts["glob"] == 1)
            await until(lambda: not pool.pool.clients)


async def test_clients_that_hang_up_leave_nothing_behind(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        gate = Gate()
        pool.rig.watched.on("before", "get_range", gate)
        stream = await trio.open_unix_socket(pool.home / "pool.sock")
        await stream.send_all(b'["PULL", "b", "a"]\n')
        with trio.fail_after(10):
            await gate.reached.wait()
        await stream.aclose()
        gate.open()
        await until(lambda: not pool.pool.clients)
        assert (await pool.pull("b", "a"))[0].read_bytes() == b"one"


async def test_who_asks_for_it_may_send_any_number_of_requests(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        answer = await pool.raw(
            b'["KEEPALIVE"]\n["GLOB", "b", "*"]\n["PULL", "b", "none"]\n["GLOB", "b", "*"]\n',
            eof=True,
        )

    assert answer == b"OK\n\n\0OK\na\n\0ERROR\nno such key: none\0OK\na\n\0"


async def test_without_asking_for_it_one_request_is_all(tmp_path: Path) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        assert await pool.raw(b'["GLOB", "b", "*"]\n["GLOB", "b", "*"]\n') == b"OK\na\n"


async def test_a_token_is_wanted_where_there_is_one(tmp_path: Path) -> None:
    async with answering(
        tmp_path, filled(a=b"one"), guarded=True, pool={"token": "secret"}
    ) as pool:
        asked = b'["GLOB", "b", "*"]\n'
        assert await pool.raw(asked) == b"ERROR\nAuthentication required"
        assert await pool.raw(b'["AUTH", "wrong"]\n' + asked) == b"ERROR\nWrong token"
        assert await pool.raw(b'["AUTH", "secret"]\n' + asked) == b"OK\na\n"


async def test_a_pool_that_ends_answers_what_it_works_on_and_takes_nothing_new(
    tmp_path: Path,
) -> None:
    async with answering(tmp_path, filled(a=b"one")) as pool:
        gate = Gate()
        pool.rig.watched.on("before", "get_range", gate)
        stream = await trio.open_unix_socket(pool.home / "pool.sock")
        async with stream, trio.open_nursery() as nursery:
            await stream.send_all(b'["PULL", "b", "a"]\n')
            with trio.fail_after(10):
                await gate.reached.wait()
            nursery.start_soon(pool.pool.wait_idle, 10)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with pytest.raises(OSError):  # noqa: PT011 - refused or reset
                await pool.ask("STATUS")
            gate.open()
            assert await read_all(stream) == f"OK\n{pool.home}/data/b/a\n".encode()
