"""The formats of output files: pairs to bytes, and lines back to pairs. Pure.

========  ======================================================================================
text      key TAB value NEWLINE. Text and bytes are as they are, but backslash, tab, line feed and carriage return
          are escaped as in PostgreSQL's COPY; everything else is canonical JSON.
values    each value and a line feed; text and bytes as they are, everything else canonical JSON
binary    values, which have to be bytes, one after the other
json      ``[key, value]`` as canonical JSON, one a line
========  ======================================================================================

Text that has bytes in it which were no UTF-8 when it was read (``surrogateescape``) is written as these bytes. Any
other lone surrogate is refused but by json, which has a way to write it.

A text does not say whether ``5`` was a number: the manifest beside the files does, as the *kinds* of keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from ec262.errors import Malformed, ProgramError
from ec262.protocol.canonical import decode_value, encode_value, is_key

FORMATS: Final = ("text", "values", "binary", "json")
WITH_KEYS: Final = ("text", "json")

BATCH: Final = 4096
"""Pairs that are encoded before they are written."""

_ESCAPES: Final = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_TO_ESCAPE: Final = re.compile(r"[\\\t\n\r]")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_NO_BYTE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Lone surrogates that ``surrogateescape`` never made."""
_BYTES_TO_ESCAPE: Final = re.compile(rb"[\\\t\n\r]")
_BYTES_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_MEANS: Final = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}
_NUMBERS: Final = frozenset({int, float, bool})


class Kinds:
    """Which types keys or values had, so that a text of them can be read again."""

    def __init__(self) -> None:
        self._seen: set[type] = set()

    def note(self, things: Iterable[Any]) -> None:
        """Notes the types of some of them."""
        self._seen.update(map(type, things))

    def merge(self, other: Kinds) -> None:
        """Notes what the other noted."""
        self._seen |= other._seen

    def name(self) -> str:
        """``none``, ``str``, ``bytes``, ``number``, ``json`` (neither text nor bytes), or ``mixed``."""
        seen = self._seen
        if not seen:
            return "none"
        if seen <= _NUMBERS:
            return "number"
        if not seen & {str, bytes}:
            return "json"
        return next(iter(seen)).__name__ if len(seen) == 1 else "mixed"


# --- writing --------------------------------------------------------------------------------------


Batch = tuple[list[Any], list[Any]]
"""Keys, and as many values."""


def in_batches(pairs: Iterable[tuple[Any, Any]]) -> Iterator[Batch]:
    """Pairs as batches."""
    source = iter(pairs)
    while batch := list(islice(source, BATCH)):
        yield [key for key, _ in batch], [value for _, value in batch]


def encoded(
    batches: Iterable[Batch], format: str, keys: Kinds, values: Kinds, *, where: str
) -> Iterator[tuple[int, bytes]]:
    """The bytes of pairs, in pieces: (how many pairs, bytes). Notes the kinds of keys and values.

    Raises:
        ProgramError: a value that the format cannot hold.
        ValueNotPortable: one that none can.
    """
    encode = _ENCODERS[format]
    for some_keys, some_values in batches:
        keys.note(some_keys)
        values.note(some_values)
        yield len(some_keys), encode(some_keys, some_values, where)


def encoder(format: str) -> Callable[[Any, Any], bytes]:
    """What makes the bytes of a single pair.

    Raises:
        ProgramError: no such format.
    """
    if format not in FORMATS:
        raise ProgramError(f"output format {format!r:.80}: has to be one of {', '.join(FORMATS)}")
    encode = _ENCODERS[format]
    return lambda key, value: encode([key], [value], "result")


def _text(keys: list[Any], values: list[Any], where: str) -> bytes:
    if set(map(type, values)) == {int} and set(map(type, keys)) == {str}:
        if _TO_ESCAPE.search("".join(keys)) is None:
            return to_bytes("".join([f"{key}\t{value}\n" for key, value in zip(keys, values, strict=True)]), where)
        lines = [f"{_escaped(key)}\t{value}\n" for key, value in zip(keys, values, strict=True)]
        return to_bytes("".join(lines), where)
    fields = zip(keys, values, strict=True)
    return b"".join([b"%b\t%b\n" % (_field(key, where), _field(value, where)) for key, value in fields])


def _escaped(text: str) -> str:
    if text.isprintable() and "\\" not in text:
        return text
    return _TO_ESCAPE.sub(lambda found: _ESCAPES[found.group()], text)


