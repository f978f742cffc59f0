"""Finding input files: what a path, URL, pattern, directory or base name stands for."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ec262.errors import ProgramError, SetupError
from ec262.storage.about import About
from ec262.storage.address import explained, local_path, shown
from ec262.storage.place import HDFS, LOCAL, Place, RemotePlace, place_of

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".lzma": "xz", ".zst": "zstd"}
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z")
_NUMBERED = r"\d+(?:\.[A-Za-z0-9]+)*"
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Found:
    """An input file.

    Attributes:
        place: where it is.
        path: its path there.
        name: what records call it: without user, password and query of a URL.
        about: size and version.
        compression: ``gzip``, ``bz2``, ``xz``, ``zstd`` or empty.
    """

    place: Place
    path: str
    name: str
    about: About
    compression: str


def find(address: str, options: Mapping[str, Any] | None = None, *, compression: str | None = "infer") -> list[Found]:
    """The files that an address stands for, in order of their names.

    Args:
        address: a path of this machine or a URL of fsspec's. Of a file: itself. Of a directory: its files, without
            hidden ones. A pattern (``*``, ``?``, ``[...]``, ``**``): the files that match. Else a base name:
            ``book_`` (or ``book``) stands for ``book_00``, ``book_01``, ... A file of the exact name wins.
        options: what the file system needs besides, such as credentials.
        compression: ``infer`` from the name, None, or one of those of `Found`.

    Raises:
        ProgramError: there is no such file, or a directory stands among the files.
        SetupError: no permission, no such protocol, no answer.
    """
    place, path = place_of(address, options)
    if isinstance(place, RemotePlace):
        with explained(address, options):
            files = _find_remote(place, path, address)
    else:
        files = [(each, each, LOCAL.about(each)) for each in _find_local(local_path(address))]
        for each, _, _ in files:
            if not os.access(each, os.R_OK):
                raise SetupError(f"{each}: no permission to read it")
    if len(files) == 1 and files[0][0] == path:
        files = [(path, address, files[0][2])]
    return [
        Found(place, each, shown(name), about, _compression_of(each, compression))
        for each, name, about in sorted(files)
    ]


def _compression_of(path: str, wanted: str | None) -> str:
    if wanted is None:
        return ""
    if wanted != "infer":
        known = {*COMPRESSIONS.values()}
        if wanted not in known:
            raise ProgramError(
                f"compression={wanted!r:.40}: has to be 'infer', None or one of {', '.join(sorted(known))}"
            )
        return wanted
    lower = path.lower()
    if lower.endswith(_ARCHIVES):
        raise ProgramError(f"{shown(path)}: an archive; name its files, for example zip://*.txt::{shown(path)}")
    return COMPRESSIONS.get(os.path.splitext(lower)[1], "")


def _nothing(address: str, directory: str, base: str) -> ProgramError:
    if _MAGIC.search(address):
        return ProgramError(f"{shown(address)}: no file matches")
    wanted = f"{base if base.endswith('_') else base + '_'}00"
    return ProgramError(f"{shown(address)}: no such file or directory, and no {wanted} in {shown(directory) or '.'}")


def _numbered(base: str) -> re.Pattern[str]:
    """Matches the files that a base name stands for."""
    return re.compile(re.escape(base if base.endswith("_") else base + "_") + _NUMBERED)


def _is_wanted(pattern: str, name: str) -> bool:
    """Whether a file that a pattern matches is meant: the manifest beside a job's output is only if it is named."""
    return not name.endswith("_manifest.json") or "manifest" in pattern


def _inner(path: str, inside: str) -> ProgramError:
    return ProgramError(f"{path} is a directory inside {inside}: name the files, for example with **/*.txt")


# --- this machine ---------------------------------------------------------------------------------


