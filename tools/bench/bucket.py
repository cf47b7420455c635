"""The bucket behind the mounts, by the SDK: filled before, watched while an upload is on its way."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from tools.bench.plan import MIB, Sizes
from tools.bench.work import block, small_body

NAME: Final = "bench"
THREADS: Final = 8
PART: Final = 16 * MIB
POSIX: Final = {"mode": "33188", "uid": "0", "gid": "0", "mtime": "1700000000.000000000"}


@dataclass(frozen=True, slots=True)
class Seen:
    """When something was in the store, and how many requests it took us to know."""

    at: float
    requests: int


@dataclass(frozen=True)
class Bucket:
    """One bucket of the gateway."""

    endpoint: str
    access_key: str
    secret_key: str
    _client: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Made once: a client takes longer to make than a listing takes, and a wait would be that much too long.
        object.__setattr__(self, "_client", self.new_client())

    def make(self) -> None:
        self._client.create_bucket(Bucket=NAME)

    def fill(self, sizes: Sizes, prefixes: Iterable[str], scratch: Path) -> None:
        """Put what the scenes read. Only the prefixes that some scene asks for."""
        wanted = set(prefixes)
        if "large" in wanted:
            self._put_large(sizes.large, scratch)
        if "small" in wanted:
            self._put_many("small", sizes.small, sizes.small_bytes, {})
        if "list" in wanted:
            self._put_many("list", sizes.listed, 64, {})
        if "posix" in wanted:
            self._put_many("posix", sizes.listed, 64, POSIX)

    def wait_for(
        self, prefix: str, count: int, size: int, *, closed: float, limit_s: float
    ) -> Seen:
        """When *count* objects of *size* bytes stand below *prefix*, on the monotonic clock.

        What the first look finds was there when the file was closed, as far as can be seen from outside.
        """
        pause = threading.Event()
        end = time.monotonic() + limit_s
        looks = 1
        if self._count(prefix, size) >= count:
            return Seen(closed, looks)
        while time.monotonic() < end:
            pause.wait(0.03)
            looks += 1
            if self._count(prefix, size) >= count:
                return Seen(time.monotonic(), looks)
        raise TimeoutError(f"not all objects below {prefix} within {limit_s:.0f} s")

    def remove(self, prefix: str) -> None:
        """Delete everything below *prefix*: what a round wrote must not stay in the memory of the next."""
        for page in _pages(self._client, prefix):
            keys = [{"Key": entry["Key"]} for entry in page]
            if keys:
                self._client.delete_objects(Bucket=NAME, Delete={"Objects": keys, "Quiet": True})

    def _put_large(self, size: int, scratch: Path) -> None:
        pattern = os.urandom(MIB)
        with tempfile.NamedTemporaryFile(dir=scratch) as file:
            for number in range(size // MIB):
                file.write(block(number, pattern))
            file.flush()
            self._client.upload_file(
                file.name,
                NAME,
                "large/object",
                Config=TransferConfig(multipart_chunksize=PART, max_concurrency=4),
            )

    def _put_many(self, prefix: str, count: int, size: int, meta: dict[str, str]) -> None:

        def put(number: int) -> None:
            self._client.put_object(
                Bucket=NAME,
                Key=f"{prefix}/{number:05d}",
                Body=small_body(number, size),
                Metadata=meta,
            )

        _in_parallel(put, range(count))

    def _count(self, prefix: str, size: int) -> int:
        return sum(
            entry["Size"] == size for page in _pages(self._client, prefix) for entry in page
        )

    def new_client(self) -> Any:  # noqa: ANN401
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                max_pool_connections=THREADS,
                connect_timeout=10,
                read_timeout=60,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def _pages(client: Any, prefix: str) -> Iterator[list[dict[str, Any]]]:  # noqa: ANN401
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=prefix):
        yield page.get("Contents", [])


def _in_parallel(act: Callable[[int], None], numbers: Iterable[int]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(act, numbers):
            pass  # an error is raised here
