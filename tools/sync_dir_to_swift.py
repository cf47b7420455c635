#!/usr/bin/env python3
"""Stores a directory in a bucket or container: `cachefs push` under the name that operators know it by."""

import sys

from cachefs.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
