"""Pages of listings, read in a tenth of the time that botocore takes: that of a million objects is minutes else."""

from datetime import datetime
from typing import Any, Final
from xml.etree import ElementTree as ET

_EVENT: Final = "before-parse.*.ListObjectsV2"
"""With the asterisk it comes before ``before-parse.s3.*``: botocore looks for an error in what is left of the body only."""


def read_listings_fast(client: Any) -> None:  # noqa: ANN401  # boto3 makes its clients at run time
    """Have *client* read the entries of listings by :func:`take_entries`."""
    client.meta.events.register(_EVENT, take_entries)


def take_entries(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """Move the entries of a listing's answer out of its body into what botocore gives back.

    They have the names and types that botocore gives them. What is not as it should be is left in the body, for
    botocore to say so.
    """
    if response_dict["status_code"] != 200:
        return
    try:
        root = ET.fromstring(response_dict["body"])
        space = root.tag[: root.tag.find("}") + 1]
        contents = root.findall(f"{space}Contents")
        entries = [_entry(element, len(space)) for element in contents]
    except (ET.ParseError, ValueError, TypeError, LookupError):
        return
    if not entries:
        return
    for element in contents:
        root.remove(element)
    response_dict["body"] = ET.tostring(root, "utf-8")
    customized_response_dict["Contents"] = entries


def _entry(element: ET.Element, cut: int) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for part in element:
        name = part.tag[cut:]
        if name in entry:
            raise ValueError(f"two of {name}")
        if name == "Size":
            entry[name] = int(part.text or "")
        elif name == "LastModified":
            entry[name] = datetime.fromisoformat(part.text or "")
            if entry[name].tzinfo is None:
                raise ValueError("a moment without a zone")
        elif not len(part):
            entry[name] = part.text or ""
    return entry
