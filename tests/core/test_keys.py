"""Names for every key: two things never share a name, and a name that stands alone can be undone."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cachefs.core.errors import InvalidName, NameTooLong
from cachefs.core.keys import (
    KEY_MAX,
    MARK,
    NAME_MAX,
    child_key,
    component_of,
    conflict_name,
    last_component,
    name_of,
)
from cachefs.core.types import Key, Name


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


_pieces = st.one_of(
    st.sampled_from(
        ["", ".", "..", MARK, "~", "%", "%00", "%7E", "\0", "é", "object", "raw~", "a"]
    ),
    st.sampled_from([f"{MARK}raw~", f"{MARK}object", f"{MARK}empty", f"{MARK}long~", "x" * 250]),
    st.binary(max_size=12).map(_decode),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
components = (
    st.lists(_pieces, max_size=5)
    .map(lambda pieces: _decode("".join(pieces).encode("utf-8", "surrogateescape")))
    .filter(lambda c: "/" not in c and len(c.encode("utf-8", "surrogateescape")) <= KEY_MAX)
)


@pytest.mark.parametrize(
    ("component", "shadowed", "name"),
    [
        ("a", False, b"a"),
        ("a", True, b"a~cachefs~object"),
        ("", False, b"~cachefs~empty"),
        (".", False, b"~cachefs~dot"),
        ("..", False, b"~cachefs~dotdot"),
        ("", True, b"~cachefs~empty~cachefs~object"),
        ("...", False, b"..."),
        (" ", False, b" "),
        ("~cachefs", False, b"~cachefs"),
        ("100%", False, b"100%"),
        ("é\n\\", False, b"\xc3\xa9\n\\"),
        ("\udcff", False, b"\xff"),
        ("a\0b", False, b"~cachefs~raw~a%00b"),
        ("~cachefs~dot", False, b"~cachefs~raw~%7Ecachefs%7Edot"),
        ("a~cachefs~object", False, b"~cachefs~raw~a%7Ecachefs%7Eobject"),
        ("%\0", False, b"~cachefs~raw~%25%00"),
        ("x" * 255, False, b"x" * 255),
        ("x" * 256, False, b"x" * 209 + b"~cachefs~long~85e62acd750c4eb56b7b6a1d66dca5bf"),
    ],
)
def test_the_name_of_a_component_is_pinned(component: str, shadowed: bool, name: bytes) -> None:
    # Paths that programs have written down depend on these.
    assert len(name) <= NAME_MAX
    assert name_of(component, shadowed=shadowed) == name


@given(components, st.booleans())
@example("x" * 300, True)
@example("\0" * 300, False)
@example("\udcff" * 300, False)
def test_every_component_has_a_name_that_the_kernel_takes(component: str, shadowed: bool) -> None:
    name = bytes(name_of(component, shadowed=shadowed))
    assert 0 < len(name) <= NAME_MAX
    assert b"/" not in name
    assert b"\0" not in name
    assert name not in {b".", b".."}


@given(components, st.booleans())
def test_a_name_is_undone_from_itself_alone_unless_it_was_cut(
    component: str, shadowed: bool
) -> None:
    name = name_of(component, shadowed=shadowed)
    if b"~cachefs~long~" in bytes(name):
        with pytest.raises(InvalidName):
            component_of(name)
    else:
        assert component_of(name) == (component, shadowed)


@given(components, st.booleans(), components, st.booleans())
@example("a", True, "a~cachefs~object", False)
@example("a\0b", False, "a%00b", False)
@example("", False, "~cachefs~empty", False)
@example("x" * 300, True, "x" * 300 + "\0object", False)
@example("x" * 300, True, "x" * 300 + "~cachefs~object", False)
@example("x" * 300, False, "x" * 300, True)
@example("x" * 300, False, "x" * 301, False)
@example("x" * 400 + "\0", False, "x" * 400, False)
def test_two_things_never_share_a_name(one: str, shadowed: bool, other: str, too: bool) -> None:
    assume((one, shadowed) != (other, too))
    assert name_of(one, shadowed=shadowed) != name_of(other, shadowed=too)


@given(st.binary(min_size=1, max_size=NAME_MAX).filter(lambda n: b"/" not in n and b"\0" not in n))
def test_a_name_that_programs_choose_makes_its_own_component_or_is_refused(raw: bytes) -> None:
    name = Name(raw)
    try:
        component, shadowed = component_of(name)
    except InvalidName:
        assert MARK.encode() in raw or raw in {b".", b".."}
    else:
        assert name_of(component, shadowed=shadowed) == name


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b".",
        b"..",
        b"~cachefs~",
        b"a~cachefs~b",
        b"~cachefs~raw~plain",
        b"~cachefs~raw~%7e",
        b"~cachefs~raw~%41",
        b"~cachefs~object~cachefs~object",
        b"x~cachefs~long~" + b"0" * 32,
        b"a~cachefs~dot",
    ],
)
def test_a_name_that_nothing_has_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidName):
        component_of(Name(name))


@given(st.sampled_from(["", "d/", "d//", "é/x/", "/"]), components)
def test_the_last_component_of_a_childs_key_is_the_child(directory: str, component: str) -> None:
    parent = Key(directory)
    assert last_component(child_key(parent, component, is_dir=True), parent) == component
    assert last_component(child_key(parent, component), parent) == component.removesuffix("/")


def test_the_marker_of_a_directory_is_its_empty_component() -> None:
    assert last_component(Key("d/"), Key("d/")) == ""
    assert child_key(Key("d/"), "") == "d/"


@pytest.mark.parametrize("is_dir", [False, True])
@pytest.mark.parametrize("letter", ["a", "é", "\udcff"])
def test_a_key_is_as_long_as_any_store_bears_and_no_longer(letter: str, is_dir: bool) -> None:
    width = len(letter.encode("utf-8", "surrogateescape"))
    room = KEY_MAX - len("dd/") - is_dir
    longest = letter * (room // width)
    key = child_key(Key("dd/"), longest, is_dir=is_dir)
    assert key == f"dd/{longest}" + "/" * is_dir
    with pytest.raises(NameTooLong):
        child_key(Key("dd/"), longest + letter, is_dir=is_dir)


# ---- conflicts ------------------------------------------------------------------------------

names = st.binary(min_size=1, max_size=NAME_MAX).filter(lambda n: b"/" not in n and b"\0" not in n)
WHEN = "20260102T030405Z"


def test_a_conflict_name_tells_whose_and_when() -> None:
    assert (
        conflict_name(Name(b"a.txt"), host="box", when=WHEN)
        == b"a.txt.conflict-box-20260102T030405Z"
    )


@given(names, st.text(alphabet="abc-.", min_size=1, max_size=64), st.integers(0, 10**6))
def test_a_conflict_name_fits_and_begins_with_the_name(raw: bytes, host: str, turn: int) -> None:
    kept = conflict_name(Name(raw), host=host, when=WHEN, turn=turn)
    tail = f".conflict-{host}-{WHEN}".encode()
    head = kept[: kept.rindex(tail)]
    assert len(kept) <= NAME_MAX
    if len(raw) + len(tail) + 8 <= NAME_MAX:
        assert head == raw


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀"])
def test_a_name_is_cut_between_its_characters(letter: str) -> None:
    name = Name((letter * NAME_MAX).encode()[: NAME_MAX // 12 * 12])
    for width in range(1, 20):
        kept = conflict_name(name, host="h" * width, when=WHEN)
        head, _, _ = kept.decode().partition(".conflict-")
        assert set(head) == {letter}
        assert NAME_MAX - 4 < len(kept) <= NAME_MAX


@given(names, st.integers(0, 50), st.integers(0, 50))
def test_each_turn_makes_another_name(raw: bytes, one: int, other: int) -> None:
    def kept(turn: int) -> Name:
        return conflict_name(Name(raw), host="box", when=WHEN, turn=turn)

    assert (kept(one) == kept(other)) == (one == other)
