"""What a SOURCE names: the scheme, the bucket and the prefix, and what a remote needs to be opened."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_DESCRIBED: Final = re.compile(
    r"(?:(?P<prefix>.*) in )?(?P<kind>s3|swift|file|memory)://(?P<rest>.*)", re.DOTALL
)


class StoreKind(StrEnum):
    """Which adapter speaks to the store."""

    S3 = "s3"
    SWIFT = "swift"
    FILE = "file"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Source:
    """One bucket, a prefix of it, or (no bucket) all of them."""

    kind: StoreKind
    bucket: str = ""
    """The bucket or container; the absolute directory of a ``file`` source. Empty: every bucket."""
    prefix: str = ""
    """Empty, or without a leading and with a trailing slash."""

    def __str__(self) -> str:
        if self.kind is StoreKind.FILE:
            return f"file://{self.bucket}"
        return f"{self.kind}://{self.bucket}" + (
            f"/{self.prefix.rstrip('/')}" if self.prefix else ""
        )

    def natural(self, key: str) -> tuple[str, str]:
        """Return bucket and key, as the store has them, of what is *key* in a mount of this source."""
        if self.bucket or self.kind is StoreKind.MEMORY:
            return self.bucket, self.prefix + key
        bucket, _, inner = key.partition("/")
        return bucket, inner

    def inner(self, bucket: str, key: str) -> str | None:
        """Return the key that an object of the store has in a mount of this source; None: it is not in there."""
        if not self.bucket and self.kind is not StoreKind.MEMORY:
            return f"{bucket}/{key}"
        if bucket != self.bucket or not key.startswith(self.prefix):
            return None
        return key[len(self.prefix) :]

    @classmethod
    def of_description(cls, text: str) -> "Source | None":
        """Return what a store that describes itself as *text* is of (``photos/2024 in s3://media at http://…``).

        None: that is no description of a store.
        """
        found = _DESCRIBED.fullmatch(text)
        if found is None:
            return None
        kind, bucket = StoreKind(found["kind"]), found["rest"]
        if kind is not StoreKind.FILE:  # whose directory may be called anything
            bucket = bucket.partition(" at ")[0]
        prefix = found["prefix"]
        return cls(kind, bucket, "" if prefix is None else f"{prefix}/")


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach a store. Holds no secret: credentials come from each SDK's own chain."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    credentials_file: str | None = None
    """S3: where *profile* has its keys; None: where the AWS tools keep theirs."""
    no_sign_request: bool = False
    force_path_style: bool = False
    checksums: str = "when_required"
    """botocore's request and response checksum setting: ``when_required`` or ``when_supported``."""
    request_payer: bool = False
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    acl: str | None = None
    cloud: str | None = None
    """Swift: an entry of clouds.yaml."""
    ca_bundle: str | None = None
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    transfers: int = 16
    """Connections at most at one time."""
    part_size: int = 8 * 2**20
    """Bytes in a part of a multipart upload (grown where 10,000 parts would not hold the object)."""
    multipart_threshold: int = 64 * 2**20
    segment_limit: int = 5 * 2**30
    """Swift: objects longer than this are stored as SLO (the store's own limit on one object)."""
