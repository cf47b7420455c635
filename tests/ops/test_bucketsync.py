"""From one bucket to another, on stores in memory."""

import base64
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cachefs.core.errors import Changed, Fault, NotFound, StoreError, Unreachable, UsageError
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.ops.bucketsync import (
    Deleted,
    Event,
    Kept,
    NothingDeleted,
    carried_out,
    compared,
    require_few,
)
from cachefs.ops.events import Failed, Progress
from cachefs.ops.globs import Chosen, chosen
from cachefs.ops.sync_body import IN_MEMORY, RemoteBody
from cachefs.ops.sync_content import Contents, Side
from cachefs.ops.sync_copy import Copied, Copier, Vanished
from cachefs.ops.sync_plan import Kind, Plan, Rule, by_listed_content, by_time, unless_cut_off
from cachefs.ops.throttle import Throttle
from cachefs.remote.file import FileStore
from cachefs.remote.memory import MemoryStore
from cachefs.remote.pages import Pages
from cachefs.remote.retry import Pace, Retrying
from cachefs.remote.scoped import Scoped
from cachefs.remote.store import Body, ObjectStore, Sink
from tests.contract.bodies import BytesBody, fetched

SECOND = 10**9
LARGE = IN_MEMORY + 5


@dataclass
class Clock:
    """Says the time to a store."""

    now_s: int = 1000

    def __call__(self) -> int:
        return self.now_s * SECOND

    def pass_by(self) -> None:
        self.now_s += 10


