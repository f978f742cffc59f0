"""Sealing: exactly Fernet's format, with `cryptography` as the oracle; any change at all is the one named error."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import pytest
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import SealBroken
from ec262.protocol.sealing import MAX_SEALED_BYTES, MAX_TOKEN_BYTES, seal, unseal

QUICK = settings(max_examples=150, deadline=None)
KEY = bytes(range(32))
keys = st.binary(min_size=32, max_size=32)
data_sizes = st.binary(max_size=70)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def oracle(key: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(key))


def oracle_seal(key: bytes, data: bytes, time_s: int, iv: bytes) -> str:
    made: bytes = oracle(key)._encrypt_from_parts(data, time_s, iv)
    return made.decode("ascii")


@QUICK
@given(keys, data_sizes, st.binary(min_size=16, max_size=16))
def test_tokens_are_fernets_byte_for_byte(key: bytes, data: bytes, iv: bytes) -> None:
    assert seal(key, data, iv=iv) == oracle_seal(key, data, 0, iv)


@QUICK
@given(keys, data_sizes)
def test_the_oracle_opens_our_tokens(key: bytes, data: bytes) -> None:
    assert oracle(key).decrypt(seal(key, data)) == data


@QUICK
@given(keys, data_sizes)
def test_we_open_the_oracles_tokens(key: bytes, data: bytes) -> None:
    assert unseal(key, oracle(key).encrypt(data).decode("ascii")) == data
    assert unseal(key, seal(key, data)) == data


@QUICK
@given(data_sizes, st.data())
def test_a_changed_character_breaks_the_seal(data: bytes, draw: st.DataObject) -> None:
    """Also one that Base64 decodes to the same bytes: there is one token for one seal."""
    token = seal(KEY, data)
    at = draw.draw(st.integers(0, len(token) - 1))
    other = draw.draw(st.sampled_from([*ALPHABET, "=", "+", "/", "\n", " ", "\0", "é", "\ud800"]))
    if other == token[at]:
        return
    with pytest.raises(SealBroken):
        unseal(KEY, token[:at] + other + token[at + 1 :])


@pytest.mark.parametrize("size", range(1, 50, 7))
def test_every_single_bit_is_guarded(size: int) -> None:
    token = seal(KEY, bytes(size), iv=bytes(16))
    raw = bytearray(base64.urlsafe_b64decode(token))
    for bit in range(len(raw) * 8):
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            unseal(KEY, base64.urlsafe_b64encode(raw).decode("ascii"))
        raw[bit // 8] ^= 1 << bit % 8
    assert unseal(KEY, base64.urlsafe_b64encode(raw).decode("ascii")) == bytes(size)


@pytest.mark.parametrize("size", range(0, 64, 3))
def test_the_unused_bits_of_base64_are_no_second_form(size: int) -> None:
    """The last character before the padding has up to four bits that decode to nothing."""
    token = seal(KEY, bytes(size))
    at = len(token.rstrip("=")) - 1
    opened = 0
    for character in ALPHABET:
        changed = token[:at] + character + token[at + 1 :]
        try:
            assert unseal(KEY, changed) == bytes(size)
        except SealBroken:
            continue
        assert changed == token
        opened += 1
    assert opened == 1


def test_truncated_and_extended_tokens_are_broken() -> None:
    token = seal(KEY, b"some bytes that take more than one block")
    for end in range(len(token)):
        with pytest.raises(SealBroken):
            unseal(KEY, token[:end])
    for extra in ("=", "A", "AAAA", "\n", " ", "====", token):
        with pytest.raises(SealBroken):
            unseal(KEY, token + extra)
        with pytest.raises(SealBroken):
            unseal(KEY, extra + token)


def test_whole_blocks_cannot_be_cut_or_swapped() -> None:
    raw = base64.urlsafe_b64decode(seal(KEY, bytes(64)))
    for changed in (raw[:25] + raw[41:], raw[:-48] + raw[-32:], raw[:25] + raw[41:57] + raw[25:41] + raw[57:]):
        with pytest.raises(SealBroken):
            unseal(KEY, base64.urlsafe_b64encode(changed).decode("ascii"))


@QUICK
@given(keys, keys, data_sizes)
def test_another_key_breaks_the_seal(key: bytes, other: bytes, data: bytes) -> None:
    token = seal(key, data)
    if key == other:
        return
    if key[:16] == other[:16]:
        return  # it authenticates, and decrypts to something else: the halves always change together here
    with pytest.raises(SealBroken):
        unseal(other, token)


@QUICK
@given(st.one_of(st.text(max_size=200), st.text(ALPHABET + "=", max_size=200)))
def test_no_text_does_anything_else(token: str) -> None:
    with pytest.raises(SealBroken):
        unseal(KEY, token)


def test_a_seal_over_something_that_is_no_padding() -> None:
    """Only a holder of the key can make it, and even then it is the one error."""
    for last in (0, 17, 255, 5):
        body = b"\x80" + bytes(24) + _encrypted(bytes(15) + bytes([last]))
        token = base64.urlsafe_b64encode(body + hmac.digest(KEY[:16], body, "sha256")).decode("ascii")
        with pytest.raises(SealBroken):
            unseal(KEY, token)
        with pytest.raises(InvalidToken):
            oracle(KEY).decrypt(token)


def _encrypted(block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(KEY[16:]), modes.CBC(bytes(16))).encryptor()
    made: bytes = encryptor.update(block) + encryptor.finalize()
    return made


def test_tokens_of_the_same_data_differ() -> None:
    assert len({seal(KEY, b"x") for _ in range(100)}) == 100


def test_a_token_does_not_tell_when_it_was_made() -> None:
    assert base64.urlsafe_b64decode(seal(KEY, b"x"))[:9] == b"\x80" + bytes(8)


def test_sizes_are_capped() -> None:
    largest = bytes(MAX_SEALED_BYTES)
    token = seal(KEY, largest)
    assert len(token) <= MAX_TOKEN_BYTES
    assert unseal(KEY, token) == largest
    with pytest.raises(ValueError, match="do not fit"):
        seal(KEY, largest + b"x")
    with pytest.raises(SealBroken):
        unseal(KEY, oracle(KEY).encrypt(bytes(MAX_TOKEN_BYTES)).decode("ascii"))


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_length_is_a_bug_of_the_caller(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal(bytes(size), b"x")


def test_the_halves_of_a_key_have_one_task_each() -> None:
    token = seal(KEY, b"x" * 40)
    other: Any = bytes(16) + KEY[16:]
    with pytest.raises(SealBroken):
        unseal(other, token)
