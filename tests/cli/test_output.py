"""What is said on a terminal: one line, whatever names it holds."""

import pytest

from cachefs.cli.output import complain


def test_no_name_moves_the_cursor_or_ends_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("evil\x1b[2J\nname \udce9\x07 — café")

    assert capsys.readouterr().err == "cachefs: evil\\x1b[2J name \\udce9\\x07 — café\n"
