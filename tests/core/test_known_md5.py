"""An MD5 that is kept: what the control socket takes for one."""

from typing import Any

import pytest

from cachefs.core.known_md5 import How, KnownMd5
from cachefs.core.types import ETag

KNOWN = KnownMd5("b", "d/\udcff%_é", ETag("e-2"), 7, "0" * 32, How.READ, "s3://b", 1, 2)


def test_it_comes_back_as_it_went() -> None:
    assert KnownMd5.from_json(KNOWN.to_json()) == KNOWN


@pytest.mark.parametrize(
    "change",
    [
        {"md5": "0" * 31},
        {"md5": "Z" * 32},
        {"etag": ""},
        {"size": -1},
        {"size": True},
        {"size": "7"},
        {"made_ns": 2**63},
        {"how": "guessed"},
        {"key": "\ud800"},
        {"bucket": 7},
        {"remote": None},
    ],
)
def test_nothing_else_is_taken(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        KnownMd5.from_json(KNOWN.to_json() | change)


def test_what_lacks_anything_is_not_taken() -> None:
    for name in KNOWN.to_json():
        with pytest.raises(KeyError):
            KnownMd5.from_json({k: v for k, v in KNOWN.to_json().items() if k != name})
