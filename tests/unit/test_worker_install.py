"""What is installed for a worker that starts at boot, and the containers: as far as it shows without either running."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from discovery.processes import STOP_S
from discovery.store.binary import find_binary
from ec262.cli import main as cli
from ec262.cli.worker_install import unit_name, unit_path, unit_text
from ec262.errors import SetupError
from tests.processes import ROOT


def run(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``ec262 worker ...`` of a user with that home, in it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EC262_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-m", "ec262.cli", "worker", *words],
        cwd=home, env={**environ, "HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def unit_in(shown: str) -> str:
    return shown.partition("\n# then\n")[0]


def exec_start(unit: str) -> str:
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    return str(line)


def test_a_dry_run_shows_the_unit_and_does_nothing(tmp_path: Path) -> None:
    done = run(
        tmp_path, "install-service", "--dry-run", "--discovery", "https://d.example", "--only-idle", "-P", "11240",
        EC262_PLAIN_HTTP="1", EC262_ACCOUNT="a" * 32, EC262_SECRET="hidden",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "EC262_ACCOUNT and EC262_SECRET are not written" in done.stderr
    assert "hidden" not in done.stdout
    unit = unit_in(done.stdout)
    words = exec_start(unit).split()
    assert words[1:] == [
        *("-m", "ec262.worker", "--discovery", "https://d.example", "--only-idle", "-P", "11240", "-v"),
        *("--niceness", "10"),
    ]
    assert "Environment=EC262_PLAIN_HTTP=1" in unit
    assert "KillMode=mixed" in unit, "or the sandbox would be killed before its tasks are finished"
    commands = done.stdout.partition("# then\n")[2]
    assert "systemctl --user enable ec262-worker-11240.service" in commands
    assert "loginctl enable-linger" in commands
    assert not (tmp_path / ".config" / "systemd").exists()


def test_the_file_counts_for_what_flags_do_not_say(tmp_path: Path) -> None:
    home = tmp_path / ".config" / "ec262"
    home.mkdir(parents=True)
    (home / "worker.toml").write_text("niceness = 3\nport = 11250\n")
    done = run(tmp_path, "install-service", "--dry-run", "-V")
    assert exec_start(unit_in(done.stdout)).split()[3:] == ["-V"]
    assert "ec262-worker-11250.service" in done.stdout


def test_flags_before_the_command_are_not_lost_silently(tmp_path: Path) -> None:
    done = run(tmp_path, "--only-idle", "install-service", "--dry-run")
    assert done.returncode == 1
    assert "after install-service" in done.stderr


def test_words_come_back_from_a_unit_as_they_were(tmp_path: Path) -> None:
    words = ["/opt/a b/python", "-m", "x", "--discovery", 'http://h/$a%20"\\']
    unit = unit_text(words, {"EC262_INVITATION": "100% 'sure'"})
    assert exec_start(unit) == '"/opt/a b/python" -m x --discovery "http://h/$$a%%20\\"\\\\"'
    assert "Environment=\"EC262_INVITATION=100%% 'sure'\"" in unit
    with pytest.raises(SetupError):
        unit_text(["a\nExecStartPre=/bin/evil"], {})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    path = tmp_path / unit_name(None)
    path.write_text(unit_text([sys.executable, "-m", "ec262.worker", "--discovery", "http://h/$a%20 b"], {}))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_units_have_their_place(tmp_path: Path) -> None:
    assert unit_name(11235) == unit_name(None) == "ec262-worker.service"
    assert unit_path("x.service", {"XDG_CONFIG_HOME": "/c"}) == Path("/c/systemd/user/x.service")
    assert unit_path("x.service", {"XDG_CONFIG_HOME": "c"}).parts[-4:-1] == (".config", "systemd", "user")


def test_without_systemd_nothing_is_begun(tmp_path: Path) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here, and would be asked")
    done = run(tmp_path, "install-service")
    assert done.returncode == 1
    assert "systemd does not run this machine" in done.stderr
    assert not (tmp_path / ".config" / "systemd").exists()


def test_it_is_installed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With systemctl and loginctl in place of the real ones: they write down what they are told."""
    tools, told = tmp_path / "bin", tmp_path / "told"
    tools.mkdir()
    for name in ("systemctl", "loginctl"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {told}\n')
        (tools / name).chmod(0o755)
    for name in ("EC262_HOME", "XDG_CONFIG_HOME", "EC262_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr("ec262.cli.worker_install._require_systemd", lambda: None)

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ec262", "worker", *words])
        return cli(["worker", *words])

    assert command("install-service", "--only-idle") == 0
    unit = tmp_path / ".config" / "systemd" / "user" / "ec262-worker.service"
    assert stat.S_IMODE(unit.stat().st_mode) == 0o600
    assert "--only-idle" in exec_start(unit.read_text())
    assert [line.split()[-1] for line in told.read_text().splitlines()] == [
        *("daemon-reload", "ec262-worker.service", "ec262-worker.service", "enable-linger"),
    ]
    assert command("uninstall-service") == 0
    assert not unit.exists()
    assert "systemctl --user disable --now ec262-worker.service" in told.read_text()
    assert command("uninstall-service") == 1, "there is none any more"
    (tools / "systemctl").write_text("#!/bin/sh\nexit 1\n")
    assert command("install-service") == 1
    assert "systemctl --user daemon-reload" in capsys.readouterr().err, "what went wrong is named"


def test_removing_can_be_shown_too(tmp_path: Path) -> None:
    done = run(tmp_path, "uninstall-service", "--dry-run", "-P", "11240")
    assert done.returncode == 0
    assert "systemctl --user disable --now ec262-worker-11240.service" in done.stdout


# --- containers: there may be no engine here, so only what can be read is looked at ---


def test_the_image_has_what_it_copies_and_ignores_the_rest() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    assert {"ec262", "discovery", "pyproject.toml"} <= copied
    assert all((ROOT / word).exists() for word in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept, "what is copied is what the engine is sent"
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0]) == ["ec262"]
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["ec262"], "not root"


def test_the_containers_commands_have_flags_that_exist() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for program, start in (("worker", ["worker.py"]), ("discovery", ["-m", "discovery"])):
        known = subprocess.run(
            [sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        ).stdout
        lists = re.findall(rf"\[{program}, (.*)\]$", text, re.MULTILINE)
        listed = re.findall(r"command:\n((?:      - .*\n)+)", text)
        blocks = [block for block in listed if f"- {program}\n" in block]
        flags = {flag for words in [*lists, *blocks] for flag in re.findall(r"--[a-z-]+", words)}
        assert flags, program
        assert all(flag in known for flag in flags), flags


def test_the_containers_store_can_be_backed_up() -> None:
    """Redis 7.4 and later write what the server that audits backups refuses; so does a Valkey that is newer than it."""
    text = (ROOT / "compose.yaml").read_text()
    (version,) = re.findall(r"image: valkey/valkey:(\d+)-", text)
    assert int(version) <= int(re.findall(r"v=(\d+)", server_version())[0])
    grace = re.findall(r"stop_grace_period: (\d+)s", text.split("  discovery:\n")[-1])
    assert int(grace[0]) > STOP_S, "what is begun is answered"


def server_version() -> str:
    return subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
