"""A store's clock that a test can move: deadlines come when the test wants them, however slow the machine is."""

from __future__ import annotations

import re
from typing import Any

from discovery.store.store import Store

_AHEAD = "{ec}:ahead"
_CALL = "redis.call('TIME')"
_MOVED = f"""
local function moved_time()
  local time = {_CALL}
  return {{time[1] + tonumber(redis.call('GET', '{_AHEAD}') or '0'), time[2]}}
end
"""


class Clock:
    """Time as a store has it: real, and as many seconds ahead as it was moved.

    Redis' ``TIME`` is the only clock that decides. So it is moved in the two places where it is read: the client's
    answers, and the scripts. What Redis itself forgets after a while, such as idempotency keys, keeps to real time.
    """

    def __init__(self, store: Store) -> None:
        self._redis = store._redis
        self._ahead_s = int(self._redis.get(_AHEAD) or 0)
        self._redis.set_response_callback("TIME", self._moved)
        for name in store._scripts:
            text = str(store._scripts[name].script)
            if _CALL in text:
                first = re.match(r"(?:--[^\n]*\n)*", text)
                assert first is not None
                moved = text[: first.end()] + _MOVED + text[first.end() :].replace(_CALL, "moved_time()")
                store._scripts[name] = self._redis.register_script(moved)

    def _moved(self, answer: Any, **_: Any) -> tuple[int, int]:
        return int(answer[0]) + self._ahead_s, int(answer[1])

    def move(self, seconds: int) -> None:
        """Lets so many seconds pass."""
        self._ahead_s += seconds
        self._redis.set(_AHEAD, self._ahead_s)
