"""Which versions an object grew from, as its metadata tells it."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from cachefs.core import descent, metadata
from cachefs.core.types import ETag, Key, ObjectInfo

NUMBERS = itertools.count(1)


def version(
    meta: dict[str, str], *, size: int = 3, etag: str = "e", when_ns: int = 1
) -> ObjectInfo:
    return descent.read(ObjectInfo(Key("k"), size, ETag(etag), when_ns, meta=meta))


def child_of(parent: ObjectInfo | None, *, size: int = 3) -> ObjectInfo:
    before = () if parent is None else descent.line_of(parent)
    own = f"{next(NUMBERS):010x}"
    return version(descent.grown({"mode": "33188"}, size, before, own), size=size)


def was_lost(mine: ObjectInfo, theirs: ObjectInfo) -> bool:
    return descent.was_passed_over(descent.line_of(mine), descent.line_of(theirs))


def test_a_version_whose_writer_saw_mine_has_not_passed_mine_over() -> None:
    base = child_of(None)
    mine = child_of(base)
    after = child_of(child_of(mine))
    assert not was_lost(mine, mine)
    assert not was_lost(mine, child_of(mine))
    assert not was_lost(mine, after)


def test_a_version_of_the_same_parent_has_passed_mine_over() -> None:
    base = child_of(version({}, etag="of another tool"))
    assert was_lost(child_of(base), child_of(base))
    assert was_lost(child_of(base), child_of(child_of(base))), "and so has what grew from that"


def test_of_two_that_were_made_where_nothing_was_one_has_passed_the_other_over() -> None:
    assert was_lost(child_of(None), child_of(None))


def test_what_another_tool_stored_claims_nothing() -> None:
    mine = child_of(child_of(None))
    foreign = version({"mtime": "1"}, etag="x")
    assert not was_lost(mine, foreign)
    assert not was_lost(mine, child_of(foreign))


def test_a_line_that_another_tool_carried_on_to_other_bytes_is_not_believed() -> None:
    mine = child_of(child_of(None))
    said = descent.grown({"mode": "33188"}, 3, descent.line_of(mine), "a" * 10)
    assert version(said).line[1:] == mine.line
    assert version(said).meta == {"mode": "33188"}
    assert version(said, size=99).line == ()
    assert version({**said, "mtime": "7"}).line == ()
    for garbage in ("", "~", "x~y", "0" * 600, "..~"):
        assert version({descent.LINE: garbage}) == version({})


def test_a_change_of_metadata_leaves_the_line_as_it_is() -> None:
    base = version({}, etag="of another tool")
    changed = version(descent.kept({"mode": "1"}, base), etag="e2", when_ns=99)
    assert descent.line_of(changed) == descent.line_of(base)
    mine = child_of(base)
    chmodded = version(descent.kept({"mode": "2"}, mine))
    assert chmodded.line == mine.line
    assert not was_lost(mine, child_of(chmodded))


@given(st.integers(0, 2 * metadata.META_MAX))
def test_the_line_gives_way_where_room_is_short(length: int) -> None:
    meta = {"k": "v" * length}
    grown = descent.grown(meta, 3, ("0" * 10,) * 9, "a" * 10)
    assert descent.without(grown) == meta
    if descent.LINE in grown:
        assert metadata.size_of(grown) <= metadata.META_MAX
    assert (descent.LINE in grown) == (length < metadata.META_MAX - 120) or (
        metadata.META_MAX - 120 <= length <= metadata.META_MAX
    )


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_writers_who_see_each_others_versions_are_never_told_of_a_loss(
    seed: int, steps: int
) -> None:
    chance = random.Random(seed)
    line = [child_of(None)]
    for _ in range(steps):
        line.append(
            version({"mtime": "3"}, etag=f"{chance.random()}")
            if chance.random() < 0.2
            else child_of(line[-1])
        )
    for early, mine in enumerate(line):
        for theirs in line[early:]:
            assert not was_lost(mine, theirs)
