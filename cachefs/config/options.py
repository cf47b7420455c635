"""Every mount option, declared once.

The command line, ``-o``, the environment, the configuration file, ``--help`` and the reference table all come
from here. An option is declared when something acts on it, not before.
"""

from enum import StrEnum
from typing import Final

from cachefs.config import aliases
from cachefs.config.addresses import parse_endpoint
from cachefs.config.option import Group, Option
from cachefs.config.quantities import (
    one_of,
    parse_count,
    parse_duration,
    parse_group,
    parse_lease,
    parse_lifetime,
    parse_mode,
    parse_paths,
    parse_patience,
    parse_port,
    parse_size,
    parse_space,
    parse_switch,
    parse_text,
    parse_user,
)
from cachefs.core.eviction import Policy
from cachefs.core.source import StoreKind
from cachefs.core.types import AttributeMode, ConflictPolicy, FetchMode, UploadMode


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


class Checksums(StrEnum):
    """When S3 requests and answers carry checksums (botocore's words)."""

    WHEN_REQUIRED = "when_required"
    WHEN_SUPPORTED = "when_supported"


class Acl(StrEnum):
    """S3's canned access control lists."""

    PRIVATE = "private"
    PUBLIC_READ = "public-read"
    PUBLIC_READ_WRITE = "public-read-write"
    AUTHENTICATED_READ = "authenticated-read"
    AWS_EXEC_READ = "aws-exec-read"
    BUCKET_OWNER_READ = "bucket-owner-read"
    BUCKET_OWNER_FULL_CONTROL = "bucket-owner-full-control"
    LOG_DELIVERY_WRITE = "log-delivery-write"


_S3: Final = frozenset({StoreKind.S3})
_S3_AND_SWIFT: Final = frozenset({StoreKind.S3, StoreKind.SWIFT})

