"""Output files: their formats, how they come to be there, and reading them again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.cli import main
from ec262.errors import EC262Error, ProgramError, SetupError
from ec262.protocol.canonical import encode_pairs, sort_pairs
from ec262.storage.collect import collect, read_pairs
from ec262.storage.formats import Kinds, encoded, encoder, in_batches, pair_reader
from ec262.storage.manifest import part_names
from ec262.storage.output import FORMATS, OutputFiles

Pairs = list[tuple[Any, Any]]


def write(
    url: Path | str, parts: Iterable[Pairs], format: str = "text", *, ordered: bool = False, **how: Any
) -> list[str]:
    output = OutputFiles(url, format, **how)
    output.check()
    listed = list(parts)
    output.begin(len(listed))
    for index, pairs in enumerate(listed):
        output.write(index, sort_pairs(pairs))
    return output.finish(ordered=ordered)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "line"),
    [
        (("key", 1), b"key\t1\n"),
        (("key", "value"), b"key\tvalue\n"),
        (("a\tb\\n", "c\nd\re"), b"a\\tb\\\\n\tc\\nd\\re\n"),
        ((b"\xff\t\\", b"\n\r"), b"\xff\\t\\\\\t\\n\\r\n"),
        (("žluť\udcff", None), "žluť".encode() + b"\xff\tnull\n"),
        ((1.5, [1, "a\\b"]), b'1.5\t[1,"a\\\\b"]\n'),
        ((("a", 1), {"b": b"c"}), b'{"t":["a",1]}\t{"d":[["b",{"b":"Yw=="}]]}\n'),
        (("\u2028\x0b\0", True), "\u2028\x0b\0\ttrue\n".encode()),
    ],
)
def test_text(pair: tuple[Any, Any], line: bytes) -> None:
    assert encoder("text")(*pair) == line


def test_the_other_formats() -> None:
    assert encoder("values")("k", "v\t\\") == b"v\t\\\n"
    assert encoder("values")("k", b"\xff") == b"\xff\n"
    assert encoder("values")("k", (1, 2)) == b'{"t":[1,2]}\n'
    assert encoder("binary")("k", b"\0\n") == b"\0\n"
    assert encoder("json")(("a", 1), "é\n") == b'[{"t":["a",1]},"\\u00e9\\n"]\n'
    with pytest.raises(ProgramError, match="format 'binary' holds values that are bytes; that of key 'k' is a str"):
        encoder("binary")("k", "v")
    with pytest.raises(ProgramError, match="has to be one of text, values, binary, json"):
        encoder("xml")


@pytest.mark.parametrize("form", ["text", "values"])
@pytest.mark.parametrize("bad", ["\ud800 \udc80", "\udc7f", "\udd00x"])
def test_half_characters_are_refused_and_nothing_is_changed(form: str, bad: str) -> None:
    assert encoder(form)("k", "a\udc80 \udcff").endswith(b"a\x80 \xff\n")
    for key, value in (("k", bad), *([(bad, 1), (bad + "\t", 1), (bad, None)] if form == "text" else [])):
        with pytest.raises(ProgramError, match=r"^result: .*U\+D.*output_format='json'") as caught:
            encoder(form)(key, value)
        assert str(caught.value).isprintable()
    line = encoder("json")(bad, bad).rstrip(b"\n")
    assert pair_reader("json", "str", "str", where="w")(line) == (bad, bad)


characters = st.sampled_from(["a", "b", "\\", "t", "n", "\t", "\n", "\r", "é", "\0", "\u2028", "\udc80", "\U0001f600"])
texts = (
    st.lists(characters, max_size=6)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))
)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.binary(max_size=4) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
others = plain.filter(lambda value: type(value) not in (str, bytes))
keys = [texts, st.binary(max_size=6), st.integers(), st.tuples(texts, st.integers()) | st.none() | st.integers()]


@settings(max_examples=150)
@given(
    pairs=st.sampled_from(keys).flatmap(
        lambda key: st.sampled_from([texts, st.binary(max_size=5), st.integers(), others]).flatmap(
            lambda value: st.lists(st.tuples(key, value), max_size=8)
        )
    )
)
def test_what_is_written_as_text_or_json_reads_the_same(pairs: Pairs) -> None:
    for form in ("text", "json"):
        of_keys, of_values = Kinds(), Kinds()
        data = b"".join(data for _, data in encoded(in_batches(pairs), form, of_keys, of_values, where="w"))
        lines = data.split(b"\n")
        assert lines.pop() == b""
        assert len(lines) == len(pairs)
        read = pair_reader(form, of_keys.name(), of_values.name(), where="w")
        assert encode_pairs(map(read, lines)) == encode_pairs(pairs)


@pytest.mark.parametrize(
    ("things", "name"),
    [
        ([], "none"),
        (["a"], "str"),
        ([b"a"], "bytes"),
        ([1, 1.5, True], "number"),
        ([1, None, (1,)], "json"),
        (["a", 1], "mixed"),
        (["a", b"a"], "mixed"),
    ],
)
def test_kinds(things: list[Any], name: str) -> None:
    kinds = Kinds()
    kinds.note(things)
    assert kinds.name() == name


# --- how files come to be there -------------------------------------------------------------------


def test_the_files_and_their_manifest(tmp_path: Path) -> None:
    url = tmp_path / "new" / "out"
    output = OutputFiles(str(url), "text")
    output.check()
    assert names(tmp_path / "new") == []
    output.begin(3)
    output.write(2, [("c", 3)])
    output.write(0, [("x", 0)])
    output.write(0, [("a", 1), ("b", 2)])  # once more: in place of the first time
    assert not [name for name in names(tmp_path / "new") if not name.startswith(".")]
    written = output.finish(ordered=True, facts={"job": "j1"})
    assert written == [f"{url}_00", f"{url}_01", f"{url}_02"]
    assert names(tmp_path / "new") == ["out_00", "out_01", "out_02", "out_manifest.json"]
    assert [Path(path).read_bytes() for path in written] == [b"a\t1\nb\t2\n", b"", b"c\t3\n"]
    manifest = json.loads((tmp_path / "new" / "out_manifest.json").read_text())
    assert manifest["parts"][0] == {
        "name": "out_00",
        "bytes": 8,
        "sha256": hashlib.sha256(b"a\t1\nb\t2\n").hexdigest(),
        "records": 2,
    }
    del manifest["parts"]
    assert manifest == {
        **{"version": 1, "partitions": 3, "format": "text", "ordered": True},
        **{"keys": "str", "values": "number", "facts": {"job": "j1"}},
    }


def test_names_are_as_wide_as_they_have_to_be() -> None:
    assert part_names("o", 1) == ["o_00"]
    assert part_names("o", 100)[-1] == "o_99"
    assert part_names("o", 101)[:1] + part_names("o", 101)[-1:] == ["o_000", "o_100"]


def test_existing_output_is_refused(tmp_path: Path) -> None:
    for name in ("out_07", "out_manifest.json"):
        (tmp_path / name).touch()
        with pytest.raises(ProgramError, match=f"{name} is there already"):
            OutputFiles(tmp_path / "out").check()
        (tmp_path / name).unlink()
    (tmp_path / "out_x").touch()
    (tmp_path / "outer_00").touch()
    OutputFiles(tmp_path / "out").check()
    for bad in ("", "out/", str(tmp_path) + "/", "/"):
        with pytest.raises(ProgramError, match="begin with"):
            OutputFiles(bad)
    with pytest.raises(ProgramError, match="output format 'xml'"):
        OutputFiles(tmp_path / "out", "xml")


def test_overwriting_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    write(tmp_path / "out", [[("a", 1)], [("b", 2)], [("c", 3)]])
    (tmp_path / "out_99").write_text("not ours")
    write(tmp_path / "out", [[("a", 5)]], overwrite=True)
    assert names(tmp_path) == ["out_00", "out_99", "out_manifest.json"]
    assert list(read_pairs(tmp_path / "out")) == [("a", 5)]
    (tmp_path / "out_manifest.json").write_text("broken")
    write(tmp_path / "out", [[("a", 6)]], overwrite=True)
    assert list(read_pairs(tmp_path / "out")) == [("a", 6)]


def test_what_goes_wrong_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, int]]:
        yield "a", 1
        raise RuntimeError("the job's trouble")

    output = OutputFiles(tmp_path / "out")
    output.begin(3)
    output.write(0, [("a", 1)])
    with pytest.raises(RuntimeError, match="the job's trouble"):
        output.write(1, failing())
    with pytest.raises(ProgramError, match="set"):
        output.write(2, [("a", {1})])
    assert len(names(tmp_path)) == 1
    output.abort()
    assert names(tmp_path) == []
    output.abort()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_said_before_the_job(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)
    with pytest.raises(SetupError, match="no permission"):
        OutputFiles(tmp_path / "out").check()


def test_a_file_where_a_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EC262Error, match="file"):
        OutputFiles(tmp_path / "file" / "out").check()


FULL = """
import resource, signal, sys
from ec262.errors import SetupError
from ec262.storage.output import OutputFiles, collect
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    {code}
except SetupError as reason:
    print(reason)
