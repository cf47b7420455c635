"""A bucket that several tools share: what each wrote is read right by the others.

The other tools are run for real where Debian or the package index has them (s3fs, rclone, python-swiftclient,
boto3); what the rest documents is stored by hand. The README's table "Sharing a bucket with other tools" says
what is tested here.
"""

import contextlib
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mount import peers, programs
from tests.mount.harness import ROOT, Mount
from tests.mount.peers import EXACT_NS, S3_BY_HAND, SECOND_NS, SWIFT_BY_HAND, ByHand, PeerMount
from tests.mount.stores import LiveStore
from tests.servers.s3 import S3Server
from tests.servers.swift import SwiftServer

MIB = 1 << 20
BINARY = b"\0\xff blue"
ODD_NAMES = [
    "ü ☃", "e\u0301", "per%cent %41", "plus+sign", "quo'te\"s", "back\\slash", " lead", "trail ", "-dash", "tab\there",
    "sh#arp?q=1&b", "~tilde", "(a)[b]{c}", "semi;colon,comma", "a:b", "star*", "<&>", "$HOME `x`", "...", "x" * 255, "new\nline", "cr\rx", "\x7f",
]  # fmt: skip
TYPED_NAMES = [
    "index.html", "notes.txt", "data.tar.gz", "photo.jpg", "PHOTO.JPEG", "data.json", "style.css", "film.mp4", "doc.pdf",
    "code.py", "page.xml", "plain", "odd.unknown", ".hidden", "x.gz", "Makefile.in", "font.woff2", "image.svg", "app.js",
]  # fmt: skip


def s3_server(store: LiveStore) -> S3Server:
    said = store.target().environment
    return S3Server(store.endpoint, said["AWS_ACCESS_KEY_ID"], said["AWS_SECRET_ACCESS_KEY"])


@dataclass
class Shared:
    """A bucket that others have filled, and our mount of it."""

    store: LiveStore
    server: S3Server
    mount: Mount
    base: Path

    def look(self, name: str) -> dict[str, Any]:
        return self.mount.do(peers.look, self.mount / name)


def is_seen(found: Mapping[str, object], expected: Mapping[str, object]) -> bool:
    """Compare what is expected; the assertion shows only what differs."""
    differing = {name: found.get(name) for name in expected if found.get(name) != expected[name]}
    assert differing == {name: expected[name] for name in differing}
    return True


# ---- what others put into a bucket of S3 ----------------------------------------------------


def fill(root: Path) -> None:
    """What s3fs is to store, and rclone to copy: as much of a file system as they bear."""
    (root / "file").write_bytes(b"content")
    (root / "file").chmod(0o640)
    os.chown(root / "file", 1234, 2345)
    os.utime(root / "file", ns=(SECOND_NS, EXACT_NS))
    (root / "empty").touch()
    (root / "tool").write_bytes(b"x")
    (root / "tool").chmod(0o755)
    (root / "setuid").write_bytes(b"x")
    (root / "setuid").chmod(0o4755)
    os.utime(root / "setuid", ns=(SECOND_NS, SECOND_NS + 500_000_000))
    os.setxattr(root / "file", "user.color", b"dark red")
    os.symlink("target with space/é", root / "link")
    (root / "directory").mkdir()
    (root / "directory" / "inner").write_bytes(b"inner")


def fill_more(root: Path) -> None:
    """What s3fs alone bears."""
    fill(root)
    (root / "made").mkdir(0o751)
    (root / "directory").chmod(0o750)
    os.chown(root / "directory", 12, 34)
    os.setxattr(root / "directory", "user.d", b"of the directory")
    os.utime(root / "directory", ns=(SECOND_NS, EXACT_NS))
    os.setxattr(root / "file", "user.binary", BINARY)
    os.setxattr(root / "file", "user.café", b"x")
    os.lchown(root / "link", 77, 88)
    os.mkfifo(root / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(root / "socket"))
    programs.write_pattern(root / "large", "large", 12 * MIB)
    (root / "odd").mkdir()
    for name in ODD_NAMES:
        (root / "odd" / name).write_bytes(name.encode())


