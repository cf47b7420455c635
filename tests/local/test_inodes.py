"""The tree: what the store shows is taken over, and what this mount has changed is not undone by older news."""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cachefs.core.keys import name_of
from cachefs.core.types import ETag, Ino, Key, Kind, Listing, Name, ObjectInfo
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, Difference, Inode, InodeTable

LATER = 10 * 10**9
"""Later than any answer of the store by more than its clocks may differ."""


class Tree:
    """An inode table, a clock that only goes on, and the store's side as listings."""

    def __init__(self, directory: Path) -> None:
        self.db = Database(directory)
        self.dirty: set[Ino] = set()
        self.table = InodeTable(self.db, is_dirty=self.dirty.__contains__)
        self.table.make_root(1)
        self.now = 100

    def tick(self) -> int:
        self.now += 10
        return self.now

    def list(
        self,
        parent: Ino = ROOT,
        *pages: Listing,
        since: int | None = None,
        held: Collection[Ino] = (),
    ) -> Difference:
        """Take over a whole listing of *parent*, which began now or at *since*."""
        since = self.tick() if since is None else since
        total = Difference()
        for page in pages:
            part = self.table.merge(parent, page, since_ns=since, now_ns=self.tick(), held=held)
            total.changed += part.changed
            total.altered += part.altered
            total.freed += part.freed
        part = self.table.finish_listing(parent, since_ns=since, now_ns=self.tick(), held=held)
        total.changed += part.changed
        total.altered += part.altered
        total.freed += part.freed
        return total

    def learn(self, parent: Ino, info: ObjectInfo, *, held: Collection[Ino] = ()) -> Difference:
        since = self.tick()
        return self.table.learn(parent, info, since_ns=since, now_ns=self.tick(), held=held)

    def mint(self, parent: Ino, name: str, kind: Kind = Kind.FILE) -> Inode:
        made = self.table.mint(
            parent, name_of(name), name, kind, now_ns=self.tick(), mode=0o640, uid=7, gid=8
        )
        self.table.made(made.ino)
        return made

    def names(self, parent: Ino = ROOT) -> dict[str, Kind]:
        """What a listing of the mount shows."""
        return {os.fsdecode(each.name or b"?"): each.kind for each in self.table.children(parent)}

    def child(self, name: str, parent: Ino = ROOT) -> Inode:
        found = self.table.child(parent, Name(os.fsencode(name)))
        assert found is not None
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    yield tree
    tree.db.close()


def obj(
    key: str, etag: str = "v1", size: int = 3, meta: dict[str, str] | None = None
) -> ObjectInfo:
    return ObjectInfo(Key(key), size, ETag(etag), mtime_ns=50, meta=meta)


def page(*things: ObjectInfo | str) -> Listing:
    """One page: objects, and prefixes as strings."""
    return Listing(
        tuple(thing for thing in things if isinstance(thing, ObjectInfo)),
        tuple(Key(thing) for thing in things if isinstance(thing, str)),
    )


# ---- names, keys and numbers ----------------------------------------------------------------


def test_the_root_is_made_once(tree: Tree) -> None:
    before = tree.table.get(ROOT)
    tree.table.make_root(999)
    assert tree.table.get(ROOT) == before
    assert tree.table.key_of(ROOT) == ""
    assert tree.table.path_of(ROOT) == b""
    assert tree.table.find(Key("")) == before
    assert tree.table.count() == 1


def test_a_new_inode_has_its_name_key_and_path(tree: Tree) -> None:
    directory = tree.mint(ROOT, "d", Kind.DIR)
    made = tree.mint(directory.ino, "a\0b")
    assert tree.table.key_of(made.ino) == "d/a\0b"
    assert tree.table.path_of(made.ino) == b"d/~cachefs~raw~a%00b"
    assert tree.table.key_of(directory.ino) == "d/"
    assert tree.table.find(Key("d/a\0b")) == made
    assert tree.table.find(Key("d/")) == directory
    assert tree.table.find(Key("d")) is None
    assert tree.table.find(Key("d/a\0b/")) is None
    assert tree.table.find(Key("x/y/z")) is None
    assert (made.mode, made.uid, made.gid, made.meta) == (0o640, 7, 8, {})


