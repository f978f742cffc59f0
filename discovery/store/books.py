"""What Redis holds of the ledger, and how credits move outside of tasks: each method one atomic step.

Entries stay in the stream ``{ec}:ledger`` until the archive on disk has them; `acknowledge` then lets them go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import redis

from discovery.archive.entry import encode_entry
from discovery.archive.rows import Line, Rows, lines_of
from discovery.archive.segment import NOTHING, Entry, StreamId

_PREFIX = "{ec}:"
_LEDGER = f"{_PREFIX}ledger"
_HEAD = f"{_PREFIX}ledger:head"
_pack = msgspec.msgpack.Encoder().encode

MOST_MINTED = 2**53 - 1
"""Credits that may ever be minted: every sum of balances is then exact also in a double, which Lua's numbers are."""
MOST_ROWS = 256
"""Rows of a statement that are kept for an account."""
TRANSFER_KEPT_S = 600
"""How long a transfer's idempotency key is remembered."""
_ROWS_A_POST = 250
"""Redis does nothing else for the 2 ms that these take."""
_MOST_ROWS_A_BLOCK = 2**20
PAGE = 256


@dataclass(frozen=True, slots=True)
class Head:
    """How far the ledger is on disk, as Redis knows it. `archive` is empty before there is any.

    Attributes:
        posted: up to which block rows are in the statements; up to which they are being added, and how many of the
            rows of the blocks between are there.
        posted_last: id of the last entry whose rows are in the statements, as those of all before it.
    """

    archive: str = ""
    number: int = 0
    digest: bytes = NOTHING
    last: StreamId = (0, 0)
    where: str = ""
    posted: tuple[int, int, int] = (0, 0, 0)
    posted_last: StreamId = (0, 0)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the store's memory: what the ledger's entries take, all that it uses, what it may use (0: any)."""

    ledger: int = 0
    used: int = 0
    most: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The books at one instant: balances by place, escrows included, and the id of the last entry."""

    head: Head
    balances: dict[str, int]
    last: StreamId


