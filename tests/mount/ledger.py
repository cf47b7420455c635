"""Writes whose traces cannot be confused: each adds a line of its own, which sums itself.

Programs that only append, and never replace what they have not read, lose no line on a local file system. So
whatever was acknowledged must be in some file at the end, and each file must be lines and nothing else.
"""

import contextlib
import errno
import hashlib
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LONGEST: Final = 9_000


@dataclass(frozen=True)
class Deed:
    """What a program did, and what it was told."""

    what: str
    line: str
    """The name of the line that it wrote; empty: it wrote none."""
    name: str
    """The file, relative to the top."""
    error: int
    """Zero, or the number of the error that it got."""
    wrong: str = ""
    """What no file system may show; empty: nothing of the kind was seen."""


def line(name: str) -> bytes:
    """The line of that name: as long as its name says by chance, and summed."""
    filling = "x" * random.Random(name).choice((1, 60, 700, _LONGEST))
    text = f"{name}:{filling}"
    return f"{text}:{hashlib.sha256(text.encode()).hexdigest()[:16]}\n".encode()


def lines_of(content: bytes) -> list[str]:
    """The names of the lines in *content*. Raises ValueError where it is not lines and nothing else."""
    names: list[str] = []
    rest = content
    while rest:
        head, newline, rest = rest.partition(b"\n")
        name = head.partition(b":")[0].decode("ascii", "replace")
        if not newline or head + b"\n" != line(name):
            raise ValueError(f"after {names[-3:]} comes {head[:60]!r} ({len(head)} bytes)")
        names.append(name)
    if not names:
        raise ValueError("empty")
    if len(set(names)) < len(names):
        raise ValueError(f"a line twice: {names}")
    return names


def work(root: Path, who: str, seed: int, shared: list[str], steps: int) -> list[Deed]:
    """Do *steps* things at random in *root*, among them things to the *shared* files. Never raises."""
    chance = random.Random(f"{who}{seed}")
    done: list[Deed] = []
    for step in range(steps):
        name = f"{who}.{seed}.{step}"
        file = chance.choice(shared)
        what = chance.choices(
            ("append", "read", "make", "make and rename", "append twice", "list"),
            (6, 3, 2, 2, 1, 1),
        )[0]
        done += _do(root, what, name, file)
    return done


def _do(root: Path, what: str, name: str, file: str) -> list[Deed]:
    own = f"own/{name}"
    if what == "append":
        return [_tried(what, name, file, lambda: _append(root / file, name))]
    if what == "append twice":
        first, second = f"{name}a", f"{name}b"
        return _append_twice(root / file, file, first, second)
    if what == "read":
        return [_read(root, file)]
    if what == "list":
        return [_list(root)]
    made = _tried("make", name, own, lambda: _make(root / own, name))
    if what == "make" or made.error:
        return [made]
    there = f"own/{name}.moved"
    moved = _tried("rename", "", there, lambda: (root / own).rename(root / there))
    if moved.error == errno.ENOENT:
        return [made, Deed("rename", "", there, moved.error, "what was made was not there")]
    return [made, moved]


def _tried(what: str, line_name: str, name: str, act: Callable[[], object]) -> Deed:
    try:
        act()
    except OSError as error:
        return Deed(what, line_name, name, error.errno or -1)
    return Deed(what, line_name, name, 0)


def _append(path: Path, name: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        _write(fd, line(name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


def _append_twice(path: Path, file: str, first: str, second: str) -> list[Deed]:
    """Append, wait for the store, and append again through the same handle."""
    errors = [-1, -1]
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        return [Deed("open", "", file, error.errno or -1)]
    for at, name in enumerate((first, second)):
        try:
            _write(fd, line(name))
            os.fsync(fd)
            errors[at] = 0
        except OSError as error:
            errors[at] = error.errno or -1
    with contextlib.suppress(OSError):
        os.close(fd)
    return [
        Deed("append and sync", name, file, error)
        for name, error in zip((first, second), errors, strict=True)
    ]


def _make(path: Path, name: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _write(fd, line(name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


def _write(fd: int, content: bytes) -> None:
    if os.write(fd, content) < len(content):
        raise OSError(errno.EIO, "a short write")


def _read(root: Path, file: str) -> Deed:
    """Whatever is read is lines and nothing else, and what is there is never told to be absent."""
    try:
        content = (root / file).read_bytes()
    except OSError as error:
        wrong = f"{file} is said to be absent" if error.errno == errno.ENOENT else ""
        return Deed("read", "", file, error.errno or -1, wrong)
    try:
        lines_of(content)
    except ValueError as error:
        return Deed("read", "", file, 0, f"{file} was read as {error}")
    return Deed("read", "", file, 0)


def _list(root: Path) -> Deed:
    try:
        names = os.listdir(root)
    except OSError as error:
        return Deed("list", "", "", error.errno or -1)
    wrong = "" if "own" in names else f"the listing lacks what is there: {names}"
    return Deed("list", "", "", 0, wrong)


def names_below(directory: Path) -> set[str]:
    """The names of all that is below *directory*."""
    return {name for _, below, files in os.walk(directory) for name in (*below, *files)}


def judged(deeds: list[Deed], stored: Mapping[str, bytes]) -> tuple[set[str], list[str]]:
    """Return the acknowledged lines that no object has, and whatever else is wrong, in words."""
    wrong = [f"{deed.what}: {deed.wrong}" for deed in deeds if deed.wrong]
    found: dict[str, list[str]] = {}
    for key, content in stored.items():
        try:
            names = lines_of(content)
        except ValueError as error:
            wrong.append(f"the store has at {key}: {error}")
            continue
        for name in names:
            found.setdefault(name, []).append(key)
    lost = {deed.line for deed in deeds if deed.line and not deed.error and deed.line not in found}
    for deed in deeds:
        places = found.get(deed.line, [])
        if deed.what == "make" and len(places) > 1:
            wrong.append(f"{deed.name} is at more than one place: {places}")
    return lost, wrong
