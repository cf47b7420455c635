"""No secret reaches a log or an error line."""

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.cli.logs import JsonFormatter, PlainFormatter, TextFormatter
from cachefs.cli.redaction import Redactor
from cachefs.config import Environment

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"

TEXTS = [
    f"Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/x, SignedHeaders=host, Signature={SECRET}",
    f"{{'Authorization': 'AWS4-HMAC-SHA256 Credential=x, Signature={SECRET}', 'Host': 'h'}}",
    f"{{'Authorization': b'Bearer {SECRET}'}}",
    f"X-Auth-Token: {SECRET}",
    f"{{'X-Auth-Token': '{SECRET}'}}",
    f'{{"x-storage-token": "{SECRET}"}}',
    f"X-Auth-Key: {SECRET}",
    f"X-Subject-Token: {SECRET}",
    f"GET http://h/b/k?X-Amz-Signature={SECRET}&X-Amz-Date=20240101",
    f"GET http://h/b/k?AWSAccessKeyId=x&Signature={SECRET}&Expires=1",
    f"GET http://h/b/k?X-Amz-Security-Token={SECRET}",
    f"GET http://h/v1/a/c/o?temp_url_sig={SECRET}&temp_url_expires=1",
    f"http://{SECRET.replace('/', '%2F')}:{SECRET.replace('/', '%2F')}@host/path",
    f"aws_secret_access_key = {SECRET}",
    f"aws_session_token={SECRET}",
    f"secret_key='{SECRET}'",
    f"OS_PASSWORD={SECRET}",
    f"ST_KEY={SECRET}",
    f"{{'auth': {{'password': '{SECRET}'}}}}",
    f"application_credential_secret: {SECRET}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_written_like_a_secret_is_hidden(text: str) -> None:
    shown = Redactor()(text)

    assert SECRET[:8] not in shown
    assert "[hidden]" in shown


def test_an_access_key_is_hidden() -> None:
    assert Redactor()("key AKIAIOSFODNN7EXAMPLE is bad") == "key [hidden] is bad"


def test_a_known_secret_is_hidden_wherever_it_stands() -> None:
    environment = Environment(
        {
            "AWS_SECRET_ACCESS_KEY": "correct-horse",
            "OS_PASSWORD": "battery staple",
            "HOME": "/home/u",
        }
    )

    shown = Redactor(environment.secrets())("correct-horse, battery staple, /home/u")

    assert shown == "[hidden], [hidden], /home/u"


def test_plain_text_is_left_alone() -> None:
    for text in (
        "mounted s3://photos at /mnt/photos",
        "cannot reach the store at http://127.0.0.1:9000/b?prefix=a&max-keys=1",
        "the keys of objects: key a/b/c, etag=abc",
        "signature of the secretary's password-free login",
    ):
        assert Redactor()(text) == text


@given(st.text(), st.sampled_from(TEXTS), st.text())
def test_a_secret_is_hidden_amid_any_text(before: str, text: str, after: str) -> None:
    assert SECRET[:8] not in Redactor()(f"{before}\n{text}\n{after}")


@given(st.text())
def test_hiding_twice_changes_no_more(text: str) -> None:
    once = Redactor()(text)

    assert Redactor()(once) == once


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter, PlainFormatter])
def test_no_formatter_lets_a_secret_through_not_even_in_a_traceback(
    formatter: type[TextFormatter | JsonFormatter | PlainFormatter],
) -> None:
    try:
        raise ValueError(f"X-Auth-Token: {SECRET}")  # noqa: TRY301 - the traceback is the point
    except ValueError:
        trace = sys.exc_info()
    record = logging.LogRecord(
        "cachefs", logging.ERROR, __file__, 1, "failed: %s", (f"password={SECRET}",), trace
    )

    line = formatter(Redactor()).format(record)

    assert SECRET not in line
    assert "ValueError" in line


def test_a_json_line_is_one_object() -> None:
    record = logging.LogRecord("cachefs.x", logging.INFO, __file__, 1, "two\nlines", None, None)

    line = JsonFormatter(Redactor()).format(record)

    assert "\n" not in line
    assert json.loads(line)["message"] == "two\nlines"
    assert json.loads(line)["level"] == "INFO"
