"""Sessions: who is signed in, in a signed cookie. Nothing is stored: the account's own secret ends them.

The cookie names the account, when it was signed, and a tag of what is stored of the account's secret: with another
secret (`ec262 account rotate-key`) all sessions end. It never holds the secret.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from itsdangerous import BadData, URLSafeTimedSerializer

COOKIE = "ec262_session"
LASTS_S = 12 * 3600


@dataclass(frozen=True, slots=True)
class Session:
    """A person who showed an account's key.

    Attributes:
        form_token: what forms of this session carry, so that no other site can send them (CSRF).
    """

    account_id: str
    form_token: str


class Sessions:
    """Signs and checks cookies.

    Args:
        master: the service's master key; the key for cookies is derived from it.
    """

    def __init__(self, master: bytes) -> None:
        self._key = hmac.digest(master, b"ec262/v1/web-session", "sha256")
        self._serializer = URLSafeTimedSerializer(
            self._key, salt="session", signer_kwargs={"digest_method": hashlib.sha256}
        )

    def sign(self, account_id: str, secret_hash: bytes) -> str:
        """A cookie for who proved to have the secret."""
        return str(self._serializer.dumps([account_id, self._tag(account_id, secret_hash)]))

    def named(self, cookie: str) -> tuple[str, str] | None:
        """Account and tag of a cookie that this service signed and that is not too old."""
        try:
            account_id, tag = self._serializer.loads(cookie, max_age=LASTS_S)
        except (BadData, ValueError, TypeError):
            return None
        return (account_id, tag) if isinstance(account_id, str) and isinstance(tag, str) else None

    def open(self, cookie: str, account_id: str, tag: str, secret_hash: bytes | None) -> Session | None:
        """The session of a cookie, if the account still has the secret that was shown."""
        if secret_hash is None or not hmac.compare_digest(tag, self._tag(account_id, secret_hash)):
            return None
        return Session(account_id, hmac.digest(self._key, b"form\0" + cookie.encode(), "sha256").hex()[:32])

    def _tag(self, account_id: str, secret_hash: bytes) -> str:
        return hmac.digest(self._key, b"tag\0" + account_id.encode() + b"\0" + secret_hash, "sha256").hex()[:32]
