"""The table of MD5s: exact in its names, of one version each, and told together with what the other tables know."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.extents import Extent
from cachefs.core.known_md5 import How, KnownMd5
from cachefs.core.source import Source, StoreKind
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.local.cache import SLACK, blocks_of
from cachefs.local.inodes import ROOT
from cachefs.local.md5s import Census, Md5s
from tests.local.disk import Disk

A, B = "a" * 32, "b" * 32
KNOWN = KnownMd5("photos", "sea", ETag("e-2"), 7, A, How.READ, made_ns=5, updated_ns=5)
AWKWARD = [
    "%",
    "_",
    "a%",
    "a_",
    "ab",
    "aB",
    "Ab",
    "é",
    "e\u0301",
    "\udcff",
    "a\n",
    "a/",
    "",
    "*",
    "'",
]


@pytest.fixture
def md5s(disk: Disk) -> Md5s:
    return Md5s(disk.db)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_name_is_found_as_it_is_spelled_and_no_other(md5s: Md5s, name: str) -> None:
    md5s.keep(replace(KNOWN, bucket=name, key=name))

    found = [
        (bucket, key)
        for bucket in AWKWARD
        for key in AWKWARD
        if md5s.find(bucket, key) is not None
    ]
    assert found == [(name, name)]
    assert md5s.buckets() == [("", name)]
    assert md5s.forget_some("%") + md5s.forget_some("_") == (name in "%_" and name != "")
    assert md5s.remove(name, name) == (name not in ("%", "_"))


def test_another_version_takes_the_place_of_the_one_before(md5s: Md5s) -> None:
    md5s.keep(KNOWN)
    again = replace(KNOWN, how=How.GIVEN, made_ns=9, updated_ns=9)
    md5s.keep(again)
    assert md5s.find("photos", "sea") == replace(again, made_ns=5)

    newer = replace(KNOWN, etag=ETag("f-2"), md5=B, made_ns=9, updated_ns=9)
    md5s.keep(newer)
    assert md5s.find("photos", "sea") == newer
    assert not newer.is_of(KNOWN.etag, KNOWN.size)


def test_stores_with_a_bucket_of_one_name_are_told_apart(md5s: Md5s) -> None:
    md5s.keep(replace(KNOWN, remote="one"), replace(KNOWN, remote="two", md5=B))

    assert [md5s.find("photos", "sea", remote=r) for r in ("one", "two", "")] == [
        replace(KNOWN, remote="one"),
        replace(KNOWN, remote="two", md5=B),
        None,
    ]
    assert md5s.forget_some("photos", remote="one") == 1
    assert md5s.find("photos", "sea") == replace(KNOWN, remote="two", md5=B)
    assert md5s.forget_some(None) == 1
    assert md5s.buckets() == []


def test_a_bucket_is_told_and_forgotten_a_page_at_a_time(md5s: Md5s) -> None:
    keys = sorted(f"k{number}" for number in range(1203))
    md5s.keep(*(replace(KNOWN, key=key) for key in keys), replace(KNOWN, bucket="other"))

    assert [each.key for each in md5s.all_of("photos")] == keys
    counts = []
    while count := md5s.forget_some("photos"):
        counts.append(count)
    assert counts == [500, 500, 203]
    assert md5s.find("other", "sea") is not None


# ---- together with what the other tables know ------------------------------------------------------


def listed(key: str, *, etag: str = A, size: int = 10, is_md5: bool = True) -> ObjectInfo:
    return ObjectInfo(Key(key), size, ETag(etag), mtime_ns=1, is_md5=is_md5)


def show(disk: Disk, *infos: ObjectInfo, prefixes: tuple[str, ...] = (), at_ns: int = 20) -> None:
    page = Listing(infos, tuple(map(Key, prefixes)))
    disk.inodes.merge(ROOT, page, since_ns=at_ns, now_ns=at_ns, held=())


def test_an_object_counts_once_and_its_md5_only_if_it_is_of_its_version(disk: Disk) -> None:
    show(
        disk,
        listed("plain"),
        listed("parts", etag="p-2", is_md5=False),
        listed("other", etag="n-2", is_md5=False),
        listed("unknown", etag="u-2", is_md5=False),
    )
    Md5s(disk.db).keep(
        replace(KNOWN, bucket="b", key="p/parts", etag=ETag("p-2"), size=10),
        replace(KNOWN, bucket="b", key="p/other", etag=ETag("older-2"), size=10),
        replace(KNOWN, bucket="b", key="p/never seen", updated_ns=30),
        replace(KNOWN, bucket="b", key="elsewhere"),
        replace(KNOWN, bucket="c", key="p/parts"),
    )
    census = Census(disk.db, Source(StoreKind.S3, "b", "p/"), remote="s3")

    told = census.stats("b")

    assert census.buckets() == ["b", "c"]
    assert (told.objects, told.size, told.with_md5) == (6, 40 + 2 * 7, 4)
    assert (told.oldest_ns, told.newest_ns) == (5, 30)
    assert (census.stats("c").objects, census.stats("none").objects) == (1, 0)


def test_what_is_cached_is_counted(disk: Disk) -> None:
    show(disk, listed("a"), listed("b"))
    inode = disk.inodes.find(Key("a"))
    assert inode is not None
    entry = disk.cache.create(inode.ino, etag=inode.etag, size=10, now_ns=1)
    room = disk.cache.reserve(blocks_of(Extent(0, 10)) + SLACK)
    assert room is not None
    disk.cache.release(room)
    disk.write(entry, 0, b"0123456789")
    disk.delete(disk.cache.unpin(entry, 1))

    told = Census(disk.db, Source(StoreKind.S3, "b"), remote="").stats("b")

    assert (told.cached, told.cached_bytes) == (1, entry.cost)


def test_of_a_mount_of_all_buckets_each_is_told(disk: Disk) -> None:
    show(disk, prefixes=("one/", "two/"))
    for bucket in ("one", "two"):
        inode = disk.inodes.find(Key(f"{bucket}/"))
        assert inode is not None
        page = Listing((listed(f"{bucket}/a"), listed(f"{bucket}/b")))
        disk.inodes.merge(inode.ino, page, since_ns=30, now_ns=30, held=())
    census = Census(disk.db, Source(StoreKind.S3), remote="")

    assert census.buckets() == ["one", "two"]
    assert census.stats("two").objects == 2
    seen = census.seen("two", "b")
    assert seen is not None
    assert seen.is_md5
    assert census.seen("three", "b") is None


@given(st.lists(st.sampled_from(["", "a", "%", "é", "\udcff"]), min_size=1, max_size=4))
def test_a_key_of_any_components_is_looked_up_from_the_top(parts: list[str]) -> None:
    source = Source(StoreKind.S3, "b")
    asked: list[object] = []

    class Nothing:
        def one(self, sql: str, values: tuple[object, ...] = ()) -> tuple[object, ...]:
            asked.append(values[1])
            return (len(asked) + 1, None, 0, 0)

    Census(Nothing(), source, remote="").seen("b", "/".join(parts))  # type: ignore[arg-type]

    assert asked == [part.encode("utf-8", "surrogateescape") for part in parts]


# ---- whether an ETag is the MD5 ------------------------------------------------------------------------


def is_md5(disk: Disk, key: str) -> bool:
    inode = disk.inodes.find(Key(key))
    assert inode is not None
    return bool(inode.is_md5)


def test_a_listing_that_says_so_is_believed_until_the_object_itself_says_otherwise(
    disk: Disk,
) -> None:
    show(disk, listed("a"), listed("b", is_md5=False))
    assert (is_md5(disk, "a"), is_md5(disk, "b")) == (True, False)

    show(disk, listed("a"), listed("b"), at_ns=30)  # once the probe has told more
    assert is_md5(disk, "b")

    inode = disk.inodes.find(Key("a"))
    assert inode is not None
    encrypted = replace(listed("a", is_md5=False), meta={})
    disk.inodes.learn(ROOT, encrypted, since_ns=40, now_ns=40, held=())
    show(disk, listed("a"), at_ns=50)
    assert not is_md5(disk, "a")


def test_a_version_of_ours_is_not_taken_to_be_named_by_its_md5(disk: Disk) -> None:
    show(disk, listed("a"))
    inode = disk.inodes.find(Key("a"))
    assert inode is not None
    disk.inodes.update(inode.ino, etag=B)

    assert not is_md5(disk, "a")
