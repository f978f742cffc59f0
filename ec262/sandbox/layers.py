"""The sandbox's layers on this machine, one line each: what is in force and what that means."""

from __future__ import annotations

from dataclasses import dataclass

from ec262.sandbox.policy import NAMESPACES
from ec262.sandbox.zygote import Grants


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the sandbox on this machine.

    Attributes:
        name: such as ``seccomp``.
        granted: whether it is in force.
        meaning: what it stops, or what its absence means; one line.
    """

    name: str
    granted: bool
    meaning: str


def layers_of(grants: Grants) -> list[Layer]:
    """One line a layer."""
    missing = [name for name in NAMESPACES if name not in grants.namespaces]
    namespaces = "own processes, network, mounts, IPC: nothing of this machine is even visible"
    if missing:
        namespaces = f"refused here: {', '.join(missing)} (common in containers); seccomp stops what they would hide"
    return [
        Layer("seccomp", grants.seccomp, "only reading, writing and memory calls; every other one fails or kills"),
        Layer("namespaces", not missing, namespaces),
        Layer("empty root", grants.empty_root, "the file system is an empty read-only one"),
        Layer(
            "landlock",
            grants.landlock > 0,
            f"files, TCP and signals denied a second time (ABI {grants.landlock})"
            if grants.landlock
            else "the kernel has none: files and network are denied by seccomp alone",
        ),
        Layer("capabilities", grants.capabilities, "every capability dropped, none can be gained"),
        Layer("no new privileges", grants.no_new_privileges, "setuid programs give nothing"),
        Layer("ordinary user", grants.nobody, f"runs as user {grants.uid}" if grants.nobody else "runs as ROOT"),
        Layer("resource limits", grants.rlimits, "memory, CPU time, files, processes are limited"),
        Layer("language layer", grants.language, "clear errors, seeded random, no clocks (no security)"),
    ]
