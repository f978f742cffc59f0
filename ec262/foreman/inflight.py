"""InFlight: how many bytes of tasks are in memory or will soon be, against a bound. Counts alone, no I/O."""

from __future__ import annotations

SEALED = 1.4
"""Bytes of sealed text a plain byte, a little rounded up."""


class InFlight:
    """Bytes of inputs and results on their way.

    Args:
        limit: the bound. What a result will have is guessed from its input until some came.

    Attributes:
        inputs: plain inputs that are loaded.
        sealed: sealed inputs, and requests that carry them.
        results: sealed results that came and are not decided.
        expected: results that may come.
        most: the most there was when somebody asked for more.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inputs = self.sealed = self.results = self.expected = 0
        self.most = 0
        self._typical = 0.0
        self.new_phase()

    def new_phase(self) -> None:
        """Tasks of another kind follow: what was learnt of results is of no use."""
        self._in, self._out = 0.0, 0.0

    @property
    def total(self) -> int:
        """All of it."""
        return self.inputs + self.sealed + self.results + self.expected

    def admits(self) -> bool:
        """Whether there is room for one more task of the usual size; always, where there is none at all.

        What is loaded becomes more when it is pushed: tokens, a request of them, and the result that is expected.
        """
        total = self.total
        if total > self.most:
            self.most = total
        if not total:
            return True
        growth = 2 * SEALED + (self._out / self._in if self._in else SEALED)
        return total + self.inputs * (growth - 1) + self._typical * growth <= self.limit

    def loaded(self, size: int) -> None:
        """An input was loaded."""
        self.inputs += size
        self._typical += (size - self._typical) / 8 if self._typical else size

    def expect(self, size: int) -> int:
        """Bytes the sealed result of an input of that size may have."""
        return int(size * (self._out / self._in if self._in else SEALED))

    def came(self, size: int, result: int) -> None:
        """A result came of an input of that size."""
        self.results += result
        self._in, self._out = self._in * 0.9 + size, self._out * 0.9 + result