def _field(thing: Any, where: str) -> bytes:
    if type(thing) is str:
        return to_bytes(_escaped(thing), where)
    if type(thing) is bytes:
        return _BYTES_TO_ESCAPE.sub(lambda found: _ESCAPES[found.group().decode()].encode(), thing)
    return encode_value(thing, where=where)


def _values(keys: list[Any], values: list[Any], where: str) -> bytes:
    if set(map(type, values)) == {str}:
        return to_bytes("\n".join(values) + "\n", where)
    return b"".join([b"%b\n" % _value(value, where) for value in values])


def _value(value: Any, where: str) -> bytes:
    if type(value) is bytes:
        return value
    return to_bytes(value, where) if type(value) is str else encode_value(value, where=where)


def _binary(keys: list[Any], values: list[Any], where: str) -> bytes:
    if set(map(type, values)) - {bytes}:
        key, value = next(pair for pair in zip(keys, values, strict=True) if type(pair[1]) is not bytes)
        raise ProgramError(
            f"{where}: format 'binary' holds values that are bytes; that of key {key!r:.80} is a {type(value).__name__}"
        )
    return b"".join(values)


def _json(keys: list[Any], values: list[Any], where: str) -> bytes:
    pairs = zip(keys, values, strict=True)
    return b"".join([b"%b\n" % encode_value([key, value], where=where) for key, value in pairs])


_ENCODERS: Final[dict[str, Callable[[list[Any], list[Any], str], bytes]]] = {
    "text": _text,
    "values": _values,
    "binary": _binary,
    "json": _json,
}


def to_bytes(text: str, where: str) -> bytes:
    """UTF-8; what was no UTF-8 when it was read becomes the bytes that it was.

    Raises:
        ProgramError: a lone surrogate that stands for no byte; names `where` and the text around it.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        at = next(_NO_BYTE.finditer(text)).start()
        raise ProgramError(
            f"{where}: {text[max(0, at - 10) : at + 10]!a} holds U+{ord(text[at]):04X}, half a character, which no "
            "UTF-8 can hold; write such results with output_format='json'"
        ) from None


# --- reading --------------------------------------------------------------------------------------


def pair_reader(format: str, keys: str, values: str, *, where: str) -> Callable[[bytes], tuple[Any, Any]]:
    """What makes a pair of a line (without its line feed).

    Args:
        keys, values: kinds, as the manifest has them.

    Raises:
        ProgramError: such files hold no pairs, or do not tell text from other things.
    """
    if format == "json":
        return _json_pair
    key_of, value_of = key_reader(format, keys, where=where), _field_reader(values, "values", where)

    def read(line: bytes) -> tuple[Any, Any]:
        key, tab, value = line.partition(b"\t")
        if not tab:
            raise Malformed("a line without a tab")
        return key_of(key), value_of(value)

    return read


def key_reader(format: str, keys: str, *, where: str) -> Callable[[bytes], Any]:
    """What makes a key of a line: its part before the tab is enough.

    Raises:
        ProgramError: as `pair_reader`.
    """
    if format == "json":
        return lambda line: _json_pair(line)[0]
    if format != "text":
        raise ProgramError(f"{where}: files of format {format!r} hold no keys")
    field = _field_reader(keys, "keys", where)
    return lambda line: field(line.partition(b"\t")[0])


def _json_pair(line: bytes) -> tuple[Any, Any]:
    pair = decode_value(line)
    if type(pair) is not list or len(pair) != 2 or not is_key(pair[0]):
        raise Malformed("a line that is no pair")
    return pair[0], pair[1]


def _field_reader(kind: str, what: str, where: str) -> Callable[[bytes], Any]:
    if kind == "str":
        return _text_of
    if kind == "bytes":
        return lambda field: _BYTES_ESCAPED.sub(lambda found: _MEANS[found[1].decode("latin-1")].encode(), field)
    if kind == "mixed":
        raise ProgramError(
            f"{where}: {what} are text and other things, which format 'text' does not tell apart; "
            "write such results with output_format='json'"
        )
    return _number_of if kind == "number" else decode_value


def _number_of(field: bytes) -> Any:
    return int(field) if field.isdigit() else decode_value(field)


def _text_of(field: bytes) -> str:
    text = field.decode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda found: _MEANS[found[1]], text) if "\\" in text else text