def test_what_is_not_there_is_none(tree: Tree) -> None:
    assert tree.table.get(Ino(99)) is None
    assert tree.table.child(ROOT, Name(b"x")) is None
    assert tree.table.key_of(Ino(99)) is None
    assert tree.table.path_of(Ino(99)) is None


def test_a_number_is_never_issued_twice_even_across_restarts(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    first = tree.mint(ROOT, "a").ino
    tree.table.detach(first, tree.tick())
    tree.table.drop(first)
    second = tree.mint(ROOT, "a").ino
    tree.table.drop(second)
    tree.db.close()
    tree = Tree(tmp_path)
    assert tree.mint(ROOT, "a").ino > second > first
    tree.db.close()


def test_a_move_takes_everything_below_along(tree: Tree) -> None:
    top, other = tree.mint(ROOT, "d", Kind.DIR), tree.mint(ROOT, "e", Kind.DIR)
    below = tree.mint(top.ino, "s", Kind.DIR)
    leaf = tree.mint(below.ino, "a")
    tree.table.move(top.ino, other.ino, Name(b"n"), "n", tree.tick())
    assert tree.table.key_of(leaf.ino) == "e/n/s/a"
    assert tree.table.path_of(leaf.ino) == b"e/n/s/a"
    assert [each.ino for each in tree.table.below(other.ino)] == [top.ino, below.ino, leaf.ino]
    assert tree.names() == {"e": Kind.DIR}
    moved = tree.table.get(top.ino)
    assert moved is not None
    assert moved.ctime_ns == tree.now


def test_a_detached_inode_lives_on_without_a_name(tree: Tree) -> None:
    made = tree.mint(ROOT, "a")
    tree.table.detach(made.ino, tree.tick())
    assert tree.table.get(made.ino) is not None
    assert tree.table.key_of(made.ino) is None
    assert tree.table.path_of(made.ino) is None
    assert tree.table.child(ROOT, Name(b"a")) is None
    assert tree.table.detached() == [made.ino]
    again = tree.mint(ROOT, "a")
    assert again.ino != made.ino
    tree.table.detach(made.ino, tree.tick())  # twice is the same as once
    assert tree.child("a").ino == again.ino
    tree.table.drop(made.ino)
    assert tree.table.get(made.ino) is None


def test_children_come_in_pages_in_the_order_of_their_numbers(tree: Tree) -> None:
    made = [tree.mint(ROOT, str(number)).ino for number in range(10)]
    assert not tree.table.has_children(made[0])
    assert tree.table.has_children(ROOT)
    seen: list[Ino] = []
    while found := tree.table.children(ROOT, after=seen[-1] if seen else 0, limit=3):
        seen += [each.ino for each in found]
    assert seen == made


def test_columns_are_set_one_by_one(tree: Tree) -> None:
    made = tree.mint(ROOT, "a")
    tree.table.update(made.ino, mode=0o600, size=9, meta={"color": "red"})
    found = tree.child("a")
    assert (found.mode, found.size, found.meta, found.uid) == (0o600, 9, {"color": "red"}, 7)
    tree.table.update(made.ino, meta=None)
    assert tree.child("a").meta is None


# ---- what one answer tells ------------------------------------------------------------------


def test_an_objects_metadata_shows_as_its_attributes(tree: Tree) -> None:
    meta = {"mode": str(0o100600), "uid": "5", "gid": "6", "mtime": "7.5", "atime": "8"}
    tree.learn(ROOT, obj("a", meta=meta))
    found = tree.child("a")
    assert (found.kind, found.size, found.etag) == (Kind.FILE, 3, "v1")
    assert (found.mode, found.uid, found.gid) == (0o600, 5, 6)
    assert (found.mtime_ns, found.atime_ns, found.ctime_ns) == (7_500_000_000, 8_000_000_000, 50)
    assert found.meta == meta


def test_what_the_store_does_not_say_is_left_open(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), "d/"))
    found = tree.child("a")
    assert (found.mode, found.uid, found.gid, found.meta) == (None, None, None, None)
    assert (found.mtime_ns, found.atime_ns, found.ctime_ns) == (50, 50, 50)
    assert [each.ino for each in tree.table.undescribed(ROOT, dirs=False)] == [found.ino]
    assert [each.name for each in tree.table.undescribed(ROOT, dirs=True)] == [b"d"]
    tree.learn(ROOT, obj("a", meta={}))
    assert tree.child("a").ino == found.ino
    assert tree.table.undescribed(ROOT, dirs=False) == []


