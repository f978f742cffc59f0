"""Before a job spends a credit: the shipped form of its program, tried on a small sample in a sandbox of our own.

What is compared, each with the first differing record in its error:

1. The shipped form runs at all. What it raises is the author's business if the functions themselves raise as well (the
   job will say so); what only the shipped form raises is an error here.
2. Two sandboxes with different orders of sets give the same bytes: workers have to agree.
3. The shipped form gives what the functions give here. These run second, once the shipped form is known to do without
   files and network, and in a fork that can touch nothing (`ec262.foreman.original`): the author's lists, streams and
   generators stay as they are. Numbers may differ in the last digits: a library may use more threads here. Functions
   that do not agree with themselves (they draw random numbers, which the sandbox seeds) cannot be compared.
4. With a combiner the reducer makes of the sample what it makes without.

The sample is small and its work is bounded: about a second altogether. What does not fit is left out, in the order
4, 3, 2, and an item that takes longer by itself is no error. Long texts and byte strings are cut (`Sample.brief`);
whole ones are tried where the program cannot do with a part. A program is rehearsed once a process. Cost of a first
job: 80-110 ms on two idle cores, more where they are busy; most of it is the start of two interpreters side by side.

Everything here blocks and waits by ``select.poll``: it may be called in any thread, before there is an event loop.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ec262.errors import ProgramError, SandboxUnavailable, ValueNotPortable
from ec262.foreman.differences import difference, equal, first_unlike
from ec262.foreman.original import Original, Steps, advance, run_original
from ec262.foreman.sample import Sample
from ec262.mapreduce.program import Program, map_header, name_of, reduce_header, split_counters
from ec262.sandbox.executor_program import ExecutorMapper
from ec262.sandbox.launcher import Outcome, Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from ec262.sandbox.policy import DEFAULT, Policy

log = logging.getLogger("ec262.foreman")

BUDGET_S: Final = 1.0
"""Seconds of work on the sample, all runs together; the start of the sandboxes is not counted."""
REDUCE_BYTES: Final = 1024 * 1024
"""Map results larger than this are not reduced."""
OWN_PROGRAM: Final = dataclasses.replace(DEFAULT, namespaces=())
"""As the workers' sandbox for all that a program can notice; one's own need not be kept in by more, and 10 ms less."""
OTHER_SET_ORDER: Final = DEFAULT.hash_seed + 1
_RUNS: Final = 4
"""The shipped form, the same with another order of sets, the functions here, without combiner."""
_KNOWN_PROGRAMS: Final = 1000
_OPTIONAL_MODULES: Final = ("numpy",)
"""Installed here or not, workers may have them."""

_OFF: Final = "rehearse=False runs the job without this check"

_known: dict[bytes, None] = {}
_lock = threading.Lock()


def rehearse(
    program: Program,
    packed: bytes,
    sample: Sample,
    *,
    budget_s: float = BUDGET_S,
    policy: Policy = OWN_PROGRAM,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Tries a program on a sample; returns when there is nothing to be said against it. See the module.

    Args:
        program: the functions as they are here.
        packed: what `pack_program` made of them.
        sample: records as `ec262.foreman.sample.sample_of` gives them.
        budget_s: seconds of work on the sample.
        policy: of the sandbox. Where the machine has none the shipped form runs unconfined: it is one's own.
        stop: asked now and then; True ends it without an answer.

    Raises:
        ProgramError: what is wrong, with function, line, and the first differing record.
        ValueNotPortable: it gives keys or values that cannot travel.
    """
    if isinstance(program.mapper, ExecutorMapper):
        return  # what maps is not here
    digest = hashlib.sha256(packed).digest()
    with _lock:
        if digest in _known or not sample:
            return
    brief = sample.brief()
    try:
        # Of long items a part tells as much in a fraction of the time. What there is against it may be due to the cut.
        settled = brief is not None and _is_fine(_Rehearsal(program, packed, brief, budget_s, policy, stop))
        settled = settled or _Rehearsal(program, packed, sample, budget_s, policy, stop).run()
    except SandboxUnavailable as reason:
        log.warning("the program could not be tried out here before it is sent to workers: %s", reason)
        return
    if settled:
        with _lock:
            _known[digest] = None
            while len(_known) > _KNOWN_PROGRAMS:
                del _known[next(iter(_known))]


def _is_fine(rehearsal: _Rehearsal) -> bool:
    try:
        return rehearsal.run()
    except (ProgramError, ValueNotPortable):
        return False


