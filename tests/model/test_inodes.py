"""The inode table against plain dictionaries: whatever happens here and at the store, names and keys agree."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cachefs.core.keys import name_of
from cachefs.core.types import ETag, Ino, Key, Kind, Listing, Name, ObjectInfo
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, InodeTable

COMPONENTS = ["a", "b", "a-1", "", "\0"]
components = st.sampled_from(COMPONENTS)
choices = st.integers(0, 10**6)


class InodeTableMachine(RuleBasedStateMachine):
    """The store is a dictionary of keys; the mount is a dictionary of inodes.

    Listings are whole and true at the moment they begin; what happens here while one is under way comes
    between its beginning and its pages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cft-model-"))
        self.open()
        self.now = 100
        self.store: dict[str, str] = {}  # key → version
        self.dirs: dict[Ino, tuple[Ino, str]] = {}  # directories made here → parent, component
        self.files: dict[Ino, tuple[Ino, str]] = {}  # dirty files → parent, component
        self.issued: set[Ino] = set()

    def open(self) -> None:
        self.db = Database(self.directory)
        self.table = InodeTable(self.db, is_dirty=lambda ino: ino in self.files)
        self.table.make_root(1)

    def teardown(self) -> None:
        self.db.close()
        shutil.rmtree(self.directory)

    def tick(self) -> int:
        self.now += 1
        return self.now

    # ---- the store's side -------------------------------------------------------------------

    @rule(parts=st.lists(components, min_size=1, max_size=3), version=choices)
    def somebody_stores(self, parts: list[str], version: int) -> None:
        self.store["/".join(parts)] = f"v{version}"

    @rule(which=choices)
    def somebody_deletes(self, which: int) -> None:
        if self.store:
            del self.store[sorted(self.store)[which % len(self.store)]]

    def pages_of(self, prefix: str, size: int) -> list[Listing]:
        """The listing of *prefix* in pages of *size*, in the order of keys."""
        shown: dict[str, ObjectInfo | None] = {}
        for key, version in sorted(self.store.items()):
            if key.startswith(prefix):
                component, slash, _ = key[len(prefix) :].partition("/")
                info = ObjectInfo(Key(key), 3, ETag(version), 50)
                shown[f"{prefix}{component}{slash}"] = None if slash else info
        items = list(shown.items())
        return [
            Listing(
                tuple(info for _, info in items[at : at + size] if info is not None),
                tuple(Key(key) for key, info in items[at : at + size] if info is None),
            )
            for at in range(0, len(items), size)
        ]

    # ---- the mount's side -------------------------------------------------------------------

    def some_directory(self, which: int) -> Ino:
        known = [ROOT, *(each.ino for each in self.table.below(ROOT) if each.is_dir)]
        return known[which % len(known)]

    def free_name(self, parent: Ino, component: str) -> Name | None:
        name = name_of(component)
        return None if self.table.child(parent, name) or not component else name

    @rule(where=choices, component=components, kind=st.sampled_from([Kind.FILE, Kind.DIR]))
    def a_program_makes(self, where: int, component: str, kind: Kind) -> None:
        parent = self.some_directory(where)
        name = self.free_name(parent, component)
        if name is None or self.depth(parent) > 3:
            return
        made = self.table.mint(
            parent, name, component, kind, now_ns=self.tick(), mode=0, uid=0, gid=0
        )
        assert made.ino not in self.issued
        assert self.table.child(parent, name) == made
        if kind is Kind.FILE:
            self.files[made.ino] = (parent, component)
        else:
            key = self.table.key_of(made.ino)
            assert key is not None
            self.store[key] = "marker"
        self.table.made(made.ino)

    @rule(which=choices)
    def an_upload_ends(self, which: int) -> None:
        if self.files:
            ino = sorted(self.files)[which % len(self.files)]
            key = self.table.key_of(ino)
            assert key is not None
            self.store[key] = "ours"
            info = ObjectInfo(key, 3, ETag("ours"), 50, meta={})
            del self.files[ino]
            self.table.put(ino, info, self.tick())

    @rule(which=choices)
    def a_program_removes_what_it_wrote(self, which: int) -> None:
        if self.files:
            ino = sorted(self.files)[which % len(self.files)]
            del self.files[ino]
            self.table.detach(ino, self.tick())
            assert self.table.key_of(ino) is None

    @rule(which=choices, where=choices, component=components)
    def a_program_renames_what_it_wrote(self, which: int, where: int, component: str) -> None:
        parent = self.some_directory(where)
        name = self.free_name(parent, component)
        if self.files and name is not None:
            ino = sorted(self.files)[which % len(self.files)]
            self.table.move(ino, parent, name, component, self.tick())
            self.files[ino] = (parent, component)

    @rule(where=choices, size=st.integers(1, 4), hold=st.booleans())
    def a_directory_is_listed(self, where: int, size: int, hold: bool) -> None:
        parent = self.some_directory(where)
        self.list(parent, size, hold, lambda: None)
        self.assert_listing_is_shown(parent)

    @rule(
        where=choices,
        size=st.integers(1, 4),
        component=components,
        kind=st.sampled_from([Kind.FILE, Kind.DIR]),
    )
    def a_program_makes_while_a_directory_is_listed(
        self, where: int, size: int, component: str, kind: Kind
    ) -> None:
        parent = self.some_directory(where)
        self.list(parent, size, False, lambda: self.a_program_makes(where, component, kind))

    def list(self, parent: Ino, size: int, hold: bool, meanwhile: Callable[[], None]) -> None:
        prefix = self.table.key_of(parent)
        assert prefix is not None
        since, pages = self.tick(), self.pages_of(prefix, size)
        held = {each.ino for each in self.table.children(parent)} if hold else set()
        self.tick()
        meanwhile()
        freed: list[Ino] = []
        for page in pages:
            difference = self.table.merge(
                parent, page, since_ns=since, now_ns=self.tick(), held=held
            )
            freed += difference.freed
        difference = self.table.finish_listing(
            parent, since_ns=since, now_ns=self.tick(), held=held
        )
        for ino in [*freed, *difference.freed]:
            assert ino not in held
            assert ino not in self.files
            assert self.table.key_of(ino) is None
            self.table.drop(ino)

    @rule()
    def the_daemon_starts_anew(self) -> None:
        self.issued |= {each.ino for each in self.table.below(ROOT)}
        self.db.close()
        self.open()

    # ---- what always holds ------------------------------------------------------------------

    def depth(self, ino: Ino) -> int:
        return len((self.table.path_of(ino) or b"").split(b"/"))

    def assert_listing_is_shown(self, parent: Ino) -> None:
        """Every object and prefix of the store is there, and nothing else but what is promised."""
        prefix = self.table.key_of(parent)
        assert prefix is not None
        pages = self.pages_of(prefix, 10**6)
        listed = {info.key for page in pages for info in page.objects if info.key != prefix}
        listed |= {key for page in pages for key in page.prefixes}
        listed |= {prefix for page in pages for info in page.objects if info.key == prefix}
        shown = {self.table.key_of(each.ino): each for each in self.table.children(parent)}
        promised = {self.table.key_of(ino) for ino in self.files}
        blocked = {f"{key}/" for key in promised}  # a directory stays hidden by a promised file
        assert listed - promised - blocked <= shown.keys()
        needed = {  # a directory stays while something below is promised
            key for key in shown if key and any((each or "").startswith(key) for each in promised)
        }
        assert shown.keys() - promised - needed <= listed
        for key, inode in shown.items():
            if inode.ino not in self.files and not inode.is_dir:
                assert key is not None
                assert inode.etag == self.store[key]

    @invariant()
    def names_and_keys_agree(self) -> None:
        inodes = self.table.below(ROOT)
        paths = [self.table.path_of(each.ino) for each in inodes]
        keys = [self.table.key_of(each.ino) for each in inodes]
        assert None not in paths
        assert None not in keys
        assert len(set(paths)) == len(paths)
        for inode, key in zip(inodes, keys, strict=True):
            assert key is not None
            assert inode.parent is not None
            assert inode.name is not None
            assert self.table.child(inode.parent, inode.name) == inode
            assert key.endswith("/") == inode.is_dir or inode.component == ""
            if keys.count(key) == 1 and inode.component != "":
                assert self.table.find(key) == inode

    @invariant()
    def what_is_promised_keeps_its_key(self) -> None:
        for ino, (parent, component) in self.files.items():
            inode = self.table.get(ino)
            assert inode is not None
            assert (inode.parent, inode.component) == (parent, component)
            assert self.table.key_of(ino) is not None


def test_the_tree_agrees_with_a_plain_model() -> None:
    run_state_machine_as_test(
        InodeTableMachine,
        settings=settings(max_examples=40, stateful_step_count=25, deadline=None),
    )
