"""Which paths include and exclude patterns leave."""

import pytest

from cachefs.core.errors import UsageError
from cachefs.ops.globs import chosen


@pytest.mark.parametrize(
    ("include", "exclude", "path", "is_taken"),
    [
        ((), (), "any/where", True),
        (("*.jpg",), (), "a/b.jpg", True),
        (("*.jpg",), (), "a/b.png", False),
        ((), ("*.tmp",), "a/b.tmp", False),
        ((), ("*.tmp",), "a/b.txt", True),
        (("*.jpg",), ("private/",), "private/b.jpg", False),
        (("/top/**",), (), "top/a/b", True),
        (("/top/**",), (), "else/top/a", False),
        ((), ("*.log", "!keep.log"), "keep.log", True),
        ((), ("odd[!a]name",), "oddbname", False),
        (("caf\udce9",), (), "caf\udce9", True),
    ],
)
def test_a_path_is_taken_that_is_included_and_not_excluded(
    include: tuple[str, ...], exclude: tuple[str, ...], path: str, *, is_taken: bool
) -> None:
    assert (path in chosen(include, exclude)) is is_taken


def test_what_is_no_pattern_is_said_with_its_option() -> None:
    with pytest.raises(UsageError, match=r"--exclude '!'"):
        chosen((), ("!",))
