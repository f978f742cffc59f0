"""Messages: every type comes back as it went, and whatever else arrives is one error that says what is wrong."""

from __future__ import annotations

import base64
import inspect
import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect as mi

from ec262.errors import Malformed
from ec262.protocol import messages as m
from ec262.protocol.problems import PROBLEMS, problem_body
from ec262.protocol.routes import EVERYWHERE, ROUTES
from tests.processes import ROOT

QUICK = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
KINDS: list[type[m.Message]] = [
    kind for kind in vars(m).values() if inspect.isclass(kind) and issubclass(kind, m.Message) and kind is not m.Message
]


def values_of(kind: mi.Type) -> st.SearchStrategy[Any]:
    """What may stand in a field of that type: derived from the types' own constraints."""
    match kind:
        case mi.Metadata(extra_json_schema={"pattern": pattern}):
            return st.from_regex(pattern, alphabet=st.characters(codec="ascii"))
        case mi.Metadata():
            return values_of(kind.type)
        case mi.BoolType():
            return st.booleans()
        case mi.NoneType():
            return st.none()
        case mi.IntType():
            return st.integers(kind.ge if kind.ge is not None else -(2**53), kind.le if kind.le is not None else 2**53)
        case mi.FloatType():
            least = next((least for least in (kind.gt, kind.ge) if least is not None), -1e12)
            return st.floats(least, kind.le if kind.le is not None else 1e12, exclude_min=kind.gt is not None)
        case mi.StrType():
            if kind.pattern is not None:
                texts = st.from_regex(kind.pattern, alphabet=st.characters(codec="ascii"))
                return texts.filter(lambda text: (kind.min_length or 0) <= len(text) <= (kind.max_length or 10**9))
            return st.text(max_size=min(kind.max_length or 20, 20))
        case mi.BytesType():
            return st.binary(min_size=kind.min_length or 0, max_size=kind.max_length or 40)
        case mi.ListType():
            return st.lists(values_of(kind.item_type), min_size=kind.min_length or 0, max_size=3)
        case mi.DictType():
            return st.dictionaries(values_of(kind.key_type), values_of(kind.value_type), max_size=3)
        case mi.LiteralType():
            return st.sampled_from(kind.values)
        case mi.EnumType():
            return st.sampled_from(kind.cls)
        case mi.UnionType():
            return st.one_of([values_of(each) for each in kind.types])
        case mi.StructType():
            return st.builds(kind.cls, **{field.name: values_of(field.type) for field in kind.fields})
    raise AssertionError(f"the test does not know {kind}")


def messages_of(kind: type[m.Message]) -> st.SearchStrategy[m.Message]:
    return values_of(mi.type_info(kind))


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-1e300, 1e300), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@every_kind
@QUICK
@given(data=st.data())
def test_messages_come_back(kind: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(messages_of(kind))
    assert m.decode(kind, m.encode(message)) == message
    assert m.decode(kind, m.encode(message, m.PACKED), m.PACKED) == message


@every_kind
@QUICK
@given(data=st.data())
def test_unknown_fields_are_ignored(kind: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(messages_of(kind))
    fields = json.loads(m.encode(message))
    fields["a field of a newer party"] = data.draw(anything)
    assert m.decode(kind, json.dumps(fields).encode()) == message
    fields = msgspec.msgpack.decode(m.encode(message, m.PACKED))
    fields["a field of a newer party"] = data.draw(st.one_of(st.binary(), st.text(), st.lists(st.floats())))
    assert m.decode(kind, msgspec.msgpack.encode(fields), m.PACKED) == message


@every_kind
@QUICK
@given(data=st.data())
def test_a_field_of_the_wrong_type_is_malformed(kind: type[m.Message], data: st.DataObject) -> None:
    fields = json.loads(m.encode(data.draw(messages_of(kind))))
    for name in fields:
        wrongs: list[object] = [[[0]], {"x": []}]
        for wrong in wrongs:
            if wrong == {"x": []} and isinstance(fields[name], dict):
                continue
            with pytest.raises(Malformed, match=r"\$"):
                m.decode(kind, json.dumps({**fields, name: wrong}).encode())


@every_kind
@QUICK
@given(data=st.data())
def test_a_missing_field_is_named(kind: type[m.Message], data: st.DataObject) -> None:
    fields = json.loads(m.encode(data.draw(messages_of(kind))))
    for field in msgspec.structs.fields(kind):
        if field.required:
            rest = {name: value for name, value in fields.items() if name != field.encode_name}
            with pytest.raises(Malformed, match=field.encode_name):
                m.decode(kind, json.dumps(rest).encode())


def never_anything_else(kind: type[m.Message], body: bytes, media: str = m.JSON) -> None:
    try:
        message = m.decode(kind, body, media)
    except Malformed:
        return
    assert m.decode(kind, m.encode(message, media), media) == message


@pytest.mark.parametrize("media", [m.JSON, m.PACKED])
@every_kind
@QUICK
@given(data=st.data())
def test_changed_bodies_are_messages_or_malformed(kind: type[m.Message], media: str, data: st.DataObject) -> None:
    body = bytearray(m.encode(data.draw(messages_of(kind)), media))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b'"', b"\\ud800", b"1e999", b"[", b"}", b"null", b"-"]))
        )
    never_anything_else(kind, bytes(body), media)


