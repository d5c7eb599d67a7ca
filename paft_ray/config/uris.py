"""Passwords in URIs: finding and hiding them, for everything that is read, shown or logged.

A password may hold a slash or stand alone ("https://token@host"), and it may be in the query. Names
without a password stay: users of databases ("postgresql://team@host"), git's, anonymous ones.
"""

import re
from urllib.parse import parse_qsl

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://(\S+)")
"""With a bound on the scheme, without which long words would take quadratic time."""
_LOCAL = ("sqlite", "file")
"""Beginnings of schemes that name a file, and nobody who reads it."""
_NAMED_USERS = ("postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle", "ssh", "git")
_PASSWORD = re.compile(r"[^/@:?#\s]*:(?!\d{1,5}(?:/[^@\s]*)?[?#])\S*@")
"""Up to the last @, but where a port and a path come before a query."""
_USER = re.compile(r"([^/@:?#\s]+)@")
_SECRET_NAME = re.compile(
    r"(?:.*[-_.])?(?:auth|oauth|bearer|jwt|key|pass|pwd|pw|pat|sas|sig|credentials?)|code"
    r"|.*(?:passw(?:or)?d|passphrase|secret|token|api_?key|access_?key|signature)",
    re.IGNORECASE,
)
_HIDDEN = "***"


def has_password(text: str) -> bool:
    """Return whether a URI in the text carries a password."""
    return any(_without(uri) != uri[0] for uri in _URI.finditer(text))


def without_password(text: str) -> str:
    """A text in which user and password of URIs are replaced by stars."""
    return _URI.sub(_without, text)


def _without(uri: re.Match[str]) -> str:
    scheme, rest = uri[1].lower(), uri[2]
    place, mark, query = rest.partition("?")
    if not mark:
        place, mark, query = rest.partition("#")
    if not scheme.startswith(_LOCAL) or "cipher" in scheme:
        if found := _PASSWORD.match(rest):  # it may hold a question mark, too
            place, mark, query = f"{_HIDDEN}@{rest[found.end() :]}".partition("?")
        elif (found := _USER.match(place)) and not _is_name(scheme, found[1]):
            place = f"{_HIDDEN}@{place[found.end() :]}"
        place = re.sub(r"(?<=;)[^;]+", _without_value, place)
    if mark:
        query = re.sub(r"[^&;#]+", _without_value, query)
    return f"{uri[1]}://{place}{mark}{query}"


def _is_name(scheme: str, user: str) -> bool:
    return scheme.startswith(_NAMED_USERS) or user.lower() in ("anonymous", "git")


def _without_value(part: re.Match[str]) -> str:
    for name, value in parse_qsl(part[0]):
        if value not in ("", _HIDDEN) and (_is_secret(name) or _holds_secret(value)):
            return f"{part[0].partition('=')[0]}={_HIDDEN}"
    return part[0]


def _holds_secret(value: str) -> bool:
    """Return whether a decoded value lists names and values itself, as `odbc_connect` does."""
    pairs = (entry.partition("=") for entry in re.split("[;&?]", value))
    return any(inner not in ("", _HIDDEN) and _is_secret(name.strip()) for name, _, inner in pairs)


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.fullmatch(name) is not None
