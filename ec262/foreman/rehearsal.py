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
4, 3, 2, and an item that takes longer by itself is no error. A program is rehearsed once a process. Cost of a first
job: 80-90 ms on two idle cores, more where they are busy; most of it is the start of two
interpreters side by side.

Everything here blocks and waits by ``select.poll``: it may be called in any thread, before there is an event loop.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ec262.errors import Malformed, ProgramError, SandboxUnavailable, ValueNotPortable
from ec262.foreman.original import Original, Steps, advance, run_original
from ec262.mapreduce.program import Program, map_header, name_of, reduce_header
from ec262.protocol.canonical import decode_pairs, sort_key
from ec262.sandbox.launcher import Outcome, Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from ec262.sandbox.policy import DEFAULT, Policy

log = logging.getLogger("ec262.foreman")

BUDGET_S: Final = 1.0
"""Seconds of work on the sample, all runs together; the start of the sandboxes is not counted."""
SAMPLE_ITEMS: Final = 8
SAMPLE_BYTES: Final = 256 * 1024
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


def sample_of(splits: Sequence[bytes], items: int = SAMPLE_ITEMS) -> list[bytes]:
    """A few items of a job's input, from all over it, each as a part of its own.

    Args:
        splits: the input of each map task, as `split_items` makes it.
        items: how many at most. The first is always among them, others only up to `SAMPLE_BYTES`.
    """
    count = min(items, len(splits))
    if not count:
        return []
    places = sorted({at * (len(splits) - 1) // max(1, count - 1) for at in range(count)})
    sample: list[bytes] = []
    size = 0
    for place in places:
        for item in itertools.islice(_items(splits[place]), -(-items // count)):
            size += len(item)
            if sample and size > SAMPLE_BYTES:
                break
            sample.append(b"[" + item + b"]")
    return sample[:items]


def _items(part: bytes) -> Iterator[bytes]:
    """The encoded pairs of a part, one by one: a large part is not read as a whole."""
    text = part.decode("ascii")
    decoder = json.JSONDecoder()
    at = 1
    while at < len(text) - 1:
        _, end = decoder.raw_decode(text, at)
        yield part[at:end]
        at = end + 1  # the comma


def rehearse(
    program: Program,
    packed: bytes,
    sample: Sequence[bytes],
    *,
    budget_s: float = BUDGET_S,
    policy: Policy = OWN_PROGRAM,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Tries a program on a sample; returns when there is nothing to be said against it. See the module.

    Args:
        program: the functions as they are here.
        packed: what `pack_program` made of them.
        sample: items as `sample_of` gives them.
        budget_s: seconds of work on the sample.
        policy: of the sandbox. Where the machine has none the shipped form runs unconfined: it is one's own.
        stop: asked now and then; True ends it without an answer.

    Raises:
        ProgramError: what is wrong, with function, line, and the first differing record.
        ValueNotPortable: it gives keys or values that cannot travel.
    """
    digest = hashlib.sha256(packed).digest()
    with _lock:
        if digest in _known or not sample:
            return
    try:
        settled = _Rehearsal(program, packed, sample, budget_s, policy, stop).run()
    except SandboxUnavailable as reason:
        log.warning("the program could not be tried out here before it is sent to workers: %s", reason)
        return
    if settled:
        with _lock:
            _known[digest] = None
            while len(_known) > _KNOWN_PROGRAMS:
                del _known[next(iter(_known))]


class _Rehearsal:
    """One program on one sample."""

    def __init__(
        self,
        program: Program,
        packed: bytes,
        sample: Sequence[bytes],
        budget_s: float,
        policy: Policy,
        stop: Callable[[], bool],
    ) -> None:
        self._program = program
        self._packed = packed
        self._digest = hashlib.sha256(packed).hexdigest()
        self._first, self._rest = sample[0], list(sample[1:])
        self._chosen: list[bytes] | None = None
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
        (first,) = yield [map_header(self._digest, index=0, partitions=1), self._first]
        mapped = [first]
        rest = self._rest if self._chosen is None else self._chosen
        if rest:
            joined = b"[" + b",".join([item[1:-1] for item in rest]) + b"]"
            (more,) = yield [map_header(self._digest, index=1, partitions=1), joined]
            mapped.append(more)
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
                self._chosen = self._rest[: int(most)]
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
                    f"result: two runs on the same input gave {_difference(one[0], two[0], 'first', 'then', _equal)}. "
                    "Usual causes: the order of a set (loop over sorted(...)), hash() or id() of something, the repr "
                    f"of an object; {_OFF}"
                )

    def _same_as_original(self, shipped: _Run, original: Original) -> None:
        at = _first_unlike(shipped.results, original.results)
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
            f"{_difference(shipped.results[at][0], original.results[at][0], 'shipped', 'here')}. "
            "Usual causes: it changes global variables (each task starts with those of the job's start), it depends "
            f"on the order of a set or on this machine, or a decorator lost its meaning on the way; {_OFF}"
        )

    def _same_without_combiner(self, sandbox: Sandbox, shipped: _Run) -> None:
        program = self._program
        steps = 2 + bool(self._chosen)
        if len(shipped.results) != steps:
            return  # nothing was reduced
        plain = self._run(sandbox, pack_program(Program(program.mapper, program.reducer)))
        if not plain.done or len(plain.results) != steps:
            return
        if _first_unlike(shipped.results[-1:], plain.results[-1:]) is not None:
            raise ProgramError(
                f"combiner {_place(program.combiner)} does not suit reducer {_place(program.reducer)}: with it the "
                f"result is another, {_difference(shipped.results[-1][0], plain.results[-1][0], 'with', 'without')}. "
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
        if program.combiner is not None:
            return f"mapper {_place(program.mapper)} (or combiner {_place(program.combiner)})"
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


# --- showing and comparing ---


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


def _first_unlike(one: Sequence[list[bytes]], two: Sequence[list[bytes]]) -> int | None:
    """Which task's results differ by more than the last digits of a number; compared as far as both go."""
    for at, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right:
            pairs = [[decode_pairs(part) for part in parts] for parts in (left, right)]
            if not _alike(*pairs):
                return at
    return None


def _alike(one: Any, two: Any) -> bool:
    if type(one) is not type(two):
        return {type(one), type(two)} == {int, float} and math.isclose(one, two, rel_tol=1e-9)
    if isinstance(one, float):
        return math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(_alike, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_alike(value, two[key]) for key, value in one.items())
    return bool(one == two)


def _difference(one: bytes, two: bytes, name_one: str, name_two: str, same: Callable[[Any, Any], bool] = _alike) -> str:
    """The first record in which two parts of pairs differ, in words."""
    try:
        left, right = ({_identity(key): (key, value) for key, value in decode_pairs(part)} for part in (one, two))
    except Malformed:
        return "bytes that are no records"
    for place in sorted({**left, **right}):
        mine, yours = left.get(place), right.get(place)
        if mine is None or yours is None:
            key = (mine or yours or (None,))[0]
            has, lacks = (name_one, name_two) if yours is None else (name_two, name_one)
            value = (mine or yours or (None, None))[1]
            return f"key {_show(key)} {has} with {_show(value)}, {lacks} not at all"
        if not same(mine[1], yours[1]):
            return f"for key {_show(mine[0])} {name_one} {_contrast(mine[1], yours[1])}, {name_two} " + _contrast(
                yours[1], mine[1]
            )
    return "the same records in another order"


def _equal(one: Any, two: Any) -> bool:
    return repr(one) == repr(two)  # 1 is not 1.0 here, nor 0.0 -0.0


def _identity(key: Any) -> tuple[Any, str]:
    return sort_key(key), type(key).__name__


def _contrast(value: Any, other: Any) -> str:
    """A value, where it is long from the first place on in which it differs from the other."""
    text = repr(value)
    if len(text) > 120 and isinstance(value, list) and isinstance(other, list):
        at = next((at for at, (one, two) in enumerate(zip(value, other, strict=False)) if one != two), len(other))
        if at < len(value):
            return f"{_show(value[at])} (place {at} of {len(value)})"
        return f"a list of {len(value)}"
    return _show(value)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."
