"""Signing in: every kind of credential on a real Keystone and a real Swift, and what happens when it fails."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from select import select

import pytest
import requests
import swiftclient
from keystoneauth1 import identity
from keystoneauth1.exceptions import ConnectFailure
from keystoneauth1.session import Session

from cachefs.core.errors import Denied, Fault, Refused, StoreError, Unreachable, Unsupported
from cachefs.core.extents import Extent
from cachefs.core.source import StoreOptions
from cachefs.core.types import Key
from cachefs.remote.swift import SwiftStore
from cachefs.remote.swift_auth import Account, SignIn, find_account
from tests.contract.bodies import BytesBody, fetched
from tests.contract.conftest import require_openstack
from tests.servers.keystone import Keystone, keystone
from tests.servers.swift import SwiftServer, swift

KEY = Key("directory/name")


@pytest.fixture(scope="module")
def keystone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    require_openstack("swift")
    require_openstack("keystone")
    with keystone(tmp_path_factory.mktemp("keystone")) as server:
        options = {
            "project_name": server.project,
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        }
        # Swift's own client would want python-keystoneclient: a token is all that it needs.
        with closing(SwiftStore("", StoreOptions(), environ=server.password())) as store:
            grant = store._session._signed_in().grant()
        with closing(
            swiftclient.Connection(
                preauthurl=grant.url, preauthtoken=grant.token, retries=0, os_options=options
            )
        ) as sdk:
            sdk.put_container("c")
        yield server


def opened(
    environ: Mapping[str, str], *, cloud: str | None = None, timeout_s: float = 20
) -> SwiftStore:
    options = StoreOptions(cloud=cloud, connect_timeout_s=timeout_s, read_timeout_s=timeout_s)
    return SwiftStore("c", options, environ=environ)


def live(store: SwiftStore) -> None:
    """A short life of one object."""
    store.check()
    info = store.put(KEY, BytesBody(b"content"), meta={"a": "b"}, if_match=None)
    assert store.head(KEY) == info
    assert fetched(store, KEY, Extent(0, 7), info.etag) == b"content"
    assert [found.key for page in store.list(Key("directory/")) for found in page.objects] == [KEY]
    assert "c" in store.list_buckets()
    store.delete(KEY, if_match=info.etag)


def clouds(directory: Path, text: str, secure: str = "") -> Mapping[str, str]:
    """An environment in which the default place of clouds.yaml holds *text*."""
    config = directory / ".config" / "openstack"
    config.mkdir(parents=True, exist_ok=True)
    (config / "clouds.yaml").write_text(text)
    if secure:
        (config / "secure.yaml").write_text(secure)
    return {"HOME": str(directory)}


def test_a_password_opens_the_account(keystone_server: Keystone) -> None:
    with closing(opened(keystone_server.password())) as store:
        live(store)
        assert keystone_server.url in store.description
        assert keystone_server.key not in store.description


def test_an_application_credential_opens_the_account(keystone_server: Keystone) -> None:
    with closing(opened(keystone_server.application_credential())) as store:
        live(store)


def test_a_cloud_with_a_password_in_secure_yaml_opens_the_account(
    keystone_server: Keystone, tmp_path: Path
) -> None:
    environ = clouds(
        tmp_path,
        f"""
clouds:
  other: {{}}
  mine:
    region_name: RegionOne
    interface: public
    auth:
      auth_url: {keystone_server.url}
      username: {keystone_server.user}
      project_name: {keystone_server.project}
      user_domain_name: Default
      project_domain_name: Default
""",
        f"clouds: {{mine: {{auth: {{password: {keystone_server.key}}}}}}}",
    )
    with closing(opened(environ, cloud="mine")) as store:
        live(store)
    with closing(opened({**environ, "OS_CLOUD": "mine"})) as store:
        live(store)


def test_a_cloud_with_an_application_credential_opens_the_account(
    keystone_server: Keystone, tmp_path: Path
) -> None:
    environ = clouds(
        tmp_path,
        f"""
clouds:
  mine:
    auth_type: v3applicationcredential
    auth:
      auth_url: {keystone_server.url.removesuffix("/v3")}
      application_credential_id: {keystone_server.application_credential_id}
      application_credential_secret: {keystone_server.application_credential_secret}
