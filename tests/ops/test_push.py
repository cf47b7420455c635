"""A directory comes to a store: what is new or changed, as it is, and nothing of anybody else's is lost."""

import base64
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cachefs.core import metadata, xattrs
from cachefs.core.errors import (
    BadKey,
    Changed,
    Fault,
    NameTooLong,
    StoreFull,
    TimedOut,
    Unreachable,
)
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint, Part, PartMd5s, cut
from cachefs.core.types import ETag, Key, Kind, Listing, ObjectInfo
from cachefs.local.hashed import HashMemory
from cachefs.local.pushed import PushMemory
from cachefs.ops.events import Failed
from cachefs.ops.globs import chosen
from cachefs.ops.manifest import Row
from cachefs.ops.push import Deletion, Event, NothingDeleted, Push
from cachefs.ops.pushing import Action, Compare, Done, NotWritable, Pusher, Rules, Skipped
from cachefs.ops.throttle import Throttle
from cachefs.ops.tree import Found, Tree
from cachefs.remote.memory import MemoryStore
from cachefs.remote.store import Capabilities
from tests.contract.bodies import BytesBody, fetched
from tests.engine.watched import WatchedStore

LONG_AGO = 1_600_000_000
MIB = 2**20
PLAIN = Rules()


@dataclass
class World:
    """A directory, a store, and what pushes remember."""

    base: Path
    memory: MemoryStore = field(default_factory=MemoryStore)
    hashed: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        self.root = self.base / "root"
        self.root.mkdir()
        self.store = WatchedStore(self.memory)

    def write(self, path: str, content: bytes = b"content", *, at: int = LONG_AGO) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (at, at))
        return file

    def put(
        self, key: str, content: bytes = b"theirs", meta: dict[str, str] | None = None
    ) -> ETag:
        there = self.info(key)
        return self.memory.put(
            Key(key),
            BytesBody(content),
            meta=meta or {},
            if_match=None if there is None else there.etag,
        ).etag

    def putting(self, key: str, content: bytes) -> Callable[[], None]:
        """What somebody else does at some moment."""

        def put() -> None:
            self.put(key, content)

        return put

    def info(self, key: str) -> ObjectInfo | None:
        return self.objects().get(key)

    def objects(self) -> dict[str, ObjectInfo]:
        keys = [info.key for page in self.memory.list(Key(""), deep=True) for info in page.objects]
        return {key: self.memory.head(key) for key in keys}

    def content(self, key: str) -> bytes:
        info = self.memory.head(Key(key))
        return fetched(self.memory, Key(key), Extent(0, info.size), info.etag)

    def begin(
        self,
        hashes: HashMemory,
        memory: PushMemory,
        *,
        rules: Rules = PLAIN,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        deletion: Deletion | None = None,
        follow: bool = False,
        throttle: Throttle | None = None,
    ) -> Push:
        return Push(
            Tree(str(self.root), follow=follow),
            self.store,
            hashes,
            memory,
            rules,
            chosen(include, exclude),
            threads=3,
            deletion=deletion,
            throttle=throttle,
            first_pause_s=0.001,
        )

    def push(
        self,
        *,
        rows: list[Row] | None = None,
        rules: Rules = PLAIN,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        deletion: Deletion | None = None,
        follow: bool = False,
    ) -> list[Event]:
        self.store.calls.clear()
        with (
            PushMemory(self.base / "push.sqlite3") as memory,
            HashMemory(self.base / "hashed.sqlite3") as hashes,
        ):
            push = self.begin(
                hashes,
                memory,
                rules=rules,
                include=include,
                exclude=exclude,
                deletion=deletion,
                follow=follow,
            )
            events = list(push.run(rows))
        self.hashed, self.sent = push.hashed_bytes, push.sent_bytes
        return events

    def requests(self) -> Counter[str]:
        return Counter(call.operation for call in self.store.calls)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def done(events: list[Event]) -> dict[str, Action]:
    return {event.path: event.action for event in events if isinstance(event, Done)}


def failed(events: list[Event]) -> dict[str, Exception]:
    return {event.path: event.error for event in events if isinstance(event, Failed)}


# ---- what is brought ------------------------------------------------------------------------


