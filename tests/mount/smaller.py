"""``python -m tests.mount.smaller …``: the command line, but what it takes for large is a few mebibytes."""

import inspect
import sys
from typing import Final

from cachefs.cli import main
from cachefs.core.source import StoreOptions
from cachefs.remote.s3 import S3Store

MIB: Final = 2**20
S3_PART: Final = 5 * MIB
"""The least that S3 takes."""
SWIFT_SEGMENT: Final = MIB


def make_smaller() -> None:
    """Let uploads and copies go in parts above 6 MiB, and in segments above 1 MiB."""
    init = StoreOptions.__init__
    names = list(inspect.signature(init).parameters)[1:]
    assert init.__defaults__ is not None
    defaults = dict(zip(names, init.__defaults__, strict=True))
    defaults |= {"multipart_threshold": 6 * MIB, "segment_limit": SWIFT_SEGMENT}
    init.__defaults__ = tuple(defaults[name] for name in names)
    of_store = S3Store.__init__.__kwdefaults__
    assert of_store is not None
    of_store["copy_limit"] = 6 * MIB


if __name__ == "__main__":
    make_smaller()
    sys.exit(main())
