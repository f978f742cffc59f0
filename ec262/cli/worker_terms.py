"""The flags that say on what terms a worker works; `ec262.worker.preferences` reads the same from a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

FIELDS = {
    "niceness": "niceness",
    "memory": "memory_bytes",
    "only_idle": "only_idle",
    "idle_load": "idle_load",
    "idle_after": "idle_after_s",
    "only_on_mains": "only_on_mains",
    "hours": "hours",
    "max_task_cpu": "max_task_cpu_s",
    "max_task_input": "max_task_input_bytes",
    "allow_account": "allow_accounts",
    "deny_account": "deny_accounts",
    "allow_job": "allow_jobs",
    "deny_job": "deny_jobs",
    "max_living": "max_living_s",
    "drain": "drain_s",
    "metrics_port": "metrics_port",
    "metrics_host": "metrics_host",
}
"""Flags, and the settings that they are."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them, none of them chosen."""
    terms = parser.add_argument_group(
        "on your terms", "A flag counts more than the environment, that more than the file."
    )
    terms.add_argument("--niceness", type=int, metavar="N", help="let other programs go first: 0 to 19 (default: 0)")
    terms.add_argument(
        "--memory", type=_size, metavar="SIZE", help="most memory for tasks and what waits, such as 6G: fewer slots"
    )
    terms.add_argument(
        "--only-idle", action=argparse.BooleanOptionalAction, default=None,
        help="work only while nobody else uses this machine",
    )  # fmt: skip
    terms.add_argument(
        "--idle-load", type=_share, metavar="SHARE",
        help="of its processors that others may use while it counts as idle (default: 0.25)",
    )  # fmt: skip
    terms.add_argument(
        "--idle-after", type=_seconds, metavar="TIME", help="how long it has to be idle before (default: 2m)"
    )
    terms.add_argument(
        "--only-on-mains", action=argparse.BooleanOptionalAction, default=None, help="do not work on battery"
    )
    terms.add_argument(
        "--hours", action="append", metavar="SPAN",
        help="when to work, local time: 22:00-07:00, mon-fri@18:00-08:00; may be repeated",
    )  # fmt: skip
    terms.add_argument("--max-task-cpu", type=_seconds, metavar="TIME", help="the longest task taken, such as 10m")
    terms.add_argument("--max-task-input", type=_size, metavar="SIZE", help="the largest input taken, such as 64M")
    for kind in ("account", "job"):
        terms.add_argument(
            f"--allow-{kind}", action="append", metavar="ID",
            help=f"serve this {kind}, and nobody who is not allowed; may be repeated",
        )  # fmt: skip
        terms.add_argument(
            f"--deny-{kind}", action="append", metavar="ID", help=f"do not serve this {kind}; may be repeated"
        )
    terms.add_argument(
        "--max-living",
        type=_seconds,
        metavar="TIME",
        help="end after so long without a word from discovery, such as 12h",
    )
    terms.add_argument(
        "--drain", type=_seconds, metavar="TIME", help="most time to finish and deliver on leaving (default: 30s)"
    )
    terms.add_argument("--metrics-port", type=int, metavar="PORT", help="metrics for Prometheus there, 0 for any port")
    terms.add_argument("--metrics-host", metavar="ADDRESS", help="address of that port (default: 127.0.0.1)")


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Settings as the flags say; None: not chosen."""
    values = {setting: getattr(args, flag) for flag, setting in FIELDS.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _seconds(text: str) -> float:
    from ec262.worker.preferences import read_seconds  # noqa: PLC0415 - only where it is used

    return _read(read_seconds, text)


def _size(text: str) -> int:
    from ec262.worker.preferences import read_size  # noqa: PLC0415 - as above

    return _read(read_size, text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError("has to be a number from 0 to 1")
    return share


def _read(reader: Callable[[object], T], text: str) -> T:
    try:
        return reader(text)
    except ValueError as reason:
        raise argparse.ArgumentTypeError(str(reason)) from None
