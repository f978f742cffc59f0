"""Text: generated lines of words whose frequencies follow Zipf's law, the same bytes for the same seed.

The k-th most frequent word has a share proportional to 1 / (k + `SHIFT`) ** `EXPONENT` (Zipf's law as Mandelbrot has
it). The numbers are fitted to English as in examples/data/new_testament.txt: of its 188,388 words 13,405 are distinct
and the first has a share of 5.8 %; here as many words have 13,740 distinct ones in expectation, the first 7.0 %. How
many distinct words a chunk has matters more for word count's cost than anything else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate

SEED = 262
VOCABULARY = 100_000
EXPONENT = 1.35
SHIFT = 4.0
WORDS_A_LINE = 12
_BATCH_LINES = 2000


def chunks(total_bytes: int, chunk_bytes: int = 1_000_000, seed: int = SEED) -> Iterator[str]:
    """About `total_bytes` of text (ASCII: a byte a character) as chunks of whole lines, each about `chunk_bytes`."""
    chance = random.Random(seed)
    words = _vocabulary(chance)
    shares = list(accumulate((rank + SHIFT) ** -EXPONENT for rank in range(1, VOCABULARY + 1)))
    made = size = 0
    lines: list[str] = []
    while made < total_bytes:
        drawn = chance.choices(words, cum_weights=shares, k=WORDS_A_LINE * _BATCH_LINES)
        for at in range(0, len(drawn), WORDS_A_LINE):
            line = " ".join(drawn[at : at + WORDS_A_LINE])
            lines.append(line)
            size += len(line) + 1
            made += len(line) + 1
            if size >= chunk_bytes or made >= total_bytes:
                yield "\n".join(lines) + "\n"
                lines, size = [], 0
                if made >= total_bytes:
                    return


def _vocabulary(chance: random.Random) -> list[str]:
    """Distinct words, short ones first: frequent words are short."""
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        length = min(3 + len(words).bit_length() // 3, 12)
        words["".join(chance.choices("etaoinshrdlucmwfgypbvk", k=chance.randint(2, length)))] = None
    return list(words)
