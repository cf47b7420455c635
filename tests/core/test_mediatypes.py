"""Content types: guessed as web servers do, and guessed again only where nobody chose one."""

import pytest

from cachefs.core.mediatypes import guessed, retyped


@pytest.mark.parametrize(
    ("component", "content_type"),
    [
        ("index.html", "text/html"),
        ("PHOTO.JPG", "image/jpeg"),
        ("notes.txt", "text/plain"),
        ("all.tar.gz", "application/gzip"),
        ("all.tar.bz2", "application/x-bzip2"),
        ("all.tar.xz", "application/x-xz"),
        ("data.json", "application/json"),
        ("Makefile", "application/octet-stream"),
        ("name.unheard-of", "application/octet-stream"),
        (".bashrc", "application/octet-stream"),
        ("", "application/octet-stream"),
        ("a.", "application/octet-stream"),
        ("data:,x.html", "text/html"),
        ("http://host/x?y.png", "image/png"),
    ],
)
def test_the_last_extension_tells_the_type(component: str, content_type: str) -> None:
    assert guessed(component) == content_type


@pytest.mark.parametrize(
    ("content_type", "old", "new", "becomes"),
    [
        ("image/jpeg", "a.jpg", "b.png", "image/png"),
        ("application/octet-stream", ".index.html.swp", "index.html", "text/html"),
        ("binary/octet-stream", "tmp", "index.html", "text/html"),
        ("text/html; charset=utf-8", "a.html", "a.txt", None),
        ("image/jpeg", "a.txt", "b.png", None),
        ("text/html", "a.html", "a", None),
        ("text/html", "a.html", "b.html", None),
        (None, "a.txt", "a.html", None),
    ],
)
def test_a_new_name_changes_a_type_that_was_only_guessed(
    content_type: str | None, old: str, new: str, becomes: str | None
) -> None:
    assert retyped(content_type, old, new) == becomes
