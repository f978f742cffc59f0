"""The keyring: several processes share its keys, what is rotated out is gone, and older keys go on as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from discovery.keyring import BLAKE2B, Keyring
from discovery.settings import Settings
from ec262.errors import SetupError
from ec262.protocol.keys import NONCE_BYTES, Label, OlderWrapping, Wrapping, derive, expand

SETTINGS = Settings(network="public")
NONCE = b"n" * NONCE_BYTES
TASK_ID = "0123456789abcdef01234567"
LEASE_ID = f"{TASK_ID}.0"


def made(key: Wrapping | None) -> tuple[bytes, bytes]:
    """An input's and a result's key."""
    assert key is not None
    return key.input_key(NONCE, TASK_ID), key.result_key(NONCE, LEASE_ID)


def test_processes_of_one_service_make_the_same_keys(tmp_path: Path) -> None:
    one, other = Keyring(tmp_path, SETTINGS), Keyring(tmp_path, SETTINGS)
    number, key = one.current(1e9)
    assert made(other.wrapping(number)) == made(key) == made(other.current(1e9)[1])
    assert one.master == other.master
    assert (tmp_path / "keyring.json").stat().st_mode & 0o777 == 0o600


def test_keys_that_no_task_can_want_are_destroyed(tmp_path: Path) -> None:
    """A thief of the store's files and of a later keyring reads no old results."""
    keyring = Keyring(tmp_path, SETTINGS)
    first, _ = keyring.current(0)
    last, _ = keyring.current(2 * keyring.delay_s)
    assert keyring.wrapping(first) is None
    assert keyring.wrapping(last) is not None
    stored = json.loads((tmp_path / "keyring.json").read_text())["wrapping"]
    assert str(first) not in stored
    assert stored[str(last)].startswith(BLAKE2B)


def test_tasks_that_an_older_service_began_keep_their_keys(tmp_path: Path) -> None:
    """Were they other ones after an upgrade, honest results would not open, and their workers be convicted for it."""
    number = int(1e9 // SETTINGS.wrapping_rotation_s)
    old = bytes(range(32))
    text = json.dumps({"master": "11" * 32, "wrapping": {str(number): old.hex()}})
    (tmp_path / "keyring.json").write_text(text)
    root = derive(old, Label.TASK, NONCE, TASK_ID.encode())
    as_before = expand(root, Label.INPUT), expand(root, Label.RESULT, LEASE_ID.encode())
    keyring = Keyring(tmp_path, SETTINGS)
    assert made(keyring.wrapping(number)) == as_before
    # An older process that goes on meanwhile makes tasks with the same key.
    assert made(keyring.current(1e9)[1]) == as_before
    assert json.loads((tmp_path / "keyring.json").read_text()) == json.loads(text)
    later, fresh = keyring.current(1e9 + SETTINGS.wrapping_rotation_s)
    assert later == number + 1
    assert not isinstance(fresh, OlderWrapping)
    assert made(Keyring(tmp_path, SETTINGS).wrapping(number)) == as_before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"master": "zz"}', '{"wrapping": {}}'])
def test_a_damaged_keyring_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "keyring.json").write_text(text)
    with pytest.raises(SetupError, match="damaged"):
        Keyring(tmp_path, SETTINGS)