def test_a_tree_comes_as_it_is(world: World) -> None:
    world.write("a/b/file.txt", b"text")
    (world.root / "a" / "empty").mkdir()
    (world.root / "a" / "link").symlink_to("b/file.txt")

    events = world.push()

    assert done(events) == dict.fromkeys(
        ("a/", "a/b/", "a/empty/", "a/b/file.txt", "a/link"), Action.NEW
    )
    assert failed(events) == {}
    assert set(world.objects()) == {"a/", "a/b/", "a/empty/", "a/b/file.txt", "a/link"}
    assert world.content("a/b/file.txt") == b"text"
    assert world.content("a/link") == b"b/file.txt"


@pytest.mark.parametrize("name", ["line\nbreak", "caf\udce9", " ", "~", "a~cachefs~object"])
def test_odd_names_come_too(world: World, name: str) -> None:
    world.write("a/x")
    world.write(name)

    assert failed(world.push()) == {}
    assert (name.removesuffix("~cachefs~object")) in world.objects()


def test_mode_owner_times_and_attributes_are_what_a_mount_shows(world: World) -> None:
    file = world.write("file.jpg")
    os.chown(file, 1234, 567)
    file.chmod(0o4751)  # a chown takes the first digit away
    os.utime(file, ns=(5_000_000_001, 1_234_567_890_123_456_789))
    os.setxattr(file, b"user.colour", b"\0blue")
    os.setxattr(file, b"user.cachefs.state", b"cached")

    world.push()

    info = world.objects()["file.jpg"]
    posix = metadata.decode(info.meta or {})
    assert (posix.mode, posix.uid, posix.gid) == (0o4751, 1234, 567)
    assert (posix.atime_ns, posix.mtime_ns) == (5_000_000_001, 1_234_567_890_123_456_789)
    assert xattrs.decode(info.meta or {}) == {b"user.colour": b"\0blue"}
    assert info.content_type == "image/jpeg"


def test_a_link_s_target_is_told_without_its_body(world: World) -> None:
    (world.root / "link").symlink_to("caf\udce9")

    world.push()

    posix = metadata.decode(world.objects()["link"].meta or {})
    assert (posix.kind, posix.target) == (Kind.SYMLINK, b"caf\xe9")


def test_what_links_lead_to_comes_in_their_place_where_that_is_wanted(world: World) -> None:
    (world.base / "elsewhere").write_bytes(b"far")
    (world.root / "link").symlink_to(world.base / "elsewhere")
    (world.root / "broken").symlink_to("none")

    events = world.push(follow=True)

    assert world.content("link") == b"far"
    assert set(failed(events)) == {"broken"}


def test_fifos_and_the_like_are_passed_by_and_said(world: World) -> None:
    os.mkfifo(world.root / "fifo")

    events = world.push()

    assert [event for event in events if isinstance(event, Skipped)] == [
        Skipped("fifo", "a fifo has no content")
    ]
    assert world.objects() == {}


def test_a_file_that_cannot_be_read_is_one_failure(world: World) -> None:
    world.write("x~cachefs~y")
    world.write("good")

    events = world.push()

    assert list(failed(events)) == ["x~cachefs~y"]
    assert done(events) == {"good": Action.NEW}


def test_a_name_that_the_store_cannot_bear_is_one_failure_and_asks_for_nothing(
    world: World,
) -> None:
    world.write("/".join(["n" * 250] * 4 + ["n" * 30]))

    (error,) = failed(world.push()).values()

    assert isinstance(error, NameTooLong | BadKey)
    assert world.requests()["probe"] <= 1  # of the directories above
    assert world.hashed == 0


def test_attributes_that_no_object_has_room_for_are_said_and_can_be_left_out(world: World) -> None:
    file = world.write("file")
    os.setxattr(file, b"user.large", b"x" * 3000)

    assert "metadata" in str(failed(world.push())["file"])
    assert done(world.push(rules=Rules(xattrs=False))) == {"file": Action.NEW}


# ---- what is there already ------------------------------------------------------------------


def test_a_second_push_reads_nothing_and_sends_nothing(world: World) -> None:
    for number in range(300):
        world.write(f"d{number % 7}/f{number}", os.urandom(50))
    (world.root / "link").symlink_to("d1")
    world.push()
    assert world.sent == world.hashed + len("d1") == 300 * 50 + 2

    events = world.push()

    assert set(done(events).values()) == {Action.SAME}
    assert len(done(events)) == 308
    assert (world.hashed, world.sent) == (0, 0)
    assert set(world.requests()) == {"list"}


