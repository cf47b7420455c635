"""What ``cachefs sync configure`` keeps: the two buckets, and the keys that open them.

A file of its own that only its owner can read, in the form in which the AWS tools keep keys: boto3's chain reads them
from there itself, so that they pass through no option and no message.
"""

import configparser
import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cachefs.core.errors import UsageError

IN: Final = "cachefs-sync-in"
OUT: Final = "cachefs-sync-out"
_ACCESS: Final = "aws_access_key_id"
_SECRET: Final = "aws_secret_access_key"
_BUCKET: Final = "bucket"
_MORE: Final = ("region", "endpoint_url", "profile", "cloud")
KNOWN: Final = (_BUCKET, _ACCESS, _SECRET, *_MORE)
"""What a section may hold."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two buckets, as it was configured."""

    bucket: str
    """A source: ``s3://BUCKET``, ``swift://CONTAINER/PREFIX``, ``NAME:BUCKET``, …"""
    access: str | None = None
    """The access key; on Swift the user."""
    secret: str | None = field(default=None, repr=False)
    more: Mapping[str, str] = field(default_factory=dict)
    """``region``, ``endpoint_url``, ``profile`` and ``cloud``, as far as they were said."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides."""

    source: Side
    target: Side


def read_pair(path: Path) -> Pair | None:
    """Return what *path* holds; None if there is no such file.

    Raise ``UsageError`` where others could read it, where it is a symbolic link, or makes no sense.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = "it is a symbolic link" if path.is_symlink() else error.strerror
        raise UsageError(
            f"cannot read {path}: {why} — write it by cachefs sync configure"
        ) from None
    with open(fd, encoding="utf-8") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise UsageError(f"{path} holds keys, and others may read it — chmod 600 {path}")
        try:
            return decode(file.read())
        except (configparser.Error, ValueError, KeyError):
            # Not the reason: it would quote the line.
            raise UsageError(
                f"{path} makes no sense — write it anew by cachefs sync configure"
            ) from None


def write_pair(path: Path, pair: Pair) -> None:
    """Keep *pair* in *path*, private to the user: wholly or not at all, in place of a link and not through it."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(part, flags, 0o600), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)  # one that was left behind may be anybody's
            file.write(encode(pair))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror} — name another file by --settings"
        ) from None


def encode(pair: Pair) -> str:
    """Return *pair* as text."""
    parser = configparser.RawConfigParser()
    for name, side in ((IN, pair.source), (OUT, pair.target)):
        said = {_BUCKET: side.bucket, _ACCESS: side.access, _SECRET: side.secret, **side.more}
        parser[name] = {key: value for key, value in said.items() if value}
    text = io.StringIO()
    text.write(
        "# Written by cachefs sync configure. Holds keys: for the eyes of its owner only.\n"
    )
    parser.write(text)
    return text.getvalue()


def decode(text: str) -> Pair:
    """Return what :func:`encode` wrote. Raise ValueError, KeyError or configparser's own for anything else."""
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    return Pair(_side(parser[IN]), _side(parser[OUT]))


def _side(section: Mapping[str, str]) -> Side:
    if not set(section) <= set(KNOWN):
        raise ValueError("unknown keys")
    more = {name: section[name] for name in _MORE if section.get(name)}
    return Side(section[_BUCKET], section.get(_ACCESS), section.get(_SECRET), more)
