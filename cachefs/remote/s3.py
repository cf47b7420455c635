"""S3 and what speaks its protocol: the contract in terms of boto3's requests."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote, urlencode

from cachefs.core import descent, metadata
from cachefs.core.errors import (
    Changed,
    Denied,
    Fault,
    NoBucket,
    NotFound,
    Refused,
    StoreError,
    Unsupported,
)
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import CHECKSUMS, MD5_NAME, Fingerprint, parts_in, with_md5
from cachefs.core.source import StoreOptions
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote.clocks import answered_at
from cachefs.remote.lines import Lines
from cachefs.remote.pages import Pages
from cachefs.remote.s3_client import Answer, S3Bucket, S3Client, said
from cachefs.remote.s3_errors import OutOfRange, PartsGone, UploadGone, status_of
from cachefs.remote.s3_fetch import Sums, hides_md5, is_encrypted, pour, size_of_whole
from cachefs.remote.s3_multipart import (
    GuardedReader,
    Multipart,
    Team,
    Work,
    abort,
    parts_of,
    split,
)
from cachefs.remote.s3_probe import Condition, Findings, decodes_twice, probe
from cachefs.remote.s3_served import TAGS, params_of, served_of
from cachefs.remote.s3_values import (
    bare,
    encode_meta,
    in_base64,
    in_hexadecimal,
    looks_like_md5,
    object_of,
    page_of,
    quoted,
    require_bearable,
    seconds_ns,
)
from cachefs.remote.store import Body, Capabilities, Ledger, Sink, UploadPaused
from cachefs.remote.works import Works, mark_of

_SMALL = 2**18
"""Under which rclone keeps, and looks for, the MD5 of what was sent in parts."""
"""A body up to this is read at once, and sent together with the headers."""
_COPY_LIMIT = 512 * 2**20
"""A copy of more than this goes in parts: in parallel, and none longer than a read may wait for its answer."""
_COPY_PART = 256 * 2**20
_BUCKET_TRUSTED_S = 30.0
_NOT_ASKED = Condition()
_CARRIED = ("ContentType", "ServerSideEncryption", "SSEKMSKeyId", "StorageClass")
"""What of an object, beside its metadata and how it is served, S3 forgets when it gets new metadata."""


def bucket_names(client: S3Client) -> list[str]:
    """Return the names of all buckets that the credentials may list."""
    names: list[str] = []
    token: dict[str, str] = {}
    while True:
        answer = client.call("list_buckets", **token)
        names += [str(bucket["Name"]) for bucket in answer.get("Buckets", ())]
        if not answer.get("ContinuationToken"):
            return names
        token = {"ContinuationToken": str(answer["ContinuationToken"])}


@dataclass(frozen=True, slots=True)
class _Original:
    """The version that a copy is made of."""

    bucket: S3Bucket
    key: Key
    etag: ETag
    told: Answer
    """What a HEAD says of it, with the content type that the copy is to have."""


class S3Store:
    """The objects of one bucket.

    *home* is the prefix that the credentials may be bound to: :meth:`check` lists it, and :meth:`probe`
    writes below it. *client* is to be shared between buckets. *origin* names the bucket, of the same server and
    for the same credentials, that :meth:`copy` takes its sources from; None: this one. Copies of more than
    *copy_limit* bytes go in parts; a page of a listing has *page_size* entries.

    Until :meth:`probe` ran, every condition of a write is checked by HEAD.
    """

    def __init__(
        self,
        bucket: str,
        options: StoreOptions,
        *,
        home: str = "",
        client: S3Client | None = None,
        origin: str | None = None,
        copy_limit: int = _COPY_LIMIT,
        page_size: int = 1000,
    ) -> None:
        self._options = options
        self._home = home
        self._bucket = S3Bucket(client or S3Client(options), bucket)
        self._origin = self._bucket if origin is None else S3Bucket(self._bucket.client, origin)
        self._copy_limit = copy_limit
        self._copy_part = min(copy_limit, _COPY_PART)
        self._page_size = page_size
        self._found = Findings()
        self._etags = Sums()
        self._knows_ranges = False
        self._decodes_twice: bool | None = None
        """Whether the name of a part's source has to be encoded once more; None: nobody needed to know."""
        self._lock = threading.Lock()
        self._team: Team | None = None
        self._works = Works()
        self._unfinished: dict[str, Multipart] = {}
        """Uploads that a try of this process left, by their work."""
        self._lines = Lines()

    @property
    def capabilities(self) -> Capabilities:
        """What :meth:`probe` found."""
        return self._found.capabilities()

    @property
    def description(self) -> str:
        """``s3://BUCKET at ENDPOINT``."""
        return f"s3://{self._bucket.name} at {self._bucket.client.endpoint}"

    def check(self) -> None:
        """Raise unless the bucket exists and may be listed."""
        self._bucket.call("list_objects_v2", Prefix=self._home, MaxKeys=1)

    def check_key(self, key: Key) -> None:
        """Raise ``BadKey`` for what is no UTF-8, holds a NUL or is too long."""
        require_bearable(key)

    def probe(self) -> Capabilities:
        """Find out what the store honours, with objects named ``.cachefs-probe-…``."""
        self._found = probe(self._bucket, self._home)
        return self.capabilities

    def head(self, key: Key) -> ObjectInfo:
        """Return what is at *key*."""
        return self._believed(
            _described(key, _asked(self._bucket, lambda: self._bucket.head(key)))
        )

    def _believed(self, info: ObjectInfo) -> ObjectInfo:
        """Return *info*, which is not named by its MD5 where the probe has seen that objects are not."""
        return replace(info, is_md5=False) if self._found.has_other_etags else info

    def fingerprint(self, key: Key) -> Fingerprint:
        """Return what is at *key*: its MD5, unless it was stored in parts or under a key of KMS or the client's own."""
        bucket = self._bucket
        answer = _asked(
            bucket, lambda: bucket.call("head_object", Key=key, ChecksumMode="ENABLED")
        )
        info = self._believed(_described(key, answer))
        parts = parts_in(info.etag)
        return Fingerprint(
            info,
            md5=info.etag if info.is_md5 else None,
            part_size=self._first_part(info) if parts and parts > 1 else None,
            checksums=_checksums_of(answer),
        )

    def _first_part(self, info: ObjectInfo) -> int | None:
        """Return how long the first part is; None where the store does not know of parts any more."""
        with suppress(Refused, NotFound):
            answer = self._bucket.call("head_object", Key=info.key, PartNumber=1)
            length = answer.get("ContentLength")
            return length if isinstance(length, int) and 0 < length < info.size else None
        return None

    def list(self, prefix: Key, *, deep: bool = False) -> Pages:
        """Yield what lies below *prefix*."""
        asked: dict[str, object] = {"Prefix": prefix, "MaxKeys": self._page_size}
        if not deep:
            asked["Delimiter"] = "/"

        def fetch(token: str | None) -> tuple[Listing, str | None]:
            goes_on = {} if token is None else {"ContinuationToken": token}
            answer = self._bucket.call("list_objects_v2", EncodingType="url", **asked, **goes_on)
            # Without this word the answer is no listing: an empty one would pass for an empty bucket.
            page = page_of(answer, md5_etags=self._found.md5_etags)
            if not said(answer, "IsTruncated"):
                return page, None
            return page, str(said(answer, "NextContinuationToken"))

        return Pages(fetch)

    def overview(self, prefix: Key) -> Pages:
        """As :meth:`list`: it tells all."""
        return self.list(prefix, deep=True)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """Write the bytes of *extent* into *into*; whole objects are checked against an MD5 ETag."""
        if extent.length == 0:
            return self._same(self.head(key), if_match)
        try:
            answer = self._bucket.call(
                "get_object",
                Key=key,
                Range=f"bytes={extent.start}-{extent.stop - 1}",
                IfMatch=quoted(if_match),
            )
        except OutOfRange:
            self._same(self.head(key), if_match)
            raise
        with closing(answer["Body"]) as body:
            size = size_of_whole(answer, extent, knows_ranges=self._knows_ranges)
            self._knows_ranges |= status_of(answer) == 206
            info = object_of(key, answer, size=size)
            if info.etag != if_match:
                # It was asked for this version: either it looks away from that, or it does not know what it says.
                self._same(self.head(key), if_match)
                raise Fault("the store's answer is about another version than the store has")
            may_tell = looks_like_md5(info.etag) and not is_encrypted(answer)
            whole = extent.length == size and may_tell
            digest = pour(body, extent.length, into, check=whole)
        if digest is not None:
            self._etags.require(info.etag, digest, proven=self._found.md5_etags)
        is_told = may_tell and (self._found.md5_etags or self._etags.are_md5)
        return replace(info, md5=info.etag if is_told else None)

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        """Store *body*: in one request, or above the threshold in parts. The store checks each by its MD5.

        The parts that a failed try stored are kept for the next try with the same *body*.
        """
        require_bearable(key)
        if body.md5 is not None and self._hides_md5(body.size):
            meta = with_md5(meta, body.md5)  # its ETag will be none
        is_looked = not self._puts_apart(body.size, if_match)
        if is_looked:
            meta = self._grown(key, meta, body.size, if_match)
        about = {"Metadata": encode_meta(meta), **params_of(meta), **self._chosen()}
        if content_type is not None:
            about["ContentType"] = content_type
        tags = _tags(self._bucket, key) if TAGS in meta and if_match is not None else {}
        try:
            answer = self._put(key, body, about | tags, if_match, is_looked=is_looked)
        except NotFound as error:
            # S3 says so of an object that is gone and should be replaced.
            raise Changed(str(error)) from error
        self._retag(key, tags)
        if not answer.get("ETag") or self._is_other(bare(answer["ETag"]), answer, body):
            info = self._stored(key, body.size, meta, if_match)
            if self._is_other(info.etag, answer, body):
                raise Fault("the store got other bytes than were sent")
            return info
        return descent.read(
            ObjectInfo(
                key=key,
                size=body.size,
                etag=bare(answer["ETag"]),
                mtime_ns=_answered_ns(answer),
                content_type=content_type,
                meta=dict(meta),
                is_md5=bare(answer["ETag"]) == body.md5,
            )
        )

    def _hides_md5(self, size: int) -> bool:
        """Whether the ETag of what is put will be no MD5, as far as that is known beforehand."""
        if size >= self._options.multipart_threshold or self._found.has_other_etags:
            return True
        return (self._options.sse or "").startswith("aws:kms")

    def _puts_apart(self, size: int, if_match: ETag | None) -> bool:
        """Whether the store itself sees to it that a put replaces the version that it should."""
        found = self._found
        if size < self._options.multipart_threshold:
            return (found.create if if_match is None else found.put).enforced
        return (found.parts_create if if_match is None else found.parts).enforced

    def _grown(
        self, key: Key, meta: Mapping[str, str], size: int, if_match: ETag | None
    ) -> dict[str, str]:
        """Return *meta* with the line of a version that is about to replace another, which is looked at."""
        return self._lines.grown(key, meta, size, self._looked(key, if_match))

    def _put(
        self,
        key: Key,
        body: Body,
        about: Mapping[str, object],
        if_match: ETag | None,
        *,
        is_looked: bool,
    ) -> Answer:
        if body.size < self._options.multipart_threshold:
            return self._put_whole(key, body, about, if_match, is_looked=is_looked)
        return self._put_parts(key, body, about, if_match, is_looked=is_looked)

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        """Copy within the store, whatever the size."""
        require_bearable(target)
        origin = self._original(self._origin, source, if_match, content_type)
        info = _described(source, origin.told)
        is_looked = not self._found.copy_target.enforced and info.size <= self._copy_limit
        meta = dict(info.meta or {})
        if is_looked:
            meta = self._grown(target, meta, info.size, replaces)
        wanted = replace(info, key=target, meta=meta)
        return self._copied(wanted, origin, replaces, is_looked=is_looked)

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """Copy the object onto itself with other metadata, which is how S3 has it."""
        origin = self._original(self._bucket, key, if_match, content_type)
        info = _described(key, origin.told)
        if info.line:
            meta = descent.kept(meta, info)
        wanted = replace(info, meta=dict(meta))
        # Nobody needs to ask again for what the HEAD has just said of the object itself.
        is_looked = not self._found.copy_target.enforced
        return self._copied(wanted, origin, if_match, is_looked=is_looked)

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """Remove the object. S3 does not say whether there was one."""
        condition = {}
        if if_match is not None and self._found.delete.enforced:
            condition["IfMatch"] = self._found.delete.spelled(if_match)
        elif if_match is not None:
            self._lines.removed(key, self._same(self.head(key), if_match))
        self._bucket.call("delete_object", Key=key, **condition)

    def keep_ledger(self, ledger: Ledger) -> None:
        """Note uploads in *ledger*, each before its first part is sent."""
        self._works.keep_in(ledger)

    def abandon(self, key: Key, work: str) -> None:
        """Abort an upload that is in nobody's hands."""
        if not self._works.take(work):
            return
        try:
            self._abort(key, work)
        finally:
            self._works.leave(work)

    def close(self) -> None:
        """Close all connections. Aborts the uploads that nobody would know of any more."""
        for key, work in self._works.forgotten():
            with suppress(StoreError):
                self.abandon(key, work)
        with self._lock:
            team, self._team = self._team, None
        if team is not None:
            team.close()
        self._bucket.client.close()

    def _original(
        self, bucket: S3Bucket, key: Key, if_match: ETag, content_type: str | None
    ) -> "_Original":
        """Return what a copy begins with, if it is still that version; *content_type*: the copy's own."""
        told = _head(bucket, key)
        self._same(_described(key, told), if_match)
        if content_type is not None:
            told["ContentType"] = content_type
        return _Original(bucket, key, if_match, told)

    def _is_other(self, etag: ETag, answer: Answer, body: Body) -> bool:
        """Whether *etag*, of what *answer* says was stored, stands for other bytes than those of *body*."""
        if body.md5 is None or is_encrypted(answer):
            return False
        return self._found.md5_etags and looks_like_md5(etag) and etag != body.md5

    def _stored(
        self, key: Key, size: int, meta: Mapping[str, str], replaced: ETag | None
    ) -> ObjectInfo:
        """Return what a HEAD says of what was just stored with *meta*, where the answer to that did not.

        An answer that says nothing may not even mean that anything was stored.
        """
        try:
            info = self.head(key)
        except NotFound as error:
            raise Fault("the store has taken the object and does not have it") from error
        if info.size == size and metadata.is_of_write(info.meta, meta):
            return info
        if info.etag == replaced:
            raise Fault("the store has taken the object and still has the one before")
        raise Changed(f"{key!r} was replaced at once")

    def _same(self, info: ObjectInfo, etag: ETag) -> ObjectInfo:
        if info.etag != etag:
            raise Changed(f"{info.key!r} is another version than the one asked for")
        return info

    def _condition(
        self, key: Key, etag: ETag | None, *, match: Condition, create: Condition = _NOT_ASKED
    ) -> dict[str, object]:
        """Return the parameters that make the store check; where it does not, check by HEAD."""
        if etag is None and create.enforced:
            return {"IfNoneMatch": "*"}
        if etag is not None and match.enforced:
            return {"IfMatch": match.spelled(etag)}
        self._looked(key, etag)
        return {}

    def _looked(self, key: Key, etag: ETag | None) -> ObjectInfo | None:
        """Return what is at *key*. Raise ``Changed`` unless it is that version (None: unless nothing is)."""
        try:
            found = self.head(key)
        except NotFound as error:
            if etag is None:
                return None
            raise Changed(f"{key!r} is gone") from error
        if etag is None:
            raise Changed(f"{key!r} is there already")
        return self._same(found, etag)

    def _chosen(self) -> dict[str, object]:
        """Return what the operator wants of every object that is written."""
        wanted = {
            "StorageClass": self._options.storage_class,
            "ServerSideEncryption": self._options.sse,
            "SSEKMSKeyId": self._options.sse_kms_key_id,
            "ACL": self._options.acl,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def _retag(self, key: Key, tags: Mapping[str, object]) -> None:
        """Put back what the store has dropped of *tags*: some do, of a copy, or of what was sent in parts."""
        pairs = parse_qsl(str(tags.get("Tagging", "")), keep_blank_values=True)
        if not pairs or _head(self._bucket, key).get("TagCount"):
            return
        tag_set = [{"Key": name, "Value": value} for name, value in pairs]
        with suppress(Denied, NotFound, Unsupported):
            self._bucket.call("put_object_tagging", Key=key, Tagging={"TagSet": tag_set})

    def _put_whole(
        self,
        key: Key,
        body: Body,
        about: Mapping[str, object],
        if_match: ETag | None,
        *,
        is_looked: bool,
    ) -> Answer:
        found = self._found
        condition = {}
        if not is_looked:
            condition = self._condition(key, if_match, match=found.put, create=found.create)
        reader = GuardedReader(body, Extent(0, body.size), threading.Event())
        content = reader.read() if body.size <= _SMALL else reader
        checked = {} if body.md5 is None else {"ContentMD5": in_base64(body.md5)}
        with reader.unmasked():
            return self._bucket.call(
                "put_object", Key=key, Body=content, **checked, **about, **condition
            )

    def _put_parts(
        self,
        key: Key,
        body: Body,
        about: Mapping[str, object],
        if_match: ETag | None,
        *,
        is_looked: bool,
    ) -> Answer:
        found = self._found

        def condition() -> dict[str, object]:
            return self._condition(key, if_match, match=found.parts, create=found.parts_create)

        upload = self._upload(key, body, about)
        try:
            answer = upload.upload(body, self._threads(), condition, md5_etags=found.md5_etags)
        except (UploadGone, Changed) as error:
            if upload.is_continued and self._is_there(upload, key, body, about):
                upload.end()
                return {}  # only the word of it was lost; a HEAD tells the rest
            upload.abort()
            raise error from None
        except (Fault, Denied, UploadPaused):  # denied, nobody could abort it either
            self._leave(upload)
            raise
        except PartsGone as error:
            upload.abort()
            if upload.is_continued:
                raise Fault("parts that were sent some time ago are gone") from error
            raise
        except BaseException:
            upload.abort()
            raise
        upload.end()
        # What an earlier try began has the line that was made for that one: a HEAD tells it.
        return {} if upload.is_continued and is_looked else answer

    def _upload(self, key: Key, body: Body, about: Mapping[str, object]) -> Multipart:
        """Return, in our hands, the upload that a try before this one left unfinished, or a new one."""
        parts = split(body.size, self._options.part_size)
        said = about["Metadata"]
        assert isinstance(said, dict)
        same = {**about, "Metadata": descent.of_any_try(said)}
        mark = mark_of(body.md5, same, [part.length for part in parts])
        for text in self._works.noted(key):
            if not self._works.take(text):
                continue
            work = Work.decode(text)
            if mark and work.mark == mark:
                with self._lock:
                    upload = self._unfinished.pop(text, None)
                return upload or Multipart(
                    self._bucket, key, about, parts, self._works, mark=mark, begun=work
                )
            with suppress(StoreError):  # else it is aborted another time
                self._abort(key, text)
            self._works.leave(text)
        return Multipart(self._bucket, key, about, parts, self._works, mark=mark)

    def _leave(self, upload: Multipart) -> None:
        if upload.work is not None:
            with self._lock:
                self._unfinished[upload.work] = upload
        upload.leave()

    def _abort(self, key: Key, text: str) -> None:
        """Abort an upload that is in our hands, and see that it is gone: parts may still have been on their way."""
        upload_id = Work.decode(text).upload_id
        with self._lock:
            self._unfinished.pop(text, None)
        abort(self._bucket, key, upload_id)
        with suppress(UploadGone, NotFound, NoBucket):
            if parts_of(self._bucket, key, upload_id):
                raise Fault(f"parts of an upload to {key!r} came in after it was aborted")
        self._works.end(text)

    def _is_there(
        self, upload: Multipart, key: Key, body: Body, about: Mapping[str, object]
    ) -> bool:
        """Whether what is at *key* can only be what *upload* has made: our promise, and the same bytes."""
        try:
            info = self.head(key)
        except NotFound:
            return False
        except BaseException:
            self._leave(upload)
            raise
        ours, theirs = about["Metadata"], info.meta or {}
        assert isinstance(ours, dict)
        return info.size == body.size and all(
            ours.get(name) and ours[name] == theirs.get(name)
            for name in (metadata.TOKEN, MD5_NAME)
        )

    def _threads(self) -> Team:
        with self._lock:
            if self._team is None:
                self._team = Team(self._options.transfers)
            return self._team

    def _copied(
        self,
        wanted: ObjectInfo,
        original: "_Original",
        replaces: ETag | None,
        *,
        is_looked: bool,
    ) -> ObjectInfo:
        """Make *wanted* out of the bytes of *original*.

        *is_looked*: what it replaces was looked at just now.
        """
        found, there = self._found, original.told
        about = params_of(served_of(there))
        about |= {name: there[name] for name in _CARRIED if name in there} | self._chosen()
        about["Metadata"] = encode_meta(wanted.meta or {})
        tags = _tags(original.bucket, original.key) if there.get("TagCount") else {}
        origin: dict[str, object] = {
            "CopySource": {"Bucket": original.bucket.name, "Key": original.key}
        }
        if found.copy_source.enforced:
            origin["CopySourceIfMatch"] = found.copy_source.spelled(original.etag)

        def condition(match: Condition, create: Condition) -> dict[str, object]:
            return self._condition(wanted.key, replaces, match=match, create=create)

        if wanted.size > self._copy_limit:
            origin["CopySource"] = {
                "Bucket": original.bucket.name,
                "Key": self._spelled_for_parts(original.key),
            }
            answer = self._copy_parts(
                wanted, about | tags, origin, lambda: condition(found.parts, found.parts_create)
            )
        else:
            held = {} if is_looked else condition(found.copy_target, found.copy_target)
            result = self._bucket.call(
                "copy_object",
                Key=wanted.key,
                MetadataDirective="REPLACE",
                **origin,
                **about,
                **held,
            )
            answer = result | result.get("CopyObjectResult", {})
        self._retag(wanted.key, tags)
        if not answer.get("ETag"):
            return self._stored(wanted.key, wanted.size, wanted.meta or {}, replaces)
        etag = bare(answer["ETag"])
        is_md5 = found.md5_etags and looks_like_md5(etag) and not hides_md5(answer)
        stored = replace(wanted, etag=etag, mtime_ns=_answered_ns(answer), line=(), is_md5=is_md5)
        return descent.read(stored)

    def _spelled_for_parts(self, key: Key) -> str:
        """Return *key* as the source of parts, which some stores read otherwise than that of a whole copy."""
        if "%" not in key and "?versionId=" not in key:
            return key
        if self._decodes_twice is None:
            self._decodes_twice = decodes_twice(self._bucket, self._home)
        return quote(key) if self._decodes_twice else key

    def _copy_parts(
        self,
        wanted: ObjectInfo,
        about: Mapping[str, object],
        origin: Mapping[str, object],
        condition: Callable[[], dict[str, object]],
    ) -> Answer:
        parts = split(wanted.size, self._copy_part)
        upload = Multipart(self._bucket, wanted.key, about, parts, self._works)
        try:
            answer = upload.copy(origin, self._threads(), condition)
        except BaseException:
            upload.abort()
            raise
        upload.end()
        return answer


def _head(bucket: S3Bucket, key: Key) -> Answer:
    """Return what a copy must carry on, and not only what :meth:`S3Store.head` tells."""
    return _asked(bucket, lambda: bucket.head(key))


def _asked(bucket: S3Bucket, head: Callable[[], Answer]) -> Answer:
    try:
        return head()
    except NotFound:
        # The answer to a HEAD has no body, so a missing bucket looks like a missing object.
        if time.monotonic() - bucket.seen_s > _BUCKET_TRUSTED_S:
            with suppress(Denied):
                bucket.call("head_bucket")
        raise


def _tags(bucket: S3Bucket, key: Key) -> dict[str, object]:
    """Return the tags of *key* as a parameter; none where they may not be read."""
    with suppress(Denied, NotFound, Unsupported):
        found = bucket.call("get_object_tagging", Key=key).get("TagSet", ())
        pairs = [(tag["Key"], tag["Value"]) for tag in found]
        return {
            "Tagging": urlencode(pairs, quote_via=quote)
        }  # not every store knows + for a blank
    return {}


def _described(key: Key, answer: Answer) -> ObjectInfo:
    info = object_of(key, answer, size=int(said(answer, "ContentLength")))
    return replace(info, is_md5=looks_like_md5(info.etag) and not hides_md5(answer))


def _checksums_of(answer: Answer) -> dict[str, str]:
    """Return the checksums of all bytes that a HEAD tells; those of parts are others."""
    if answer.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return {}
    told = {name: str(answer.get(f"Checksum{name.upper()}") or "") for name in CHECKSUMS}
    return {name: found for name, text in told.items() if (found := in_hexadecimal(text))}


def _answered_ns(answer: Answer) -> int:
    """Return when the store took the object in, by its own clock."""
    if "LastModified" in answer:
        return seconds_ns(answer["LastModified"])
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return seconds_ns(answered_at(said or ""))