def test_only_what_changed_is_sent(world: World) -> None:
    for number in range(5):
        world.write(f"f{number}", b"old")
    world.push()
    world.write("f1", b"new", at=LONG_AGO + 1)
    world.write("f2", b"longer")
    world.write("f9", b"fresh")

    events = world.push()

    changes = {path: action for path, action in done(events).items() if action is not Action.SAME}
    assert changes == {"f1": Action.CHANGED, "f2": Action.CHANGED, "f9": Action.NEW}
    assert [world.content(f"f{n}") for n in (0, 1, 2, 9)] == [b"old", b"new", b"longer", b"fresh"]
    assert world.hashed == len("newlongerfresh")


def test_what_others_stored_with_the_same_bytes_is_not_sent(world: World) -> None:
    world.write("file", b"same")
    world.put("file", b"same")

    assert done(world.push()) == {"file": Action.SAME}
    assert (world.sent, world.requests()["put"]) == (0, 0)


@pytest.mark.parametrize("what", ["mode", "time", "attribute", "link"])
def test_a_change_of_attributes_alone_sends_no_content(world: World, what: str) -> None:
    file = world.write("file", b"x" * 100)
    (world.root / "link").symlink_to("file")
    world.push()
    match what:
        case "mode":
            file.chmod(0o600)
        case "time":
            os.utime(file, (5, 5))
        case "attribute":
            os.setxattr(file, b"user.a", b"b")
        case "link":
            os.utime(world.root / "link", (5, 5), follow_symlinks=False)
    events = world.push()

    path = "link" if what == "link" else "file"
    assert done(events)[path] is Action.ATTRIBUTES
    assert world.requests()["put"] == world.sent == 0
    meta = world.objects()[path].meta or {}
    posix = metadata.decode(meta)
    shown = {
        "mode": posix.mode == 0o600,
        "time": posix.mtime_ns == 5 * 10**9,
        "attribute": xattrs.decode(meta) == {b"user.a": b"b"},
        "link": posix.mtime_ns == 5 * 10**9 and posix.target == b"file",
    }
    assert shown[what]
    assert set(done(world.push()).values()) == {Action.SAME}


def test_attributes_that_nobody_pushed_are_asked_for_on_demand(world: World) -> None:
    world.write("file", b"same").chmod(0o640)
    world.put("file", b"same", {"mode": "33188"})

    assert done(world.push(rules=Rules(ask_attributes=True))) == {"file": Action.ATTRIBUTES}
    assert metadata.decode(world.objects()["file"].meta or {}).mode == 0o640
    assert done(world.push(rules=Rules(ask_attributes=True))) == {"file": Action.SAME}
    assert world.requests()["head"] == 0


def test_by_size_alone_other_bytes_pass_for_the_same(world: World) -> None:
    world.write("file", b"here")
    world.put("file", b"away")

    assert done(world.push(rules=Rules(compare=Compare.SIZE))) == {"file": Action.SAME}
    assert world.hashed == 0
    assert done(world.push()) == {"file": Action.CHANGED}


def test_by_time_what_was_changed_after_the_store_took_it_is_sent(world: World) -> None:
    by_time = Rules(compare=Compare.MTIME)
    world.write("old", b"here")
    world.put("old", b"away")
    future = world.objects()["old"].mtime_ns // 10**9 + 100
    world.write("new", b"here", at=future)
    world.put("new", b"away")

    assert done(world.push(rules=by_time)) == {"old": Action.SAME, "new": Action.CHANGED}
    assert world.content("new") == b"here"


def test_a_kind_that_changed_is_another_object(world: World) -> None:
    world.write("x", b"target")
    world.push()
    (world.root / "x").unlink()
    (world.root / "x").symlink_to("target")

    world.push()
    assert metadata.decode(world.objects()["x"].meta or {}).target == b"target"

    (world.root / "x").unlink()
    world.write("x", b"other bytes")
    world.push()
    assert metadata.decode(world.objects()["x"].meta or {}).kind is Kind.FILE
    assert world.content("x") == b"other bytes"


