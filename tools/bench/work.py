"""What a user's program does in the mount: run alone, as a child with a time limit, on the standard library.

``work.py '{"do": NAME, …}'`` prints one JSON document. Times are of the monotonic clock, which all processes
of the machine share, so that the parent can go on counting (until an upload has arrived) where the child stopped.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

MIB: Final = 1024 * 1024
STAMP: Final = 16


def block(number: int, pattern: bytes) -> bytes:
    """One MiB of a large object: its number, then bytes that do not compress; a wrong block shows."""
    return number.to_bytes(STAMP, "big") + pattern[STAMP:]


def small_body(number: int, size: int) -> bytes:
    """A small file's bytes, which say whose they are."""
    line = f"{number:08d}\n".encode()
    return (line * (size // len(line) + 1))[:size]


def first_byte(path: str) -> dict[str, Any]:
    """From ``open`` to the first byte in the reader's hands."""
    begin = time.monotonic()
    fd = os.open(path, os.O_RDONLY)
    try:
        got = os.pread(fd, 1, 0)
        end = time.monotonic()
    finally:
        os.close(fd)
    if len(got) != 1:
        raise ValueError(f"{path}: no byte")
    return _times(begin, end)


def sequential(path: str, size: int) -> dict[str, Any]:
    """The whole object, 1 MiB a read, as ``cp`` and ``cat`` do."""
    begin = time.monotonic()
    fd = os.open(path, os.O_RDONLY)
    done = 0
    try:
        for number, data in enumerate(_blocks(fd)):
            if int.from_bytes(data[:STAMP], "big") != number:
                raise ValueError(f"{path}: the block at {done} is another's")
            done += len(data)
    finally:
        os.close(fd)
    end = time.monotonic()
    if done != size:
        raise ValueError(f"{path}: {done} bytes of {size}")
    return _times(begin, end)


def read_all(path: str, count: int, size: int) -> dict[str, Any]:
    """Every file of a directory, one after the other, as ``tar`` and ``cp -r`` do: listed, opened, read."""
    begin = time.monotonic()
    names = sorted(os.listdir(path))
    for name in names:
        body = Path(path, name).read_bytes()
        if body != small_body(int(name), size):
            raise ValueError(f"{path}/{name}: not its bytes")
    end = time.monotonic()
    if len(names) != count:
        raise ValueError(f"{path}: {len(names)} files of {count}")
    return _times(begin, end)


def list_long(path: str, count: int) -> dict[str, Any]:
    """``ls -l``, the program itself."""
    begin = time.monotonic()
    done = subprocess.run(
        ["ls", "-l", path], stdout=subprocess.PIPE, check=True, env={"LC_ALL": "C"}
    )
    end = time.monotonic()
    lines = done.stdout.count(b"\n") - 1  # the first is `total`
    if lines != count:
        raise ValueError(f"ls -l {path}: {lines} files of {count}")
    return _times(begin, end)


def walk(path: str, within_s: float) -> dict[str, Any]:
    """``find | wc -l``, the program itself, as far as it comes in the time that it has."""
    begin = time.monotonic()
    finder = subprocess.Popen(["find", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    timer = threading.Timer(within_s, finder.kill)
    timer.daemon = True
    timer.start()
    lines = 0
    assert finder.stdout is not None
    while data := os.read(finder.stdout.fileno(), MIB):
        lines += data.count(b"\n")
    returned = finder.wait()
    end = time.monotonic()
    return {**_times(begin, end), "lines": lines, "whole": returned == 0}


def first_entry(path: str) -> dict[str, Any]:
    """From the opening of a directory to its first entry in the reader's hands."""
    begin = time.monotonic()
    with os.scandir(path) as entries:
        next(entries)
    return _times(begin, time.monotonic())


def create(path: str, count: int, size: int) -> dict[str, Any]:
    """New small files, each written and closed before the next."""
    os.mkdir(path)
    begin = time.monotonic()
    for number in range(count):
        Path(path, f"{number:05d}").write_bytes(small_body(number, size))
    return _times(begin, time.monotonic())


def write_large(path: str, size: int) -> dict[str, Any]:
    """One new large file, 1 MiB a write, closed."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pattern = os.urandom(MIB)
    begin = time.monotonic()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for number in range(size // MIB):
            if os.write(fd, block(number, pattern)) != MIB:
                raise ValueError(f"{path}: a short write")
    finally:
        os.close(fd)
    return _times(begin, time.monotonic())


def forget(path: str) -> dict[str, Any]:
    """Drop the kernel's pages of a file, or of all files of a directory, so that the daemon is asked again."""
    begin = time.monotonic()
    paths = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else [path]
    for each in paths:
        fd = os.open(each, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return _times(begin, time.monotonic())


def answer(path: str) -> dict[str, Any]:
    """Whether the mount answers at all."""
    begin = time.monotonic()
    os.stat(path)
    return _times(begin, time.monotonic())


ACTIONS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "first_byte": first_byte,
    "sequential": sequential,
    "read_all": read_all,
    "list_long": list_long,
    "walk": walk,
    "first_entry": first_entry,
    "create": create,
    "write_large": write_large,
    "forget": forget,
    "answer": answer,
}


def _blocks(fd: int) -> Iterator[bytes]:
    while True:
        data = bytearray()
        while len(data) < MIB:  # a read may be short; the stamps are at whole MiBs
            more = os.read(fd, MIB - len(data))
            if not more:
                break
            data += more
        if not data:
            return
        yield bytes(data)


def _times(begin: float, end: float) -> dict[str, Any]:
    return {"begin": begin, "end": end}


def main(text: str) -> int:
    order = json.loads(text)
    action = ACTIONS[order.pop("do")]
    try:
        result = action(**order)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
