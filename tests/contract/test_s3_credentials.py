"""Credentials that expire, are replaced or revoked while a store is in use, and what gives them out failing."""

import itertools
import json
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from cachefs.core.errors import Denied, Fault
from cachefs.core.source import StoreOptions
from cachefs.core.types import Key
from cachefs.remote import s3_client, s3_credentials
from cachefs.remote.s3 import S3Store
from cachefs.remote.s3_credentials import Chain
from tests.contract.bodies import BytesBody
from tests.contract.conftest import MIB
from tests.servers.scripted import Answer, Request, Scripted, answer, scripted

THERE = Key("there")
NEW = Key("new")
ETAG = '"0123456789abcdef0123456789abcdef"'
OBJECT = {"ETag": ETAG, "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
DENIED = "<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"
LISTING = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
INITIATED = (
    "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"
)
COMPLETED = f"<CompleteMultipartUploadResult><ETag>{ETAG}</ETag></CompleteMultipartUploadResult>"


class Strict:
    """A server that knows one access key, and what was asked with it."""

    def __init__(self) -> None:
        self.valid = "first"
        self.denied = 0
        self.completed = False
        self.before: Callable[[Request], None] = lambda _: None

    def __call__(self, request: Request) -> Answer:
        self.before(request)
        if f"Credential={self.valid}/" not in request.headers.get("authorization", ""):
            self.denied += 1
            return answer(403, "" if request.method == "HEAD" else DENIED)
        if request.method == "HEAD" and request.path.endswith(NEW):
            size = {"Content-Length": str(11 * MIB)}
            return answer(200, "", OBJECT | size) if self.completed else answer(404)
        if request.method == "GET":
            return answer(200, LISTING)
        if request.method == "POST":
            self.completed = "uploads" not in request.query
            return answer(200, COMPLETED if self.completed else INITIATED)
        return answer(204) if request.method == "DELETE" else answer(200, "", OBJECT)


class Keys:
    """Where boto3 looks: a file of keys, or a program that gives them out."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "credentials"
        self.config = directory / "config"
        self.given = directory / "given.json"
        self.runs = directory / "runs"
        self.runs.touch()

    def write(self, name: str) -> None:
        """Put new keys in place of the file's, as a rotation does."""
        new = self.file.with_suffix(".new")
        new.write_text(f"[default]\naws_access_key_id={name}\naws_secret_access_key=s-{name}\n")
        new.rename(self.file)

    def give_out(self, text: str) -> None:
        """From now on the program says *text*."""
        self.given.write_text(text)

    def program(self, then: str = "") -> None:
        """Let a program give out the keys."""
        script = self.config.with_name("giver.py")
        script.write_text(
            f"import sys, pathlib, time\n"
            f"open({str(self.runs)!r}, 'a').write('x')\n{then}\n"
            f"sys.stdout.write(pathlib.Path({str(self.given)!r}).read_text())\n"
        )
        command = shlex.join([sys.executable, "-S", "-E", str(script)])
        self.config.write_text(f"[default]\ncredential_process = {command}\n")

    @property
    def asked(self) -> int:
        """How often the program ran."""
        return self.runs.stat().st_size


def document(name: str, *, lasting: timedelta | None = None) -> str:
    said = {
        "Version": 1,
        "AccessKeyId": name,
        "SecretAccessKey": f"s-{name}",
        "SessionToken": "t",
    }
    if lasting is not None:
        said["Expiration"] = (datetime.now(UTC) + lasting).isoformat()
    return json.dumps(said)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    made = Keys(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(made.file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(made.config))
    return made


@pytest.fixture
def strict() -> Strict:
    return Strict()


@pytest.fixture
def served(keys: Keys, strict: Strict) -> Iterator[tuple[S3Store, Scripted]]:
    with ExitStack() as stack:
        server = stack.enter_context(scripted(strict))
        options = StoreOptions(
            endpoint_url=server.url,
            region="us-east-1",
            read_timeout_s=50,
            multipart_threshold=6 * MIB,
            part_size=5 * MIB,
            transfers=2,
        )
        yield stack.enter_context(closing(S3Store("bucket", options))), server


def test_keys_that_were_replaced_are_taken_up_by_the_request_that_is_denied(
    keys: Keys, strict: Strict, served: tuple[S3Store, Scripted]
) -> None:
    store, server = served
    keys.write("first")
    store.check()

    for name in ("second", "third"):  # at once, one after the other
        strict.valid = name
        keys.write(name)
        store.check()
        store.put(NEW, BytesBody(b"content"), meta={}, if_match=None)
        store.head(THERE)

    assert strict.denied == 2
    assert server.requests[-1].headers["authorization"].count("third")


def test_a_body_is_sent_whole_again_with_the_new_keys(
    keys: Keys, strict: Strict, served: tuple[S3Store, Scripted]
) -> None:
    store, server = served
    body = BytesBody(bytes(range(256)) * (4 * MIB // 256))  # read as it is sent, not before
    keys.write("first")
    store.check()
    server.requests.clear()

    def rotate(request: Request) -> None:
        if request.method == "PUT" and strict.valid == "first":
            strict.valid = "second"
            keys.write("second")

    strict.before = rotate
    store.put(NEW, body, meta={}, if_match=None)

    puts = [request for request in server.requests if request.method == "PUT"]
    assert [request.body == body.content for request in puts] == [True, True]
    assert strict.denied == 1


def test_an_upload_in_parts_goes_on_where_the_keys_were_replaced(
    keys: Keys, strict: Strict, served: tuple[S3Store, Scripted]
) -> None:
    store, server = served
    keys.write("first")
    store.check()

    def rotate(request: Request) -> None:
        if request.query.get("partNumber") == "2":
            strict.valid = "second"
            keys.write("second")

    strict.before = rotate
    store.put(NEW, BytesBody(bytes(11 * MIB)), meta={}, if_match=None)

    begun = [r for r in server.requests if r.method == "POST" and "uploads" in r.query]
    assert len(begun) == 1
    assert strict.denied
    assert "DELETE" not in server.methods()


def test_an_upload_in_parts_that_stays_denied_goes_on_when_access_is_back(
    keys: Keys, strict: Strict, served: tuple[S3Store, Scripted]
) -> None:
    store, server = served
    keys.write("first")
    store.check()

    def revoke(request: Request) -> None:
        if request.query.get("partNumber") == "2":
            strict.valid = "second"

    strict.before = revoke
    with pytest.raises(Denied):
        store.put(NEW, BytesBody(bytes(11 * MIB)), meta={}, if_match=None)
    assert "DELETE" not in server.methods()  # nobody could have

    keys.write("second")
    store.put(NEW, BytesBody(bytes(11 * MIB)), meta={}, if_match=None)

    begun = [request for request in server.requests if "uploads" in request.query]
    assert len(begun) == 1
    assert "DELETE" not in server.methods()


def test_many_requests_that_are_denied_at_once_read_the_keys_anew_once(
    keys: Keys, strict: Strict, served: tuple[S3Store, Scripted]
) -> None:
    store, _ = served
    keys.program()
    keys.give_out(document("first", lasting=timedelta(hours=2)))
    store.check()
    assert keys.asked == 1
    strict.valid = "second"
    keys.give_out(document("second", lasting=timedelta(hours=2)))
    store._bucket.client._chain._read_s -= 10  # type: ignore[union-attr]  # a while ago

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(store.head, THERE) for _ in range(40)]:
            done.result()

    assert keys.asked == 2
    assert strict.denied <= 8 + 8  # each thread's first, in the lean way and in the ordinary one


def test_fast_requests_stay_fast_when_the_keys_were_replaced_under_many(
    keys: Keys, strict: Strict, served: tuple[S3Store, Scripted]
) -> None:
    store, server = served
    keys.write("first")
    store.head(THERE)
    together = threading.Barrier(8)
    tickets = itertools.count()

    def wait(_: Request) -> None:
        if next(tickets) < 8:  # the first of each thread, with the old keys
            together.wait(60)

    strict.valid = "second"
    keys.write("second")
    strict.before = wait
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.head, [THERE] * 8))

    server.requests.clear()
    for _ in range(2):  # the second is asked in the lean way if that was not given up
        store.head(THERE)
    assert "amz-sdk-request" not in server.requests[-1].headers


def test_a_program_is_not_run_for_each_denial(keys: Keys) -> None:
    now = 0.0
    keys.program()
    keys.give_out(document("first"))
    chain = Chain(None, clock=lambda: now)
    chain.get_frozen_credentials()
    for _ in range(100):
        assert not chain.renewed(0)
    assert keys.asked == 1
    now = 2.0
    for _ in range(100):
        assert not chain.renewed(0)
    assert keys.asked == 2

    keys.give_out(document("second"))
    now = 4.0
    assert chain.renewed(0)
    assert chain.renewed(0)  # of somebody who was denied with the old ones
    assert chain.get_frozen_credentials().access_key == "second"  # type: ignore[union-attr]
    assert keys.asked == 3


def test_whoever_waited_for_a_program_that_says_nothing_does_not_wait_for_it_again(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    keys.write("first")
    chain = Chain(None, patience_s=1.5)
    chain.get_frozen_credentials()
    keys.file.unlink()
    keys.program("time.sleep(10)")
    together = threading.Barrier(4)

    def renew(_: int) -> bool:
        together.wait(10)
        return chain.renewed(0)

    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(renew, range(4)))
    assert caplog.text.count("could not be read anew") == 1


def test_keys_that_expire_soon_are_good_until_then_whatever_the_program_says(keys: Keys) -> None:
    now = 0.0
    keys.program()
    keys.give_out(document("first", lasting=timedelta(minutes=3)))
    chain = Chain(None, clock=lambda: now)
    assert chain.get_frozen_credentials().access_key == "first"  # type: ignore[union-attr]
    keys.give_out("out of order")
    now = 2.0
    for _ in range(20):
        assert chain.get_frozen_credentials().access_key == "first"  # type: ignore[union-attr]
    assert keys.asked <= 3
    keys.give_out(document("second", lasting=timedelta(hours=2)))
    now = 4.0
    assert chain.get_frozen_credentials().access_key == "second"  # type: ignore[union-attr]


def test_whoever_needs_keys_that_are_being_fetched_waits_for_them(keys: Keys) -> None:
    keys.program("time.sleep(0.5)")
    keys.give_out(document("first", lasting=timedelta(minutes=3)))  # too short to be used as it is
    chain = Chain(None)
    together = threading.Barrier(6)

    def sign(_: int) -> str:
        together.wait(10)
        found = chain.get_frozen_credentials()
        return found.access_key if found else ""

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(sign, range(6))) == ["first"] * 6
    assert keys.asked == 2


