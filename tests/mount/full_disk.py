"""A disk of the test's own for a cache directory: small, so that it can be filled for real."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1 << 20


class SmallDisk:
    """A file system with one file on it that takes whatever is left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self) -> None:
        """Take all of the room, to the last block."""
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for piece in (MIB, 4096, 1):
                with contextlib.suppress(OSError):
                    while os.write(fd, b"x" * piece):
                        pass
            with contextlib.suppress(OSError):
                os.fsync(fd)
        finally:
            os.close(fd)

    def give(self, size: int) -> None:
        """Give so many bytes of it back."""
        os.truncate(self._filler, max(0, self._filler.stat().st_size - size))

    def empty(self) -> None:
        """Give all of it back."""
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(kind: str, directory: Path, size: int) -> Iterator[SmallDisk]:
    """A new file system of that *kind* below *directory*: ``tmpfs`` or ``ext4``, which needs a loop device."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    root = directory / f"small-{kind}"
    root.mkdir(parents=True)
    if kind == "tmpfs":
        done = _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root))
    else:
        image = directory / "small.img"
        with image.open("wb") as file:
            file.truncate(size)
        # No blocks are kept for root, who is whom the tests run as.
        done = _run("mkfs.ext4", "-q", "-m", "0", str(image))
        done = done or _run("mount", "-o", "loop", str(image), str(root))
    if done:
        pytest.skip(f"needs a {kind} to mount: {done}")
    try:
        yield SmallDisk(root)
    finally:
        _run("umount", "-l", str(root))


def _run(*words: str) -> str:
    """Run a program; return what it complained of."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return f"{words[0]} is not installed"
    return "" if done.returncode == 0 else done.stderr or f"{words[0]} failed"
