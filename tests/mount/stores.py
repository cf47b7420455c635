"""The stores under the mounts, seen from the other side: by their own SDK, or as the directory they are."""

import json
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import swiftclient

from tests.mount.proxy import Exchange, Proxy
from tests.servers.s3 import S3Server

SWIFT_DELETES: Final = 5000
"""Names in one bulk delete; Swift takes twice as many."""


@dataclass(frozen=True)
class Target:
    """What to mount, and how it is reached."""

    source: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def below(self, prefix: str) -> "Target":
        """The same bucket, what lies below *prefix*."""
        return replace(self, source=f"{self.source}/{prefix}")

    def everything(self) -> "Target":
        """All buckets of the same account."""
        return replace(self, source=self.source[: self.source.index("://") + 3])


class LiveStore(ABC):
    """One fresh bucket, container or directory. Knows nothing of any mount."""

    name: str
    bucket: str
    """What the store calls it: bucket, container, directory."""
    endpoint: str
    """Where the server listens; empty: there is no network in between."""

    @abstractmethod
    def target(self, via: Proxy | None = None) -> Target:
        """How to mount it, through *via* if given."""

    @abstractmethod
    def keys(self, prefix: str = "") -> list[str]:
        """The keys of all that is a file, below *prefix*; directory markers are not."""

    @abstractmethod
    def all_keys(self, prefix: str) -> list[str]:
        """The keys below *prefix*, directory markers included."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The bytes of one object."""

    @abstractmethod
    def meta(self, key: str) -> dict[str, str]:
        """The user metadata of one object, names in lower case."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Store an object, whatever was there."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object."""

    @abstractmethod
    def key_in(self, path: str) -> str | None:
        """The key that a request's path names; None: it names none."""

    @abstractmethod
    def close(self) -> None:
        """Remove all, and release connections."""

    def view(self) -> dict[str, bytes]:
        """Every file's bytes by key."""
        return {key: self.get(key) for key in self.keys()}

    def proxy(self) -> Proxy:
        """A relay to the server."""
        where = urlsplit(self.endpoint)
        assert where.hostname is not None
        assert where.port is not None
        return Proxy(where.hostname, where.port)

    def asked(self, proxy: Proxy, method: str) -> list[str]:
        """The keys of the objects that were asked for by *method*, once for each request."""
        keys = (self.key_in(e.path) for e in proxy.exchanges() if e.method == method)
        return [key for key in keys if key]

    def is_object(self, exchange: Exchange, method: str, key: str | None = None) -> bool:
        """Whether that is a request by *method* for an object (for *key*, if given)."""
        named = self.key_in(exchange.path)
        return exchange.method == method and bool(named) and (key is None or named == key)


class FileBucket(LiveStore):
    """A directory as a store."""

    def __init__(self, directory: Path) -> None:
        self.name = "file"
        self.endpoint = ""
        self.directory = directory
        self.bucket = str(directory)
        directory.mkdir()

    def target(self, via: Proxy | None = None) -> Target:
        assert via is None
        return Target(f"file://{self.directory}")

    def keys(self, prefix: str = "") -> list[str]:
        found = (
            str(Path(top, name).relative_to(self.directory))
            for top, _, names in os.walk(self.directory)
            for name in names
        )
        return sorted(
            key for key in found if key.startswith(prefix) and not key.startswith(".cachefs")
        )

    def all_keys(self, prefix: str) -> list[str]:
        found = [self.directory / prefix, *(self.directory / prefix).rglob("*")]
        return sorted(
            str(path.relative_to(self.directory)) + ("/" if path.is_dir() else "")
            for path in found
            if path.exists()
        )

    def get(self, key: str) -> bytes:
        path = self.directory / key
        return b"" if path.is_dir() else path.read_bytes()

    def meta(self, key: str) -> dict[str, str]:
        path = self.directory / key
        try:
            kept = os.getxattr(path, "user.cachefs.record")
        except OSError:  # it did not fit, and lies in a file of its own
            beside = self.directory.glob(f".cachefs-store/meta/*-{path.stat().st_ino:x}")
            kept = next((one.read_bytes() for one in beside), b'{"meta": {}}')
        meta: dict[str, str] = json.loads(kept)["meta"]
        return meta

    def put(self, key: str, content: bytes) -> None:
        path = self.directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        new.write_bytes(content)
        new.rename(path)

    def delete(self, key: str) -> None:
        (self.directory / key).unlink()

    def key_in(self, path: str) -> str | None:
        return None

    def close(self) -> None:
        pass


