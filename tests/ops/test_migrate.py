"""The MD5s that are missing are found out at the least cost, and none of other bytes is kept."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from cachefs.core.errors import Denied, Unreachable
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint, Part, with_md5
from cachefs.core.known_md5 import KnownMd5
from cachefs.core.source import Source, StoreKind
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.ops.events import Failed
from cachefs.ops.migrate import Migration
from cachefs.remote.memory import MemoryStore
from cachefs.remote.store import Sink
from tests.engine.opaque import Opaque
from tests.engine.rig import store

SOURCE = Source(StoreKind.S3, "b", "p/")


class Book:
    """Where MD5s are kept."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], KnownMd5] = {}

    def find(self, bucket: str, key: str) -> KnownMd5 | None:
        return self.rows.get((bucket, key))

    def keep(self, found: KnownMd5) -> None:
        self.rows[found.bucket, found.key] = found

    def md5s(self) -> dict[str, str]:
        return {key: found.md5 for (_, key), found in self.rows.items()}


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def asked_by(memory: MemoryStore, act: Callable[[], object]) -> set[str]:
    """What the store is asked for by *act*."""
    before = dict(memory.requests)
    act()
    return {name for name, count in memory.requests.items() if count > before.get(name, 0)}


def migrated(memory: MemoryStore, book: Book, *, is_dry: bool = False) -> Migration:
    migration = Migration(memory, SOURCE, book, prefix=Key(""), threads=3, is_dry=is_dry)
    migration.failures = [each for each in migration.run() if isinstance(each, Failed)]  # type: ignore[attr-defined]
    return migration


def test_each_object_is_read_once_and_then_none() -> None:
    memory, book = Opaque(), Book()
    contents = {f"d/{number}%": b"x" * number for number in range(40)}
    for key, content in contents.items():
        store(memory, key, content)

    planned = migrated(memory, book, is_dry=True).counts
    assert (planned.objects, planned.read, planned.read_bytes) == (40, 40, sum(range(40)))
    assert memory.requests.get("get_range", 0) == 0
    assert book.rows == {}

    counts = migrated(memory, book).counts
    assert (counts.read, counts.read_bytes, counts.known) == (40, sum(range(40)), 0)
    assert book.md5s() == {f"p/{key}": md5_of(content) for key, content in contents.items()}
    assert {found.how for found in book.rows.values()} == {"migrated"}

    def again() -> None:
        counts = migrated(memory, book).counts
        assert (counts.known, counts.read, counts.told) == (40, 0, 0)

    assert asked_by(memory, again) == {"list"}


def test_what_the_listing_tells_is_not_even_asked_for() -> None:
    memory, book = MemoryStore(), Book()
    store(memory, "a", b"content")

    assert asked_by(memory, lambda: migrated(memory, book)) == {"list"}
    assert book.rows == {}


def test_what_metadata_and_segments_tell_is_not_read() -> None:
    class Segmented(Opaque):
        def fingerprint(self, key: Key) -> Fingerprint:
            said = super().fingerprint(key)
            parts = (Part(7, md5_of(b"content")),) if key == "segment" else ()
            return replace(said, parts=parts)

    memory, book = Segmented(), Book()
    store(memory, "rclone", b"content", with_md5({}, md5_of(b"content")))
    store(memory, "segment", b"content")

    counts = migrated(memory, book).counts

    assert (counts.told, counts.read) == (2, 0)
    assert memory.requests.get("get_range", 0) == 0
    assert set(book.md5s().values()) == {md5_of(b"content")}


class Plain(MemoryStore):
    """Its listings do not say that ETags are MD5s, as those of an S3 that was not probed."""

    names_md5 = True

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:  # type: ignore[override]
        for page in super().list(prefix, deep=deep):
            yield replace(
                page, objects=tuple(replace(each, is_md5=False) for each in page.objects)
            )

    def _store(self, *words: object) -> ObjectInfo:
        info = super()._store(*words)  # type: ignore[arg-type]
        if not self.names_md5:
            info = replace(info, etag=ETag(md5_of(b"not " + info.etag.encode())))
            self._objects[info.key] = replace(self._objects[info.key], info=info)
        return info


