"""``cachefs sync configure``: asks for the two buckets and the keys that open them, and keeps them.

Secret keys are typed without echo, or come from a variable or standard input. They are never an option, and never shown.
"""

import getpass
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from cachefs.cli.command import Call
from cachefs.cli.failures import EXIT_DONE
from cachefs.cli.output import printable, say, say_json
from cachefs.cli.parser import Parser
from cachefs.cli.sync_sides import settings_path
from cachefs.config import mount_config, read_config_file
from cachefs.config.sync import Pair, Side, read_pair, write_pair
from cachefs.core.errors import UsageError

_SECRET: Final = "CACHEFS_SYNC_SECRET"
_OUT_SECRET: Final = "CACHEFS_SYNC_OUT_SECRET"
_MORE: Final = {
    "region": "Region",
    "endpoint_url": "Endpoint URL (Swift: where version 1 signs in)",
    "profile": "Profile of ~/.aws",
    "cloud": "Entry of clouds.yaml",
}
_ASKED: Final = ("region", "endpoint_url")
_OWN: Final = (
    "in_bucket", "out_bucket", "access_key_id", "out_access_key_id", "secret_stdin",
    *(f"out_{name}" for name in _MORE),
)  # fmt: skip
"""What no other command than ``configure`` takes."""
_CLEAR: Final = "-"


def declare(parser: Parser) -> None:
    """Declare the options of ``configure``."""
    group = parser.add_argument_group(
        "options: configure",
        "--region, --endpoint-url, --profile and --cloud are kept, too; with --out- in front they are those of the\n"
        f"second bucket alone. The secret key comes from the terminal, from {_SECRET} (and\n"
        f"{_OUT_SECRET}), or from standard input; no option takes it.",
    )
    group.add_argument("--in-bucket", metavar="SOURCE", help="the bucket to copy from")
    group.add_argument("--out-bucket", metavar="SOURCE", help="the bucket to copy to")
    group.add_argument("--access-key-id", metavar="ID", help="the access key (Swift: the user)")
    group.add_argument(
        "--out-access-key-id", metavar="ID", help="of the second bucket, if another"
    )
    for name in _MORE:
        group.add_argument(f"--out-{name.replace('_', '-')}", metavar="VALUE", help="likewise")
    group.add_argument(
        "--secret-stdin",
        action="store_true",
        help="read the secret key from the first line of standard input, another for the second bucket from the next",
    )


def run(call: Call) -> int:
    """Ask, keep the answers, and return the exit code."""
    if named := call.arguments.source:
        raise UsageError(
            f"configure does not take {named} so — write --in-bucket SOURCE --out-bucket SOURCE"
        )
    path = settings_path(call)
    before = read_pair(path)
    pair = _told(call, before) if _is_told(call) or not sys.stdin.isatty() else _asked(before)
    for side in (pair.source, pair.target):
        _require_source(call, side)
    write_pair(path, pair)
    if call.as_json:
        say_json({"settings": str(path), "in": _shown(pair.source), "out": _shown(pair.target)})
    elif not call.quiet:
        say(f"{pair.source.bucket} to {pair.target.bucket}: kept in {path}")
    return EXIT_DONE


def _shown(side: Side) -> dict[str, object]:
    return {"bucket": side.bucket, "access_key_id": side.access, **side.more}


def require_none(call: Call) -> None:
    """Raise ``UsageError`` for an option by which *call* means to say what only ``configure`` is told."""
    for name in _given(call):
        raise UsageError(
            f"--{name.replace('_', '-')} is for configure — name the buckets behind: "
            f"cachefs sync {call.arguments.action} FROM TO"
        )


def _given(call: Call) -> list[str]:
    return [name for name in _OWN if getattr(call.arguments, name)]


def _is_told(call: Call) -> bool:
    names = {setting.name.replace("-", "_") for setting in call.given.settings}
    return bool(_given(call) or names & set(_MORE))


def _require_source(call: Call, side: Side) -> None:
    """Raise ``UsageError`` unless *side* names a bucket."""
    file = read_config_file(call.environment)
    source = mount_config(side.bucket, None, (), file=file, environment=call.environment).source
    if not source.bucket:
        raise UsageError(f"{side.bucket} is every bucket — name one, for example s3://photos")


# ---- from options ---------------------------------------------------------------------------


