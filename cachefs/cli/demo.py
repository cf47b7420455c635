"""``cachefs demo``: everything once, for real, on a store in a temporary directory."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cachefs.cli.command import Call, Command
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES
from cachefs.cli.output import human_size, say
from cachefs.cli.parser import Parser
from cachefs.core.errors import CachefsError
from cachefs.mounts import mount_at, unmount

_OBJECTS = 24
_OBJECT_SIZE = 2**20
_CACHE_SIZE = 8 * 2**20
_NOTE = b"written through the mount\n"
_PATIENCE_S = 120


class _Unlike(CachefsError):
    """Something did not happen as told."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the tour takes place."""

    store: Path
    cache: Path
    mountpoint: Path


def _configure(parser: Parser) -> None:
    parser.description = (
        "A guided tour on the embedded file:// store: makes sample objects, mounts them, reads, writes, fills the\n"
        "cache until it evicts, shows the status, unmounts, and checks every byte in the store. All of it in a\n"
        "temporary directory that is gone afterwards. The exit code is 0 only if all of it really happened."
    )


def _run(call: Call) -> int:
    with tempfile.TemporaryDirectory(prefix="cachefs-demo-") as temporary:
        home = Path(temporary).resolve()
        places = _Places(home / "store", home / "cache", home / "drive")
        for directory in (places.store, places.mountpoint):
            directory.mkdir()
        with _never_left_mounted(places.mountpoint, as_root=call.environment.is_root):
            try:
                _Tour(places, call).take()
            except _Unlike as error:
                print(f"cachefs: the demo failed: {error}", file=sys.stderr)
                return EXIT_FAILURES
    say("\nAll of that really happened; the temporary directory is gone again.")
    return EXIT_DONE


class _Tour:
    """The steps, in order. What touches the mount does so in a process of its own."""

    def __init__(self, places: _Places, call: Call) -> None:
        self._places = places
        self._call = call

    def take(self) -> None:
        """Go through all steps. Raises _Unlike at the first that does not do what it says."""
        objects = self._make_objects()
        self._mount()
        self._read(objects)
        self._write()
        self._evict(objects)
        self._unmount()

    def _make_objects(self) -> dict[str, bytes]:
        self._tell(f"1. A store: {_OBJECTS} objects of {human_size(_OBJECT_SIZE)} in a directory.")
        objects = {
            f"photos/{number:02}.raw": os.urandom(_OBJECT_SIZE) for number in range(_OBJECTS)
        }
        for key, content in objects.items():
            path = self._places.store / key
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return objects

    def _mount(self) -> None:
        self._tell(
            f"2. Mounted, with a cache of {human_size(_CACHE_SIZE)}: a third of what is there."
        )
        self._cachefs(
            "mount",
            f"file://{self._places.store}",
            str(self._places.mountpoint),
            *("--cache-dir", str(self._places.cache)),
            *("--cache-size", f"{_CACHE_SIZE // 2**20}MiB"),
        )
        mount = mount_at(self._places.mountpoint)
        _require(mount is not None and mount.is_cachefs, "the mount is not in the kernel's table")

    def _read(self, objects: dict[str, bytes]) -> None:
        self._tell("3. It is a drive: any program lists and reads it.")
        listed = self._program("ls", str(self._places.mountpoint / "photos")).decode().split()
        _require(
            listed == sorted(Path(key).name for key in objects),
            "ls shows other names than the store has",
        )
        first = min(objects)
        read = self._program("cat", str(self._places.mountpoint / first), shown=False)
        say(f"   $ cat {self._places.mountpoint / first} | wc -c\n   {len(read)}")
        _require(read == objects[first], f"{first} reads differently through the mount")

    def _write(self) -> None:
        self._tell("4. What is written is in the store when the file is closed.")
        source = self._places.store.parent / "note.txt"
        source.write_bytes(_NOTE)
        self._program("cp", str(source), str(self._places.mountpoint / "note.txt"))
        self._cachefs("flush", str(self._places.mountpoint), "--wait")
        stored = self._places.store / "note.txt"
        _require(
            stored.is_file() and stored.read_bytes() == _NOTE,
            "the store does not hold what was written",
        )
        say(
            f"   $ cat {stored}     # the store's own directory, not the mount\n   {_NOTE.decode().strip()}"
        )

    def _evict(self, objects: dict[str, bytes]) -> None:
        self._tell(
            "5. All objects are read: more than the cache holds, so it makes room as it goes."
        )
        for key, content in objects.items():
            read = self._program("cat", str(self._places.mountpoint / key), shown=False)
            _require(read == content, f"{key} reads differently through the mount")
        say(
            f"   $ cat {self._places.mountpoint}/photos/* | wc -c\n   {sum(map(len, objects.values()))}"
        )
        status = json.loads(
            self._cachefs("status", str(self._places.mountpoint), "--json", shown=False)
        )
        used = status["cache"]["used"]
        _require(
            0 < used <= _CACHE_SIZE, f"the cache holds {used} bytes, and may hold {_CACHE_SIZE}"
        )
        self._cachefs("status", str(self._places.mountpoint))
        say(
            f"   {human_size(_OBJECTS * _OBJECT_SIZE)} were read; the cache keeps {human_size(used)}."
        )

    def _unmount(self) -> None:
        self._tell("6. Unmounted: what waited would be uploaded first.")
        self._cachefs("umount", str(self._places.mountpoint))
        _require(mount_at(self._places.mountpoint) is None, "it is still mounted")
        _require(not any(self._places.mountpoint.iterdir()), "the mountpoint is not empty")

    def _tell(self, line: str) -> None:
        say(f"\n{line}")

    def _cachefs(self, *words: str, shown: bool = True) -> bytes:
        output = self._process(
            [sys.executable, "-m", "cachefs", *words], ["cachefs", *words], shown=shown
        )
        if shown and output:
            say("\n".join(f"   {line}" for line in output.decode(errors="replace").splitlines()))
        return output

    def _program(self, *words: str, shown: bool = True) -> bytes:
        output = self._process(list(words), list(words), shown=shown)
        if shown and output:
            say("   " + " ".join(output.decode(errors="replace").split()))
        return output

    def _process(self, command: list[str], typed: list[str], *, shown: bool) -> bytes:
        if shown:
            say(f"   $ {' '.join(typed)}")
        try:
            done = subprocess.run(
                command,
                env=self._call.environment.child_variables(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _Unlike(f"{' '.join(typed)} did not end within {_PATIENCE_S} s") from None
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise _Unlike(f"{' '.join(typed)} ended with {done.returncode}: {said}")
        return done.stdout


@contextlib.contextmanager
def _never_left_mounted(mountpoint: Path, *, as_root: bool) -> Iterator[None]:
    try:
        yield
    finally:
        if mount_at(mountpoint) is not None:
            unmount(mountpoint, as_root=as_root, lazily=True)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Unlike(otherwise)


COMMAND = Command(_configure, _run)