def test_etags_that_look_like_md5s_are_believed_once_one_was_held_against_its_bytes() -> None:
    memory, book = Plain(), Book()
    for number in range(30):
        store(memory, f"{number:02}", b"x" * number)

    counts = migrated(memory, book).counts
    assert (counts.known, counts.read) == (30, 0)
    assert memory.requests["fingerprint"] == 1

    assert asked_by(memory, lambda: migrated(memory, book)) == {"list"}


def test_etags_that_only_look_like_md5s_are_not_believed() -> None:
    class Liar(Plain):
        names_md5 = False

        def fingerprint(self, key: Key) -> Fingerprint:
            return replace(super().fingerprint(key), md5=None)

    memory, book = Liar(), Book()
    for number in range(5):
        store(memory, f"{number}", b"x" * number)

    assert migrated(memory, book).counts.read == 5
    # Nor because others of them were read by an earlier run.
    for number in range(5, 8):
        store(memory, f"{number}", b"x" * number)
    counts = migrated(memory, book).counts
    assert (counts.known, counts.read) == (5, 3)
    assert book.md5s() == {f"p/{number}": md5_of(b"x" * number) for number in range(8)}


class Meddled(Opaque):
    """Something happens when an object is read."""

    def __init__(self, act: Callable[["Meddled", Key], None]) -> None:
        super().__init__()
        self._act = act

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        self._act(self, key)
        return super().get_range(key, extent, into, if_match=if_match)


@pytest.mark.parametrize(("changes", "is_known"), [(1, True), (100, False)])
def test_of_a_version_that_is_replaced_while_it_is_read_nothing_is_kept(
    changes: int, is_known: bool
) -> None:
    done: list[Key] = []

    def replace_it(memory: Meddled, key: Key) -> None:
        if key == "a" and len(done) < changes:
            done.append(key)
            store(memory, "a", b"%d" % len(done))

    memory, book = Meddled(replace_it), Book()
    store(memory, "a", b"first")
    store(memory, "b", b"other")
    counts = migrated(memory, book).counts

    assert ("p/a" in book.md5s()) == is_known
    assert counts.failed == counts.changed == (not is_known)
    assert "p/b" in book.md5s()
    if is_known:
        assert book.md5s()["p/a"] == md5_of(b"1")
        assert book.rows["b", "p/a"].etag == memory.head(Key("a")).etag


def test_an_object_that_is_removed_meanwhile_is_no_failure() -> None:
    memory, book = Meddled(lambda memory, key: memory.delete(key)), Book()
    store(memory, "a", b"content")

    counts = migrated(memory, book).counts
    assert (counts.objects, counts.failed, counts.read) == (0, 0, 0)


def test_one_object_that_cannot_be_read_does_not_keep_the_others_from_it() -> None:
    def refuse(memory: Meddled, key: Key) -> None:
        if key == "a":
            raise Denied("not for you")

    memory, book = Meddled(refuse), Book()
    for key in "abc":
        store(memory, key, b"content")

    assert migrated(memory, book).counts.failed == 1
    assert set(book.md5s()) == {"p/b", "p/c"}


def test_a_store_that_is_gone_ends_the_run_with_its_word_and_what_was_found_stays() -> None:
    seen: list[Key] = []

    def vanish(memory: Meddled, key: Key) -> None:
        seen.append(key)
        if len(seen) > 10:
            raise Unreachable("gone")

    memory, book = Meddled(vanish), Book()
    for number in range(30):
        store(memory, f"{number}", b"content")

    with pytest.raises(Unreachable):
        migrated(memory, book)
    assert book.rows