@every_kind
@QUICK
@given(data=st.data())
def test_any_json_is_a_message_or_malformed(kind: type[m.Message], data: st.DataObject) -> None:
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    fields = data.draw(st.dictionaries(st.sampled_from(names), anything, max_size=len(names)))
    never_anything_else(kind, json.dumps(fields).encode())


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b"null", b"[]", b"0", b'"x"', b"\xff", b'{"\xff":1}', b"{}}", b"NaN", b'{"a":NaN}'),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"[" * 100_000, b'{"a":' + b"9" * 100_000 + b"}"),
        *(b'{"name":"\\ud800"}', b'\xef\xbb\xbf{"a":1}', '{"a":1}'.encode("utf-16")),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_junk_is_a_message_or_malformed(body: bytes) -> None:
    for kind in KINDS:
        never_anything_else(kind, body)


IDS = [
    *(
        "",
        "0123456789abcde",
        "0" * 33,
        "0123456789ABCDEF",
        "0123456789abcdeg",
        "0123456789abcdef\n",
        " 0123456789abcdef",
    ),
    *("٠" * 16, "../../etc/passwd", "0123456789abcdef\x00", "0123456789abcdef:x"),
]


@pytest.mark.parametrize("worker_id", IDS)
def test_ids_are_hexadecimal_to_the_last_character(worker_id: str) -> None:
    good = {"worker_id": "0" * 16, "boot_id": "1" * 32, "port": 1, "slots": 1, "python": "3.11"}
    m.decode(m.RegisterWorker, json.dumps(good).encode())
    for name in ("worker_id", "boot_id"):
        with pytest.raises(Malformed):
            m.decode(m.RegisterWorker, json.dumps({**good, name: worker_id}).encode())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *[("port", value) for value in (-1, 65_536, 1.5, "1", True, None, 10**30)],
        *[("slots", value) for value in (0, 1025, -5)],
        *[("python", value) for value in ("2.7", "3", "3.111", "3.11\n", "3.x", "")],
        *[("lane", value) for value in ("wasm", "", None, 1)],
        *[("layers", value) for value in (["x" * 33], "seccomp", [1])],
    ],
)
def test_values_out_of_range_are_malformed(name: str, wrong: object) -> None:
    good = {"worker_id": "0" * 16, "boot_id": "1" * 32, "port": 1, "slots": 1, "python": "3.11"}
    with pytest.raises(Malformed, match=name):
        m.decode(m.RegisterWorker, json.dumps({**good, name: wrong}).encode())


@pytest.mark.parametrize(
    "lease_id",
    ["0" * 24, "0" * 24 + ".", "0" * 24 + ".1000", "0" * 24 + ".-1", "0" * 24 + ".1\n", "x.1", "0" * 24 + ".١"],
)
def test_lease_ids_have_one_form(lease_id: str) -> None:
    m.decode(m.Settle, json.dumps({"job_id": "0" * 16, "lost": ["0" * 24 + ".63"]}).encode())
    with pytest.raises(Malformed):
        m.decode(m.Settle, json.dumps({"job_id": "0" * 16, "lost": [lease_id]}).encode())


