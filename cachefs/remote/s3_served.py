"""What an S3 object has beside its bytes, its type and its metadata: how it is served, its class, its tags."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, Final

from cachefs.core.metadata import HEADER
from cachefs.remote.headers import as_text, marked, served

SERVED: Final = {
    "cache-control": "CacheControl",
    "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage",
    "expires": "Expires",
    "x-amz-storage-class": "StorageClass",
    "x-amz-tagging-count": "TagCount",
    "x-amz-website-redirect-location": "WebsiteRedirectLocation",
}
"""The headers that say it, and boto3's names for them."""
TAGS: Final = f"{HEADER}x-amz-tagging-count"
_ARCHIVES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_LONG_AGO: Final = datetime.fromtimestamp(0, UTC)


def served_of(answer: Mapping[str, Any]) -> dict[str, str]:
    """Return what the answer to a HEAD or GET says, as it travels among metadata."""
    found = {
        header: as_text(str(answer[name])) for header, name in SERVED.items() if answer.get(name)
    }
    if "ExpiresString" in answer:
        found["expires"] = answer["ExpiresString"]
    elif isinstance(when := answer.get("Expires"), datetime):
        found["expires"] = format_datetime(when.astimezone(UTC), usegmt=True)
    if found.get("x-amz-storage-class") == "STANDARD":
        del found["x-amz-storage-class"]
    # Some stores keep as an encoding how the body was once framed on its way to them.
    words = [word.strip() for word in found.pop("content-encoding", "").split(",")]
    if kept := ", ".join(word for word in words if word and word.lower() != "aws-chunked"):
        found["content-encoding"] = kept
    return marked(found)


def params_of(meta: Mapping[str, str]) -> dict[str, object]:
    """Return the parameters of boto3 that say it of a new version.

    An archive's class is left out, for what was just written must be readable; so are tags, of which only
    the number is known.
    """
    found = served(meta)
    params: dict[str, object] = {
        name: found[header] for header, name in SERVED.items() if header in found
    }
    params.pop("TagCount", None)
    if params.get("StorageClass") in _ARCHIVES:
        del params["StorageClass"]
    if "expires" in found:
        params["Expires"] = _moment(found["expires"])
    return params


def _moment(expires: str) -> datetime:
    """Return when *expires* is; what is no date ("0", "-1") means long ago (RFC 9111, 5.3)."""
    try:
        when = parsedate_to_datetime(expires)
    except (TypeError, ValueError):
        return _LONG_AGO
    return when if when.tzinfo else when.replace(tzinfo=UTC)
