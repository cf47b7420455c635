"""Requests to one Swift account: connections, the token on each, and a verdict on every answer."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from swiftclient.client import HTTPConnection

from cachefs.core.errors import Fault, StoreError
from cachefs.core.extents import Extent
from cachefs.core.source import StoreOptions
from cachefs.remote.store import Body
from cachefs.remote.swift_auth import Account, Grant, SignIn, find_account
from cachefs.remote.swift_errors import transporting, verdict

_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, read to the end."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:  # noqa: ANN401
        """Return the document. Raise ``Fault`` if it is none."""
        try:
            return json.loads(self.content)
        except ValueError:
            raise Fault("the answer is not the JSON that was asked for") from None


class Upload:
    """A part of a body as the content of a request, sent as often as need be.

    *is_called_off* is asked between chunks. What the body's reader raises is kept: the SDK would dress it up
    as a fault of the network.
    """

    def __init__(
        self, body: Body, extent: Extent, is_called_off: Callable[[], bool] = lambda: False
    ) -> None:
        self._body = body
        self._extent = extent
        self._is_called_off = is_called_off
        self.failure: Exception | None = None

    def __len__(self) -> int:
        return self._extent.length

    def __iter__(self) -> Iterator[bytes]:
        left = self._extent.length
        reader = self._body.reader(self._extent)
        while left:
            if self._is_called_off():
                raise CalledOff
            try:
                chunk = reader.read(min(_CHUNK, left))
            except Exception as error:
                self.failure = error
                raise
            if not chunk:
                raise OSError("the body ended early")
            left -= len(chunk)
            yield chunk


class CalledOff(BaseException):
    """Another part of the same upload failed. A BaseException, so that the SDK lets it pass."""


def quoted_path(container: str, name: str = "") -> str:
    """Return the path of a container, or of an object in it, below the account's.

    ``.`` and ``..`` are quoted once more: the HTTP library would resolve them, and name another object.
    """
    path = f"/{quote(container, safe='')}"
    if not name:
        return path
    parts = quote(name.encode("utf-8"), safe="/").split("/")
    return f"{path}/" + "/".join(
        part.replace(".", "%2E") if part in (".", "..") else part for part in parts
    )


class Session:
    """One account. A connection serves one request at a time; idle ones are kept for the next."""

    def __init__(self, options: StoreOptions, environ: Mapping[str, str]) -> None:
        self._timeout = (options.connect_timeout_s, options.read_timeout_s)
        self._find = partial(find_account, options, environ, Path.cwd())
        self._account: Account | StoreError
        try:  # now, for the surroundings may change; but an error belongs to who asks for something
            self._account = self._find()
        except StoreError as error:
            self._account = error
        self._sign_in: SignIn | None = None
        self._lock = threading.Lock()
        self._idle: list[tuple[str, HTTPConnection]] = []
        self._is_closed = False

    @property
    def address(self) -> str:
        """Where the account signs in, for messages; empty if there is none."""
        return "" if isinstance(self._account, StoreError) else self._account.address

    def close(self) -> None:
        """Close the connections that are idle, and each of the others when it is."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def ask(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | Upload = b"",
        patience_s: float = 0,
    ) -> Answer:
        """Send a request and return the answer to it. Raise what any other than success means."""
        with self.stream(
            method, path, what, query=query, headers=headers, data=data, patience_s=patience_s
        ) as response:
            return Answer(response.status_code, response.headers, _read(response, what))

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | Upload = b"",
        patience_s: float = 0,
    ) -> Iterator[Any]:
        """Send a request and lend the answer, its content unread. Raise what any other than success means.

        *patience_s* is added to the time that the answer may take to begin. A token that is refused, or that
        does not open what it may open by now, is replaced, and the request sent once more.
        """
        if query:
            path = f"{path}?{urlencode(query, quote_via=quote)}"
        headers = dict(headers or {})
        sign_in = self._signed_in()
        grant = sign_in.grant()
        error: StoreError | None = None
        with self._connection(grant) as connection:
            connection.requests_args["timeout"] = (self._timeout[0], self._timeout[1] + patience_s)

            def send(grant: Grant) -> Any:  # noqa: ANN401
                return _send(connection, grant, method, path, headers, data, what)

            response = _answered(sign_in, grant, send, what)
            try:
                if 200 <= response.status_code < 300:
                    yield response
                else:
                    error = _verdict(response, headers, what)
            finally:
                response.close()
        # Raised out here, where the connection is known to be good for the next request.
        if error is not None:
            raise error

    def _signed_in(self) -> SignIn:
        if isinstance(self._account, StoreError):
            raise self._account
        with self._lock:
            if self._sign_in is None:
                self._sign_in = SignIn(self._account, timeout_s=self._timeout[1], find=self._find)
            return self._sign_in

    @contextmanager
    def _connection(self, grant: Grant) -> Iterator[HTTPConnection]:
        with self._lock:
            found = [entry for entry in self._idle if entry[0] == grant.url]
            if found:
                self._idle.remove(found[-1])
        connection = found[-1][1] if found else self._connect(grant.url)
        try:
            yield connection
        except BaseException:
            connection.close()  # half of a request or of an answer may be on the wire
            raise
        with self._lock:
            if not self._is_closed:
                self._idle.append((grant.url, connection))
                return
        connection.close()

    def _connect(self, url: str) -> HTTPConnection:
        account = self._signed_in().account
        with transporting(f"connecting to {url}"):
            connection = HTTPConnection(url, timeout=self._timeout)
        connection.requests_args["verify"] = account.verify
        connection.requests_args["allow_redirects"] = False  # the token is for this host only
        if account.cert:
            connection.requests_args["cert"] = account.cert
        return connection


def _answered(sign_in: SignIn, grant: Grant, send: Callable[[Grant], Any], what: str) -> Any:  # noqa: ANN401
    """Return the answer to what *send* sends with *grant*, or with another if that one does not open the account."""
    response = send(grant)
    if response.status_code == 401:
        _read(response, what)
        other: Grant | None = sign_in.renew(grant)
    elif response.status_code == 403:
        other = sign_in.other(grant)
    else:
        other = None
    if other is None:
        return response
    _read(response, what)
    response = send(other)
    if response.status_code == 401:
        sign_in.note_useless(other)
    return response


def _send(
    connection: HTTPConnection,
    grant: Grant,
    method: str,
    path: str,
    headers: Mapping[str, str],
    data: bytes | Upload,
    what: str,
) -> Any:  # noqa: ANN401  # a response of requests
    full_path = urlsplit(grant.url).path + path
    sent = {**headers, "X-Auth-Token": grant.token}
    if method == "PUT" and not data:
        sent["Content-Length"] = "0"
    try:
        with transporting(what):
            return connection.request(method, full_path, data or None, sent)
    except StoreError:
        if isinstance(data, Upload) and data.failure is not None:
            raise data.failure from None
        raise


def _read(response: Any, what: str) -> bytes:  # noqa: ANN401
    """Return the content, all of it, so that the connection can be used again.

    As it came: an encoding that the answer names is that of an object's bytes, which a manifest of it has not.
    """
    with transporting(what):
        content: bytes = response.raw.read(decode_content=False)
        return content


def _verdict(response: Any, headers: Mapping[str, str], what: str) -> StoreError:  # noqa: ANN401
    return verdict(
        response.status_code,
        response.headers,
        _read(response, what),
        what,
        is_conditional=any(name.startswith("If-") for name in headers),
    )
