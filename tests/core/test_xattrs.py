"""Extended attributes on objects: what programs set is read again, here and by the tools that share the bucket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.errors import NoAttribute
from cachefs.core.metadata import TOKEN
from cachefs.core.xattrs import KEY, changed, decode

names = st.binary(min_size=1, max_size=40).map(lambda name: b"user." + name.replace(b"\0", b"0"))
attributes = st.dictionaries(names, st.binary(max_size=60), max_size=6)
S3FS = "%7B%22user.one%22%3A%22dmFsdWUgb25l%22%2C%22user.two%22%3A%22AP8B%22%7D"


@given(attributes)
def test_what_is_set_is_read_again(wanted: dict[bytes, bytes]) -> None:
    meta: dict[str, str] = {"mode": "33188"}
    for name, value in wanted.items():
        meta = changed(meta, name, value)
    assert decode(meta) == wanted
    assert meta["mode"] == "33188"


@given(attributes.filter(bool), st.data())
def test_what_is_removed_is_gone_and_the_rest_stays(
    wanted: dict[bytes, bytes], data: st.DataObject
) -> None:
    meta: dict[str, str] = {}
    for name, value in wanted.items():
        meta = changed(meta, name, value)
    victim = data.draw(st.sampled_from(sorted(wanted)))
    rest = changed(meta, victim, None)
    assert decode(rest) == {name: value for name, value in wanted.items() if name != victim}
    with pytest.raises(NoAttribute):
        changed(rest, victim, None)


def test_an_object_without_attributes_carries_no_key_for_them() -> None:
    assert changed(changed({}, b"user.a", b"1"), b"user.a", None) == {}


def test_the_form_is_that_of_s3fs() -> None:
    meta = changed(changed({}, b"user.two", b"\0\xff\1"), b"user.one", b"value one")
    assert meta == {KEY: S3FS}


def test_names_are_utf_8_as_s3fs_has_them() -> None:
    assert "user.w%C3%A9ird%20name" in changed({}, "user.wéird name".encode(), b"")[KEY]


def test_attributes_of_other_kinds_that_s3fs_stored_survive() -> None:
    meta = {KEY: "%7B%22security.x%22%3A%22AA%3D%3D%22%7D"}
    assert decode(meta) == {}
    assert "security.x" in changed(meta, b"user.a", b"1")[KEY]


def test_metadata_keys_of_others_are_attributes() -> None:
    # geesefs escapes, rclone does not.
    meta = {"color": "red", "note": "50%25 caf%C3%A9", "left": "50%", "mode": "33188", TOKEN: "t"}
    meta[":cache-control"] = "no-store"  # a header, and no metadata of the user's
    assert decode(meta) == {
        b"user.color": b"red",
        b"user.note": "50% café".encode(),
        b"user.left": b"50%",
    }


def test_a_metadata_key_of_another_tool_stays_one_when_its_value_changes() -> None:
    meta = changed({"color": "red"}, b"user.color", b"dark green%")
    assert meta == {"color": "dark%20green%25"}
    assert decode(meta) == {b"user.color": b"dark green%"}
    assert changed(meta, b"user.color", None) == {}


@pytest.mark.parametrize(
    "text", ["", "%7B", "[]", "%5B1%5D", "%7B%22user.a%22%3A1%7D", "=?utf-8?b?"]
)
def test_what_makes_no_sense_counts_as_absent(text: str) -> None:
    assert decode({KEY: text}) == {}


def test_a_value_that_is_no_base64_is_taken_as_it_is() -> None:
    assert decode({KEY: '{"user.a":"plain text"}'}) == {b"user.a": b"plain text"}


def test_an_attribute_that_no_program_could_have_set_is_not_shown_and_survives() -> None:
    packed = changed({}, b"user.fine", b"1")[KEY]
    odd = changed({KEY: packed}, b"user.cachefs.state", b"a lie")
    meta = {**odd, "cachefs.key": "a lie", "n" * 300: "too long", "": "no name"}
    assert decode(meta) == {b"user.fine": b"1"}
    assert changed(meta, b"user.fine", b"2").keys() == meta.keys()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"user.\ud800":"AA=="}', '{"user.a":"\ud800"}'])
def test_text_that_is_no_text_counts_as_absent(text: str) -> None:
    assert decode({KEY: text}) == {}
