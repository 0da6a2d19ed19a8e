"""API keys: their form, their hash, and the comparison that tells nothing by its time."""

import hashlib
import hmac

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rheostat.errors import InputError
from rheostat.gateway.keys import find_key, hash_key, is_hash, is_key, key_lines, lines_with_keys, new_key

HASHES = [hash_key(f"rheo-{letter * 43}") for letter in "abcdef"]


def test_keys_are_long_unlike_and_known_by_their_hash() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100 and all(map(is_key, made))
    for key in made:
        assert hash_key(key) == hashlib.sha256(key.encode()).hexdigest() and is_hash(hash_key(key))


@pytest.mark.parametrize("place", [0, 3, 5, None])
def test_every_hash_is_compared_whichever_matches(place: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare_digest(left: str, right: str) -> bool:
        compared.append(right)
        return hmac_compare_digest(left, right)

    hmac_compare_digest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    given_key = f"rheo-{'abcdef'[place] * 43}" if place is not None else f"rheo-{'z' * 43}"
    assert find_key(given_key, HASHES) == place
    assert compared == HASHES


@given(st.text() | st.from_regex(r"rheo-[A-Za-z0-9_-]{40,46}", fullmatch=True))
def test_no_other_text_is_a_key(text: str) -> None:
    assert find_key(text, HASHES) is None


def test_near_misses_are_no_keys() -> None:
    key = f"rheo-{'a' * 43}"
    assert find_key(key, HASHES) == 0
    for miss in (key + "\n", " " + key, key[:-1], key + "a", key.upper(), key.replace("a", "а", 1), HASHES[0]):
        assert find_key(miss, HASHES) is None, miss


def test_lines_that_hold_a_key_are_found() -> None:
    assert lines_with_keys(f"a: 1\n# {new_key()}\nb: {HASHES[0]}\nc: 'Bearer {new_key()}'") == [2, 4]


@pytest.mark.parametrize("name", ["shop-1", "1", "1e3", "yes", "2027-01-31", "null", None])
def test_the_lines_for_the_policy_file_hold_the_hash_and_a_name_that_is_text(name: str | None) -> None:
    key = new_key()
    lines = key_lines(key, name)
    assert key not in lines
    assert yaml.safe_load(lines) == [{"id": name or f"key-{hash_key(key)[:8]}", "sha256": hash_key(key)}]


@pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 65, "a\n", "é", "rheo-" + "k" * 43])
def test_a_name_that_the_policy_file_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        key_lines(new_key(), name)
    assert not name or name not in str(caught.value) or len(name) < 3
