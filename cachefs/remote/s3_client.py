"""One boto3 client, shared by all threads: how it is configured, made, asked, and made anew."""

import io
import math
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore
from botocore.config import Config

from cachefs.core.errors import Denied, Fault
from cachefs.core.source import StoreOptions
from cachefs.remote.s3_errors import SDK_ERRORS, translate
from cachefs.remote.s3_head import LeanHeads

Answer = dict[str, Any]
"""What boto3 returns for a request: named by the S3 API, typed by nobody."""

_ANONYMOUS_REGION = "us-east-1"
_SMALL_BODY = 2**20
"""A body below this is sent at once: waiting for ``100 Continue`` would cost a round trip for nothing."""
_TRUSTED_S = 5.0
_UNPAID = frozenset({"list_buckets", "head_bucket"})
"""Operations that know no RequestPayer."""


class S3Client:
    """Makes requests, one each, and raises nothing but our errors (and what a body's reader raises).

    The client is made at the first request, after any fork. When the store denies something it is made anew
    for the next request, though not more than once in five seconds, so that credentials that were renewed
    on disk are taken up.
    """

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._sdk: Any = None
        self._heads: LeanHeads | None = None
        self._replaced: list[Any] = []
        self._distrusted_s = -math.inf

    @property
    def endpoint(self) -> str:
        """Where requests go, without secrets."""
        url = self._sdk.meta.endpoint_url if self._sdk else self._options.endpoint_url
        return without_secrets(url) if url else "AWS"

    def call(self, operation: str, /, **params: object) -> Answer:
        """Make the request *operation* (boto3's name for it)."""
        if self._options.request_payer and operation not in _UNPAID:
            params["RequestPayer"] = "requester"
        sdk = None
        try:
            sdk = self._connected()
            answer: Answer = getattr(sdk, operation)(**params)
        except SDK_ERRORS as error:
            verdict = translate(error, operation)
            if isinstance(verdict, Denied):
                self._distrust(sdk)
            raise verdict from error
        return answer

    def head(self, bucket: str, key: str) -> Answer:
        """Make the request ``head_object``, as :class:`LeanHeads` does where it can."""

        def ordinary() -> Answer:
            return self.call("head_object", Bucket=bucket, Key=key)

        heads = self._heads
        if heads is None:
            return ordinary()
        try:
            return heads.ask(bucket, key, ordinary)
        except SDK_ERRORS as error:
            raise translate(error, "head_object") from error

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            clients = [*self._replaced, self._sdk]
            self._sdk, self._heads, self._replaced = None, None, []
        for client in filter(None, clients):
            client.close()

    def _connected(self) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
        with self._lock:
            if self._sdk is None:
                self._sdk = _new_client(self._options)
                self._heads = LeanHeads(self._sdk)
            return self._sdk

    def _distrust(self, sdk: object) -> None:
        now_s = time.monotonic()
        with self._lock:
            # A 403 may as well mean one object, and a client and its connections are dear: not each time.
            if sdk is None or self._sdk is not sdk or now_s < self._distrusted_s + _TRUSTED_S:
                return
            # Other threads may be in the middle of requests with it: closed when all is.
            self._replaced = [*self._replaced[-1:], sdk]
            self._sdk = self._heads = None
            self._distrusted_s = now_s


class S3Bucket:
    """The requests about one bucket."""

    def __init__(self, client: S3Client, name: str) -> None:
        self.client = client
        self.name = name
        self.seen_s = -math.inf
        """When (by the monotonic clock) a request last succeeded, which says that the bucket exists."""

    def call(self, operation: str, /, **params: object) -> Answer:
        """As :meth:`S3Client.call`."""
        answer = self.client.call(operation, Bucket=self.name, **params)
        self.seen_s = time.monotonic()
        return answer

    def head(self, key: str) -> Answer:
        """As :meth:`S3Client.head`."""
        answer = self.client.head(self.name, key)
        self.seen_s = time.monotonic()
        return answer


def said(answer: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return what the answer says of *name*; raise ``Fault`` if it does not, for it is torn then."""
    if answer.get(name) is None:
        raise Fault(f"the store's answer has no {name}")
    return answer[name]


def without_secrets(url: str) -> str:
    """Return *url* without user name, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _new_client(options: StoreOptions) -> Any:  # noqa: ANN401
    session = boto3.session.Session(profile_name=options.profile, region_name=options.region)
    region = session.region_name
    if region is None and options.endpoint_url is not None:
        region = _ANONYMOUS_REGION
    client = session.client(
        "s3",
        region_name=region,
        endpoint_url=options.endpoint_url,
        verify=options.ca_bundle,
        config=_config(options),
    )
    events = client.meta.events
    events.register("request-created.s3.UploadPart", _send_at_once)
    events.register("request-created.s3.PutObject", _send_small_at_once)
    events.register_first("needs-retry.s3.HeadBucket", _follow_only_to_a_region)
    return client


def _config(options: StoreOptions) -> Config:
    s3: dict[str, object] = {}
    if options.force_path_style:
        s3["addressing_style"] = "path"
    if options.endpoint_url and options.endpoint_url.lower().startswith("https:"):
        # TLS protects the body already: a SHA-256 of it would only be a second pass over the bytes.
        s3["payload_signing_enabled"] = False
    return Config(
        s3=s3,
        signature_version=botocore.UNSIGNED if options.no_sign_request else None,
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
        # Twice: the threads that call, and those that send the parts of their uploads.
        max_pool_connections=2 * options.transfers + 8,
        tcp_keepalive=True,
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation=options.checksums,
        response_checksum_validation=options.checksums,
        user_agent_extra="cachefs",
    )


def _send_at_once(request: Any, **_: object) -> None:  # noqa: ANN401
    if "Expect" in request.headers:
        del request.headers["Expect"]


def _send_small_at_once(request: Any, **_: object) -> None:  # noqa: ANN401
    if isinstance(request.data, io.BytesIO) and request.data.getbuffer().nbytes < _SMALL_BODY:
        _send_at_once(request)


def _follow_only_to_a_region(request_dict: Any, response: Any, **_: object) -> None:  # noqa: ANN401
    """Keep botocore from asking, of a redirect that names no region, HEAD after HEAD which region is meant.

    That is how a server answers that has moved, or wants https: it asked until the stack was full.
    """
    if response is not None and "x-amz-bucket-region" not in response[0].headers:
        request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True
