"""What of two buckets differs, and the lists that tell it."""

import io
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.errors import UsageError
from cachefs.core.keys import component_of
from cachefs.core.types import ETag, Key, Name, ObjectInfo
from cachefs.ops.manifest import rows
from cachefs.ops.sync_plan import (
    UNSURE,
    Difference,
    Kind,
    Near,
    Plan,
    by_listed_content,
    by_time,
    duplicate,
    modified,
    new,
    replacing,
)
from cachefs.remote.file import FileStore
from tests.contract.bodies import BytesBody

SECOND = 10**9


def info(mtime_ns: int, *, size: int = 1, etag: str = "e", key: str = "k") -> ObjectInfo:
    return ObjectInfo(Key(key), size, ETag(etag), mtime_ns)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (info(5 * SECOND), info(6 * SECOND), None),
        (info(5 * SECOND), info(6 * SECOND, etag="other"), None),
        (info(7 * SECOND), info(6 * SECOND), "newer"),
        (info(7 * SECOND, etag="e"), info(6 * SECOND, etag="e"), "newer"),
        (info(5 * SECOND, size=2), info(6 * SECOND), "size"),
        (info(6 * SECOND), info(6 * SECOND), None),
        (info(6 * SECOND), info(6 * SECOND, etag="other"), "same second"),
        (info(6 * SECOND + 5), info(6 * SECOND, etag="other"), "same second"),
        (info(6 * SECOND + 5), info(6 * SECOND), None),
        (info(6 * SECOND + 5), info(6 * SECOND + 6, etag="other"), None),
        (info(6 * SECOND + 7), info(6 * SECOND + 6, etag="other"), "newer"),
    ],
)
def test_a_source_is_copied_again_if_it_may_be_later_than_its_copy(
    source: ObjectInfo, target: ObjectInfo, reason: str | None
) -> None:
    assert by_time(source, target) == reason


@given(st.integers(0, 10 * SECOND), st.integers(0, 10 * SECOND))
def test_what_was_surely_changed_after_its_copy_is_always_copied(ours: int, theirs: int) -> None:
    # The store says whole seconds of one moment, the other, or both.
    for source in (ours, ours // SECOND * SECOND):
        for target in (theirs, theirs // SECOND * SECOND):
            if ours > theirs:
                assert by_time(info(source), info(target, etag="other"))


def test_a_difference_says_which_version_is_to_take_the_place_of_which() -> None:
    here, there = info(9 * SECOND, size=3), info(SECOND, etag="old", size=3)

    assert new(here) == Difference(Kind.NEW, Key("k"), 3, ETag("e"), None, "new")
    assert modified(here, there, "newer") == Difference(
        Kind.MODIFIED, Key("k"), 3, ETag("e"), ETag("old"), "newer"
    )
    assert duplicate(there) == Difference(Kind.DUPLICATE, Key("k"), 3, None, ETag("old"), "gone")


def test_listings_tell_of_content_only_what_is_sure() -> None:
    assert by_listed_content(info(9), info(1)) is None
    assert by_listed_content(info(9, size=2), info(1)) == "size"
    assert by_listed_content(info(9), info(1, etag="other")) == UNSURE


def planned(directory: Path, *keys: str) -> Plan:
    plan = Plan(directory)
    for key in keys:
        plan.add(Difference(Kind.NEW, Key(key), 1, ETag("e"), None, "new"))
    return plan


_PARTS = st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs"])
) | st.sampled_from(["", ".", "..", "~cachefs~empty", "a"])
_KEYS = st.lists(_PARTS, min_size=1, max_size=4).map("/".join).filter(bool)


@given(st.lists(_KEYS, min_size=1))
def test_whatever_the_keys_hold_the_lists_are_manifests(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str]
) -> None:
    out = tmp_path_factory.getbasetemp()
    with planned(out, *keys) as plan:
        plan.write_lists(out)

    text = (out / "new.txt").read_bytes()
    paths = [row.path for row in rows(io.BytesIO(text), name="new.txt")]
    assert [_key(path) for path in paths] == keys


def _key(path: str) -> str:
    """Return the key of a path in a mount; of a name that is too long for that, which only a listing undoes, the path's."""
    return "/".join(
        component_of(Name(os.fsencode(part)))[0] if part else "" for part in path.split("/")
    )


def test_lists_are_one_key_a_line_where_lines_bear_them(tmp_path: Path) -> None:
    with planned(tmp_path, "a/b", "c d") as plan:
        plan.write_lists(tmp_path)

    assert (tmp_path / "new.txt").read_bytes() == b"a/b\nc d\n"
    assert (tmp_path / "modified.txt").read_bytes() == b""
    assert (tmp_path / "duplicate_stores.txt").read_bytes() == b""


def test_a_plan_gives_back_what_it_was_given_by_kind_and_in_order(tmp_path: Path) -> None:
    every = [
        Difference(Kind.NEW, Key("a\n\udc80"), 1, ETag("1"), None, "new"),
        Difference(Kind.DUPLICATE, Key("b"), 2, None, ETag("2"), "gone"),
        Difference(Kind.MODIFIED, Key("c"), 3, ETag("3"), ETag("4"), "size"),
    ]
    with Plan(tmp_path) as plan:
        for each in every:
            plan.add(each)

        assert list(plan.differences(*Kind)) == every
        assert list(plan.differences(Kind.NEW, Kind.MODIFIED)) == [every[0], every[2]]
        assert plan.bytes == {Kind.NEW: 1, Kind.DUPLICATE: 2, Kind.MODIFIED: 3}
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_could_not_be_finished_leaves_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("before\n")

    with suppress(ZeroDivisionError), replacing(tmp_path / "new.txt") as file:
        file.write(b"half")
        raise ZeroDivisionError

    assert (tmp_path / "new.txt").read_text() == "before\n"


def test_a_list_is_not_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("somebody's")
    (tmp_path / "new.txt").symlink_to(other)
    (tmp_path / ".modified.txt.part").symlink_to(other)

    with replacing(tmp_path / "new.txt") as file:
        file.write(b"a\n")
    with pytest.raises(UsageError, match="cannot write"), replacing(tmp_path / "modified.txt"):
        pass

    assert other.read_text() == "somebody's"
    assert (tmp_path / "new.txt").read_text() == "a\n"


def test_files_are_dated_by_their_change_and_not_by_what_they_say(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path))
    before = time.time_ns() - SECOND
    for key, content in (("dir/", b""), ("dir/file", b"x")):
        meta = {"mtime": "1.000000000"}
        store.put(Key(key), BytesBody(content), meta=meta, content_type=None, if_match=None)

    directory, file = (store.head(Key(key)) for key in ("dir/", "dir/file"))

    assert file.mtime_ns == SECOND
    assert Near.source()(file).mtime_ns >= before
    assert by_time(Near.source()(directory), Near.target()(directory)) is None
