"""``ec262 run``: runs a program on files, wherever one wants."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ec262.errors import ProgramError, SetupError, ValueNotPortable
from ec262.protocol.canonical import encode_value

if TYPE_CHECKING:
    from ec262.backends.base import Believed
    from ec262.jobs.report import Report
    from ec262.mapreduce.program import Program

EXAMPLES = """\
examples:
  ec262 run wordcount book.txt --output count              count words on a network of this machine
  ec262 collect count count_all                            its files count_00, count_01, ... as one, in order
  ec262 run wordcount --split-size 100000 --reducers 4 'book_*' --output count --discovery https://discovery.example
  ec262 run grep --param pattern='whales?' moby.txt --local
  ec262 run path/to/my_program.py:Program data.csv --backend processes
  ec262 run wordcount hdfs://namenode:9000/books --output hdfs://namenode:9000/count --backend dask

A program is the name of one that comes with EC262 (ec262 run --list), or FILE.py:NAME, where NAME is an ec262.Program,
a list of them (stages), or a function that gives either; FILE.py alone takes what it marked with @ec262.mapper.
Without --output the result is printed.

exit codes: 0 done, 1 the job failed or could not start, 2 wrong flags, 4 done but for tasks that failed and were
skipped (--on-failure skip), 130 Ctrl-C, 141 nobody reads what it prints
"""

SHOWN_DISPUTES = 10
EXIT_OK, EXIT_SKIPPED, EXIT_SIGPIPE = 0, 4, 141


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "run", help="run a program on files", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "words", nargs="*", metavar="PROGRAM FILE",
        help="a program's name or FILE.py:NAME; then paths, URLs, globs, directories, base names (book_: book_00, ...)",
    )  # fmt: skip
    add("--list", action="store_true", help="the programs that come with EC262")
    add("--output", "-o", metavar="PREFIX", help="write files PREFIX_00, PREFIX_01, ... instead of printing")
    add("--format", choices=["text", "values", "binary", "json"], help="of the output (default: the program's)")
    add(
        *("--param", "-p"), action="append", default=[], metavar="NAME=VALUE",
        help="a parameter: a Python literal, or else text; may be repeated",
    )  # fmt: skip
    where = parser.add_argument_group("where it runs")
    where.add_argument("--backend", choices=["network", "local", "processes", "dask"], help="default: network")
    where.add_argument("--local", action="store_true", help="as --backend local: sequential, in this process")
    where.add_argument("--discovery", metavar="URL", help="default: $EC262_DISCOVERY, else a network of this machine")
    where.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler (default: a cluster of this machine)")
    where.add_argument("--sandbox", action="store_true", help="with --backend processes: confined as on a volunteer's")
    how = parser.add_argument_group("how it runs (see ec262.Policy)")
    how.add_argument("--split-size", type=_size, metavar="BYTES", help="of a map task; 100000, 64K, 4M")
    how.add_argument("--reducers", type=int, metavar="N", help="reduce partitions, and so output files")
    how.add_argument(
        "--confidence", type=float, metavar="P",
        help="how likely each result has to be right, by what is known of the workers (public networks: 0.99)",
    )  # fmt: skip
    how.add_argument(
        "--redundancy", type=int, metavar="N", help="instead: workers that compute each task (private networks: 1)"
    )
    how.add_argument("--quorum", type=int, metavar="N", help="how many of them must agree")
    how.add_argument("--price", type=int, metavar="N", help="most credits a CPU minute may cost (default: 1)")
    how.add_argument("--cpu-limit", type=float, dest="cpu_limit_s", metavar="S", help="CPU seconds of a task")
    how.add_argument("--timeout", type=float, dest="timeout_s", metavar="S", help="after which a task is given up")
    how.add_argument("--max-retries", type=int, metavar="N", help="0: no task may run twice")
    how.add_argument("--on-failure", choices=["fail", "skip"], help="what a failed task does (default: fail)")
    how.add_argument("--no-backup", action="store_false", dest="backup_tasks", default=None, help="no backup tasks")
    how.add_argument("--max-credits", type=int, metavar="N", help="most the job may cost")
    how.add_argument(
        "--require", action="append", dest="requirements", metavar="CAPABILITY", help="of workers, such as data:books"
    )
    how.add_argument(
        "--memory-limit", type=_size, metavar="BYTES", help="of results in memory; what is more is spooled"
    )
    how.add_argument(
        "--wait", type=float, dest="wait_for_workers_s", metavar="S", help="for workers, where none is free"
    )
    how.add_argument("--seed", type=int, metavar="N", help="of what is drawn by chance")
    how.add_argument("--no-rehearsal", action="store_false", dest="rehearse", default=None, help="do not try it first")
    how.add_argument("--overwrite", action="store_true", default=None, help="replace output files that are there")
    add("--checkpoint", metavar="DIR", help="after a crash the same command goes on where it was")
    add("--name", default="", help="of the job, for people")
    add("--quiet", "-q", action="store_true", help="no progress, no summary")
    add("--verbose", "-v", action="store_true", help="tell what happens to tasks, and their ids for ec262 explain")
    parser.set_defaults(run=run, parser=parser)


POLICY = (
    *("split_size", "reducers", "confidence", "redundancy", "quorum", "price", "cpu_limit_s", "timeout_s"),
    *("max_retries", "on_failure", "backup_tasks", "max_credits", "requirements", "memory_limit"),
    *("wait_for_workers_s", "seed", "rehearse", "overwrite"),
)


def run(flags: argparse.Namespace) -> int:
    """Runs the program; see the exit codes above."""
    from ec262.jobs.run import connector, run_job, submit  # noqa: PLC0415 - --help does without
    from ec262.policy import Policy  # noqa: PLC0415
    from ec262.programs import NAMES  # noqa: PLC0415

    if flags.list:
        print("\n".join(NAMES))
        return EXIT_OK
    if len(flags.words) < 2:
        flags.parser.error("a program and at least one input are needed; see ec262 run --help")
    program, *inputs = flags.words
    if flags.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if flags.local and flags.backend not in (None, "local"):
        flags.parser.error(f"--local and --backend {flags.backend} exclude each other")
    options = {name: getattr(flags, name) for name in POLICY if getattr(flags, name) is not None}
    if "requirements" in options:
        options["requirements"] = tuple(options["requirements"])
    backend = "local" if flags.local else flags.backend or "network"
    name = flags.name or (Path(program.partition(":")[0]).stem if ".py" in program else program)
    where = {"discovery": flags.discovery, "cluster": flags.cluster, "sandbox": flags.sandbox, "name": name}
    try:
        params = dict(map(_param, flags.param))
        policy = Policy(**options)
        connector(backend, **where)
    except ProgramError as reason:
        flags.parser.error(str(reason))
    stages = load(program)
    common: dict[str, Any] = {
        "stages": stages,
        "params": params,
        "policy": policy,
        "backend": backend,
        "checkpoint": flags.checkpoint,
        **where,
    }
    progress = False if flags.quiet else None
    if flags.output is not None:
        report = run_job(inputs, output=flags.output, output_format=flags.format, progress=progress, **common)
        if not flags.quiet:
            summarise(report)
        return EXIT_SKIPPED if report.failed else EXIT_OK
    # The job's report is wanted as well as its pairs: run_job gives one of them.
    from ec262.jobs.report import TerminalLine  # noqa: PLC0415

    line = None if flags.quiet else TerminalLine()
    job = submit(inputs, progress=line, **common)
    try:
        while not job.wait(0.5):
            pass
        pairs = job.pairs()
        if line is not None:
            line.end()
        if not show(pairs, flags.format or stages[-1].output_format):
            return EXIT_SIGPIPE
        report = job.report()
    finally:
        job.close()
        if line is not None:
            line.end()
    if not flags.quiet:
        summarise(report)
    return EXIT_SKIPPED if report.failed else EXIT_OK


def show(pairs: Any, form: str) -> bool:
    """Prints results as they would stand in a file; False: whoever reads has enough, such as `| head`."""
    from ec262.storage.output import encoder  # noqa: PLC0415

    encode = encoder(form)
    out = sys.stdout.buffer
    try:
        for key, value in pairs:
            out.write(encode(key, value))
        out.flush()
    except BrokenPipeError:
        # Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def summarise(report: Report) -> None:
    """Tells on standard error what a job did and cost."""
    from ec262.jobs.report import duration_text  # noqa: PLC0415

    def clean(text: str) -> str:
        """Nothing that drives a terminal: names come from programs and from workers."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

    text = f"{report.map_tasks} map and {report.reduce_tasks} reduce tasks in {duration_text(report.elapsed_s)}"
    if report.credits_spent:
        text += f", {report.credits_spent} credits to {len(report.earned)} workers"
    if report.retried:
        text += f", {report.retried} retried"
    print(text, file=sys.stderr)
    told = believed_text(report.believed)
    if told:
        print(told, file=sys.stderr)
    for name, count in report.counters.items():
        print(f"{clean(name)}: {count}", file=sys.stderr)
    for failed in report.failed:
        reason = failed.reason.partition("\n")[0]
        see = f" (ec262 explain {clean(failed.task_id)})" if failed.task_id else ""
        print(f"failed and skipped: {clean(failed.label)}: {clean(reason)}{see}", file=sys.stderr)
    for junk in report.believed.disputed[:SHOWN_DISPUTES]:
        back = f", {junk.refund} credits came back" if junk.refund > 0 else ""
        print(
            f"paid for junk: {clean(junk.label)} of worker {clean(junk.worker_id)}; dispute {junk.verdict}{back} "
            f"(ec262 explain {clean(junk.task_id)})",
            file=sys.stderr,
        )
    if len(report.believed.disputed) > SHOWN_DISPUTES:
        print(f"... and {len(report.believed.disputed) - SHOWN_DISPUTES} more", file=sys.stderr)
    if report.files:
        print(
            f"written: {report.files[0]}" + (f" ... {report.files[-1]}" if len(report.files) > 1 else ""),
            file=sys.stderr,
        )


