"""Keeps an embedded store running: one that died is started again on its data, one that dies at once is given up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from discovery.store.server import RedisServer
from ec262.errors import SetupError

log = logging.getLogger("ec262.discovery")

LOOK_S = 0.1
SOON_S = 30.0
"""A store that lived for so long was well; what killed it then is no reason not to start it again."""
PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Before each start after a failure that came soon; there are no more starts than these."""


class Patience:
    """How often a store may fail soon after its start. Counts alone, no clock."""

    def __init__(self) -> None:
        self.failures = 0

    def pause_s(self, lived_s: float) -> float | None:
        """How long to wait before the next start; None: it has failed too often.

        Args:
            lived_s: seconds from the start to the failure.
        """
        self.failures = self.failures + 1 if lived_s < SOON_S else 1
        return PAUSES_S[self.failures - 1] if self.failures <= len(PAUSES_S) else None


class Keeper:
    """Has a server, whichever runs now.

    Args:
        server: one that runs.
        moved: told where the next one listens, once it answers.
    """

    def __init__(self, server: RedisServer, moved: Callable[[str], object] = lambda url: None) -> None:
        self.server = server
        self.moved = moved
        self._patience = Patience()
        self._since = time.monotonic()

    def close(self) -> None:
        """Stops the server."""
        self.server.close()

    def watch(self) -> None:
        """Watches, for ever.

        Raises:
            SetupError: the server failed too often, each time soon after its start; the message says how.
        """
        while True:
            while self.server.alive:
                time.sleep(LOOK_S)
            self._bring_back()

    def _bring_back(self) -> None:
        died = time.monotonic()
        lived_s, what = died - self._since, f"it ended by itself ({self.server.ending}). {self.server.last_words()}"
        log.error(
            "the embedded store (process %d) ended by itself (%s): started again on %s; requests get 503 meanwhile",
            *(self.server.pid, self.server.ending, self.server.data_dir),
        )
        while True:
            pause_s = self._patience.pause_s(lived_s)
            if pause_s is None:
                raise SetupError(
                    f"the embedded store in {self.server.data_dir} failed {self._patience.failures} times, each time "
                    f"soon after its start; at last: {what}"
                )
            time.sleep(pause_s)
            try:
                self.server = self.server.again()
                break
            except SetupError as reason:
                lived_s, what = 0.0, str(reason)
                log.error("the embedded store did not come up: %s", reason)
        self._since = time.monotonic()
        self.moved(self.server.url)
        log.warning("the embedded store runs again (process %d), after %.1f s", self.server.pid, self._since - died)
