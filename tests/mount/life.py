"""A program that does everything to a small tree, and the model of what the tree then holds.

What is begun and what was acknowledged is noted outside the mount, so that after a kill the model tells the
two states that the tree may be in: as the last acknowledgement left it, or one step further.
"""

import contextlib
import itertools
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.mount.programs import pattern

_DIRS: Final = ("", "a/", "b/", "a/deep/")
_FILES: Final = ("f0", "f1", "f2")
_LONGEST: Final = 60_000
_PLACE: Final = 7
"""Where a change begins, if the file is that long."""
_MAKING: Final = ("write", "link")


@dataclass(frozen=True)
class Step:
    """One change of the tree: it happens as a whole, or not at all."""

    what: str
    name: str
    size: int = 0
    seed: str = ""
    other: str = ""

    def encode(self) -> str:
        """One line of a journal."""
        return json.dumps([self.what, self.name, self.size, self.seed, self.other])

    @classmethod
    def decode(cls, text: str) -> Self:
        """What :meth:`encode` made a line of."""
        return cls(*json.loads(text))

    @property
    def content(self) -> bytes:
        """What is written."""
        return pattern(self.seed, 0, self.size)


class Tree:
    """What a tree holds: files and links by name, and directories."""

    def __init__(self, files: Mapping[str, bytes], dirs: set[str]) -> None:
        self.files = dict(files)
        self.dirs = set(dirs)

    def copy(self) -> "Tree":
        """One that may change by itself."""
        return Tree(self.files, self.dirs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.files == other.files and self.dirs == other.dirs

    __hash__ = None  # type: ignore[assignment]  # mutable

    def apply(self, step: Step) -> None:
        """Change as *step* does; what changes attributes only, changes nothing here."""
        self._apply_to_names(step)
        if step.what in _MAKING or step.name in self.files:
            self._apply_to_content(step)

    def _apply_to_names(self, step: Step) -> None:
        match step.what:
            case "remove":
                del self.files[step.name]
            case "rename":
                self.files[step.other] = self.files.pop(step.name)
            case "move directory":
                self._move(step.name, step.other)
            case "make directory":
                self.dirs.add(step.name)
            case "remove directory":
                self.dirs.remove(step.name)

    def _apply_to_content(self, step: Step) -> None:
        files, name = self.files, step.name
        match step.what:
            case "write":
                files[name] = step.content
            case "link":
                files[name] = step.other.encode()
            case "append":
                files[name] += step.content
            case "change":
                old = files[name]
                files[name] = old[:_PLACE] + step.content + old[_PLACE + step.size :]
            case "cut":
                files[name] = files[name][: step.size].ljust(step.size, b"\0")

    def _move(self, name: str, other: str) -> None:
        def moved(each: str) -> str:
            return other + each[len(name) :] if f"{each}/".startswith(f"{name}/") else each

        self.files = {moved(each): content for each, content in self.files.items()}
        self.dirs = {moved(each) for each in self.dirs}


def choose(
    tree: Tree, chance: random.Random, seed: str, files: Sequence[str] = _FILES
) -> list[Step]:
    """Return what to do next: one step, or the few of which an editor's save is made."""
    new = f"{chance.choice([f'{d}/' for d in sorted(tree.dirs)] + [''])}{chance.choice(files)}"
    size = chance.choice((0, 1, 4_096, chance.randrange(_LONGEST)))
    if chance.random() < 0.4 or not tree.files:
        return _making(tree, chance, Step("write", _unless_dir(tree, new), size, seed))
    name = chance.choice(sorted(tree.files))
    if name.endswith("link"):
        return [Step("remove", name)]
    kinds = ("append", "change", "cut", "remove", "rename", "directory", "attributes", "link")
    match chance.choice(kinds):
        case "rename":
            other = _unless_dir(tree, new)
            return [Step("rename", name, other=other)] if other != name else []
        case "remove":
            return [Step("remove", name)]
        case "directory":
            return _with_directory(tree, chance)
        case "attributes":
            return [Step(chance.choice(("mode", "times", "attribute")), name, size)]
        case "link":
            link = f"{name}.link"
            return [] if link in tree.files else [Step("link", link, other="to nowhere")]
        case kind:
            return [Step(kind, name, size, seed)]


def _unless_dir(tree: Tree, name: str) -> str:
    return f"{name}.file" if name in tree.dirs else name


def _making(tree: Tree, chance: random.Random, step: Step) -> list[Step]:
    if chance.random() < 0.3:  # an editor's save
        beside = f"{step.name}.tmp"
        if beside not in tree.dirs:
            return [
                Step("write", beside, step.size, step.seed),
                Step("rename", beside, other=step.name),
            ]
    return [step]


def _with_directory(tree: Tree, chance: random.Random) -> list[Step]:
    name = f"{chance.choice(_DIRS)}d{chance.randrange(3)}"
    if name in tree.dirs:
        used = any(each.startswith(f"{name}/") for each in (*tree.files, *tree.dirs))
        other = f"d{chance.randrange(3, 6)}"
        if chance.random() < 0.7 and other not in tree.dirs and other not in tree.files:
            return [Step("move directory", name, other=other)]
        return [] if used else [Step("remove directory", name)]
    above = name.rpartition("/")[0]
    if name in tree.files or (above and above not in tree.dirs):
        return []
    return [Step("make directory", name)]


def live(
    root: Path,
    journal: Path,
    tree: Tree,
    seed: str,
    *,
    turns: int | None = None,
    files: Sequence[str] = _FILES,
) -> None:
    """Do so many things, or go on for ever; each line of the journal is written before the next thing is done.

    Ends with the first error: the daemon was killed, or something is wrong; the journal tells which.
    """
    chance = random.Random(seed)
    log = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in itertools.count(1) if turns is None else range(1, turns + 1):
        for step in choose(tree, chance, f"{seed}.{number}", files):
            os.write(log, f"begun {step.encode()}\n".encode())
            try:
                _do(root, step, chance)
            except OSError as error:
                os.write(log, f"error {error.errno} {error}\n".encode())
                return
            os.write(log, b"done\n")
            tree.apply(step)


def _do(root: Path, step: Step, chance: random.Random) -> None:
    path = root / step.name
    acts: dict[str, Callable[[], object]] = {
        "write": lambda: _write(path, os.O_CREAT | os.O_TRUNC, step.content, chance),
        "append": lambda: _write(path, os.O_APPEND, step.content, chance),
        "change": lambda: _change(path, step.content),
        "cut": lambda: os.truncate(path, step.size),
        "remove": path.unlink,
        "rename": lambda: path.rename(root / step.other),
        "move directory": lambda: path.rename(root / step.other),
        "make directory": path.mkdir,
        "remove directory": path.rmdir,
        "link": lambda: path.symlink_to(step.other),
        "mode": lambda: path.chmod(0o600 | step.size % 64),
        "times": lambda: os.utime(path, ns=(step.size, step.size)),
        "attribute": lambda: os.setxattr(path, "user.note", str(step.size).encode()),
    }
    acts[step.what]()


def _write(path: Path, flags: int, content: bytes, chance: random.Random) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        middle = chance.randrange(len(content) + 1)
        os.write(fd, content[:middle])
        os.write(fd, content[middle:])
        if chance.random() < 0.2:
            os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


def _change(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, content, min(_PLACE, os.fstat(fd).st_size))
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


def seen(root: Path) -> Tree:
    """What is below *root*."""
    files: dict[str, bytes] = {}
    dirs: set[str] = set()
    for top, below, names in os.walk(root, onerror=_raise):
        for name in (*below, *names):
            path = Path(top, name)
            where = str(path.relative_to(root))
            if path.is_symlink():
                files[where] = os.fsencode(path.readlink())
            elif path.is_dir():
                dirs.add(where)
            else:
                files[where] = path.read_bytes()
    return Tree(files, dirs)


def _raise(error: OSError) -> None:
    raise error


def replayed(tree: Tree, journal: str) -> tuple[list[Tree], int, list[str]]:
    """What *journal* says of a tree that was *tree* before.

    Returns the states that it may be in now, how many steps were acknowledged, and the errors that were met.
    """
    now = tree.copy()
    pending: Step | None = None
    count = 0
    errors: list[str] = []
    for text in journal.splitlines():
        word, _, rest = text.partition(" ")
        if word == "begun":
            pending = Step.decode(rest)
        elif word == "done" and pending is not None:
            now.apply(pending)
            pending = None
            count += 1
        elif word == "error":
            errors.append(rest)
    allowed = [now]
    if pending is not None:
        further = now.copy()
        further.apply(pending)
        allowed.append(further)
    return allowed, count, errors


def difference(found: Tree, allowed: list[Tree]) -> str:
    """In words, how *found* differs from the nearest that it may be."""

    def told(expected: Tree) -> list[str]:
        names = sorted(found.files.keys() | expected.files.keys())
        words: list[Any] = [
            f"{name}: {_kind(found.files.get(name))}, not {_kind(expected.files.get(name))}"
            for name in names
            if found.files.get(name) != expected.files.get(name)
        ]
        return words + [f"directory {each}" for each in sorted(found.dirs ^ expected.dirs)]

    return "; or ".join(str(told(each)) for each in allowed)


def _kind(content: bytes | None) -> str:
    return "absent" if content is None else f"{len(content)} bytes {content[:6].hex()}"
