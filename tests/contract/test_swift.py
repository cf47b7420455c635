"""Swift's own ways, on a real Swift: markers, conditions that it ignores, containers that are gone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import swiftclient

from cachefs.core.errors import (
    BadKey,
    Changed,
    Denied,
    Fault,
    NoBucket,
    NotFound,
    Refused,
    StoreError,
    Unreachable,
)
from cachefs.core.extents import Extent
from cachefs.core.source import StoreOptions
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.store import Support
from cachefs.remote.swift import SwiftStore, container_names
from cachefs.remote.swift_session import Answer, Session
from tests.contract.bodies import BytesBody, BytesSink, fetched
from tests.contract.conftest import require_openstack, small
from tests.servers.swift import SwiftServer, swift
from tests.servers.tls import Tls

KEY = Key("directory/name")
DIRECTORY = "application/directory"


@pytest.fixture
def sdk(swift_server: SwiftServer) -> Iterator[swiftclient.Connection]:
    with closing(swift_server.sdk()) as connection:
        yield connection


@pytest.fixture
def store(swift_server: SwiftServer, fresh_container: str) -> Iterator[SwiftStore]:
    with closing(opened(swift_server, fresh_container)) as store:
        yield store


def opened(
    server: SwiftServer, container: str, session: Session | None = None, page_size: int = 1000
) -> SwiftStore:
    return SwiftStore(
        container,
        small(server.options()),
        environ=server.environment(),
        session=session,
        page_size=page_size,
    )


def put(
    store: SwiftStore,
    key: str = KEY,
    content: bytes = b"content",
    *,
    if_match: ETag | None = None,
    **meta: str,
) -> ObjectInfo:
    return store.put(Key(key), BytesBody(content), meta=meta, if_match=if_match)


def keys(store: SwiftStore, prefix: str = "", *, deep: bool = True) -> list[str]:
    return [info.key for page in store.list(Key(prefix), deep=deep) for info in page.objects]


def prefixes(store: SwiftStore, prefix: str = "") -> list[str]:
    return [found for page in store.list(Key(prefix)) for found in page.prefixes]


def read(store: SwiftStore, key: str) -> bytes:
    info = store.head(Key(key))
    return fetched(store, info.key, Extent(0, info.size), info.etag)


class Meddled(Session):
    """Does something of somebody else's just after a request that is like this was answered."""

    def __init__(
        self, server: SwiftServer, method: str, ends: str, meddle: Callable[[], object]
    ) -> None:
        super().__init__(server.options(), server.environment())
        self._when = method, ends
        self._meddle: Callable[[], object] | None = meddle

    def ask(self, method: str, path: str, what: str, **rest: Any) -> Answer:  # noqa: ANN401
        answer = super().ask(method, path, what, **rest)
        wanted, ends = self._when
        if self._meddle and method == wanted and path.endswith(ends):
            meddle, self._meddle = self._meddle, None
            meddle()
        return answer


def test_the_probe_sees_that_a_replace_is_not_conditional(store: SwiftStore) -> None:
    found = store.probe()

    assert found.conditional_put is Support.IGNORED
    assert found.conditional_delete is Support.IGNORED
    assert found.conditional_create is Support.ENFORCED
    assert found.copy is Support.ENFORCED
    assert found.writable
    assert any("overtaken" in note for note in found.notes)
    assert keys(store) == []


def test_who_may_only_read_is_told_that_it_is_not_writable(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
) -> None:
    sdk.post_container(fresh_container, {"X-Container-Read": "test:reader"})
    environ = {**swift_server.environment(), "ST_USER": "test:reader", "ST_KEY": "reading"}
    with closing(SwiftStore(fresh_container, StoreOptions(), environ=environ)) as reader:
        assert reader.probe().writable is False
        with pytest.raises(Denied):
            put(reader)


def test_a_writer_who_is_overtaken_just_after_its_write_is_told(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
) -> None:
    def overtake() -> None:
        sdk.put_object(fresh_container, KEY, b"theirs")

    session = Meddled(swift_server, "PUT", KEY, overtake)
    with closing(opened(swift_server, fresh_container, session)) as ours:
        with pytest.raises(Changed, match="another writer"):
            put(ours, content=b"ours")
        assert read(ours, KEY) == b"theirs"


