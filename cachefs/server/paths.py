"""The verbs of the control socket about files by their paths: for programs that have no mount, or do not go through it."""

import base64
import os
from collections.abc import Awaitable, Callable
from typing import Final

from cachefs.core.errors import UsageError
from cachefs.core.types import ETag
from cachefs.engine.listing import Reader
from cachefs.engine.paths import Paths
from cachefs.engine.replacing import Version
from cachefs.server.descriptors import Descriptors
from cachefs.server.questions import Question, etag_of, number_of, path_of

_PAGE: Final = 1000
"""Names in one answer."""
LARGEST: Final = 4 * 2**20
"""Bytes in one answer."""


class PathVerbs:
    """What one caller asks about paths. All of it may take as long as the store does."""

    def __init__(self, paths: Callable[[], Paths], descriptors: Descriptors) -> None:
        """*paths*: asked for when something is to be done."""
        self._paths = paths
        self._descriptors = descriptors
        self._reading: tuple[str, Reader] | None = None
        self.table: dict[str, Callable[[Question], Awaitable[object]]] = {
            "stat": self._stat,
            "list": self._list,
            "read": self._read,
            "put": self._put,
            "mkdir": self._mkdir,
            "delete": self._delete,
            "rename": self._rename,
        }

    async def _stat(self, question: Question) -> object:
        return (await self._paths().stat(path_of(question))).to_json()

    async def _list(self, question: Question) -> object:
        """Answer with the names of a directory that follow the number ``after``; none: there are no more.

        Who goes on where he was reads the directory as it was listed then.
        """
        path, after = path_of(question), number_of(question, "after")
        if not after or self._reading is None or self._reading[0] != path:
            self._reading = path, await self._paths().open_list(path)
        found = await self._paths().list(self._reading[1], after, _PAGE)
        if not found:
            self._reading = None
        return [each.to_json() for each in found]

    async def _read(self, question: Question) -> object:
        """Answer with some bytes of one version of a file, as base64: at most some megabytes of them."""
        version = _version_of(question, "version")
        if version is None:
            raise UsageError("version must be told: etag, size, mtime_ns")
        offset, size = number_of(question, "offset"), number_of(question, "size")
        found = await self._paths().read(path_of(question), offset, min(size, LARGEST), version)
        return base64.b64encode(found).decode("ascii")

    async def _put(self, question: Question) -> object:
        """Store the file that came with the question. What was taken in is answered for."""
        source = self._descriptors.take()
        try:
            path, may_replace = path_of(question), question.get("replace") is not False
            found = await self._paths().put(
                path,
                source,
                may_replace=may_replace,
                grown_from=_version_of(question, "grown_from"),
            )
        finally:
            os.close(source)
        return found.to_json()

    async def _mkdir(self, question: Question) -> object:
        await self._paths().mkdir(path_of(question), parents=question.get("parents") is True)
        return {}

    async def _delete(self, question: Question) -> object:
        await self._paths().delete(path_of(question))
        return {}

    async def _rename(self, question: Question) -> object:
        target = path_of(question, "target")
        may_replace = question.get("replace") is not False
        await self._paths().rename(path_of(question), target, may_replace=may_replace)
        return {}


def _version_of(question: Question, name: str) -> Version | None:
    """Return the version of a file that is told under *name*; None: none is."""
    told = question.get(name)
    if told is None:
        return None
    if not isinstance(told, dict):
        raise UsageError(f"{name} must be a version: etag, size, mtime_ns")
    etag = None if told.get("etag") is None else ETag(etag_of(told))
    mtime_ns = told.get("mtime_ns")  # which may lie before 1970
    if not isinstance(mtime_ns, int):
        raise UsageError(f"{name} must be a version: etag, size, mtime_ns")
    return Version(etag, number_of(told, "size"), mtime_ns)
