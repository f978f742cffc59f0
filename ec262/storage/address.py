"""Paths and URLs: what of them may be shown, and what an error of a file system is called here."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ec262.errors import EC262Error, ProgramError, SetupError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://|::)")
_URL = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/'\"]*@)?"  # protocol, user and password
    r"((?:(?!::[A-Za-z][A-Za-z0-9+.-]*://)[^\s?'\"])*)"  # host and path, up to a URL that is chained to this one
    r"(\?[^\s'\"=]*=[^\s'\"]*)?"  # query; a pattern's question mark has no equals sign behind it
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SHORTEST_SECRET = 4
_EXTRAS = {"hdfs": "hdfs", "viewfs": "hdfs", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}


def scheme_of(address: str) -> str:
    """The protocol of a URL; empty for a path of this machine (``file://`` is one too)."""
    found = _SCHEME.match(address)
    scheme = found.group().lower() if found else ""
    return "" if scheme in ("file", "local") and "::" not in address else scheme


def local_path(address: str) -> str:
    """A path of this machine, without ``file://`` and with ``~`` replaced."""
    found = _SCHEME.match(address)
    path = address[found.end() + 3 :] if found and address[found.end() :].startswith("://") else address
    return os.path.expanduser(path) if path.startswith("~") else path


def shown(address: str) -> str:
    """An address as it may be seen by others: without user, password and query of its URLs."""
    return _URL.sub(r"\1\2", address)


def scrubbed(text: str, options: Mapping[str, Any] | None = None) -> str:
    """A message without what URLs and storage options hold of secrets."""
    for secret in sorted(_secrets(options or {}), key=len, reverse=True):
        text = text.replace(secret, "***")
    return shown(text)


def _secrets(options: Any) -> Iterator[str]:
    if isinstance(options, Mapping):
        for value in options.values():
            yield from _secrets(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _secrets(value)
    elif isinstance(options, bytes):
        yield from _secrets(options.decode("utf-8", "replace"))
    elif isinstance(options, str) and len(options) >= _SHORTEST_SECRET and not _is_endpoint(options):
        yield options


def _is_endpoint(text: str) -> bool:
    """Whether a storage option is a server's address: no secret, and a help to whoever reads the message."""
    return _SCHEME.match(text) is not None and shown(text) == text


@contextmanager
def explained(address: str, options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Whatever a file system raises inside, as an error of ours that names the address and holds no credentials.

    Raises:
        ProgramError: there is no such file, or it is not what it should be.
        SetupError: no permission, no space, no such protocol, no answer.
    """
    name = shown(address)
    try:
        yield
    except EC262Error:
        raise
    except FileNotFoundError:
        raise ProgramError(f"{name}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise ProgramError(f"{name}: a directory stands where a file should, or a file where a directory") from None
    except PermissionError:
        raise SetupError(f"{name}: no permission") from None
    except ImportError as reason:
        raise SetupError(f"{name}: {_advice(address, reason)}") from None
    except EOFError:
        raise ProgramError(f"{name}: the compressed data end too early") from None
    except OSError as reason:
        if reason.errno in _FULL:
            raise SetupError(f"{name}: no space is left there ({os.strerror(reason.errno or 0)})") from None
        raise SetupError(f"{name}: {_message(reason, options)}") from None
    except Exception as reason:
        if "Protocol not known" in str(reason):
            raise SetupError(f"{name}: there is no protocol {scheme_of(address)}://") from None
        raise SetupError(f"{name}: {_message(reason, options)}") from None


def _message(reason: Exception, options: Mapping[str, Any] | None) -> str:
    return f"{type(reason).__name__}: {scrubbed(str(reason), options):.300}"


def _advice(address: str, reason: ImportError) -> str:
    scheme = scheme_of(address)
    if scheme in _EXTRAS:
        return f"{scheme}:// needs more than is installed here: pip install 'ec262[{_EXTRAS[scheme]}]'"
    return scrubbed(str(reason))