class S3Bucket(LiveStore):
    """A bucket behind the S3 API, seen through *client*, which stays open, or through one of its own."""

    def __init__(self, name: str, server: S3Server, client: Any = None) -> None:  # noqa: ANN401
        self.name = name
        self.endpoint = server.url
        self.bucket = f"mount-{uuid.uuid4().hex[:12]}"
        self._environment = server.environment()
        self._is_lent = client is not None
        self._client: Any = client or server.sdk()
        self._client.create_bucket(Bucket=self.bucket)

    def target(self, via: Proxy | None = None) -> Target:
        return Target(
            f"s3://{self.bucket}",
            ("--endpoint-url", via.url if via else self.endpoint, "--force-path-style"),
            self._environment,
        )

    def _listed(self, prefix: str = "") -> Iterable[str]:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
            for row in page.get("Contents", ()):
                yield row["Key"]

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._listed(prefix) if not key.endswith("/"))

    def all_keys(self, prefix: str) -> list[str]:
        return sorted(self._listed(prefix))

    def get(self, key: str) -> bytes:
        content: bytes = self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content

    def meta(self, key: str) -> dict[str, str]:
        found: dict[str, str] = self._client.head_object(Bucket=self.bucket, Key=key)["Metadata"]
        return {name.lower(): value for name, value in found.items()}

    def content_type(self, key: str) -> str:
        """The type that the store says the object has."""
        return str(self._client.head_object(Bucket=self.bucket, Key=key)["ContentType"])

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def put_parts(self, key: str, parts: Sequence[bytes]) -> None:
        """Store an object as another tool does that sends it in parts and says nothing of its MD5."""
        of = {"Bucket": self.bucket, "Key": key}
        upload = self._client.create_multipart_upload(**of)["UploadId"]
        etags = [
            self._client.upload_part(**of, UploadId=upload, PartNumber=number, Body=part)["ETag"]
            for number, part in enumerate(parts, 1)
        ]
        told = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        self._client.complete_multipart_upload(
            **of, UploadId=upload, MultipartUpload={"Parts": told}
        )

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.bucket, Key=key)

    def key_in(self, path: str) -> str | None:
        root = f"/{self.bucket}/"
        return path[len(root) :] if path.startswith(root) else None

    def close(self) -> None:
        # Not all characters of a key can be told in XML.
        keys = [{"Key": key} for key in self._listed() if key.isprintable()]
        for first in range(0, len(keys), 1000):
            many = {"Objects": keys[first : first + 1000], "Quiet": True}
            self._client.delete_objects(Bucket=self.bucket, Delete=many)
        for key in list(self._listed()):
            self._client.delete_object(Bucket=self.bucket, Key=key)
        self._client.delete_bucket(Bucket=self.bucket)
        if not self._is_lent:
            self._client.close()


class SwiftContainer(LiveStore):
    """A container behind the Swift API; *connection* is swiftclient's own, which opens again when it is asked."""

    def __init__(
        self,
        name: str,
        endpoint: str,
        connection: swiftclient.Connection,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self.bucket = f"mount-{uuid.uuid4().hex[:12]}"
        self._environment = dict(environment)
        self._connection = connection
        self._connection.put_container(self.bucket)

    def target(self, via: Proxy | None = None) -> Target:
        environment = dict(self._environment)
        if via is not None:
            # The server names its storage address after the Host header of the sign-in, so
            # that signing in through the proxy brings everything through it.
            environment["ST_AUTH"] = via.url + urlsplit(environment["ST_AUTH"]).path
        return Target(f"swift://{self.bucket}", (), environment)

    def _rows(self, container: str, prefix: str = "") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._connection.get_container(
            container, prefix=prefix, full_listing=True
        )[1]
        return rows

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(
            row["name"]
            for row in self._rows(self.bucket, prefix)
            if row["content_type"] != "application/directory" and not row["name"].endswith("/")
        )

    def all_keys(self, prefix: str) -> list[str]:
        return sorted(row["name"] for row in self._rows(self.bucket, prefix))

    def get(self, key: str) -> bytes:
        content: bytes = self._connection.get_object(self.bucket, key)[1]
        return content

    def meta(self, key: str) -> dict[str, str]:
        headers = self._connection.head_object(self.bucket, key)
        mark = "x-object-meta-"
        return {
            name.removeprefix(mark): value
            for name, value in headers.items()
            if name.startswith(mark)
        }

    def put(self, key: str, content: bytes) -> None:
        self._connection.put_object(self.bucket, key, contents=content)

    def put_parts(self, key: str, parts: Sequence[bytes]) -> None:
        """Store a static large object, whose segments lie below ``.segments/`` in the same container."""
        rows = []
        for number, part in enumerate(parts):
            name = f".segments/{key}/{number}"
            etag = self._connection.put_object(self.bucket, name, contents=part)
            rows.append({"path": f"/{self.bucket}/{name}", "etag": etag, "size_bytes": len(part)})
        self._connection.put_object(
            self.bucket, key, contents=json.dumps(rows), query_string="multipart-manifest=put"
        )

    def delete(self, key: str) -> None:
        self._connection.delete_object(self.bucket, key)

    def key_in(self, path: str) -> str | None:
        found = re.match(rf"/(?:swift/)?v1/[^/]+/{self.bucket}/(.+)", path, re.DOTALL)
        return found[1] if found else None

    def close(self) -> None:
        names = [quote(f"/{self.bucket}/{row['name']}") for row in self._rows(self.bucket)]
        for at in range(0, len(names), SWIFT_DELETES):
            _, answer = self._connection.post_account(
                {"Content-Type": "text/plain", "Accept": "application/json"},
                query_string="bulk-delete",
                data="\n".join(names[at : at + SWIFT_DELETES]),
            )
            assert json.loads(answer)["Errors"] == []
        self._connection.delete_container(self.bucket)
        self._connection.close()
