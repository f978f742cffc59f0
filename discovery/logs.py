"""Logs: lines for people, or on request a JSON object a line for programs that collect them."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Literal

Form = Literal["text", "json"]


class JSONLines(logging.Formatter):
    """One object a line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ``process``, and what else is
    known: ``error`` (a traceback); of a request ``method``, ``path``, ``status``, ``bytes``, ``seconds``, ``address``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line; nothing in it breaks it, for JSON escapes line breaks and control characters."""
        told: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        told.update(getattr(record, "fields", {}))
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def say(form: Form, text: str, level: int = logging.WARNING) -> None:
    """Tells whoever started the program something, in the form that its log has."""
    if form == "json":
        logging.getLogger("ec262.discovery").log(level, "%s", text)
    else:
        print(text, file=sys.stderr, flush=True)


def start_logging(form: Form, *, verbose: bool) -> None:
    """Sends this process' log to standard error."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JSONLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