def make_types(directory: Path) -> None:
    """Files of many names, and one that gets another extension."""
    for name in (*TYPED_NAMES, "other.txt"):
        (directory / name).write_bytes(b"x")
    (directory / "other.txt").rename(directory / "renamed.png")


@pytest.fixture(scope="module")
def shared(
    new_store: Callable[[str], LiveStore], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    store = new_store("radosgw")
    server = s3_server(store)
    base = tmp_path_factory.mktemp("interop")
    with peers.s3fs(server, store.bucket, base / "s3fs") as other:
        other.do(os.mkdir, other / "s3fs")
        other.do(fill_more, other / "s3fs")
        other.do(os.mkdir, other / "types")
        other.do(make_types, other / "types")
    local = base / "local"
    local.mkdir()
    fill(local)
    programs.write_pattern(local / "large", "large", 6 * MIB)
    for directory, options in {"rclone-metadata": ["--metadata"], "rclone": []}.items():
        target = f"peer:{store.bucket}/{directory}"
        peers.rclone(
            *(server, base, "copy", str(local), target, "--links"),
            *("--s3-upload-cutoff", "5M", *options),
        )
    with contextlib.closing(server.sdk()) as sdk:
        sdk.put_object(Bucket=store.bucket, Key="boto3/file.txt", Body=b"x")
        for one in S3_BY_HAND:
            sdk.put_object(
                Bucket=store.bucket,
                Key=one.key,
                Body=one.body,
                ContentType=one.content_type,
                Metadata=dict(one.meta),
            )
    fresh = ("--metadata-ttl", "0", "--negative-ttl", "0")
    with Mount(store.target(), base / "mount", fresh, watchdog_s=280) as mount:
        yield Shared(store, server, mount, base)


FILE = {
    "kind": stat.S_IFREG,
    "mode": 0o640,
    "uid": 1234,
    "gid": 2345,
    "mtime_ns": EXACT_NS,
    "content": b"content",
}
S3FS: dict[str, dict[str, object]] = {
    "file": {
        **FILE,
        "xattrs": {
            "user.color": b"dark red",
            "user.binary": BINARY,
            "user.café": b"x",
        },
    },
    "empty": {"kind": stat.S_IFREG, "size": 0},
    "setuid": {"mode": 0o4755, "mtime_ns": SECOND_NS + 500_000_000},
    "link": {"kind": stat.S_IFLNK, "target": "target with space/é", "uid": 77, "gid": 88},
    "directory": {
        "kind": stat.S_IFDIR,
        "mode": 0o750,
        "uid": 12,
        "gid": 34,
        "mtime_ns": EXACT_NS,
        "names": ["inner"],
        "xattrs": {"user.d": b"of the directory"},
    },
    "made": {"kind": stat.S_IFDIR, "mode": 0o751, "names": []},
    "fifo": {"kind": stat.S_IFIFO, "mode": 0o600},
    "socket": {"kind": stat.S_IFSOCK},
    "odd": {"names": sorted(ODD_NAMES)},
}


@pytest.mark.parametrize("name", S3FS)
def test_what_s3fs_stored_is_shown(shared: Shared, name: str) -> None:
    assert is_seen(shared.look(f"s3fs/{name}"), S3FS[name])


def test_what_s3fs_stored_under_odd_names_is_read(shared: Shared) -> None:
    mount = shared.mount
    for name in ODD_NAMES:
        assert mount.do(programs.read_file, mount / "s3fs/odd" / name) == name.encode()


RCLONE_METADATA: dict[str, dict[str, object]] = {
    "file": {**FILE, "xattrs": {"user.color": b"dark red"}},
    "setuid": {"mode": 0o4755, "mtime_ns": SECOND_NS + 500_000_000},
    "empty": {"kind": stat.S_IFREG, "size": 0},
    "directory": {"kind": stat.S_IFDIR, "names": ["inner"]},
    "link.rclonelink": {"kind": stat.S_IFLNK, "target": "target with space/é"},
}
RCLONE: dict[str, dict[str, object]] = {
    "file": {"kind": stat.S_IFREG, "mtime_ns": EXACT_NS, "content": b"content", "xattrs": {}},
    "setuid": {"mtime_ns": SECOND_NS + 500_000_000},
    "directory": {"kind": stat.S_IFDIR, "names": ["inner"]},
    "link.rclonelink": {"kind": stat.S_IFREG, "content": "target with space/é".encode()},
}


@pytest.mark.parametrize("name", RCLONE_METADATA)
def test_what_rclone_stored_with_metadata_is_shown(shared: Shared, name: str) -> None:
    assert is_seen(shared.look(f"rclone-metadata/{name}"), RCLONE_METADATA[name])


@pytest.mark.parametrize("name", RCLONE)
def test_what_rclone_stored_is_shown(shared: Shared, name: str) -> None:
    assert is_seen(shared.look(f"rclone/{name}"), RCLONE[name])


@pytest.mark.parametrize("name", ["s3fs/large", "rclone/large", "rclone-metadata/large"])
def test_what_others_stored_in_parts_is_read(shared: Shared, name: str) -> None:
    with contextlib.closing(shared.server.sdk()) as sdk:
        assert "-" in sdk.head_object(Bucket=shared.store.bucket, Key=name)["ETag"]
    mount = shared.mount
    size = mount.do(os.stat, mount / name).st_size
    assert size == (12 if name.startswith("s3fs") else 6) * MIB
    assert mount.do(programs.wrong_ranges, mount / name, "large", size) == []


def test_what_bears_no_metadata_has_the_modes_and_times_of_the_mount(shared: Shared) -> None:
    with contextlib.closing(shared.server.sdk()) as sdk:
        when = sdk.head_object(Bucket=shared.store.bucket, Key="boto3/file.txt")["LastModified"]
    expected = {
        "kind": stat.S_IFREG,
        "mode": 0o644,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "mtime_ns": int(when.timestamp()) * 10**9,
        "xattrs": {},
    }
    assert is_seen(shared.look("boto3/file.txt"), expected)
    assert is_seen(shared.look("boto3"), {"kind": stat.S_IFDIR, "mode": 0o755})


@pytest.mark.parametrize("one", S3_BY_HAND, ids=lambda one: one.key)
def test_what_other_tools_document_is_shown(shared: Shared, one: ByHand) -> None:
    assert is_seen(shared.look(one.key.rstrip("/")), one.seen)


# ---- what we put into a bucket of S3 --------------------------------------------------------


def fill_ours(root: Path) -> None:
    """What we are to store: all that a file system has."""
    root.mkdir()
    fill_more(root)
    os.symlink(" blanks, 50%25 and ü ", root / "odd-link")
    (root / "implicit").mkdir()
    (root / "implicit" / "file").write_bytes(b"x")


@pytest.fixture(scope="module")
def ours(shared: Shared) -> Shared:
    mount = shared.mount
    mount.do(fill_ours, mount / "ours")
    mount.do(programs.write_pattern, mount / "ours/huge", "huge", 65 * MIB)
    return shared


@pytest.fixture(scope="module")
def by_s3fs(ours: Shared) -> Iterator[PeerMount]:
    with peers.s3fs(ours.server, ours.store.bucket, ours.base / "reader") as other:
        yield other


ODD_LINK = {"kind": stat.S_IFLNK, "target": "blanks, 50%25 and ü"}
"""As s3fs shows it, which trims what it reads from the body; geesefs does not."""


@pytest.mark.parametrize("name", [*S3FS, "odd-link"])
def test_s3fs_shows_what_we_stored(by_s3fs: PeerMount, name: str) -> None:
    found = by_s3fs.do(peers.look, by_s3fs / "ours" / name)
    assert is_seen(found, S3FS.get(name, ODD_LINK))


def test_s3fs_reads_what_we_stored_in_parts_and_under_odd_names(by_s3fs: PeerMount) -> None:
    huge = by_s3fs / "ours/huge"
    assert by_s3fs.do(programs.wrong_ranges, huge, "huge", 65 * MIB) == []
    for name in ODD_NAMES:
        assert by_s3fs.do(programs.read_file, by_s3fs / "ours/odd" / name) == name.encode()


def test_s3fs_cannot_list_a_directory_with_a_name_that_xml_cannot_hold(
    ours: Shared, by_s3fs: PeerMount
) -> None:
    ours.mount.do(os.mkdir, ours.mount / "control")
    ours.mount.do(programs.write_file, ours.mount / "control/bell\x07", b"x")
    assert ours.mount.do(os.listdir, ours.mount / "control") == ["bell\x07"]
    with pytest.raises(OSError, match="Input/output"):
        by_s3fs.do(os.listdir, by_s3fs / "control")


def test_a_mount_of_rclone_shows_what_we_stored(ours: Shared) -> None:
    base = ours.base / "rclone-mount"
    with peers.rclone_mount(ours.server, ours.store.bucket, base) as other:
        found = other.do(peers.look, other / "ours/file")
        assert is_seen(found, {"kind": stat.S_IFREG, "mtime_ns": EXACT_NS, "content": b"content"})
        found = other.do(peers.look, other / "ours/setuid")
        assert is_seen(found, {"mtime_ns": SECOND_NS + 500_000_000})
        assert is_seen(other.do(peers.look, other / "ours/made"), {"kind": stat.S_IFDIR})
        # Control characters are shown by it as the pictures of them.
        pictures = str.maketrans("\t\n\r\x7f", "\u2409\u240a\u240d\u2421")
        shown = {name.translate(pictures): name for name in ODD_NAMES}
        assert set(other.do(os.listdir, other / "ours/odd")) == set(shown)
        for name, ours_is in shown.items():
            assert other.do(programs.read_file, other / "ours/odd" / name) == ours_is.encode()
        assert other.do(programs.wrong_ranges, other / "ours/huge", "huge", 65 * MIB) == []


def test_rclone_lists_what_we_stored_with_its_metadata(ours: Shared) -> None:
    path = f"peer:{ours.store.bucket}/ours"
    said = json.loads(peers.rclone(ours.server, ours.base, "lsjson", "--metadata", "--hash", path))
    by_name = {one["Name"]: one for one in said}
    file = by_name["file"]
    assert file["ModTime"] == "2020-01-02T03:04:05.123456789Z"
    assert file["Metadata"]["uid"] == "1234"
    assert file["Metadata"]["gid"] == "2345"
    # rclone writes modes in octal digits and takes ours, which are s3fs's, for such.
    assert file["Metadata"]["mode"] == str(0o100640)
    assert by_name["directory"]["IsDir"]


def test_boto3_sees_what_we_stored(ours: Shared) -> None:
    with contextlib.closing(ours.server.sdk()) as sdk:

        def head(name: str) -> Any:  # noqa: ANN401
            return sdk.head_object(Bucket=ours.store.bucket, Key=f"ours/{name}")

        file = head("file")
        assert (file["ContentLength"], file["ContentType"]) == (7, "application/octet-stream")
        assert head("directory/")["ContentType"] == "application/x-directory"
        assert head("huge")["ETag"].strip('"').endswith("-9")
        listed = sdk.list_objects_v2(Bucket=ours.store.bucket, Prefix="ours/odd/")["Contents"]
        names = {one["Key"].removeprefix("ours/odd/") for one in listed}
        assert names == {"", *ODD_NAMES}
        body = sdk.get_object(Bucket=ours.store.bucket, Key="ours/link")["Body"].read()
        assert body == "target with space/é".encode()


def test_geesefs_would_read_what_we_stored(ours: Shared) -> None:
    with contextlib.closing(ours.server.sdk()) as sdk:

        def read(name: str) -> dict[str, object]:
            found = sdk.head_object(Bucket=ours.store.bucket, Key=f"ours/{name}")
            return peers.geesefs_reads(found["Metadata"])

        # Its times are whole seconds: ours, which it cannot read, leave it with Last-Modified.
        assert read("file") == {"mode": 0o100640, "uid": 1234, "gid": 2345}
        assert read("directory/") == {"mode": 0o040750, "uid": 12, "gid": 34}
        assert read("fifo")["mode"] == 0o010600
        assert read("link")["target"] == "target with space/é"
        assert read("odd-link")["target"] == " blanks, 50%25 and ü "


def test_s3fs_gives_a_file_the_type_that_we_give_it(shared: Shared) -> None:
    mount = shared.mount
    mount.do(os.mkdir, mount / "our-types")
    mount.do(make_types, mount / "our-types")
    with contextlib.closing(shared.server.sdk()) as sdk:

        def types(directory: str) -> dict[str, str]:
            return {
                name: sdk.head_object(Bucket=shared.store.bucket, Key=f"{directory}/{name}")[
                    "ContentType"
                ]
                for name in (*TYPED_NAMES, "renamed.png")
            }

        assert types("our-types") == types("types")


def test_rclone_copies_what_we_stored_and_takes_modes_of_all_but_itself_for_octal(
    ours: Shared,
) -> None:
    modes = {}
    for directory, options in {"plain": [], "metadata": ["--metadata"]}.items():
        local = ours.base / f"copied-{directory}"
        path = f"peer:{ours.store.bucket}/ours"
        peers.rclone(ours.server, ours.base, "copy", path, str(local), "--exclude=/huge", *options)
        assert (local / "file").read_bytes() == b"content"
        assert (local / "file").stat().st_mtime_ns == EXACT_NS
        assert (local / "directory/inner").read_bytes() == b"inner"
        modes[directory] = [(local / name).stat().st_mode for name in ("file", "tool")]
    # 0100640 is 33184 in decimal, no octal number; 0100755 is 33261, and happens to be one.
    assert modes == {"plain": [0o100644, 0o100644], "metadata": [0o100644, 0o100261]}


# ---- one object, changed by both ------------------------------------------------------------


def change_attributes(path: Path) -> None:
    """As an administrator does."""
    path.chmod(0o600)
    os.chown(path, 9, 8)
    os.setxattr(path, "user.new", b"by the other")
    os.removexattr(path, "user.color")
    os.utime(path, ns=(SECOND_NS, EXACT_NS))


def rewrite(path: Path) -> None:
    """As a shell's ``>`` does."""
    programs.write_file(path, b"other content")


def add(path: Path) -> None:
    """As a log does."""
    programs.append(path, b" and more")


def shorten(path: Path) -> None:
    os.truncate(path, 2)


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


CHANGES: dict[str, tuple[Callable[[Path], None], dict[str, object]]] = {
    "attributes": (
        change_attributes,
        {
            "mode": 0o600,
            "uid": 9,
            "gid": 8,
            "mtime_ns": EXACT_NS,
            "content": b"first",
            "xattrs": {"user.new": b"by the other", "user.kept": b"k"},
        },
    ),
    "content": (
        rewrite,
        {
            "mode": 0o640,
            "content": b"other content",
            "xattrs": {"user.color": b"red", "user.kept": b"k"},
        },
    ),
    "more": (
        add,
        {"mode": 0o640, "content": b"first and more"},
    ),
    "length": (shorten, {"mode": 0o640, "content": b"fi"}),
    "name": (
        move,
        {"mode": 0o640, "content": b"first", "xattrs": {"user.color": b"red", "user.kept": b"k"}},
    ),
}


def prepare(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    path.chmod(0o640)
    os.setxattr(path, "user.color", b"red")
    os.setxattr(path, "user.kept", b"k")


# s3fs 1.90 that shortens an object which it has not read yet makes zeros of it, whoever stored it.
@pytest.mark.parametrize("change", [change for change in CHANGES if change != "length"])
def test_what_s3fs_changes_of_ours_is_seen_by_us(
    shared: Shared, by_s3fs: PeerMount, change: str
) -> None:
    directory = f"to-s3fs-{change}"
    shared.mount.do(prepare, shared.mount / directory / "file")
    do, expected = CHANGES[change]
    by_s3fs.do(do, by_s3fs / directory / "file")
    name = "moved" if change == "name" else "file"
    assert is_seen(shared.look(f"{directory}/{name}"), expected)


@pytest.fixture(scope="module")
def after_ours(shared: Shared) -> Iterator[PeerMount]:
    """A mount by s3fs that is made after we have changed what s3fs stored."""
    with peers.s3fs(shared.server, shared.store.bucket, shared.base / "before") as before:
        for change in CHANGES:
            before.do(prepare, before / f"to-us-{change}/file")
    for change, (do, _) in CHANGES.items():
        shared.mount.do(do, shared.mount / f"to-us-{change}/file")
    with peers.s3fs(shared.server, shared.store.bucket, shared.base / "after") as after:
        yield after


@pytest.mark.parametrize("change", CHANGES)
def test_what_we_change_of_s3fs_is_seen_by_it(after_ours: PeerMount, change: str) -> None:
    name = "moved" if change == "name" else "file"
    found = after_ours.do(peers.look, after_ours / f"to-us-{change}" / name)
    assert is_seen(found, CHANGES[change][1])


SERVED = {
    "CacheControl": "max-age=60",
    "ContentDisposition": 'attachment; filename="x.txt"',
    "ContentEncoding": "gzip",
    "ContentLanguage": "de",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_others_put_on_an_object_outlives_what_we_do_to_it(
    shared: Shared, change: str
) -> None:
    key = f"foreign-{change}/file"
    with contextlib.closing(shared.server.sdk()) as sdk:
        sdk.put_object(
            Bucket=shared.store.bucket,
            Key=key,
            Body=b"first",
            ContentType="application/x-chosen",
            Metadata={
                "reviewed-by": "Ann",
                "odd": "50%25",
                "color": "red",
                "md5chksum": "of the old",
            },
            Tagging="project=x&cost=1",
            **SERVED,
        )
        shared.mount.do(CHANGES[change][0], shared.mount / key)

        where = {"Bucket": shared.store.bucket, "Key": key}
        if change == "name":
            where["Key"] = f"foreign-{change}/moved"
        found = sdk.head_object(**where)
        tags = sdk.get_object_tagging(**where)["TagSet"]
        assert found["ContentType"] == "application/x-chosen"
        assert {name: found[name] for name in SERVED} == SERVED
        assert found["Metadata"]["reviewed-by"] == "Ann"
        assert found["Metadata"]["odd"] == "50%25"
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"project": "x", "cost": "1"}
        # A checksum of the content goes with the content.
        is_same = change in ("attributes", "name")
        assert ("md5chksum" in found["Metadata"]) == is_same


# ---- a container of Swift -------------------------------------------------------------------


@dataclass
class SharedSwift:
    """A container that others have filled, and our mount of it."""

    store: LiveStore
    server: SwiftServer
    mount: Mount
    base: Path

    def look(self, name: str) -> dict[str, Any]:
        return self.mount.do(peers.look, self.mount / name)


@pytest.fixture(scope="module")
def swift(
    new_store: Callable[[str], LiveStore], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedSwift]:
    store = new_store("swift")
    server = SwiftServer(store.endpoint)
    base = tmp_path_factory.mktemp("interop-swift")
    local = base / "local"
    local.mkdir()
    fill(local)
    (local / "nothing").mkdir()
    os.utime(local / "nothing", ns=(SECOND_NS, SECOND_NS))
    programs.write_pattern(local / "large", "large", 6 * MIB)
    peers.rclone(
        *(server, base, "copy", str(local), f"peer:{store.bucket}/rclone", "--links"),
        *("--swift-chunk-size", "4M"),
    )
    (local / "link").unlink()  # swiftclient follows links, and this one leads nowhere
    for kind in ("slo", "dlo"):
        local = local.rename(base / f"swift-{kind}")
        words = ("upload", "-S", str(4 * MIB), f"--use-{kind}", store.bucket, local.name)
        peers.swift_command(server, base, *words)
    with contextlib.closing(server.sdk()) as sdk:
        for one in SWIFT_BY_HAND:
            headers = {f"X-Object-Meta-{name}": value for name, value in one.meta.items()}
            sdk.put_object(
                *(store.bucket, one.key, one.body),
                content_type=one.content_type,
                headers=headers,
            )
        sdk.put_object(store.bucket, "middleware/target", b"target")
        link = {"X-Symlink-Target": f"{store.bucket}/middleware/target"}
        sdk.put_object(store.bucket, "middleware/link", b"", headers=link)
    fresh = ("--metadata-ttl", "0", "--negative-ttl", "0")
    with Mount(store.target(), base / "mount", fresh, watchdog_s=280) as mount:
        yield SharedSwift(store, server, mount, base)


MICROSECONDS_NS = EXACT_NS // 1000 * 1000 + 1000
"""As swiftclient rounds it."""
SWIFTCLIENT: dict[str, dict[str, object]] = {
    "file": {"kind": stat.S_IFREG, "mtime_ns": MICROSECONDS_NS, "content": b"content"},
    "setuid": {"mtime_ns": SECOND_NS + 500_000_000},
    "empty": {"kind": stat.S_IFREG, "size": 0},
    "directory": {"kind": stat.S_IFDIR, "names": ["inner"]},
    "nothing": {"kind": stat.S_IFDIR, "mtime_ns": SECOND_NS, "names": []},
}
RCLONE_SWIFT: dict[str, dict[str, object]] = {
    "file": {"kind": stat.S_IFREG, "mtime_ns": EXACT_NS, "content": b"content"},
    "empty": {"kind": stat.S_IFREG, "size": 0},
    "directory": {"kind": stat.S_IFDIR, "names": ["inner"]},
    "link.rclonelink": {"kind": stat.S_IFREG, "content": "target with space/é".encode()},
}


@pytest.mark.parametrize("kind", ["slo", "dlo"])
@pytest.mark.parametrize("name", SWIFTCLIENT)
def test_what_swiftclient_stored_is_shown(swift: SharedSwift, kind: str, name: str) -> None:
    assert is_seen(swift.look(f"swift-{kind}/{name}"), SWIFTCLIENT[name])


@pytest.mark.parametrize("name", RCLONE_SWIFT)
def test_what_rclone_stored_in_swift_is_shown(swift: SharedSwift, name: str) -> None:
    assert is_seen(swift.look(f"rclone/{name}"), RCLONE_SWIFT[name])


@pytest.mark.parametrize("directory", ["swift-slo", "swift-dlo", "rclone"])
def test_what_others_stored_in_segments_is_read(swift: SharedSwift, directory: str) -> None:
    mount = swift.mount
    found = mount.do(os.stat, mount / directory / "large")
    assert found.st_size == 6 * MIB
    assert mount.do(programs.wrong_ranges, mount / directory / "large", "large", 6 * MIB) == []


@pytest.mark.parametrize("one", SWIFT_BY_HAND, ids=lambda one: one.key)
def test_what_tools_of_swift_document_is_shown(swift: SharedSwift, one: ByHand) -> None:
    assert is_seen(swift.look(one.key), one.seen)


def test_a_link_of_swift_itself_shows_what_it_leads_to(swift: SharedSwift) -> None:
    found = swift.look("middleware/link")
    assert is_seen(found, {"kind": stat.S_IFREG, "content": b"target"})


@pytest.fixture(scope="module")
def ours_in_swift(swift: SharedSwift) -> SharedSwift:
    swift.mount.do(fill_ours, swift.mount / "ours")
    return swift


def test_swift_download_writes_what_we_stored(ours_in_swift: SharedSwift) -> None:
    local = ours_in_swift.base / "downloaded"
    local.mkdir()
    words = ("download", ours_in_swift.store.bucket, "--prefix", "ours/", "--remove-prefix")
    peers.swift_command(ours_in_swift.server, local, *words)

    file = peers.look(local / "file")
    assert file["content"] == b"content"
    assert abs(file["mtime_ns"] - EXACT_NS) < 1000  # it counts in floating point
    assert is_seen(peers.look(local / "setuid"), {"mtime_ns": SECOND_NS + 500_000_000})
    assert is_seen(peers.look(local / "directory"), {"kind": stat.S_IFDIR, "names": ["inner"]})
    assert is_seen(peers.look(local / "made"), {"kind": stat.S_IFDIR, "names": []})
    assert programs.wrong_ranges(local / "large", "large", 12 * MIB) == []
    assert (local / "link").read_bytes() == "target with space/é".encode()
    assert {one.name: one.read_bytes() for one in (local / "odd").iterdir()} == {
        name: name.encode() for name in ODD_NAMES
    }


def test_rclone_reads_what_we_stored_in_swift(ours_in_swift: SharedSwift) -> None:
    server, base = ours_in_swift.server, ours_in_swift.base
    path = f"peer:{ours_in_swift.store.bucket}/ours"
    said = {one["Name"]: one for one in json.loads(peers.rclone(server, base, "lsjson", path))}
    assert said["file"]["ModTime"] == "2020-01-02T03:04:05.123456789Z"
    assert said["directory"]["IsDir"]
    assert "made" not in said  # it shows no empty directories of Swift, whoever made them
    local = base / "by-rclone"
    peers.rclone(server, base, "copy", path, str(local))
    assert is_seen(peers.look(local / "file"), {"content": b"content", "mtime_ns": EXACT_NS})
    assert programs.wrong_ranges(local / "large", "large", 12 * MIB) == []


def test_the_sdk_of_swift_sees_what_we_stored(ours_in_swift: SharedSwift) -> None:
    with contextlib.closing(ours_in_swift.server.sdk()) as sdk:
        bucket = ours_in_swift.store.bucket
        file = sdk.head_object(bucket, "ours/file")
        assert file["x-object-meta-mode"] == str(0o100640)
        assert file["x-object-meta-mtime"] == "1577934245.123456789"
        assert sdk.head_object(bucket, "ours/made")["content-type"] == "application/directory"


@pytest.mark.parametrize("change", CHANGES)
def test_what_others_put_on_an_object_of_swift_outlives_what_we_do_to_it(
    swift: SharedSwift, change: str
) -> None:
    key = f"foreign-{change}/file"
    served = {
        "content-type": "application/x-chosen",
        "content-encoding": "gzip",
        "content-disposition": "attachment",
        "cache-control": "max-age=60",
    }
    with contextlib.closing(swift.server.sdk()) as sdk:
        headers = {"X-Object-Meta-Reviewed-By": "Ann", "X-Object-Meta-Color": "red", **served}
        sdk.put_object(swift.store.bucket, key, b"first", headers=headers)

        swift.mount.do(CHANGES[change][0], swift.mount / key)

        key = f"foreign-{change}/moved" if change == "name" else key
        found = sdk.head_object(swift.store.bucket, key)
    assert {name: found[name] for name in served} == served
    assert found["x-object-meta-reviewed-by"] == "Ann"


# ---- one container, two interfaces ----------------------------------------------------------


@pytest.mark.soak
def test_s3fs_in_swifts_own_s3_and_we_in_swift_see_the_same(swift: SharedSwift) -> None:
    s3, bucket, mount = swift.server.s3(), swift.store.bucket, swift.mount
    with peers.s3fs(s3, bucket, swift.base / "s3api-writer") as writer:
        writer.do(os.mkdir, writer / "s3fs")
        writer.do(fill_more, writer / "s3fs")
    mount.do(fill_ours, mount / "for-s3fs")
    with peers.s3fs(s3, bucket, swift.base / "s3api-reader") as reader:
        for name, expected in S3FS.items():
            assert is_seen(swift.look(f"s3fs/{name}"), expected)
            # Two encodings meet in the attributes: Swift's, and s3fs's own.
            found = reader.do(peers.look, reader / "for-s3fs" / name)
            assert is_seen(found, {k: v for k, v in expected.items() if k != "xattrs"})


# ---- what the README says of all this -------------------------------------------------------


@pytest.mark.parametrize("tool", sorted({one.tool for one in (*S3_BY_HAND, *SWIFT_BY_HAND)}))
def test_the_readme_tells_of_every_tool_whose_objects_are_made_by_hand(tool: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Sharing a bucket with other tools")[2].partition("\n## ")[0]
    assert f"*{tool.partition('-')[0]}*" in section
