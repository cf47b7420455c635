"""Large objects as the stores have them while they are none yet: parts of uploads, segments without a manifest."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tests.mount.harness import Mount
from tests.mount.proxy import Exchange
from tests.mount.smaller import MIB, S3_PART, SWIFT_SEGMENT
from tests.mount.stores import LiveStore, S3Bucket, SwiftContainer


class LargeMount(Mount):
    """A mount that takes a few mebibytes for large, and sends one part after the other."""

    def argv(self) -> list[str]:
        """As that of any mount, but for the sizes."""
        words = super().argv()
        words[words.index("-m") + 1] = "tests.mount.smaller"
        return [*words, "--part-size", f"{S3_PART // MIB}MiB", "--transfers", "1"]


class Large(ABC):
    """What a test sees of large uploads: their requests on the way, and what they have at the store."""

    part: int
    """Bytes of one part."""

    @property
    def size(self) -> int:
        """Bytes of an object in five parts."""
        return 4 * self.part + 12_345

    @abstractmethod
    def is_part(self, exchange: Exchange, number: int | None = None) -> bool:
        """Whether a part is sent, or copied (the *number*-th, counted from one, if given)."""

    @abstractmethod
    def is_finish(self, exchange: Exchange) -> bool:
        """Whether an object is to be made of parts."""

    @abstractmethod
    def is_removal(self, exchange: Exchange) -> bool:
        """Whether parts are to be removed."""

    @abstractmethod
    def begin_foreign(self, key: str) -> None:
        """Have somebody else begin to upload *key*."""

    @abstractmethod
    def has_foreign(self) -> bool:
        """Whether what :meth:`begin_foreign` began is still there."""

    @abstractmethod
    def end_foreign(self) -> None:
        """Take away what :meth:`begin_foreign` began."""

    @abstractmethod
    def left(self) -> Sequence[str]:
        """What is there of uploads of ours that is no object."""


class LargeS3(Large):
    part = S3_PART

    def __init__(self, store: S3Bucket) -> None:
        self._store = store
        self._sdk: Any = store._client
        self._foreign: set[tuple[str, str]] = set()

    def is_part(self, exchange: Exchange, number: int | None = None) -> bool:
        wanted = "partNumber=" if number is None else f"partNumber={number}"
        return self._is(exchange, "PUT") and wanted in exchange.query

    @staticmethod
    def _is(exchange: Exchange, method: str) -> bool:
        """Whether that is such a request, and none of the probe that begins each mount."""
        return exchange.method == method and ".cachefs-probe-" not in exchange.path

    def is_create(self, exchange: Exchange) -> bool:
        """Whether an upload is to begin."""
        return self._is(exchange, "POST") and exchange.query.partition("=")[0] == "uploads"

    def is_finish(self, exchange: Exchange) -> bool:
        return self._is(exchange, "POST") and "uploadId=" in exchange.query

    def is_removal(self, exchange: Exchange) -> bool:
        return self._is(exchange, "DELETE") and "uploadId=" in exchange.query

    def begin_foreign(self, key: str) -> None:
        bucket = self._store.bucket
        begun = self._sdk.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        self._sdk.upload_part(Bucket=bucket, Key=key, UploadId=begun, PartNumber=1, Body=b"theirs")
        self._foreign.add((key, begun))

    def has_foreign(self) -> bool:
        return self._foreign <= set(self.uploads())

    def end_foreign(self) -> None:
        for key, upload in self._foreign:
            self._sdk.abort_multipart_upload(Bucket=self._store.bucket, Key=key, UploadId=upload)

    def uploads(self) -> list[tuple[str, str]]:
        """Every upload that is under way, whosever it is."""
        found = self._sdk.list_multipart_uploads(Bucket=self._store.bucket).get("Uploads") or ()
        return [(row["Key"], row["UploadId"]) for row in found]

    def parts(self, key: str, upload: str) -> int:
        """How many parts an upload has."""
        answer = self._sdk.list_parts(Bucket=self._store.bucket, Key=key, UploadId=upload)
        return len(answer.get("Parts") or ())

    def left(self) -> Sequence[str]:
        return [f"{key} {upload}" for key, upload in set(self.uploads()) - self._foreign]


class LargeSwift(Large):
    part = SWIFT_SEGMENT

    def __init__(self, store: SwiftContainer) -> None:
        self._store = store
        self._sdk = store._connection
        self._own = f"{store.bucket}_segments"
        self._foreign: set[str] = set()

    def is_part(self, exchange: Exchange, number: int | None = None) -> bool:
        ending = "" if number is None else f"/{number - 1:08d}"
        is_segment = f"/{self._own}/" in exchange.path and exchange.path.endswith(ending)
        return exchange.method == "PUT" and is_segment

    def is_finish(self, exchange: Exchange) -> bool:
        return exchange.method == "PUT" and "multipart-manifest=put" in exchange.query

    def is_removal(self, exchange: Exchange) -> bool:
        return exchange.method == "DELETE" and f"/{self._own}/" in exchange.path

    def begin_foreign(self, key: str) -> None:
        name = f"{key}/cachefs/{'0' * 32}/00000000"
        self._sdk.put_container(self._own)
        self._sdk.put_object(self._own, name, contents=b"theirs")
        self._foreign.add(name)

    def has_foreign(self) -> bool:
        return self._foreign <= self.segments()

    def end_foreign(self) -> None:
        for name in self._foreign:
            self._sdk.delete_object(self._own, name)

    def segments(self) -> set[str]:
        """Every segment that is there, whosever it is."""
        if self._own not in {row["name"] for row in self._sdk.get_account()[1]}:
            return set()
        return {row["name"] for row in self._sdk.get_container(self._own, full_listing=True)[1]}

    def left(self) -> Sequence[str]:
        return sorted(self.segments() - self._foreign - self._used())

    def _used(self) -> set[str]:
        used = set()
        keys = self._store.keys()
        for key in keys:
            headers = self._sdk.head_object(self._store.bucket, key)
            if headers.get("x-static-large-object"):
                query = "multipart-manifest=get"
                manifest = self._sdk.get_object(self._store.bucket, key, query_string=query)[1]
                rows = [row["name"] for row in json.loads(manifest)]
                used |= {name.removeprefix(f"/{self._own}/") for name in rows}
        return used


def large_of(store: LiveStore) -> Large:
    """What to look at *store* with."""
    if isinstance(store, S3Bucket):
        return LargeS3(store)
    assert isinstance(store, SwiftContainer)
    return LargeSwift(store)