# ---- ETags that are no MD5 ------------------------------------------------------------------


class Opaque(MemoryStore):
    """A store whose ETags tell nothing, as of objects in parts, and which tells *told* when it is asked."""

    told: dict[str, object] = {}  # noqa: RUF012

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:  # type: ignore[override]
        for page in super().list(prefix, deep=deep):
            yield replace(page, objects=tuple(map(self._veiled, page.objects)))

    def head(self, key: Key) -> ObjectInfo:
        return self._veiled(super().head(key))

    def fingerprint(self, key: Key) -> Fingerprint:
        return Fingerprint(self.head(key), **self.told)  # type: ignore[arg-type]

    def _veiled(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, etag=ETag(f"{info.etag}-2"))


CONTENT = os.urandom(3 * MIB)


@pytest.mark.parametrize("how", ["rclone", "s3cmd", "parts", "nothing"])
@pytest.mark.parametrize("is_same", [True, False])
def test_where_the_etag_is_no_md5_the_store_is_asked(
    tmp_path: Path, how: str, *, is_same: bool
) -> None:
    world = World(tmp_path, Opaque())
    stored = CONTENT if is_same else CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    md5 = BytesBody(stored).md5 or ""
    meta, told = {
        "rclone": ({"md5chksum": base64.b64encode(bytes.fromhex(md5)).decode()}, {}),
        "s3cmd": ({"s3cmd-attrs": f"uid:0/md5:{md5}/mode:5"}, {}),
        "parts": ({}, {"parts": _parts(stored)}),
        "nothing": ({}, {}),
    }[how]
    world.put("file", stored, meta)
    world.memory.told = told  # type: ignore[attr-defined]
    world.write("file", CONTENT)

    events = world.push(rules=Rules(dry_run=True))

    assert done(events) == {
        "file": Action.SAME if is_same and how != "nothing" else Action.CHANGED
    }
    assert world.requests()["fingerprint"] == 1


def _parts(content: bytes) -> tuple[Part, ...]:
    sizes = cut(len(content), MIB)
    digest = PartMd5s(sizes)
    digest.update(memoryview(content))
    return tuple(map(Part, sizes, digest.md5s))


def test_a_checksum_that_a_tool_carried_on_to_other_bytes_is_not_believed(tmp_path: Path) -> None:
    world = World(tmp_path, Opaque())
    world.write("file", b"ours")
    md5 = base64.b64encode(bytes.fromhex(BytesBody(b"ours").md5 or "")).decode()
    world.put("file", b"else", {"md5chksum": md5, metadata.TOKEN: "t.00000000"})

    assert done(world.push(rules=Rules(dry_run=True))) == {"file": Action.CHANGED}