@pytest.mark.parametrize(
    "said",
    [
        "out of order",
        "[]",
        '{"Version": 1, "AccessKeyId": "hush"}',
        document("hush", lasting=timedelta(hours=-1)),
    ],
)
def test_a_program_that_gives_out_nothing_good_is_a_denial_in_one_line(
    keys: Keys, served: tuple[S3Store, Scripted], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_credentials, "_AGAIN_S", 0.0)
    store, server = served
    keys.program()
    keys.give_out(said)

    with pytest.raises(Denied) as denied:
        store.check()

    assert "\n" not in str(denied.value)
    assert "hush" not in str(denied.value)
    assert not server.requests
    keys.give_out(document("first"))
    store.check()


def test_a_program_that_is_not_there_is_a_denial(
    keys: Keys, served: tuple[S3Store, Scripted]
) -> None:
    keys.config.write_text("[default]\ncredential_process = /nonexistent/giver\n")
    with pytest.raises(Denied, match="nonexistent"):
        served[0].check()


def test_a_program_that_never_ends_holds_nobody_up_for_ever(keys: Keys) -> None:
    keys.program("time.sleep(60)")
    chain = Chain(None, patience_s=0.3)
    for _ in range(2):
        with pytest.raises(Fault, match="not answered"):
            chain.get_frozen_credentials()
    keys.write("first")
    chain._bounded._free_s = 0  # it is not waited for any longer
    assert chain.get_frozen_credentials().access_key == "first"  # type: ignore[union-attr]


def test_whoever_needs_keys_of_a_program_that_never_ends_waits_for_one_run_of_it(
    keys: Keys, served: tuple[S3Store, Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "Chain", partial(Chain, patience_s=2))
    keys.program("time.sleep(15)")
    together = threading.Barrier(5)

    def check(_: int) -> None:
        together.wait(10)
        with pytest.raises(Fault, match="not answered"):
            served[0].check()

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(check, range(5)))
    assert keys.asked <= 1


def test_a_file_that_is_half_written_leaves_the_keys_as_they_are(keys: Keys) -> None:
    keys.write("first")
    chain = Chain(None)
    chain.get_frozen_credentials()
    for text in ("[default]\naws_access_key_id=second\n", "[defa", ""):
        keys.file.write_text(text)
        assert not chain.renewed(0)
        assert chain.get_frozen_credentials().access_key == "first"  # type: ignore[union-attr]
    keys.write("second")
    assert chain.renewed(0)


def test_keys_may_come_after_the_first_request(
    keys: Keys, served: tuple[S3Store, Scripted]
) -> None:
    store, _ = served
    with pytest.raises(Denied, match="no credentials found"):
        store.check()
    keys.write("first")
    store.check()