CACHE_DIR: Final = Option(
    "cache-dir",
    parse_text,
    "Directory that holds the cache; one mount at a time uses it.",
    Group.CACHE,
    example="/var/cache/cachefs/photos",
    default_help="$XDG_CACHE_HOME/cachefs/ID; /var/cache/cachefs/ID as root",
    metavar="DIR",
    aliases=(aliases.same("use-cache"), aliases.same("cache")),
)
CACHE_SIZE: Final = Option(
    "cache-size",
    parse_size,
    "Most bytes that the cache may hold.",
    Group.CACHE,
    example="50GiB",
    default="10GiB",
    metavar="SIZE",
    aliases=(
        aliases.in_units("max-cache-size", "MiB"),
        aliases.in_units("vfs-cache-max-size", "KiB"),
    ),
)
MIN_FREE: Final = Option(
    "min-free",
    parse_space,
    "Room to leave free on the cache's disk: a size, or a percentage of the disk.",
    Group.CACHE,
    example="5%",
    default="5%",
    metavar="SIZE|PERCENT",
    aliases=(
        aliases.in_units("vfs-cache-min-free-space", "KiB"),
        aliases.in_units("ensure-diskfree", "MiB"),
        aliases.percentage("free-space-ratio"),
    ),
)
POLICY: Final = Option(
    "policy",
    one_of(Policy),
    "Which files leave a full cache first: those that save the least waiting time for the room they take (gdsf), the "
    "longest unused, least often opened, largest or oldest, or by S3-FIFO.",
    Group.CACHE,
    example="gdsf",
    default="gdsf",
    metavar="gdsf|lru|lfu|size|age|s3fifo",
)
UPLOAD: Final = Option(
    "upload",
    one_of(UploadMode),
    "close: close() returns when the object is stored. background: when the bytes are safe in the cache.",
    Group.WRITING,
    example="close",
    default="close",
    metavar="close|background",
)
UPLOAD_DELAY: Final = Option(
    "upload-delay",
    parse_duration,
    "With --upload background: how long after the last close the upload begins.",
    Group.WRITING,
    example="5s",
    default="5s",
    metavar="TIME",
    aliases=(aliases.write_back("vfs-write-back"), aliases.write_back("write-back")),
)
CONFLICT: Final = Option(
    "conflict",
    one_of(ConflictPolicy),
    "What happens when the object changed behind a write: keep both, let one win, or fail the upload.",
    Group.WRITING,
    example="keep-both",
    default="keep-both",
    metavar="keep-both|ours|theirs|fail",
)
READ_ONLY: Final = Option(
    "read-only",
    parse_switch,
    "Refuse every write.",
    Group.WRITING,
    example="true",
    default="false",
    is_switch=True,
    aliases=(aliases.fixed("ro", "true"), aliases.fixed("rw", "false")),
)
METADATA_TTL: Final = Option(
    "metadata-ttl",
    parse_lifetime,
    "How long attributes and listings are trusted before the store is asked again; 0: ask on every open.",
    Group.READING,
    example="60s",
    default="60s",
    metavar="TIME",
    aliases=(aliases.same("dir-cache-time"), aliases.same("stat-cache-expire")),
)
NEGATIVE_TTL: Final = Option(
    "negative-ttl",
    parse_lifetime,
    "How long the absence of a name is remembered.",
    Group.READING,
    example="5s",
    default="5s",
    metavar="TIME",
    aliases=(aliases.same("negative-metadata-ttl"),),
)
ATTRIBUTES: Final = Option(
    "attributes",
    one_of(AttributeMode),
    "Where modes, owners and times come from: each object's metadata (exact), the listing alone, or whichever "
    "a sample of the directory calls for (auto).",
    Group.READING,
    example="auto",
    default="auto",
    metavar="auto|exact|listing",
)
FETCH: Final = Option(
    "fetch",
    one_of(FetchMode),
    "How much an open fetches: what lies ahead of the reader, the whole object, or only what is asked for.",
    Group.READING,
    example="ahead",
    default="ahead",
    metavar="ahead|whole|demand",
)
OFFLINE_READS: Final = Option(
    "offline-reads",
    parse_switch,
    "Open what is cached while the store cannot be asked whether it is the newest version; off: fail instead.",
    Group.READING,
    example="on",
    default="on",
    metavar="on|off",
)
PART_SIZE: Final = Option(
    "part-size",
    parse_size,
    "Bytes moved by one request when a large object is fetched or stored in parts.",
    Group.REMOTE,
    example="8MiB",
    default="8MiB",
    metavar="SIZE",
    aliases=(
        aliases.in_units("multipart-size", "MiB"),
        aliases.in_units("s3-chunk-size", "KiB"),
        aliases.same("write-part-size"),
    ),
)
TRANSFERS: Final = Option(
    "transfers",
    parse_count,
    "Requests under way at one time, at most.",
    Group.REMOTE,
    example="16",
    default="16",
    metavar="N",
    aliases=(aliases.same("parallel-count"), aliases.same("multireq-max")),
)
TIMEOUT: Final = Option(
    "timeout",
    parse_patience,
    "Deadline of any operation: how long it waits for the store, all tries and requests together.",
    Group.REMOTE,
    example="60s",
    default="60s",
    metavar="TIME",
)
ALLOW_OTHER: Final = Option(
    "allow-other",
    parse_switch,
    "Let other users in (their permissions are checked).",
    Group.ACCESS,
    example="true",
    default="false",
    is_switch=True,
)
UID: Final = Option(
    "uid",
    parse_user,
    "Owner of what has no owner in its metadata.",
    Group.ACCESS,
    example="1000",
    default_help="who mounts",
    metavar="USER",
)
GID: Final = Option(
    "gid",
    parse_group,
    "Group of what has no group in its metadata.",
    Group.ACCESS,
    example="1000",
    default_help="the group of who mounts",
    metavar="GROUP",
)
UMASK: Final = Option(
    "umask",
    parse_mode,
    "Permission bits to take from --file-mode and --dir-mode.",
    Group.ACCESS,
    example="022",
    default="000",
    metavar="OCTAL",
    aliases=(aliases.same("mp-umask"),),
)
FILE_MODE: Final = Option(
    "file-mode",
    parse_mode,
    "Permissions of files that have none in their metadata.",
    Group.ACCESS,
    example="0644",
    default="0644",
    metavar="OCTAL",
    aliases=(aliases.same("file-perms"),),
)
DIR_MODE: Final = Option(
    "dir-mode",
    parse_mode,
    "Permissions of directories that have none in their metadata.",
    Group.ACCESS,
    example="0755",
    default="0755",
    metavar="OCTAL",
    aliases=(aliases.same("dir-perms"),),
)
ENDPOINT_URL: Final = Option(
    "endpoint-url",
    parse_endpoint,
    "Address of an S3 server other than Amazon's.",
    Group.REMOTE,
    example="http://127.0.0.1:9000",
    default_help="$AWS_ENDPOINT_URL_S3, $AWS_ENDPOINT_URL, else Amazon's",
    metavar="URL",
    kinds=_S3,
    of_remote=True,
    aliases=(aliases.same("url"), aliases.endpoint("endpoint"), aliases.same("s3-endpoint")),
)
REGION: Final = Option(
    "region",
    parse_text,
    "Region of the bucket or of the Swift service.",
    Group.REMOTE,
    example="eu-central-1",
    default_help="$AWS_REGION, $AWS_DEFAULT_REGION, the profile's; $OS_REGION_NAME",
    metavar="NAME",
    kinds=_S3_AND_SWIFT,
    of_remote=True,
    aliases=(aliases.same("s3-region"),),
)
PROFILE: Final = Option(
    "profile",
    parse_text,
    "Profile of ~/.aws to take credentials from.",
    Group.REMOTE,
    example="default",
    default_help="$AWS_PROFILE",
    metavar="NAME",
    kinds=_S3,
    of_remote=True,
)
NO_SIGN_REQUEST: Final = Option(
    "no-sign-request",
    parse_switch,
    "Send no credentials: for public buckets.",
    Group.REMOTE,
    example="true",
    default="false",
    is_switch=True,
    kinds=_S3,
    of_remote=True,
    aliases=(aliases.switch("public-bucket"),),
)
FORCE_PATH_STYLE: Final = Option(
    "force-path-style",
    parse_switch,
    "Put the bucket into the path, not into the host name.",
    Group.REMOTE,
    example="true",
    default="false",
    is_switch=True,
    kinds=_S3,
    of_remote=True,
    aliases=(aliases.switch("use-path-request-style"), aliases.switch("s3-force-path-style")),
)
REQUEST_PAYER: Final = Option(
    "request-payer",
    parse_switch,
    "Agree to pay for requests to requester-pays buckets.",
    Group.REMOTE,
    example="true",
    default="false",
    is_switch=True,
    kinds=_S3,
    of_remote=True,
    aliases=(aliases.switch("requester-pays"), aliases.switch("s3-requester-pays")),
)
STORAGE_CLASS: Final = Option(
    "storage-class",
    parse_text,
    "Storage class of new objects.",
    Group.REMOTE,
    example="STANDARD_IA",
    default_help="the bucket's",
    metavar="CLASS",
    kinds=_S3,
    of_remote=True,
    aliases=(aliases.same("s3-storage-class"),),
)
SSE: Final = Option(
    "sse",
    parse_text,
    "Encryption that the server applies to new objects: AES256, aws:kms or aws:kms:dsse.",
    Group.REMOTE,
    example="AES256",
    default_help="the bucket's",
    metavar="KIND",
    kinds=_S3,
    of_remote=True,
    aliases=(aliases.use_sse("use-sse"), aliases.same("s3-server-side-encryption")),
)
SSE_KMS_KEY_ID: Final = Option(
    "sse-kms-key-id",
    parse_text,
    "The KMS key to encrypt with; implies --sse aws:kms.",
    Group.REMOTE,
    example="alias/photos",
    default_help="the account's",
    metavar="KEY",
    kinds=_S3,
    of_remote=True,
    aliases=(aliases.same("s3-sse-kms-key-id"),),
)
ACL: Final = Option(
    "acl",
    one_of(Acl),
    "Canned access control list of new objects.",
    Group.REMOTE,
    example="private",
    default_help="the bucket's",
    metavar="ACL",
    kinds=_S3,
    of_remote=True,
    aliases=(aliases.same("default-acl"), aliases.same("s3-acl")),
)
CHECKSUMS: Final = Option(
    "checksums",
    one_of(Checksums),
    "When requests carry checksums beyond what S3 demands; some servers know none.",
    Group.REMOTE,
    example="when_required",
    default="when_required",
    metavar="when_required|when_supported",
    kinds=_S3,
    of_remote=True,
)
CLOUD: Final = Option(
    "cloud",
    parse_text,
    "Entry of clouds.yaml to reach Swift with.",
    Group.REMOTE,
    example="mycloud",
    default_help="$OS_CLOUD",
    metavar="NAME",
    kinds=frozenset({StoreKind.SWIFT}),
    of_remote=True,
    aliases=(aliases.same("os-cloud"),),
)
LOG_FILE: Final = Option(
    "log-file",
    parse_text,
    "Where the log goes.",
    Group.RUNNING,
    example="/var/log/cachefs.log",
    default_help="CACHE_DIR/cachefs.log; standard error in the foreground",
    metavar="FILE",
)
LOG_FORMAT: Final = Option(
    "log-format",
    one_of(LogFormat),
    "Lines of text, or one JSON object a line.",
    Group.RUNNING,
    example="json",
    default="text",
    metavar="text|json",
)
TRACE: Final = Option(
    "trace",
    parse_text,
    "File to which a line is appended for every open, for cachefs simulate.",
    Group.RUNNING,
    example="/var/log/cachefs-trace.csv",
    metavar="FILE",
)
AUDIT: Final = Option(
    "audit",
    parse_text,
    "File to which each fetch, upload, eviction, conflict and delete is appended, with its cause, as JSON lines.",
    Group.RUNNING,
    example="/var/log/cachefs-audit.jsonl",
    metavar="FILE",
)
FOREGROUND: Final = Option(
    "foreground",
    parse_switch,
    "Stay in the foreground, and log there.",
    Group.RUNNING,
    example="true",
    default="false",
    is_switch=True,
    short="f",
    once_only=True,
    aliases=(aliases.fixed("daemon", "false"),),
)
POOL: Final = Option(
    "pool",
    parse_text,
    "Give programs local files for objects below HOMEDIR, by the s3pool protocol, from the cache of the mount.",
    Group.POOL,
    example="/var/lib/pool",
    metavar="HOMEDIR",
)
POOL_PORT: Final = Option(
    "pool-port",
    parse_port,
    "TCP port of this machine at which the pool answers, beside HOMEDIR/pool.sock.",
    Group.POOL,
    example="9999",
    metavar="PORT",
)
POOL_LEASE: Final = Option(
    "pool-lease",
    parse_lease,
    "How long a path that the pool has told stays good.",
    Group.POOL,
    example="5m",
    default="5m",
    metavar="TIME",
)
POOL_PUSH_FROM: Final = Option(
    "pool-push-from",
    parse_paths,
    "Directories from which files may be pushed, beside HOMEDIR/tmp.",
    Group.POOL,
    example="/srv/outgoing",
    metavar="DIR:…",
)
KERNEL_OPTIONS: Final = ("noexec", "sync", "dirsync", "noatime", "nodiratime")
"""Options of mount(8) that the kernel acts on; handed to it with the mount."""


