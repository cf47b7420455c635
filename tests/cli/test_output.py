"""What is said on a terminal: one line, whatever names it holds."""

import pytest

from cachefs.cli.output import complain, table


def test_no_name_moves_the_cursor_or_ends_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("evil\x1b[2J\nname \udce9\x07 — café")

    assert capsys.readouterr().err == "cachefs: evil\\x1b[2J name \\xe9\\x07 — café\n"


def test_a_cell_that_is_too_long_pushes_nothing_but_its_own_line_to_the_right() -> None:
    lines = table([("queued", "x" * 255, "why"), ("parked", "y", "why not")])

    assert lines == [f"queued  {'x' * 255}  why", f"parked  y{' ' * 59}  why not"]
