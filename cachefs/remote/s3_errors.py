"""What botocore raises, and what S3s answer, in our own words: one verdict for each."""

import time
from collections.abc import Mapping
from typing import Any

from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from cachefs.core.errors import (
    BadKey,
    CachefsError,
    Changed,
    Denied,
    Fault,
    NoBucket,
    NotFound,
    ObjectTooLarge,
    OverQuota,
    Refused,
    StoreError,
    StoreFull,
    TooMuchMetadata,
    Unreachable,
    Unsupported,
    Untrusted,
)
from cachefs.remote.clocks import explained

SDK_ERRORS = (
    sdk.BotoCoreError,
    sdk.ClientError,
    ResponseParserError,
    HTTPError,
    OSError,
    ValueError,
)
"""Whatever a call of boto3, or a read of a body that it gave, may raise on purpose."""


class UploadGone(Fault):
    """The store does not know the multipart upload (any more): its parts must be sent again."""


class PartsGone(Refused):
    """The store does not have the parts that the object is to be made of."""


class OutOfRange(Fault):
    """The object does not reach as far as the range that was asked for."""


_CODES: dict[str, type[StoreError]] = {
    "NoSuchKey": NotFound,
    "NoSuchVersion": NotFound,
    "NoSuchBucket": NoBucket,
    "PreconditionFailed": Changed,
    "ConditionalRequestConflict": Fault,  # another write is under way: who wins is known in a moment
    "OperationAborted": Fault,
    "NoSuchUpload": UploadGone,
    "InvalidPart": PartsGone,
    "InvalidRange": OutOfRange,
    "BadDigest": Fault,
    "IncompleteBody": Fault,
    "InvalidDigest": Fault,
    "RequestTimeout": Fault,
    "SlowDown": Fault,
    "Throttling": Fault,
    "ThrottlingException": Fault,
    "RequestLimitExceeded": Fault,
    "XAmzContentSHA256Mismatch": Fault,
    "InternalError": Fault,
    "ServiceUnavailable": Fault,
    "KeyTooLongError": BadKey,
    "KeyTooLong": BadKey,
    "InvalidObjectName": BadKey,
    "InvalidURI": BadKey,
    "AuthorizationHeaderMalformed": Denied,
    "ExpiredToken": Denied,
    "InvalidAccessKeyId": Denied,
    "InvalidToken": Denied,
    "TokenRefreshRequired": Denied,
    "RequestTimeTooSkewed": Denied,
    "SignatureDoesNotMatch": Denied,
    "InvalidObjectState": Refused,
    "MetadataTooLarge": TooMuchMetadata,
    "MethodNotAllowed": Unsupported,
    "NotImplemented": Unsupported,
    "EntityTooLarge": ObjectTooLarge,
    "QuotaExceeded": OverQuota,
    "XMinioAdminBucketQuotaExceeded": OverQuota,
    "InsufficientStorage": StoreFull,
    "XMinioStorageFull": StoreFull,
}
_STATUSES: dict[int, type[StoreError]] = {
    301: Refused,
    307: Refused,
    401: Denied,
    403: Denied,
    405: Unsupported,
    408: Fault,
    409: Fault,
    412: Changed,
    413: ObjectTooLarge,
    416: OutOfRange,
    429: Fault,
    501: Unsupported,
    507: StoreFull,
}
_ELSEWHERE = "the server sends us elsewhere: is the endpoint right, and its http or https?"
_SKEWED = "this machine's clock and the store's differ — set the time"
_ADVICE = {
    "301": _ELSEWHERE,
    "302": _ELSEWHERE,
    "307": _ELSEWHERE,
    "308": _ELSEWHERE,
    "AuthorizationHeaderMalformed": "is the region right?",
    "ExpiredToken": "renew the credentials",
    "InvalidAccessKeyId": "check the access key, and that the endpoint is the one that knows it",
    "PermanentRedirect": "the bucket is in another region",
    "RequestTimeTooSkewed": _SKEWED,
    "SignatureDoesNotMatch": "check the secret key",
    "QuotaExceeded": "all that the bucket or its owner may hold is used up",
    "MissingContentLength": "the store does not take checksums in trailers: use checksums when_required",
}
_NO_CREDENTIALS = (
    "no credentials found — set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, "
    "or ask without signing"
)
_CREDENTIALS = (
    sdk.CredentialRetrievalError,
    sdk.PartialCredentialsError,
    sdk.ProfileNotFound,
    sdk.ConfigParseError,
    sdk.InvalidConfigError,
    sdk.MetadataRetrievalError,
    sdk.RefreshWithMFAUnsupportedError,
    sdk.SSOError,
    sdk.TokenRetrievalError,
)
_NO_CONNECTION = (sdk.EndpointConnectionError, sdk.ConnectTimeoutError, sdk.ProxyConnectionError)
_PASSING = (
    sdk.HTTPClientError,
    sdk.IncompleteReadError,
    sdk.ResponseStreamingError,
    ResponseParserError,
    HTTPError,
    OSError,
)


