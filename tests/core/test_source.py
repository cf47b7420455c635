"""A source is shown as its user would write it."""

from dataclasses import fields

import pytest

from cachefs.core.source import Source, StoreKind, StoreOptions


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Source(StoreKind.S3, "b"), "s3://b"),
        (Source(StoreKind.S3, "b", "p/q/"), "s3://b/p/q"),
        (Source(StoreKind.SWIFT, "c", "p/"), "swift://c/p"),
        (Source(StoreKind.S3), "s3://"),
        (Source(StoreKind.FILE, "/srv/x"), "file:///srv/x"),
        (Source(StoreKind.MEMORY), "memory://"),
    ],
)
def test_a_source_reads_as_it_is_written(source: Source, text: str) -> None:
    assert str(source) == text


def test_the_options_of_a_store_have_no_place_for_a_secret() -> None:
    for option in fields(StoreOptions):
        assert not any(word in option.name for word in ("secret", "password", "token"))


@pytest.mark.parametrize(
    ("described", "source"),
    [
        ("s3://b at http://h:9000", Source(StoreKind.S3, "b")),
        ("p/q in s3://b at http://h", Source(StoreKind.S3, "b", "p/q/")),
        ("a in s3://x in swift://c at http://h", Source(StoreKind.SWIFT, "c", "a in s3://x/")),
        ("s3:// at http://h", Source(StoreKind.S3)),
        ("swift://c", Source(StoreKind.SWIFT, "c")),
        ("file:///srv/x at home", Source(StoreKind.FILE, "/srv/x at home")),
        ("memory://", Source(StoreKind.MEMORY)),
        ("", None),
        ("b at http://h", None),
    ],
)
def test_a_store_says_what_it_is_of(described: str, source: Source | None) -> None:
    assert Source.of_description(described) == source


@pytest.mark.parametrize(
    ("source", "key", "natural"),
    [
        (Source(StoreKind.S3, "b"), "d/a", ("b", "d/a")),
        (Source(StoreKind.S3, "b", "p/"), "d/a", ("b", "p/d/a")),
        (Source(StoreKind.S3), "b/d/a", ("b", "d/a")),
        (Source(StoreKind.FILE, "/srv"), "a", ("/srv", "a")),
        (Source(StoreKind.MEMORY), "a", ("", "a")),
    ],
)
def test_an_object_has_the_key_that_the_store_knows(
    source: Source, key: str, natural: tuple[str, str]
) -> None:
    assert source.natural(key) == natural
    assert source.inner(*natural) == key


def test_what_lies_elsewhere_is_in_no_mount_of_a_source() -> None:
    source = Source(StoreKind.S3, "b", "p/")

    assert source.inner("c", "p/a") is None
    assert source.inner("b", "pa") is None
