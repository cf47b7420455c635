"""Plays a session on a cache directory and marks in a file what was begun, ended and stored.

    python -m tests.crash.session CACHE_DIR MARKS SEED LENGTH

It runs under strace, which sees the marks among all that is done to the cache directory.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import trio

from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.memory import MemoryStore
from cachefs.remote.store import Body
from tests.crash import plan
from tests.engine.rig import LATER, Rig, serving


class MarkingStore(MemoryStore):
    """A store that marks what it holds after each change. It outlives the machine."""

    def __init__(self, marks: int) -> None:
        super().__init__()
        self._marks = marks

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        info = super().put(key, body, meta=meta, content_type=content_type, if_match=if_match)
        self._mark(info)
        return info

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        info = super().copy(
            source, target, if_match=if_match, replaces=replaces, content_type=content_type
        )
        self._mark(info)
        return info

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        info = super().set_meta(key, meta, content_type=content_type, if_match=if_match)
        self._mark(info)
        return info

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        super().delete(key, if_match=if_match)
        mark(self._marks, {"deleted": key})

    def _mark(self, info: ObjectInfo) -> None:
        # Its ETag is the MD5 of the content.
        mark(self._marks, {"stored": info.key, "md5": info.etag, "meta": dict(info.meta or {})})


def mark(marks: int, said: Mapping[str, object]) -> None:
    os.write(marks, json.dumps(said).encode() + b"\n")


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


async def play(rig: Rig, step: plan.Step) -> None:
    match step.verb:
        case "write":
            await rig.write(step.name, step.data)
        case "put":
            source = os.memfd_create("source")
            os.write(source, step.data)
            await rig.service.paths.put(step.name, source, may_replace=True)
            os.close(source)
        case "patch":
            fh = await rig.open(step.name, os.O_RDWR)
            for start in range(0, len(step.data), 20_000):
                await rig.fs.write(fh, step.offset + start, step.data[start : start + 20_000])
            await rig.close(fh)
        case "truncate":
            fh = await rig.open(step.name, os.O_RDWR)
            await rig.service.fs.files.of(fh).truncate(step.offset)
            await rig.close(fh)
        case "rename":
            await rig.rename(step.name, step.other)
        case "unlink":
            await rig.unlink(step.name)
        case "fsync":
            fh = await rig.open(step.name, os.O_RDWR)
            await rig.fs.fsync(fh)
            await rig.close(fh)
        case "flush":
            await rig.flush()


async def main(cache_dir: Path, marks: int, seed: int, length: int) -> None:
    async with serving(cache_dir, MarkingStore(marks), **LATER) as rig:
        for number, step in enumerate(plan.drawn(seed, length)):
            mark(marks, {"begun": number})
            await play(rig, step)
            mark(marks, {"ended": number})
    mark(marks, {"stopped": True})


if __name__ == "__main__":
    descriptor = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT, 0o600)
    trio.run(main, Path(sys.argv[1]), descriptor, int(sys.argv[3]), int(sys.argv[4]))