def test_what_a_push_stored_itself_is_known_by_its_version(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write("file", CONTENT)
    world.push()
    world.memory = veiled = Opaque()
    etag = veiled.put(Key("file"), BytesBody(CONTENT), meta={}, if_match=None).etag
    with PushMemory(tmp_path / "push.sqlite3") as memory:
        stored = memory.stored(Key("file"))
        assert stored is not None
        memory.note_stored(Key("file"), replace(stored, etag=ETag(f"{etag}-2")))
    world.store = WatchedStore(veiled)
    os.utime(world.root / "file", (5, 5))  # so that it is hashed again

    assert done(world.push(rules=Rules(dry_run=True))) == {"file": Action.ATTRIBUTES}
    assert world.requests()["fingerprint"] == 0


class Manifests(MemoryStore):
    """A store whose listing shows as empty what may be more, as Swift's does of dynamic large objects."""

    large = "large"

    def overview(self, prefix: Key) -> Iterator[Listing]:
        for page in super().overview(prefix):
            yield replace(page, objects=tuple(map(self._shown, page.objects)))

    def _shown(self, info: ObjectInfo) -> ObjectInfo:
        if info.key == self.large:
            return replace(info, size=0, etag=EMPTY, is_doubtful=True)
        return replace(info, is_doubtful=info.size == 0)


EMPTY = ETag("d41d8cd98f00b204e9800998ecf8427e")


def test_what_only_looks_empty_in_a_listing_is_asked_about_once(tmp_path: Path) -> None:
    world = World(tmp_path, Manifests())
    for number in range(5):
        world.write(f"empty{number}", b"")
    world.write("large", b"in segments")
    world.put("large", b"in segments")

    first, first_requests = world.push(), world.requests()
    second = world.push()

    assert done(first)["large"] is Action.SAME
    assert first_requests["put"] == 5
    assert {action for path, action in done(second).items()} == {Action.SAME}
    assert (
        world.requests()["head"] == 1
    )  # of the manifest: its version is another than its listing says
    assert world.requests()["put"] == 0


@pytest.mark.parametrize("is_here", [True, False])
def test_what_only_looks_empty_is_replaced_and_deleted_as_what_it_is(
    tmp_path: Path, *, is_here: bool
) -> None:
    world = World(tmp_path, Manifests())
    world.write("other")
    world.put("large", b"in segments")
    if is_here:
        world.write("large", b"")

    events = world.push(deletion=Deletion())

    assert failed(events) == {}
    assert done(events)["large"] is (Action.CHANGED if is_here else Action.DELETED)
    assert ("large" in world.objects()) is is_here


# ---- others write, too ----------------------------------------------------------------------


def test_an_object_that_appears_meanwhile_is_a_conflict_and_stays(world: World) -> None:
    world.write("file", b"ours")
    world.store.on("before", "put", world.putting("file", b"theirs"), key="file")

    events = world.push()

    assert isinstance(failed(events)["file"], Changed)
    assert world.content("file") == b"theirs"


@pytest.mark.parametrize("moment", [("before", "put"), ("before", "head")])
def test_a_version_that_was_not_listed_is_never_overwritten(
    world: World, moment: tuple[str, str]
) -> None:
    world.write("file", b"ours")
    world.put("file", b"listed")
    world.store.on(*moment, world.putting("file", b"newer!"), key="file")

    events = world.push()

    assert isinstance(failed(events)["file"], Changed)
    assert world.content("file") == b"newer!"


def test_an_answer_that_was_lost_is_no_conflict(world: World) -> None:
    world.write("file", b"ours")
    world.store.fail("after", "put", Changed("it was ours"), key="file")

    assert done(world.push()) == {"file": Action.NEW}
    assert done(world.push()) == {"file": Action.SAME}


def test_what_others_put_on_an_object_outlives_new_content(world: World) -> None:
    world.write("file", b"ours")
    world.put(
        "file", b"listed", {"project": "x", ":cache-control": "no-store", "md5chksum": "eA=="}
    )

    world.push()

    meta = world.objects()["file"].meta or {}
    assert (meta["project"], meta[":cache-control"]) == ("x", "no-store")
    assert "md5chksum" not in meta


# ---- files that change while they are read --------------------------------------------------


def test_a_file_that_is_written_to_while_it_is_sent_is_sent_again(world: World) -> None:
    file = world.write("file", b"a" * (2 * MIB))

    def write() -> None:
        with file.open("r+b") as stream:
            stream.seek(MIB + 5)
            stream.write(b"b")

    world.store.on("before", "put", write, key="file")

    assert done(world.push()) == {"file": Action.NEW}
    assert world.content("file") == file.read_bytes()
    assert world.requests()["put"] == 2


def test_a_file_that_never_rests_is_a_failure_in_the_end(world: World) -> None:
    file = world.write("file", b"a" * 10)

    def write() -> None:
        with file.open("ab") as stream:
            stream.write(b"b")

    world.store.on("after", "put", write, key="file", times=99)

    events = world.push()

    assert "each time" in str(failed(events)["file"])
    assert world.requests()["put"] == 4


def test_a_file_that_vanishes_before_it_is_opened_is_passed_by(world: World) -> None:
    file = world.write("b")
    found = Tree(str(world.root)).look("b")
    assert isinstance(found, Found)
    file.unlink()

    with (
        PushMemory(world.base / "push.sqlite3") as memory,
        HashMemory(world.base / "hashed.sqlite3") as hashes,
    ):
        pusher = Pusher(
            Tree(str(world.root)),
            world.store,
            hashes,
            memory,
            PLAIN,
            throttle=Throttle(None),
            stop=threading.Event(),
            first_pause_s=0,
            likely_parts=(),
            large=32 * MIB,
        )
        assert pusher.bring(found, None) == Skipped("b", "it has vanished")


# ---- lists ----------------------------------------------------------------------------------


def test_a_list_names_exactly_what_is_pushed(world: World) -> None:
    for name in ("a", "d/b", "d/c"):
        world.write(name)
    (world.root / "d" / "e").mkdir()

    events = world.push(rows=[Row("d/b"), Row("./a"), Row("a"), Row("d/e")])

    assert done(events) == {"a": Action.NEW, "d/b": Action.NEW, "d/e/": Action.NEW}
    assert set(world.objects()) == {"a", "d/b", "d/e/"}
    assert world.requests()["list"] == 0


def test_what_a_list_names_and_is_there_already_is_not_sent(world: World) -> None:
    world.write("a")
    world.put("a", b"content")

    assert done(world.push(rows=[Row("a")])) == {"a": Action.SAME}


def test_a_list_s_md5_spares_the_hash_of_a_file_of_that_size_and_time_only(world: World) -> None:
    world.write("a", b"content")
    md5 = BytesBody(b"content").md5
    world.put("a", b"content")

    world.push(rows=[Row("a", md5=md5, size=7, mtime=LONG_AGO + 1.0)])
    assert world.hashed == 7
    world.write("a", b"content", at=LONG_AGO + 5)
    world.push(rows=[Row("a", md5=md5, size=7, mtime=LONG_AGO + 5.0)])
    assert world.hashed == 0


def test_what_a_list_names_and_is_not_here_is_a_failure_unless_the_list_says_so(
    world: World,
) -> None:
    events = world.push(rows=[Row("gone"), Row("known", state="missing_local")])

    assert isinstance(failed(events)["gone"], FileNotFoundError)
    assert [event.path for event in events if isinstance(event, Skipped)] == ["known"]


# ---- deletion -------------------------------------------------------------------------------


def extras(world: World, *keys: str) -> None:
    world.write("stays")
    for key in keys:
        world.put(key, b"" if key.endswith("/") else b"old")


def test_nothing_is_deleted_unasked(world: World) -> None:
    extras(world, "old")
    world.push()
    assert set(world.objects()) == {"stays", "old"}


def test_what_only_the_store_has_is_deleted(world: World) -> None:
    extras(world, "d/", "d/old", "d/e/", "old")
    os.mkfifo(world.root / "pipe")
    world.put("pipe")

    events = world.push(deletion=Deletion())

    assert set(world.objects()) == {"stays", "pipe"}
    assert done(events)["d/old"] is Action.DELETED


@pytest.mark.parametrize(("most", "is_deleted"), [(0, False), (1, False), (2, True)])
def test_more_than_the_bound_is_nothing_at_all(
    world: World, most: int, *, is_deleted: bool
) -> None:
    extras(world, "old1", "old2")

    events = world.push(deletion=Deletion(most))

    assert (set(world.objects()) == {"stays"}) is is_deleted
    told = [event for event in events if isinstance(event, NothingDeleted)]
    assert bool(told) is not is_deleted
    assert all(event.objects == 2 for event in told)


def test_an_empty_directory_empties_no_store(world: World) -> None:
    world.put("precious")

    events = world.push(deletion=Deletion())
    assert any(isinstance(event, NothingDeleted) for event in events)
    assert set(world.objects()) == {"precious"}

    world.push(deletion=Deletion(most=1))
    assert world.objects() == {}


def test_nothing_is_deleted_where_anything_failed(world: World) -> None:
    extras(world, "old")
    world.write("x~cachefs~y")

    events = world.push(deletion=Deletion())

    assert any(isinstance(event, NothingDeleted) for event in events)
    assert "old" in world.objects()


def test_nothing_is_deleted_after_a_listing_that_failed_half_way(tmp_path: Path) -> None:
    world = World(tmp_path, MemoryStore(page_size=2))
    extras(world, "a1", "a2", "a3", "a4")
    world.store.on("before", "list", lambda: None)
    world.store.fail("before", "list", TimedOut("half way"))

    with pytest.raises(TimedOut):
        world.push(deletion=Deletion())
    assert set(world.objects()) == {"a1", "a2", "a3", "a4"}


def test_what_somebody_wrote_meanwhile_is_not_deleted(world: World) -> None:
    extras(world, "old")
    world.store.on("before", "delete", world.putting("old", b"newer"), key="old")

    events = world.push(deletion=Deletion())

    assert isinstance(failed(events)["old"], Changed)
    assert world.content("old") == b"newer"


def test_what_came_to_the_directory_meanwhile_is_not_deleted(world: World) -> None:
    extras(world, "gone", "back", "dir/", "dir/back")

    def come_back() -> None:
        world.write("back", b"as it was")
        world.write("dir/back", b"as it was")

    world.store.on("before", "put", come_back, key="stays")

    events = world.push(deletion=Deletion())

    assert set(world.objects()) == {"stays", "back", "dir/", "dir/back"}
    assert world.content("back") == b"old"
    skipped = {event.path for event in events if isinstance(event, Skipped)}
    assert skipped == {"back", "dir/", "dir/back"}


def test_without_room_for_its_token_no_write_is_taken_for_our_own(world: World) -> None:
    crowded = {"note": "x" * (metadata.META_MAX - 10)}
    world.write("f", b"ours--")
    world.put("f", b"before", crowded)

    def write() -> None:
        world.put("f", b"theirs", crowded)

    world.store.on("before", "put", write, key="f")

    events = world.push()

    assert isinstance(failed(events)["f"], Changed)
    assert world.content("f") == b"theirs"


def test_what_is_excluded_is_neither_pushed_nor_deleted(world: World) -> None:
    world.write("keep/here")
    world.write("cache/here")
    world.put("cache/there")
    world.put("cache/keep")

    world.push(deletion=Deletion(), exclude=("cache/", "!cache/keep"))

    assert set(world.objects()) == {"keep/", "keep/here", "cache/there", "cache/keep"}


def test_only_what_is_included_is_pushed(world: World) -> None:
    world.write("d/a.jpg")
    world.write("d/b.txt")
    world.put("old.jpg")
    world.put("old.txt")

    world.push(include=("*.jpg",), deletion=Deletion())

    assert set(world.objects()) == {"d/a.jpg", "old.txt"}


# ---- a file here, a directory there ---------------------------------------------------------


def test_a_file_that_is_a_directory_at_the_store_is_said(world: World) -> None:
    world.write("a")
    world.write("a-b")
    world.put("a/x")
    world.put("a/y")

    events = world.push()

    assert list(failed(events)) == ["a"]
    assert "directory" in str(failed(events)["a"])
    assert {"a", "a/x", "a/y"} <= set(world.objects())
    world.push(deletion=Deletion())
    assert set(world.objects()) == {"a", "a-b"}


def test_a_directory_that_is_a_file_at_the_store_is_said(world: World) -> None:
    world.write("a/x")
    world.put("a")

    events = world.push()

    assert list(failed(events)) == ["a"]
    assert set(world.objects()) == {"a", "a/", "a/x"}


# ---- trial runs, ends, resumption -----------------------------------------------------------


def test_a_dry_run_changes_nothing_and_tells_what_would_be(world: World) -> None:
    world.write("new")
    world.write("changed", b"longer")
    world.put("changed", b"x")
    world.put("old")

    events = world.push(rules=Rules(dry_run=True), deletion=Deletion())

    assert done(events) == {
        "new": Action.NEW,
        "changed": Action.CHANGED,
        "old": Action.DELETED,
    }
    assert set(world.objects()) == {"changed", "old"}
    assert not set(world.requests()) & {"probe", "put", "delete", "set_meta"}


@pytest.mark.parametrize("error", [Unreachable("gone"), StoreFull("full")])
def test_a_store_that_is_not_there_ends_the_push(world: World, error: Fault | StoreFull) -> None:
    for number in range(100):
        world.write(f"f{number}")
    world.store.fail("before", "put", error, times=1000)

    with pytest.raises(type(error)):
        world.push()
    assert world.requests()["put"] < 20


def test_a_store_that_takes_nothing_is_asked_once(world: World) -> None:
    for number in range(50):
        world.write(f"f{number}")
    world.memory.probe = lambda: Capabilities(writable=False)  # type: ignore[method-assign]

    with pytest.raises(NotWritable):
        world.push()
    assert world.requests()["put"] == 0


def test_one_request_that_the_store_fails_is_one_failure(world: World) -> None:
    for number in range(10):
        world.write(f"f{number}")
    world.store.fail("before", "put", TimedOut("slow"), key="f3")

    events = world.push()

    assert list(failed(events)) == ["f3"]
    assert len(done(events)) == 9


def test_whoever_leaves_early_has_what_was_begun_paused_not_undone(world: World) -> None:
    for number in range(20):
        world.write(f"f{number:02}", b"x" * (2 * MIB))
    ended = threading.Event()

    def hold() -> None:
        assert ended.wait(10)

    with (
        PushMemory(world.base / "push.sqlite3") as memory,
        HashMemory(world.base / "hashed.sqlite3") as hashes,
    ):
        push = world.begin(hashes, memory, throttle=Throttle(4 * MIB))
        world.store.on("before", "put", hold, key="f10")
        run = push.run()
        original = push._end

        def end() -> None:
            original()
            ended.set()

        push._end = end  # type: ignore[method-assign]
        for event in run:
            if isinstance(event, Done):
                break
        run.close()  # type: ignore[attr-defined]

    assert all(world.content(key) == b"x" * (2 * MIB) for key in world.objects())
    assert 0 < len(world.objects()) < 20
    world.push()
    assert len(world.objects()) == 20


class Parted(MemoryStore):
    """A store that keeps a ledger as those do that send in parts, and can be interrupted in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.metas: list[dict[str, str]] = []
        self.abandoned: list[tuple[str, str]] = []
        self.is_failing = True

    def keep_ledger(self, ledger: object) -> None:
        self.ledger = ledger

    def put(self, key: Key, body: object, *, meta: object, **more: object) -> ObjectInfo:
        self.metas.append(dict(meta))  # type: ignore[call-overload]
        if self.is_failing:
            self.ledger.note(key, f"work-{key}")  # type: ignore[attr-defined]
            raise TimedOut("cut off")
        for work in self.ledger.noted(key):  # type: ignore[attr-defined]
            self.ledger.strike(work)  # type: ignore[attr-defined]
        return super().put(key, body, meta=meta, **more)  # type: ignore[arg-type]

    def abandon(self, key: Key, work: str) -> None:
        self.abandoned.append((key, work))
        self.ledger.strike(work)  # type: ignore[attr-defined]


def test_a_large_upload_that_was_cut_off_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    store = Parted()
    world = World(tmp_path, store)
    file = world.write("large", bytes(33 * MIB))
    assert list(failed(world.push())) == ["large"]
    os.utime(file, ns=(7 * 10**9, file.stat().st_mtime_ns))  # somebody has read it
    assert list(failed(world.push())) == ["large"]
    ctime = file.stat().st_ctime_ns

    store.is_failing = False
    assert done(world.push()) == {"large": Action.NEW}

    first, second, third = store.metas
    assert second == third
    # That utime moved the ctime: for the store it is another file.
    assert first != second
    assert metadata.decode(third).ctime_ns == ctime
    assert store.abandoned == []


def test_reading_alone_does_not_make_another_upload_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Parted()
    world = World(tmp_path, store)
    file = world.write("large", bytes(33 * MIB))
    world.push()
    # What a reader does to the time of access, without moving the ctime as utime() would.
    real = os.fstat
    fields = list(range(10))

    def later(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        if status.st_size != 33 * MIB:
            return status
        named = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        named["st_atime_ns"] += 10**9
        return os.stat_result([status[at] for at in fields], named)

    monkeypatch.setattr(os, "fstat", later)
    world.push()
    assert file.exists()

    first, second = store.metas
    assert first == second


def test_parts_of_what_a_run_is_not_about_stay(tmp_path: Path) -> None:
    store = Parted()
    world = World(tmp_path, store)
    world.write("large", bytes(33 * MIB))
    world.push()
    world.push(exclude=("large",))
    assert store.abandoned == []


def test_parts_of_what_is_here_no_more_are_removed(tmp_path: Path) -> None:
    store = Parted()
    world = World(tmp_path, store)
    file = world.write("large", bytes(33 * MIB))
    world.push()
    file.unlink()

    world.push()

    assert store.abandoned == [("large", "work-large")]
    with PushMemory(tmp_path / "push.sqlite3") as memory:
        assert memory.works() == []
        assert memory.begun_with(Key("large")) is None
