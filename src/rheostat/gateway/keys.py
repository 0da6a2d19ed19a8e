"""API keys: made here with 256 random bits, kept as SHA-256, compared in constant time.

A plain hash is enough because a key is random and long: there is nothing to guess by dictionary. That is why keys are
made by `rheostat key`, and why a key in another form is none.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

import yaml

from rheostat.errors import InputError

PREFIX = "rheo-"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Of keys and tenants."""

_FORM = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
_HASH = re.compile(r"[0-9a-f]{64}")


def new_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """SHA-256 of a key, in hexadecimal: what the policy file holds."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def key_lines(key: str, key_id: str | None = None) -> str:
    """The lines of a policy file for a key; without `key_id` it is named after its hash. Raises `InputError`."""
    digest = hash_key(key)
    named = f"key-{digest[:8]}" if key_id is None else key_id
    if not re.fullmatch(NAME_PATTERN, named) or is_key(named):
        raise InputError(
            f"got a key id of {len(named)} characters, allowed are up to 64 letters, digits, dots, dashes, underscores",
            hint="begin it with a letter or digit",
        )
    return f'      - id: {_scalar(named)}\n        sha256: "{digest}"'


def _scalar(text: str) -> str:
    """In quotes where YAML would read a number, a date or a truth."""
    return text if yaml.safe_load(text) == text else f'"{text}"'


def is_key(text: str) -> bool:
    """Whether a text has the form of a key."""
    return _FORM.fullmatch(text) is not None


def is_hash(text: str) -> bool:
    """Whether a text has the form of a key's hash."""
    return _HASH.fullmatch(text) is not None


def lines_with_keys(text: str) -> list[int]:
    """The lines of a text that hold a key, from 1 on."""
    return [number for number, line in enumerate(text.splitlines(), start=1) if _FORM.search(line)]


def find_key(given: str, hashes: Sequence[str]) -> int | None:
    """The place of the hash of `given`, None where it is none of them; takes as long whichever it is."""
    if not is_key(given):
        return None
    digest = hash_key(given)
    found = None
    for place, known in enumerate(hashes):
        if hmac.compare_digest(digest, known):
            found = place
    return found