def _told(call: Call, before: Pair | None) -> Pair:
    arguments = call.arguments
    lines = _secret_lines(call)
    given = {
        setting.name.replace("-", "_"): setting.value
        for setting in call.given.settings
        if setting.name.replace("-", "_") in _MORE
    }
    source = _side(
        before.source if before else None,
        _named(arguments.in_bucket, "--in-bucket", before.source if before else None),
        arguments.access_key_id,
        _line(lines, 0) or call.environment.get(_SECRET),
        given,
    )
    out = {name: value for name in _MORE if (value := getattr(arguments, f"out_{name}", None))}
    target = _side(
        before.target if before and not arguments.access_key_id else None,
        _named(arguments.out_bucket, "--out-bucket", before.target if before else None),
        arguments.out_access_key_id or arguments.access_key_id,
        _line(lines, 1)
        or call.environment.get(_OUT_SECRET)
        or (None if arguments.out_access_key_id else _line(lines, 0))
        or (None if arguments.out_access_key_id else call.environment.get(_SECRET)),
        {**given, **out},
    )
    return Pair(_complete(source), _complete(target))


def _named(given: str | None, option: str, before: Side | None) -> str:
    if given:
        return _with_scheme(given)
    if before is not None:
        return before.bucket
    raise UsageError(f"{option} is missing — for example {option} s3://photos")


def _side(
    before: Side | None,
    bucket: str,
    access: str | None,
    secret: str | None,
    more: Mapping[str, str],
) -> Side:
    if before is None:
        return Side(bucket, access, secret, more)
    is_same_key = access in (None, before.access)
    return Side(
        bucket,
        access or before.access,
        secret or (before.secret if is_same_key else None),
        {**before.more, **more},
    )


def _complete(side: Side) -> Side:
    """Return *side*. Raise ``UsageError`` unless it has both keys, or none."""
    if bool(side.access) == bool(side.secret):
        return side
    what, how = (
        "secret key",
        f"set {_SECRET}, or pass --secret-stdin and write it to standard input",
    )
    if side.secret:
        what, how = "access key", "pass --access-key-id"
    raise UsageError(f"there is no {what} for {side.bucket} — {how}")


def _secret_lines(call: Call) -> list[str]:
    if not call.arguments.secret_stdin:
        return []
    return [line.strip() for line in sys.stdin.read(4096).splitlines()]


def _line(lines: list[str], number: int) -> str | None:
    return lines[number] or None if number < len(lines) else None


def _with_scheme(bucket: str) -> str:
    """Return *bucket* as a source: a name alone is one on S3."""
    return bucket if ":" in bucket else f"s3://{bucket}"


# ---- from the terminal ----------------------------------------------------------------------


def _asked(before: Pair | None) -> Pair:
    print(f"An empty answer keeps what is in brackets, {_CLEAR} leaves it out.", file=sys.stderr)
    source_bucket = _bucket("Bucket to copy from", before.source if before else None)
    target_bucket = _bucket("Bucket to copy to", before.target if before else None)
    source = _keys(replace(before.source if before else Side(""), bucket=source_bucket))
    was_same = before is None or _same_keys(before)
    if _yes(f"Is {target_bucket} reached by the same keys, region and endpoint?", is_yes=was_same):
        return Pair(source, replace(source, bucket=target_bucket))
    return Pair(
        source, _keys(replace(before.target if before else Side(""), bucket=target_bucket))
    )


def _same_keys(pair: Pair) -> bool:
    return replace(pair.source, bucket="") == replace(pair.target, bucket="")


def _bucket(asks: str, before: Side | None) -> str:
    while not (name := _answer(asks, before.bucket if before else None)):
        print("A bucket is needed: s3://NAME, swift://NAME, file:///DIRECTORY.", file=sys.stderr)
    return _with_scheme(name)


def _keys(side: Side) -> Side:
    masked = f"****{side.access[-4:]}" if side.access else None
    access = _answer(
        "Access key (empty: as the SDKs find it)", masked, lambda _: side.access or ""
    )
    secret = None
    if access:
        kept = side.secret if access == side.access else None
        while not secret:
            hint = " [kept]" if kept else ""
            secret = getpass.getpass(f"Secret key, not shown{hint}: ", sys.stderr).strip() or kept
    more = {**side.more, **{name: _answer(_MORE[name], side.more.get(name)) for name in _ASKED}}
    return Side(
        side.bucket, access or None, secret, {key: text for key, text in more.items() if text}
    )


def _answer(
    asks: str, before: str | None, kept: Callable[[str], str] = lambda before: before
) -> str:
    """Ask a question and return the answer; *kept* makes one of what is shown in brackets."""
    hint = f" [{printable(before)}]" if before else ""
    print(f"{asks}{hint}: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise UsageError("nothing was kept, for the answers ended too early")
    text = line.strip()
    if text == _CLEAR:
        return ""
    return text or (kept(before) if before else "")


def _yes(asks: str, *, is_yes: bool) -> bool:
    answer = _answer(f"{asks} {'[Y/n]' if is_yes else '[y/N]'}", None)
    return is_yes if not answer else answer.lower() in {"y", "yes"}
