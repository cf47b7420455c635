#!/usr/bin/env python3
"""Makes room in an almost full cache: `cachefs prune` by the name that operators know it by."""

import sys

from cachefs.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prune", *sys.argv[1:]]))
