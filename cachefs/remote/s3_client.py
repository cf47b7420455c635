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
import botocore.session
from botocore.config import Config

from cachefs.core.errors import Denied, Fault
from cachefs.core.source import StoreOptions
from cachefs.remote.s3_credentials import Chain
from cachefs.remote.s3_errors import SDK_ERRORS, translate
from cachefs.remote.s3_head import LeanHeads
from cachefs.remote.s3_list import read_listings_fast
from cachefs.remote.s3_times import moment

Answer = dict[str, Any]
"""What boto3 returns for a request: named by the S3 API, typed by nobody."""

_ANONYMOUS_REGION = "us-east-1"
_SMALL_BODY = 2**20
"""A body below this is sent at once: waiting for ``100 Continue`` would cost a round trip for nothing."""
_UNPAID = frozenset({"list_buckets", "head_bucket"})
"""Operations that know no RequestPayer."""


class S3Client:
    """Makes requests, one each, and raises nothing but our errors (and what a body's reader raises).

    The client is made at the first request, after any fork. A request that is denied is made once more if
    there are other credentials by then (see :class:`Chain`).
    """

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._sdk: Any = None
        self._chain: Chain | None = None
        self._heads: LeanHeads | None = None

    @property
    def endpoint(self) -> str:
        """Where requests go, without secrets."""
        url = self._sdk.meta.endpoint_url if self._sdk else self._options.endpoint_url
        return without_secrets(url) if url else "AWS"

    def call(self, operation: str, /, **params: object) -> Answer:
        """Make the request *operation* (boto3's name for it)."""
        if self._options.request_payer and operation not in _UNPAID:
            params["RequestPayer"] = "requester"
        generation = self._generation
        try:
            return self._ask(operation, params)
        except Denied:
            if self._chain is None or not self._chain.renewed(generation):
                raise
        # A body that was sent, in part or whole, is sent again from its start.
        if callable(rewind := getattr(params.get("Body"), "seek", None)):
            rewind(0)
        return self._ask(operation, params)

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
            client, self._sdk, self._heads = self._sdk, None, None
        if client is not None:
            client.close()

    @property
    def _generation(self) -> int:
        return self._chain.generation if self._chain is not None else 0

    def _ask(self, operation: str, params: Mapping[str, object]) -> Answer:
        try:
            answer: Answer = getattr(self._connected(), operation)(**params)
        except SDK_ERRORS as error:
            raise translate(error, operation) from error
        return answer

    def _connected(self) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
        with self._lock:
            if self._sdk is None:
                if not self._options.no_sign_request:
                    self._chain = Chain(
                        self._options.profile, credentials_file=self._options.credentials_file
                    )
                self._sdk = _new_client(self._options, self._chain)
                self._heads = LeanHeads(self._sdk, lambda: self._generation)
            return self._sdk


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


class _Provider:
    """Has a session of botocore take its credentials from *chain*, if there is one."""

    def __init__(self, chain: Chain | None) -> None:
        self._chain = chain

    def load_credentials(self) -> Chain | None:
        """Return them; botocore asks by this name."""
        return self._chain


def _new_client(options: StoreOptions, chain: Chain | None) -> Any:  # noqa: ANN401
    inner = botocore.session.Session()
    inner.register_component("credential_provider", _Provider(chain))
    inner.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=moment)
    if options.credentials_file is not None:
        inner.set_config_variable("credentials_file", options.credentials_file)
    session = boto3.session.Session(
        botocore_session=inner, profile_name=options.profile, region_name=options.region
    )
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
    read_listings_fast(client)
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
        # Else botocore puts it together anew for each request, which is a tenth of what one costs.
        user_agent=f"Boto3/{boto3.__version__}",
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
