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
    from ec262.errors import DiscoveryUnreachable as DiscoveryUnreachable
    from ec262.errors import EC262Error as EC262Error
    from ec262.errors import InsufficientCredits as InsufficientCredits
    from ec262.errors import JobCancelled as JobCancelled
    from ec262.errors import JobFailed as JobFailed
    from ec262.errors import LimitExceeded as LimitExceeded
    from ec262.errors import NetworkError as NetworkError
    from ec262.errors import NoWorkers as NoWorkers
    from ec262.errors import ProgramError as ProgramError
    from ec262.errors import SandboxUnavailable as SandboxUnavailable
    from ec262.errors import SetupError as SetupError
    from ec262.errors import TaskFailed as TaskFailed
    from ec262.errors import Unauthorized as Unauthorized
    from ec262.errors import ValueNotPortable as ValueNotPortable
    from ec262.jobs.job import Job as Job
    from ec262.jobs.report import Progress as Progress
    from ec262.jobs.report import Report as Report
    from ec262.jobs.run import run_job as run_job
    from ec262.jobs.run import submit as submit
    from ec262.mapreduce.context import counter as counter
    from ec262.mapreduce.context import input_name as input_name
    from ec262.mapreduce.context import param as param
    from ec262.mapreduce.program import Program as Program
    from ec262.mapreduce.recorded import combiner as combiner
    from ec262.mapreduce.recorded import mapper as mapper
    from ec262.mapreduce.recorded import reducer as reducer
    from ec262.mapreduce.records import Reader as Reader
    from ec262.policy import Policy as Policy
    from ec262.sandbox.executor_program import executor_program as executor_program
    from ec262.storage.collect import collect as collect
    from ec262.storage.collect import read_pairs as read_pairs
    from ec262.storage.inputs import SharedStorage as SharedStorage
    from ec262.storage.inputs import files as files
    from ec262.worker import run_worker as run_worker
    from ec262.worker.executor import ExecutorTask as ExecutorTask
    from ec262.worker.executor import JobExecutor as JobExecutor

__version__ = "0.1.0"

_HOMES: dict[str, str] = {
    "ExecutorTask": "ec262.worker.executor",
    "Job": "ec262.jobs.job",
    "JobExecutor": "ec262.worker.executor",
    "Policy": "ec262.policy",
    "Program": "ec262.mapreduce.program",
    "Progress": "ec262.jobs.report",
    "Reader": "ec262.mapreduce.records",
    "Report": "ec262.jobs.report",
    "SharedStorage": "ec262.storage.inputs",
    "collect": "ec262.storage.collect",
    "combiner": "ec262.mapreduce.recorded",
    "counter": "ec262.mapreduce.context",
    "executor_program": "ec262.sandbox.executor_program",
    "files": "ec262.storage.inputs",
    "input_name": "ec262.mapreduce.context",
    "mapper": "ec262.mapreduce.recorded",
    "param": "ec262.mapreduce.context",
    "read_pairs": "ec262.storage.collect",
    "reducer": "ec262.mapreduce.recorded",
    "run_job": "ec262.jobs.run",
    "run_worker": "ec262.worker",
    "submit": "ec262.jobs.run",
    **dict.fromkeys(
        (
            *("DiscoveryUnreachable", "EC262Error", "InsufficientCredits", "JobCancelled", "JobFailed"),
            *("LimitExceeded", "NetworkError", "NoWorkers", "ProgramError", "SandboxUnavailable", "SetupError"),
            *("TaskFailed", "Unauthorized", "ValueNotPortable"),
        ),
        "ec262.errors",
    ),
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ec262' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)  # the next look finds it at once
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