def _find_local(path: str) -> list[str]:
    directory, base = os.path.split(path)
    with explained(path):
        if os.path.isdir(path):
            entries = sorted(name for name in os.listdir(path) if not name.startswith("."))
            return _only_files([os.path.join(path, name) for name in entries if _is_wanted("", name)], path)
        if os.path.lexists(path):
            return [path]
        if _MAGIC.search(path):
            found = [each for each in glob.glob(path, recursive=True) if _is_wanted(path, each)]
            if "**" in path:
                found = [each for each in found if os.path.isfile(each)]
            elif found:
                found = _only_files(found, path)
        else:
            pattern = _numbered(base)
            try:
                names = os.listdir(directory or ".")
            except (FileNotFoundError, NotADirectoryError):
                names = []
            found = [os.path.join(directory, name) for name in names if base and pattern.fullmatch(name)]
    if not found:
        _check_may_list(path)
        raise _nothing(path, directory, base)
    return found


def _only_files(paths: list[str], inside: str) -> list[str]:
    for each in paths:
        if os.path.isdir(each):
            raise _inner(each, inside)
    if not paths:
        raise ProgramError(f"{inside}: an empty directory")
    return paths


def _check_may_list(path: str) -> None:
    """Patterns pass over directories that cannot be read: that is no reason to say that nothing is there."""
    directory = os.path.dirname(path)
    while _MAGIC.search(directory):
        directory = os.path.dirname(directory)
    if os.path.isdir(directory) and not os.access(directory, os.R_OK | os.X_OK):
        raise SetupError(f"{directory}: no permission to list it")


# --- elsewhere ------------------------------------------------------------------------------------


def _find_remote(place: RemotePlace, path: str, address: str) -> list[tuple[str, str, About]]:
    fs, http = place.fs, place.scheme in ("http", "https")
    fs.invalidate_cache()
    if _MAGIC.search(path if http else address) and not (http and "*" not in path):
        if not http and fs.isfile(path):
            return [(path, address, place.about(path))]
        # hdfs-native takes a question mark for the beginning of a query.
        pattern = path if place.scheme not in HDFS else _path_of_hdfs(address).replace("?", "[!\0]")
        matched = fs.glob(pattern, detail=True)
        infos = [info for each, info in matched.items() if _is_wanted(pattern, each)]
        return _checked(place, infos, address, deep="**" in pattern)
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return _base_remote(place, path, address)
    if info.get("type") == "directory" or (http and path.endswith("/")):
        infos = [each for each in fs.ls(path, detail=True) if _is_wanted("", each["name"])]
        infos = [
            each
            for each in infos
            if not _last(each["name"]).startswith((".", "?")) and each["name"].rstrip("/") != path.rstrip("/")
        ]
        return _checked(place, infos, address, deep=False)
    return [(path, address, place.about_of(path, info))]


def _base_remote(place: RemotePlace, path: str, address: str) -> list[tuple[str, str, About]]:
    parent, _, base = path.rpartition("/")
    pattern = _numbered(base)
    try:
        infos = [each for each in place.fs.ls(parent or "/", detail=True) if pattern.fullmatch(_last(each["name"]))]
    except (FileNotFoundError, NotADirectoryError):
        infos = []
    if not infos:
        raise _nothing(address, shown(address).rpartition("/")[0], base)
    return _checked(place, infos, address, deep=True)


def _checked(place: RemotePlace, infos: list[Any], address: str, *, deep: bool) -> list[tuple[str, str, About]]:
    files = []
    for info in infos:
        name = str(info["name"])
        if info.get("type") == "directory":
            if not deep:
                raise _inner(place.shown(name), shown(address))
            continue
        about = place.about(name) if info.get("size") is None else place.about_of(name, info)
        files.append((name, place.shown(name), about))
    if not files:
        raise ProgramError(f"{shown(address)}: {'no file matches' if _MAGIC.search(address) else 'an empty directory'}")
    return files


def _path_of_hdfs(address: str) -> str:
    return "/" + address.partition("://")[2].partition("/")[2]


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