def test_a_symlink_shows_once_its_metadata_is_known_and_a_listing_does_not_undo_it(
    tree: Tree,
) -> None:
    tree.list(ROOT, page(obj("l")))
    assert tree.child("l").kind is Kind.FILE
    ino = tree.child("l").ino
    tree.learn(ROOT, obj("l", meta={"mode": str(0o120777)}))
    assert (tree.child("l").kind, tree.child("l").ino) == (Kind.SYMLINK, ino)
    tree.list(ROOT, page(obj("l")))
    assert tree.child("l").kind is Kind.SYMLINK


def test_a_markers_metadata_is_the_directorys(tree: Tree) -> None:
    tree.learn(ROOT, obj("d/", size=0, meta={"mode": str(0o040700)}))
    found = tree.child("d")
    assert (found.kind, found.mode, found.size, found.etag) == (Kind.DIR, 0o700, 0, "v1")


def test_an_answer_about_a_directory_that_is_gone_changes_nothing(tree: Tree) -> None:
    gone = tree.mint(ROOT, "d", Kind.DIR)
    tree.table.detach(gone.ino, tree.tick())
    before = tree.table.count()
    assert tree.learn(gone.ino, obj("d/a")) == Difference()
    merged = tree.table.merge(gone.ino, page(obj("d/a")), since_ns=1, now_ns=2, held=())
    assert merged == Difference()
    assert tree.table.count() == before


# ---- listings -------------------------------------------------------------------------------


def test_a_listing_shows_what_the_store_has(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), "d/"), page(obj("z"), "x/"))
    assert tree.names() == {"a": Kind.FILE, "d": Kind.DIR, "x": Kind.DIR, "z": Kind.FILE}
    root = tree.table.get(ROOT)
    assert root is not None
    assert root.listed_ns is not None


def test_the_same_listing_again_changes_nothing(tree: Tree) -> None:
    things = page(obj("a"), "d/", obj("b", meta={"mode": "33188"}))
    tree.list(ROOT, things)
    before = [(each.ino, each.name, each.etag) for each in tree.table.children(ROOT)]
    assert tree.list(ROOT, things) == Difference()
    assert [(each.ino, each.name, each.etag) for each in tree.table.children(ROOT)] == before


def test_a_new_version_is_shown_by_the_same_inode_and_the_kernel_is_told(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    ino = tree.child("a").ino
    difference = tree.list(ROOT, page(obj("a", "v2", size=9)))
    assert difference == Difference(changed=[(ROOT, Name(b"a"))], altered=[ino])
    found = tree.child("a")
    assert (found.ino, found.etag, found.size) == (ino, "v2", 9)


def test_a_held_inode_keeps_its_version_and_the_new_one_gets_another(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    held = tree.child("a").ino
    difference = tree.list(ROOT, page(obj("a", "v2")), held={held})
    assert difference.changed == [(ROOT, Name(b"a"))]
    assert difference.freed == []
    assert tree.child("a").ino != held
    assert tree.child("a").etag == "v2"
    kept = tree.table.get(held)
    assert kept is not None
    assert (kept.etag, kept.parent) == ("v1", None)


def test_what_a_whole_listing_lacks_is_gone_with_all_below(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), obj("b"), "d/"))
    directory, gone, kept = tree.child("d"), tree.child("a"), tree.child("b")
    tree.list(directory.ino, page(obj("d/x"), obj("d/y")))
    held, freed = tree.child("x", directory.ino), tree.child("y", directory.ino)
    difference = tree.list(ROOT, page(obj("b")), held={held.ino})
    assert tree.names() == {"b": Kind.FILE}
    assert sorted(difference.changed) == [(ROOT, b"a"), (ROOT, b"d")]
    assert set(difference.freed) == {gone.ino, freed.ino, directory.ino}
    assert tree.child("b").ino == kept.ino
    assert tree.table.get(held.ino) is not None
    assert tree.table.key_of(held.ino) is None


def test_part_of_a_listing_takes_nothing_away(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), obj("b")))
    tree.table.merge(ROOT, page(obj("a")), since_ns=tree.tick(), now_ns=tree.tick(), held=())
    assert set(tree.names()) == {"a", "b"}


