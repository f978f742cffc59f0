"""Sealing: AES-256-GCM, with pycryptodome as the oracle; any change at all is the one named error."""

from __future__ import annotations

import os

import pytest
from Crypto.Cipher import AES
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import SealBroken
from ec262.protocol.sealing import MAX_SEALED_BYTES, MAX_TOKEN_BYTES, NONCE_BYTES, OVERHEAD_BYTES, VERSION, seal, unseal

QUICK = settings(max_examples=150, deadline=None)
KEY = bytes(range(32))
keys = st.binary(min_size=32, max_size=32)
data_sizes = st.binary(max_size=70)


def oracle_seal(key: bytes, data: bytes, nonce: bytes) -> bytes:
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce)
    cipher.update(VERSION)
    sealed, tag = cipher.encrypt_and_digest(data)
    return VERSION + nonce + sealed + tag


def oracle_unseal(key: bytes, token: bytes) -> bytes:
    cipher = AES.new(key, AES.MODE_GCM, nonce=token[1:13])
    cipher.update(token[:1])
    return cipher.decrypt_and_verify(token[13:-16], token[-16:])


@QUICK
@given(keys, data_sizes, st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES))
def test_tokens_are_those_of_the_oracle_byte_for_byte(key: bytes, data: bytes, nonce: bytes) -> None:
    assert seal(key, data, nonce=nonce) == oracle_seal(key, data, nonce)


@QUICK
@given(keys, data_sizes)
def test_the_oracle_opens_our_tokens(key: bytes, data: bytes) -> None:
    assert oracle_unseal(key, seal(key, data)) == data


@QUICK
@given(keys, data_sizes)
def test_we_open_the_oracles_tokens(key: bytes, data: bytes) -> None:
    assert unseal(key, oracle_seal(key, data, os.urandom(NONCE_BYTES))) == data
    assert unseal(key, seal(key, data)) == data


@pytest.mark.parametrize("size", range(0, 50, 7))
def test_every_single_bit_is_guarded(size: int) -> None:
    token = bytearray(seal(KEY, bytes(size)))
    for bit in range(len(token) * 8):
        token[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            unseal(KEY, bytes(token))
        token[bit // 8] ^= 1 << bit % 8
    assert unseal(KEY, bytes(token)) == bytes(size)


def test_truncated_and_extended_tokens_are_broken() -> None:
    token = seal(KEY, b"some bytes that take more than one block")
    for end in range(len(token)):
        with pytest.raises(SealBroken):
            unseal(KEY, token[:end])
    for extra in (b"\0", b"A", bytes(16), token):
        with pytest.raises(SealBroken):
            unseal(KEY, token + extra)
        with pytest.raises(SealBroken):
            unseal(KEY, extra + token)


def test_whole_blocks_cannot_be_cut_or_swapped() -> None:
    token = seal(KEY, bytes(range(64)))
    start = 1 + NONCE_BYTES
    first, second = token[start : start + 16], token[start + 16 : start + 32]
    rest = token[start + 32 :]
    for changed in (first + rest, second + first + rest, first + second + rest[:16] + rest[-16:]):
        with pytest.raises(SealBroken):
            unseal(KEY, token[:start] + changed)


@QUICK
@given(keys, keys, data_sizes)
def test_another_key_breaks_the_seal(key: bytes, other: bytes, data: bytes) -> None:
    token = seal(key, data)
    if key == other:
        return
    with pytest.raises(SealBroken):
        unseal(other, token)


@QUICK
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda data: VERSION + data)))
def test_no_bytes_do_anything_else(token: bytes) -> None:
    with pytest.raises(SealBroken):
        unseal(KEY, token)


def test_a_token_of_another_version_is_no_token() -> None:
    """The version is authenticated: a holder of the key alone can make another, and that is refused as well."""
    nonce = os.urandom(NONCE_BYTES)
    cipher = AES.new(KEY, AES.MODE_GCM, nonce=nonce)
    cipher.update(b"\x02")
    sealed, tag = cipher.encrypt_and_digest(b"x")
    for version in (b"\x01", b"\x02"):
        with pytest.raises(SealBroken):
            unseal(KEY, version + nonce + sealed + tag)


def test_tokens_of_the_same_data_differ() -> None:
    tokens = {seal(KEY, b"x") for _ in range(100)}
    assert len({token[1 : 1 + NONCE_BYTES] for token in tokens}) == 100


def test_sizes_are_capped() -> None:
    largest = bytes(MAX_SEALED_BYTES)
    token = seal(KEY, largest)
    assert len(token) == MAX_TOKEN_BYTES == MAX_SEALED_BYTES + OVERHEAD_BYTES
    assert unseal(KEY, token) == largest
    with pytest.raises(ValueError, match="do not fit"):
        seal(KEY, largest + b"x")
    with pytest.raises(SealBroken):
        unseal(KEY, oracle_seal(KEY, largest + b"x", os.urandom(NONCE_BYTES)))


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_a_key_of_another_length_is_a_bug_of_the_caller(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        seal(bytes(size), b"x")
