"""Imports point one way, and importing EC262 costs and changes nothing. docs/architecture.md says why."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STANDARD = sys.stdlib_module_names

VERSION = "ec262"
"""``from ec262 import __version__``, and nothing else of it."""

# What the modules of a package may import of this project, beside each other. A name stands for all below it.
ALLOWED: dict[str, set[str]] = {
    "ec262.errors": set(),
    "ec262.config": {"ec262.errors"},
    "ec262.policy": {"ec262.errors"},
    "ec262.credentials": {"ec262.errors", "ec262.config"},
    "ec262.http_handler": set(),
    "ec262.serving": {"ec262.errors", "ec262.http_handler"},
    "ec262.responses": {"ec262.errors", "ec262.protocol"},
    "ec262.protocol": {"ec262.errors"},
    "ec262.mapreduce": {"ec262.errors", "ec262.protocol"},
    "ec262.storage": {"ec262.errors", "ec262.protocol", "ec262.mapreduce"},
    "ec262.sandbox": {"ec262.errors", "ec262.protocol", "ec262.mapreduce"},
    "ec262.discovery_client": {VERSION, "ec262.errors", "ec262.config", "ec262.credentials", "ec262.protocol"},
    "ec262.embedded": {VERSION, "ec262.errors", "ec262.config", "ec262.credentials", "ec262.discovery_client"},
    "ec262.foreman": {
        *(VERSION, "ec262.errors", "ec262.protocol", "ec262.policy", "ec262.mapreduce", "ec262.discovery_client"),
        "ec262.sandbox",
    },
    "ec262.backends": {
        *(VERSION, "ec262.errors", "ec262.credentials", "ec262.protocol", "ec262.policy", "ec262.mapreduce"),
        *("ec262.discovery_client", "ec262.embedded", "ec262.sandbox", "ec262.foreman"),
    },
    "ec262.jobs": {
        *("ec262.errors", "ec262.config", "ec262.protocol", "ec262.policy", "ec262.mapreduce", "ec262.storage"),
        *("ec262.sandbox", "ec262.backends"),
    },
    # The examples of the API: written as a user would write them.
    "ec262.programs": {"ec262", "ec262.errors", "ec262.mapreduce", "ec262.storage"},
    "ec262.worker": {
        *(VERSION, "ec262.errors", "ec262.config", "ec262.credentials", "ec262.protocol", "ec262.mapreduce"),
        *("ec262.discovery_client", "ec262.sandbox", "ec262.serving", "ec262.responses", "ec262.storage"),
    },
    "ec262.cli": {"ec262", "discovery"},
    "discovery": {VERSION, "ec262.errors", "ec262.config", "ec262.protocol", "ec262.serving", "ec262.responses"},
}

# Inside discovery a module imports only what stands before it: first what is decided without I/O, then the store,
# then the rules that use it, last what talks to the world.
DISCOVERY_ORDER = [
    *("settings", "addresses", "admission", "passes", "records", "credibility", "verdict", "matching"),
    *("changes", "payments", "beliefs", "reclaiming", "tasks"),
    *("simulation", "simulation.behaviours", "simulation.book", "simulation.rules", "simulation.network"),
    *("simulation.report", "simulation.plot", "archive", "archive.segment", "archive.entry", "archive.turnover"),
    *("archive.sums", "archive.rows", "archive.files", "archive.writer"),
    *("store.watchdog", "store.binary", "store.descriptors"),
    *("store.directory", "store.configuration", "store.server", "store.keeper", "store.connection", "store.rates"),
    *("store.scripts", "store.dump", "store.known", "store.answers", "store.sampling", "store.reading"),
    *("store.reputations", "store.accounts", "store.pulse", "store.books", "store.calls", "store.channel"),
    *("store.store", "archive.mover", "condition", "changing", "keyring", "ledger", "operator", "leaderboard"),
    *("statements", "trust", "explaining", "reach", "registry", "ticketing", "leasing", "disputes", "receipts_shown"),
    *("settlement", "jobs", "relay"),
    *("limits", "metrics", "gate", "api_page", "api", "web", "web.figures", "web.sessions", "web.views"),
    *("app", "upkeep", "logs", "processes", "service", "backup", "__main__"),
]

# The job's modules from the bottom to the top: nothing calls back up.
FOREMAN_ORDER = [
    *("attempts", "inflight", "purse", "schedule", "payloads", "direct", "relayed", "peers", "records", "unsent"),
    *("accepted", "dissent", "journal", "session", "auditing", "polling", "pushing", "repeating", "settling"),
    *("resuming", "leasing", "watching"),
    *("engine", "differences", "sample", "original", "rehearsal"),
]
JOBS_ORDER = ["report", "checkpoint", "sampling", "plan", "driver", "job", "run"]

# A program that ``python -m`` starts is its command line.
ENTRIES = {"ec262.worker.__main__": {"ec262.cli.worker"}}

# What decides, decides without I/O and without a clock.
PURE = [
    *("discovery.addresses", "discovery.admission", "discovery.passes", "ec262.protocol.relaying"),
    *("ec262.protocol.pacing", "ec262.protocol.scopes", "discovery.credibility", "discovery.archive.entry"),
    *("discovery.archive.segment", "discovery.archive.turnover", "discovery.archive.sums", "discovery.archive.rows"),
    *("discovery.verdict", "discovery.matching", "discovery.tasks", "discovery.records", "ec262.foreman.schedule"),
    *("discovery.changes", "discovery.payments", "discovery.beliefs", "discovery.reclaiming"),
    "discovery.receipts_shown",
    *("ec262.foreman.attempts", "ec262.foreman.inflight", "ec262.foreman.purse", "ec262.foreman.accepted"),
    "ec262.foreman.dissent",
    *("ec262.mapreduce.program", "ec262.mapreduce.partition", "ec262.mapreduce.split", "ec262.protocol.canonical"),
    *("ec262.mapreduce.blocks", "ec262.mapreduce.context", "ec262.policy", "discovery.api_page"),
    *("ec262.protocol.openapi", "ec262.protocol.versions"),
    *("ec262.protocol.framing", "ec262.protocol.states", "ec262.protocol.keys", "ec262.protocol.messages"),
    *("ec262.protocol.terms", "ec262.worker.terms"),
]
IMPURE = {"time", "socket", "os", "subprocess", "threading", "io", "pathlib", "redis", "flask", "gevent", "requests"}

# What the sandbox's child and the store's watchdog load is the standard library's: nothing else is there.
STANDARD_ONLY = [
    *("ec262.errors", "ec262.protocol.canonical", "ec262.protocol.framing", "ec262.mapreduce.program"),
    *("ec262.mapreduce.partition", "ec262.mapreduce.blocks", "ec262.mapreduce.context", "ec262.mapreduce.records"),
    *("ec262.mapreduce", "ec262.sandbox.child", "discovery.store.watchdog"),
]


def modules() -> dict[str, Path]:
    """Every module of the project by its name."""
    found = {}
    for top in ("ec262", "discovery"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name: str, *, at_import: bool = False) -> Iterator[str]:
    """Modules that a module imports; with `at_import` only what runs when it is imported itself."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in _nodes(tree, at_import):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def _nodes(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    if not at_import:
        yield from ast.walk(tree)
        return
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _nodes(node, at_import)


