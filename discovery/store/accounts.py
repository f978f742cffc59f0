"""Accounts, invitations, bans and other marks, in Redis: each method one atomic step, nothing decided here.

A mark of an account (banned, auditor) is written to its workers as well, so that whoever draws workers need not look at
their accounts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis

from discovery.admission import Origin
from discovery.archive.entry import START, encode_entry
from discovery.records import AccountRecord

_PREFIX = "{ec}:"
_PAGE = 500

By = Literal["operator", "evidence"]
"""Who bans: a person, who alone may take it back; or what workers did, until evidence is withdrawn."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """What is known of an invitation: never its code, `invitation_id` is a hash of that."""

    invitation_id: str
    left: int
    expires_ms: int
    note: str


@dataclass(frozen=True, slots=True)
class Shown:
    """An account that wants to be on the leaderboard."""

    account_id: str
    name: str
    earned: int
    workers: int


class Accounts:
    """The accounts' side of the store. Every method raises `redis.RedisError` when Redis does not answer."""

    def __init__(self, client: redis.Redis, scripts: Mapping[str, Any]) -> None:
        self._redis = client
        self._scripts = scripts

    # --- making them ---

    def create(
        self,
        account_id: str,
        secret_hash: bytes,
        name: str,
        credits: int,
        *,
        network: str = "",
        bound: bool = False,
        invitation_id: str = "",
        origins: Sequence[Origin] = (),
    ) -> tuple[str, int]:
        """Makes an account, with minted credits unless too many were made from where it comes.

        Args:
            bound: until it has spent as much as it was given, no worker of `network` is drawn for it.

        Returns:
            ``ok`` and the credits it got. Or, with nothing made: ``taken``, the id; ``invitation``, not a valid one;
            ``many``, one of `origins` has as many as it may have.
        """
        entry = encode_entry([("mint", f"account:{account_id}", credits)], [(START, 1)]) if credits else b""
        limits = [part for origin in origins for part in (origin.name, origin.accounts, origin.grants)]
        made = self._run(
            "create_account",
            *(account_id, secret_hash, name, credits, entry, -credits, network, invitation_id),
            *("1" if bound else "", *limits),
        )
        return made[0].decode(), made[1] if len(made) > 1 else 0

    def secret(self, account_id: str) -> tuple[bytes | None, str]:
        """The stored hash of an account's secret, None: no such account; and why it is banned, empty: it is not."""
        found: Any = self._redis.hmget(f"{_PREFIX}account:{account_id}", ["secret_hash", "banned"])
        return found[0], _text(found[1])

    def record(self, account_id: str) -> AccountRecord:
        """An account that exists."""
        key = f"{_PREFIX}account:{account_id}"
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hmget(key, ["name", "escrow", "earned", "spent", "banned", "auditor", "shown", "network"])
        pipeline.hget(f"{_PREFIX}balances", f"account:{account_id}")
        pipeline.scard(f"{key}:alive")
        (name, escrow, earned, spent, banned, auditor, shown, network), balance, workers = pipeline.execute()
        return AccountRecord(
            account_id=account_id,
            name=_text(name),
            balance=int(balance or 0),
            escrow=int(escrow or 0),
            earned=int(earned or 0),
            spent=int(spent or 0),
            workers=workers,
            banned=_text(banned),
            auditor=auditor is not None,
            shown=_text(shown),
            network=_text(network),
        )

    def rename(self, account_id: str, name: str) -> None:
        """Gives an account that exists another name."""
        self._redis.hset(f"{_PREFIX}account:{account_id}", "name", name)

    def replace_secret(self, account_id: str, old: bytes, new: bytes) -> bool:
        """Replaces the stored hash of an account's secret; False: it is not `old` any more."""
        return int(self._run("replace_secret", account_id, old, new)) == 1

    def workers_alive(self, account_id: str) -> list[str]:
        """Ids of the workers of an account that are registered now."""
        found: Any = self._redis.smembers(f"{_PREFIX}account:{account_id}:alive")
        return sorted(worker_id.decode() for worker_id in found)

    # --- invitations ---

    def invite(self, invitation_id: str, uses: int, valid_s: float, note: str) -> int:
        """Makes an invitation good for `uses` accounts; returns when it expires, in ms."""
        now_ms = self._forget_expired()
        expires_ms = now_ms + int(valid_s * 1000)
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hset(
            f"{_PREFIX}invitation:{invitation_id}", mapping={"left": uses, "expires_ms": expires_ms, "note": note}
        )
        pipeline.zadd(f"{_PREFIX}invitations", {invitation_id: expires_ms})
        pipeline.execute()
        return expires_ms

    def invitations(self) -> list[Invitation]:
        """Those that can still be used, the first to expire first."""
        self._forget_expired()
        ids: Any = self._redis.zrange(f"{_PREFIX}invitations", 0, -1)
        pipeline = self._redis.pipeline(transaction=False)
        for invitation_id in ids:
            pipeline.hmget(f"{_PREFIX}invitation:{invitation_id.decode()}", ["left", "expires_ms", "note"])
        return [
            Invitation(invitation_id.decode(), int(left), int(expires_ms), _text(note))
            for invitation_id, (left, expires_ms, note) in zip(ids, pipeline.execute(), strict=True)
            if left is not None
        ]

    def revoke(self, invitation_id: str) -> bool:
        """Makes an invitation worth nothing; False: there is none."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.delete(f"{_PREFIX}invitation:{invitation_id}")
        pipeline.zrem(f"{_PREFIX}invitations", invitation_id)
        return bool(pipeline.execute()[0])

    def _forget_expired(self) -> int:
        """Deletes what nobody can use any more; returns Redis' time in ms."""
        seconds, micros = self._redis.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        over: Any = self._redis.zrangebyscore(f"{_PREFIX}invitations", "-inf", now_ms)
        for invitation_id in over:
            self.revoke(invitation_id.decode())
        return now_ms

    # --- marks ---

    def ban(self, account_id: str, by: By, reason: str) -> bool:
        """Bans an account; its workers leave the pool in the same step, and what they hold is to end (`ending`).

        Returns:
            False: there is no such account, or it is banned already (by an operator, or as well by evidence).
        """
        return int(self._run("leave", "ban", account_id, by, reason)) >= 0

    def unban(self, account_id: str, by: By) -> bool:
        """Ends a ban: evidence only what evidence did, an operator any. False: there is nothing of that to end."""
        prefix = f"{by}: " if by == "evidence" else ""
        return int(self._run("mark", account_id, "banned", "", "banned", prefix)) == 1

    def mark_auditor(self, account_id: str, yes: bool) -> bool:
        """Marks an account as one whose workers are believed, or takes the mark off; False: nothing to change."""
        return int(self._run("mark", account_id, "auditor", "1" if yes else "", "auditors", "")) == 1

    def marked(self, mark: Literal["banned", "auditors"]) -> list[str]:
        """Ids of the accounts with a mark, sorted."""
        found: Any = self._redis.smembers(f"{_PREFIX}{mark}")
        return sorted(account_id.decode() for account_id in found)

    def ending(self, limit: int) -> list[str]:
        """Up to `limit` leases of banned accounts' workers that are to end."""
        found: Any = self._redis.srandmember(f"{_PREFIX}ending", limit)
        return [lease_id.decode() for lease_id in found]

    def ended(self, lease_ids: Sequence[str]) -> None:
        """These leases are over."""
        self._redis.srem(f"{_PREFIX}ending", *lease_ids)

    # --- the leaderboard ---

    def show(self, account_id: str, name: str) -> None:
        """Puts an account on the leaderboard under a name; empty: takes it off."""
        pipeline = self._redis.pipeline(transaction=True)
        if name:
            pipeline.hset(f"{_PREFIX}account:{account_id}", "shown", name)
            pipeline.sadd(f"{_PREFIX}shown", account_id)
        else:
            pipeline.hdel(f"{_PREFIX}account:{account_id}", "shown")
            pipeline.srem(f"{_PREFIX}shown", account_id)
        pipeline.execute()

    def shown(self) -> list[Shown]:
        """All accounts that want to be on the leaderboard and are not banned, in any order.

        Cost grows with their number, a page at a time.
        """
        found: Any = self._redis.smembers(f"{_PREFIX}shown")
        ids = [account_id.decode() for account_id in found]
        listed = []
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            pipeline = self._redis.pipeline(transaction=False)
            for account_id in page:
                pipeline.hmget(f"{_PREFIX}account:{account_id}", ["shown", "earned", "banned"])
                pipeline.scard(f"{_PREFIX}account:{account_id}:alive")
            answers = pipeline.execute()
            for account_id, (name, earned, banned), workers in zip(page, answers[::2], answers[1::2], strict=True):
                if name is not None and banned is None:
                    listed.append(Shown(account_id, _text(name), int(earned or 0), workers))
        return listed

    def board(self) -> bytes | None:
        """The leaderboard that was kept last; None: it is too old."""
        found: Any = self._redis.get(f"{_PREFIX}board")
        return None if found is None else bytes(found)

    def keep_board(self, made: bytes, keep_ms: int) -> None:
        """Keeps a leaderboard for all processes for a while, unless another process was faster."""
        self._redis.set(f"{_PREFIX}board", made, px=keep_ms, nx=True)

    def _run(self, name: str, *arguments: Any) -> Any:
        return self._scripts[name](args=arguments)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
