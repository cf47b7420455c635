"""A session's system calls on one directory, as strace saw them, in the order in which they ended."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat,write,pwrite64,ftruncate,rename,unlink,fsync,fdatasync,sendfile,ioctl,mkdir,fallocate,"
    "pwritev,pwritev2,writev,truncate,renameat,renameat2,unlinkat,rmdir,link,linkat,copy_file_range,"
    "sync_file_range,syncfs,sync"
)
UNKNOWN = {
    "pwritev", "pwritev2", "writev", "truncate", "renameat", "renameat2", "unlinkat", "rmdir", "link",
    "linkat", "copy_file_range", "syncfs", "sync",
}  # fmt: skip
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<((?:\\x[0-9a-f]{2})*)>)?(?: .*)?")
_UNFINISHED = re.compile(r"(\d+) +(\w+)\((.*?) *<unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_FD = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Call:
    """One call that succeeded."""

    name: str
    arguments: str
    result: int
    opened: str

    def paths(self) -> list[str]:
        """The files behind the descriptors among the arguments."""
        return [_text(found[2]) for found in _FD.finditer(self.arguments)]

    def texts(self) -> list[bytes]:
        """The strings among the arguments."""
        return [_bytes(found[1]) for found in _TEXT.finditer(self.arguments)]

    def numbers(self) -> list[int]:
        """The plain numbers at the end of the arguments."""
        bare = _FD.sub("", _TEXT.sub("", self.arguments))
        return [int(number) for number in re.findall(r"(?<![\w\[])-?\d+(?![\w\]])", bare)]


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(escaped: str) -> str:
    return os.fsdecode(_bytes(escaped))


def record(directory: Path, marks: Path, seed: int, length: int) -> list[Call]:
    """Play a session under strace and return what it did."""
    trace = directory.with_name("trace")
    session = [str(directory), str(marks), str(seed), str(length)]
    subprocess.run(
        ["strace", "-f", "-y", "-xx", "-s", "4000000", "-o", str(trace), "-e", f"trace={CALLS}",
         sys.executable, "-m", "tests.crash.session", *session],
        check=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    roots = (str(directory), str(marks))
    with trace.open() as lines:
        calls = [call for call in _calls(lines) if call.result >= 0 and _is_below(call, roots)]
    trace.unlink()
    return calls


def _is_below(call: Call, roots: tuple[str, ...]) -> bool:
    named = [*call.paths(), call.opened, *(os.fsdecode(t) for t in call.texts() if len(t) < 4096)]
    return any(name.startswith(roots) for name in named)


def _calls(lines: Iterator[str]) -> Iterator[Call]:
    begun: dict[str, str] = {}
    for line in lines:
        text = line.rstrip("\n")
        if unfinished := _UNFINISHED.fullmatch(text):
            begun[unfinished[1]] = f"{unfinished[1]} {unfinished[2]}({unfinished[3]}"
            continue
        if resumed := _RESUMED.fullmatch(text):
            text = begun.pop(resumed[1]) + resumed[3]
        if found := _LINE.fullmatch(text):
            yield Call(found[2], found[3], int(found[4]), _text(found[5] or ""))
