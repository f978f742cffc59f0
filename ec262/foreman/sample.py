"""A few records from the beginning of a job's input, in the form in which map tasks have them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ec262.mapreduce.blocks import pairs_of
from ec262.mapreduce.records import Reader
from ec262.mapreduce.split import Split
from ec262.protocol.canonical import decode_value, encode_pairs, encode_value

SAMPLE_ITEMS: Final = 8
SAMPLE_BYTES: Final = 256 * 1024
BRIEF_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """Records that can be had as the data of one map task, from one record up to another.

    Attributes:
        spec: what a task's header says of them.
        pieces: the records, each as it stands in the input: an encoded pair, or bytes of a file.
        offset: of the first one in its file.
    """

    spec: Mapping[str, Any]
    pieces: Sequence[bytes]
    offset: int = 0

    def __len__(self) -> int:
        return len(self.pieces)

    def parts(self, start: int, stop: int) -> list[bytes]:
        """The data parts of a task that has the records from `start` to before `stop`."""
        chosen = self.pieces[start:stop]
        if self.spec["format"] == "pairs":
            return [b"[" + b",".join(chosen) + b"]"]
        return [b"".join(chosen), encode_value(self.offset + sum(map(len, self.pieces[:start])))]

    def brief(self) -> Sample | None:
        """The same with long texts and byte strings cut after `BRIEF_BYTES`, texts where a line ends if one does; None
        where there are none. What a program makes of half an item may be an error that the whole one would not be.
        """
        if self.spec["format"] != "pairs" or all(len(piece) <= BRIEF_BYTES for piece in self.pieces):
            return None
        pieces = [piece if len(piece) <= BRIEF_BYTES else _cut(piece) for piece in self.pieces]
        return None if pieces == list(self.pieces) else Sample(self.spec, pieces)


def _cut(piece: bytes) -> bytes:
    key, value = decode_value(piece)
    if type(value) is str:
        end = value.rfind("\n", 0, BRIEF_BYTES) + 1
        value = value[: end or BRIEF_BYTES]
    elif type(value) is bytes:
        value = value[:BRIEF_BYTES]
    return encode_pairs([(key, value)])[1:-1]


NOTHING: Final = Sample({"format": "pairs"}, ())


def sample_of(splits: Iterable[Split], items: int = SAMPLE_ITEMS) -> Sample:
    """The first records of a job's input.

    Args:
        splits: the first splits, or all: no more are taken than it needs. Of a list, pairs are from all over it.
        items: how many at most. The first is always among them, others only up to `SAMPLE_BYTES`.
    """
    if isinstance(splits, Sequence):
        count = min(items, len(splits))
        places = sorted({at * (len(splits) - 1) // max(1, count - 1) for at in range(count)})
        each = -(-items // count) if count else items
        chosen: Iterable[Split] = [splits[place] for place in places]
    else:
        chosen, each = splits, items
    pieces: list[bytes] = []
    size = 0
    for split in chosen:
        local = getattr(split, "local", None)  # of a split whose data the workers have: this machine's view of them
        split = local() if callable(local) else split
        spec, parts = split.spec(), split.load()
        if not parts:
            return NOTHING
        if spec["format"] == "records":
            found = _records(spec, parts)
            if found.pieces:
                return found
            continue
        for piece in itertools.islice(_pairs(spec["format"], parts), each):
            size += len(piece)
            if len(pieces) == items or (pieces and size > SAMPLE_BYTES):
                return Sample({"format": "pairs"}, pieces)
            pieces.append(piece)
    return Sample({"format": "pairs"}, pieces)


def _pairs(form: str, parts: Sequence[bytes]) -> Iterator[bytes]:
    for part in parts:
        if form == "blocks":
            for pair in pairs_of(part):
                yield encode_pairs([pair])[1:-1]
        else:
            yield from _encoded_pairs(part)


def _encoded_pairs(part: bytes) -> Iterator[bytes]:
    """The encoded pairs of a part, one by one: a large part is not read as a whole."""
    text = part.decode("ascii")
    decoder = json.JSONDecoder()
    at = 1
    while at < len(text) - 1:
        _, end = decoder.raw_decode(text, at)
        yield part[at:end]
        at = end + 1  # the comma


def _records(spec: Mapping[str, Any], parts: Sequence[bytes]) -> Sample:
    """The first records of a piece of a file. A file that is one record is taken if it is small, and never cut."""
    reader, data, offset = Reader.from_wire(spec["reader"]), parts[0], decode_value(parts[1])
    pieces: list[bytes] = []
    at = 0
    while at < min(len(data), SAMPLE_BYTES) and len(pieces) < SAMPLE_ITEMS:
        if reader.splits_by == "records":
            end = at + reader.record_size
        elif reader.splits_by == "lines":
            end = data.find(reader.delimiter, at) + len(reader.delimiter)
            end = len(data) if end < at + len(reader.delimiter) else end
        elif len(data) > SAMPLE_BYTES:
            return NOTHING
        else:
            end = len(data)
        pieces.append(data[at:end])
        at = end
    if reader.header and len(pieces) > 1:
        pieces[:2] = [pieces[0] + pieces[1]]  # the line of names is no record
    return Sample(spec, pieces, offset)
