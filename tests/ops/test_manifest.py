"""Lists of files, in every form that one is written in."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.errors import UsageError
from cachefs.ops.manifest import Row, rows

_NAMES = st.binary(min_size=1, max_size=40).map(
    lambda raw: raw.replace(b"\0", b"_").replace(b"/", b"-").decode("utf-8", "surrogateescape")
)
_PATHS = st.lists(_NAMES.filter(lambda n: n not in {".", ".."}), min_size=1, max_size=4).map(
    "/".join
)


def _read(text: bytes, *, null: bool = False) -> list[Row]:
    return list(rows(io.BytesIO(text), name="list", null=null))


def test_plain_lines_are_paths_and_blank_ones_are_nothing() -> None:
    assert _read(b"a/b\n\nc d\r\n./e\nlast") == [Row("a/b"), Row("c d"), Row("e"), Row("last")]


@given(st.lists(_PATHS, min_size=1))
def test_paths_that_end_in_nul_may_hold_anything_else(paths: list[str]) -> None:
    text = b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in paths)
    assert [row.path for row in _read(text)] == paths


@given(st.lists(_PATHS, min_size=1))
def test_json_lines_bear_every_name(paths: list[str]) -> None:
    text = "\n".join(json.dumps({"path": path, "state": "differs"}) for path in paths)
    assert [row.path for row in _read(text.encode())] == paths


def test_what_json_lines_say_of_a_file_is_kept() -> None:
    line = {
        "path": "a",
        "local_md5": "aa",
        "remote_md5": "bb",
        "size": 3,
        "mtime": 1.5,
        "state": "x",
    }
    assert _read(json.dumps(line).encode()) == [Row("a", md5="aa", size=3, mtime=1.5, state="x")]


@pytest.mark.parametrize(
    "text", [rb'{"path": "\ud800"}', rb'{"\ud800": {}}', rb'{"path": "a\udc41"}']
)
def test_a_path_that_stands_for_no_bytes_is_refused(text: bytes) -> None:
    with pytest.raises(UsageError, match="stands for no bytes"):
        _read(text)


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_of_paths_is_a_list_too(indent: int | None) -> None:
    said = {"d/a": {"md5": "aa", "atime": 5, "ctime": 6, "mtime": 7.5}, "b": {}}
    text = json.dumps(said, indent=indent).encode()
    assert _read(text) == [Row("d/a", md5="aa", atime=5.0, mtime=7.5), Row("b")]


def test_an_object_may_have_a_file_that_is_called_path() -> None:
    assert _read(json.dumps({"path": {"md5": "aa"}}).encode()) == [Row("path", md5="aa")]


def test_a_long_list_is_read_as_a_stream() -> None:
    paths = [f"directory/{number}" for number in range(20_000)]
    assert [row.path for row in _read("\n".join(paths).encode())] == paths


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"../up", "line 1"),
        (b"a\n/absolute", "line 2"),
        (b"a\0b/../../c\0", "entry 2"),
        (b'{"path": "../up"}', "'../up'"),
        (b'{"path": "a"}\n{"size": 1}', "line 2"),
        (b'{"path": "a"}\n{', "line 2"),
        (b'{"a": 1}', "no object"),
        (b"{broken", "JSON"),
        (b'{"path": "a", "mtime": "yesterday"}', "time"),
        (b'{"path": "a", "md5": 5}', "MD5"),
        (b"x" * (1 << 21), "longer"),
    ],
)
def test_what_is_no_list_of_files_is_said_with_its_place(text: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _read(text)
