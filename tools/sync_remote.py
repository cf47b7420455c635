#!/usr/bin/env python3
"""Brings one bucket up to another: `cachefs sync` under the name that operators know it by."""

import sys

from cachefs.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sync", *sys.argv[1:]]))
