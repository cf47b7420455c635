"""The one place that puts a store together: the adapter, its scope, and the retries around it."""

from collections.abc import Mapping
from dataclasses import replace

from cachefs.core.source import Source, StoreKind, StoreOptions
from cachefs.remote.retry import Retrying
from cachefs.remote.store import ObjectStore


def open_store(
    source: Source,
    options: StoreOptions,
    *,
    timeout_s: float,
    environ: Mapping[str, str] | None = None,
    copies_from: Source | None = None,
) -> Retrying:
    """Return the store that *source* names, retried for *timeout_s* at each call.

    *environ* is where Swift's credentials are looked for; boto3 has a chain of its own. *copies_from* is what the
    sources of its ``copy`` are keys of: another bucket that the same server shows to the same credentials.

    Asks the network nothing, and loads no more than the SDK that is needed.
    """
    # One request must not outlast the operation that it is a part of.
    options = replace(
        options,
        connect_timeout_s=min(options.connect_timeout_s, 0.5 * timeout_s),
        read_timeout_s=min(options.read_timeout_s, 0.8 * timeout_s),
    )
    return Retrying(_scoped(source, options, environ or {}, copies_from), timeout_s=timeout_s)


def _scoped(
    source: Source,
    options: StoreOptions,
    environ: Mapping[str, str],
    copies_from: Source | None,
) -> ObjectStore:
    if not source.bucket and source.kind in (StoreKind.S3, StoreKind.SWIFT):
        return _every_bucket(source, options, environ)
    origin = copies_from or source
    store = _bucket(source, options, environ, copies_from.bucket if copies_from else None)
    if not source.prefix and not origin.prefix:
        return store
    from cachefs.remote.scoped import Scoped

    return Scoped(store, source.prefix, origin=origin.prefix)


def _bucket(
    source: Source, options: StoreOptions, environ: Mapping[str, str], origin: str | None
) -> ObjectStore:
    match source.kind:
        case StoreKind.S3:
            from cachefs.remote.s3 import S3Store

            return S3Store(source.bucket, options, home=source.prefix, origin=origin)
        case StoreKind.SWIFT:
            from cachefs.remote.swift import SwiftStore

            return SwiftStore(source.bucket, options, environ=environ, origin=origin)
        case StoreKind.FILE:
            from cachefs.remote.file import FileStore

            return FileStore(source.bucket)
        case StoreKind.MEMORY:
            from cachefs.remote.memory import MemoryStore

            return MemoryStore()


def _every_bucket(
    source: Source, options: StoreOptions, environ: Mapping[str, str]
) -> ObjectStore:
    from cachefs.remote.buckets import Buckets

    if source.kind is StoreKind.SWIFT:
        from cachefs.remote.swift import SwiftStore

        account = SwiftStore("", options, environ=environ)
        return Buckets(account.list_buckets, account.in_bucket, description=account.description)
    from cachefs.remote.s3 import S3Store, bucket_names
    from cachefs.remote.s3_client import S3Client

    client = S3Client(options)
    return Buckets(
        lambda: bucket_names(client),
        lambda name: S3Store(name, options, client=client),
        description=f"s3:// at {client.endpoint}",
    )
