"""Sources and endpoints as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config.addresses import parse_endpoint, parse_source
from cachefs.core.errors import UsageError
from cachefs.core.source import Source, StoreKind

S3, SWIFT, FILE = StoreKind.S3, StoreKind.SWIFT, StoreKind.FILE
REMOTES = {"archive": S3, "media": SWIFT, "nas": FILE}


@pytest.mark.parametrize(
    ("text", "source", "remote"),
    [
        ("s3://photos", Source(S3, "photos"), None),
        ("s3://photos/", Source(S3, "photos"), None),
        ("s3://photos/2024/summer", Source(S3, "photos", "2024/summer/"), None),
        ("s3://photos/2024/", Source(S3, "photos", "2024/"), None),
        ("s3://", Source(S3), None),
        ("swift://media", Source(SWIFT, "media"), None),
        ("swift://", Source(SWIFT), None),
        ("file:///srv/objects", Source(FILE, "/srv/objects"), None),
        ("file:///srv/objects/", Source(FILE, "/srv/objects"), None),
        ("archive:photos/2024", Source(S3, "photos", "2024/"), "archive"),
        ("archive:", Source(S3), "archive"),
        ("media:films", Source(SWIFT, "films"), "media"),
        ("nas:/srv/objects", Source(FILE, "/srv/objects"), "nas"),
        ("cachefs#s3://photos", Source(S3, "photos"), None),
        ("cachefs#archive:photos", Source(S3, "photos"), "archive"),
        ("cachefs#photos", Source(S3, "photos"), None),
        ("cachefs#photos:/2024", Source(S3, "photos", "2024/"), None),
        ("photos:/2024", Source(S3, "photos", "2024/"), None),
        ("photos:/", Source(S3, "photos"), None),
    ],
)
def test_a_source_is_read_in_every_form(text: str, source: Source, remote: str | None) -> None:
    assert parse_source(text, REMOTES) == (source, remote)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("swfit://photos", "source swfit://photos: unknown scheme swfit:// — did you mean swift?"),
        ("s3://photos//a", "source s3://photos//a: a prefix does not begin with a slash"),
        (
            "ftp://x",
            "source ftp://x: unknown scheme ftp:// — write s3://BUCKET[/PREFIX], swift://CONTAINER[/PREFIX], "
            "file:///DIRECTORY or REMOTE:BUCKET[/PREFIX]",
        ),
        (
            "s3:///photos",
            "source s3:///photos: there is no bucket name in it — write s3://BUCKET[/PREFIX]",
        ),
        (
            "file://srv",
            "source file://srv: the directory must be absolute — for example file:///srv/objects",
        ),
        (
            "file:///",
            "source file:///: the root of this machine is no object store — name a directory",
        ),
        ("file:///a/../b", "source file:///a/../b: write the directory without . and .."),
        (
            "archiv:photos",
            "source archiv:photos: there is no [remotes.archiv] — did you mean archive?",
        ),
        (
            "zzz:photos",
            "source zzz:photos: there is no [remotes.zzz] — add it to the configuration file, or write "
            "s3://photos for a bucket",
        ),
        (
            "s3://AKID:sEcReT@photos",
            "source s3://[hidden]@photos: credentials never belong into a source — set AWS_* or OS_* "
            "variables, or use a profile",
        ),
    ],
)
def test_a_bad_source_is_told_in_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text, REMOTES)

    assert str(caught.value) == line


@given(st.text(max_size=20))
def test_any_text_is_a_source_or_a_usage_error_of_one_line(text: str) -> None:
    said = ""
    try:
        source, _ = parse_source(text, REMOTES)
    except UsageError as error:
        said = str(error)
    else:
        assert not source.prefix or source.prefix.endswith("/")

    assert said.isprintable()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000", "https://s3.example.org", "http://[::1]:80/base"]
)
def test_an_endpoint_is_a_plain_url(url: str) -> None:
    assert parse_endpoint(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:9000",
        "ftp://x",
        "http://",
        "http://h:port",
        "http://h:99999",
        "http://u:p@h",
        "http://h?x=1",
        "http://a b",
        "",
        "http://[::1",
    ],
)
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        parse_endpoint(url)
