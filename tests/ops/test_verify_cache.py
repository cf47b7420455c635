"""A cache held against its store: each file is found to be what it is, and what can be mended is."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from cachefs.core.cached import CachedFile, CachedPieces
from cachefs.core.errors import Fault, Refused
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import EntryId, FetchMode, Key, Listing
from cachefs.local.hashed import HashMemory
from cachefs.ops import verify_cache
from cachefs.ops.compare import Comparer, FileContent, Patience
from cachefs.ops.findings import FINE, Finding, Repair, State
from cachefs.ops.globs import chosen
from cachefs.ops.throttle import Throttle
from cachefs.ops.verify_cache import CacheCheck, Unanswered
from cachefs.remote.store import ObjectStore
from tests.engine.rig import LATER, MIB, Rig, serving
from tests.engine.watched import Gate
from tests.ops.telling import TellingStore

T = TypeVar("T")
OLD_S = 10**9
LARGE = os.urandom(3 * MIB // 2)


class FromThreads:
    """The service of a rig, asked from the threads of the job as a daemon is through its socket."""

    def __init__(self, rig: Rig) -> None:
        self._service = rig.service
        self._token = trio.lowlevel.current_trio_token()
        self.asked: list[str] = []
        self.is_gone = False

    def _ask(self, what: str, question: Callable[..., T], *arguments: object) -> T:
        self.asked.append(what)
        if self.is_gone:
            raise Unanswered("gone")
        return trio.from_thread.run_sync(question, *arguments, trio_token=self._token)

    def entries(self) -> Iterator[CachedFile]:
        after = 0
        while page := self._ask("entries", self._service.entries, after):
            for row in page:
                yield CachedFile.from_json(row)
            after = int(str(page[-1]["id"]))

    def entry(self, identity: int) -> CachedPieces | None:
        told = self._ask("entry", self._service.entry, identity)
        return None if told is None else CachedPieces.from_json(told)

    def dirty(self) -> Sequence[Mapping[str, object]]:
        return self._ask("dirty", self._service.dirty)

    def refetch(self, file: CachedFile) -> bool:
        return trio.from_thread.run(
            self._service.refetch, file.id, file.etag or "", trio_token=self._token
        )

    def store_anew(self, file: CachedFile) -> bool:
        return trio.from_thread.run(
            self._service.store_anew, file.id, file.etag or "", trio_token=self._token
        )

    def settle(self) -> None:
        async def flush() -> object:
            return await self._service.flush((), wait=True)

        trio.from_thread.run(flush, trio_token=self._token)

    def end(self) -> None:
        pass


class Run:
    """What one run has found, and what it has cost."""

    def __init__(self, found: list[Finding], comparer: Comparer, asked: list[str]) -> None:
        self.findings = {finding.path: finding for finding in found}
        assert len(self.findings) == len(found)  # one for each file
        self.counts = comparer.counts
        self.asked = asked

    @property
    def states(self) -> dict[str, State]:
        """Of what is not fine."""
        return {path: each.state for path, each in self.findings.items() if each.state not in FINE}


async def verify(
    rig: Rig,
    *,
    cached: FromThreads | None = None,
    store: ObjectStore | None = None,
    is_full: bool = False,
    repair: bool = False,
    wait: bool = False,
    include: Sequence[str] = (),
) -> Run:
    behind = cached or FromThreads(rig)
    comparer = Comparer(
        store or rig.memory,
        throttle=Throttle(None),
        patience=Patience(is_full=is_full),
        now_ns=lambda: 2 * 10**18,
    )
    for path in rig.cache.data.iterdir():
        if path.stat().st_mtime > OLD_S * 2 - 1 or path.stat().st_mtime_ns % 10**9:
            os.utime(path, (OLD_S, OLD_S))

    def run() -> list[Finding]:
        with HashMemory(rig.settings.cache_dir / "hashed.sqlite3") as memory:
            check = CacheCheck(
                rig.cache.data,
                behind,
                store or rig.memory,
                memory,
                comparer,
                chosen=chosen(include),
                threads=2,
                mends=behind,
                is_repairing=repair,
                is_settling=wait,
                now_ns=lambda: 2 * 10**18,
            )
            return [event for event in check.run() if isinstance(event, Finding)]

    found = await trio.to_thread.run_sync(run)
    return Run(found, comparer, behind.asked)


async def fill(rig: Rig, **contents: bytes) -> None:
    """Store objects and read them, so that they are cached."""
    for key, content in contents.items():
        rig.store(key, content)
    for key, content in contents.items():
        assert await rig.read(key) == content


def number_of(rig: Rig, path: str) -> EntryId:
    (row,) = (row for row in rig.service.entries(0) if row["path"] == path)
    return EntryId(int(str(row["id"])))


def flip(rig: Rig, path: str, at: int = 0) -> None:
    with rig.cache.path_of(number_of(rig, path)).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


async def test_each_file_is_found_in_its_state(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", fetch=FetchMode.DEMAND, **LATER) as rig:
        rig.store("part", LARGE)
        await fill(
            rig, same=b"same", empty=b"", rotted=LARGE, replaced=b"old", removed=b"x", both=b"y"
        )
        fh = await rig.open("part")
        await rig.read_fh(fh, 0, 10)
        await rig.close(fh)
        await rig.write("queued", b"new")
        writing = await rig.create("writing")
        await rig.fs.write(writing, 0, b"half")
        flip(rig, "rotted", MIB + 1)
        flip(rig, "both")
        rig.store("replaced", b"newer")
        rig.remove("removed")
        rig.remove("both")
        rig.store("only-there", b"z")

        run = await verify(rig)
        await rig.close(writing)

    assert run.states == {
        "rotted": State.ROTTED,
        "replaced": State.STALE,
        "removed": State.MISSING_REMOTE,
        "both": State.ROTTED,
        "queued": State.QUEUED,
        "writing": State.QUEUED,
    }
    assert run.findings["part"].state is State.PARTIAL
    assert {run.findings[name].state for name in ("same", "empty")} == {State.SAME}
    assert run.findings["rotted"].reason.startswith(f"bytes {MIB} to ")
    assert run.findings["rotted"].remote_md5 == hashlib.md5(LARGE).hexdigest()
    assert run.findings["both"].reason.endswith("and the store has no such object")
    assert run.findings["writing"].reason == "a program is writing it"
    assert run.findings["same"].local_md5 == hashlib.md5(b"same").hexdigest()


async def test_the_second_run_hashes_nothing_and_asks_only_for_listings(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", fetch=FetchMode.DEMAND) as rig:
        rig.store("part", LARGE)
        await fill(rig, a=b"a", b=LARGE, c=b"")
        fh = await rig.open("part")
        await rig.read_fh(fh, 0, 10)
        await rig.close(fh)
        first = await verify(rig)
        before = dict(rig.memory.requests)
        await rig.rename("a", "renamed")
        rig.store("renamed", b"a")
        renaming = dict(rig.memory.requests)

        second = await verify(rig)

        assert (first.states, second.states) == ({}, {})
        assert first.counts.hashed_files == 4
        assert (second.counts.hashed_files, second.counts.hashed_bytes) == (0, 0)
        asked = {
            name: count - renaming.get(name, 0)
            for name, count in rig.memory.requests.items()
            if count != renaming.get(name, 0)
        }
        assert asked == {"list": 1}
        assert set(second.asked) == {"entries"}
        assert before["list"] < rig.memory.requests["list"]


async def test_rot_that_leaves_no_trace_is_found_by_a_full_run(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await fill(rig, a=b"aaa", b=b"bbb")
        assert (await verify(rig)).states == {}
        flip(rig, "a")  # and its time is put back, as decay leaves it

        assert (await verify(rig)).states == {}
        assert (await verify(rig, is_full=True)).states == {"a": State.ROTTED}


async def test_what_can_be_mended_is(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await fill(rig, same=b"same", rotted=LARGE, removed=b"x", both=b"y", replaced=b"old")
        flip(rig, "rotted", MIB + 1)
        flip(rig, "both")
        rig.remove("removed")
        rig.remove("both")
        rig.store("replaced", b"newer")

        run = await verify(rig, repair=True, wait=True)

        repairs = {path: each.repair for path, each in run.findings.items() if each.repair}
        assert repairs == {"rotted": Repair.REFETCHED, "removed": Repair.STORED}
        assert run.states == {
            "rotted": State.ROTTED,
            "removed": State.MISSING_REMOTE,
            "both": State.ROTTED,
            "replaced": State.STALE,
        }
        assert rig.objects() == {
            "same": b"same",
            "rotted": LARGE,
            "removed": b"x",
            "replaced": b"newer",
        }
        assert await rig.read("rotted") == LARGE
        again = await verify(rig)
        # The only copy of what nobody else has any more is not given up, damaged as it is.
        assert again.states == {"both": State.ROTTED, "replaced": State.STALE}
        rig.check()


async def test_without_wait_what_is_mended_waits_for_its_upload(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await fill(rig, removed=b"x")
        rig.remove("removed")

        run = await verify(rig, repair=True)

        assert run.findings["removed"].repair is Repair.QUEUED
        assert run.findings["removed"].is_waiting
        assert not run.findings["removed"].is_out_of_sync


async def test_what_waits_is_uploaded_and_verified_where_that_is_wanted(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"a")
        await rig.write("refused", b"b")
        rig.watched.fail("before", "put", Refused("too odd"), key="refused", times=9)

        assert (await verify(rig)).states == {"a": State.QUEUED, "refused": State.QUEUED}
        run = await verify(rig, wait=True)

        assert run.states == {"refused": State.PARKED}
        assert run.findings["refused"].reason == "too odd"
        assert run.findings["a"].state is State.SAME


async def test_what_is_being_uploaded_is_said_to_be(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig, trio.open_nursery() as nursery:
        gate = Gate()
        rig.watched.on("before", "put", gate)
        await rig.write("a", b"a")
        nursery.start_soon(rig.flush)
        await gate.reached.wait()

        run = await verify(rig)
        gate.open()

    assert run.states == {"a": State.UPLOADING}
    assert run.findings["a"].is_waiting


async def test_what_is_stored_between_the_two_lists_is_not_out_of_sync(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await fill(rig, a=b"old", b=b"b")
        token = trio.lowlevel.current_trio_token()
        store = rig.memory

        class Late(TellingStore):
            """Lists what the store had before the mount wrote, and answers about objects as it is after."""

            def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:  # type: ignore[override]
                pages = list(store.list(prefix, deep=deep))
                trio.from_thread.run(rig.write, "a", b"new", trio_token=token)
                trio.from_thread.run(rig.write, "c", b"c", trio_token=token)
                yield from pages

            def fingerprint(self, key: Key) -> Fingerprint:
                return store.fingerprint(key)

        run = await verify(rig, store=Late())

        assert run.states == {}


async def test_an_etag_that_is_no_md5_is_held_against_what_the_store_tells(tmp_path: Path) -> None:
    store = TellingStore()
    async with serving(tmp_path / "c", store) as rig:
        for key in ("silent", "damaged"):
            store.add(key, b"content")
            store.tell(key, f"{key}-etag")
        assert (await rig.read("silent"), await rig.read("damaged")) == (b"content", b"content")
        store.tell("damaged", "damaged-etag", md5=hashlib.md5(b"other").hexdigest())

        run = await verify(rig)

        # Of the one nothing more is known than that its bytes are as they came.
        assert run.states == {"damaged": State.ROTTED}


async def test_a_file_that_its_disk_has_lost_is_rotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "c") as rig:
        await fill(rig, a=b"a", b=b"b")
        lost = os.fsencode(rig.cache.path_of(number_of(rig, "a")))
        chunks = FileContent.chunks

        def read(content: FileContent) -> Iterator[memoryview]:
            if content.path == lost:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return chunks(content)

        monkeypatch.setattr(FileContent, "chunks", read)
        run = await verify(rig, repair=True)

        assert run.states == {"a": State.ROTTED}
        assert run.findings["a"].reason == "its file cannot be read: Input/output error"
        assert run.findings["a"].repair is Repair.REFETCHED
        assert await rig.read("a") == b"a"


class Slow(FromThreads):
    """Fetches a file anew for as long as the job goes on."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig)
        self.has_begun, self.has_ended = threading.Event(), threading.Event()
        self.was_let_go = False

    def refetch(self, file: CachedFile) -> bool:
        self.has_begun.set()
        self.was_let_go = self.has_ended.wait(5)
        return True

    def end(self) -> None:
        self.has_ended.set()