@dataclass
class Two:
    """Two buckets, and the clock of both."""

    out: Path
    clock: Clock = field(default_factory=Clock)
    source: MemoryStore = field(init=False)
    target: MemoryStore = field(init=False)
    begun: "Marks" = field(default_factory=lambda: Marks())

    def __post_init__(self) -> None:
        self.source = MemoryStore(page_size=3, now_ns=self.clock)
        self.target = MemoryStore(page_size=3, now_ns=self.clock)

    def sync(
        self,
        *,
        source: ObjectStore | None = None,
        target: ObjectStore | None = None,
        deleting: bool = True,
        picked: Chosen | None = None,
        is_within: bool = False,
        rule: Rule = by_time,
        ask: Rule = by_time,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[Event]:
        """Bring the target up to the source; *meanwhile* is called between the listing and the rest."""
        near, far = source or self.source, target or self.target
        copier = Copier(near, far, is_within=is_within, throttle=Throttle(None), begun=self.begun)
        rule = unless_cut_off(rule, set(self.begun.keys))
        with Plan(self.out) as plan:
            list(
                compared(near, far, plan, chosen=picked or chosen(), rule=rule, ask=ask, threads=2)
            )
            meanwhile()
            events = carried_out(
                plan, near, far, copier, stop=copier.stop, threads=3, deleting=deleting
            )
            found = [event for event in events if not isinstance(event, Progress)]
        self.clock.pass_by()
        return sorted(found, key=lambda event: (type(event).__name__, str(event)))


class Marks:
    """Which copies have begun; outlives a run that is cut off."""

    def __init__(self) -> None:
        self.keys: set[Key] = set()

    def begin(self, key: Key) -> None:
        self.keys.add(key)

    def end(self, key: Key) -> None:
        self.keys.remove(key)


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def put(store: ObjectStore, key: str, content: bytes = b"content", **meta: str) -> ETag:
    try:
        there: ETag | None = store.head(Key(key)).etag
    except NotFound:
        there = None
    return store.put(
        Key(key), BytesBody(content), meta=meta, content_type="text/x-test", if_match=there
    ).etag


def view(store: ObjectStore) -> dict[str, bytes]:
    every = [info for page in store.list(Key(""), deep=True) for info in page.objects]
    return {info.key: fetched(store, info.key, Extent(0, info.size), info.etag) for info in every}


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_after_a_sync_both_hold_the_same_and_the_next_one_does_nothing(two: Two) -> None:
    for number in range(20):
        put(two.source, f"dir/{number}", b"x" * number)
    put(two.source, "large", os.urandom(LARGE))
    put(two.source, "empty/", b"")
    put(two.target, "dir/3", b"older, and not as long")
    put(two.target, "only here")
    two.clock.pass_by()

    first, second = two.sync(), two.sync()

    assert view(two.target) == view(two.source)
    assert kinds(first) == ["Copied"] * 22 + ["Deleted"]
    assert second == []


def test_metadata_type_and_headers_are_copied(two: Two) -> None:
    for key, content in (("small", b"x"), ("large", os.urandom(LARGE))):
        meta = {"mtime": "1.0", ":cache-control": "no-cache", ":x-amz-storage-class": "COLD"}
        put(two.source, key, content, **meta)

    two.sync()

    for key in ("small", "large"):
        seen = two.target.head(Key(key))
        assert seen.content_type == "text/x-test"
        # The class is the other store's own affair.
        assert seen.meta == {"mtime": "1.0", ":cache-control": "no-cache"}


def test_what_has_no_type_gets_that_of_its_name(two: Two, tmp_path: Path) -> None:
    (tmp_path / "files" / "dir").mkdir(parents=True)
    (tmp_path / "files" / "dir" / "a.jpg").write_bytes(b"x")

    two.sync(source=FileStore(str(tmp_path / "files")))

    assert two.target.head(Key("dir/a.jpg")).content_type == "image/jpeg"
    assert two.target.head(Key("dir/")).content_type == "application/x-directory"


def test_copy_deletes_nothing(two: Two) -> None:
    put(two.target, "only here")

    assert two.sync(deleting=False) == []
    assert view(two.target) == {"only here": b"content"}


def test_what_one_server_holds_it_copies_itself(two: Two) -> None:
    put(two.source, "in/a", b"first")
    put(two.source, "in/b", os.urandom(LARGE))
    before = two.source.requests.get("get_range", 0)

    events = two.sync(
        source=Scoped(two.source, "in/"),
        target=Scoped(two.source, "out/", origin="in/"),
        is_within=True,
    )

    assert kinds(events) == ["Copied", "Copied"]
    assert two.source.requests.get("get_range", 0) == before
    assert view(two.source)["out/b"] == view(two.source)["in/b"]


def test_only_keys_that_were_chosen_are_compared_on_either_side(two: Two) -> None:
    for key in ("a.jpg", "b.txt"):
        put(two.source, key)
    for key in ("c.jpg", "d.txt"):
        put(two.target, key)

    two.sync(picked=chosen(["*.jpg"]))

    assert sorted(view(two.target)) == ["a.jpg", "d.txt"]


def test_a_target_that_changed_since_it_was_listed_is_left_as_it_is(two: Two) -> None:
    put(two.source, "both", b"source")
    put(two.source, "new", b"source")
    put(two.target, "both", b"older target")
    put(two.target, "doomed")

    def another_writer() -> None:
        for key in ("both", "new", "doomed"):
            put(two.target, key, b"written meanwhile")

    events = two.sync(meanwhile=another_writer)

    assert kinds(events) == ["Failed", "Failed", "NothingDeleted"]
    assert set(view(two.target).values()) == {b"written meanwhile"}


def test_a_doomed_target_that_changed_is_not_deleted(two: Two) -> None:
    put(two.target, "doomed")

    (event,) = two.sync(meanwhile=lambda: put(two.target, "doomed", b"new"))

    assert isinstance(event, Failed)
    assert view(two.target) == {"doomed": b"new"}


def test_what_the_source_has_again_is_not_deleted(two: Two) -> None:
    put(two.target, "back")

    events = two.sync(meanwhile=lambda: put(two.source, "back", b"again"))

    assert events == [Kept(Key("back"))]
    assert view(two.target) == {"back": b"content"}


def test_a_source_that_went_away_is_no_failure(two: Two) -> None:
    put(two.source, "gone")
    put(two.source, "large", os.urandom(LARGE))

    def away() -> None:
        two.source.delete(Key("gone"))
        two.source.delete(Key("large"))

    assert two.sync(meanwhile=away) == [Vanished(Key("gone")), Vanished(Key("large"))]
    assert view(two.target) == {}


class Moving(Scoped):
    """A source that is written to while it is read: *times* times."""

    def __init__(self, store: MemoryStore, times: int, *, after: bool = False) -> None:
        super().__init__(store, "")
        self._left = times
        self._after = after
        self._lock = threading.Lock()

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        if not self._after:
            self._move(key)
        info = super().get_range(key, extent, into, if_match=if_match)
        if self._after:
            self._move(key)
        return info

    def _move(self, key: Key) -> None:
        with self._lock:
            if self._left:
                self._left -= 1
                put(self._store, key, os.urandom(self._store.head(key).size))


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("after", [False, True])
def test_a_source_that_changes_while_it_is_copied_is_copied_again(
    two: Two, size: int, after: bool
) -> None:
    put(two.source, "busy", os.urandom(size))

    (event,) = two.sync(source=Moving(two.source, 3, after=after))

    assert isinstance(event, Copied)
    assert view(two.target) == view(two.source)


class Killed(BaseException):
    """The process ends here."""


class Cut(Moving):
    """A source that changes after it was read; the process is killed before it is looked at once more."""

    def __init__(self, two: Two) -> None:
        super().__init__(two.source, 1, after=True)
        self._clock = two.clock

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        info = super().get_range(key, extent, into, if_match=if_match)
        self._clock.pass_by()  # so that the copy is the later one
        return info

    def head(self, key: Key) -> ObjectInfo:
        raise Killed


@pytest.mark.parametrize("is_new", [True, False])
def test_a_stale_copy_that_a_killed_run_left_is_found_by_the_next_one(
    two: Two, *, is_new: bool
) -> None:
    if not is_new:
        put(two.target, "a", b"older, and not as long")
        two.clock.pass_by()
    put(two.source, "a", b"content")

    with pytest.raises(Killed):
        two.sync(source=Cut(two))
    assert view(two.target)["a"] != view(two.source)["a"]
    assert len(view(two.target)["a"]) == len(view(two.source)["a"])

    (again,) = two.sync()

    assert isinstance(again, Copied)
    assert again.reason == "cut off"
    assert view(two.target) == view(two.source)
    assert two.begun.keys == set()
    assert two.sync() == []


def test_a_source_that_never_stands_still_is_a_failure(two: Two) -> None:
    put(two.source, "busy")

    (event,) = two.sync(source=Moving(two.source, 1000))

    assert isinstance(event, Failed)
    assert view(two.target) == {}


def test_nothing_is_deleted_unless_every_copy_succeeded(two: Two) -> None:
    put(two.source, "bad")
    put(two.target, "only here")

    class Refusing(Scoped):
        def put(
            self,
            key: Key,
            body: Body,
            *,
            meta: object,
            content_type: str | None = None,
            if_match: ETag | None,
        ) -> ObjectInfo:
            raise Fault("no")

    failed, kept = two.sync(target=Refusing(two.target, ""))

    assert isinstance(failed, Failed)
    assert kept == NothingDeleted(1)
    assert view(two.target) == {"only here": b"content"}


class _Torn(Pages):
    def __init__(self, pages: Iterator[Listing]) -> None:
        self._pages = pages
        self._count = 0

    def __next__(self) -> Listing:
        self._count += 1
        if self._count > 1:
            raise Fault("cut")
        return next(self._pages)


class Torn(Scoped):
    """A store whose listing fails after its first page."""

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        return _Torn(iter(super().list(prefix, deep=deep)))


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_listing_that_fails_half_way_changes_nothing(two: Two, side: str) -> None:
    for number in range(5):
        put(two.source, f"s{number}")
        put(two.target, f"t{number}")
    before = view(two.target)

    source = Torn(two.source, "") if side == "source" else None
    target = Torn(two.target, "") if side == "target" else None
    with pytest.raises(Fault, match="cut"):
        two.sync(source=source, target=target)

    assert view(two.target) == before


def test_more_than_may_be_deleted_is_refused_as_a_whole(two: Two, tmp_path: Path) -> None:
    for number in range(3):
        put(two.target, f"{number}")
    with Plan(tmp_path) as plan:
        list(compared(two.source, two.target, plan, chosen=chosen(), rule=by_time))

        require_few(plan, 3, is_meant=True)
        with pytest.raises(UsageError, match="3 objects would be deleted"):
            require_few(plan, 2, is_meant=True)


def test_a_store_that_is_gone_for_good_ends_it_all_soon(two: Two) -> None:
    for number in range(300):
        put(two.source, f"{number:03}")
    asked = 0

    class Gone(Scoped):
        def put(self, *_: object, **__: object) -> ObjectInfo:
            nonlocal asked
            asked += 1
            raise Unreachable("nobody there")

    with pytest.raises(Unreachable):
        two.sync(target=Gone(two.target, ""))

    assert asked < 100


class Counting(Scoped):
    """A source that counts the bytes that were read of it."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, "")
        self.read = 0

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        self.read += extent.length
        return super().get_range(key, extent, into, if_match=if_match)


class Parted(Scoped):
    """A target that reads each part of a body three times, the parts in several threads, the last first."""

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: object,
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        part = 2 * 2**20
        content = bytearray(body.size)

        def read(start: int) -> None:
            extent = Extent(start, min(start + part, body.size))
            reader = body.reader(extent)
            for _ in range(3):
                reader.seek(0)
                content[extent.start : extent.stop] = reader.read()

        threads = [
            threading.Thread(target=read, args=(start,))
            for start in reversed(range(0, body.size, part))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        whole = BytesBody(bytes(content))
        assert isinstance(meta, dict)
        return super().put(key, whole, meta=meta, content_type=content_type, if_match=if_match)


def test_a_large_object_is_read_once_however_often_its_parts_are(two: Two) -> None:
    content = os.urandom(11 * 2**20 + 1)
    put(two.source, "large", content)
    source = Counting(two.source)

    (event,) = two.sync(source=source, target=Parted(two.target, ""))

    assert isinstance(event, Copied)
    assert source.read == len(content)
    assert view(two.target)["large"] == content


class Damaging(Counting):
    """A source that gives one wrong byte of what is large."""

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        class Flipping:
            def write(self, data: memoryview, /) -> None:
                into.write(memoryview(bytes([data[0] ^ 1]) + bytes(data[1:])))

            def restart(self) -> None:
                into.restart()

        return super().get_range(key, extent, Flipping(), if_match=if_match)


def test_a_large_object_that_came_otherwise_than_its_md5_says_is_not_kept(two: Two) -> None:
    put(two.source, "large", os.urandom(LARGE))

    (event,) = two.sync(source=Damaging(two.source))

    assert isinstance(event, Failed)
    assert "otherwise than its source says" in str(event.error)
    assert view(two.target) == {}


def test_an_answer_that_was_lost_is_no_other_writer(two: Two) -> None:
    put(two.source, "small")
    put(two.source, "large", os.urandom(LARGE))
    lost = set[str]()

    class Losing(Scoped):
        def put(self, key: Key, *args: object, **said: object) -> ObjectInfo:
            info: ObjectInfo = super().put(key, *args, **said)  # type: ignore[arg-type]
            if key not in lost:
                lost.add(key)
                raise Fault("the answer was lost")
            return info

    pace = Pace(wait=lambda _: False)
    events = two.sync(target=Retrying(Losing(two.target, ""), timeout_s=60, pace=pace))

    assert kinds(events) == ["Copied", "Copied"]
    assert lost == {"small", "large"}


class Untold(Scoped):
    """A source that tells nothing of the content of its objects."""

    def fingerprint(self, key: Key) -> Fingerprint:
        return Fingerprint(self.head(key))


def test_an_object_of_unknown_md5_is_copied_all_the_same(two: Two) -> None:
    put(two.source, "large", os.urandom(LARGE))

    (event,) = two.sync(source=Untold(two.source, ""))

    assert isinstance(event, Copied)
    assert view(two.target) == view(two.source)


def test_a_near_source_is_hashed_first_so_that_its_md5_goes_along(two: Two) -> None:
    content = os.urandom(LARGE)
    put(two.source, "large", content)
    told: list[str | None] = []

    class Noting(Scoped):
        def put(self, key: Key, body: Body, **said: object) -> ObjectInfo:
            told.append(body.md5)
            return super().put(key, body, **said)  # type: ignore[arg-type]

    copier = Copier(
        Untold(two.source, ""),
        Noting(two.target, ""),
        is_within=False,
        hash_first=True,
        throttle=Throttle(None),
        begun=two.begun,
    )
    with Plan(two.out) as plan:
        list(compared(two.source, two.target, plan, chosen=chosen(), rule=by_time))
        (wanted,) = plan.differences(Kind.NEW)

    assert isinstance(copier.copied(wanted), Copied)
    assert told == [hashlib.md5(content, usedforsecurity=False).hexdigest()]


def test_a_source_that_does_not_answer_is_said_as_such(two: Two) -> None:
    put(two.source, "large", os.urandom(LARGE))

    class Silent(Scoped):
        def get_range(self, *_: object, **__: object) -> ObjectInfo:
            raise Unreachable("the source is away")

    (event,) = two.sync(source=Silent(two.source, ""))

    assert isinstance(event, Failed)
    assert isinstance(event.error, StoreError)
    assert not isinstance(event.error, Changed)
    assert "the source is away" in str(event.error)


def test_a_job_that_is_stopped_ends_in_the_middle_of_an_object(two: Two) -> None:
    put(two.source, "large", os.urandom(LARGE))
    copier: Copier

    taken: list[int] = []

    class Stopping(Scoped):
        def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
            class Noting:
                def write(self, data: memoryview, /) -> None:
                    copier.stop()
                    taken.append(len(data))
                    into.write(data)

                def restart(self) -> None:
                    into.restart()

            return super().get_range(key, extent, Noting(), if_match=if_match)

    source = Stopping(two.source, "")
    copier = Copier(source, two.target, is_within=False, throttle=Throttle(1), begun=two.begun)
    with Plan(two.out) as plan:
        list(compared(two.source, two.target, plan, chosen=chosen(), rule=by_time))
        (wanted,) = plan.differences(Kind.NEW)

    assert copier.copied(wanted) is None
    assert len(taken) == 1
    assert view(two.target) == {}


def test_what_one_reader_has_fetched_another_reads_as_long_as_the_first_is_there(two: Two) -> None:
    put(two.source, "large", os.urandom(LARGE))
    source = Counting(two.source)
    told = source.fingerprint(Key("large"))
    body = RemoteBody(source, told, throttle=Throttle(None), ended=threading.Event())
    extent = Extent(0, LARGE)

    first = body.reader(extent)
    content = first.read()

    assert body.reader(extent).read() == content
    assert source.read == LARGE
    del first
    body.reader(extent).read()
    assert source.read == 2 * LARGE  # nothing is kept that nobody reads


def by_content(
    two: Two, source: ObjectStore, target: ObjectStore, *, is_near: bool
) -> list[Event]:
    asked = Contents(Side(source, is_near=False), Side(target, is_near=is_near))
    return two.sync(
        source=source, target=target, rule=by_listed_content, ask=asked.differs, deleting=False
    )


def test_by_content_what_is_the_same_is_not_copied_however_new_it_is(two: Two) -> None:
    put(two.target, "same", b"x")
    put(two.target, "other", b"x")
    two.clock.pass_by()
    put(two.source, "same", b"x")
    put(two.source, "other", b"y")
    two.clock.pass_by()
    put(two.target, "other", b"z")  # newer, and as long

    (event,) = by_content(two, two.source, two.target, is_near=False)

    assert isinstance(event, Copied)
    assert (event.key, event.reason) == ("other", "content")


class Otherwise(Scoped):
    """A store with ETags of its own, which tells content by stored MD5s or not at all."""

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        for page in super().list(prefix, deep=deep):
            yield Listing(tuple(self._own(info) for info in page.objects))

    def fingerprint(self, key: Key) -> Fingerprint:
        return Fingerprint(self._own(super().head(key)))

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        return super().get_range(key, extent, into, if_match=ETag(if_match.removesuffix("-own")))

    def _own(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, etag=ETag(f"{info.etag}-own"))


@pytest.mark.parametrize("told", ["metadata", "bytes"])
def test_where_etags_tell_nothing_stored_md5s_do_or_bytes_that_are_near(
    two: Two, told: str
) -> None:
    md5 = base64.b64encode(hashlib.md5(b"same", usedforsecurity=False).digest()).decode()
    meta = {"md5chksum": md5} if told == "metadata" else {}
    put(two.target, "same", b"same", **meta)
    put(two.target, "other", b"1234", **meta)
    two.clock.pass_by()
    put(two.source, "same", b"same")
    put(two.source, "other", b"5678")

    events = by_content(two, two.source, Otherwise(two.target, ""), is_near=told == "bytes")

    assert [event.path for event in events if isinstance(event, Failed)] == ["other"]
    assert len(events) == 1  # it was chosen; that it is refused is of this store's own ETags


def test_where_nothing_tells_the_times_do(two: Two) -> None:
    put(two.target, "later")
    two.clock.pass_by()
    put(two.source, "later", b"CONTENT")
    put(two.source, "earlier", b"CONTENT")
    two.clock.pass_by()
    put(two.target, "earlier")

    events = by_content(two, two.source, Otherwise(two.target, ""), is_near=False)

    assert [event.path for event in events if isinstance(event, Failed)] == ["later"]


def test_deleted_bytes_are_told(two: Two) -> None:
    put(two.target, "only here", b"12345")

    assert two.sync() == [Deleted(Key("only here"), 5)]
