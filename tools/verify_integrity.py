#!/usr/bin/env python3
"""Tells which files the store does not have as they are here: `cachefs verify` by the name that operators know it by."""

import sys

from cachefs.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
