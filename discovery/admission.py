"""Admission: who may make an account or bring a worker, as far as that is decided without I/O.

Identities are what an attacker needs most: accounts that verify each other, workers that outvote others, starting
credits (J. Douceur, "The Sybil Attack", 2002: where nobody vouches for identities they have to cost something). Here
they cost addresses, days, or the operator's invitations.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from discovery.addresses import WIDER, origins
from discovery.settings import Settings
from ec262.errors import Malformed

IDS_A_WORKER = 16
"""Worker ids that an account may use up for each worker that it may have at a time."""

NOT_ADMITTED: dict[str, tuple[int, str, str]] = {
    "forbidden": (403, "forbidden", "this worker id belongs to another account: choose a new one"),
    "banned": (403, "banned", "this account is banned: GET /v1/account says why"),
    "account": (429, "too-many", "this account has as many workers registered as it may have: stop one of them"),
    "ids": (
        *(429, "too-many"),
        "this account used too many different worker ids: start workers on a fixed port (not 0), so that they keep "
        "theirs",
    ),
    "neighbourhood": (
        *(429, "too-many"),
        "as many workers are registered from this neighbourhood (/24, or /48 of IPv6) as may be: ask whoever runs this "
        "service to allow more",
    ),
}
"""The problem that tells a worker why it may not enter the pool."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an account is made from, and how many may be made there in a day (UTC); 0: any number.

    Attributes:
        grants: how many of them get starting credits.
    """

    name: str
    accounts: int
    grants: int


def limits_of(address: str, settings: Settings) -> list[Origin]:
    """What has to be counted before an account is made from an address."""
    accounts, grants = settings.address_accounts, settings.address_grants
    if not accounts and not grants:
        return []
    own, wide = origins(address)
    return [Origin(own, accounts, grants), Origin(wide, accounts * WIDER, grants * WIDER)]


def new_invitation() -> str:
    """An invitation's code: 192 random bits, which nobody guesses. Hexadecimal: none begins like a flag."""
    return secrets.token_hex(24)


def invitation_id(code: str) -> str:
    """What is stored of a code: who reads the store learns no code from it."""
    return hashlib.sha256(f"ec262/v1/invitation\0{code}".encode("utf-8", "surrogatepass")).hexdigest()


def shown_name(name: str) -> str:
    """A name as it may stand on the leaderboard; empty: none.

    Raises:
        Malformed: it has characters that nobody sees, or that change how what is beside them is seen.
    """
    if not name.isprintable():
        raise Malformed("name: has to be printable, without control characters")
    return name.strip()