"""


def in_a_full_disk(code: str, limit: int = 100_000) -> str:
    """Runs code in a process whose files may not grow: to it the disk is full."""
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(code=code, limit=limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_leaves_no_output(tmp_path: Path) -> None:
    code = f"""
    output = OutputFiles({str(tmp_path / "out")!r}); output.begin(2)
    output.write(0, [("a", 1)])
    try:
        output.write(1, ((str(n), n) for n in range(100_000)))
    finally:
        output.abort()"""
    assert "out_01: no space is left there" in in_a_full_disk(code)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "out", [[(str(n), n) for n in range(m, 50_000, 2)] for m in (0, 1)])
    target = tmp_path / "target"
    target.write_text("before")
    before = names(tmp_path)
    code = f"collect({str(tmp_path / 'out')!r}, {str(target)!r}, overwrite=True)"
    assert "target: no space is left there" in in_a_full_disk(code)
    assert target.read_text() == "before"
    assert names(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a file system")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(small)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("may not mount")
    try:
        output = OutputFiles(small / "out")
        output.check()
        output.begin(1)
        with pytest.raises(SetupError, match="no space is left there"):
            output.write(0, ((str(n), n) for n in range(100_000)))
        assert names(small) == []
        write(tmp_path / "out", [[(str(n), n) for n in range(m, 50_000, 2)] for m in (0, 1)])
        with pytest.raises(SetupError, match="target: no space is left there"):
            collect(tmp_path / "out", small / "target")
        assert names(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- reading again --------------------------------------------------------------------------------


def spread(pairs: Pairs, parts: int) -> list[Pairs]:
    return [pairs[at::parts] for at in range(parts)]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: f"key {n * 7919 % 5000}",
        lambda n: (n * 7919 % 5000).to_bytes(4, "big"),
        lambda n: n * 7919 % 5000 - 2500,
        lambda n: (n * 7919 % 5000) / 3,
        lambda n: ("t", n * 7919 % 5000, None),
        lambda n: [None, n, (n,)][n % 3 if n > 2 else 1],
        lambda n: f"\t\\\n{chr(n * 7919 % 5000 + 0x2000)}\r",
    ],
)
def test_collecting_merges_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, make: Any) -> None:
    monkeypatch.setattr("ec262.storage.collect._SMALLEST_BLOCK", 300)
    monkeypatch.setattr("ec262.storage.collect.MERGE_BYTES", 300 * 8)
    pairs = list({make(n): [n, str(n)] for n in range(4000)}.items())
    write(tmp_path / "out", spread(pairs, 7), form)
    write(tmp_path / "one", [pairs], form)
    size = collect(tmp_path / "out", tmp_path / "all")
    assert size == (tmp_path / "all").stat().st_size
    assert (tmp_path / "all").read_bytes() == (tmp_path / "one_00").read_bytes()
    assert sort_pairs(read_pairs(tmp_path / "out")) == list(read_pairs(tmp_path / "one")) == sort_pairs(pairs)


def test_ordered_output_is_copied(tmp_path: Path) -> None:
    parts: list[Pairs] = [[("b", b"2")], [], [("a", b"1")]]
    for form, expected in (("binary", b"21"), ("values", b"2\n1\n"), ("text", b"b\t2\na\t1\n")):
        write(tmp_path / form, parts, form, ordered=True)
        collect(tmp_path / form, tmp_path / f"{form}.all")
        assert (tmp_path / f"{form}.all").read_bytes() == expected


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "v", [[("a", b"1")], [("b", b"2")]], "values")
    with pytest.raises(ProgramError, match="holds no keys to merge them by"):
        collect(tmp_path / "v", tmp_path / "all")
    with pytest.raises(ProgramError, match="hold no pairs"):
        read_pairs(tmp_path / "v")
    with pytest.warns(UserWarning, match=r"/m: some keys are text and others are not.*output_format='json'"):
        write(tmp_path / "m", [[("a", 1)], [(1, 1)]])
    with pytest.raises(ProgramError, match=r"keys are text and other things.*output_format='json'"):
        collect(tmp_path / "m", tmp_path / "all")
    write(tmp_path / "w", [[("a", 1)], [("b", "x")]])
    collect(tmp_path / "w", tmp_path / "all")  # values need not be understood
    with pytest.raises(ProgramError, match="values are text and other things"):
        read_pairs(tmp_path / "w")
    # A single file that has anything needs no merging.
    write(tmp_path / "s", [[("a", b"1"), ("b", b"2")], []], "binary")
    assert collect(tmp_path / "s", tmp_path / "s.all") == 2


@pytest.mark.parametrize("how", [{"ordered": True}, {"format": "json"}, {}])
def test_mixed_keys_that_can_be_collected_warn_of_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, how: dict[str, Any]
) -> None:
    write(tmp_path / "m", [[(1, 1)], [("a", 1)] if how else []], **how)
    assert not recwarn.list
    assert collect(tmp_path / "m", tmp_path / "all")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "keys", [["b", "a"], [2, 1], [b"b", b"a"], [("b", 1), ("a", 1)], [1, None], [f"{n:04}" for n in range(999)] + ["0"]]
)
def test_a_file_whose_keys_are_not_in_order_is_not_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, keys: list[Any]
) -> None:
    """Only a false result can be the reason; what would come out were not in order either."""
    monkeypatch.setattr("ec262.storage.collect._SMALLEST_BLOCK", 300)
    monkeypatch.setattr("ec262.storage.collect.MERGE_BYTES", 300 * 8)
    output = OutputFiles(tmp_path / "out", form)
    output.begin(2)
    output.write(0, [(keys[0], 1), (keys[0], 2)])
    output.write(1, [(key, 1) for key in keys])
    output.finish()
    with pytest.raises(ProgramError, match="out_01: its keys are not in order"):
        collect(tmp_path / "out", tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_damage_is_found(tmp_path: Path) -> None:
    for form in FORMATS[:1] + FORMATS[3:]:
        out = tmp_path / form
        write(out, [[("a", 1), ("b", 2)], [("c", 3)]], form)
        first = tmp_path / f"{form}_00"
        good = first.read_bytes()
        for bad, message in (
            (good[:-1], "bytes, while the manifest says"),
            (good.replace(b"1", b"7"), "SHA-256 is not what the manifest says"),
            (good.replace(b"\t", b"\n") if form == "text" else good.replace(b",", b";"), "not what|SHA-256"),
        ):
            first.write_bytes(bad)
            with pytest.raises(ProgramError, match=f"{form}_00: .*({message})"):
                collect(out, tmp_path / "all")
            with pytest.raises(ProgramError, match=f"{form}_00: .*({message})"):
                list(read_pairs(out))
        first.unlink()
        with pytest.raises(ProgramError, match=f"{form}_00: missing"):
            collect(out, tmp_path / "all")
        assert not [name for name in names(tmp_path) if name.startswith((".", "all"))]
    for content in ("", "{}", "[]", '{"version": 2}', json.dumps({"version": 1, "partitions": 1, "parts": [{}]})):
        (tmp_path / "text_manifest.json").write_text(content)
        with pytest.raises(ProgramError, match="manifest"):
            collect(tmp_path / "text", tmp_path / "all")
    (tmp_path / "text_manifest.json").unlink()
    with pytest.raises(ProgramError, match=r"no text_manifest\.json"):
        collect(tmp_path / "text", tmp_path / "all")


def test_collecting_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc  # noqa: PLC0415

    def part(number: int) -> Iterator[tuple[str, str]]:
        return ((f"{n:012}", "x" * 1500) for n in range(number, 30_000, 8))

    output = OutputFiles(tmp_path / "out")
    output.begin(8)
    tracemalloc.start()
    for number in range(8):
        output.write(number, part(number))
    output.finish()
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    size = collect(tmp_path / "out", tmp_path / "all")
    collected = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 30_000 * 1514
    assert written < 25 << 20
    assert collected < 25 << 20


# --- the command ----------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write("out", spread([(f"{n:03}", n) for n in range(100)], 3))
    expected = "".join(f"{n:03}\t{n}\n" for n in range(100))
    assert main(["collect", "out", "all.txt"]) == 0
    assert (tmp_path / "all.txt").read_text() == expected
    assert capfd.readouterr().err == f"{len(expected):,} bytes in all.txt\n"
    assert main(["collect", "out", "all.txt"]) == 1
    assert "all.txt is there already" in capfd.readouterr().err
    assert main(["collect", "out", "all.txt", "--overwrite"]) == 0
    capfd.readouterr()
    assert main(["collect", "out", "-"]) == 0
    assert capfd.readouterr() == (expected, "")
    assert main(["collect", "none", "x.txt"]) == 1
    assert "none: no none_manifest.json" in capfd.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["collect", "--help"])
    assert left.value.code == 0
    assert "ec262 collect out/count counts.txt" in capfd.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["collect", "out"])
    assert left.value.code == 2


def test_a_reader_who_has_enough(tmp_path: Path) -> None:
    write(tmp_path / "out", [[(f"{n:06}", n) for n in range(100_000)]])
    command = [sys.executable, "-m", "ec262.cli", "collect", str(tmp_path / "out"), "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"000000\t0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    write(tmp_path / "out", [[(f"{n:06}", n) for n in range(100_000)]])
    command = [sys.executable, "-m", "ec262.cli", "collect", str(tmp_path / "out"), "-"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("ec262: standard output: no space is left there")
