"""Tokens that expire or are revoked, and passwords that are changed, while a store is in use."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import yaml

from cachefs.core.errors import Denied
from cachefs.core.source import StoreOptions
from cachefs.core.types import Key
from cachefs.remote.swift import SwiftStore
from tests.contract.bodies import BytesBody
from tests.contract.conftest import MIB
from tests.servers.scripted import Answer, Request, Scripted, answer, scripted

KEY = Key("name")
OBJECT = {
    "ETag": "0123456789abcdef0123456789abcdef",
    "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT",
    "X-Timestamp": "1735689600.00000",
}


class Account:
    """A Swift of version 1 with one user, and what happens to the tokens that it gives out."""

    def __init__(self) -> None:
        self.password = "first"
        self.good: set[str] = set()
        self.rights = 0
        """Which token is the first that may do anything."""
        self.given = 0
        self.sign_ins = 0
        self.url = ""
        self.stored: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.revoke_at = ""
        self.useless = False

    def __call__(self, request: Request) -> Answer:
        with self.lock:
            return self._answer(request)

    def _answer(self, request: Request) -> Answer:
        if request.path == "/auth/v1.0":
            return self._sign_in(request)
        if self.revoke_at and self.revoke_at in request.path:
            self.good.clear()
            self.revoke_at = ""
        token = request.headers.get("x-auth-token", "")
        if token not in self.good:
            return answer(401)
        if int(token.removeprefix("token-")) < self.rights:
            return answer(403)
        if request.method == "PUT":
            self.stored[request.path] = request.body
            return answer(201, "", {"ETag": request.headers.get("etag", "")})
        if request.method == "HEAD":
            is_there = request.path.endswith("/name") or request.path.count("/") < 4
            return answer(200 if is_there else 404, "", OBJECT)
        return answer(200, "[]")

    def _sign_in(self, request: Request) -> Answer:
        self.sign_ins += 1
        if request.headers.get("x-auth-key") != self.password:
            return answer(401)
        self.given += 1
        if not self.useless:
            self.good.add(f"token-{self.given}")
        said = {"X-Storage-Url": f"{self.url}/v1/AUTH_a", "X-Auth-Token": f"token-{self.given}"}
        return answer(200, "", said)


class Cloud:
    """An entry of clouds.yaml, for the account."""

    def __init__(self, path: Path, server: Scripted) -> None:
        self.path = path
        self._auth = f"{server.url}/auth/v1.0"
        self.environ = {"OS_CLOUD": "mine", "OS_CLIENT_CONFIG_FILE": str(path)}

    def write(self, password: str) -> None:
        said = {"auth_url": self._auth, "username": "u", "password": password}
        document = {"clouds": {"mine": {"auth_type": "v1password", "auth": said}}}
        self.path.write_text(yaml.safe_dump(document))


Made = tuple[SwiftStore, Account, Cloud]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with ExitStack() as stack:
        account = Account()
        server = stack.enter_context(scripted(account))
        account.url = server.url
        cloud = Cloud(tmp_path / "clouds.yaml", server)
        cloud.write("first")
        options = StoreOptions(read_timeout_s=10, segment_limit=MIB, transfers=2)
        store = SwiftStore("c", options, environ=cloud.environ)
        yield stack.enter_context(closing(store)), account, cloud


def test_a_password_that_was_changed_is_taken_up_by_the_request_that_is_denied(
    made: Made,
) -> None:
    store, account, cloud = made
    store.head(KEY)
    for password in ("second", "third"):
        account.password = password
        account.good.clear()
        cloud.write(password)

        store.head(KEY)

    assert account.given == 3


def test_a_password_that_is_refused_is_not_tried_for_each_request(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    store, account, cloud = made
    caplog.set_level("DEBUG")
    store.head(KEY)
    account.password = "hush"
    account.good.clear()
    sign_in = store._session._signed_in()
    now = 100.0
    sign_in._clock = lambda: now
    before = account.sign_ins

    for _ in range(50):
        with pytest.raises(Denied, match="refuses the credentials"):
            store.head(KEY)
    assert account.sign_ins == before + 1
    now = 200.0
    for _ in range(50):
        with pytest.raises(Denied):
            store.head(KEY)
    assert account.sign_ins == before + 2

    cloud.write("hush")
    store.head(KEY)  # at once: a change of the file is no repetition

    assert "hush" not in caplog.text


def test_many_requests_whose_token_has_expired_sign_in_once(made: Made) -> None:
    store, account, _ = made
    store.head(KEY)
    account.good.clear()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(store.head, KEY) for _ in range(40)]:
            done.result()

    assert account.sign_ins == 2


def test_a_store_that_refuses_every_token_is_not_asked_for_ever_more(made: Made) -> None:
    store, account, _ = made
    store.head(KEY)
    account.good.clear()
    account.useless = True
    store._session._signed_in()._clock = lambda: 100.0

    for _ in range(30):
        with pytest.raises(Denied):
            store.head(KEY)

    assert account.sign_ins == 2


def test_rights_that_were_given_after_the_sign_in_are_had(made: Made) -> None:
    store, account, _ = made
    store.head(KEY)
    now = 0.0
    sign_in = store._session._signed_in()
    sign_in._clock = lambda: now
    now = sign_in.grant().since_s + 1
    account.rights = 2  # what the token of the first sign-in does not hold
    with pytest.raises(Denied):
        store.head(KEY)  # so young a token has all there is
    assert account.sign_ins == 1

    now += 60
    store.head(KEY)

    assert account.sign_ins == 2


def test_a_token_that_is_revoked_in_the_middle_of_a_large_upload_ends_nothing(made: Made) -> None:
    store, account, _ = made
    content = bytes(range(256)) * (4 * MIB // 256)
    account.revoke_at = "00000002"

    store._segments.upload(Key("large"), BytesBody(content), "large", {})

    segments = sorted(path for path in account.stored if "large" in path)
    assert b"".join(account.stored[path] for path in segments) == content
    assert account.sign_ins == 2


def test_a_clouds_yaml_that_is_half_written_changes_nothing(made: Made) -> None:
    store, account, cloud = made
    store.head(KEY)
    for text in ("clouds: {mine: {auth: {auth_u", "", "clouds: {}"):
        cloud.path.write_text(text)
        account.good.clear()
        store.head(KEY)