""",
    )
    with closing(opened(environ, cloud="mine")) as store:
        live(store)


def test_a_token_of_another_tool_opens_the_account(keystone_server: Keystone) -> None:
    answer = requests.post(
        f"{keystone_server.url}/auth/tokens",
        json={
            "auth": {
                "identity": {
                    "methods": ["application_credential"],
                    "application_credential": {
                        "id": keystone_server.application_credential_id,
                        "secret": keystone_server.application_credential_secret,
                    },
                }
            }
        },
        timeout=20,
    )
    pair = {
        "OS_AUTH_TOKEN": answer.headers["X-Subject-Token"],
        "OS_STORAGE_URL": f"{keystone_server.swift_url}/v1/AUTH_{keystone_server.project_id}",
    }
    with closing(opened(pair)) as store:
        live(store)
    with closing(opened({**pair, "OS_AUTH_TOKEN": "expired"})) as store:
        with pytest.raises(Denied, match="token") as caught:
            store.check()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"OS_PASSWORD": "wrong"}, {"OS_USERNAME": "nobody"}])
def test_wrong_credentials_are_denied_in_one_line(
    keystone_server: Keystone, change: Mapping[str, str]
) -> None:
    with closing(opened({**keystone_server.password(), **change})) as store:
        with pytest.raises(Denied, match="refuses the credentials") as caught:
            store.check()
        assert "\n" not in str(caught.value)
        assert keystone_server.url in str(caught.value)


def test_a_region_without_a_swift_is_refused(keystone_server: Keystone) -> None:
    environ = {**keystone_server.password(), "OS_REGION_NAME": "elsewhere"}
    with closing(opened(environ)) as store, pytest.raises(Refused, match="elsewhere"):
        store.check()


def test_a_wrong_key_of_version_1_is_denied(swift_server: SwiftServer) -> None:
    environ = {**swift_server.environment(), "ST_KEY": "wrong"}
    with closing(opened(environ)) as store, pytest.raises(Denied):
        store.check()


def test_an_expired_token_is_replaced_without_a_word(tmp_path: Path) -> None:
    require_openstack("swift")
    with swift(tmp_path, token_life_s=1) as server, closing(server.sdk()) as sdk:
        url, token = sdk.get_auth()
        with closing(opened(server.environment())) as store:
            store._session.ask("PUT", "/c", "making the container")
            mine = store._session._signed_in().grant()
            deadline = time.monotonic() + 10
            while requests.head(url, headers={"X-Auth-Token": token}, timeout=5).ok:
                assert time.monotonic() < deadline
                select([], [], [], 0.1)
            assert mine.token == token
            live(store)
            assert store._session._signed_in().grant().token != token


def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        at = f"http://127.0.0.1:{unused.getsockname()[1]}"
        v1 = {"ST_AUTH": f"{at}/auth/v1.0", "ST_USER": "u", "ST_KEY": "k"}
        v3 = {
            "OS_AUTH_URL": f"{at}/v3",
            "OS_USERNAME": "u",
            "OS_PASSWORD": "p",
            "OS_PROJECT_NAME": "p",
        }
        pair = {"OS_STORAGE_URL": f"{at}/v1/AUTH_x", "OS_AUTH_TOKEN": "t"}
        nowhere = {**pair, "OS_STORAGE_URL": "http://no-such-host.invalid/v1/AUTH_x"}
        for environ in (v1, v3, pair, nowhere):
            with closing(opened(environ)) as store, pytest.raises(Unreachable):
                store.check()


def test_silence_is_a_fault_in_good_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        at = f"http://127.0.0.1:{silent.getsockname()[1]}"
        v1 = {"ST_AUTH": f"{at}/auth/v1.0", "ST_USER": "u", "ST_KEY": "k"}
        pair = {"OS_STORAGE_URL": f"{at}/v1/AUTH_x", "OS_AUTH_TOKEN": "t"}
        for environ in (v1, pair):
            began = time.monotonic()
            with closing(opened(environ, timeout_s=0.3)) as store, pytest.raises(Fault):
                store.check()
            assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("environ", "kind", "says"),
    [
        ({}, Denied, "no Swift credentials"),
        ({"ST_AUTH": "http://x/auth", "ST_USER": "u"}, Denied, "no Swift credentials"),
        ({"OS_CLOUD": "mine", "HOME": "/nowhere"}, Denied, "no cloud 'mine'"),
        (
            {"OS_AUTH_URL": "http://x", "OS_AUTH_TYPE": "v3oidcpassword"},
            Unsupported,
            "v3oidcpassword",
        ),
    ],
)
def test_credentials_that_cannot_be_are_told_by_who_asks(
    environ: Mapping[str, str], kind: type[StoreError], says: str
) -> None:
    with closing(opened(environ)) as store:
        assert store.description == "swift://c"
        with pytest.raises(kind, match=says):
            store.check()
        with pytest.raises(kind, match=says):
            store.head(KEY)


def test_a_clouds_yaml_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    environ = clouds(tmp_path, "clouds: [unfinished")
    with closing(opened(environ, cloud="mine")) as store, pytest.raises(Denied, match="not YAML"):
        store.check()


def test_the_first_complete_kind_of_credentials_counts(tmp_path: Path) -> None:
    v1 = {"ST_AUTH": "http://one/auth/v1.0", "ST_USER": "u", "ST_KEY": "k"}
    v3 = {
        "OS_AUTH_URL": "http://three/v3",
        "OS_USERNAME": "u",
        "OS_PASSWORD": "p",
        "OS_TENANT_NAME": "t",
    }
    pair = {"OS_STORAGE_URL": "http://pair/v1/AUTH_x", "OS_AUTH_TOKEN": "t"}
    named = clouds(
        tmp_path, "clouds: {m: {auth: {auth_url: 'http://cloud/v3', password: p, username: u}}}"
    )
    for environ, address in [
        ({**v1, **v3}, "http://one/auth/v1.0"),
        ({**v3, **pair}, "http://pair/v1/AUTH_x"),
        ({**v3}, "http://three/v3"),
        ({**v1, **v3, **pair, **named, "OS_CLOUD": "m"}, "http://cloud/v3"),
    ]:
        assert find_account(StoreOptions(), environ).address == address


def test_what_tls_is_checked_by_is_taken_from_where_it_was_said(tmp_path: Path) -> None:
    v1 = {"ST_AUTH": "https://one/auth/v1.0", "ST_USER": "u", "ST_KEY": "k"}
    said = find_account(
        StoreOptions(), {**v1, "OS_CACERT": "/ca", "OS_CERT": "/c", "OS_KEY": "/k"}
    )
    assert (said.verify, said.cert) == ("/ca", ("/c", "/k"))
    assert find_account(StoreOptions(ca_bundle="/b"), {**v1, "OS_CACERT": "/ca"}).verify == "/b"
    assert find_account(StoreOptions(), {**v1, "SWIFTCLIENT_INSECURE": "true"}).verify is False
    named = clouds(
        tmp_path, "clouds: {m: {auth: {auth_url: 'http://c', password: p}, verify: false}}"
    )
    assert find_account(StoreOptions(cloud="m"), named).verify is False


class CountingLock:
    """A lock that tells how many have come to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived = threading.Semaphore(0)

    def __enter__(self) -> None:
        self._arrived.release()
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._arrived.acquire(timeout=20)