@pytest.mark.parametrize("shown", ["another version", "nothing", "a directory"])
def test_promised_bytes_keep_their_name_whatever_the_store_shows(tree: Tree, shown: str) -> None:
    tree.list(ROOT, page("d/"))
    directory = tree.child("d").ino
    made = tree.mint(directory, "a")
    tree.dirty.add(made.ino)
    pages = {
        "another version": page(obj("d/a", "theirs")),
        "nothing": page(),
        "a directory": page("d/a/"),
    }
    difference = tree.list(directory, pages[shown])
    assert made.ino not in difference.freed
    assert tree.table.key_of(made.ino) == "d/a"
    assert tree.table.get(made.ino) == tree.table.find(Key("d/a"))
    tree.list(ROOT, page())  # nor can it vanish with its directory
    assert tree.table.key_of(made.ino) == "d/a"


def test_what_is_being_made_outlives_a_listing_until_it_is_made(tree: Tree) -> None:
    making = tree.table.mint(
        ROOT, Name(b"a"), "a", Kind.FILE, now_ns=tree.tick(), mode=0o600, uid=0, gid=0
    )
    assert tree.table.is_dirty(making.ino)
    tree.list(ROOT, page())
    assert tree.child("a").ino == making.ino
    tree.table.made(making.ino)
    assert not tree.table.is_dirty(making.ino)
    assert tree.list(ROOT, page()).freed == [making.ino]
    assert tree.names() == {}


def test_a_file_that_became_a_directory_gets_a_new_inode_and_back(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    tree.list(ROOT, page("a/"))
    assert tree.names() == {"a": Kind.DIR}
    directory = tree.child("a")
    tree.list(directory.ino, page(obj("a/x")))
    tree.list(ROOT, page(obj("a", "v2")))
    tree.list(ROOT, page(obj("a", "v2")))
    assert tree.names() == {"a": Kind.FILE}
    assert tree.table.get(tree.child("a").ino) == tree.table.find(Key("a"))


def test_an_answer_about_a_file_where_a_directory_was_known_shows_both(tree: Tree) -> None:
    tree.list(ROOT, page("a/"))
    tree.learn(ROOT, obj("a"))
    assert tree.names() == {"a": Kind.DIR, "a~cachefs~object": Kind.FILE}


# ---- changes made here, and older news ------------------------------------------------------


def test_a_change_made_after_a_listing_began_is_left_alone(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), obj("b"), obj("c")))
    since = tree.tick()
    moved, gone = tree.child("a"), tree.child("b")
    tree.table.move(moved.ino, ROOT, Name(b"n"), "n", tree.tick())
    tree.table.detach(gone.ino, tree.tick())
    fresh = tree.mint(ROOT, "f")
    tree.table.put(tree.child("c").ino, obj("c", "v2", size=8), tree.tick())
    older = page(obj("a"), obj("b"), obj("c"))
    assert tree.list(ROOT, older, since=since) == Difference()
    assert set(tree.names()) == {"n", "f", "c"}
    assert tree.child("n").ino == moved.ino
    assert tree.child("f").ino == fresh.ino
    assert (tree.child("c").etag, tree.child("c").size) == ("v2", 8)


