"""What programs do in a mount. Everything here runs in a child process; it needs the standard library only."""

import contextlib
import errno
import hashlib
import multiprocessing
import os
import random
import sqlite3
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec

P = ParamSpec("P")
Call = tuple[Callable[..., object], tuple[object, ...]]
"""A function, and what it is called with."""

BLOCK: Final = 4096


def pattern(seed: str, offset: int, length: int) -> bytes:
    """The bytes that belong at *offset* of the content named *seed*.

    Each block names its content and its place, so that bytes of another version, of another file, or at
    another place are seen for what they are.
    """
    first, last = offset // BLOCK, (offset + length + BLOCK - 1) // BLOCK
    blocks = (
        hashlib.sha256(f"{seed}:{i}".encode()).digest() * (BLOCK // 32) for i in range(first, last)
    )
    start = offset - first * BLOCK
    return b"".join(blocks)[start : start + length]


def read_file(path: Path) -> bytes:
    """The whole content."""
    return path.read_bytes()


def read_at(path: Path, offset: int, length: int) -> bytes:
    """A range of the content, and no more asked of the kernel."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def write_file(path: Path, content: bytes) -> None:
    """Replace the whole content; returns when close has."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write_all(fd, content)
    finally:
        os.close(fd)


def write_all(root: Path, contents: dict[str, bytes]) -> None:
    """Write files below *root*, and the directories that they need."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(root / name, content)


def append(path: Path, content: bytes) -> None:
    """Add to the end."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        _write_all(fd, content)
    finally:
        os.close(fd)


def write_at(path: Path, offset: int, content: bytes) -> None:
    """Change a range of an existing file."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, content, offset)
    finally:
        os.close(fd)


def read_fd(fd: int) -> bytes:
    """All that is behind an open descriptor, from its start."""
    pieces = []
    place = 0
    while piece := os.pread(fd, 1 << 20, place):
        pieces.append(piece)
        place += len(piece)
    return b"".join(pieces)


def read_tree(root: Path) -> dict[str, bytes]:
    """Every regular file below *root* by its relative name."""
    return {
        str(Path(top, name).relative_to(root)): Path(top, name).read_bytes()
        for top, _, names in os.walk(root, onerror=_raise)
        for name in names
    }


def content_digests(root: Path) -> dict[str, str]:
    """As :func:`read_tree`, a SHA-256 in place of the bytes."""
    digests = {}
    for top, _, names in os.walk(root, onerror=_raise):
        for name in names:
            with Path(top, name).open("rb") as file:
                digests[str(Path(top, name).relative_to(root))] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return digests


def write_pattern(path: Path, seed: str, size: int) -> None:
    """Fill a new file with :func:`pattern`, a mebibyte at a time."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for offset in range(0, size, 1 << 20):
            _write_all(fd, pattern(seed, offset, min(1 << 20, size - offset)))
    finally:
        os.close(fd)


def wrong_ranges(path: Path, seed: str, size: int, step: int = 1 << 20) -> list[int]:
    """The offsets at which a file differs from :func:`pattern`; reads it from its start to its end."""
    wrong = []
    with path.open("rb", buffering=0) as file:
        for offset in range(0, size, step):
            expected = pattern(seed, offset, min(step, size - offset))
            got = b""
            while len(got) < len(expected) and (piece := file.read(len(expected) - len(got))):
                got += piece
            if got != expected:
                wrong.append(offset)
        if file.read(1):
            wrong.append(size)
    return wrong


def timed_read_at(path: Path, offset: int, length: int) -> tuple[float, bytes]:
    """How long :func:`read_at` took, open included, and what it read."""
    start = time.monotonic()
    content = read_at(path, offset, length)
    return time.monotonic() - start, content


def read_while_holding(
    root: Path, sizes: dict[str, int], seed: int, seconds: float
) -> tuple[int, list[str]]:
    """Open files, keep up to three of them open, and read at random places of those that are open.

    Returns the bytes read and what was wrong with them.
    """
    chance = random.Random(seed)
    names = sorted(sizes)
    held: list[tuple[str, int]] = []
    read = 0
    wrong: list[str] = []
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if len(held) == 3:
                os.close(held.pop(chance.randrange(3))[1])
            name = chance.choice(names)
            held.append((name, os.open(root / name, os.O_RDONLY)))
            for name, fd in held:
                offset = chance.randrange(sizes[name])
                length = min(chance.choice((1, 4096, 65_537, 1 << 20)), sizes[name] - offset)
                got = os.pread(fd, length, offset)
                read += len(got)
                if got != pattern(name, offset, length):
                    wrong.append(f"{name} at {offset}, {length} bytes")
    finally:
        for _, fd in held:
            os.close(fd)
    return read, wrong


def version_size(name: str, version: int) -> int:
    """How long that version of that file is: never empty, often not a whole block."""
    return 1 + random.Random(f"{name}:{version}").randrange(150_000)


def version_content(name: str, version: int) -> bytes:
    """The content of that version."""
    return pattern(f"{name}:{version}", 0, version_size(name, version))


def write_versions(root: Path, journal: Path, names: list[str], first: int, seed: int) -> None:
    """Write versions of files for ever, noting outside the mount what was begun and what was acknowledged.

    A line is in the journal before the next step is taken: it outlives the kill of the daemon and of this
    program, and claims no more than what was acknowledged.
    """
    chance = random.Random(seed)
    log = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    version = first
    while True:
        version += 1
        name = chance.choice(names)
        content = version_content(name, version)
        os.write(log, f"begun {name} {version}\n".encode())
        chance.choice((_rewrite, _replace, _change_in_place))(root / name, content)
        os.write(log, f"closed {name} {version}\n".encode())


def _rewrite(path: Path, content: bytes) -> None:
    """As a shell's ``>`` does it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    _write_in_pieces(fd, content)
    os.close(fd)


def _replace(path: Path, content: bytes) -> None:
    """As an editor does it."""
    beside = path.with_name(f"{path.name}.tmp")
    _rewrite(beside, content)
    beside.rename(path)


def _change_in_place(path: Path, content: bytes) -> None:
    """As a database does it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _write_in_pieces(fd, content)
    os.ftruncate(fd, len(content))
    os.close(fd)


def _write_in_pieces(fd: int, content: bytes) -> None:
    for offset in range(0, len(content), 40_000):
        _write_all(fd, content[offset : offset + 40_000])


def fill(path: Path, size: int, piece: int = 1 << 20) -> tuple[int, int]:
    """Write until *size* or an error; returns what was written, and the error's number or zero."""
    done = 0
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        return 0, error.errno or -1
    try:
        while done < size:
            done += os.write(fd, pattern(path.name, done, min(piece, size - done)))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.close(fd)
        return done, error.errno or -1
    return done, errno_of_close(fd)


def timed(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    """How long a call takes, seconds."""
    start = time.monotonic()
    function(*args, **kwargs)
    return time.monotonic() - start


def timed_fill(path: Path, size: int) -> tuple[float, int, int]:
    """How long :func:`fill` took, and what it returned."""
    start = time.monotonic()
    done, number = fill(path, size)
    return time.monotonic() - start, done, number


def errno_of_close(fd: int) -> int:
    """Close, and return zero or the number of the error."""
    try:
        os.close(fd)
    except OSError as error:
        return error.errno or -1
    return 0


def open_many(root: Path, names: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Open files to read; return the descriptors, and the numbers of the errors, by name."""
    opened: dict[str, int] = {}
    refused: dict[str, int] = {}
    for name in names:
        try:
            opened[name] = os.open(root / name, os.O_RDONLY)
        except OSError as error:
            refused[name] = error.errno or -1
    return opened, refused


def close_all(fds: list[int]) -> None:
    """Close them."""
    for fd in fds:
        os.close(fd)


def outcome_of_stat(path: Path) -> int:
    """Zero, or the number of the error that stat gives."""
    try:
        path.stat()
    except OSError as error:
        return error.errno or -1
    return 0


def stat_until_gone(path: Path) -> int:
    """Ask for attributes again and again, until that fails; returns the number of the error."""
    while not (number := outcome_of_stat(path)):
        pass
    return number


def read_in_order(paths: list[Path]) -> int:
    """Open and read each of *paths*, one after the other; returns the bytes."""
    return sum(len(path.read_bytes()) for path in paths)


def read_each(paths: dict[str, Path]) -> dict[str, bytes | int]:
    """The content of each file, or the number of the error that its reading ends with; all at once."""

    def read(path: Path) -> bytes | int:
        try:
            return path.read_bytes()
        except OSError as error:
            return error.errno or -1

    with ThreadPoolExecutor(len(paths)) as readers:
        return dict(zip(paths, readers.map(read, paths.values()), strict=True))


def _write_all(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def _raise(error: OSError) -> None:
    raise error


def inventory(root: Path) -> dict[str, str]:
    """A SHA-256 of every file's content, and of every symbolic link's target, by relative name."""
    found = {}
    for top, dirs, names in os.walk(root, onerror=_raise):
        for path in (Path(top, name) for name in (*dirs, *names)):
            if path.is_symlink():
                content = os.fsencode(path.readlink())
            elif path.is_file():
                content = path.read_bytes()
            else:
                continue
            found[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    return found


def describe_tree(root: Path) -> dict[str, tuple[object, ...]]:
    """What an archive keeps of everything below *root*: kind and mode, owner, time, target, attributes, bytes."""
    found: dict[str, tuple[object, ...]] = {}
    for top, dirs, names in os.walk(root, onerror=_raise):
        for path in (Path(top, name) for name in (*dirs, *names)):
            status = path.lstat()
            is_file = stat.S_ISREG(status.st_mode)
            attributes = os.listxattr(path, follow_symlinks=False)
            found[str(path.relative_to(root))] = (
                *(oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns),
                os.readlink(path) if path.is_symlink() else "",
                {name: os.getxattr(path, name, follow_symlinks=False) for name in attributes},
                hashlib.sha256(path.read_bytes()).hexdigest() if is_file else "",
            )
    return found


def names_below(root: Path) -> list[str]:
    """The relative path of everything below *root*, as find has it, in order."""
    walked = os.walk(root, onerror=_raise)
    return sorted(
        str((Path(top) / name).relative_to(root))
        for top, dirs, names in walked
        for name in (*dirs, *names)
    )


def make_database(path: Path, journal: str) -> None:
    """An empty table in a database that journals in that way."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
        database.execute(f"PRAGMA journal_mode = {journal}")
        database.execute("CREATE TABLE t (writer INTEGER, n INTEGER, text TEXT)")


def insert_rows(path: Path, journal: str, writer: int, count: int) -> None:
    """Insert rows, each in a transaction of its own."""
    with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode = {journal}")
        for n in range(count):
            database.execute("INSERT INTO t VALUES (?, ?, hex(randomblob(300)))", (writer, n))


def ask_database(path: Path) -> tuple[str, int]:
    """The verdict of the check, and how many rows there are."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
        questions = ("PRAGMA integrity_check", "SELECT count(*) FROM t")
        verdict, count = (database.execute(each).fetchone()[0] for each in questions)
    return verdict, count


def outcome(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> tuple[float, int]:
    """How long a call takes, seconds, and zero or the number of its error."""
    start = time.monotonic()
    try:
        function(*args, **kwargs)
    except OSError as error:
        return time.monotonic() - start, error.errno or -1
    return time.monotonic() - start, 0


def outcomes(calls: dict[str, Call]) -> dict[str, tuple[float, int]]:
    """Make all calls at the same time, each in a process of its own; what :func:`outcome` says of each."""
    with multiprocessing.get_context("fork").Pool(len(calls)) as pool:
        begun = {
            name: pool.apply_async(outcome, (function, *arguments))
            for name, (function, arguments) in calls.items()
        }
        return {name: one.get() for name, one in begun.items()}


def write_and_sync(path: Path, content: bytes) -> None:
    """Replace a range of an existing file and have it stored, and leave the file open."""
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, content, 0)
    os.fsync(fd)


def churn(
    root: Path, own: str, shared: dict[str, int], seed: int, seconds: float
) -> tuple[dict[str, str], int, list[str]]:
    """Write, change, cut, rename, remove and read files of one's own, read what all share, and what others publish.

    Returns the SHA-256 of each file of one's own that is left, how much was done, and what was wrong.
    """
    chance = random.Random(f"{own}:{seed}")
    mine: dict[str, bytes] = {}
    wrong: list[str] = []
    done = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done += 1
        name = f"{own}.{chance.randrange(6)}"
        act = chance.choice(
            (_churn_write, _churn_replace, _churn_change, _churn_move, _churn_look)
        )
        act(root, name, mine, chance, done)
        if name in mine and (root / name).read_bytes() != mine[name]:
            wrong.append(f"{name}: not what was written last")
        shared_name = chance.choice(sorted(shared))
        place = chance.randrange(shared[shared_name])
        length = min(chance.choice((1, 4096, 300_000)), shared[shared_name] - place)
        if read_at(root / shared_name, place, length) != pattern(shared_name, place, length):
            wrong.append(f"{shared_name} at {place}, {length} bytes")
        wrong += _wrong_of_others(root, chance)
    return (
        {name: hashlib.sha256(content).hexdigest() for name, content in mine.items()},
        done,
        wrong,
    )


def _churn_write(
    root: Path, name: str, mine: dict[str, bytes], chance: random.Random, turn: int
) -> None:
    content = pattern(f"{name}:{turn}", 0, chance.choice((0, 1, 70_000, 400_000)))
    write_file(root / name, content)
    mine[name] = content


def _churn_replace(
    root: Path, name: str, mine: dict[str, bytes], chance: random.Random, turn: int
) -> None:
    """Publish a file whole, for others to read: what it is follows from its first line."""
    size = chance.choice((100, 150_000))
    head = f"{name}:{turn} {size}\n".encode()
    write_file(root / f"{name}.tmp", head + pattern(f"{name}:{turn}", 0, size))
    (root / f"{name}.tmp").rename(root / f"{name}.public")


def _churn_change(
    root: Path, name: str, mine: dict[str, bytes], chance: random.Random, turn: int
) -> None:
    if name not in mine:
        return
    place, piece = chance.choice((0, 5000, 300_000)), pattern(f"{name}:{turn}", 0, 3000)
    fd = os.open(root / name, os.O_RDWR)
    try:
        os.pwrite(fd, piece, place)
        old = mine[name].ljust(place, b"\0")
        new = old[:place] + piece + old[place + len(piece) :]
        if chance.random() < 0.3:
            os.ftruncate(fd, 4000)
            new = new[:4000].ljust(4000, b"\0")
    finally:
        os.close(fd)
    mine[name] = new


def _churn_move(
    root: Path, name: str, mine: dict[str, bytes], chance: random.Random, turn: int
) -> None:
    if name not in mine:
        return
    if chance.random() < 0.5:
        (root / name).unlink()
        del mine[name]
    else:
        other = name.replace(".", f".{turn}.")[:40]
        (root / name).rename(root / other)
        mine[other] = mine.pop(name)


def _churn_look(
    root: Path, name: str, mine: dict[str, bytes], chance: random.Random, turn: int
) -> None:
    """Hold a file open while it is removed, and read it to its end."""
    if name not in mine:
        return
    fd = os.open(root / name, os.O_RDWR)
    try:
        (root / name).unlink()
        content = mine.pop(name)
        if read_fd(fd) != content:
            raise AssertionError(f"{name}: changed while it was open")
    finally:
        os.close(fd)


def _wrong_of_others(root: Path, chance: random.Random) -> list[str]:
    names = [name for name in os.listdir(root) if name.endswith(".public")]
    if not names:
        return []
    name = chance.choice(names)
    try:
        head, _, body = (root / name).read_bytes().partition(b"\n")
    except OSError as error:
        # Replaced, and no room to keep the rest of the version that it was.
        return [] if error.errno in (errno.ESTALE, errno.ENOENT) else [f"{name}: {error}"]
    seed, size = head.decode().split(" ")
    return [] if body == pattern(seed, 0, int(size)) else [f"{name}: a mixture"]
