"""Sorts records of fixed size by their first bytes, as the sort benchmark's GraySort does: 100 bytes, the key is 10.

    python -m tests.gensort 10000000 records.bin
    ec262 run sort_records records.bin --output sorted --reducers 16
    ec262 collect sorted sorted.bin

Records of equal keys stay in the order of the input. ``key_size``: bytes of the key, default 10. Records of another
size: ``ec262.run_job(ec262.files("records.bin", reader="records", record_size=64), program=program)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ec262
from ec262.errors import ProgramError
from ec262.storage.inputs import FileInput

RECORD = 100
KEY = 10

record_size, key_size = RECORD, KEY


def prepare(params: Mapping[str, Any], files: FileInput | None) -> Mapping[str, Any]:
    """The parameters, with the size that records have."""
    record = files.reader.record_size if files is not None else RECORD
    key = params.get("key_size", KEY)
    if type(key) is not int or not 1 <= key <= record:
        raise ProgramError(f"key_size is a number of bytes from 1 to {record}, not {key!r}")
    return {**params, "key_size": key, "record_size": record}


def setup(params: Mapping[str, Any]) -> None:
    """Takes the parameters, once a task rather than once a record."""
    global record_size, key_size
    record_size, key_size = params.get("record_size", RECORD), params.get("key_size", KEY)


def split_key(offset: int, record: bytes) -> Iterable[tuple[bytes, bytes]]:
    """A record's key, and the rest of it."""
    if len(record) != record_size:
        raise ValueError(f"{ec262.input_name()}: the last record, at byte {offset}, has only {len(record)} bytes")
    return ((record[:key_size], record[key_size:]),)


def joined(key: bytes, rests: list[bytes]) -> bytes:
    """All records of a key."""
    return key + key.join(rests)


program = ec262.Program(
    split_key,
    joined,
    partitioner="range",
    setup=setup,
    reader=ec262.Reader("records", record_size=RECORD),
    output_format="binary",
    prepare=prepare,
)
