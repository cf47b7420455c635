"""What every store promises: the same suite for the fakes, the directory, and the real ones."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from cachefs.core.errors import BadKey, Changed, Fault, NotFound, Refused, StoreError, Unsupported
from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.store import ObjectStore, Support, UploadStopped
from tests.contract.bodies import BytesBody, BytesSink, StoppedBody, fetched
from tests.contract.conftest import MIB

KEY = Key("directory/name")
CONTENT = bytes(range(256)) * 40
META = {"mode": "33188", "mtime": "1700000000.000000001", "cachefs-token": "abc"}
WRONG = ETag("0" * 32)


def put(
    store: ObjectStore,
    key: Key = KEY,
    content: bytes = CONTENT,
    *,
    if_match: ETag | None = None,
    meta: dict[str, str] | None = None,
    content_type: str | None = None,
) -> ObjectInfo:
    return store.put(
        key,
        BytesBody(content),
        meta=META if meta is None else meta,
        content_type=content_type,
        if_match=if_match,
    )


def everything(store: ObjectStore, prefix: str = "", *, deep: bool = True) -> list[ObjectInfo]:
    return [info for page in store.list(Key(prefix), deep=deep) for info in page.objects]


def keys_of(store: ObjectStore, prefix: str = "", *, deep: bool = True) -> list[str]:
    return sorted(info.key for info in everything(store, prefix, deep=deep))


def prefixes_of(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(found for page in store.list(Key(prefix)) for found in page.prefixes)


def test_a_probe_leaves_nothing_behind(store: ObjectStore) -> None:
    store.probe()

    assert keys_of(store) == []


def test_a_probe_is_remembered(store: ObjectStore, kind: str) -> None:
    if kind == "buckets":
        pytest.skip("each bucket is probed at its first write")
    found = store.probe()

    assert store.capabilities == found == store.probe()
    assert found.writable is True
    assert found.conditional_put is not Support.UNKNOWN


def test_a_head_says_what_was_put(store: ObjectStore) -> None:
    stored = put(store, content_type="text/x-test")

    seen = store.head(KEY)

    assert (seen.key, seen.size, seen.content_type) == (KEY, len(CONTENT), "text/x-test")
    assert seen.meta == META
    assert (stored.key, stored.size, stored.etag) == (KEY, len(CONTENT), seen.etag)
    assert abs(stored.mtime_ns - seen.mtime_ns) <= 2 * 10**9


def test_a_listing_names_the_version_that_a_head_does(store: ObjectStore) -> None:
    put(store)
    seen = store.head(KEY)

    (listed,) = everything(store)

    assert (listed.key, listed.size, listed.etag) == (KEY, seen.size, seen.etag)
    assert abs(listed.mtime_ns - seen.mtime_ns) <= 10**9


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    stored = put(store, content=b"", meta={})

    assert store.head(KEY).size == 0
    assert store.head(KEY).meta == {}
    assert fetched(store, KEY, Extent(0, 0), stored.etag) == b""


def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    with pytest.raises(NotFound):
        store.head(KEY)
    with pytest.raises(NotFound):
        fetched(store, KEY, Extent(0, 1), WRONG)
    with pytest.raises(NotFound):
        store.copy(KEY, Key("elsewhere"), if_match=WRONG, replaces=None)
    with pytest.raises(NotFound):
        store.set_meta(KEY, {}, content_type=None, if_match=WRONG)


def test_creating_what_exists_changes_nothing(store: ObjectStore) -> None:
    stored = put(store)

    with pytest.raises(Changed):
        put(store, content=b"other")

    assert fetched(store, KEY, Extent(0, len(CONTENT)), stored.etag) == CONTENT


def test_replacing_the_version_that_is_there(store: ObjectStore) -> None:
    first = put(store)

    second = put(store, content=b"other", if_match=first.etag, meta={"a": "b"})

    assert second.etag != first.etag
    assert store.head(KEY).etag == second.etag
    assert store.head(KEY).meta == {"a": "b"}
    assert fetched(store, KEY, Extent(0, 5), second.etag) == b"other"


def test_replacing_another_version_changes_nothing(store: ObjectStore) -> None:
    stored = put(store)

    with pytest.raises(Changed):
        put(store, content=b"other", if_match=WRONG)

    assert store.head(KEY).etag == stored.etag


def test_replacing_what_is_gone_creates_nothing(store: ObjectStore) -> None:
    with pytest.raises(Changed):
        put(store, if_match=WRONG)

    assert keys_of(store) == []


@pytest.mark.parametrize(
    "extent",
    [Extent(0, 10240), Extent(0, 1), Extent(10239, 10240), Extent(255, 513), Extent(7, 7)],
    ids=str,
)
def test_a_range_is_exactly_its_bytes(store: ObjectStore, extent: Extent) -> None:
    stored = put(store)
    sink = BytesSink()

    seen = store.get_range(KEY, extent, sink, if_match=stored.etag)

    assert bytes(sink.content) == CONTENT[extent.start : extent.stop]
    assert (seen.size, seen.etag, seen.meta) == (len(CONTENT), stored.etag, META)


def test_a_range_of_another_version_gives_no_bytes(store: ObjectStore) -> None:
    first = put(store)
    put(store, content=b"x" * len(CONTENT), if_match=first.etag)
    sink = BytesSink()

    with pytest.raises(Changed):
        store.get_range(KEY, Extent(0, 100), sink, if_match=first.etag)
    with pytest.raises(Changed):
        store.get_range(KEY, Extent(0, 0), sink, if_match=first.etag)

    assert not sink.content


def test_a_range_beyond_the_end_is_a_fault_and_no_absence(store: ObjectStore, kind: str) -> None:
    if kind == "retrying":
        pytest.skip("it would be asked for until the deadline")
    stored = put(store)

    with pytest.raises(Fault):
        fetched(store, KEY, Extent(len(CONTENT), len(CONTENT) + 10), stored.etag)
    with pytest.raises(Fault):
        fetched(store, KEY, Extent(0, len(CONTENT) + 10), stored.etag)


def test_what_a_sink_raises_passes_through(store: ObjectStore) -> None:
    class FullError(Exception):
        pass

    class FullSink(BytesSink):
        def write(self, data: memoryview, /) -> None:
            raise FullError

    stored = put(store)

    with pytest.raises(FullError):
        store.get_range(KEY, Extent(0, 100), FullSink(), if_match=stored.etag)

    assert fetched(store, KEY, Extent(0, 100), stored.etag) == CONTENT[:100]


def test_a_listing_shows_one_level(store: ObjectStore) -> None:
    for key in ("top", "a/1", "a/2", "a/b/3", "a/b/c/4", "z/5"):
        put(store, Key(key))

    assert keys_of(store, deep=False) == ["top"]
    assert prefixes_of(store) == ["a/", "z/"]
    assert keys_of(store, "a/", deep=False) == ["a/1", "a/2"]
    assert prefixes_of(store, "a/") == ["a/b/"]


def test_what_a_listing_tells_of_an_object_is_what_a_head_tells(store: ObjectStore) -> None:
    put(store, Key("a/1"))
    put(store, Key("a/2"), meta={})

    for page in store.list(Key("a/")):
        for told in page.objects:
            seen = store.head(told.key)
            assert (told.size, told.etag, told.mtime_ns) == (seen.size, seen.etag, seen.mtime_ns)
            assert told.meta is None or told.meta == seen.meta


def test_a_deep_listing_shows_all_below(store: ObjectStore) -> None:
    for key in ("top", "a/1", "a/b/3", "a/b/c/4", "ab"):
        put(store, Key(key))

    assert keys_of(store) == ["a/1", "a/b/3", "a/b/c/4", "ab", "top"]
    assert keys_of(store, "a/") == ["a/1", "a/b/3", "a/b/c/4"]


def test_a_listing_has_the_marker_of_the_directory_itself(store: ObjectStore) -> None:
    put(store, Key("d/"), b"", meta={"mode": "16877"}, content_type="application/x-directory")
    put(store, Key("d/sub/"), b"")

    assert keys_of(store, "d/", deep=False) == ["d/"]
    assert prefixes_of(store, "d/") == ["d/sub/"]
    assert prefixes_of(store) == ["d/"]
    assert keys_of(store) == ["d/", "d/sub/"]
    assert store.head(Key("d/")).meta == {"mode": "16877"}
    store.delete(Key("d/sub/"))
    assert keys_of(store) == ["d/"]


def test_below_nothing_there_is_no_object(store: ObjectStore) -> None:
    put(store, Key("nothings"))

    assert keys_of(store, "nothing/", deep=False) == []
    assert keys_of(store, "nothing/") == []
    assert prefixes_of(store, "nothing/") == []


def test_a_listing_of_many_pages_is_complete_and_without_doubles(store: ObjectStore) -> None:
    keys = [f"many/{number:02d}" for number in range(10)]
    for key in keys:
        put(store, Key(key), b"")
        put(store, Key(f"{key}-d/x"), b"")

    assert keys_of(store, "many/", deep=False) == keys
    assert prefixes_of(store, "many/") == [f"{key}-d/" for key in keys]
    assert len(keys_of(store)) == 20


ODD_KEYS = [
    "a b+c%20d%2F&e=f?g#h;i,j:k@l!m$n'o(p)q*r",
    '"<>{}|\\^~[]`',
    " lead and trail ",
    "ünï/ö",
    "u\u0308nfc beside nfd",
    "\u2603/\U0001f600",
    "a//b",
    "//",
    "/lead",
    "trail/",
    "dot/./x",
    "dot/../x",
    ".",
    "..",
    "../x",
    "tab\there",
    "new\nline",
    "cr\rhere",
    "bell\x07",
    "=?UTF-8?B?eA==?=",
    "n" * 255,
    "d/" * 100 + "deep",
]


@pytest.mark.parametrize("text", ODD_KEYS, ids=ascii)
def test_an_odd_key_is_carried_as_it_is_or_refused(
    store: ObjectStore, kind: str, text: str
) -> None:
    if kind == "s3-moto" and text == "new\nline":
        pytest.skip("moto has no route for it")
    key = Key(f"odd/{text}")
    stored = put(store, key)

    assert keys_of(store) == [key]
    assert key in keys_of(store, deep=False, prefix=key[: key.rfind("/") + 1])
    assert store.head(key).meta == META
    assert fetched(store, key, Extent(1, 9), stored.etag) == CONTENT[1:9]
    copied = store.copy(key, Key(f"{key}+ 2"), if_match=stored.etag, replaces=None)
    assert fetched(store, Key(f"{key}+ 2"), Extent(1, 9), copied.etag) == CONTENT[1:9]
    store.delete(key)
    assert keys_of(store) == [f"{key}+ 2"]


@pytest.mark.parametrize("text", ["/root", ".", "..", "//", "../../../etc/passwd"])
def test_a_key_does_not_leave_the_store(store: ObjectStore, text: str) -> None:
    try:
        stored = put(store, Key(text))
    except BadKey:
        return
    assert keys_of(store) == [text]
    assert fetched(store, Key(text), Extent(0, 9), stored.etag) == CONTENT[:9]


def test_a_key_that_is_too_long_is_a_bad_key(store: ObjectStore) -> None:
    with pytest.raises(BadKey):
        put(store, Key("k" * 1200))


@pytest.mark.parametrize(
    "text",
    ["plain", "ü ☃/x", "d/", "k" * 1024, "k" * 1100, "", "raw-\udcff", "nul\0"],
    ids=["plain", "text", "marker", "long", "too long", "empty", "bytes", "nul"],
)
def test_a_key_is_refused_beforehand_that_would_be_refused_by_a_put(
    store: ObjectStore, kind: str, text: str
) -> None:
    key = Key(text)
    if kind == "buckets":
        put(store, Key("opens the bucket"))
    if kind in ("scoped", "buckets") and not text:
        pytest.skip("the prefix is a key")
    try:
        store.check_key(key)
    except BadKey:
        with pytest.raises((BadKey, Unsupported)):
            put(store, key, b"")
    else:
        put(store, key, b"")


def test_a_key_that_is_no_text_is_carried_or_refused(store: ObjectStore) -> None:
    key = Key("raw-\udcff")
    try:
        put(store, key)
    except BadKey:
        with pytest.raises((BadKey, NotFound)):
            store.head(key)
        return
    assert keys_of(store) == [key]


ODD_VALUES = [
    "",
    "ünï ☃ \U0001f600",
    "two\nlines\tand\rmore",
    "  spaces around  ",
    "=?UTF-8?B?eA==?=",
    "100%25 {'a': \"b\"}",
    "bytes \udcff\udc80",
]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: ascii(value)[:24])
def test_a_value_of_metadata_is_carried_as_it_is(store: ObjectStore, value: str) -> None:
    meta = {"mode": "33188", "odd": value}
    stored = put(store, meta=meta)

    assert store.head(KEY).meta == meta
    changed = store.set_meta(KEY, {"odd": value}, content_type=None, if_match=stored.etag)
    assert store.head(KEY).meta == {"odd": value}
    store.copy(KEY, Key("copy"), if_match=changed.etag, replaces=None)
    assert store.head(Key("copy")).meta == {"odd": value}


@pytest.mark.parametrize("value", ["v" * 1500, "ü" * 400], ids=["ascii", "text"])
def test_a_long_value_of_metadata_is_carried_or_refused(store: ObjectStore, value: str) -> None:
    try:
        put(store, meta={"long": value})
    except Refused:
        assert keys_of(store) == []
        return
    assert store.head(KEY).meta == {"long": value}


def test_metadata_is_replaced_as_a_whole_and_bytes_stay(store: ObjectStore) -> None:
    first = put(store, content_type="text/x-test")

    second = store.set_meta(KEY, {"only": "this"}, content_type=None, if_match=first.etag)

    seen = store.head(KEY)
    assert (seen.meta, seen.etag, seen.size) == ({"only": "this"}, second.etag, len(CONTENT))
    assert seen.content_type == "text/x-test"
    assert second.meta == {"only": "this"}
    assert fetched(store, KEY, Extent(0, len(CONTENT)), second.etag) == CONTENT
    store.set_meta(KEY, {}, content_type="text/x-other", if_match=second.etag)
    assert store.head(KEY).content_type == "text/x-other"
    assert store.head(KEY).meta == {}


def test_metadata_of_another_version_stays(store: ObjectStore) -> None:
    put(store)

    with pytest.raises(Changed):
        store.set_meta(KEY, {}, content_type=None, if_match=WRONG)

    assert store.head(KEY).meta == META


def test_a_copy_has_the_bytes_and_the_metadata(store: ObjectStore) -> None:
    stored = put(store, content_type="text/x-test")

    copied = store.copy(KEY, Key("copy"), if_match=stored.etag, replaces=None)

    seen = store.head(Key("copy"))
    assert (copied.key, copied.size, copied.etag) == ("copy", len(CONTENT), seen.etag)
    assert (seen.meta, seen.content_type) == (META, "text/x-test")
    assert fetched(store, Key("copy"), Extent(0, len(CONTENT)), copied.etag) == CONTENT
    assert store.head(KEY).etag == stored.etag


def test_a_copy_may_have_a_type_of_its_own(store: ObjectStore) -> None:
    stored = put(store, content_type="text/x-test")

    copied = store.copy(
        KEY, Key("copy"), if_match=stored.etag, replaces=None, content_type="text/x-other"
    )

    seen = store.head(Key("copy"))
    assert (seen.content_type, seen.meta) == ("text/x-other", META)
    assert copied.content_type in (None, "text/x-other")
    assert store.head(KEY).content_type == "text/x-test"


def test_a_copy_replaces_only_what_it_was_told_to(store: ObjectStore) -> None:
    source = put(store)
    target = put(store, Key("target"), b"target")

    with pytest.raises(Changed):
        store.copy(KEY, Key("target"), if_match=source.etag, replaces=None)
    with pytest.raises(Changed):
        store.copy(KEY, Key("target"), if_match=source.etag, replaces=WRONG)
    with pytest.raises(Changed):
        store.copy(KEY, Key("target"), if_match=WRONG, replaces=target.etag)
    with pytest.raises(Changed):
        store.copy(KEY, Key("gone"), if_match=source.etag, replaces=WRONG)
    assert store.head(Key("target")).etag == target.etag

    copied = store.copy(KEY, Key("target"), if_match=source.etag, replaces=target.etag)
    assert fetched(store, Key("target"), Extent(0, 5), copied.etag) == CONTENT[:5]


def test_what_is_deleted_is_gone(store: ObjectStore) -> None:
    stored = put(store)

    store.delete(KEY, if_match=stored.etag)

    assert keys_of(store) == []
    with pytest.raises(NotFound):
        store.head(KEY)


def test_deleting_another_version_changes_nothing(store: ObjectStore) -> None:
    put(store)

    with pytest.raises(Changed):
        store.delete(KEY, if_match=WRONG)

    assert keys_of(store) == [KEY]


def test_deleting_nothing_is_done_or_not_found(store: ObjectStore) -> None:
    with suppress(NotFound):
        store.delete(KEY)


def test_a_large_object_lives_like_a_small_one(store: ObjectStore) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range(11 * MIB // 4)) + b"end"
    first = put(store, content=content, content_type="text/x-test")

    with pytest.raises(Changed):
        put(store, content=content)
    seen = store.head(KEY)
    assert (seen.size, seen.etag, seen.meta) == (len(content), first.etag, first.meta)
    assert (seen.meta or {}).items() >= META.items()
    assert everything(store)[0].etag == first.etag
    assert everything(store)[0].size == len(content)
    assert fetched(store, KEY, Extent(0, len(content)), first.etag) == content
    middle = Extent(5 * MIB - 10, 5 * MIB + 10)
    assert fetched(store, KEY, middle, first.etag) == content[middle.start : middle.stop]

    second = store.set_meta(KEY, {"a": "b"}, content_type=None, if_match=first.etag)
    third = store.copy(KEY, Key("copy"), if_match=second.etag, replaces=None)
    assert store.head(Key("copy")).meta == {"a": "b"}
    assert store.head(Key("copy")).content_type == "text/x-test"
    assert store.head(Key("copy")).etag == third.etag
    assert fetched(store, Key("copy"), Extent(0, len(content)), third.etag) == content

    fourth = put(store, content=content[1:], if_match=second.etag)
    assert fetched(store, KEY, Extent(0, 9), fourth.etag) == content[1:10]
    with pytest.raises(Changed):
        put(store, content=content, if_match=first.etag)
    store.delete(KEY)
    store.delete(Key("copy"))
    assert keys_of(store) == []


@pytest.mark.parametrize("size", [100, 3 * MIB, 11 * MIB], ids=["small", "one", "parts"])
def test_an_upload_that_is_called_off_leaves_no_trace(store: ObjectStore, size: int) -> None:
    stored = put(store)

    with pytest.raises(UploadStopped):
        store.put(KEY, StoppedBody(bytes(size), after=size // 2), meta={}, if_match=stored.etag)
    with pytest.raises(UploadStopped):
        store.put(Key("new"), StoppedBody(bytes(size), after=size // 2), meta={}, if_match=None)

    assert keys_of(store) == [KEY]
    assert store.head(KEY).etag == stored.etag
    assert put(store, content=b"next", if_match=stored.etag).size == 4


def test_threads_share_a_store(store: ObjectStore) -> None:
    def live(number: int) -> bool:
        key, content = Key(f"thread/{number}"), bytes([number]) * (1000 + number)
        stored = put(store, key, content)
        whole = fetched(store, key, Extent(0, len(content)), stored.etag)
        return whole == content and store.head(key).etag == stored.etag

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(live, range(24)))
    assert len(keys_of(store)) == 24


def test_a_body_may_be_read_while_others_are(store: ObjectStore) -> None:
    body = BytesBody(CONTENT)
    barrier = threading.Barrier(4)

    def live(number: int) -> int:
        barrier.wait(10)
        return store.put(Key(f"same/{number}"), body, meta={}, if_match=None).size

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(live, range(4))) == {len(CONTENT)}


def test_what_two_listings_see_at_once_is_the_same(store: ObjectStore) -> None:
    for number in range(8):
        put(store, Key(f"l/{number}"), b"")

    first, second = store.list(Key("l/")), store.list(Key("l/"))
    seen: tuple[list[str], list[str]] = ([], [])
    while True:
        pages = next(first, None), next(second, None)
        if pages == (None, None):
            break
        for page, keys in zip(pages, seen, strict=True):
            keys += [info.key for info in page.objects] if page else []

    assert seen[0] == seen[1]
    assert len(seen[0]) == 8


def test_every_error_is_of_the_store(store: ObjectStore) -> None:
    with pytest.raises(StoreError):
        store.copy(KEY, KEY, if_match=WRONG, replaces=WRONG)
