"""Makes records like those of the sort benchmark's gensort (https://sortbenchmark.org): 100 bytes, 10 are the key.

    python -m tests.gensort 10000000 records.bin            1 GB
    python -m tests.gensort 1000000 records.bin --seed 7 --keys 1000      at most 1,000 different keys

A record: 10 random bytes, 00 11, the row's number as 32 hexadecimal digits, 88 99 AA BB, 48 letters, CC DD EE FF. The
same seed and row give the same record, whatever else is made.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

RECORD = 100
KEY = 10
BATCH = 10_000
"""Records made at once, from a seed of their own."""
_LETTERS = [bytes([letter]) * 4 for letter in b"0123456789ABCDEF"]
_FILLERS = [
    b"\x88\x99\xaa\xbb" + b"".join(_LETTERS[at:] + _LETTERS[:at])[:48] + b"\xcc\xdd\xee\xff" for at in range(16)
]


def records(count: int, *, seed: int = 262, keys: int | None = None) -> Iterator[bytes]:
    """So many records, in pieces of up to `BATCH`.

    Args:
        count: how many.
        seed: other seeds, other records.
        keys: draw keys from so many different ones only; default: any 10 bytes.
    """
    pool = random.Random(f"{seed} keys").randbytes(KEY * keys) if keys else b""
    for first in range(0, count, BATCH):
        rows = range(first, min(first + BATCH, count))
        drawn = random.Random(f"{seed} {first}")
        if keys:
            starts = [KEY * drawn.randrange(keys) for _ in rows]
            chosen = [pool[start : start + KEY] for start in starts]
        else:
            stream = drawn.randbytes(KEY * BATCH)  # all of it, so that a row does not depend on how many there are
            chosen = [stream[at : at + KEY] for at in range(0, KEY * len(rows), KEY)]
        yield b"".join(
            [b"%b\x00\x11%032X%b" % (key, row, _FILLERS[row & 15]) for key, row in zip(chosen, rows, strict=True)]
        )


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gensort", description="Makes records of 100 bytes to sort.")
    parser.add_argument("count", type=int, help="how many records")
    parser.add_argument("file", type=Path, help="where to write them; - is standard output")
    parser.add_argument("--seed", type=int, default=262)
    parser.add_argument("--keys", type=int, help="at most so many different keys (default: any)")
    options = parser.parse_args(arguments)
    made = records(options.count, seed=options.seed, keys=options.keys)
    if str(options.file) == "-":
        sys.stdout.buffer.writelines(made)
    else:
        with options.file.open("wb") as file:
            file.writelines(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
