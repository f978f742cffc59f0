"""The system call filter, assembled from the policy: classic BPF as ``seccomp(2)`` takes it.

The program loads the architecture word and kills on a foreign one (a 32-bit call has other numbers), kills the x32
range, then compares the number with each name of the policy. ``read`` passes on one descriptor, ``write`` on another,
memory calls without PROT_EXEC. What is named nowhere kills the process.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from ec262.sandbox.policy import ALLOWED_ADVICE, ALLOWED_CALLS, REFUSED_CALLS
from ec262.sandbox.syscalls import MACHINES

INPUT_FD: Final = 0
OUTPUT_FD: Final = 1

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NO_CLONE3 = 0x00050000 | errno.ENOSYS
_PROT_EXEC: Final = 4
_X32_BIT: Final = 0x40000000

Instruction = tuple[int, "str | int", "str | int", int]
"""Operation, where to jump when true and when false (a label, or a distance), constant."""


def assemble(machine: str) -> bytes:
    """The filter for a machine, as an array of ``struct sock_filter``.

    Args:
        machine: as ``platform.machine()`` says.

    Raises:
        KeyError: no table for this machine.
    """
    architecture, numbers = MACHINES[machine]
    return _encode(_program(architecture, numbers))


def _program(architecture: int, numbers: dict[str, int]) -> list[Instruction | str]:
    """Instructions and labels (plain strings); what is called most is compared first."""
    lines: list[Instruction | str] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 0, "kill", architecture),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_AT_LEAST, "kill", 0, _X32_BIT),
    ]
    for name in ("write", "read", "mmap", "madvise", "mprotect", "mremap"):
        lines.append((_JUMP_EQUAL, name, 0, numbers[name]))
    lines += [(_JUMP_EQUAL, "allow", 0, numbers[name]) for name in ALLOWED_CALLS if name in numbers]
    # glibc tries clone3 first and falls back to clone on ENOSYS only; then clone's EPERM is the clear error.
    lines.append((_JUMP_EQUAL, "no-clone3", 0, numbers["clone3"]))
    lines += [(_JUMP_EQUAL, "refuse", 0, numbers[n]) for n in REFUSED_CALLS if n in numbers and n != "clone3"]
    lines += ["kill", (_RETURN, 0, 0, _KILL), "allow", (_RETURN, 0, 0, _ALLOW), "refuse", (_RETURN, 0, 0, _REFUSE)]
    lines += ["no-clone3", (_RETURN, 0, 0, _NO_CLONE3)]
    lines += ["read", *_only_descriptor(INPUT_FD), "write", *_only_descriptor(OUTPUT_FD)]
    for name in ("mmap", "mprotect"):
        lines += [name, *_argument(2), (_JUMP_BITS, "_refuse", "_allow", _PROT_EXEC)]
    lines += ["madvise", *_argument(2)]
    lines += [(_JUMP_EQUAL, "_allow", 0, advice) for advice in ALLOWED_ADVICE]
    lines += ["_refuse", (_RETURN, 0, 0, _REFUSE), "mremap", "_allow", (_RETURN, 0, 0, _ALLOW)]
    return lines


def _argument(index: int) -> list[Instruction]:
    """Loads the low word of an argument (both machines are little endian)."""
    return [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)]


def _only_descriptor(number: int) -> list[Instruction]:
    # A descriptor is an int: the kernel reads the low word alone.
    return [*_argument(0), (_JUMP_EQUAL, "_allow", "_refuse", number)]


def _encode(lines: list[Instruction | str]) -> bytes:
    places: dict[str, int] = {}
    instructions: list[Instruction] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(instructions)
        else:
            instructions.append(line)

    def distance(target: str | int, here: int) -> int:
        steps = target if isinstance(target, int) else places[target] - here - 1
        if not 0 <= steps <= 255:
            raise ValueError(f"a jump of {steps} instructions does not fit BPF")
        return steps

    return b"".join(
        struct.pack("=HBBI", operation, distance(yes, here), distance(no, here), constant)
        for here, (operation, yes, no, constant) in enumerate(instructions)
    )
