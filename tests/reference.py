"""What the named programs have to give, computed one record after the other: plain, slow, and without EC262.

Each function takes files (names are the paths as given) and gives the bytes of the collected output.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Files = Sequence[str | Path]


def contents(files: Files) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, in the order of the names."""
    for name in sorted(map(str, files)):
        yield name, Path(name).read_bytes()


def lines_at(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Byte offset and bytes of each line, without its newline and a carriage return before that."""
    at = 0
    while at < len(data):
        end = data.find(b"\n", at)
        if end < 0:
            yield at, data[at:]
            return
        yield at, data[at:end].removesuffix(b"\r")
        at = end + 1


def text_of(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def escaped(text: str) -> str:
    """A text in a line of the output format "text"."""
    for plain, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escape)
    return text


# --- programs on text -----------------------------------------------------------------------------


def wordcount(files: Files) -> bytes:
    counts: Counter[str] = Counter()
    for _, data in contents(files):
        for _, line in lines_at(data):
            counts.update(text_of(line).split())
    return b"".join(bytes_of(f"{escaped(word)}\t{counts[word]}\n") for word in sorted(counts))


def sort(files: Files) -> bytes:
    lines = [line for _, data in contents(files) for _, line in lines_at(data)]
    return b"".join(line + b"\n" for line in sorted(lines))


def grep(files: Files, pattern: str, *, ignore_case: bool = False) -> bytes:
    found = []
    for _, data in contents(files):
        for _, line in lines_at(data):
            if re.search(pattern, text_of(line), re.IGNORECASE if ignore_case else 0):
                found.append(line + b"\n")
    return b"".join(found)


def inverted_index(files: Files) -> bytes:
    names: dict[str, set[str]] = {}
    for name, data in contents(files):
        for word in text_of(data).split():
            names.setdefault(word, set()).add(name)
    made = [f"{escaped(word)}\t{json.dumps(sorted(names[word]), separators=(',', ':'))}\n" for word in sorted(names)]
    return b"".join(map(bytes_of, made))


# --- records of fixed size ------------------------------------------------------------------------


def sort_records(files: Files, *, record_size: int = 100, key_size: int = 10) -> bytes:
    """Records of equal keys in the order of the files as given."""
    records: list[bytes] = []
    for file in files:
        content = Path(file).read_bytes()
        records += [content[at : at + record_size] for at in range(0, len(content), record_size)]
    records.sort(key=lambda record: record[:key_size])  # leaves equals as they were
    return b"".join(records)


@dataclass(frozen=True)
class Checked:
    """What `valsort` found.

    Attributes:
        count: records.
        checksum: sum of the records' CRC-32, modulo 2^64: the same before and after sorting.
        duplicates: records whose key is that of the record before.
        unordered: records whose key is less than that of the record before.
        first_unordered: the first of them, from 0; -1 if none.
    """

    count: int
    checksum: int
    duplicates: int
    unordered: int
    first_unordered: int


def valsort(pieces: Iterable[bytes], *, record_size: int = 100, key_size: int = 10) -> Checked:
    """Checks records as the sort benchmark's valsort does.

    Args:
        pieces: the file's bytes, cut anywhere.

    Raises:
        ValueError: the last record is not whole.
    """
    count = checksum = duplicates = unordered = 0
    first_unordered = -1
    last: bytes | None = None
    rest = b""
    for piece in pieces:
        rest += piece
        whole = len(rest) // record_size * record_size
        for at in range(0, whole, record_size):
            record = rest[at : at + record_size]
            key = record[:key_size]
            checksum += zlib.crc32(record)
            if last is not None:
                if key < last:
                    unordered += 1
                    first_unordered = count if first_unordered < 0 else first_unordered
                duplicates += key == last
            last = key
            count += 1
        rest = rest[whole:]
    if rest:
        raise ValueError(f"{len(rest)} bytes are left behind the last whole record")
    return Checked(count, checksum % (1 << 64), duplicates, unordered, first_unordered)


def pieces_of(path: Path, size: int = 1_000_000) -> Iterator[bytes]:
    """A file, piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece


# --- hamming: bit by bit, as docs/hamming.md has it -----------------------------------------------

PAYLOAD = 65_536
FRAME = 73_800
DATA_NUMBERS = [number for number in range(1, 72) if number not in (1, 2, 4, 8, 16, 32, 64)]


def check_byte(data: bytes) -> int:
    """The check byte of 8 bytes."""
    assert len(data) == 8
    numbers = 0
    ones = 0
    for k, number in enumerate(DATA_NUMBERS):
        if data[k // 8] >> (k % 8) & 1:
            numbers ^= number
            ones += 1
    ones += bin(numbers).count("1")
    return numbers | (ones % 2) << 7


def coded(data: bytes) -> bytes:
    """Data, a multiple of 8 bytes, as blocks of 9."""
    blocks = [data[at : at + 8] for at in range(0, len(data), 8)]
    return b"".join(block + bytes([check_byte(block)]) for block in blocks)


def block_bits(block: bytes) -> list[int]:
    """The block's wrong bits, as numbers of bits in it (0 to 71): none, one, or two of nobody knows which: [-1, -1]."""
    differs = check_byte(block[:8]) ^ block[8]
    if not differs:
        return []
    number, odd = differs & 127, bin(differs).count("1") % 2
    if not odd:
        return [-1, -1]
    if bin(differs).count("1") == 1:
        return [64 + differs.bit_length() - 1]
    if number in DATA_NUMBERS:
        return [DATA_NUMBERS.index(number)]
    return [-1, -1, -1]


def header(payload: bytes, offset: int, *, last: bool) -> bytes:
    fields = b"EC262 H1" + offset.to_bytes(8, "big") + len(payload).to_bytes(4, "big")
    fields += zlib.crc32(payload).to_bytes(4, "big") + int(last).to_bytes(4, "big")
    return fields + zlib.crc32(fields).to_bytes(4, "big")


def hamming_encode(data: bytes) -> bytes:
    made = []
    for offset in range(0, len(data), PAYLOAD):
        payload = data[offset : offset + PAYLOAD]
        head = header(payload, offset, last=offset + PAYLOAD >= len(data))
        made.append(coded(head + payload + bytes(-len(payload) % 8) + head))
    return b"".join(made)


def hamming_fix(data: bytes) -> bytes:
    """Single errors corrected; for whole frames whose headers have no more than that."""
    made = bytearray(data)
    for at in range(0, len(data) - 8, 9):
        wrong = block_bits(data[at : at + 9])
        if len(wrong) == 1:
            made[at + wrong[0] // 8] ^= 1 << wrong[0] % 8
    return bytes(made)


def hamming_decode(data: bytes) -> bytes:
    """The original of a coded file in which nothing is worse than single errors.

    Raises:
        ValueError: something is.
    """
    fixed = hamming_fix(data)
    made = b""
    for start in range(0, len(fixed), FRAME):
        frame = fixed[start : start + FRAME]
        plain = b"".join(frame[at : at + 8] for at in range(0, len(frame), 9))
        length = int.from_bytes(plain[16:20], "big")
        payload = plain[32 : 32 + length]
        if plain[:32] != header(payload, len(made), last=start + FRAME >= len(fixed)):
            raise ValueError(f"the frame at byte {start} is damaged")
        made += payload
    return made


def hamming_error(data: bytes, *, rate: float = 1, per_block: int = 1, seed: int = 262) -> bytes:
    made = bytearray(data)
    for number, start in enumerate(range(0, len(data), FRAME)):
        count = len(data[start : start + FRAME]) // 9
        random = hashlib.shake_256(f"ec262 hamming.error {seed} {number}".encode()).digest(6 * count)
        for block in range(count):
            drawn = int.from_bytes(random[2 * count + 4 * block : 2 * count + 4 * block + 4], "big")
            if rate < 1 and drawn >= int(rate * 2**32):
                continue
            first = random[block] * 72 // 256
            second = random[count + block] * 72 // 256
            if second == first:
                second = (first + 1) % 72
            for bit in (first, second)[:per_block]:
                made[start + 9 * block + bit // 8] ^= 1 << bit % 8
    return bytes(made)


def hamming_check(name: str, data: bytes, *, most: int = 100) -> bytes:
    """The report on a coded file whose frames are whole and whose headers have single errors at most."""
    if not data:
        return b""
    places: dict[int, list[str]] = {1: [], 2: [], 3: []}
    for at in range(0, len(data), 9):
        wrong = block_bits(data[at : at + 9])
        if len(wrong) == 1:
            places[1].append(f"  byte {at + wrong[0] // 8}, bit {wrong[0] % 8}")
        elif wrong:
            places[len(wrong)].append(f"  block at byte {at}")
    fixed = hamming_fix(data)
    faults = []
    length = 0
    for start in range(0, len(fixed), FRAME):
        frame = fixed[start : start + FRAME]
        plain = b"".join(frame[at : at + 8] for at in range(0, len(frame), 9))
        size = int.from_bytes(plain[16:20], "big")
        length += size
        if zlib.crc32(plain[32 : 32 + size]) != int.from_bytes(plain[20:24], "big"):
            fault = f"  the frame at byte {start} has a wrong checksum: some block of it has three or more wrong bits"
            for at in range(len(frame) - 45, 27, -9):
                wrong = block_bits(frame[at : at + 9])
                if len(wrong) > 1:
                    many = "two" if len(wrong) == 2 else "three or more"
                    fault = f"  the block at byte {start + at} has {many} wrong bits, which cannot be corrected"
            faults.append(fault)
    made = [name, f"frames: {-(-len(data) // FRAME)}"]
    for title, found in (
        ("single errors, which fix corrects", places[1]),
        ("blocks with two errors, uncorrectable", places[2]),
        ("blocks with three or more errors, uncorrectable", places[3]),
        ("frames that cannot be decoded", faults),
    ):
        made += [f"{title}: {len(found)}", *found[:most]]
        if len(found) > most:
            made.append(f"  and {len(found) - most} more")
    made.append("the original cannot be decoded" if faults else f"the original, {length} bytes, can be decoded")
    return "".join(line + "\n" for line in made).encode()