def test_lists_are_bounded() -> None:
    wanted = {"input_digest": "A" * 43 + "="}
    body = {"job_id": "0" * 16, "idempotency_key": "k" * 8, "requirements": {"python": "3.11"}}
    m.decode(m.LeaseTasks, json.dumps({**body, "tasks": [wanted] * m.MAX_TASKS_A_REQUEST}).encode())
    for count in (0, m.MAX_TASKS_A_REQUEST + 1):
        with pytest.raises(Malformed):
            m.decode(m.LeaseTasks, json.dumps({**body, "tasks": [wanted] * count}).encode())
    with pytest.raises(Malformed):
        m.decode(
            m.Settle, json.dumps({"job_id": "0" * 16, "decide": ["0" * 24] * (m.MAX_TASKS_A_REQUEST + 1)}).encode()
        )


def test_every_body_of_a_route_is_a_message_of_this_module() -> None:
    used = {kind for route in ROUTES for kind in (route.request, route.response) if kind is not None}
    assert used <= set(KINDS)


@pytest.mark.parametrize("code", list(PROBLEMS))
def test_problems_are_bodies(code: str) -> None:
    status, body = problem_body(code, "what happened", needed=3, available=2)
    assert m.decode(m.Problem, body) == m.Problem(
        title=PROBLEMS[code].title, status=status, code=code, detail="what happened", needed=3, available=2
    )
    assert 400 <= status < 600


def test_every_code_a_route_names_is_known() -> None:
    for route in ROUTES:
        for code in (*route.problems, *EVERYWHERE):
            assert code in PROBLEMS, (route.name, code)


@pytest.mark.parametrize("media", ["JSON", "PACKED"])
def test_threads_that_decode_their_first_message_at_once_do_not_crash(media: str) -> None:
    """msgspec's lazily filled types killed the process, often, when two threads met them first at the same time."""
    script = f"""
import sys, threading
sys.setswitchinterval(1e-6)
from ec262.protocol import messages as m
task = m.TaskVerdict(task_id="a", verdict="more")
body = m.encode(m.Settled(tasks=[task], workers=[], refused_receipts=[], balance=1), m.{media})
gate = threading.Barrier(8)
def decode():
    gate.wait()
    for _ in range(50):
        m.decode(m.Settled, body, m.{media})
threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


IDS_THAT_ARE_NONE = [
    *("", "a" * 15, "a" * 33, "A" * 16, "g" * 16, "a" * 16 + "\n", "\n" + "a" * 16, "a" * 8 + "\n" + "a" * 8),
    *(
        "a" * 15 + "\n" + "a" * 16,
        "a" * 16 + "\n" + "a" * 16,
        "a" * 16 + "\r",
        "a" * 16 + " ",
        "ａ" * 16,
        "a" * 16 + "\0",
    ),
]


@pytest.mark.parametrize("wrong", IDS_THAT_ARE_NONE)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_of_many_ids_each_is_looked_at(wrong: str, at: int) -> None:
    """A settlement checks all its ids together: none of another form comes in with those that are right."""
    ids = ["b" * 16, "c" * 32]
    ids.insert(at, wrong)
    with pytest.raises(Malformed, match=r"decide|length"):
        m.decode(m.Settle, json.dumps({"job_id": "a" * 32, "decide": ids}).encode())


@pytest.mark.parametrize(
    "wrong",
    [
        *(f"{wrong}.0" for wrong in IDS_THAT_ARE_NONE),
        *("a" * 24, "a" * 24 + ".", "a" * 24 + ".1234", "a" * 24 + ".x", "a" * 24 + ".-1", "a" * 24 + ".0\n"),
        *("a" * 24 + ".٣", "a" * 16 + ".0\n" + "a" * 16 + ".1", "a" * 24 + "..0", "." + "a" * 24),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_of_many_leases_each_is_looked_at(wrong: str, at: int) -> None:
    names = ["b" * 16 + ".0", "c" * 32 + ".999"]
    names.insert(at, wrong)
    digest = base64.b64encode(bytes(32)).decode()
    shown = {"worker_id": "a" * 32, "token": "", "arrived": dict.fromkeys(names, digest)}
    with pytest.raises(Malformed, match=r"arrived|length"):
        m.decode(m.Settle, json.dumps({"job_id": "a" * 32, "receipts": [shown]}).encode())
