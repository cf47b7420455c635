"""Our reading of listings against botocore's own: the same answer, or none of ours."""

import io
from typing import Any, Final
from xml.sax.saxutils import escape

import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.parsers import create_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.remote.s3_list import read_listings_fast, take_entries

_SHAPE: Final = (
    botocore.session.Session()
    .get_service_model("s3")
    .operation_model("ListObjectsV2")
    .output_shape
)
_SPACE: Final = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def parsed(body: bytes, *, fast: bool, status: int = 200) -> Any:  # noqa: ANN401
    """What boto3 returns for *body*, or the kind of the error that it raises."""
    response: dict[str, Any] = {"body": body, "headers": {}, "status_code": status}
    ours: dict[str, Any] = {}
    try:
        if fast:
            take_entries(response_dict=response, customized_response_dict=ours, context={})
        return create_parser("rest-xml").parse(response, _SHAPE) | ours
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the same
        return type(error)


def listing(*entries: str, space: str = _SPACE) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult{space}><Name>b</Name>'
        f"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        f"<EncodingType>url</EncodingType>{''.join(entries)}"
        "<CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes></ListBucketResult>"
    ).encode()


def entry(
    key: str = "k", size: str = "3", etag: str = '"e"', moment: str = "2025-01-02T03:04:05.678Z"
) -> str:
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>{moment}</LastModified>"
        f"<ETag>{escape(etag)}</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass>"
        "<Owner><ID>o</ID><DisplayName>o</DisplayName></Owner></Contents>"
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=8),
            st.integers(0, 2**64),
        ),
        max_size=4,
    ),
    st.sampled_from(["", _SPACE]),
)
def test_entries_are_what_botocore_makes_of_them(
    entries: list[tuple[str, int]], space: str
) -> None:
    body = listing(*(entry(key, str(size)) for key, size in entries), space=space)
    plain, fast = parsed(body, fast=False), parsed(body, fast=True)
    for each in plain.get("Contents", ()):
        each.pop("Owner")  # which nobody asks for
    assert fast == plain


@pytest.mark.parametrize(
    "body",
    [
        listing(entry(size="many")),
        listing(entry(size="")),
        listing(entry(moment="yesterday")),
        listing(entry(moment="")),
        listing(entry(etag="")),
        listing("<Contents></Contents>"),
        listing(),
        listing(entry())[:-20],
        b"",
        b"<html>",
        b"<Error><Code>SlowDown</Code></Error>",
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("status", [200, 503])
def test_what_is_not_as_it_should_be_is_left_to_botocore(body: bytes, status: int) -> None:
    assert parsed(body, fast=True, status=status) == parsed(body, fast=False, status=status) or (
        parsed(body, fast=True, status=status)["Contents"]
        == [
            {name: value for name, value in each.items() if name != "Owner"}
            for each in parsed(body, fast=False, status=status)["Contents"]
        ]
    )


def test_the_entries_are_ours_where_nothing_is_wrong() -> None:
    response = {"body": listing(entry()), "headers": {}, "status_code": 200}
    ours: dict[str, Any] = {}
    take_entries(response_dict=response, customized_response_dict=ours)
    assert ours["Contents"][0]["Size"] == 3
    assert b"Contents" not in response["body"]  # type: ignore[operator]


def test_botocore_looks_for_an_error_in_what_we_left_of_the_body() -> None:
    client = botocore.session.Session().create_client(
        "s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    read_listings_fast(client)
    looked_at: list[bytes] = []

    def look(response_dict: dict[str, Any], **_: object) -> None:
        looked_at.append(response_dict["body"])

    def answer(**_: object) -> AWSResponse:
        raw = io.BytesIO(listing(entry()))
        raw.stream = lambda **_: iter([raw.read()])  # type: ignore[attr-defined]
        return AWSResponse("http://localhost", 200, {}, raw)

    client.meta.events.register("before-send.s3.ListObjectsV2", answer)
    # Beside botocore's own look at errors.
    client.meta.events.register_first("before-parse.s3.*", look)

    found = client.list_objects_v2(Bucket="b")

    assert found["Contents"][0]["Size"] == 3
    assert b"Contents" not in looked_at[0]
    assert b"CommonPrefixes" in looked_at[0]
