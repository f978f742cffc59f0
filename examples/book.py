"""Counts the words of a book and checks the result against a plain `Counter`.

python examples/book.py            the New Testament, King James Version: 1 MB that comes with the project
python examples/book.py FILE       any text of yours
"""

import re
import sys
from collections import Counter
from pathlib import Path

import ec262

BOOK = Path(__file__).parent / "data" / "new_testament.txt"
LINES_PER_TASK = 200
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@ec262.mapper
def words(number, line):
    for word in WORD.findall(line.lower()):
        yield word, 1


@ec262.combiner
@ec262.reducer
def total(word, counts):
    return sum(counts)


def main(path: Path) -> int:
    text = path.read_text(encoding="utf-8", errors="replace")
    counts = ec262.run_job(dict(enumerate(text.splitlines())), items_per_task=LINES_PER_TASK)
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]:
        print(f"{count:7,}  {word}")
    if counts != Counter(WORD.findall(text.lower())):
        print("the network's result differs from a plain Counter's", file=sys.stderr)
        return 1
    print(f"{sum(counts.values()):,} words, {len(counts):,} different: the same as a plain Counter finds")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else BOOK))
