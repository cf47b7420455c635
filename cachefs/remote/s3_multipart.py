"""Objects made of parts: sent or copied by several threads, and called off as one."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cachefs.core.errors import Denied, Fault, NoBucket, NotFound, StoreError, Unsupported
from cachefs.core.extents import Extent
from cachefs.core.types import Key
from cachefs.remote.s3_client import Answer, S3Bucket, said
from cachefs.remote.s3_errors import UploadGone
from cachefs.remote.s3_fetch import is_encrypted
from cachefs.remote.s3_values import bare, in_base64, looks_like_md5
from cachefs.remote.store import Body, Reader, UploadStopped
from cachefs.remote.works import Works

MOST_PARTS = 10_000
_LEAST_PART = 5 * 2**20
_GRAIN = 2**20
_CHUNK = 2**18


def split(size: int, part_size: int) -> list[Extent]:
    """Return the extents of the parts: *part_size* each, or larger where 10,000 would not do."""
    part_size = max(part_size, _LEAST_PART)
    if size > part_size * MOST_PARTS:
        grains = -(-size // (MOST_PARTS * _GRAIN))
        part_size = grains * _GRAIN
    return [Extent(start, min(start + part_size, size)) for start in range(0, size, part_size)]


class GuardedReader:
    """A reader that stops when *stop* is set, and keeps what its body raised, for it not to be rewritten.

    boto3 takes an exception from a body's ``read`` for one of the network.
    """

    def __init__(self, body: Body, extent: Extent, stop: threading.Event) -> None:
        self._reader: Reader = body.reader(extent)
        self._stop = stop
        self.failure: BaseException | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        if self._stop.is_set():
            raise UploadStopped
        try:
            return self._reader.read(size)
        except BaseException as failure:
            self.failure = failure
            raise

    def md5(self) -> str:
        """Return the MD5 of all of it, in hexadecimal, and go back to its start."""
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := self.read(_CHUNK):
            digest.update(chunk)
        self.seek(0)
        return digest.hexdigest()

    @contextmanager
    def unmasked(self) -> Iterator[None]:
        """Raise what the body raised, in place of the fault that it was taken for."""
        try:
            yield
        except StoreError:
            if self.failure is not None:
                raise self.failure from None
            raise

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to *offset*."""
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._reader.tell()


@dataclass(frozen=True, slots=True)
class Work:
    """What the ledger keeps of an upload: which it is, and what it is to become."""

    upload_id: str
    mark: str
    """As :func:`cachefs.remote.works.mark_of` has it; empty: nobody continues it."""

    def encode(self) -> str:
        """Return it as text."""
        return json.dumps({"upload": self.upload_id, "mark": self.mark})

    @classmethod
    def decode(cls, text: str) -> "Work":
        """Return what :meth:`encode` wrote."""
        found = json.loads(text)
        return cls(str(found["upload"]), str(found["mark"]))


