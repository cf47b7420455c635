"""Names that users of s3fs, mount-s3, goofys and rclone know, and what they come to here."""

import re
from collections.abc import Callable
from dataclasses import dataclass

Given = tuple[tuple[str, str], ...]
"""Options of ours and their values. An empty name stands for the option that has the alias."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of an option."""

    name: str
    translate: Callable[[str], Given]
    """Turns the alias's value into settings of ours; ValueError with the rest of a sentence if it cannot."""
    is_switch: bool | None = None
    """It may stand alone. None: as the option does."""


def same(name: str) -> Alias:
    """Return an alias with the same values."""
    return Alias(name, lambda value: (("", value),))


def fixed(name: str, value: str) -> Alias:
    """Return an alias that stands alone and means *value*."""
    opposite = "false" if value == "true" else "true"
    return Alias(name, lambda given: (("", value if _is_on(given) else opposite),), is_switch=True)


def switch(name: str) -> Alias:
    """Return an alias that may stand alone."""
    return Alias(name, lambda value: (("", value),), is_switch=True)


def in_units(name: str, unit: str) -> Alias:
    """Return an alias whose bare numbers count *unit*s."""

    def translate(value: str) -> Given:
        bare = re.fullmatch(r"\s*\d+(\.\d+)?\s*", value, re.ASCII)
        return (("", f"{value.strip()}{unit}" if bare else value),)

    return Alias(name, translate)


def percentage(name: str) -> Alias:
    """Return an alias whose numbers are percentages."""
    return Alias(name, lambda value: (("", value if value.endswith("%") else f"{value}%"),))


def write_back(name: str) -> Alias:
    """Return rclone's delay before an upload, which there also means that nobody waits for it."""
    return Alias(name, lambda value: (("upload", "background"), ("", value)))


def endpoint(name: str) -> Alias:
    """Return ``endpoint``, which is a URL to goofys and a region to s3fs."""
    return Alias(name, lambda value: (("" if "://" in value else "region", value),))


def use_sse(name: str) -> Alias:
    """Return s3fs's ``use_sse``: ``1``, ``kmsid`` or ``kmsid:KEY``."""

    def translate(value: str) -> Given:
        word, _, key = value.partition(":")
        if word in {"1", "true"} and not key:
            return (("", "AES256"),)
        if word in {"kmsid", "k"}:
            return (("", "aws:kms"), *((("sse-kms-key-id", key),) if key else ()))
        raise ValueError(
            "is neither 1 nor kmsid[:KEY]; keys of one's own (SSE-C) are not supported"
        )

    return Alias(name, translate, is_switch=True)


def _is_on(value: str) -> bool:
    return value.lower() not in {"false", "no", "off", "0"}
