"""Takes secrets out of text before it is written anywhere."""

import re
from collections.abc import Callable, Iterable
from typing import Final

_HIDDEN: Final = "[hidden]"

_NAMES = (
    r"(?:x-)?(?:amz-security-token|auth-token|auth-key|storage-token|subject-token|service-token|storage-pass)"
    r"|proxy-authorization|authorization"
    r"|(?:aws[_-]?)?(?:secret[_-]?access[_-]?key|access[_-]?key[_-]?id|session[_-]?token|secret[_-]?key|security[_-]?token)"
    r"|x-amz-(?:signature|credential)|temp_url_(?:sig|key)|awsaccesskeyid"
    r"|(?:os_|st_)?(?:password|passwd|application_credential_secret|auth_token)|st_key|secret|signature|credential"
)
_Replacement = tuple[re.Pattern[str], str]
_RULES: Final[tuple[_Replacement, ...]] = (
    # An Authorization header holds several words, so it goes to the end of its quotes or of the line.
    (
        re.compile(
            r"""(?P<name>authorization['"]?\s*[:=]\s*b?)(?P<quote>['"])(?:(?!(?P=quote)).)*(?P=quote)""",
            re.IGNORECASE,
        ),
        rf"\g<name>'{_HIDDEN}'",
    ),
    (
        re.compile(r"""(?P<name>authorization\s*[:=]\s*)(?!b?['"])[^\r\n]+""", re.IGNORECASE),
        rf"\g<name>{_HIDDEN}",
    ),
    (
        re.compile(
            rf"""(?P<name>(?<![a-z0-9])(?:{_NAMES})['"]?\s*[:=]\s*b?)(?P<quote>['"])(?:(?!(?P=quote)).)*(?P=quote)""",
            re.IGNORECASE,
        ),
        rf"\g<name>'{_HIDDEN}'",
    ),
    (
        re.compile(
            rf"""(?P<name>(?<![a-z0-9])(?:{_NAMES})\s*[:=]\s*)(?!b?['"]|\[hidden\])[^\s&,;'"}})]+""",
            re.IGNORECASE,
        ),
        rf"\g<name>{_HIDDEN}",
    ),
    (re.compile(r"//[^/\s@'\"]+@"), f"//{_HIDDEN}@"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), _HIDDEN),
)


class Redactor:
    """Hides known secrets, wherever they stand, and whatever is written the way secrets are written."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted(filter(None, secrets), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        """Return *text* without its secrets."""
        if self._known is not None:
            text = self._known.sub(_HIDDEN, text)
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        return text


Redact = Callable[[str], str]