def test_a_writer_who_is_overtaken_by_the_same_bytes_is_told_too(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
) -> None:
    def overtake() -> None:
        sdk.put_object(fresh_container, KEY, b"same", headers={"X-Object-Meta-Mode": "1"})

    session = Meddled(swift_server, "PUT", KEY, overtake)
    with (
        closing(opened(swift_server, fresh_container, session)) as ours,
        pytest.raises(Changed, match="another writer"),
    ):
        put(ours, content=b"same", mode="2")


def test_an_object_that_appears_before_a_creation_is_kept(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
) -> None:
    def appear() -> None:
        sdk.put_object(fresh_container, KEY, b"theirs")

    session = Meddled(swift_server, "HEAD", fresh_container, appear)
    with closing(opened(swift_server, fresh_container, session)) as ours:
        with pytest.raises(Changed):
            put(ours, content=b"ours")
        assert read(ours, KEY) == b"theirs"


def test_a_source_that_changes_before_its_copy_is_not_copied(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
) -> None:
    def change() -> None:
        sdk.put_object(fresh_container, KEY, b"changed")

    session = Meddled(swift_server, "HEAD", KEY, lambda: None)
    with closing(opened(swift_server, fresh_container, session)) as ours:
        first = put(ours)
        session._when, session._meddle = ("HEAD", KEY), change
        with pytest.raises(Changed):
            ours.copy(KEY, Key("copy"), if_match=first.etag, replaces=None)
        assert keys(ours) == [KEY]


def test_bytes_that_change_on_their_way_are_not_stored(store: SwiftStore) -> None:
    class Wavering(BytesBody):
        def reader(self, extent: Extent) -> Any:  # noqa: ANN401
            self.content = self.content.swapcase()
            return super().reader(extent)

    with pytest.raises(Fault):
        store.put(KEY, Wavering(b"abc"), meta={}, if_match=None)
    assert keys(store) == []


def test_bytes_that_change_on_their_way_back_are_noticed(
    swift_server: SwiftServer, fresh_container: str
) -> None:
    class Flipped(Session):
        @contextmanager
        def stream(self, *words: Any, **rest: Any) -> Iterator[Any]:  # noqa: ANN401
            with super().stream(*words, **rest) as response:
                if words[0] == "GET":
                    response.raw = Swapped(response.raw)
                yield response

    class Swapped:
        def __init__(self, raw: Any) -> None:  # noqa: ANN401
            self._raw = raw

        def readinto(self, into: memoryview) -> int:
            count: int = self._raw.readinto(into)
            into[:count] = bytes(into[:count]).swapcase()
            return count

        def read(self, size: int) -> bytes:
            content: bytes = self._raw.read(size)
            return content

        def close(self) -> None:
            self._raw.close()

        def release_conn(self) -> None:
            self._raw.release_conn()

    session = Flipped(swift_server.options(), swift_server.environment())
    with closing(opened(swift_server, fresh_container, session)) as store:
        info = put(store)
        with pytest.raises(Fault, match="bytes"):
            fetched(store, KEY, Extent(0, info.size), info.etag)


@pytest.mark.parametrize("kind", [DIRECTORY, "text/directory; charset=UTF-8"])
def test_markers_of_other_tools_are_markers(
    store: SwiftStore,
    sdk: swiftclient.Connection,
    fresh_container: str,
    kind: str,
) -> None:
    headers = {"X-Object-Meta-Mode": "16877"}
    sdk.put_object(fresh_container, "d", b"", content_type=kind, headers=headers)
    sdk.put_object(fresh_container, "d-e", b"x")
    sdk.put_object(fresh_container, "d/f", b"x")

    assert store.head(Key("d/")).meta == {"mode": "16877"}
    with pytest.raises(NotFound):
        store.head(Key("d"))
    assert keys(store) == ["d/", "d-e", "d/f"]
    assert (keys(store, deep=False), prefixes(store)) == (["d-e"], ["d/"])
    assert keys(store, "d/", deep=False) == ["d/", "d/f"]
    assert store.head(Key("d/")).etag == next(iter(store.list(Key("d/")))).objects[0].etag


