"""Traces, in every form that they come in."""

import gzip
import math
import struct
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.errors import UsageError
from cachefs.core.history import Accessed
from cachefs.core.traceline import HEADER, TraceLine
from cachefs.ops.traces import NEVER, Format, Trace, from_history, read


def opens(trace: Trace) -> list[tuple[int, int, int, float | None, bool]]:
    return [
        (time, key, size, None if math.isnan(took) else took, bool(write))
        for time, key, size, took, write in zip(
            trace.times_ns, trace.keys, trace.sizes, trace.seconds, trace.writes, strict=True
        )
    ]


LINES = st.builds(
    TraceLine,
    st.integers(0, 2**31).map(lambda seconds: seconds * 10**9),
    st.sampled_from(["a", "a,b", 'q"', "new\nline", "caf\udce9", "é/ü"]),
    st.integers(0, 2**50),
    st.booleans(),
    st.integers(0, 10**12).map(lambda micros: micros * 1000),
    st.booleans(),
)


@given(st.lists(LINES, min_size=1, max_size=20))
def test_what_a_mount_writes_is_read_in_the_order_of_time(
    tmp_path_factory: pytest.TempPathFactory, lines: list[TraceLine]
) -> None:
    path = tmp_path_factory.mktemp("t") / "trace.csv"
    path.write_text("\n".join([HEADER, *(line.encode() for line in lines)]) + "\n")

    trace = read([path], form=None, columns=None)

    number = {key: at for at, key in enumerate(dict.fromkeys(line.key for line in lines))}
    assert opens(trace) == [
        (
            line.time_ns,
            number[line.key],
            line.size,
            pytest.approx(line.fetch_ns / 1e9) if line.fetch_ns else None,
            line.is_write,
        )
        for line in sorted(lines, key=lambda line: line.time_ns)
    ]
    assert trace.files == len(number)


def test_several_files_are_one_trace_and_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(f"{HEADER}\n5.0,a,10,1,0.0,read\n")
    old = tmp_path / "old.csv.gz"
    old.write_bytes(
        gzip.compress(f"{HEADER}\n2.0,b,20,0,0.5,read\n3.0,a,10,0,0.1,read\n".encode())
    )

    trace = read([tmp_path / "new.csv", old], form=None, columns=None)

    assert opens(trace) == [
        (2 * 10**9, 1, 20, 0.5, False),
        (3 * 10**9, 0, 10, 0.1, False),
        (5 * 10**9, 0, 10, None, False),
    ]
    assert (trace.footprint(), trace.reads()) == (30, (3, 40))
    assert list(trace.next_uses()) == [NEVER, 2, NEVER]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("x,7,obj,100\ny,8,other,200\n", {"key": "3", "size": "4", "time": "2"}),
        ("a,t,o,s\nx,7,obj,100\ny,8,other,200\n", {"key": "o", "size": "s", "time": "t"}),
        ("a,t,o,s\nx,7,obj,100\ny,8,other,200\n", {"key": "3", "size": "4", "time": "2"}),
    ],
)
def test_csv_has_its_columns_where_it_is_told(
    text: str, columns: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "t").write_text(text)

    found = opens(read([tmp_path / "t"], form=Format.CSV, columns=columns))

    assert found == [(7 * 10**9, 0, 100, None, False), (8 * 10**9, 1, 200, None, False)]


def test_without_times_the_order_of_the_lines_is_that_of_the_opens(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("b,1\na,2\nb,1\n")

    trace = read([tmp_path / "t"], form=None, columns={"key": "1", "size": "2"})

    assert list(trace.keys) == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("a,b\n", None, "does not begin as a trace of cachefs does"),
        ("1,k,5\n", {"time": "1"}, "needs key and size"),
        ("1,k,5\n", {"key": "2", "size": "9"}, "has no column '9' for size"),
        ("1,k,5\n", {"key": "2", "size": "3", "colour": "1"}, "knows time, key, size"),
        ("1,k,5\n2,k\n", {"key": "2", "size": "3"}, "line 2 is no open"),
        ("1,k,5\n2,k,-7\n", {"key": "2", "size": "3"}, "line 2 is no open"),
        ("1,k,5\nx,k,7\n", {"time": "1", "key": "2", "size": "3"}, "line 2 is no open"),
        ("1,k,5\n1e99,k,7\n", {"time": "1", "key": "2", "size": "3"}, "line 2 is no open"),
        (f"{HEADER}\n", None, "there is no open in"),
        ("", None, "there is no open in"),
    ],
)
def test_what_is_no_trace_is_said_with_its_place(
    text: str, columns: dict[str, str] | None, said: str, tmp_path: Path
) -> None:
    (tmp_path / "t").write_text(text)

    with pytest.raises(UsageError, match=said):
        read([tmp_path / "t"], form=None, columns=columns)


def test_a_trace_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read([tmp_path / "none"], form=None, columns=None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.oracleGeneral.bin", b""),
        ("t.oracleGeneral.bin", bytes(25)),
        ("t.csv.gz", b"no gzip"),
        ("t.csv.gz", gzip.compress(f"{HEADER}\n1.0,a,10,1,0.0,read\n".encode(), mtime=0)[:-9]),
        ("t.csv.gz", gzip.compress(bytes(9999), mtime=0)[:20] + b"\xff" * 20),
    ],
)
def test_what_is_broken_is_said_and_ends_nothing(
    name: str, content: bytes, tmp_path: Path
) -> None:
    if "oracle" in name:
        pytest.importorskip("libcachesim")
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UsageError, match=r"cannot be read|is no trace"):
        read([tmp_path / name], form=None, columns=None)


def test_a_last_line_that_was_cut_off_is_no_open_and_one_in_between_is_an_error(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEADER}\n1.0,a,10,1,0.0,read\n2.0,b")
    assert len(read([path], form=None, columns=None)) == 1

    path.write_text(f"{HEADER}\n2.0,b\n1.0,a,10,1,0.0,read\n")
    with pytest.raises(UsageError, match="line 2 is no open"):
        read([path], form=None, columns=None)


def test_oracle_general_is_read_by_the_library(tmp_path: Path) -> None:
    pytest.importorskip("libcachesim")
    path = tmp_path / "t.oracleGeneral.bin"
    rows = [(10, 77, 100, 2), (11, 88, 200, -1), (12, 77, 100, -1)]
    path.write_bytes(b"".join(struct.pack("<IQIq", *row) for row in rows))

    trace = read([path], form=None, columns=None)

    assert opens(trace) == [
        (10 * 10**9, 0, 100, None, False),
        (11 * 10**9, 1, 200, None, False),
        (12 * 10**9, 0, 100, None, False),
    ]


def test_a_history_becomes_opens_on_the_days_that_it_tells_of_and_always_the_same() -> None:
    day = datetime(2026, 5, 4).toordinal()
    history = [
        Accessed("a", 100, 9, 1, {day: 3, day - 1: 2}, fetch_ns=500_000_000),
        Accessed("b", 50, 4, 1, {day: 4}),
        Accessed("long ago", 10, 99, 1, {}),
    ]

    trace = from_history(history)

    days = [datetime.fromtimestamp(ns / 1e9).toordinal() - day for ns in trace.times_ns]
    assert days == [-1] * 2 + [0] * 7
    assert sorted(trace.keys) == [0] * 5 + [1] * 4
    assert {(key, took) for _, key, _, took, _ in opens(trace)} == {(0, 0.5), (1, None)}
    assert opens(from_history(history)) == opens(trace)
    with pytest.raises(UsageError, match="remembers no open"):
        from_history([history[2]])
