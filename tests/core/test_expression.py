"""An operator's own score: arithmetic and nothing else, however it is written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.errors import UsageError
from cachefs.core.expression import NAMES, parse

FILE = {"size": 4096.0, "age": 1000.0, "idle": 100.0, "hits": 4.0, "fetch_seconds": 0.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("size", 4096),
        ("size * idle / hits", 102400),
        ("-hits + 2 ** 3 % 5 // 2", -3),
        ("max(1, min(idle, age), hits)", 100),
        ("log(size) / sqrt(hits)", math.log(4096) / 2),
        ("fetch_seconds\t*  1e3 ", 500),
        ("(((age)))", 1000),
        ("abs(hits - 10)", 6),
    ],
)
def test_arithmetic_is_what_it_is(text: str, value: float) -> None:
    assert parse(text).value(FILE) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["1 / (hits - 4)", "sqrt(-size)", "log(0)", "(0 - 8) ** 0.5", "1e308 * 10 - 1e308 * 10"],
)
def test_what_has_no_value_goes_last(text: str) -> None:
    assert parse(text).value(FILE) == -math.inf


@pytest.mark.parametrize(
    "text",
    [
        "",
        "size +",
        "__import__('os').remove('x')",
        "size.__class__",
        "[size]",
        "size if idle else age",
        "lambda: 1",
        "'a' * 9",
        "True",
        "1j",
        "path",
        "gdfs",
        "size < 3",
        "open(size)",
        "log(size, 2)",
        "max(size)",
        "min(*size)",
        "sqrt(x=size)",
        "(size := 3)",
        "1 << 9",
        "size and idle",
        "size\nidle",
        "size; idle",
        "\0",
        "+".join(["size"] * 200),
        "(" * 300 + "size" + ")" * 300,
        "-" * 400 + "size",
        "1" * 400,
        "size" * 200,
    ],
)
def test_anything_else_is_refused_with_what_may_be_written(text: str) -> None:
    with pytest.raises(UsageError, match="fetch_seconds"):
        parse(text)


@pytest.mark.parametrize("text", ["9**9**9**9", "size ** 1e9", "2 ** (2 ** size)", "1e300 ** age"])
def test_no_power_takes_long(text: str) -> None:
    assert parse(text).value(FILE) in {math.inf, -math.inf}


@given(st.text(alphabet="sizeagh0123456789.+-*/%(), ", max_size=40))
def test_whatever_is_typed_is_a_number_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except UsageError:
        return
    assert not math.isnan(found.value(FILE))
    assert not math.isnan(found.value(dict.fromkeys(NAMES, 0.0)))
