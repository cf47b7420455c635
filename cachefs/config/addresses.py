"""What people write for a SOURCE or an endpoint, read into what it names."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from cachefs.config.settings import quoted, suggestion
from cachefs.core.errors import UsageError
from cachefs.core.source import Source, StoreKind

_FORMS = (
    "s3://BUCKET[/PREFIX], swift://CONTAINER[/PREFIX], file:///DIRECTORY or REMOTE:BUCKET[/PREFIX]"
)
_BUCKET = re.compile(r"[^/\s?#@]+")
_SCHEMES = {kind.value: kind for kind in (StoreKind.S3, StoreKind.SWIFT, StoreKind.FILE)}


def parse_source(text: str, remotes: Mapping[str, StoreKind]) -> tuple[Source, str | None]:
    """Return what *text* names, and the name of the remote it was reached by, if it was.

    *remotes* are the ``[remotes.NAME]`` of the configuration file and their kinds.
    """
    habit = text.startswith("cachefs#")
    bare = text.removeprefix("cachefs#")
    if not bare.isprintable() or not bare:
        raise UsageError(
            f"source {bare!r} is empty or holds characters that do not print — write {_FORMS}"
        )
    if "://" in bare:
        scheme, _, rest = bare.partition("://")
        return _from_url(scheme.lower(), rest, bare), None
    name, colon, rest = bare.partition(":")
    if colon and name in remotes:
        return _located(remotes[name], rest, bare), name
    if habit and not colon:
        return _in_bucket(StoreKind.S3, bare, bare), None
    if colon and rest.startswith("/"):
        return _in_bucket(StoreKind.S3, name + rest, bare), None
    raise _unknown(bare, name if colon else None, remotes)


def parse_endpoint(text: str) -> str:
    """Return the URL *text*. Raises ValueError with the rest of a sentence unless it is plain http or https."""
    url = text.strip()
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_fine:
        raise ValueError("is not an http:// or https:// URL")
    if parts.username or parts.password:
        raise ValueError("holds a name or password; credentials never belong into a URL")
    if parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise ValueError("is not a URL of a server")
    return url.rstrip("/")


def _from_url(scheme: str, rest: str, text: str) -> Source:
    if scheme not in _SCHEMES:
        hint = suggestion(scheme, _SCHEMES) or f" — write {_FORMS}"
        raise UsageError(f"source {quoted(text)}: unknown scheme {scheme}://{hint}")
    return _located(_SCHEMES[scheme], rest, text)


def _located(kind: StoreKind, rest: str, text: str) -> Source:
    if kind is StoreKind.FILE:
        return _directory(rest, text)
    if not rest.strip("/") and rest in {"", "/"}:
        return Source(kind)
    return _in_bucket(kind, rest, text)


def _directory(rest: str, text: str) -> Source:
    if not rest.startswith("/") or rest.startswith("//"):
        raise UsageError(
            f"source {quoted(text)}: the directory must be absolute — for example file:///srv/objects"
        )
    directory = rest.rstrip("/")
    if not directory:
        raise UsageError(
            f"source {quoted(text)}: the root of this machine is no object store — name a directory"
        )
    if {".", ".."} & set(directory.split("/")):
        raise UsageError(f"source {quoted(text)}: write the directory without . and ..")
    return Source(kind=StoreKind.FILE, bucket=directory)


def _in_bucket(kind: StoreKind, rest: str, text: str) -> Source:
    bucket, _, prefix = rest.partition("/")
    # A secret key may hold slashes: what looks like KEY:SECRET@ is one, however much of it seems to be a prefix.
    if "@" in bucket or (":" in bucket and "@" in prefix):
        raise UsageError(
            f"source {_without_login(text)}: credentials never belong into a source — {_CHAIN}"
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"source {quoted(text)}: there is no bucket name in it — write {kind}://BUCKET[/PREFIX]"
        )
    if prefix.startswith("/"):
        raise UsageError(f"source {quoted(text)}: a prefix does not begin with a slash")
    prefix = prefix.rstrip("/")
    return Source(kind=kind, bucket=bucket, prefix=f"{prefix}/" if prefix else "")


_CHAIN = "set AWS_* or OS_* variables, or use a profile"


def _without_login(text: str) -> str:
    scheme, slashes, rest = text.rpartition("://") if "://" in text else ("", "", text)
    return f"{scheme}{slashes}[hidden]@{rest.rpartition('@')[2]}"


def _unknown(text: str, name: str | None, remotes: Mapping[str, StoreKind]) -> UsageError:
    if name is None:
        return UsageError(f"source {quoted(text)} is not a source — write {_FORMS}")
    hint = suggestion(name, remotes) or (
        f" — add it to the configuration file, or write s3://{text.partition(':')[2] or name} for a bucket"
    )
    return UsageError(f"source {quoted(text)}: there is no [remotes.{name}]{hint}")