class _Rehearsal:
    """One program on one sample."""

    def __init__(
        self,
        program: Program,
        packed: bytes,
        sample: Sample,
        budget_s: float,
        policy: Policy,
        stop: Callable[[], bool],
    ) -> None:
        self._program = program
        self._packed = packed
        self._digest = hashlib.sha256(packed).hexdigest()
        self._sample = sample
        self._chosen: int | None = None  # so many records after the first are tried
        # Two partitions, so that a program's own partitioner has something to decide.
        self._partitions = 2 if callable(program.partitioner) else 1
        self._budget_s = budget_s
        self._until = 0.0
        extra = {name for name in _OPTIONAL_MODULES if name.encode() in packed and _is_installed(name)}
        self._policy = dataclasses.replace(policy, extra_modules=policy.extra_modules | extra)
        self._stop = stop

    def run(self) -> bool:
        """Whether the program need not be tried again."""
        other = _Companion(dataclasses.replace(self._policy, hash_seed=OTHER_SET_ORDER))
        try:
            with Sandbox(policy=self._policy, unconfined=True) as sandbox:
                return self._compare(sandbox, other)
        finally:
            other.close()

    def _compare(self, sandbox: Sandbox, other: _Companion) -> bool:
        began = time.monotonic()
        self._until = began + self._budget_s
        shipped = self._run(sandbox, self._packed)
        if not shipped.done:
            return self._failed(shipped)
        cost_s = time.monotonic() - began
        second = other.sandbox
        waited = time.monotonic()
        self._until += waited - began - cost_s  # for the other interpreter: that is no work on the sample
        if second is not None and self._left_s() > cost_s:
            self._same_bytes(shipped, self._run(second, self._packed))
        if self._left_s() > cost_s:
            original = self._run_original()
            if original is not None:
                self._same_as_original(shipped, original)
        if self._program.combiner is not None and self._program.reducer is not None and self._left_s() > cost_s:
            self._same_without_combiner(sandbox, shipped)
        return not self._stop()

    # --- runs ---

    def _left_s(self) -> float:
        return 0.0 if self._stop() else self._until - time.monotonic()

    def _steps(self) -> Steps:
        """The tasks of a run: the first item, the others together, and a reduce of what came out."""
        sample, partitions = self._sample, self._partitions
        header = partial(map_header, self._digest, partitions=partitions, spec=sample.spec)
        mapped, _ = split_counters((yield [header(index=0), *sample.parts(0, 1)]), partitions)
        more = len(sample) - 1 if self._chosen is None else self._chosen
        if more:
            others, _ = split_counters((yield [header(index=1), *sample.parts(1, 1 + more)]), partitions)
            mapped = mapped + others
        if sum(map(len, mapped)) <= REDUCE_BYTES:
            yield [reduce_header(self._digest, index=0), *mapped]

    def _run(self, sandbox: Sandbox, packed: bytes) -> _Run:
        """All tasks of a run in one unit."""
        steps = self._steps()
        run = _Run(next(steps))

        def take() -> UnitTask | None:
            parts, run.waiting = run.waiting, None
            left_s = self._left_s()
            if parts is None or left_s <= 0:
                return None
            return UnitTask(len(run.results), parts, left_s, left_s)

        def took(_: UnitTask, outcome: Outcome) -> None:
            if outcome.kind != "ok":
                run.bad = outcome
                return
            run.results.append(outcome.parts)
            if self._chosen is None:
                # As many as may be had in every run, with as much again to spare.
                most = self._budget_s / (2 * _RUNS) / max(outcome.wall_s, 1e-6)
                self._chosen = min(len(self._sample) - 1, int(most))
            run.waiting = advance(steps, outcome.parts)
            run.done = run.waiting is None

        sandbox.run_unit(packed, take, took, stop=self._stop, more=lambda: run.waiting is not None)
        return run

    def _run_original(self) -> Original | None:
        return run_original(self._program, self._steps, self._left_s(), self._stop)

    # --- what they say ---

    def _failed(self, shipped: _Run) -> bool:
        """The shipped form came to no end: whether that is for the job to report, or an error already."""
        error = shipped.bad.error if shipped.bad is not None else None
        if error is None or error.limit in ("cpu", "wall"):
            return not self._stop()  # too slow to be tried
        if error.type in ("ProgramError", "ValueNotPortable") and not error.line:
            if self._sample.spec.get("name") and error.message.startswith(self._sample.spec["name"]):
                return False  # the file is not what its reader reads: the job's policy says what becomes of that
            raise (ProgramError if error.type == "ProgramError" else ValueNotPortable)(
                f"{error.message}; it is {self._blamed(shipped)}"
            )
        if error.type == "NotAvailable":
            if not any(f"module {name} " in error.message for name in _OPTIONAL_MODULES if not _is_installed(name)):
                raise ProgramError(f"{self._blamed(shipped)}: {error.message}{_at(error.line)}\n{error.traceback}")
            return False
        left_s = self._left_s()
        original = self._run_original() if left_s > 0 else None
        if original is not None and len(original.results) > len(shipped.results):
            what = error.message if error.limit else f"{error.type}: {error.message}"
            raise ProgramError(
                f"{self._blamed(shipped)} fails in the sandbox, and not outside of it: {what}{_at(error.line)}; "
                f"something it uses did not travel with it\n{error.traceback}".rstrip()
            )
        return False

    def _same_bytes(self, shipped: _Run, second: _Run) -> None:
        error = second.bad.error if second.bad is not None else None
        if error is not None and error.limit not in ("cpu", "wall"):
            raise ProgramError(
                f"{self._blamed(second)} is not deterministic: run again on the same input it failed with "
                f"{error.type}: {error.message}{_at(error.line)}; {_OFF}"
            )
        for at, (one, two) in enumerate(zip(shipped.results, second.results, strict=False)):
            if one != two:
                raise ProgramError(
                    f"{self._who(at, len(shipped.results))} is not deterministic, so workers could not agree on its "
                    f"result: two runs on the same input gave {difference(one, two, 'first', 'then', equal)}. "
                    "Usual causes: the order of a set (loop over sorted(...)), hash() or id() of something, the repr "
                    f"of an object; {_OFF}"
                )

    def _same_as_original(self, shipped: _Run, original: Original) -> None:
        at = first_unlike(shipped.results, original.results)
        if at is None:
            return
        try:
            if pack_program(self._program) != self._packed:
                return  # the program has gone on meanwhile, and changed what its functions use
        except Exception:
            return
        again = self._run_original()
        if again is None or again.results[at : at + 1] != original.results[at : at + 1]:
            return  # it does not agree with itself: the sandbox seeds what it draws
        raise ProgramError(
            f"{self._who(at, len(shipped.results))} gives another result when it is shipped: "
            f"{difference(shipped.results[at], original.results[at], 'shipped', 'here')}. "
            "Usual causes: it changes global variables (each task starts with those of the job's start), it depends "
            f"on the order of a set or on this machine, or a decorator lost its meaning on the way; {_OFF}"
        )

    def _same_without_combiner(self, sandbox: Sandbox, shipped: _Run) -> None:
        program = self._program
        steps = 2 + bool(self._chosen)
        if len(shipped.results) != steps:
            return  # nothing was reduced
        plain = self._run(sandbox, pack_program(dataclasses.replace(program, combiner=None)))
        if not plain.done or len(plain.results) != steps:
            return
        if first_unlike(shipped.results[-1:], plain.results[-1:]) is not None:
            raise ProgramError(
                f"combiner {_place(program.combiner)} does not suit reducer {_place(program.reducer)}: with it the "
                f"result is another, {difference(shipped.results[-1], plain.results[-1], 'with', 'without')}. "
                "What the combiner returns stands in for the values it was given, and each map task combines its own "
                f"(a mean of means is not the mean); {_OFF}"
            )

    def _blamed(self, run: _Run) -> str:
        """Whose fault the end of a run is: of the function its error's first frame names, or of the phase's."""
        program = self._program
        is_reduce = len(run.results) >= 1 + bool(self._chosen)
        error = run.bad.error if run.bad is not None else None
        first = next((line for line in (error.traceback if error else "").splitlines() if ", in " in line), "")
        combiner = program.combiner
        if combiner is not None and not is_reduce and first.rpartition(", in ")[2] == name_of(combiner):
            return f"combiner {_place(combiner)}"
        if is_reduce and program.reducer is not None:
            return f"reducer {_place(program.reducer)}"
        return f"mapper {_place(program.mapper)}"

    def _who(self, at: int, steps: int) -> str:
        """The function a task's result comes from."""
        program = self._program
        if at == 1 + bool(self._chosen) and program.reducer is not None:
            return f"reducer {_place(program.reducer)}"
        others = [
            f"{role} {_place(function)}"
            for role, function in (("combiner", program.combiner), ("partitioner", program.partitioner))
            if callable(function)
        ]
        if others:
            return f"mapper {_place(program.mapper)} (or {' or '.join(others)})"
        return f"mapper {_place(program.mapper)}"