def believed_text(believed: Believed) -> str:
    """How workers agreed, where more than one of them was asked or may have been."""
    told = []
    if believed.confidence is not None:
        told.append(f"each result believed with {believed.confidence:.4f} or more")
    if believed.confidence is not None or believed.replicas > 1:
        told.append(f"{believed.replicas:.2f} replicas a task")
    if believed.disagreements:
        told.append(f"{believed.disagreements} answers outvoted")
    if believed.recomputed:
        told.append(f"{believed.recomputed} tasks computed anew as their workers were no longer believed")
    if believed.unaudited:
        told.append(f"{believed.unaudited} results of an earlier run that discovery has forgotten the workers of")
    if believed.clarity < 0.5:
        told.append("the program looks nondeterministic")
    return ", ".join(told)


def load(name: str) -> list[Program]:
    """The programs that a command line names.

    Raises:
        ProgramError: no such program, or a file that does not hold one.
        SetupError: no such file.
    """
    from ec262 import programs  # noqa: PLC0415

    path, colon, inside = name.rpartition(":") if ".py:" in name else (name, "", "")
    if not path.endswith(".py"):
        return [programs.find(name).program]
    return _from_file(Path(path), inside if colon else "")


def _from_file(path: Path, name: str) -> list[Program]:
    from ec262.mapreduce.program import Program  # noqa: PLC0415
    from ec262.mapreduce.recorded import program_for  # noqa: PLC0415

    module = _import(path)
    if not name:
        return [program_for(module.__name__)]
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ProgramError(f"{path} has nothing called {name}") from None
    wanted = f"{name} in {path} has to be an ec262.Program, a list of them, or a function without arguments that gives"
    if callable(found) and not isinstance(found, Program):
        try:
            inspect.signature(found).bind()
        except (TypeError, ValueError):
            raise ProgramError(f"{wanted} either (FILE.py alone takes what is marked with @ec262.mapper)") from None
        try:
            found = found()
        except Exception as reason:
            raise ProgramError(f"{name}() in {path} failed: {_told(reason, path)}") from reason
    stages = list(found) if isinstance(found, Sequence) else [found]
    if not stages or not all(isinstance(stage, Program) for stage in stages):
        raise ProgramError(f"{wanted} either")
    return stages


def _import(path: Path) -> ModuleType:
    # One that is called as a module that is there already must not take that one's place.
    name = path.stem if path.stem not in sys.modules | dict.fromkeys(sys.stdlib_module_names) else f"{path.stem}_py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SetupError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))  # as for a script: what stands beside it can be imported
    try:
        spec.loader.exec_module(module)
    except Exception as reason:
        raise ProgramError(f"{path} cannot be loaded: {_told(reason, path)}") from reason
    return module


def _told(reason: Exception, path: Path) -> str:
    """An exception, and the line of the file it comes from."""
    lines = [f.lineno for f in traceback.extract_tb(reason.__traceback__) if Path(f.filename).name == path.name]
    return f"{type(reason).__name__}: {reason}" + (f" (line {lines[-1]})" if lines else "")


def _param(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``: the value is a Python literal where it looks like one of plain data, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ProgramError(f"--param {text!r}: has to be NAME=VALUE")
    try:
        literal = ast.literal_eval(value)
        encode_value(literal)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, ValueNotPortable):
        return name, value
    return name, literal


def _size(text: str) -> int:
    """Bytes: a number, with K, M or G for powers of 1024."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    try:
        return int(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes: 100000, 64K, 4M") from None
