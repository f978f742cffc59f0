"""Settings: what the environment overrides, and how services are spelt."""

from __future__ import annotations

from pathlib import Path

import pytest

from ec262.config import (
    DEFAULT_DISCOVERY_URL,
    WorkerSettings,
    configured_discovery,
    discovery_url,
    home_directory,
    is_loopback,
    normalise_url,
    require_private_channel,
)
from ec262.errors import SetupError


@pytest.mark.parametrize(
    ("spelt", "normal"),
    [
        ("HTTP://LocalHost:26262/", "http://localhost:26262"),
        ("localhost:26262", "http://localhost:26262"),
        ("https://d.example:443", "https://d.example"),
        ("http://d.example:80/", "http://d.example"),
        ("https://d.example/ec262/", "https://d.example/ec262"),
        (" http://[::1]:26262 ", "http://[::1]:26262"),
    ],
)
def test_each_service_has_one_spelling(spelt: str, normal: str) -> None:
    assert normalise_url(spelt) == normal
    assert normalise_url(normal) == normal


@pytest.mark.parametrize(
    "spelt", ["", "ftp://x", "http://", "http://x:port", "http://x:99999", "http://a b", "http://x/?q", "http://u:p@x"]
)
def test_what_is_no_service_is_a_clear_error(spelt: str) -> None:
    with pytest.raises(SetupError):
        normalise_url(spelt)


def test_secrets_leave_this_machine_only_under_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EC262_PLAIN_HTTP", raising=False)
    for url in ("https://d.example", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"):
        require_private_channel(url)
    with pytest.raises(SetupError, match="https"):
        require_private_channel("http://192.168.1.5:26262")
    monkeypatch.setenv("EC262_PLAIN_HTTP", "1")
    require_private_channel("http://192.168.1.5:26262")
    assert not is_loopback("http://192.168.1.5:26262")


def test_discovery_is_what_was_chosen_then_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EC262_DISCOVERY", raising=False)
    assert configured_discovery() is None
    assert discovery_url() == DEFAULT_DISCOVERY_URL
    monkeypatch.setenv("EC262_DISCOVERY", "HTTP://elsewhere:1/")
    assert discovery_url() == configured_discovery() == "http://elsewhere:1"
    assert discovery_url("here:2") == "http://here:2"


def test_home_follows_the_environment() -> None:
    assert home_directory({"EC262_HOME": "/a/b"}) == Path("/a/b")
    assert home_directory({"XDG_CONFIG_HOME": "/x"}) == Path("/x/ec262")
    assert home_directory({"XDG_CONFIG_HOME": "relative"}) == Path("~/.config/ec262").expanduser()


def test_worker_settings_chosen_then_environment_then_default() -> None:
    environ = {"EC262_WORKER_SLOTS": "3", "EC262_WORKER_PORT": "5", "EC262_WORKER_ALLOW_MODULES": "numpy, scipy"}
    settings = WorkerSettings.from_environment(environ, port=7, host=None)
    assert (settings.slots, settings.port, settings.host) == (3, 7, "")
    assert settings.allow_modules == ("numpy", "scipy")


@pytest.mark.parametrize(
    "environ", [{"EC262_WORKER_SLOTS": "x"}, {"EC262_WORKER_SLOTS": "0"}, {"EC262_WORKER_PORT": "70000"},
                {"EC262_WORKER_SANDBOX": "paper"}, {"EC262_WORKER_DRAIN_S": "-1"}, {"EC262_WORKER_DRAIN_S": "nan"}]
)  # fmt: skip
def test_a_setting_that_is_wrong_is_a_clear_error(environ: dict[str, str]) -> None:
    with pytest.raises(SetupError):
        WorkerSettings.from_environment(environ)