def test_a_directory_is_shown_once_though_it_turns_up_on_two_pages(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
) -> None:
    sdk.put_object(fresh_container, "d", b"", content_type=DIRECTORY)
    for name in ("d-1", "d-2", "d-3", "d/f", "d/g", "e"):
        sdk.put_object(fresh_container, name, b"x")
    with closing(opened(swift_server, fresh_container, page_size=2)) as store:
        assert prefixes(store) == ["d/"]
        assert keys(store, deep=False) == ["d-1", "d-2", "d-3", "e"]


def test_our_markers_are_those_of_swift(
    store: SwiftStore,
    sdk: swiftclient.Connection,
    fresh_container: str,
) -> None:
    marker = store.put(
        Key("d/"), BytesBody(b""), meta={}, content_type="application/x-directory", if_match=None
    )

    assert sdk.head_object(fresh_container, "d")["content-type"] == DIRECTORY
    changed = store.set_meta(
        Key("d/"), {"mode": "1"}, content_type="application/x-directory", if_match=marker.etag
    )
    assert changed.meta == {"mode": "1"}
    assert sdk.head_object(fresh_container, "d")["content-type"] == DIRECTORY
    copy = store.copy(Key("d/"), Key("e/"), if_match=changed.etag, replaces=None)
    assert (copy.key, copy.meta) == ("e/", {"mode": "1"})
    assert sdk.head_object(fresh_container, "e")["content-type"] == DIRECTORY


def test_markers_in_the_spelling_of_s3_are_markers_too(
    store: SwiftStore,
    sdk: swiftclient.Connection,
    fresh_container: str,
) -> None:
    sdk.put_object(fresh_container, "d/", b"", headers={"X-Object-Meta-Mode": "1"})

    info = store.head(Key("d/"))
    assert info.meta == {"mode": "1"}
    assert (keys(store), prefixes(store), keys(store, "d/")) == (["d/"], ["d/"], ["d/"])
    put(store, "d/", b"", if_match=info.etag, mode="2")
    assert [row["name"] for row in sdk.get_container(fresh_container)[1]] == ["d/"]
    sdk.put_object(fresh_container, "d", b"", content_type=DIRECTORY)
    assert keys(store) == ["d/"]
    store.delete(Key("d/"))
    assert keys(store) == []


def test_a_file_and_a_marker_of_one_name_live_side_by_side(
    store: SwiftStore,
    sdk: swiftclient.Connection,
    fresh_container: str,
) -> None:
    put(store, "a/", b"", mode="16877")
    put(store, "a", b"file")
    assert (read(store, "a"), store.head(Key("a/")).meta) == (b"file", {"mode": "16877"})
    assert keys(store) == ["a", "a/"]
    put(store, "b", b"")
    put(store, "b/", b"", mode="16877")
    assert keys(store) == ["a", "a/", "b", "b/"]
    store.delete(Key("b"))
    assert store.head(Key("b/")).meta == {"mode": "16877"}
    put(store, "c/", b"a marker with bytes")
    assert read(store, "c/") == b"a marker with bytes"


def test_an_empty_file_never_becomes_a_directory(store: SwiftStore) -> None:
    store.put(KEY, BytesBody(b""), meta={}, content_type=DIRECTORY, if_match=None)
    assert store.head(KEY).size == 0
    marker = put(store, "d/", b"")
    store.copy(Key("d/"), Key("file"), if_match=marker.etag, replaces=None)
    assert store.head(Key("file")).size == 0


