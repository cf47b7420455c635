"""The verbs of the control socket about the service as a whole: what operators ask, and leases."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import trio

import cachefs
from cachefs.core.errors import UsageError
from cachefs.core.known_md5 import KnownMd5
from cachefs.core.types import EntryId
from cachefs.server.controlled import Controlled
from cachefs.server.jobs import SLICE_S
from cachefs.server.questions import (
    Question,
    bucket_of,
    etag_of,
    identity_of,
    is_named_use,
    is_path,
    lease_of,
    number_of,
    path_of,
    seconds_of,
    text_of,
)

_LONGEST_DRAIN_S: Final = 7 * 86400.0


class ServiceVerbs:
    """What one caller asks of the service. A drain that it asked for ends with it, and so do leases that are held."""

    def __init__(self, service: Controlled) -> None:
        self._service = service
        self._drained = False
        self._held: set[str] = set()
        """Leases that end when the caller hangs up."""
        self.table: dict[str, Callable[[Question], Awaitable[object]]] = {
            "status": self._status,
            "flush": self._flush,
            "drain": self._drain,
            "entries": self._entries,
            "history": self._history,
            "entry": self._entry,
            "refetch": self._refetch,
            "store_anew": self._store_anew,
            "vacuum": self._vacuum,
            "keep_md5s": self._keep_md5s,
            "remove_md5": self._remove_md5,
            "forget_md5s": self._forget_md5s,
            "presence": self._presence,
            "explain": self._explain,
            "refresh": self._refresh,
            "look": self._look,
            "preheat": self._preheat,
            "survey": self._survey,
            "lease": self._lease,
            "renew": self._renew,
            "release": self._release,
            "prune": self._prune,
            "evict": self._evict,
            "pin": self._pin,
            "unpin": self._unpin,
            "pins": self._pins,
            "dirty": self._dirty,
            "export": self._export,
            "discard": self._discard,
            "upload": self._upload,
        }

    @property
    def is_lasting(self) -> bool:
        """Whether something lasts until the caller hangs up."""
        return self._drained or bool(self._held)

    async def end(self) -> None:
        """End what lasts: the caller has hung up."""
        if self._drained:
            self._service.resume()
        with trio.CancelScope(shield=True):
            for lease in self._held:
                await self._service.release(lease)

    async def _status(self, question: Question) -> object:
        return {"version": cachefs.__version__, **self._service.status()}

    async def _flush(self, question: Question) -> object:
        paths = question.get("paths", [])
        if not isinstance(paths, list) or not all(map(is_path, paths)):
            raise UsageError("flush: paths must be a list of paths")
        return await self._service.flush(paths, wait=question.get("wait") is True)

    async def _drain(self, question: Question) -> object:
        timeout_s = question.get("timeout")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
            raise UsageError("drain: timeout must be a number of seconds")
        if not 0 <= timeout_s <= _LONGEST_DRAIN_S:
            raise UsageError("drain: timeout must be a number of seconds")
        self._drained = True
        left = await self._service.drain(timeout_s=float(timeout_s))
        return {"left": left}

    async def _entries(self, question: Question) -> object:
        return self._service.entries(number_of(question, "after"))

    async def _history(self, question: Question) -> object:
        return self._service.history(number_of(question, "after"))

    async def _entry(self, question: Question) -> object:
        return self._service.entry(identity_of(question))

    async def _refetch(self, question: Question) -> object:
        return await self._service.refetch(identity_of(question), etag_of(question))

    async def _store_anew(self, question: Question) -> object:
        return await self._service.store_anew(identity_of(question), etag_of(question))

    async def _vacuum(self, question: Question) -> object:
        return await self._service.vacuum()

    async def _keep_md5s(self, question: Question) -> object:
        rows: Any = question.get("md5s")
        try:
            found = [KnownMd5.from_json(row) for row in rows]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"keep_md5s: md5s must be a list of records: {error}") from None
        self._service.keep_md5s(found)
        return len(found)

    async def _remove_md5(self, question: Question) -> object:
        return self._service.remove_md5(text_of(question, "bucket"), text_of(question, "key"))

    async def _forget_md5s(self, question: Question) -> object:
        return self._service.forget_md5s(bucket_of(question))

    async def _presence(self, question: Question) -> object:
        paths = question.get("paths")
        if not isinstance(paths, list) or not all(map(is_path, paths)):
            raise UsageError("presence: paths must be a list of paths")
        return self._service.presence(paths)

    async def _explain(self, question: Question) -> object:
        return await self._service.explain(path_of(question))

    async def _refresh(self, question: Question) -> object:
        return {"forgotten": await self._service.refresh(path_of(question))}

    async def _look(self, question: Question) -> object:
        return await self._service.look(path_of(question))

    async def _preheat(self, question: Question) -> object:
        return await self._service.preheat(
            path_of(question),
            used_ns=number_of(question, "used_ns"),
            may_evict=question.get("evict") is True,
        )

    async def _survey(self, question: Question) -> object:
        return await self._service.survey(path_of(question))

    async def _pin(self, question: Question) -> object:
        return await self._service.pin(path_of(question))

    async def _unpin(self, question: Question) -> object:
        return await self._service.unpin(path_of(question))

    async def _pins(self, question: Question) -> object:
        return await self._service.pins(number_of(question, "turn"))

    async def _lease(self, question: Question) -> object:
        """Answer without a path where it takes long: the caller asks again. With ``cached`` nothing is fetched."""
        path, seconds = path_of(question), seconds_of(question)
        leased = await self._service.lease(
            path,
            seconds=seconds,
            patience_s=SLICE_S,
            only_here=question.get("cached") is True,
        )
        return {"lease": None} if leased is None else {**asdict(leased), "path": str(leased.path)}

    async def _renew(self, question: Question) -> object:
        """Let a lease last from now on; with ``hold`` it ends, too, when the caller hangs up."""
        lease = lease_of(question)
        self._service.renew(lease, seconds=seconds_of(question))
        if question.get("hold") is True:
            self._held.add(lease)
        return {}

    async def _release(self, question: Question) -> object:
        lease = lease_of(question)
        self._held.discard(lease)
        await self._service.release(lease)
        return {}

    async def _prune(self, question: Question) -> object:
        files = question.get("files")
        if not isinstance(files, list) or not all(map(is_named_use, files)):
            raise UsageError(
                "prune: files must be a list of pairs: a file's number, and when it was last used"
            )
        return await self._service.evict([(EntryId(each[0]), each[1]) for each in files])

    async def _evict(self, question: Question) -> object:
        await self._service.give_up(path_of(question))
        return {}

    async def _dirty(self, question: Question) -> object:
        return self._service.dirty()

    async def _export(self, question: Question) -> object:
        target = question.get("target")
        if not isinstance(target, str) or not is_path(target) or not target.startswith("/"):
            raise UsageError("export: target must be an absolute path")
        await self._service.export(identity_of(question), Path(target))
        return {}

    async def _discard(self, question: Question) -> object:
        await self._service.discard(identity_of(question))
        return {}

    async def _upload(self, question: Question) -> object:
        return {"path": await self._service.upload(identity_of(question))}
