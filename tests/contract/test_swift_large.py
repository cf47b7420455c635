"""Large objects on a real Swift: whose the segments are, and when they go."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import swiftclient

from cachefs.core.errors import Changed, Denied, Fault, NotFound, Refused, Unsupported
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import with_md5
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote import swift_large
from cachefs.remote.store import Reader, UploadStopped
from cachefs.remote.swift import SwiftStore
from cachefs.remote.swift_session import Answer, Session
from cachefs.remote.works import MemoryLedger
from tests.contract.bodies import BytesBody, StoppedBody, fetched
from tests.servers.swift import SwiftServer

KEY = Key("dir/large")
LIMIT = 1000
CONTENT = bytes(range(256)) * 17
SEGMENTS = 5


@pytest.fixture
def sdk(swift_server: SwiftServer) -> Iterator[swiftclient.Connection]:
    with closing(swift_server.sdk()) as connection:
        yield connection


@pytest.fixture
def store(swift_server: SwiftServer, fresh_container: str) -> Iterator[SwiftStore]:
    with closing(opened(swift_server, fresh_container)) as store:
        yield store


@pytest.fixture
def segments(sdk: swiftclient.Connection, fresh_container: str) -> Callable[[], set[str]]:
    """The names of all segments that are there."""

    def names() -> set[str]:
        container = f"{fresh_container}_segments"
        if container not in {row["name"] for row in sdk.get_account()[1]}:
            return set()
        return {row["name"] for row in sdk.get_container(container)[1]}

    return names


def opened(server: SwiftServer, container: str, session: Session | None = None) -> SwiftStore:
    options = replace(server.options(), segment_limit=LIMIT, transfers=3)
    return SwiftStore(container, options, environ=server.environment(), session=session)


def put(
    store: SwiftStore, content: bytes = CONTENT, *, if_match: ETag | None = None
) -> ObjectInfo:
    return store.put(
        KEY, BytesBody(content), meta={"a": "b"}, content_type="text/x", if_match=if_match
    )


def read(store: SwiftStore, key: Key = KEY) -> bytes:
    info = store.head(key)
    return fetched(store, key, Extent(0, info.size), info.etag)


def test_a_long_object_is_one_manifest_and_its_segments(
    store: SwiftStore,
    segments: Callable[[], set[str]],
    sdk: swiftclient.Connection,
    fresh_container: str,
) -> None:
    info = put(store)

    assert len(segments()) == SEGMENTS
    assert all(name.startswith(f"{KEY}/cachefs/") for name in segments())
    (listed,) = next(iter(store.list(Key(""), deep=True))).objects
    assert (listed.size, listed.etag, info.size) == (len(CONTENT), info.etag, len(CONTENT))
    assert info.etag == store.head(KEY).etag
    assert read(store) == CONTENT
    assert sdk.get_object(fresh_container, KEY)[1] == CONTENT


def test_old_segments_go_when_the_new_manifest_stands_and_not_before(
    store: SwiftStore, segments: Callable[[], set[str]]
) -> None:
    class Watching(BytesBody):
        def reader(self, extent: Extent) -> Reader:  # type: ignore[override]
            assert old <= segments()
            assert read(store) == CONTENT
            return super().reader(extent)

    first = put(store)
    old = segments()
    second = store.put(KEY, Watching(CONTENT[::-1]), meta={}, if_match=first.etag)

    assert read(store) == CONTENT[::-1]
    assert len(segments()) == SEGMENTS
    assert not segments() & old
    put(store, b"short", if_match=second.etag)
    assert segments() == set()


def test_an_upload_that_is_called_off_takes_its_segments_back(
    store: SwiftStore, segments: Callable[[], set[str]]
) -> None:
    first = put(store)
    old = segments()
    for after in (0, 1_500, 6_000):
        with pytest.raises(UploadStopped):
            store.put(KEY, StoppedBody(CONTENT, after=after), meta={}, if_match=first.etag)
        assert segments() == old
    assert read(store) == CONTENT
    assert store.head(KEY) == first


def test_a_deleted_object_takes_its_segments_along(
    store: SwiftStore, segments: Callable[[], set[str]]
) -> None:
    info = put(store)
    with pytest.raises(Changed):
        store.delete(KEY, if_match=ETag("0" * 32))
    assert len(segments()) == SEGMENTS
    store.delete(KEY, if_match=info.etag)
    assert segments() == set()


def test_a_copy_has_segments_of_its_own(
    store: SwiftStore, segments: Callable[[], set[str]]
) -> None:
    info = put(store)
    copy = store.copy(KEY, Key("copy"), if_match=info.etag, replaces=None)
    assert len(segments()) == 2 * SEGMENTS
    meta = with_md5({"a": "b"}, hashlib.md5(CONTENT, usedforsecurity=False).hexdigest())
    assert (copy.etag, copy.meta, copy.content_type) == (info.etag, meta, "text/x")
    assert store.fingerprint(Key("copy")).stored_md5 == store.fingerprint(KEY).stored_md5
    store.delete(KEY)
    assert len(segments()) == SEGMENTS
    assert read(store, Key("copy")) == CONTENT
    store.copy(Key("copy"), Key("copy"), if_match=copy.etag, replaces=copy.etag)
    assert len(segments()) == SEGMENTS
    assert read(store, Key("copy")) == CONTENT


def test_a_copy_that_may_not_be_made_leaves_no_segments(
    store: SwiftStore, segments: Callable[[], set[str]]
) -> None:
    info = put(store)
    other = store.put(Key("other"), BytesBody(b"x"), meta={}, if_match=None)
    with pytest.raises(Changed):
        store.copy(KEY, Key("other"), if_match=info.etag, replaces=None)
    with pytest.raises(Changed):
        store.copy(KEY, Key("third"), if_match=other.etag, replaces=None)
    assert len(segments()) == SEGMENTS


def test_new_metadata_keeps_segments_and_sizes(
    store: SwiftStore, segments: Callable[[], set[str]]
) -> None:
    info = put(store)
    changed = store.set_meta(KEY, {"c": "d"}, content_type=None, if_match=info.etag)
    assert (changed.size, changed.etag, changed.meta) == (len(CONTENT), info.etag, {"c": "d"})
    (listed,) = next(iter(store.list(Key(""), deep=True))).objects
    assert (listed.size, listed.etag) == (len(CONTENT), info.etag)
    assert read(store) == CONTENT


def test_segments_that_are_objects_in_their_own_right_stay(
    store: SwiftStore, sdk: swiftclient.Connection, fresh_container: str
) -> None:
    sdk.put_object(fresh_container, "part", b"visible")
    manifest = [
        {"path": f"/{fresh_container}/part"},
        {"path": f"/{fresh_container}/part", "range": "0-2"},
        {"data": base64.b64encode(b"inline").decode()},
    ]
    sdk.put_object(
        fresh_container, "slo", json.dumps(manifest), query_string="multipart-manifest=put"
    )
    info = store.head(Key("slo"))
    assert read(store, Key("slo")) == b"visiblevisinline"
    copy = store.copy(Key("slo"), Key("copy"), if_match=info.etag, replaces=None)
    store.delete(Key("slo"), if_match=info.etag)
    assert read(store, Key("part")) == b"visible"
    store.delete(Key("part"))
    assert fetched(store, Key("copy"), Extent(0, 16), copy.etag) == b"visiblevisinline"


class Meddled(Session):
    """Lets a test act, or lose the answer, after a request that it names."""

    def __init__(
        self,
        server: SwiftServer,
        is_meant: Callable[[str, str, str], bool],
        act: Callable[[], None],
    ) -> None:
        super().__init__(replace(server.options(), transfers=3), server.environment())
        self._is_meant = is_meant
        self._act: Callable[[], None] | None = act

    def ask(self, method: str, path: str, what: str, **rest: object) -> Answer:
        answer = super().ask(method, path, what, **rest)  # type: ignore[arg-type]
        if self._act and self._is_meant(method, path, what):
            act, self._act = self._act, None
            act()
        return answer


def is_manifest_put(method: str, path: str, what: str) -> bool:
    return method == "PUT" and what.startswith("storing the manifest")


def test_who_is_overtaken_takes_its_segments_back(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
    segments: Callable[[], set[str]],
) -> None:
    def overtake() -> None:
        assert len(segments()) == SEGMENTS
        sdk.put_object(fresh_container, KEY, b"theirs")

    session = Meddled(swift_server, is_manifest_put, overtake)
    with closing(opened(swift_server, fresh_container, session)) as store:
        with pytest.raises(Changed, match="another writer"):
            put(store)
        assert read(store) == b"theirs"
    assert segments() == set()


def test_a_lost_answer_never_costs_a_segment_that_may_be_needed(
    swift_server: SwiftServer, fresh_container: str, segments: Callable[[], set[str]]
) -> None:
    def lose() -> None:
        raise Fault("the answer was lost")

    session = Meddled(swift_server, is_manifest_put, lose)
    with closing(opened(swift_server, fresh_container, session)) as store:
        with pytest.raises(Fault):
            put(store)
        assert read(store) == CONTENT
        assert len(segments()) == SEGMENTS


def test_a_delete_whose_answer_was_lost_finishes_when_it_is_repeated(
    swift_server: SwiftServer, fresh_container: str, segments: Callable[[], set[str]]
) -> None:
    def lose() -> None:
        raise Fault("the answer was lost")

    session = Meddled(swift_server, lambda method, path, _: method == "DELETE", lose)
    with closing(opened(swift_server, fresh_container, session)) as store:
        put(store)
        with pytest.raises(Fault):
            store.delete(KEY)
        with pytest.raises(NotFound):
            store.delete(KEY)
    assert segments() == set()


def test_a_segment_that_fails_stops_the_others_and_takes_all_back(
    swift_server: SwiftServer, fresh_container: str, segments: Callable[[], set[str]]
) -> None:
    def fail() -> None:
        raise Fault("no more")

    def is_third(method: str, path: str, what: str) -> bool:
        return what.startswith("storing segment 2")

    session = Meddled(swift_server, is_third, fail)
    with closing(opened(swift_server, fresh_container, session)) as store:
        with pytest.raises(Fault, match="no more"):
            put(store)
        with pytest.raises(NotFound):
            store.head(KEY)
    assert segments() == set()


def test_a_source_replaced_while_it_is_copied_is_not_copied(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
    segments: Callable[[], set[str]],
) -> None:
    def is_copy(method: str, path: str, what: str) -> bool:
        return what.startswith("copying segment 4")

    def change() -> None:
        sdk.put_object(fresh_container, KEY, b"theirs")

    session = Meddled(swift_server, is_copy, change)
    with closing(opened(swift_server, fresh_container, session)) as store:
        info = put(store)
        with pytest.raises(Changed):
            store.copy(KEY, Key("copy"), if_match=info.etag, replaces=None)
        with pytest.raises(NotFound):
            store.head(Key("copy"))


def test_a_store_that_does_not_tell_the_segments_keeps_them(
    swift_server: SwiftServer, fresh_container: str, segments: Callable[[], set[str]]
) -> None:
    class Silent(Session):
        def ask(self, method: str, path: str, what: str, **rest: object) -> Answer:
            answer = super().ask(method, path, what, **rest)  # type: ignore[arg-type]
            return replace(answer, content=b"") if what.startswith("reading the man") else answer

    session = Silent(swift_server.options(), swift_server.environment())
    with closing(opened(swift_server, fresh_container, session)) as store:
        with pytest.raises(Unsupported):
            put(store)
        assert read(store) == CONTENT
        assert len(segments()) == SEGMENTS


def test_what_is_longer_than_a_manifest_can_name_is_refused(store: SwiftStore) -> None:
    class Huge(BytesBody):
        @property
        def size(self) -> int:
            return 1_001 * LIMIT

    with pytest.raises(Refused, match="more than Swift can hold"):
        store.put(KEY, Huge(b""), meta={}, if_match=None)


def test_a_long_object_in_parts_of_others_is_not_copied(
    store: SwiftStore, sdk: swiftclient.Connection, fresh_container: str
) -> None:
    for number in range(3):
        sdk.put_object(fresh_container, f"parts/{number}", bytes(LIMIT))
    sdk.put_object(
        fresh_container, "dlo", b"", headers={"X-Object-Manifest": f"{fresh_container}/parts/"}
    )
    info = store.head(Key("dlo"))
    assert info.size == 3 * LIMIT
    with pytest.raises(Unsupported):
        store.copy(Key("dlo"), Key("copy"), if_match=info.etag, replaces=None)


def test_who_may_not_make_the_container_of_the_segments_is_denied(
    swift_server: SwiftServer,
    fresh_container: str,
    sdk: swiftclient.Connection,
    segments: Callable[[], set[str]],
) -> None:
    rights = {"X-Container-Read": "test:reader", "X-Container-Write": "test:reader"}
    sdk.post_container(fresh_container, rights)
    environ = {**swift_server.environment(), "ST_USER": "test:reader", "ST_KEY": "reading"}
    options = replace(swift_server.options(), segment_limit=LIMIT)
    with closing(SwiftStore(fresh_container, options, environ=environ)) as store:
        with pytest.raises(Denied):
            put(store)
        sdk.put_container(f"{fresh_container}_segments", rights)
        assert put(store).size == len(CONTENT)
        assert read(store) == CONTENT


# ---- works ----------------------------------------------------------------------------------


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


def fail_once(server: SwiftServer, what: str) -> Meddled:
    def fail() -> None:
        raise Fault("the answer was lost")

    return Meddled(server, lambda _, __, said: said.startswith(what), fail)


def abandon_all(store: SwiftStore, ledger: MemoryLedger) -> None:
    for key, work in ledger.all():
        store.abandon(key, work)


@pytest.fixture
def left(
    swift_server: SwiftServer, fresh_container: str, ledger: MemoryLedger
) -> Callable[[str], SwiftStore]:
    """Has an upload cut off after a request, and returns a store of the next process."""

    def leave(what: str) -> SwiftStore:
        session = fail_once(swift_server, what)
        with closing(opened(swift_server, fresh_container, session)) as killed:
            killed.keep_ledger(ledger)
            with pytest.raises(Fault):
                put(killed)
        store = opened(swift_server, fresh_container)
        store.keep_ledger(ledger)
        return store

    return leave


def test_segments_that_a_killed_process_sent_are_taken_over(
    left: Callable[[str], SwiftStore], segments: Callable[[], set[str]], ledger: MemoryLedger
) -> None:
    with closing(left("storing segment 3")) as store:
        sent = segments()
        assert sent
        put(store)

        assert sent <= segments()
        assert len(segments()) == SEGMENTS
        assert read(store) == CONTENT
    assert ledger.all() == []


def test_segments_for_other_bytes_are_removed(
    left: Callable[[str], SwiftStore], segments: Callable[[], set[str]], ledger: MemoryLedger
) -> None:
    with closing(left("storing segment 3")) as store:
        sent = segments()
        put(store, CONTENT[::-1])

        assert not sent & segments()
        assert read(store) == CONTENT[::-1]
    assert ledger.all() == []


def test_segments_that_nobody_goes_on_with_are_removed(
    left: Callable[[str], SwiftStore], segments: Callable[[], set[str]], ledger: MemoryLedger
) -> None:
    with closing(left("storing segment 3")) as store:
        abandon_all(store, ledger)
    assert segments() == set()
    assert ledger.all() == []


def test_segments_of_an_object_that_stands_are_never_abandoned(
    left: Callable[[str], SwiftStore], segments: Callable[[], set[str]], ledger: MemoryLedger
) -> None:
    with closing(left("storing the manifest")) as store:
        assert len(ledger.all()) == 1
        abandon_all(store, ledger)

        assert read(store) == CONTENT
        assert len(segments()) == SEGMENTS
    assert ledger.all() == []


def test_an_object_that_a_killed_process_made_is_recognised(
    left: Callable[[str], SwiftStore], segments: Callable[[], set[str]], ledger: MemoryLedger
) -> None:
    with closing(left("storing the manifest")) as store:
        sent = segments()
        info = put(store)

        assert info == store.head(KEY)
        assert segments() == sent
    assert ledger.all() == []


def test_segments_wait_as_long_as_an_object_may_still_be_made_of_them(
    swift_server: SwiftServer,
    fresh_container: str,
    segments: Callable[[], set[str]],
    ledger: MemoryLedger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(Session):
        def ask(self, method: str, path: str, what: str, **rest: object) -> Answer:
            if is_manifest_put(method, path, what):
                raise Fault("no answer yet")
            return super().ask(method, path, what, **rest)  # type: ignore[arg-type]

    session = Slow(swift_server.options(), swift_server.environment())
    with closing(opened(swift_server, fresh_container, session)) as store:
        store.keep_ledger(ledger)
        with pytest.raises(Fault):
            put(store)
    with closing(opened(swift_server, fresh_container)) as store:
        store.keep_ledger(ledger)
        abandon_all(store, ledger)
        assert len(segments()) == SEGMENTS
        monkeypatch.setattr(swift_large, "_MAY_STILL_BE_MADE_S", 0)
        abandon_all(store, ledger)
    assert segments() == set()
    assert ledger.all() == []


def test_segments_that_have_gone_meanwhile_are_sent_anew(
    left: Callable[[str], SwiftStore],
    segments: Callable[[], set[str]],
    sdk: swiftclient.Connection,
    fresh_container: str,
    ledger: MemoryLedger,
) -> None:
    def lose_one(store: SwiftStore) -> None:
        sdk.delete_object(f"{fresh_container}_segments", min(segments()))

    with closing(left("storing segment 4")) as store:
        listed = store._segments._listed

        def listed_too_late(work: swift_large.Work) -> dict[str, tuple[int, str]]:
            found = listed(work)
            lose_one(store)
            return found

        store._segments._listed = listed_too_late  # type: ignore[method-assign]
        with pytest.raises(Fault, match="gone"):
            put(store)
        assert segments() == set()
        put(store)
        assert read(store) == CONTENT
    assert ledger.all() == []


def test_what_an_object_is_about_to_lose_is_noted_before(
    swift_server: SwiftServer,
    fresh_container: str,
    segments: Callable[[], set[str]],
    ledger: MemoryLedger,
) -> None:
    session = fail_once(swift_server, f"deleting {KEY!r}")
    with closing(opened(swift_server, fresh_container, session)) as store:
        store.keep_ledger(ledger)
        put(store)
        with pytest.raises(Fault):
            store.delete(KEY)
        assert len(segments()) == SEGMENTS
        abandon_all(store, ledger)
    assert segments() == set()
    assert ledger.all() == []


def test_segments_whose_listing_fails_are_left_to_the_next_try(
    left: Callable[[str], SwiftStore],
    swift_server: SwiftServer,
    fresh_container: str,
    segments: Callable[[], set[str]],
    ledger: MemoryLedger,
) -> None:
    left("storing segment 3").close()
    sent = segments()
    session = fail_once(swift_server, "listing")
    with closing(opened(swift_server, fresh_container, session)) as store:
        store.keep_ledger(ledger)
        with pytest.raises(Fault, match="lost"):
            put(store)
        put(store)

        assert sent <= segments()
        assert len(segments()) == SEGMENTS
    assert ledger.all() == []


class Late(Session):
    """Carries the first manifest out only when the segments are listed for the next try."""

    def __init__(self, server: SwiftServer) -> None:
        super().__init__(server.options(), server.environment())
        self.held: Callable[[], object] | None = None
        self.has_held = False

    def ask(self, method: str, path: str, what: str, **rest: object) -> Answer:
        def send() -> Answer:
            return super(Late, self).ask(method, path, what, **rest)  # type: ignore[arg-type]

        if is_manifest_put(method, path, what) and not self.has_held:
            self.held, self.has_held = send, True
            raise Fault("no answer yet")
        if what.startswith("listing") and self.held is not None:
            held, self.held = self.held, None
            held()
        return send()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [(BytesBody(CONTENT), Changed), (StoppedBody(CONTENT, after=0), UploadStopped)],
    ids=["goes on", "is called off"],
)
def test_an_object_that_an_earlier_try_makes_late_keeps_its_segments(
    body: BytesBody,
    outcome: type[BaseException],
    swift_server: SwiftServer,
    fresh_container: str,
    segments: Callable[[], set[str]],
    ledger: MemoryLedger,
) -> None:
    with closing(opened(swift_server, fresh_container, Late(swift_server))) as store:
        store.keep_ledger(ledger)
        with pytest.raises(Fault, match="no answer"):
            put(store)
        with pytest.raises(outcome):
            store.put(KEY, body, meta={"a": "b"}, content_type="text/x", if_match=None)

        assert read(store) == CONTENT
        assert len(segments()) == SEGMENTS
        assert put(store) == store.head(KEY)  # recognised
    assert ledger.all() == []
