"""Versions: whether two parties still understand each other.

Bodies may gain fields, which receivers ignore that do not know them; paths carry the version of the API. So a version
of EC262 is refused only where it is known not to be understood any more: `routes.OLDEST_CLIENT`. Other programs, which
do not call themselves EC262, are taken as they come.
"""

from __future__ import annotations

import re

from ec262.protocol.routes import OLDEST_CLIENT

_AGENT = re.compile(r"ec262/([0-9]{1,6})\.([0-9]{1,6})(?:[.\-+a-z ]|\Z)")


def user_agent(version: str) -> str:
    """What EC262 of a version calls itself (RFC 9110, 10.1.5)."""
    return f"ec262/{version}"


def too_old(agent: str, oldest: tuple[int, int] = OLDEST_CLIENT) -> str:
    """Why a caller with this ``User-Agent`` is not served; empty: it is.

    Args:
        oldest: major and minor number of the oldest version that is.
    """
    found = _AGENT.match(agent)
    if found is None or (int(found[1]), int(found[2])) >= oldest:
        return ""
    return (
        f"please upgrade: you run EC262 {found[1]}.{found[2]}, and {oldest[0]}.{oldest[1]} is the oldest that is "
        "understood here (python -m pip install --upgrade ec262)"
    )
