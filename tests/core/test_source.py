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
