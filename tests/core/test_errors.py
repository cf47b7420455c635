"""Every error has its errno, and the tree at the top of the file is the tree."""

import errno
import re
from collections.abc import Iterator

import pytest

from cachefs.core import errors
from cachefs.core.errors import (
    CachefsError,
    Changed,
    Fault,
    NoBucket,
    NoEntry,
    NotFound,
    Refused,
    TimedOut,
    Unreachable,
    UsageError,
    errno_of,
)


def subclasses(kind: type[CachefsError]) -> Iterator[type[CachefsError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from subclasses(child)


ALL = list(subclasses(CachefsError))


def drawn() -> dict[str, str]:
    """The docstring's tree: each class and its parent."""
    parents: dict[str, str] = {}
    trail: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)((?:[A-Z]\w+)(?:, [A-Z]\w+)*)(,?)", line)
        if match is None:
            continue
        depth, names = len(match[1]), match[2].split(", ")
        while trail and trail[-1][0] >= depth:
            trail.pop()
        for name in names:
            if trail:
                parents[name] = trail[-1][1]
        trail.append((depth, names[0]))
    return parents


@pytest.mark.parametrize("error", ALL)
def test_every_error_has_an_errno(error: type[CachefsError]) -> None:
    instance = error("why")
    assert errno_of(instance) in errno.errorcode


@pytest.mark.parametrize("error", ALL)
def test_every_error_has_its_own_line_in_the_table(error: type[CachefsError]) -> None:
    assert error in errors._ERRNO


def test_the_table_names_nothing_else() -> None:
    assert set(errors._ERRNO) == set(ALL)


def test_an_error_made_elsewhere_has_its_parents_errno() -> None:
    class Odd(NotFound):
        pass

    assert errno_of(Odd("x")) == errno.ENOENT


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert drawn() == {
        error.__name__: error.__base__.__name__
        for error in ALL
        if error is not CachefsError and error.__base__ is not None
    }


def test_only_an_answer_that_nothing_is_there_says_so_to_a_program() -> None:
    absent = [error for error in ALL if errno_of(error("x")) == errno.ENOENT]
    assert absent == [NotFound, NoEntry]


def test_a_bucket_that_is_gone_does_not_look_like_an_empty_tree() -> None:
    assert errno_of(NoBucket("x")) == errno.ENODEV


@pytest.mark.parametrize("error", [Unreachable, TimedOut])
def test_only_a_fault_is_worth_another_try(error: type[CachefsError]) -> None:
    assert issubclass(error, Fault)
    assert not issubclass(Fault, Refused)
    assert not issubclass(Changed, Fault)
    assert not issubclass(NotFound, Fault)


def test_a_fault_carries_how_long_the_store_wants_to_be_left_alone() -> None:
    assert Fault("busy", retry_after_s=1.5).retry_after_s == 1.5
    assert Unreachable("no route").retry_after_s is None
    assert str(Fault("busy", retry_after_s=1)) == "busy"


def test_the_operators_mistake_carries_the_commands_exit_code() -> None:
    assert UsageError("x").exit_code == 2
    assert UsageError("x", exit_code=4).exit_code == 4
