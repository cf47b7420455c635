"""A directory tree as keys, in their order, whatever the names."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachefs.core.keys import KEY_MAX
from cachefs.core.types import Kind
from cachefs.ops.merge import byte_order
from cachefs.ops.tree import Found, Tree, Unusable

_NAMES = (
    st.binary(min_size=1, max_size=8)
    .map(lambda raw: raw.replace(b"/", b"!").replace(b"\0", b" "))
    .filter(lambda name: name not in (b".", b".."))
)
_TREES = st.recursive(
    st.just(None), lambda inner: st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
)


def _make(root: bytes, tree: object) -> None:
    if isinstance(tree, dict):
        os.makedirs(root, exist_ok=True)
        for name, inner in tree.items():
            _make(os.path.join(root, name), inner)
    else:
        with open(root, "wb"):
            pass


def test_a_tree_is_walked_as_deep_as_keys_go(tmp_path: Path) -> None:
    deep = "d/" * ((KEY_MAX - len("file")) // 2)
    (tmp_path / deep).mkdir(parents=True)
    (tmp_path / deep / "file").touch()

    keys = _keys(tmp_path)

    assert len(keys) == deep.count("/") + 1
    assert keys[-1] == f"{deep}file"


def _keys(root: Path, *, follow: bool = False) -> list[str]:
    walked = list(Tree(str(root), follow=follow).walk())
    assert all(isinstance(each, Found) for each in walked), walked
    return [each.key for each in walked if isinstance(each, Found)]


def _errors(root: Path, *, follow: bool = False) -> dict[str, str]:
    walked = Tree(str(root), follow=follow).walk()
    return {each.path: str(each.error) for each in walked if isinstance(each, Unusable)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(tree=st.dictionaries(_NAMES, _TREES, max_size=5))
def test_keys_come_in_the_order_in_which_stores_list_them(
    tmp_path: Path, tree: dict[bytes, object]
) -> None:
    root = tmp_path / os.urandom(8).hex()
    _make(os.fsencode(root), tree)

    keys = [byte_order(key) for key in _keys(root)]

    found = {
        os.path.relpath(os.path.join(top, name), os.fsencode(root)) + end
        for top, directories, files in os.walk(os.fsencode(root))
        for names, end in ((directories, b"/"), (files, b""))
        for name in names
    }
    assert set(keys) == found
    assert keys == sorted(keys)


def test_a_directory_comes_after_what_sorts_before_a_slash(tmp_path: Path) -> None:
    (tmp_path / "a" / "x").mkdir(parents=True)
    for name in ("a-b", "a.c", "a0", "a!"):
        (tmp_path / name).touch()

    assert _keys(tmp_path) == ["a!", "a-b", "a.c", "a/", "a/x/", "a0"]


def test_escaped_names_of_a_mount_stand_for_the_keys_that_they_show(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a~cachefs~object").touch()
    (tmp_path / "~cachefs~empty").mkdir()
    (tmp_path / "~cachefs~empty" / "x").touch()
    (tmp_path / "~cachefs~dotdot").touch()

    assert _keys(tmp_path) == ["..", "/", "/x", "a", "a/"]


@pytest.mark.parametrize(
    "name", ["a~cachefs~object", "x~cachefs~y", "~cachefs~raw~plain", "~cachefs~empty"]
)
def test_a_name_that_is_no_object_s_is_said_and_stands_for_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "b").touch()

    assert list(_errors(tmp_path)) == [name]
    assert "b" in [each.path for each in Tree(str(tmp_path)).walk()]


def test_nothing_is_known_of_what_is_below_a_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "x~cachefs~y" / "z").mkdir(parents=True)

    assert list(_errors(tmp_path)) == ["x~cachefs~y/"]


def test_kinds_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as door:
        monkeypatch.chdir(tmp_path)
        door.bind("socket")

    kinds = {
        each.path: each.kind for each in Tree(str(tmp_path)).walk() if isinstance(each, Found)
    }

    assert kinds == {
        "dir/": Kind.DIR,
        "fifo": Kind.FIFO,
        "file": Kind.FILE,
        "link": Kind.SYMLINK,
        "socket": Kind.SOCKET,
    }


def test_links_are_followed_where_that_is_wanted_and_never_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").touch()
    (tmp_path / "real" / "up").symlink_to("..")
    (tmp_path / "also").symlink_to("real")
    (tmp_path / "nowhere").symlink_to("none")

    assert _keys(tmp_path) == ["also", "nowhere", "real/", "real/up", "real/x"]
    walked = list(Tree(str(tmp_path), follow=True).walk())
    assert [each.key for each in walked if isinstance(each, Found)] == [
        "also/",
        "also/x",
        "real/",
        "real/x",
    ]
    assert set(_errors(tmp_path, follow=True)) == {"also/up/", "real/up/", "nowhere"}


def test_a_directory_that_is_not_wanted_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "deep").mkdir(parents=True)

    walked = Tree(str(tmp_path)).walk(lambda path: path != "out/")

    assert [each.path for each in walked] == ["in/"]


def test_one_path_is_looked_up_as_the_walk_would_find_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "~cachefs~dot").mkdir(parents=True)
    (tmp_path / "a" / "~cachefs~dot" / "x").touch()
    tree = Tree(str(tmp_path))
    walked = {each.path: each for each in tree.walk()}

    for path in walked:
        found, same = tree.look(path), walked[path]
        assert isinstance(found, Found)
        assert isinstance(same, Found)
        assert (found.key, found.path) == (same.key, same.path)
    spelled = tree.look("./a//~cachefs~dot/x")
    assert isinstance(spelled, Found)
    assert spelled.key == "a/./x"


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tree(str(tmp_path)).look("a")


def test_a_path_through_a_link_leads_out_of_the_tree_and_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to("../outside")

    found = Tree(str(tmp_path / "root")).look("link/secret")

    assert isinstance(found, Unusable)
    assert "no directory" in str(found.error)
