"""What was given: on the command line, in ``-o``, in the environment. Each becomes settings of known options."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cachefs.config.aliases import Alias
from cachefs.config.environment import Environment
from cachefs.config.option import Group, Option
from cachefs.config.options import BY_NAME, KERNEL_OPTIONS, MOUNT_OPTIONS
from cachefs.config.settings import Origin, Setting, suggestion
from cachefs.core.errors import UsageError

_BY_ALIAS: Final[dict[str, tuple[Option[object], Alias]]] = {
    alias.name: (option, alias) for option in MOUNT_OPTIONS for alias in option.aliases
}
KNOWN: Final = (*BY_NAME, *_BY_ALIAS)
"""Every name that an option answers to."""

_FOR_MOUNT_8: Final = frozenset(
    (
        "_netdev",
        "_rnetdev",
        "nofail",
        "noauto",
        "auto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "defaults",
        "comment",
        "helper",
        "uhelper",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "async",
        "atime",
        "diratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "loud",
        "silent",
        "default_permissions",
    )
)
"""Understood by mount(8) or fulfilled anyway: FUSE mounts are nosuid and nodev, and permissions are checked."""

_SECRET: Final = re.compile(
    r"secret|passw|token|credential|access-key|^(api-)?key$|auth-key|^ak$|^sk$", re.IGNORECASE
)
CREDENTIALS: Final = "credentials are taken from where the SDKs look for them (AWS_* and OS_* variables, ~/.aws, clouds.yaml)"


@dataclass(frozen=True, slots=True)
class Given:
    """What one command line holds, or one ``-o`` list."""

    settings: tuple[Setting, ...] = ()
    kernel_options: tuple[str, ...] = ()
    """Left for the kernel: ``noexec`` and the like."""

    def plus(self, more: "Given") -> "Given":
        """Return both, *more* after this one, so that it wins."""
        return Given(self.settings + more.settings, self.kernel_options + more.kernel_options)


def dashed(name: str) -> str:
    """Return the one spelling of *name*: with dashes."""
    return name.strip().replace("_", "-")


def is_secret(name: str) -> bool:
    """Whether something called *name* would hold a secret."""
    return bool(_SECRET.search(dashed(name))) and dashed(name) not in KNOWN


def read_option(
    name: str, value: str | None, origin: Origin, spelling: str
) -> tuple[Setting, ...]:
    """Return what option (or alias) *name* with *value* sets. None: it stands alone.

    Raises UsageError if there is no such option, or if it cannot stand alone.
    """
    option, alias = _look_up(name, spelling)
    stands_alone = (
        option.is_switch if alias is None or alias.is_switch is None else alias.is_switch
    )
    if value is None and not stands_alone:
        shown = spelling.format(option.example)
        raise UsageError(
            f"{spelling.partition('{')[0].rstrip(' =')} needs a value — for example {shown}"
        )
    setting = Setting(option.name, "true" if value is None else value, origin, spelling)
    if alias is None:
        return (setting,)
    try:
        translated = alias.translate(setting.value)
    except ValueError as error:
        raise setting.wrong(str(error), "1" if stands_alone else option.example) from None
    return tuple(
        Setting(target or option.name, text, origin, spelling) for target, text in translated
    )


def read_arguments(arguments: Sequence[str], groups: Container[Group]) -> tuple[Given, list[str]]:
    """Return the mount options of *groups* among *arguments*, and what is left.

    Left are positional arguments, short options other than ``-o``, long options that are no mount option, and
    everything from ``--`` on.
    """
    given = Given()
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif word.startswith("-o"):
            given = given.plus(read_dash_o(word[2:] or _next(words, "-o", "-o cache_size=50GiB")))
        elif word.startswith("--") and _group_of(name[2:]) in groups:
            given = given.plus(_read_long(name, value if equals else None, words))
        else:
            rest.append(word)
    return given, rest


def read_dash_o(text: str) -> Given:
    """Return what the option list *text* of ``-o`` sets."""
    settings: list[Setting] = []
    kernel_options: list[str] = []
    for word in filter(None, split_dash_o(text)):
        name, equals, value = word.partition("=")
        bare = name.strip().removeprefix("--")
        if _is_for_mount_8(bare):
            continue
        if bare in KERNEL_OPTIONS and not equals:
            kernel_options.append(bare)
            continue
        spelling = f"-o {_visible(bare)}={{}}"
        settings += read_option(bare, value if equals else None, Origin.COMMAND, spelling)
    return Given(tuple(settings), tuple(kernel_options))


def split_dash_o(text: str) -> Iterator[str]:
    r"""Yield the words of an ``-o`` list. A backslash takes the character after it as it is: ``\,``."""
    word = ""
    characters = iter(text)
    for character in characters:
        if character == ",":
            yield word
            word = ""
        elif character == "\\":
            word += next(characters, "\\")
        else:
            word += character
    yield word


def read_environment(environment: Environment) -> tuple[Setting, ...]:
    """Return what the ``CACHEFS_…`` variables set."""
    return tuple(
        Setting(option.name, value, Origin.ENVIRONMENT, f"{option.variable}={{}}")
        for option in MOUNT_OPTIONS
        if not option.once_only and (value := environment.get(option.variable))
    )


def unknown_option(name: str, spelling: str) -> UsageError:
    """Return the error for an option that there is not."""
    if is_secret(name):
        return UsageError(f"{spelling} is refused: {CREDENTIALS}, never from the command line")
    prefix = "-o " if spelling.startswith("-o") else "--"
    hint = suggestion(dashed(name), KNOWN, prefix=prefix)
    return UsageError(f"unknown option {spelling}{hint or ' — see cachefs mount --help'}")


def _read_long(name: str, value: str | None, words: Iterator[str]) -> Given:
    spelling = f"{name} {{}}"
    if value is None and not _stands_alone(*_look_up(name[2:], name)):
        option, _ = _look_up(name[2:], name)
        value = _next(words, name, spelling.format(option.example))
    return Given(read_option(name[2:], value, Origin.COMMAND, spelling))


def _group_of(name: str) -> Group | None:
    return _look_up(name, name)[0].group if dashed(name) in KNOWN else None


def _next(words: Iterator[str], name: str, example: str) -> str:
    value = next(words, None)
    if value is None:
        raise UsageError(f"{name} needs a value — for example {example}")
    return value


def _stands_alone(option: Option[object], alias: Alias | None) -> bool:
    return option.is_switch if alias is None or alias.is_switch is None else alias.is_switch


def _look_up(name: str, spelling: str) -> tuple[Option[object], Alias | None]:
    wanted = dashed(name)
    if wanted in BY_NAME:
        return BY_NAME[wanted], None
    if wanted in _BY_ALIAS:
        return _BY_ALIAS[wanted]
    raise unknown_option(name, spelling.partition("{")[0].rstrip(" ="))


def _is_for_mount_8(name: str) -> bool:
    return name in _FOR_MOUNT_8 or name.startswith(("x-", "X-"))


def _visible(name: str) -> str:
    """Return *name* fit for a line of text and for ``str.format``."""
    return "".join(
        character if character.isprintable() else "?"
        for character in name
        if character not in "{}"
    )
