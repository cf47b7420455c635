"""What is measured: the rows of the table, and the scenes (one fresh cache, one mount) that they are taken in."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    large: int = 512 * MIB
    small: int = 1000
    listed: int = 10_000
    created: int = 500
    small_bytes: int = 4096


QUICK: Final = Sizes(large=32 * MIB, small=100, listed=1000, created=50)


class Kind(StrEnum):
    """Which limit a row is held against."""

    READ = "read"
    LIST = "list"
    WRITE = "write"
    OTHER = "other"


class Before(StrEnum):
    """What is done, unmeasured, before a step."""

    NOTHING = "nothing"
    FORGET = (
        "forget"  # the kernel's pages of the mount's files go; those of the cache's own files stay
    )
    DROP = (
        "drop"  # every clean page of the machine goes: the cache is read from its disk (root only)
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    title: str
    kind: Kind
    bytes_moved: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One measured piece of work in a mount.

    *stored* is where its objects must be before it counts as done: a prefix, how many, and of what size.
    """

    row: Row
    do: str
    path: str
    arguments: dict[str, Any]
    before: Before = Before.NOTHING
    stored: tuple[str, int, int] | None = None
    closed_row: Row | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """The steps of one mount, in order; the first finds the cache empty."""

    name: str
    steps: Sequence[Step]

    def rows(self) -> list[Row]:
        return [
            row for step in self.steps for row in (step.row, step.closed_row) if row is not None
        ]


MOUNT: Final = Row("mount", "mount, until it answers", Kind.OTHER)


def scenes(sizes: Sizes) -> list[Scene]:
    """Everything that can be measured. ``{new}`` in a path is a prefix that no other mount has used."""
    return [
        Scene("first", [_first_byte()]),
        Scene("large", _large(sizes)),
        Scene("small", _small(sizes)),
        Scene("list", _list(sizes, "ls", "list", "")),
        Scene("posix", _list(sizes, "ls-posix", "posix", ", all with stored modes")),
        Scene("create", [_create(sizes)]),
        Scene("write", [_write(sizes)]),
    ]


def _first_byte() -> Step:
    row = Row("first-byte", "first byte of a cold large object", Kind.READ)
    return Step(row, "first_byte", "large/object", {})


def _large(sizes: Sizes) -> list[Step]:
    of = f"{sizes.large // MIB} MiB"

    def step(name: str, title: str, before: Before) -> Step:
        row = Row(name, f"sequential, {of}, {title}", Kind.READ, sizes.large)
        return Step(row, "sequential", "large/object", {"size": sizes.large}, before)

    return [
        step("seq-cold", "cold", Before.NOTHING),
        step("seq-again", "again, kernel's pages kept", Before.NOTHING),
        step("seq-warm", "warm", Before.FORGET),
        step("seq-disk", "warm, from the disk", Before.DROP),
    ]


def _small(sizes: Sizes) -> list[Step]:
    arguments = {"count": sizes.small, "size": sizes.small_bytes}

    def step(name: str, title: str, before: Before) -> Step:
        row = Row(name, f"{sizes.small:,} small files, {title}", Kind.READ)
        return Step(row, "read_all", "small", arguments, before)

    return [
        step("small-cold", "cold", Before.NOTHING),
        step("small-warm", "warm", Before.FORGET),
        step("small-disk", "warm, from the disk", Before.DROP),
    ]


def _list(sizes: Sizes, name: str, directory: str, suffix: str) -> list[Step]:
    arguments = {"count": sizes.listed}

    def step(row: str, title: str) -> Step:
        line = Row(row, f"ls -l of {sizes.listed:,}{suffix}, {title}", Kind.LIST)
        return Step(line, "list_long", directory, arguments)

    return [step(f"{name}-cold", "cold"), step(f"{name}-again", "again")]


def _create(sizes: Sizes) -> Step:
    title = f"create {sizes.created:,} small files"
    return Step(
        Row("create", f"{title}, until stored", Kind.WRITE),
        "create",
        "{new}",
        {"count": sizes.created, "size": sizes.small_bytes},
        stored=("{new}/", sizes.created, sizes.small_bytes),
        closed_row=Row("create-closed", f"{title}, until closed", Kind.WRITE),
    )


def _write(sizes: Sizes) -> Step:
    title = f"write {sizes.large // MIB} MiB"
    return Step(
        Row("write", f"{title}, until stored", Kind.WRITE, sizes.large),
        "write_large",
        "{new}/object",
        {"size": sizes.large},
        stored=("{new}/", 1, sizes.large),
        closed_row=Row("write-closed", f"{title}, until closed", Kind.WRITE, sizes.large),
    )
