"""A program that works with a CloudManager and is killed at one line of it: run as `killed.py DIR EVERY FIRST [MOUNTPOINT]`.

Forks a child for each EVERYth line from the FIRST on, each in a directory of its own below DIR, until one comes to
its end. What a child was told is done it writes into the file `told` of its directory. With MOUNTPOINT their storages are
directories of that mount, whose daemon lives on.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

from cachefs import CloudManager

FILES: Final = (
    *(
        "cloudmanager.py",
        "cloud/storage.py",
        "cloud/remotes.py",
        "cloud/shelf.py",
        "cloud/mounted.py",
    ),
    *("holdings.py", "catalogue.py", "removal.py"),
)
CAPACITY: Final = 3000
CONTENTS: Final = {
    name: name.encode() * size for name, size in (("a", 1000), ("b", 900), ("c", 1500))
}


class Killer:
    """Kills the process at the *at*th line of the files."""

    def __init__(self, at: int) -> None:
        self.left = at

    def trace(self, frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace


def manager_of(directory: Path, mountpoint: Path | None) -> CloudManager:
    """The manager of one directory."""
    if mountpoint is not None:
        return CloudManager(directory / "db", mountpoint / directory.name, CAPACITY)
    remotes = [f"file://{directory}/remote"]
    return CloudManager(directory / "db", directory / "storage", CAPACITY, remotes=remotes)


def work(directory: Path, mountpoint: Path | None) -> None:
    """Upload three files of which the third needs the room of others, and have the first again."""
    told = os.open(directory / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with manager_of(directory, mountpoint) as manager:
        digests = []
        for name in CONTENTS:
            digests.append(manager.upload(directory / name))
            os.write(told, f"upload {digests[-1]}\n".encode())
            if name == "b":
                manager.cloud_sync()
        os.write(told, f"warm_up {manager.warm_up(str(digests[0]))}\n".encode())


def main() -> None:
    base, every, at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    mountpoint = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    while True:
        directory = base / str(at)
        (directory / "remote").mkdir(parents=True)
        for name, content in CONTENTS.items():
            (directory / name).write_bytes(content)
        child = os.fork()
        if child == 0:
            sys.settrace(Killer(at).trace)
            work(directory, mountpoint)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            return
        at += every


if __name__ == "__main__":
    main()