def test_a_listing_that_began_after_the_removal_is_believed(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    tree.table.detach(tree.child("a").ino, tree.tick())
    tree.list(ROOT, page(obj("a", "put again")))
    assert tree.child("a").etag == "put again"


def test_a_removal_that_failed_is_forgotten(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    since, removed = tree.tick(), tree.child("a")
    tree.table.detach(removed.ino, tree.tick())
    assert tree.table.removed_since(ROOT, "a", Kind.FILE, since)
    assert not tree.table.removed_since(ROOT, "a", Kind.FILE, tree.tick())
    assert not tree.table.removed_since(ROOT, "b", Kind.FILE, since)
    tree.table.forget_removed(removed)
    tree.list(ROOT, page(obj("a")), since=since)
    assert set(tree.names()) == {"a"}


def test_a_name_moved_back_is_not_taken_for_removed(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    since, ino = tree.tick(), tree.child("a").ino
    tree.table.move(ino, ROOT, Name(b"b"), "b", tree.tick())
    tree.table.move(ino, ROOT, Name(b"a"), "a", tree.tick())
    assert not tree.table.removed_since(ROOT, "a", Kind.FILE, since)
    assert tree.table.removed_since(ROOT, "b", Kind.FILE, since)


def test_a_name_made_again_is_not_taken_for_removed(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    since = tree.tick()
    tree.table.detach(tree.child("a").ino, tree.tick())
    tree.mint(ROOT, "a")
    assert not tree.table.removed_since(ROOT, "a", Kind.FILE, since)


def test_removing_a_shadowed_object_does_not_hide_its_directory(tree: Tree) -> None:
    things = page(obj("a"), "a/")
    tree.list(ROOT, things)
    since = tree.tick()
    tree.table.detach(tree.child("a~cachefs~object").ino, tree.tick())
    tree.list(ROOT, things, since=since)
    assert tree.names() == {"a": Kind.DIR}


def test_a_removed_object_does_not_come_back_beside_a_directory_that_an_older_listing_shows(
    tree: Tree,
) -> None:
    tree.list(ROOT, page(obj("a")))
    since = tree.tick()
    tree.table.detach(tree.child("a").ino, tree.tick())
    tree.list(ROOT, page(obj("a"), "a/"), since=since)
    assert tree.names() == {"a": Kind.DIR}


def test_a_removed_directory_does_not_hide_an_object_of_its_name(tree: Tree) -> None:
    tree.list(ROOT, page("a/"))
    since = tree.tick()
    tree.table.detach(tree.child("a").ino, tree.tick())
    tree.list(ROOT, page(obj("a"), "a/"), since=since)
    assert tree.names() == {"a": Kind.FILE}


def test_a_listing_during_which_the_clock_goes_back_takes_nothing_away(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), obj("b")))
    inos = [each.ino for each in tree.table.children(ROOT)]
    since = tree.tick()
    tree.table.merge(ROOT, page(obj("a"), obj("b")), since_ns=since, now_ns=since, held=())
    difference = tree.table.finish_listing(ROOT, since_ns=since, now_ns=since, held=())
    assert difference == Difference()
    assert [each.ino for each in tree.table.children(ROOT)] == inos


# ---- metadata that another mount changes ----------------------------------------------------


def test_other_metadata_of_the_same_version_is_taken_over_and_the_kernel_is_told(
    tree: Tree,
) -> None:
    tree.learn(ROOT, obj("a", meta={"mode": str(0o100644)}))
    ino = tree.child("a").ino
    difference = tree.learn(ROOT, obj("a", meta={"mode": str(0o100600)}))
    assert difference == Difference(altered=[ino])
    assert (tree.child("a").ino, tree.child("a").mode) == (ino, 0o600)
    assert tree.learn(ROOT, obj("a", meta={"mode": str(0o100600)})) == Difference()


def test_what_is_known_of_an_object_that_was_touched_is_shown_until_the_store_is_asked(
    tree: Tree,
) -> None:
    tree.learn(ROOT, obj("a", meta={"mode": str(0o100600)}))
    tree.list(ROOT, page(replace(obj("a"), mtime_ns=LATER)))
    (doubted,) = tree.table.undescribed(ROOT, dirs=False)
    assert doubted.mode == 0o600
    assert doubted.carries_posix
    tree.learn(ROOT, replace(obj("a", meta={"mode": str(0o100640)}), mtime_ns=LATER))
    tree.list(ROOT, page(replace(obj("a"), mtime_ns=LATER)))
    assert tree.table.undescribed(ROOT, dirs=False) == []
    assert tree.child("a").mode == 0o640


def test_a_marker_that_was_touched_makes_its_directorys_metadata_unknown(tree: Tree) -> None:
    tree.learn(ROOT, obj("d/", size=0, meta={"mode": str(0o040700)}))
    directory = tree.child("d").ino
    tree.list(directory, page(obj("d/", size=0)))
    assert tree.child("d").meta_json is not None
    tree.list(directory, page(replace(obj("d/", size=0), mtime_ns=LATER)))
    assert tree.child("d").meta_json is None
    assert tree.child("d").mode == 0o700


def test_an_object_that_turns_out_to_be_a_link_is_looked_up_anew(tree: Tree) -> None:
    tree.learn(ROOT, obj("a", meta={}))
    ino = tree.child("a").ino
    difference = tree.learn(ROOT, obj("a", meta={"mode": str(0o120777)}))
    assert difference == Difference(changed=[(ROOT, Name(b"a"))], altered=[ino])


def test_a_directory_without_a_marker_is_known_to_have_none(tree: Tree) -> None:
    tree.list(ROOT, page("d/"))
    tree.learn(ROOT, obj("e/", size=0, meta={"mode": str(0o040700)}))
    for name in ("d", "e"):
        tree.table.unmarked(tree.child(name).ino, since_ns=tree.tick())
        assert (tree.child(name).etag, tree.child(name).meta) == (None, {})
    fresh = tree.mint(ROOT, "f", Kind.DIR)
    tree.table.update(fresh.ino, etag="v1", meta={"mode": "16832"}, checked_ns=tree.tick())
    tree.table.unmarked(fresh.ino, since_ns=tree.now - 1)
    assert tree.child("f").etag == "v1", "the listing began before the marker was there"


def test_all_below_can_be_made_stale(tree: Tree) -> None:
    tree.list(ROOT, page("d/"))
    directory = tree.child("d").ino
    tree.list(directory, page(obj("d/a")))
    tree.table.stale_below(directory)
    for ino in (directory, tree.child("a", directory).ino):
        found = tree.table.get(ino)
        assert found is not None
        assert (found.checked_ns, found.listed_ns) == (0, None)


# ---- odd keys -------------------------------------------------------------------------------


def test_an_object_beside_a_directory_of_its_name_shows_as_well(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), "a/"))
    both = {"a": Kind.DIR, "a~cachefs~object": Kind.FILE}
    assert tree.names() == both
    shadowed = tree.child("a~cachefs~object")
    assert tree.table.key_of(shadowed.ino) == "a"
    assert tree.table.find(Key("a")) == shadowed
    assert tree.table.find(Key("a/")) == tree.child("a")
    assert tree.list(ROOT, page(obj("a"), "a/")) == Difference()
    assert tree.names() == both