@dataclasses.dataclass(slots=True)
class _Run:
    """A run in a sandbox, as far as it came."""

    waiting: list[bytes] | None
    results: list[list[bytes]] = dataclasses.field(default_factory=list)
    bad: Outcome | None = None
    done: bool = False


class _Companion:
    """A second sandbox, started beside the first one."""

    def __init__(self, policy: Policy) -> None:
        self._sandbox = Sandbox(policy=policy, unconfined=True)
        self._started = False
        self._thread = threading.Thread(target=self._start, name="ec262-rehearsal", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        try:
            self._sandbox.start()
            self._started = True
        except SandboxUnavailable as reason:
            log.warning("no second sandbox to compare with: %s", reason)

    @property
    def sandbox(self) -> Sandbox | None:
        """The sandbox, once it has started; None where it does not."""
        self._thread.join()
        return self._sandbox if self._started else None

    def close(self) -> None:
        """Ends it, and the thread that may still be starting it."""
        self._sandbox.close()
        self._thread.join()


def _place(function: Any) -> str:
    """Name, file and line of a function: also of partials and callable objects."""
    inner = function
    while not hasattr(inner, "__code__") and hasattr(inner, "func"):
        inner = inner.func
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return f"{name_of(function)} ({code.co_filename}:{code.co_firstlineno})" if code else name_of(function)


def _at(line: str) -> str:
    return f" (at {line})" if line else ""


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
