"""Keys: HKDF and BLAKE2b as published, and no two purposes share a key."""

from __future__ import annotations

import pytest
from Crypto.Hash import BLAKE2b
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.protocol.keys import (
    NONCE_BYTES,
    Label,
    OlderWrapping,
    Wrapping,
    derive,
    hkdf_sha256,
    poll_key,
    program_key,
    worker_key,
)

QUICK = settings(max_examples=150, deadline=None)
contexts = st.lists(st.binary(max_size=12), max_size=4)

# RFC 5869, appendix A, the test cases with SHA-256.
VECTORS = [
    (
        b"\x0b" * 22,
        bytes(range(0x0D)),
        bytes(range(0xF0, 0xFA)),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        b"\x0b" * 22,
        b"",
        b"",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize(("secret", "salt", "info", "made"), VECTORS)
def test_the_rfcs_vectors(secret: bytes, salt: bytes, info: bytes, made: str) -> None:
    assert hkdf_sha256(secret, salt=salt, info=info, length=len(made) // 2).hex() == made


@QUICK
@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80), st.integers(1, 300))
def test_any_derivation_is_the_oracles(secret: bytes, salt: bytes, info: bytes, length: int) -> None:
    expected = HKDF(SHA256(), length, salt, info).derive(secret)
    assert hkdf_sha256(secret, salt=salt, info=info, length=length) == expected


@QUICK
@given(st.binary(min_size=1, max_size=40), st.sampled_from(Label), contexts)
def test_derive_is_hkdf_under_label_and_context(secret: bytes, label: Label, context: list[bytes]) -> None:
    info = label.value + b"".join(b"\0" + len(item).to_bytes(4, "big") + item for item in context)
    assert derive(secret, label, *context) == hkdf_sha256(secret, salt=b"ec262/v1", info=info, length=32)
    assert len(derive(secret, label, *context)) == 32


tricky = st.lists(
    st.one_of(st.binary(max_size=6), st.sampled_from([b"\0", b"\0\0\0\0\x01", b"\0\0\0\0", b"key", b"\0\0\0\0\0"])),
    max_size=3,
)


@settings(QUICK, max_examples=400)
@given(st.sampled_from(Label), tricky, st.sampled_from(Label), tricky)
def test_labels_and_contexts_never_collide(one: Label, first: list[bytes], other: Label, second: list[bytes]) -> None:
    same = (one, first) == (other, second)
    assert (derive(b"s" * 32, one, *first) == derive(b"s" * 32, other, *second)) == same


def test_borders_between_contexts_matter() -> None:
    assert derive(b"s", Label.POLL, b"ab", b"c") != derive(b"s", Label.POLL, b"a", b"bc")
    assert derive(b"s", Label.POLL, b"a") != derive(b"s", Label.POLL, b"a", b"")
    # What one context looks like when it is written as two.
    assert derive(b"s", Label.POLL, b"a\0\0\0\0\x01b") != derive(b"s", Label.POLL, b"a", b"b")


def test_labels_are_prefix_free_up_to_their_end() -> None:
    assert all(b"\0" not in label.value for label in Label)
    assert len({label.value for label in Label}) == len(Label)


def test_no_two_keys_of_a_task_are_equal() -> None:
    master = b"m" * 32
    wrapping, nonce = Wrapping(master), b"n" * NONCE_BYTES
    made = [
        wrapping.input_key(nonce, "t"),
        wrapping.input_key(b"N" * NONCE_BYTES, "t"),
        wrapping.input_key(nonce, "T"),
        Wrapping(b"M" * 32).input_key(nonce, "t"),
        wrapping.result_key(nonce, "t"),
        wrapping.result_key(nonce, "t.0"),
        wrapping.result_key(nonce, "t.1"),
        wrapping.result_key(b"N" * NONCE_BYTES, "t.0"),
        Wrapping(b"M" * 32).result_key(nonce, "t.0"),
        worker_key(master, "w", 1),
        worker_key(master, "w", 2),
        worker_key(master, "v", 1),
        program_key(master, "a", "j"),
        program_key(master, "b", "j"),
        program_key(master, "a", "k"),
        poll_key(master, "a", "j"),
        poll_key(master, "aj", ""),
    ]
    assert len(set(made)) == len(made)
    assert {len(key) for key in made} == {32}


def test_golden_keys() -> None:
    """Keys are part of the protocol: an older party has to derive the same."""
    master = bytes(range(32))
    wrapping, nonce = Wrapping(master), b"n" * NONCE_BYTES
    assert worker_key(master, "w" * 16, 1).hex() == "c2353166bbf4f0bb8f1e15d738fb242610c9ab39b8fd61d2a3c76adbc38dafb7"
    assert (
        wrapping.input_key(nonce, "t" * 24).hex() == "734938128532db9b27db9aa67bebee6f1fdc81fce1c9726f38ef0351f707fc9f"
    )
    assert wrapping.result_key(nonce, "t.0").hex() == "7196202531f502134276e2bee8b10f4cea1327d803880a4c12e8ea174c0c0cc1"
    older = OlderWrapping(master)
    assert older.input_key(nonce, "t" * 24).hex() == "bc6d111df19a7712cc32245864d0a9c74e3691e3a4a249d0dcfca69a9dc6d3dc"
    assert (
        older.result_key(nonce, "t" * 24 + ".0").hex()
        == "ee591fa72472ada3e41ba6c8205e285d491cc04a5ca51c06ce34423113b27c6c"
    )
    assert program_key(master, "a", "j").hex() == "ab6a8cb63b9f15198a5ca5c6985dfa76a61924f2c2c41bef0c5872c05c49b6b2"
    assert poll_key(master, "a", "j").hex() == "8c995e6ca72982d5ce16d3f54ec6431b8c10f7fc4ade8f999f321b02064d1758"


@QUICK
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), st.text(max_size=40))
def test_the_keys_of_tasks_are_as_another_implementation_makes_them(key: bytes, nonce: bytes, name: str) -> None:
    """RFC 7693, by pycryptodome."""
    wrapping = Wrapping(key)
    for made, label in (
        (wrapping.input_key(nonce, name), b"input key"),
        (wrapping.result_key(nonce, name), b"result key"),
    ):
        assert made == BLAKE2b.new(key=key, digest_bytes=32, data=label + b"\0" + nonce + name.encode()).digest()
