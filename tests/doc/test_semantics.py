"""The table of what goes wrong names tests that there are."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SECTION: Final = (
    (ROOT / "cachefs/doc/semantics.md")
    .read_text("utf-8")
    .partition("## When something goes wrong")[2]
    .partition("\n## ")[0]
)
HEAD, _, TABLE = SECTION.partition("|---|---|---|\n")
ROWS: Final = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", TABLE, re.MULTILINE)
_NAMED: Final = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`(?:, |$)")


def named_in(file: str) -> set[str]:
    """The names of the tests in a file of the suite."""
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name
        for node in tree.body
        if isinstance(node, kinds) and node.name.startswith("test_")
    }


@pytest.mark.parametrize(("fault", "tests"), [(row[0], row[2]) for row in ROWS])
def test_every_fault_names_tests_that_there_are(fault: str, tests: str) -> None:
    named = _NAMED.findall(tests)

    assert named, f"{fault}: no test"
    assert not _NAMED.sub("", tests), f"{fault}: more than names of tests"
    for file, name in named:
        assert named_in(file), f"{fault}: {file} has no tests"
        assert not name or name in named_in(file), f"{fault}: {file} has no {name}"


def test_every_line_of_the_table_is_read() -> None:
    assert HEAD.endswith("| what goes wrong | what happens | tests |\n")
    assert len(ROWS) == TABLE.count("\n|") + TABLE.startswith("|") >= 30
