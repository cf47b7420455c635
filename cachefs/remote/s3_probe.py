"""What an S3 honours, found out with objects of our own, which are removed again."""

import hashlib
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cachefs.core.errors import Changed, Denied, NotFound, Refused, StoreError, StoreFull
from cachefs.core.types import ETag
from cachefs.remote.s3_client import Answer, S3Bucket, said
from cachefs.remote.s3_values import quoted
from cachefs.remote.store import Capabilities, Support, not_tried

_AT_ONCE = 5
_WRONG = ETag("0" * 32)
_CONTENT = b"cachefs asks what this store honours"
_MD5 = hashlib.md5(_CONTENT, usedforsecurity=False).hexdigest()
_STRENGTH = (Support.ENFORCED, Support.IGNORED, Support.REFUSED, Support.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Condition:
    """How the store treats one kind of condition, and how it wants the ETag spelled."""

    support: Support = Support.UNKNOWN
    unquoted: bool = False

    @property
    def enforced(self) -> bool:
        """Whether it can be left to the store."""
        return self.support is Support.ENFORCED

    def spelled(self, etag: ETag) -> str:
        """Return *etag* as this condition wants it."""
        return etag if self.unquoted else quoted(etag)


_UNKNOWN = Condition()


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found out. A condition is sent only where it is enforced."""

    put: Condition = _UNKNOWN
    create: Condition = _UNKNOWN
    parts: Condition = _UNKNOWN
    """CompleteMultipartUpload with If-Match."""
    parts_create: Condition = _UNKNOWN
    delete: Condition = _UNKNOWN
    copy: Condition = _UNKNOWN
    copy_source: Condition = _UNKNOWN
    copy_target: Condition = _UNKNOWN
    """CopyObject with If-None-Match or If-Match on what it would replace."""
    md5_etags: bool = False
    """Whether the ETag of an object stored in one piece is the MD5 of its bytes."""
    writable: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_other_etags(self) -> bool:
        """Whether the ETag of an object stored in one piece was seen to be something else."""
        return bool(self.writable) and not self.md5_etags

    def capabilities(self) -> Capabilities:
        """Return what the contract knows of it."""
        return Capabilities(
            conditional_put=self.put.support,
            conditional_create=self.create.support,
            conditional_multipart=_weakest(self.parts, self.parts_create),
            conditional_delete=self.delete.support,
            conditional_copy=_weakest(self.copy_source, self.copy_target),
            copy=self.copy.support,
            writable=self.writable,
            notes=self.notes,
        )


def probe(bucket: S3Bucket, prefix: str) -> Findings:
    """Return what the store honours for keys that begin with *prefix*.

    Each question has objects of its own, so that they may all be asked at once: a mount waits for the answers.
    """
    run = _Probe(bucket, f"{prefix}.cachefs-probe-{secrets.token_hex(8)}")
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="cachefs-probe") as pool:
        try:
            return run.findings(pool)
        except StoreFull as reason:
            return Findings(notes=(not_tried(reason),))
        finally:
            run.clean_up(pool)


def decodes_twice(bucket: S3Bucket, prefix: str) -> bool:
    """Return whether the store undoes the percent-encoding of a part's CopySource twice, as radosgw does.

    It would copy ``a b`` where ``a%20b`` is meant. Asked with objects below *prefix*, which are removed again.
    """
    name = f"{prefix}.cachefs-probe-{secrets.token_hex(8)}"
    source, target = f"{name}-%41", {"Key": f"{name}-target"}
    bucket.call("put_object", Key=source, Body=_CONTENT)
    try:
        upload = {
            **target,
            "UploadId": said(bucket.call("create_multipart_upload", **target), "UploadId"),
        }
        try:
            bucket.call(
                "upload_part_copy",
                **upload,
                PartNumber=1,
                CopySource={"Bucket": bucket.name, "Key": source},
            )
        except NotFound:
            return True
        finally:
            with suppress(StoreError):
                bucket.call("abort_multipart_upload", **upload)
    finally:
        with suppress(StoreError):
            bucket.call("delete_object", Key=source)
    return False


class _Probe:
    def __init__(self, bucket: S3Bucket, name: str) -> None:
        self._bucket = bucket
        self._name = name
        self._made: set[str] = set()

    def findings(self, pool: ThreadPoolExecutor) -> Findings:
        try:
            etag = self._put(self._key("put"))
        except Denied as reason:
            return Findings(writable=False, notes=(f"writing is denied: {reason}",))
        put = pool.submit(self._replaces, etag)
        create = pool.submit(self._creates)
        delete = pool.submit(self._deletes)
        parts = pool.submit(self._uploads)
        copy = pool.submit(self._copies)
        running: tuple[Future[Any], ...] = (put, create, delete, parts, copy)
        wait(running)  # what any of them makes must be cleared away, though another failed
        found = Findings(
            put=put.result(),
            create=create.result(),
            parts=parts.result()[0],
            parts_create=parts.result()[1],
            delete=delete.result(),
            copy=copy.result()[0],
            copy_source=copy.result()[1],
            copy_target=copy.result()[2],
            md5_etags=etag == _MD5,
            writable=True,
        )
        return _with_notes(found)

    def clean_up(self, pool: ThreadPoolExecutor) -> None:
        wait([pool.submit(self._remove, key) for key in self._made])

    def _remove(self, key: str) -> None:
        with suppress(StoreError):
            self._bucket.call("delete_object", Key=key)

    def _key(self, part: str) -> str:
        return f"{self._name}-{part}"

    def _put(self, key: str, **conditions: str) -> ETag:
        self._made.add(key)
        answer = self._bucket.call("put_object", Key=key, Body=_CONTENT, **conditions)
        return ETag(str(answer.get("ETag", "")).strip('"'))

    def _replaces(self, etag: ETag) -> Condition:
        key = self._key("put")
        return _match(lambda text: self._put(key, IfMatch=text), etag)

    def _creates(self) -> Condition:
        key = self._key("create")
        if _refuses(lambda: self._put(key, IfNoneMatch="*")) is not Support.IGNORED:
            return Condition(Support.REFUSED)  # though nothing is there
        return Condition(_refuses(lambda: self._put(key, IfNoneMatch="*")))

    def _deletes(self) -> Condition:
        key = self._key("delete")
        etag = self._put(key)
        return _match(
            lambda text: self._bucket.call("delete_object", Key=key, IfMatch=text),
            etag,
        )

    def _copies(self) -> tuple[Condition, Condition, Condition]:
        source, target = self._key("source"), self._key("copy")
        etag = self._put(source)

        def copy(**conditions: str) -> ETag:
            self._made.add(target)
            answer = self._bucket.call(
                "copy_object",
                Key=target,
                CopySource={"Bucket": self._bucket.name, "Key": source},
                **conditions,
            )
            return ETag(str(answer.get("CopyObjectResult", {}).get("ETag", "")).strip('"'))

        try:
            copied = copy()
        except StoreFull:
            raise
        except Refused:
            refused = Condition(Support.REFUSED)
            return refused, refused, refused
        onto = _match(lambda text: copy(IfMatch=text), copied or etag)
        if onto.enforced:
            anew = _refuses(lambda: copy(IfNoneMatch="*"))
            onto = onto if anew is Support.ENFORCED else Condition(anew)
        return Condition(Support.ENFORCED), _match(lambda t: copy(CopySourceIfMatch=t), etag), onto

    def _uploads(self) -> tuple[Condition, Condition]:
        """Ask with one upload of a single small part, which the store must refuse to complete."""
        place = {"Key": self._key("parts")}
        etag = self._put(place["Key"])
        try:
            upload_id = str(
                said(self._bucket.call("create_multipart_upload", **place), "UploadId")
            )
        except Refused:
            return Condition(Support.REFUSED), Condition(Support.REFUSED)
        upload = {**place, "UploadId": upload_id}
        try:
            return self._completes(upload, etag)
        finally:
            with suppress(StoreError):
                self._bucket.call("abort_multipart_upload", **upload)

    def _completes(self, upload: dict[str, str], etag: ETag) -> tuple[Condition, Condition]:
        part = self._bucket.call("upload_part", **upload, PartNumber=1, Body=_CONTENT)
        parts = {"Parts": [{"PartNumber": 1, "ETag": said(part, "ETag")}]}

        def complete(**conditions: str) -> Answer:
            return self._bucket.call(
                "complete_multipart_upload", **upload, MultipartUpload=parts, **conditions
            )

        created = _refuses(lambda: complete(IfNoneMatch="*"))
        if created is Support.IGNORED:
            # The upload is used up, and a store that ignores the one ignores the other.
            return Condition(Support.IGNORED), Condition(Support.IGNORED)
        return _match(lambda text: complete(IfMatch=text), etag), Condition(created)


def _refuses(attempt: Callable[[], object]) -> Support:
    """Return how a condition fares that does not hold."""
    try:
        attempt()
    except (Changed, NotFound):
        return Support.ENFORCED
    except StoreFull:
        raise
    except Refused:
        return Support.REFUSED
    return Support.IGNORED


def _match(attempt: Callable[[str], object], etag: ETag) -> Condition:
    """Return how If-Match fares: with a wrong ETag, then with the right one in both spellings."""
    wrong = _refuses(lambda: attempt(quoted(_WRONG)))
    if wrong is not Support.ENFORCED:
        return Condition(wrong)
    for unquoted in (False, True):
        condition = Condition(Support.ENFORCED, unquoted=unquoted)
        if unquoted and _refuses(lambda: attempt(_WRONG)) is not Support.ENFORCED:
            break
        try:
            attempt(condition.spelled(etag))
        except StoreFull:
            raise
        except (Changed, NotFound, Refused):
            continue
        return condition
    return Condition(Support.REFUSED)


def _weakest(*conditions: Condition) -> Support:
    return max((condition.support for condition in conditions), key=_STRENGTH.index)


def _with_notes(found: Findings) -> Findings:
    named = {
        "PUT": found.put,
        "CompleteMultipartUpload": found.parts,
        "DELETE": found.delete,
        "CopyObject": found.copy_source,
    }
    notes = [
        f"{name} wants the ETag of If-Match unquoted"
        for name, condition in named.items()
        if condition.unquoted
    ]
    if found.put.support is Support.IGNORED:
        notes.append(
            "PUT ignores If-Match: checked by HEAD, which leaves a gap for others' writes"
        )
    if found.put.support is Support.REFUSED:
        notes.append(
            "PUT refuses If-Match: checked by HEAD, which leaves a gap for others' writes"
        )
    if not found.md5_etags:
        notes.append("ETags are not MD5 sums: the content of what is fetched cannot be checked")
    return replace(found, notes=tuple(notes))
