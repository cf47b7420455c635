"""Starting a mount in the background, and hearing from it whether it stands.

The daemon is a fresh process, not a fork: no thread, lock or connection of the parent lives on in it. It tells how
it went through a pipe: one JSON line, ``{"ready": pid}`` or ``{"error": line, "code": exit code}``.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import cachefs
from cachefs.cli.failures import EXIT_FAILURES, EXIT_INTERRUPTED, Failure
from cachefs.cli.logs import open_log
from cachefs.config import Environment

OWN_LOG_NAME: Final = "cachefs.log"
"""The log of a daemon that was not told where to write it, in its cache directory."""
_CHUNK: Final = 64 * 2**10


class Announcer:
    """The daemon's end of the pipe. Says one thing, once."""

    def __init__(self, fd: int) -> None:
        # None: it was said. The number may be another file's by then, so it must not be written to again.
        self._fd: int | None = fd

    def ready(self) -> None:
        """Tell the parent that the mount answers."""
        self._say({"ready": os.getpid()})

    def failed(self, failure: Failure) -> None:
        """Tell the parent why there is no mount. Nobody listens any more once the mount was ready."""
        self._say({"error": failure.line, "code": failure.code})

    def _say(self, message: dict[str, object]) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        with contextlib.suppress(OSError):  # the parent was interrupted
            os.write(fd, json.dumps(message).encode() + b"\n")
        os.close(fd)


def launch(
    words: Sequence[str],
    environment: Environment,
    *,
    log_file: Path,
    doing: str,
    verb: str = "mount",
) -> Failure | None:
    """Start ``cachefs`` *verb* *words* in the background. Return None once it answers, else what it said.

    If it ends without a word, its last line in *log_file* is told. Interrupted, it is taken down again.
    """
    hear, say = os.pipe()
    with tempfile.TemporaryFile() as captured, os.fdopen(hear, "rb", buffering=0) as pipe:
        try:
            pid = _spawn(_command(verb, words, say), environment, say, captured.fileno())
        finally:
            os.close(say)
        try:
            message = _heard(pipe)
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            return Failure(f"{doing}: interrupted", EXIT_INTERRUPTED)
        if "ready" in message:
            return None
        _, status = os.waitpid(pid, 0)
        if "error" in message:
            return Failure(str(message["error"]), int(str(message["code"])))
        return _silent(os.waitstatus_to_exitcode(status), _last_line(captured, log_file), doing)


def redirect_to(log_file: Path) -> None:
    """Let what nobody catches (a crash of the interpreter) end up in *log_file*."""
    fd = open_log(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _command(verb: str, words: Sequence[str], say: int) -> list[str]:
    home = Path(cachefs.__file__).parent.parent
    # -P: what lies in the current directory is not imported in place of a library, unless we run from there.
    safely = [] if home == Path.cwd() else ["-P"]
    return [sys.executable, *safely, "-m", "cachefs", verb, f"--ready-fd={say}", *words]


def _spawn(command: list[str], environment: Environment, say: int, captured: int) -> int:
    os.set_inheritable(say, True)
    return os.posix_spawn(
        command[0],
        command,
        environment.child_variables(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, captured, 1),
            (os.POSIX_SPAWN_DUP2, captured, 2),
        ],
        setsid=True,
    )


def _heard(pipe: IO[bytes]) -> dict[str, object]:
    """Return what came through *pipe*: empty if the daemon ended without a word."""
    text = b""
    while not text.endswith(b"\n"):
        data = pipe.read(_CHUNK)
        if not data:
            return {}
        text += data
    message = json.loads(text)
    return message if isinstance(message, dict) else {}


def _last_line(captured: IO[bytes], log_file: Path) -> str:
    captured.seek(0)
    texts = [captured.read()]
    with contextlib.suppress(OSError):  # it may have ended before it had a log
        texts.append(log_file.read_bytes())
    for text in texts:
        lines = [
            line.strip() for line in text.decode(errors="replace").split("\n") if line.strip()
        ]
        if lines:
            return lines[-1]
    return ""


def _silent(code: int, said: str, doing: str) -> Failure:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    last = f"; its last words: {said}" if said else ""
    return Failure(f"{doing}: the daemon {how}{last}", EXIT_FAILURES)
