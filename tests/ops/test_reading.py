"""What is read of a file is of one moment, and of a file."""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cachefs.ops.reading import Content, Reading
from cachefs.ops.steady import Altered
from cachefs.ops.throttle import Throttle
from cachefs.ops.tree import Found, Tree

MIB = 2**20


@dataclass
class Scene:
    root: Path

    def found(self, path: str) -> Found:
        found = Tree(str(self.root)).look(path)
        assert isinstance(found, Found)
        return found

    def read(self, found: Found) -> tuple[Content, bytes]:
        reading = Reading(Tree(str(self.root)), Throttle(None), threading.Event())
        with reading.content(found) as content:
            return content, b"".join(bytes(chunk) for chunk in content.chunks())


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 3 * MIB + 5])
def test_the_bytes_and_their_md5_are_those_of_the_file(scene: Scene, size: int) -> None:
    written = os.urandom(size)
    (scene.root / "file").write_bytes(written)

    content, read = scene.read(scene.found("file"))

    assert read == written
    assert content.md5 == hashlib.md5(written, usedforsecurity=False).hexdigest()
    assert content.stamp.size == size


@pytest.mark.parametrize("size", [100, 3 * MIB])
@pytest.mark.parametrize("change", ["overwrite", "grow", "cut"])
def test_a_file_that_is_written_to_while_it_is_read_is_not_taken(
    scene: Scene, size: int, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = scene.root / "file"
    file.write_bytes(b"a" * size)
    os.utime(file, (5, 5))
    found, pread = scene.found("file"), os.pread

    def alter() -> None:
        if change == "overwrite":
            with file.open("r+b") as stream:
                stream.write(b"b")
        else:
            os.truncate(file, size + 1 if change == "grow" else size - 1)

    acts: list[Callable[[], None]] = [alter]

    def read(descriptor: int, length: int, offset: int) -> bytes:
        chunk = pread(descriptor, length, offset)
        if acts:
            acts.pop()()
        return chunk

    monkeypatch.setattr(os, "pread", read)
    with pytest.raises(Altered):
        scene.read(found)


@pytest.mark.parametrize("became", ["fifo", "link", "directory"])
def test_what_is_no_file_any_more_is_not_read_and_waited_for(scene: Scene, became: str) -> None:
    file = scene.root / "file"
    file.write_bytes(b"content")
    found = scene.found("file")
    file.unlink()
    if became == "fifo":
        os.mkfifo(file)
    elif became == "link":
        file.symlink_to("/etc/hostname")
    else:
        file.mkdir()

    with pytest.raises(Altered):
        scene.read(found)


def test_reading_leaves_the_time_of_access_alone(scene: Scene) -> None:
    file = scene.root / "file"
    file.write_bytes(b"content")
    os.utime(file, (5, 10**9))

    scene.read(scene.found("file"))

    assert file.stat().st_atime == 5