@dataclass(frozen=True, slots=True)
class Holdings:
    """What an account has, and how its statement stands. All in credits.

    Attributes:
        gift: of the balance, what is left of credits it was given; cannot be sent on.
        unvested: earned, but not to be sent yet.
        complete_ms: movements up to this time are in the lines.
    """

    balance: int
    escrow: int
    gift: int
    unvested: int
    lines: list[Line]
    complete_ms: int

    @property
    def transferable(self) -> int:
        """What may be sent to others."""
        return max(0, self.balance - self.gift - self.unvested)


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of credits that were to move.

    Attributes:
        outcome: ``ok``; ``repeated``: done before; else nothing moved. ``conflict``: the key was used for something
            else; ``unknown``: no such account; ``credits``: not enough; ``most``: more than may ever be minted.
        balance: of the account, or what was minted so far (``most``).
        transferable: what the sender may send now.
    """

    outcome: str
    balance: int = 0
    transferable: int = 0


class Books:
    """The ledger's side of the store. Every method raises `redis.RedisError` when Redis does not answer."""

    def __init__(self, client: redis.Redis, scripts: Mapping[str, Any]) -> None:
        self._redis = client
        self._scripts = scripts

    # --- what is not on disk yet ---

    def head(self) -> Head:
        """How far the ledger is on disk."""
        fields: Any = self._redis.hgetall(_HEAD)
        return _head(fields)

    def claim(self, archive: str, where: str) -> bool:
        """Makes this the archive that holds the ledger; False: another one is."""
        return bool(self._run("claim_ledger", archive, NOTHING.hex(), where) == archive.encode())

    def now_ms(self) -> int:
        """Redis' time."""
        seconds, micros = self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def read(self, after: StreamId, upto: StreamId, count: int = PAGE) -> tuple[Head, list[Entry]]:
        """The head, and up to `count` entries past one id and up to another, at one instant."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hgetall(_HEAD)
        pipeline.xrange(_LEDGER, f"({_text(after)}", _text(upto), count=count)
        head, found = pipeline.execute()
        return _head(head), [(*_id(key), fields[b"m"]) for key, fields in found]

    def waiting(self) -> int:
        """How many entries are not on disk yet."""
        return int(self._redis.xlen(_LEDGER))

    def memory(self) -> Memory:
        """How much memory the ledger takes until it is on disk, and how much there is."""
        pipeline = self._redis.pipeline(transaction=False)
        # All of the stream's nodes: of a few it would extrapolate from the oldest, whatever came after them.
        pipeline.memory_usage(_LEDGER, samples=0)
        pipeline.info("memory")
        ledger, told = pipeline.execute()
        return Memory(int(ledger or 0), int(told["used_memory"]), int(told.get("maxmemory", 0)))

    def acknowledge(self, before: Head, number: int, digest: bytes, first: StreamId, last: StreamId) -> str:
        """Lets go the entries from `first` to `last`: block `number` on disk has them.

        Returns:
            ``ok``; ``head`` or ``entries``: Redis holds something else than was thought, and nothing changed.
        """
        answer = self._run(
            "acknowledge_block",
            *(before.archive, before.number, before.digest.hex(), number, digest.hex()),
            *(_text(first), _text(last), _text((last[0], last[1] + 1))),
        )
        return str(answer.decode())

    def post(self, head: Head, upto: int, last: StreamId, rows: Rows) -> Head | None:
        """Adds to the statements the rows of all blocks that are not posted yet; those that are there are left out.

        Args:
            head: as Redis knows it.
            upto: the last of these blocks; where some of their rows are there already, the same as then.
            last: the id of its last entry.

        Returns:
            The head now; None: Redis knows another one, and no more rows were added.
        """
        listed = [(name, place, row) for name, own in rows.items() for place, row in own.items()]
        done, _, there = head.posted
        for start in range(there, max(len(listed), there + 1), _ROWS_A_POST):
            some = listed[start : start + _ROWS_A_POST]
            groups: dict[str, list[str | int]] = {}
            for name, place, row in some:
                groups.setdefault(name, []).extend((place, *row))
            end = start + len(some)
            over = end >= len(listed)
            posted = (upto, upto, 0) if over else (done, upto, end)
            answer = self._run(
                "post_rows",
                *(head.archive, _position(head.posted), _position(posted), _text(last if over else head.posted_last)),
                *((done + 1) * _MOST_ROWS_A_BLOCK + start, MOST_ROWS, _pack(list(groups.items()))),
            )
            if answer != b"ok":
                return None
            head = replace(head, posted=posted, posted_last=last if over else head.posted_last)
        return head

    def snapshot(self) -> Snapshot:
        """All there is at one instant. Cost grows with accounts and open tasks, not with the ledger's length."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hgetall(_HEAD)
        pipeline.hgetall(f"{_PREFIX}balances")
        pipeline.hgetall(f"{_PREFIX}escrow")
        pipeline.xrevrange(_LEDGER, count=1)
        head, balances, escrows, newest = pipeline.execute()
        held = {place.decode(): int(amount) for place, amount in balances.items()}
        held.update((f"escrow:{task.decode()}", int(amount)) for task, amount in escrows.items())
        known = _head(head)
        return Snapshot(known, {p: n for p, n in held.items() if n}, _id(newest[0][0]) if newest else known.last)

    # --- credits that move outside of tasks ---

    def transfer(self, account_id: str, to: str, amount: int, note: str, idempotency_key: str) -> Moved:
        """Sends credits to another account; `amount` is 1 or more."""
        entry = encode_entry([(f"account:{account_id}", f"account:{to}", amount)], [(f"transfer:{note}", 1)])
        sent = msgspec.json.encode((to, amount, note))
        answer = self._run("transfer", account_id, to, amount, idempotency_key, sent, TRANSFER_KEPT_S, entry)
        return Moved(answer[0].decode(), *answer[1:])

    def mint(self, kind: Literal["mint", "burn"], account_id: str, amount: int, note: str) -> Moved:
        """Makes credits for an account or takes them from it; `amount` is 1 or more."""
        place = f"account:{account_id}"
        source, target = ("mint", place) if kind == "mint" else (place, "burn")
        entry = encode_entry([(source, target, amount)], [(f"{kind}:{note}", 1)])
        answer = self._run("mint", kind, account_id, amount, entry, MOST_MINTED)
        return Moved(answer[0].decode(), *answer[1:])

    def holdings(self, account_id: str) -> Holdings:
        """What an account has and its statement, at one instant."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hget(f"{_PREFIX}balances", f"account:{account_id}")
        pipeline.hmget(f"{_PREFIX}account:{account_id}", ["granted", "spent", "escrow", "unvested"])
        pipeline.hgetall(f"{_PREFIX}account:{account_id}:statement")
        pipeline.hmget(_HEAD, ["last", "posted_last"])
        pipeline.xlen(_LEDGER)
        pipeline.time()
        balance, counts, stored, (last, posted_last), waiting, (seconds, micros) = pipeline.execute()
        granted, spent, escrow, unvested = (int(count or 0) for count in counts)
        all_posted = not waiting and last == posted_last
        complete_ms = seconds * 1000 + micros // 1000 if all_posted else _id(posted_last or b"0-0")[0]
        lines = lines_of({name.decode(): value.decode() for name, value in stored.items()})
        gift = min(max(0, granted - spent - escrow), int(balance or 0))
        return Holdings(int(balance or 0), escrow, gift, max(0, unvested), lines, complete_ms)

    def _run(self, name: str, *arguments: Any) -> Any:
        return self._scripts[name](args=arguments)


def _head(fields: Mapping[bytes, bytes]) -> Head:
    if not fields:
        return Head()
    done, upto, rows = fields[b"posted"].split()
    return Head(
        fields[b"archive"].decode(),
        int(fields[b"number"]),
        bytes.fromhex(fields[b"hash"].decode()),
        _id(fields[b"last"]),
        fields.get(b"where", b"").decode("utf-8", "surrogateescape"),
        (int(done), int(upto), int(rows)),
        _id(fields[b"posted_last"]),
    )


def _id(text: bytes) -> StreamId:
    ms, _, sequence = text.partition(b"-")
    return int(ms), int(sequence)


def _position(posted: tuple[int, int, int]) -> str:
    return " ".join(map(str, posted))


def _text(entry_id: StreamId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