def test_dynamic_large_objects_are_shown_as_long_as_they_are(
    store: SwiftStore,
    sdk: swiftclient.Connection,
    fresh_container: str,
) -> None:
    for number in range(3):
        sdk.put_object(fresh_container, f".parts/{number}", b"%d" % number * 10)
    headers = {"X-Object-Manifest": f"{fresh_container}/.parts/", "X-Object-Meta-A": "b"}
    sdk.put_object(fresh_container, "dlo", b"", headers=headers)
    content = b"0" * 10 + b"1" * 10 + b"2" * 10

    info = store.head(Key("dlo"))
    listed = next(iter(store.list(Key("")))).objects[-1]
    assert (listed.key, listed.size, listed.etag) == ("dlo", 30, info.etag)
    assert fetched(store, Key("dlo"), Extent(5, 25), info.etag) == content[5:25]
    changed = store.set_meta(Key("dlo"), {"c": "d"}, content_type=None, if_match=info.etag)
    assert read(store, "dlo") == content
    store.copy(Key("dlo"), Key("copy"), if_match=changed.etag, replaces=None)
    store.delete(Key("dlo"))
    assert len(keys(store, ".parts/")) == 3
    for key in keys(store, ".parts/"):
        store.delete(Key(key))
    assert read(store, "copy") == content
    assert store.head(Key("copy")).meta == {"c": "d"}


def test_symlinks_of_swift_are_what_they_lead_to(
    store: SwiftStore,
    sdk: swiftclient.Connection,
    fresh_container: str,
) -> None:
    sdk.put_object(fresh_container, "target", b"content")
    sdk.put_object(
        fresh_container, "link", b"", headers={"X-Symlink-Target": f"{fresh_container}/target"}
    )
    assert read(store, "link") == b"content"
    assert next(iter(store.list(Key("")))).objects[0].size == 7


def test_what_swift_forgets_is_sent_again_with_new_metadata(
    store: SwiftStore,
    sdk: swiftclient.Connection,
    fresh_container: str,
) -> None:
    headers = {"Content-Encoding": "gzip", "X-Delete-At": "4000000000"}
    sdk.put_object(fresh_container, KEY, b"x", content_type="text/x", headers=headers)

    store.set_meta(KEY, {"a": "b"}, content_type=None, if_match=store.head(KEY).etag)

    seen = sdk.head_object(fresh_container, KEY)
    assert (seen["content-type"], seen["x-object-meta-a"]) == ("text/x", "b")
    assert (seen["content-encoding"], seen["x-delete-at"]) == ("gzip", "4000000000")


def test_a_container_that_is_gone_is_no_empty_tree(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
) -> None:
    sdk.delete_container(fresh_container)
    with closing(opened(swift_server, fresh_container)) as store:
        asks: list[Callable[[], object]] = [
            store.check,
            store.probe,
            lambda: store.head(KEY),
            lambda: keys(store),
            lambda: fetched(store, KEY, Extent(0, 1), ETag("e")),
            lambda: put(store),
            lambda: put(store, "large", bytes(7 * 2**20)),
            lambda: store.delete(KEY),
        ]
        for ask in asks:
            with pytest.raises(NoBucket):
                ask()


@pytest.mark.parametrize("key", ["raw-\udcff", "nul\0", "", "k" * 1025])
def test_names_that_swift_cannot_have_are_bad_keys(store: SwiftStore, key: str) -> None:
    with pytest.raises(BadKey):
        put(store, key)
    with pytest.raises(BadKey):
        store.head(Key(key))


def test_nothing_lies_below_a_prefix_that_no_name_can_have(store: SwiftStore) -> None:
    assert keys(store, "raw-\udcff/") == []


@pytest.mark.parametrize(
    "meta",
    [{f"n{number}": "" for number in range(91)}, {"a": "v" * 4096}, {"n" * 129: "v"}],
    ids=["items", "bytes", "name"],
)
def test_metadata_beyond_the_limits_is_refused(store: SwiftStore, meta: Mapping[str, str]) -> None:
    with pytest.raises(Refused):
        store.put(KEY, BytesBody(b"x"), meta=meta, if_match=None)
    assert keys(store) == []


def test_metadata_as_long_as_the_limits_allow_is_carried(store: SwiftStore) -> None:
    meta = {"n" * 128: "v" * 256, "long": "ü" * 300, "a_b": "", "Upper": "case"}
    store.put(KEY, BytesBody(b"x"), meta=meta, if_match=None)
    lowered = {name.lower(): value for name, value in meta.items()}
    assert store.head(KEY).meta == lowered