def own(names: Iterator[str]) -> list[str]:
    return [name for name in names if name.split(".")[0] in ("ec262", "discovery")]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def package_of(name: str) -> str:
    return max((package for package in ALLOWED if within(name, package)), key=len, default="")


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"ec262"}))
def test_imports_point_one_way(name: str) -> None:
    package = package_of(name)
    assert package, f"{name} is in no package that the table knows"
    for imported in own(imports_of(name)):
        if imported in ENTRIES.get(name, ()):
            continue
        allowed = within(imported, package) or any(
            imported == each if each == VERSION and package != "ec262.cli" else within(imported, each)
            for each in ALLOWED[package]
        )
        assert allowed, f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_of_the_package_itself_only_the_version_is_imported(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ec262" and not within(name, "ec262.cli"):
            for alias in node.names:
                assert alias.name == "__version__" or f"ec262.{alias.name}" in MODULES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_the_command_line(name: str) -> None:
    if not within(name, "ec262.cli"):
        found = {imported for imported in own(imports_of(name)) if within(imported, "ec262.cli")}
        assert found <= ENTRIES.get(name, set())


@pytest.mark.parametrize(
    ("package", "order"), [("discovery", DISCOVERY_ORDER), ("ec262.foreman", FOREMAN_ORDER), ("ec262.jobs", JOBS_ORDER)]
)
def test_nothing_is_imported_upwards(package: str, order: list[str]) -> None:
    here = {name.removeprefix(package + ".") for name in MODULES if name.startswith(package + ".")} - {"store"}
    assert here == set(order)
    for at, short in enumerate(order):
        for imported in own(imports_of(f"{package}.{short}")):
            if within(imported, package) and imported != package:
                assert imported.removeprefix(package + ".") in order[:at], f"{short} imports {imported}"


@pytest.mark.parametrize("name", PURE)
def test_what_decides_does_no_io(name: str) -> None:
    assert not {imported.split(".")[0] for imported in imports_of(name)} & IMPURE


@pytest.mark.parametrize("name", STANDARD_ONLY)
def test_what_the_child_loads_is_of_the_standard_library(name: str) -> None:
    for imported in imports_of(name, at_import=True):
        assert imported.split(".")[0] in STANDARD or imported in STANDARD_ONLY, imported


def in_fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_and_starts_nothing() -> None:
    code = """
import sys, threading
before = set(sys.modules)
import ec262
loaded = sorted(name for name in set(sys.modules) - before)
assert threading.active_count() == 1
print([name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names])
"""
    assert in_fresh_interpreter(code) == "['ec262']"


def test_names_load_what_they_need_when_they_are_used() -> None:
    code = """
import sys, ec262
ec262.mapper, ec262.reducer, ec262.combiner, ec262.EC262Error
heavy = {"gevent", "flask", "redis", "requests", "msgspec", "cryptography", "cloudpickle"}
print(sorted(heavy & set(sys.modules)))
"""
    assert in_fresh_interpreter(code) == "[]"


def test_nothing_is_ever_patched_and_no_thread_started_before_a_job() -> None:
    code = """
import socket, sys, threading, time
untouched = (socket.socket, time.sleep, threading.Thread, threading.Lock)
import ec262
ec262.run_job, ec262.submit, ec262.Job
import ec262.jobs.run, ec262.foreman.engine
from gevent import monkey
assert monkey.saved == {}, monkey.saved
assert untouched == (socket.socket, time.sleep, threading.Thread, threading.Lock)
assert threading.active_count() == 1
assert "flask" not in sys.modules and "redis" not in sys.modules
print("ok")
"""
    assert in_fresh_interpreter(code) == "ok"


def test_every_public_name_is_there() -> None:
    code = """
import ec262
names = [name for name in ec262._HOMES]
for name in names:
    assert getattr(ec262, name) is not None
    assert name in dir(ec262)
try:
    ec262.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
print(len(names) > 10)
"""
    assert in_fresh_interpreter(code) == "True"
