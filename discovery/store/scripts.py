"""Scripts: what Redis does in one step, from `lua/`."""

from __future__ import annotations

from pathlib import Path

import redis
from redis.commands.core import Script

_LUA = Path(__file__).parent / "lua"
_PARTS = {"sample": "known", "standings": "known", "workers": "known"}
"""What several scripts say alike, and no script can call another: this part stands in front of each of these."""


def scripts_of(client: redis.Redis) -> dict[str, Script]:
    """All scripts by their names, to be run by this client."""
    return {path.stem: client.register_script(_text(path)) for path in _LUA.glob("*.lua")}


def _text(path: Path) -> str:
    part = _PARTS.get(path.stem)
    return (_LUA / "parts" / f"{part}.lua").read_text() + path.read_text() if part else path.read_text()