def translate(error: Exception, operation: str) -> CachefsError:
    """Return the verdict on *error*, which boto3 raised in *operation*."""
    if isinstance(error, CachefsError):
        return error
    if isinstance(error, sdk.ClientError):
        return _answered(error.response, operation)
    if isinstance(error, sdk.NoCredentialsError):
        return Denied(_NO_CREDENTIALS)
    if isinstance(error, _CREDENTIALS):
        return Denied(_line(error))
    if isinstance(error, UnicodeEncodeError):
        return BadKey("S3 takes only names that are UTF-8")
    if isinstance(error, sdk.ParamValidationError):
        return _invalid(error)
    return _unanswered(error)


def status_of(answer: Mapping[str, Any]) -> int:
    """Return the HTTP status of an answer or of an error's response."""
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status)


def _answered(response: Mapping[str, Any], operation: str) -> StoreError:
    status = status_of(response)
    code = str(response.get("Error", {}).get("Code", ""))
    kind = _CODES.get(code) or _kind_of_status(status, operation)
    reason = _reason(code, status, str(response.get("Error", {}).get("Message") or ""))
    if issubclass(kind, Denied) and (
        wrong := explained(_header(response, "date"), now_s=time.time())
    ):
        # A HEAD that is denied has no code: whatever it would be, no signature of that date is taken.
        reason = f"{reason.removesuffix(f': {_SKEWED}')}: {wrong}"
    if issubclass(kind, Fault):
        return kind(reason, retry_after_s=_retry_after_s(response))
    return kind(reason)


def _kind_of_status(status: int, operation: str) -> type[StoreError]:
    if status in _STATUSES:
        return _STATUSES[status]
    if operation.startswith("head_") and status == 404:
        return NoBucket if operation == "head_bucket" else NotFound
    if operation.startswith("head_") and status == 400:
        return Denied  # the reason would be in a body; expired tokens and wrong regions look so
    # A 404 without an S3 error code is not the store's word, but some proxy's or web server's.
    return Fault if status >= 500 or status in (0, 200, 404) else Refused


def _reason(code: str, status: int, message: str) -> str:
    said = " ".join(message.split())
    parts = [code if code and not code.isdigit() else f"HTTP {status}"]
    if said:
        parts.append(said)
    if status == 404 and (not code or code.isdigit()):
        parts.append("without an S3 error code")
    if code in _ADVICE:
        parts.append(_ADVICE[code])
    return ": ".join(parts)


def _retry_after_s(response: Mapping[str, Any]) -> float | None:
    text = _header(response, "retry-after")
    return float(text) if text.isascii() and text.isdigit() else None


def _header(response: Mapping[str, Any], name: str) -> str:
    return str(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name, ""))


def _invalid(error: Exception) -> StoreError:
    text = _line(error)
    if "parameter Key" in text:
        return BadKey(text)
    return Refused(text)


def _unanswered(error: Exception) -> CachefsError:
    cause = getattr(error, "kwargs", {}).get("error")
    if isinstance(cause, CachefsError):
        return cause  # the body's own, which botocore wrapped
    if isinstance(error, sdk.SSLError):
        text = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            is_of_time = "expired" in text or "not yet valid" in text
            advice = (
                "set this machine's clock, if that is wrong"
                if is_of_time
                else "name its CA in AWS_CA_BUNDLE"
            )
            # No word of the store's, and it may pass: a portal of the network answers in its place like that.
            return Untrusted(f"the store's certificate is not trusted: {_line(error)} — {advice}")
        return Unreachable(_line(error))
    if isinstance(error, _NO_CONNECTION):
        return Unreachable(_line(error))
    if isinstance(error, _PASSING):
        return Fault(_line(error))
    return Refused(_line(error))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