class Multipart:
    """One upload in parts: begun at most once, continued by each :meth:`upload` until one completes it.

    Parts that one finished before it failed are not sent again by the next. *begun*: the upload was begun by
    another process; what the store lists of it, and is as the body has it, is not sent again.

    Once begun it is in the hands of *works*, until :meth:`end`, :meth:`abort` or :meth:`leave`.
    """

    def __init__(
        self,
        bucket: S3Bucket,
        key: Key,
        create: Mapping[str, object],
        parts: Sequence[Extent],
        works: Works,
        *,
        mark: str = "",
        begun: Work | None = None,
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._create = create
        self._parts = parts
        self._works = works
        self._mark = mark
        self._begun = begun
        self._etags: dict[int, str] = {}
        self._listed: dict[int, tuple[int, str]] | None = {} if begun is None else None
        """What the store had of another process' parts, their sizes and ETags; None: not asked yet."""
        self.is_continued = begun is not None
        """Whether it relies on parts that were sent some time ago."""

    @property
    def work(self) -> str | None:
        """What the ledger has of it; None: it is not begun."""
        return None if self._begun is None else self._begun.encode()

    def upload(
        self,
        body: Body,
        team: "Team",
        finish: Callable[[], Mapping[str, object]],
        *,
        md5_etags: bool = False,
    ) -> Answer:
        """Send the parts of *body*, and complete the object under the condition that *finish* returns.

        *md5_etags*: the store names a part by the MD5 of what it got, which is then held against what was sent.
        """

        def send(upload_id: str, number: int, stop: threading.Event) -> str:
            part = self._parts[number - 1]
            reader = GuardedReader(body, part, stop)
            with reader.unmasked():
                md5 = reader.md5()
                size, etag = (self._listed or {}).get(number, (0, ""))
                if size == part.length and etag.strip('"') == md5:
                    return etag
                answer = self._bucket.call(
                    "upload_part",
                    Key=self._key,
                    UploadId=upload_id,
                    PartNumber=number,
                    ContentMD5=in_base64(md5),
                    Body=reader,
                )
            etag = str(said(answer, "ETag"))
            if (
                md5_etags
                and not is_encrypted(answer)
                and looks_like_md5(bare(etag))
                and bare(etag) != md5
            ):
                raise Fault(f"the store got other bytes than were sent as part {number}")
            return etag

        return self._run(send, team, finish)

    def copy(
        self,
        source: Mapping[str, object],
        team: "Team",
        finish: Callable[[], Mapping[str, object]],
    ) -> Answer:
        """As :meth:`upload`, but from the object that *source* (CopySource and its condition) names."""

        def send(upload_id: str, number: int, _: threading.Event) -> str:
            part = self._parts[number - 1]
            answer = self._bucket.call(
                "upload_part_copy",
                Key=self._key,
                **source,
                UploadId=upload_id,
                PartNumber=number,
                CopySourceRange=f"bytes={part.start}-{part.stop - 1}",
            )
            return str(said(said(answer, "CopyPartResult"), "ETag"))

        return self._run(send, team, finish)

    def leave(self) -> None:
        """Let go of it for now."""
        self.is_continued = True
        if (work := self.work) is not None:
            self._works.leave(work)

    def end(self) -> None:
        """Strike it: it has become an object, or the store does not know it any more."""
        if (work := self.work) is not None:
            self._works.end(work)

    def abort(self) -> None:
        """Have the store drop what was sent. If that fails it stays in the ledger, to be dropped another time."""
        if self._begun is None:
            return
        try:
            abort(self._bucket, self._key, self._begun.upload_id)
        except StoreError:
            self.leave()
        else:
            self.end()

    def _run(
        self,
        send: Callable[[str, int, threading.Event], str],
        team: "Team",
        finish: Callable[[], Mapping[str, object]],
    ) -> Answer:
        upload_id = self._upload_id()
        if self._listed is None:
            self._listed = parts_of(self._bucket, self._key, upload_id)
        numbers = range(1, len(self._parts) + 1)
        left = [number for number in numbers if number not in self._etags]
        team.work(left, lambda number, stop: send(upload_id, number, stop), self._etags)
        parts = [{"PartNumber": number, "ETag": self._etags[number]} for number in numbers]
        return self._bucket.call(
            "complete_multipart_upload",
            Key=self._key,
            **finish(),
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
        )

    def _upload_id(self) -> str:
        if self._begun is None:
            created = self._bucket.call("create_multipart_upload", Key=self._key, **self._create)
            self._begun = Work(str(said(created, "UploadId")), self._mark)
            # No part is sent before that is safe: what a kill leaves just here holds no bytes.
            self._works.begin(self._key, self._begun.encode())
        return self._begun.upload_id


def abort(bucket: S3Bucket, key: Key, upload_id: str) -> None:
    """Have the store drop an upload and its parts. One that it does not know is dropped."""
    with suppress(UploadGone, NotFound, NoBucket):
        bucket.call("abort_multipart_upload", Key=key, UploadId=upload_id)


def parts_of(bucket: S3Bucket, key: Key, upload_id: str) -> dict[int, tuple[int, str]]:
    """Return the size and the ETag of each part that the store has of an upload; nothing if it does not tell."""
    found: dict[int, tuple[int, str]] = {}
    after: dict[str, object] = {}
    with suppress(Denied, Unsupported):
        for _ in range(MOST_PARTS):
            try:
                answer = bucket.call("list_parts", Key=key, UploadId=upload_id, **after)
            except NotFound as error:  # so says radosgw of an upload that was completed
                raise UploadGone(str(error)) from error
            rows = answer.get("Parts") or ()
            for row in rows:
                found[int(row["PartNumber"])] = int(row.get("Size", 0)), str(row.get("ETag", ""))
            if not rows or not answer.get("IsTruncated"):
                break
            after = {"PartNumberMarker": int(rows[-1]["PartNumber"])}
    return found


class Team:
    """The threads that send parts: at most *size*, of all uploads together."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="cachefs-part")
        self._is_over = threading.Event()

    def work(
        self,
        numbers: Sequence[int],
        send: Callable[[int, threading.Event], str],
        etags: MutableMapping[int, str],
    ) -> None:
        """Put what *send* returns for each number into *etags*.

        At the first failure stops the others, waits for them, and raises it. What succeeded nevertheless is
        in *etags*, so that it need not be sent again.
        """
        stop = threading.Event()
        waiting = iter(numbers)
        running: dict[Future[str], int] = {}
        failure: BaseException | None = None
        while True:
            if failure is None and self._is_over.is_set():
                failure = UploadStopped()
                stop.set()
            while failure is None and len(running) < self._size and (number := next(waiting, 0)):
                running[self._pool.submit(send, number, stop)] = number
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                if (failed := future.exception()) is None:
                    etags[number] = future.result()
                elif failure is None:
                    failure = failed
                    stop.set()
            # An abort is only sure to leave no part behind when no part is on its way.
            if failure is not None:
                running = {each: number for each, number in running.items() if not each.cancel()}
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the threads, once they are done with what they have begun; whoever waits for more gets ``UploadStopped``."""
        self._is_over.set()
        self._pool.shutdown()