MOUNT_OPTIONS: Final[tuple[Option[object], ...]] = (
    CACHE_DIR,
    CACHE_SIZE,
    MIN_FREE,
    POLICY,
    UPLOAD,
    UPLOAD_DELAY,
    CONFLICT,
    READ_ONLY,
    METADATA_TTL,
    NEGATIVE_TTL,
    ATTRIBUTES,
    FETCH,
    OFFLINE_READS,
    ALLOW_OTHER,
    UID,
    GID,
    UMASK,
    FILE_MODE,
    DIR_MODE,
    PART_SIZE,
    TRANSFERS,
    TIMEOUT,
    ENDPOINT_URL,
    REGION,
    PROFILE,
    NO_SIGN_REQUEST,
    FORCE_PATH_STYLE,
    REQUEST_PAYER,
    STORAGE_CLASS,
    SSE,
    SSE_KMS_KEY_ID,
    ACL,
    CHECKSUMS,
    CLOUD,
    LOG_FILE,
    LOG_FORMAT,
    TRACE,
    AUDIT,
    FOREGROUND,
    POOL,
    POOL_PORT,
    POOL_LEASE,
    POOL_PUSH_FROM,
)
"""All of them, in the order in which they are shown."""

BY_NAME: Final = {option.name: option for option in MOUNT_OPTIONS}
