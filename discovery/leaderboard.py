"""Leaderboard: who earned most, of the accounts that want to be seen. Nothing is decided by it and no credit moves."""

from __future__ import annotations

import msgspec

from discovery.store.store import Store
from ec262.protocol import messages as m

MOST_LEADERS = 100
FRESH_S = 60.0
"""It is made anew at most so often, because that costs time for every account that wants to be seen."""

_decode = msgspec.msgpack.Decoder(m.Leaderboard).decode


class Leaderboard:
    """Keeps the last one made for a while, in the store: all processes show the same."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self) -> m.Leaderboard:
        """The leaderboard, at most `FRESH_S` old. Who earned the same has the same rank."""
        kept = self._store.accounts.board()
        if kept is not None:
            return _decode(kept)
        made = self._make()
        self._store.accounts.keep_board(msgspec.msgpack.encode(made), int(FRESH_S * 1000))
        return made

    def _make(self) -> m.Leaderboard:
        shown = sorted(self._store.accounts.shown(), key=lambda each: (-each.earned, each.name, each.account_id))
        leaders: list[m.Leader] = []
        for position, each in enumerate(shown[:MOST_LEADERS], 1):
            tied = leaders and leaders[-1].earned == each.earned
            leaders.append(
                m.Leader(
                    rank=leaders[-1].rank if tied else position,
                    name=each.name,
                    tag=each.account_id[:6],
                    earned=each.earned,
                    workers=each.workers,
                )
            )
        return m.Leaderboard(made_s=self._store.books.now_ms() / 1000, accounts=len(shown), leaders=leaders)
