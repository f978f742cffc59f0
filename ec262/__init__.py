"""EC262: a credit-based volunteer compute network.

    import ec262

    @ec262.mapper
    def count(_, line):
        for word in line.split():
            yield word, 1

    @ec262.reducer
    def total(word, counts):
        return sum(counts)

    print(ec262.run_job({0: "to be or not to be"}))

Names are loaded when first used: importing EC262 starts nothing, patches nothing and costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ec262.errors import EC262Error as EC262Error

__version__ = "0.1.0"

_HOMES: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ec262' has no attribute {name!r}")
    return getattr(import_module(home), name)
