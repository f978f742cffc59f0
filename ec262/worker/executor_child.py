"""Inside the process of an executor: reads tasks as frames, has them computed, writes results as frames.

Started as a script by `executor_process`, with a descriptor of what it is to be. It speaks what the sandbox's child
speaks (`ec262.sandbox.frames`), so that the worker keeps the same limits.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import resource
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn


def main() -> NoReturn:
    """Argument one is the descriptor of a file: a line of JSON (where modules are), then the pickled executor."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        sys.path[:] = json.loads(file.readline())
        pickled = file.read()
    tasks, results = os.dup(0), os.dup(1)  # not inherited by what the executor starts
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)  # what it prints is for the volunteer
    try:
        executor = pickle.loads(pickled)  # noqa: S301 - the volunteer's own, written by the worker a moment ago
        executor.start()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    _Server(executor, tasks, results).serve()


class _Server:
    def __init__(self, executor: Any, tasks: int, results: int) -> None:
        from ec262.sandbox import frames  # noqa: PLC0415 - `sys.path` was not known before

        self._frames = frames
        self._executor = executor
        self._input = os.fdopen(tasks, "rb")
        self._results = results
        self._waiting: queue.Queue[tuple[int, int, bytes, int]] = queue.Queue()
        self._call: Any = None

    def serve(self) -> NoReturn:
        """Until the worker closes its end, whatever is being computed then."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            kind, number, body, most = self._waiting.get()
            if kind == self._frames.TASK:
                before = _cpu_ns()
                kind, answer = self._compute(body, most)
                self._write(kind, number, answer, _cpu_ns() - before)
            elif kind == self._frames.PROGRAM:
                self._call = self._program(body)
            elif kind == self._frames.SETTINGS:
                self._write(self._frames.READY, 0, b"", 0)

    def _read(self) -> None:
        header = self._frames.HEADER
        try:
            while True:
                head = self._input.read(header.size)
                if len(head) != header.size:
                    break
                kind, number, length, most = header.unpack(head)
                body = self._input.read(length)
                if len(body) != length:
                    break
                self._waiting.put((kind, number, body, most))
        finally:
            # The worker is gone or has had enough: this process, and whatever the executor started.
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def _write(self, kind: int, number: int, body: bytes, cpu_ns: int) -> None:
        left = memoryview(self._frames.HEADER.pack(kind, number, len(body), cpu_ns) + body)
        while left:
            left = left[os.write(self._results, left) :]

    def _program(self, blob: bytes) -> Any:
        from ec262.sandbox.executor_program import executor_call  # noqa: PLC0415

        return executor_call(blob)

    def _compute(self, body: bytes, most: int) -> tuple[int, bytes]:
        from ec262.errors import EC262Error  # noqa: PLC0415
        from ec262.protocol.framing import frame_parts, unframe_parts  # noqa: PLC0415

        try:
            made = run_map_task(self._executor, self._call, unframe_parts(body))
        except Exception as reason:
            if not isinstance(reason, EC262Error):
                traceback.print_exc()  # for the volunteer; the author need not know this machine's files
            return self._frames.ERROR, _text(type=type(reason).__name__, message=str(reason))
        if sum(map(len, made)) > most:
            return self._frames.LIMIT, _text(limit="output", message=f"the output is larger than {most:,} bytes")
        return self._frames.OK, frame_parts(made)


def run_map_task(executor: Any, call: Any, parts: list[bytes]) -> list[bytes]:
    """The result of a map task: as `ec262.mapreduce.program.execute` makes it, with an executor's pairs.

    Args:
        call: an `ExecutorCall`.

    Raises:
        Malformed: no map task, or not of this executor.
        Exception: whatever the executor raises.
    """
    from ec262.errors import Malformed  # noqa: PLC0415
    from ec262.mapreduce import context  # noqa: PLC0415
    from ec262.mapreduce.program import MAX_PARTITIONS, Program, records_of, run_map  # noqa: PLC0415
    from ec262.protocol.canonical import decode_value, encode_value  # noqa: PLC0415
    from ec262.worker.executor import ExecutorTask  # noqa: PLC0415

    header = decode_value(parts[0])
    if call is None or call.name != executor.name or type(header) is not dict or header.get("phase") != "map":
        raise Malformed("not a map task of this executor")
    partitions, bounds, spec = header.get("partitions"), header.get("bounds", []), header.get("input")
    if type(partitions) is not int or not 1 <= partitions <= MAX_PARTITIONS:
        raise Malformed("a map task with an impossible number of partitions")
    if type(bounds) is not list or len(bounds) >= partitions:
        raise Malformed("a map task with impossible bounds")
    state = context.begin(call.params)
    try:
        name = spec.get("name", "") if type(spec) is dict else ""
        task = ExecutorTask(call.params, records_of(spec, parts[1:], state), int(header.get("index", 0)), str(name))

        def executor_pairs(_: Any, task: ExecutorTask) -> Any:
            return executor.run(task)

        executor_pairs.__name__ = f"executor {executor.name}"
        made = run_map(Program(executor_pairs, partitioner=call.partitioner), [(None, task)], partitions, bounds)
    finally:
        context.end()
    return [*made, encode_value(state.counts)] if state.counts else made


def _cpu_ns() -> int:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return int(sum(each.ru_utime + each.ru_stime for each in used) * 1e9)


def _text(**fields: str) -> bytes:
    return json.dumps({name: value[:4000] for name, value in fields.items()}).encode()


if __name__ == "__main__":
    main()