@pytest.mark.parametrize("order", ["object first", "directory first"])
def test_both_show_though_a_page_ends_between_them(tree: Tree, order: str) -> None:
    pages = [page(obj("a"), obj("a-1")), page("a/")]
    if order == "directory first":
        pages.reverse()
    inos: set[tuple[str, Ino]] = set()
    for _ in range(3):
        tree.list(ROOT, *pages)
        assert tree.names() == {"a": Kind.DIR, "a~cachefs~object": Kind.FILE, "a-1": Kind.FILE}
        inos |= {(name, tree.child(name).ino) for name in tree.names()}
    assert len(inos) == 3  # and nothing is made anew each time


def test_an_object_gets_its_plain_name_when_the_directory_beside_it_goes(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), "a/"))
    shadowed = tree.child("a~cachefs~object").ino
    difference = tree.list(ROOT, page(obj("a")))
    assert tree.names() == {"a": Kind.FILE}
    assert tree.child("a").ino == shadowed
    assert (ROOT, b"a~cachefs~object") in difference.changed


def test_a_directory_that_appears_takes_the_plain_name(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    ino = tree.child("a").ino
    difference = tree.list(ROOT, page(obj("a"), "a/"))
    assert tree.names() == {"a": Kind.DIR, "a~cachefs~object": Kind.FILE}
    assert (ROOT, b"a") in difference.changed
    assert difference.freed == []
    assert tree.child("a~cachefs~object").ino == ino  # its cached bytes and its handles stay


@pytest.mark.parametrize("component", ["", ".", "..", "a\0b", "~cachefs~dot", "x" * 300, "\udcff"])
def test_an_odd_component_has_a_name_and_keeps_its_key(tree: Tree, component: str) -> None:
    tree.list(ROOT, page("d/"))
    directory = tree.child("d").ino
    things = page(f"d/{component}/") if not component else page(obj(f"d/{component}"))
    tree.list(directory, things)
    (found,) = tree.table.children(directory)
    assert found.name == name_of(component)
    assert found.component == component
    key = things.prefixes[0] if not component else things.objects[0].key
    assert tree.table.key_of(found.ino) == key
    assert tree.table.find(key) == found
    tree.list(directory, things)
    assert tree.table.children(directory) == [tree.child(os.fsdecode(found.name), directory)]


def test_the_empty_marker_of_a_directory_is_the_directory_itself(tree: Tree) -> None:
    tree.list(ROOT, page("d/"))
    directory = tree.child("d").ino
    tree.list(directory, page(obj("d/", "m1", size=0)))
    assert tree.names(directory) == {}
    assert tree.child("d").etag == "m1"


def test_a_marker_with_content_shows_inside_its_directory(tree: Tree) -> None:
    tree.list(ROOT, page("d/"))
    directory = tree.child("d").ino
    tree.list(directory, page(obj("d/", "m1", size=5), obj("d/a")))
    assert set(tree.names(directory)) == {"~cachefs~empty", "a"}
    inside = tree.child("~cachefs~empty", directory)
    assert tree.table.key_of(inside.ino) == "d/"
    assert inside.size == 5


def test_a_marker_with_content_shows_beside_a_directory_without_a_name(tree: Tree) -> None:
    tree.list(ROOT, page("d/"))
    directory = tree.child("d").ino
    inos: set[Ino] = set()
    for _ in range(3):
        tree.list(directory, page(obj("d/", "m1", size=5), "d//"))
        assert tree.names(directory) == {
            "~cachefs~empty": Kind.DIR,
            "~cachefs~empty~cachefs~object": Kind.FILE,
        }
        inos |= {each.ino for each in tree.table.children(directory)}
    assert len(inos) == 2


def test_an_objects_key_that_ends_in_a_slash_is_a_directory(tree: Tree) -> None:
    # Swift and some S3 stores list an empty marker among the objects of its parent.
    tree.list(ROOT, page(obj("d/", size=0, meta={"mode": str(0o040711)})))
    assert tree.names() == {"d": Kind.DIR}
    assert tree.child("d").mode == 0o711


def test_a_clock_that_jumps_back_during_a_listing_takes_nothing_away_for_good(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a")))
    since = tree.now + 1000  # then the clock is set back
    tree.list(ROOT, page(obj("a")), since=since)
    tree.list(ROOT, page(obj("a")))
    assert set(tree.names()) == {"a"}


def test_a_promised_object_beside_a_new_directory_keeps_its_key_and_its_bytes(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), "a/"))
    tree.dirty.add(tree.child("a~cachefs~object").ino)
    (ino,) = tree.dirty
    tree.list(ROOT, page(obj("a", "theirs"), "a/"))
    assert tree.table.key_of(ino) == "a"
    assert tree.child("a~cachefs~object").ino == ino
    assert tree.child("a~cachefs~object").etag == "v1"