def test_who_waited_for_a_sign_in_that_failed_does_not_try_it_again_in_turn() -> None:
    go_on = threading.Event()
    attempts: list[str] = []

    class Silent:
        """A session whose requests find nobody, after a while."""

        def get_token(self) -> str:
            attempts.append("token")
            assert go_on.wait(20)
            raise ConnectFailure("silent")

    account = Account(None, "http://nowhere.invalid")
    sign_in = SignIn(account, timeout_s=1, find=lambda: account)
    lock = CountingLock()
    vars(sign_in).update(_session=Silent(), _lock=lock)
    errors: list[Unreachable] = []

    def ask() -> None:
        try:
            sign_in.grant()
        except Unreachable as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    lock.wait_for(8)
    go_on.set()
    for thread in threads:
        thread.join(20)

    assert len(errors) == 8
    assert attempts == ["token"]
    with pytest.raises(Unreachable):  # who comes later tries anew
        sign_in.grant()
    assert attempts == ["token", "token"]


def test_a_password_that_was_changed_is_read_anew_from_clouds_yaml(
    keystone_server: Keystone, tmp_path: Path
) -> None:
    def write(password: str) -> Mapping[str, str]:
        return clouds(
            tmp_path,
            f"""
clouds:
  mine:
    region_name: RegionOne
    auth:
      auth_url: {keystone_server.url}
      username: {keystone_server.user}
      project_name: {keystone_server.project}
      user_domain_name: Default
      project_domain_name: Default
""",
            f"clouds: {{mine: {{auth: {{password: {password}}}}}}}",
        )

    environ = write(keystone_server.key)
    with closing(opened(environ, cloud="mine")) as store:
        live(store)
        sign_in = store._session._signed_in()
        change_password(keystone_server, keystone_server.key, "another")
        try:
            with pytest.raises(Denied, match="refuses the credentials"):
                sign_in.renew(sign_in.grant())  # as when the token expires
            with pytest.raises(Denied, match="refuses the credentials"):
                store.check()
            write("another")
            deadline = time.monotonic() + 10
            while not is_open(store):  # Keystone revokes what it gives out in the same second, too
                assert time.monotonic() < deadline
                select([], [], [], 0.1)
        finally:
            change_password(keystone_server, "another", keystone_server.key)


def is_open(store: SwiftStore) -> bool:
    try:
        store.check()
    except Denied:
        return False
    return True


def change_password(server: Keystone, old: str, new: str) -> None:
    """Have the user change his password, which revokes his tokens."""
    session = Session(
        identity.V3Password(
            server.url, username=server.user, password=old, user_domain_id="default"
        )
    )
    session.post(
        f"{server.url}/users/{session.get_user_id()}/password",
        json={"user": {"password": new, "original_password": old}},
    )