async def test_the_job_can_be_ended_over_a_file_that_takes_long_to_be_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_cache, "BATCH", 1)
    async with serving(tmp_path / "c") as rig:
        await fill(rig, a=b"a", rotted=b"b")
        flip(rig, "rotted")
        slow = Slow(rig)

        def run() -> None:
            with (
                HashMemory(tmp_path / "hashed.sqlite3") as memory,
                closing(check(rig, slow, memory).run()) as events,
            ):
                next(events)
                assert slow.has_begun.wait(5)

        await trio.to_thread.run_sync(run)

        assert slow.was_let_go


def check(rig: Rig, cached: FromThreads, memory: HashMemory) -> CacheCheck:
    comparer = Comparer(
        rig.memory, throttle=Throttle(None), patience=Patience(), now_ns=time.time_ns
    )
    return CacheCheck(
        rig.cache.data,
        cached,
        rig.memory,
        memory,
        comparer,
        chosen=chosen(),
        threads=2,
        mends=cached,
        is_repairing=True,
    )


async def test_patterns_choose_what_is_looked_at(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await fill(rig, a=b"a", b=b"b")
        rig.remove("a")
        rig.remove("b")

        assert (await verify(rig, include=["b"])).states == {"b": State.MISSING_REMOTE}


async def test_a_file_that_leaves_the_cache_meanwhile_is_not_spoken_of(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await fill(rig, a=b"a", b=b"b")
        gone = number_of(rig, "a")
        cached = FromThreads(rig)

        def entries() -> Iterator[CachedFile]:
            found = list(FromThreads.entries(cached))
            trio.from_thread.run_sync(drop, trio_token=cached._token)
            yield from found

        def drop() -> None:
            entry = rig.cache.load(gone)
            assert entry is not None
            doomed = rig.cache.drop(entry)
            assert doomed is not None
            rig.cache.delete_file(doomed)
            rig.cache.deleted(doomed)

        cached.entries = entries  # type: ignore[method-assign]
        run = await verify(rig, cached=cached)

        assert (set(run.findings), run.states) == ({"b"}, {})


async def test_a_daemon_that_ends_ends_the_run(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await fill(rig, a=b"a")
        rig.remove("a")
        cached = FromThreads(rig)
        listed = cached.entries

        def entries() -> Iterator[CachedFile]:
            yield from listed()
            cached.is_gone = True

        cached.entries = entries  # type: ignore[method-assign]
        with pytest.raises(Unanswered):
            await verify(rig, cached=cached)


async def test_one_that_cannot_be_asked_about_is_an_error_among_findings(tmp_path: Path) -> None:
    store = TellingStore()
    async with serving(tmp_path / "c", store) as rig:
        store.add("a", b"a")
        store.add("b", b"b")
        assert (await rig.read("a"), await rig.read("b")) == (b"a", b"b")
        store.delete(Key("a"))

        def fail(key: Key) -> None:
            raise Fault("try later")

        store.before_fingerprint = fail
        run = await verify(rig)

        assert run.states == {"a": State.ERROR}