class Counted(Session):
    """Keeps the method of each request about an object."""

    methods: list[str]

    def ask(self, method: str, path: str, what: str, **rest: object) -> Answer:
        if path.count("/") > 1:
            self.methods.append(method)
        return super().ask(method, path, what, **rest)  # type: ignore[arg-type]


def test_a_small_object_is_created_without_a_look_before(
    swift_server: SwiftServer, fresh_container: str
) -> None:
    session = Counted(swift_server.options(), swift_server.environment())
    session.methods = []
    with closing(opened(swift_server, fresh_container, session)) as store:
        store.probe()
        session.methods.clear()
        put(store, "new")
        assert session.methods == ["PUT", "HEAD"]

        with pytest.raises(Changed):
            put(store, "new", b"other")
        assert read(store, "new") == b"content"

        store.put(Key("d/"), BytesBody(b""), meta={}, if_match=None)
        put(store, "d")  # moves the marker aside, as without the short way
        assert read(store, "d") == b"content"
        assert keys(store) == ["d", "d/", "new"]


def test_metadata_of_other_tools_is_read_as_they_meant_it(
    store: SwiftStore,
    sdk: swiftclient.Connection,
    fresh_container: str,
) -> None:
    headers = {
        "X-Object-Meta-Raw": "ü",
        "X-Object-Meta-Quoted": "%C3%BC",
        "X-Object-Meta-Tilde": "~1",
    }
    sdk.put_object(fresh_container, KEY, b"x", headers=headers)
    assert store.head(KEY).meta == {"raw": "ü", "quoted": "ü", "tilde": "~1"}


def test_containers_of_one_account_share_its_connections(
    swift_server: SwiftServer,
    fresh_container: str,
    store: SwiftStore,
    sdk: swiftclient.Connection,
) -> None:
    sdk.put_container(f"{fresh_container}-other")
    other = store.in_bucket(f"{fresh_container}-other")
    put(other, "only/here")
    assert keys(store) == []
    assert {fresh_container, f"{fresh_container}-other"} <= set(store.list_buckets())
    names = container_names(swift_server.options(), environ=swift_server.environment())
    assert names == store.list_buckets()


def test_tls_is_checked_by_the_authorities_that_were_named(tls: Tls, tmp_path: Path) -> None:
    require_openstack("swift")
    with swift(tmp_path, tls=tls) as server:
        with closing(server.sdk()) as sdk:
            sdk.put_container("c")
        with closing(opened(server, "c")) as store:
            put(store)
            assert read(store, KEY) == b"content"
        with (
            closing(SwiftStore("c", StoreOptions(), environ=server.environment())) as blind,
            pytest.raises(Unreachable),
        ):
            blind.check()


def test_an_upload_by_a_reader_that_fails_shows_what_failed(store: SwiftStore) -> None:
    class Broken(BytesBody):
        def reader(self, extent: Extent) -> Any:  # noqa: ANN401
            class Reader:
                def read(self, size: int = -1, /) -> bytes:
                    raise LookupError("the cache lost it")

            return Reader()

    with pytest.raises(LookupError, match="the cache lost it"):
        store.put(KEY, Broken(b"abc"), meta={}, if_match=None)
    assert keys(store) == []


def test_no_error_shows_a_secret(swift_server: SwiftServer) -> None:
    environ = {**swift_server.environment(), "ST_KEY": "hunter2secret"}
    with closing(SwiftStore("c", StoreOptions(), environ=environ)) as store:
        with pytest.raises(StoreError) as caught:
            store.check()
        assert "hunter2secret" not in f"{caught.value!r} {store.description}"


def test_a_sink_gets_nothing_of_another_version(store: SwiftStore) -> None:
    info = put(store)
    put(store, content=b"second", if_match=info.etag)
    sink = BytesSink()
    with pytest.raises(Changed):
        store.get_range(KEY, Extent(0, 3), sink, if_match=info.etag)
    assert not sink.content
