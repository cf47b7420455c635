#!/usr/bin/env python3
"""Fills the cache before programs ask: `cachefs preheat` by the name that operators know it by."""

import sys

from cachefs.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["preheat", *sys.argv[1:]]))
