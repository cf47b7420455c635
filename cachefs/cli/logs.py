"""Where the log goes, and in which form. No secret gets through, tracebacks included."""

import contextlib
import errno
import json
import logging
import os
import sys
import time
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler, WatchedFileHandler
from pathlib import Path
from typing import Final

from cachefs.cli.redaction import Redact
from cachefs.config import LogFormat
from cachefs.core.errors import UsageError

_NOISY: Final = (
    "boto3",
    "botocore",
    "s3transfer",
    "urllib3",
    "swiftclient",
    "keystoneauth",
    "keystoneclient",
)
_OWN_LOG_SIZE: Final = 10 * 2**20
_OWN_LOGS_KEPT: Final = 3


def open_log(path: str | Path, flags: int) -> int:
    """Open a log. A symbolic link is followed if it is the user's own or root's: anybody else could aim it anywhere."""
    flags |= os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    owner = os.lstat(path).st_uid
    if owner not in (0, os.geteuid()):
        raise UsageError(
            f"the log file {path} is a symbolic link of another user (uid {owner}) — take it away, or name another"
        )
    return os.open(path, flags, 0o600)


class TextFormatter(logging.Formatter):
    """One line for a record: time, level, where, what; a traceback below it."""

    def __init__(self, redact: Redact) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.converter = time.gmtime
        self.default_time_format = "%Y-%m-%dT%H:%M:%S"
        self.default_msec_format = "%s.%03dZ"
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for *record*, secrets taken out."""
        return self._redact(super().format(record))


class PlainFormatter(logging.Formatter):
    """What a person at a terminal gets: the command's name and the message."""

    def __init__(self, redact: Redact) -> None:
        super().__init__("cachefs: %(message)s")
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for *record*, secrets taken out."""
        return self._redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the object for *record*, secrets taken out."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": self._redact(record.getMessage()),
        }
        if record.exc_info:
            line["traceback"] = self._redact(self.formatException(record.exc_info))
        return json.dumps(line)


def log_to_stderr(redact: Redact, *, verbose: bool, quiet: bool = False) -> None:
    """Send warnings (with *verbose* everything, with *quiet* only errors) to standard error, as plain lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(redact))
    level = logging.ERROR if quiet else logging.WARNING
    _install(handler, logging.DEBUG if verbose else level)


def log_of_daemon(
    redact: Redact, form: LogFormat, *, file: Path | None, own_file: Path | None, verbose: bool
) -> None:
    """Send the log of a running mount to *file*, else to *own_file*, else to standard error.

    *file* is the operator's, who may rotate it: it is opened anew when it was moved. *own_file* is ours, so we
    rotate it ourselves.
    """
    handler: logging.Handler
    if file is not None:
        handler = _WatchedFile(file, encoding="utf-8", errors="backslashreplace")
    elif own_file is not None:
        handler = _RotatingFile(
            own_file,
            maxBytes=_OWN_LOG_SIZE,
            backupCount=_OWN_LOGS_KEPT,
            encoding="utf-8",
            errors="backslashreplace",
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(redact) if form is LogFormat.JSON else TextFormatter(redact)
    )
    _install(handler, logging.DEBUG if verbose else logging.INFO)


class _Enduring(logging.FileHandler):
    """A file that may be on a full disk: lines that it does not take are lost, counted, and told of by the next one."""

    _lost = 0

    def _open(self) -> TextIOWrapper:
        file = open(  # noqa: SIM115 - the handler closes it
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            opener=open_log,
        )
        assert isinstance(file, TextIOWrapper)
        return file

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, and before it how many were lost."""
        lost = self._lost
        if lost:
            self._lost = 0
            told = logging.LogRecord(
                __name__, logging.WARNING, "", 0, "%d lines could not be logged", (lost,), None
            )
            self._write(told)
            if self._lost:  # still full
                self._lost = lost + 1
                return
        self._write(record)

    def _write(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except Exception:  # noqa: BLE001 - of opening the file anew, which the library lets out to whoever logs
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Count a line that is lost, and open the file anew for the next one. A mistake of ours is told as ever."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError | UsageError):
            super().handleError(record)
            return
        self._lost += 1
        stream, self.stream = self.stream, None
        with contextlib.suppress(OSError, ValueError):  # what it still holds cannot be written
            if stream is not None:
                stream.close()


class _WatchedFile(_Enduring, WatchedFileHandler):
    pass


class _RotatingFile(_Enduring, RotatingFileHandler):
    pass


def _install(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    for name in _NOISY:  # at DEBUG they write whole requests, headers and all
        logging.getLogger(name).setLevel(logging.WARNING)
