"""Whose hands a work is in, and by what key a ledger has it, however a store is wrapped."""

from collections.abc import Callable, Mapping

import pytest

from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.buckets import Buckets
from cachefs.remote.memory import MemoryStore
from cachefs.remote.retry import Retrying
from cachefs.remote.scoped import Scoped
from cachefs.remote.store import Body, Ledger, ObjectStore
from cachefs.remote.works import MemoryLedger, Works, mark_of
from tests.contract.bodies import BytesBody


class Noting(MemoryStore):
    """Notes a work for every put, and what it is told to abandon."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger | None = None
        self.abandoned: list[tuple[Key, str]] = []

    def keep_ledger(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def abandon(self, key: Key, work: str) -> None:
        self.abandoned.append((key, work))

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        assert self.ledger is not None
        self.ledger.note(key, "half a work")
        self.ledger.note(key, "a work", replaces="half a work")
        assert self.ledger.noted(key) == ["a work"]
        return super().put(key, body, meta=meta, content_type=content_type, if_match=if_match)


def _plain(store: ObjectStore) -> ObjectStore:
    return store


def _retried(store: ObjectStore) -> ObjectStore:
    return Retrying(store, timeout_s=1)


def _below(store: ObjectStore) -> ObjectStore:
    return Scoped(store, "some/where/")


def _among_buckets(store: ObjectStore) -> ObjectStore:
    return Scoped(Buckets(lambda: ["one"], lambda _: store, description="all"), "one/")


@pytest.mark.parametrize("wrap", [_plain, _retried, _below, _among_buckets])
def test_a_ledger_has_the_keys_of_who_handed_it_in(
    wrap: Callable[[ObjectStore], ObjectStore], ledger: MemoryLedger
) -> None:
    inner = Noting()
    store = wrap(inner)
    store.keep_ledger(ledger)

    store.put(Key("a/b"), BytesBody(b"x"), meta={}, if_match=None)
    store.abandon(Key("a/b"), "a work")

    assert ledger.all() == [(Key("a/b"), "a work")]
    (info,) = (info for page in inner.list(Key(""), deep=True) for info in page.objects)
    assert inner.abandoned == [(info.key, "a work")]


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


def test_works_of_a_bucket_that_is_gone_are_gone(ledger: MemoryLedger) -> None:
    names = ["one"]
    store = Buckets(lambda: names, lambda _: Noting(), description="all")
    store.keep_ledger(ledger)
    ledger.note(Key("two/a"), "a work")

    store.abandon(Key("two/a"), "a work")

    assert ledger.all() == []


def test_a_work_is_in_one_pair_of_hands(ledger: MemoryLedger) -> None:
    works = Works()
    works.keep_in(ledger)
    works.begin(Key("a"), "work")
    assert not works.take("work")
    works.amend(Key("a"), "work", "work, amended")
    assert works.noted(Key("a")) == ["work, amended"]
    assert not works.take("work, amended")
    works.leave("work, amended")
    assert works.take("work, amended")
    works.end("work, amended")
    assert works.noted(Key("a")) == []
    assert works.take("work, amended")


def test_a_store_without_a_ledger_knows_what_it_has_to_end() -> None:
    works = Works()
    works.begin(Key("a"), "work")
    works.leave("work")

    assert works.forgotten() == [(Key("a"), "work")]


def test_marks_are_alike_for_the_same_object_in_the_same_parts_only() -> None:
    about = {"Metadata": {"a": "b", "c": "d"}, "ContentType": "text/x"}
    turned = {"ContentType": "text/x", "Metadata": {"c": "d", "a": "b"}}
    same = mark_of("0" * 32, about, [5, 5, 2])

    assert mark_of("0" * 32, turned, [5, 5, 2]) == same
    assert mark_of("1" * 32, about, [5, 5, 2]) != same
    assert mark_of("0" * 32, {**about, "ContentType": "text/y"}, [5, 5, 2]) != same
    assert mark_of("0" * 32, about, [6, 6]) != same
    assert mark_of(None, about, [5, 5, 2]) == ""
