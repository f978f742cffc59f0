"""The Hamming programs: what is coded comes back, and where it cannot, that is said and never hidden."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ec262.errors import ProgramError
from ec262.mapreduce.program import Program
from ec262.programs import find
from ec262.programs.hamming import code
from ec262.programs.hamming.frames import FRAME, PAYLOAD, Frame, coded_size, make_frame
from ec262.storage.inputs import files
from tests import reference
from tests.sequential import Done, run

SIZES = [0, 1, 7, 8, 9, 1000, PAYLOAD - 1, PAYLOAD, PAYLOAD + 1, 200_003]
Job = Callable[..., Done]


def program(name: str) -> Program:
    made = find(f"hamming.{name}").program
    assert isinstance(made, Program)
    return made


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Runs one of the programs on bytes, which are in a file called "input"."""
    path = tmp_path / "input"

    def start(name: str, data: bytes, *, split_size: int = 100_000, **params: Any) -> Done:
        path.write_bytes(data)
        return run(program(name), [path], split_size=split_size, params=params)

    return start


def some(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def turned(data: bytes, *bits: int) -> bytes:
    """Data with some bits turned, numbered through all bytes."""
    made = bytearray(data)
    for bit in bits:
        made[bit // 8] ^= 1 << bit % 8
    return bytes(made)


# --- the code -------------------------------------------------------------------------------------


def test_every_single_error_is_corrected_and_every_double_error_found() -> None:
    for data in (bytes(8), b"\xff" * 8, some(8)):
        coded = code.encode_blocks(data)
        assert coded == data + bytes([reference.check_byte(data)])
        assert code.syndromes_of(coded) == b"\0"
        for bit in range(72):
            wrong = turned(coded, bit)
            syndromes = code.syndromes_of(wrong)
            assert code.KINDS[syndromes[0]] == code.SINGLE
            assert code.bit_of(syndromes[0]) == bit
            assert code.corrected(wrong, syndromes) == coded
        for pair in combinations(range(72), 2):
            wrong = turned(coded, *pair)
            syndromes = code.syndromes_of(wrong)
            assert code.KINDS[syndromes[0]] == code.DOUBLE
            assert code.corrected(wrong, syndromes) == wrong


def test_many_blocks_at_once_as_the_reference_does_one_after_the_other() -> None:
    data = some(8 * 999)
    coded = code.encode_blocks(data)
    assert coded == reference.coded(data)
    assert code.data_of(coded) == data
    chance = random.Random(5)
    wrong = turned(coded, *(72 * block + chance.randrange(72) for block in range(999) if block % 3))
    assert code.corrected(wrong, code.syndromes_of(wrong)) == coded
    assert code.encode_blocks(b"") == code.data_of(b"") == code.syndromes_of(b"") == b""


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_what_is_coded_comes_back(size: int, job: Job) -> None:
    original = some(size)
    coded = job("encode", original)
    assert coded.output == reference.hamming_encode(original)
    assert reference.hamming_decode(coded.output) == original
    assert coded.counters.get("bytes", 0) == size
    assert all(job("encode", original, split_size=split).output == coded.output for split in (1, 1 << 20))
    for split_size in (1, 1 << 20):
        assert job("decode", coded.output, split_size=split_size).output == original
    spoilt = job("error", coded.output)
    blocks = len(coded.output) // 9
    assert spoilt.output == reference.hamming_error(coded.output)
    assert spoilt.counters.get("wrong bits", 0) == blocks
    assert (spoilt.output != coded.output) == (size > 0)
    assert job("check", spoilt.output).output == (
        reference.hamming_check(str(files_name(job, spoilt.output)), spoilt.output)
    )
    fixed = job("fix", spoilt.output)
    assert fixed.output == coded.output == reference.hamming_fix(spoilt.output)
    assert fixed.counters.get("single errors corrected", 0) == blocks
    assert job("decode", spoilt.output).output == job("decode", fixed.output).output == original


def files_name(job: Job, data: bytes) -> str:
    """The name under which the programs see their input."""
    return job("check", data).pairs[0][0] if data else ""


def test_megabytes(job: Job) -> None:
    original = some(3_000_001)
    coded = job("encode", original, split_size=1 << 20).output
    assert len(coded) == 45 * FRAME + coded_size(3_000_001 - 45 * PAYLOAD)
    assert job("decode", job("error", coded).output).output == original


@pytest.mark.parametrize("rate", [0, 0.001, 0.3, 1])
@pytest.mark.parametrize("per_block", [1, 2])
def test_errors_follow_from_seed_and_place(rate: float, per_block: int, job: Job) -> None:
    coded = reference.hamming_encode(some(2 * PAYLOAD + 50))
    params = {"rate": rate, "per_block": per_block, "seed": "any"}
    made = job("error", coded, **params)
    assert made.output == reference.hamming_error(coded, **params)  # type: ignore[arg-type]
    assert job("error", coded, split_size=1, **params).output == made.output
    blocks = len(coded) // 9
    bits = [bin(one ^ other).count("1") for one, other in zip(coded, made.output, strict=True)]
    by_block = [sum(bits[at : at + 9]) for at in range(0, len(bits), 9)]
    assert set(by_block) <= {0, per_block}
    assert sum(by_block) == made.counters["wrong bits"]
    assert abs(by_block.count(per_block) - rate * blocks) <= 4 * (blocks * rate * (1 - rate)) ** 0.5
    if rate > 0:
        assert job("error", coded, rate=rate, per_block=per_block).output != made.output


def test_errors_in_any_file_leave_what_is_no_block(job: Job) -> None:
    made = job("error", bytes(25)).output
    assert made[:18] != bytes(18)
    assert made[18:] == bytes(7)


@pytest.mark.parametrize(
    "params, said",
    [({"per_block": 3}, "per_block is 1 or 2"), ({"rate": 1.5}, "rate is a share"), ({"rate": -1}, "rate is a share")],
)
def test_errors_that_make_no_sense(params: dict[str, Any], said: str, job: Job) -> None:
    with pytest.raises(ValueError, match=said):
        job("error", reference.hamming_encode(b"a"), **params)


# --- what cannot be corrected ---------------------------------------------------------------------


def test_two_errors_in_every_block(job: Job) -> None:
    original = some(150_000)
    coded = reference.hamming_encode(original)
    spoilt = job("error", coded, per_block=2).output
    with pytest.raises(ValueError, match=r"input: both headers of the frame at byte 0 are damaged"):
        job("decode", spoilt)
    fixed = job("fix", spoilt)
    assert fixed.output == spoilt
    assert fixed.counters["uncorrectable blocks"] == len(coded) // 9
    assert fixed.counters["damaged frames"] == 3
    forced = job("decode", spoilt, force=1)
    assert forced.output[: 2 * PAYLOAD] != original[: 2 * PAYLOAD]
    assert abs(len(forced.output) - len(original)) < 8
    assert "the original cannot be decoded" in job("check", spoilt).output.decode()


def test_two_errors_in_one_block_are_named_and_the_rest_is_corrected(job: Job) -> None:
    original = some(150_000)
    coded = reference.hamming_encode(original)
    at = FRAME + 9 * 100
    spoilt = turned(coded, 8 * at, 8 * at + 70, 8 * 50_000, 8 * 147_700 + 3)
    with pytest.raises(ValueError, match=rf"the block at byte {at} has two wrong bits.*force=1"):
        job("decode", spoilt)
    forced = job("decode", spoilt, force=1)
    wrong = [place for place in range(150_000) if forced.output[place] != original[place]]
    assert len(forced.output) == 150_000
    assert wrong == [PAYLOAD + 8 * (100 - 4)]
    assert forced.counters == {
        "frames": 3, "single errors corrected": 2, "uncorrectable blocks": 1, "damaged frames": 1,
    }  # fmt: skip
    fixed = job("fix", spoilt)
    assert fixed.output == turned(coded, 8 * at, 8 * at + 70) == reference.hamming_fix(spoilt)
    assert fixed.counters["uncorrectable blocks"] == 1
    report = job("check", spoilt)
    name = report.pairs[0][0]
    assert report.output == reference.hamming_check(name, spoilt)
    assert report.output.decode().splitlines() == [
        name,
        "frames: 3",
        "single errors, which fix corrects: 2",
        "  byte 50000, bit 0",
        "  byte 147700, bit 3",
        "blocks with two errors, uncorrectable: 1",
        f"  block at byte {at}",
        "blocks with three or more errors, uncorrectable: 0",
        "frames that cannot be decoded: 1",
        f"  the block at byte {at} has two wrong bits, which cannot be corrected",
        "the original cannot be decoded",
    ]


def test_three_errors_may_look_like_one_but_are_never_taken_for_it(job: Job) -> None:
    original = some(1000)
    coded = reference.hamming_encode(original)
    looks: set[str] = set()
    for bits in combinations(range(0, 72, 9), 3):
        spoilt = turned(coded, *(8 * 9 * 20 + bit for bit in bits))
        with pytest.raises(ValueError, match=r"three or more wrong bits") as raised:
            job("decode", spoilt)
        looks.add("checksum" if "checksum" in str(raised.value) else "block")
        assert "the original cannot be decoded" in job("check", spoilt).output.decode()
        assert job("fix", spoilt).counters["damaged frames"] == 1
    assert looks == {"checksum", "block"}


def test_random_damage_is_never_hidden() -> None:
    chance = random.Random(262)
    payload = some(100)
    frame = make_frame(payload, 0, last=True)
    right = 0
    for _ in range(3000):
        read = Frame(turned(frame, *chance.sample(range(8 * len(frame)), chance.randrange(1, 12))), 0)
        assert read.fault or read.payload == payload
        right += not read.fault
    assert 300 < right < 2700


def test_a_header_is_restored_from_its_copy(job: Job) -> None:
    original = some(70_000)
    coded = reference.hamming_encode(original)
    tail = coded_size(70_000 - PAYLOAD)
    copies = [0, FRAME - 36, FRAME, FRAME + tail - 36]
    for first, second in ((copies[0], copies[2]), (copies[1], copies[3])):
        spoilt = turned(coded, 8 * first, 8 * first + 1, 8 * second + 100, 8 * second + 101)
        assert job("decode", spoilt).output == original
        fixed = job("fix", spoilt)
        assert fixed.output == coded
        assert fixed.counters["damaged frames"] == 0
        assert fixed.counters["uncorrectable blocks"] == 2
    mixed = turned(coded, 0, 1, 8 * (FRAME - 9), 8 * (FRAME - 9) + 1)  # of each copy another block
    assert job("decode", mixed).output == original
    assert job("fix", mixed).output == coded
    lost = turned(coded, 0, 1, 8 * (FRAME - 36), 8 * (FRAME - 36) + 1)  # of both the same
    with pytest.raises(ValueError, match="both headers of the frame at byte 0 are damaged"):
        job("decode", lost)
    assert job("decode", lost, force=True).output == original
    assert job("fix", lost).output == lost


# --- frames that are missing or do not belong here ------------------------------------------------


def test_a_file_cut_off_anywhere_is_not_decoded(job: Job) -> None:
    original = some(3 * PAYLOAD)
    coded = reference.hamming_encode(original)
    for length in (1, 8, 35, 36, 71, 72, 80, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 3 * FRAME - 9, 3 * FRAME - 1):
        cut = coded[:length]
        with pytest.raises(ValueError, match="cut off"):
            job("decode", cut)
        report = job("check", cut).output.decode()
        assert "the last frame is missing or damaged" in report or "is cut off" in report
        assert "the original cannot be decoded" in report
        assert job("fix", cut).output == cut
        forced = job("decode", cut, force="yes").output
        assert forced[: length // FRAME * PAYLOAD] == original[: length // FRAME * PAYLOAD]
    assert job("decode", coded[:FRAME], force=1).counters["missing frames"] == 1


def test_frames_in_another_order_missing_or_added(job: Job) -> None:
    coded = reference.hamming_encode(some(3 * PAYLOAD))
    one, two, three = (coded[at : at + FRAME] for at in range(0, 3 * FRAME, FRAME))
    for wrong in (two + one + three, one + three, two + three, one + two + two + three):
        with pytest.raises(ValueError, match="missing, added or in another order"):
            job("decode", wrong)
        assert "the original cannot be decoded" in job("check", wrong).output.decode()
    other = make_frame(bytes(9), 3 * PAYLOAD, last=True)
    with pytest.raises(ValueError, match=f"the frame at byte {3 * FRAME} stands behind the last one"):
        job("decode", coded + other)
    report = job("check", coded + other).output.decode()
    assert "something stands behind the last frame\nthe original cannot be decoded" in report
    assert job("decode", coded + other, force=1).output == some(3 * PAYLOAD)
    with pytest.raises(ValueError, match=r"something follows it|cut off"):
        job("decode", reference.hamming_encode(b"abc") + b"more")


def test_what_was_never_coded(job: Job) -> None:
    for data in (b"a", b"any text\n" * 20, bytes(FRAME), some(100_000)):
        with pytest.raises(ValueError, match="no file that hamming"):
            job("decode", data)
        assert "the original cannot be decoded" in job("check", data).output.decode()
        job("fix", data)


def test_places_are_listed_up_to_a_limit(job: Job) -> None:
    spoilt = reference.hamming_error(reference.hamming_encode(some(100_000)))
    report = job("check", spoilt, limit=2).output.decode()
    count = len(spoilt) // 9
    assert f"single errors, which fix corrects: {count}\n" in report
    assert report.count("  byte ") == 2
    assert f"  and {count - 2} more\n" in report
    assert job("check", spoilt, limit=0).output.decode().count("  byte ") == 0


def test_check_reports_on_several_files(tmp_path: Path) -> None:
    names = ["b", "a", "c"]
    for name in names:
        (tmp_path / name).write_bytes(reference.hamming_encode(name.encode()))
    made = run(program("check"), [tmp_path / name for name in names])
    wanted = [reference.hamming_check(str(tmp_path / name), (tmp_path / name).read_bytes()) for name in sorted(names)]
    assert made.output == b"".join(wanted)


@pytest.mark.parametrize("name", ["encode", "decode", "fix", "error"])
def test_the_others_take_one_file_a_job(name: str, tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(reference.hamming_encode(b"abc"))
    prepare = program(name).prepare
    assert prepare is not None
    assert prepare({"seed": 1}, files(str(paths[0]))) == {"seed": 1}
    for given in (files(*map(str, paths)), files(str(tmp_path / "*"))):
        with pytest.raises(ProgramError, match="one file a job, not 2"):
            prepare({}, given)
    with pytest.raises(ProgramError, match="takes a file"):
        prepare({}, None)
    with pytest.raises(ValueError, match=f"there are 2 frames 0: hamming.{name} takes one file a job"):
        run(program(name), paths)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.warns(UserWarning, match="empty is empty, and so will be the result"):
        prepare({}, files(str(empty)))