def test_where_two_promised_files_claim_one_name_neither_is_lost(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), "a/"))
    first = tree.child("a~cachefs~object").ino
    tree.dirty.add(first)
    tree.table.detach(tree.child("a").ino, tree.tick())
    second = tree.mint(ROOT, "a").ino
    tree.dirty.add(second)
    tree.list(ROOT, page("a/"))
    assert tree.table.path_of(first) == b"a~cachefs~object"
    assert tree.table.path_of(second) == b"a"


def test_a_directory_whose_contents_are_promised_is_not_replaced_by_an_object(tree: Tree) -> None:
    tree.list(ROOT, page("d/"))
    inside = tree.mint(tree.child("d").ino, "a").ino
    tree.dirty.add(inside)
    tree.list(ROOT, page(obj("d")))
    assert tree.table.path_of(inside) == b"d/a"
    assert tree.names() == {"d": Kind.DIR, "d~cachefs~object": Kind.FILE}


def test_a_file_without_bytes_and_version_was_only_being_made(tree: Tree) -> None:
    directory = tree.mint(ROOT, "directory", Kind.DIR)
    made, stored = tree.mint(directory.ino, "made"), tree.mint(directory.ino, "stored")
    tree.table.update(stored.ino, etag=ETag("stored"))

    tree.table.forget_unmade()

    assert tree.table.get(made.ino) is None
    assert tree.table.get(stored.ino) is not None
    assert tree.table.get(directory.ino) is not None


def test_only_names_that_the_store_can_tell_again_are_forgotten(tree: Tree) -> None:
    tree.list(ROOT, page(obj("a"), obj("b"), "d/"))
    directory = tree.child("d")
    tree.list(directory.ino, page(obj("d/x")))
    tree.mint(ROOT, "ours")
    tree.table.update(tree.child("b").ino, pinned=1)

    assert tree.table.forget_clean(ROOT) == 2

    assert tree.names() == {"b": Kind.FILE, "d": Kind.DIR, "ours": Kind.FILE}
    assert tree.names(directory.ino) == {}
    assert tree.child("d").listed_ns is None
    tree.list(ROOT, page(obj("a"), obj("b"), "d/"))
    assert "a" in tree.names()
