"""Polling: a MAC that only the job's foreman can make, for one request."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import Malformed
from ec262.protocol.polling import check_poll_authorization, poll_authorization

QUICK = settings(max_examples=100, deadline=None)
KEY = bytes(range(32))
TARGET = "/v1/jobs/x/results?after=0"


@QUICK
@given(st.binary(min_size=32, max_size=32), st.sampled_from(["GET", "DELETE"]), st.text(), st.integers(0, 10**18 - 1))
def test_a_header_is_good_for_its_request(key: bytes, method: str, target: str, sequence: int) -> None:
    value = poll_authorization(key, method=method, target=target, sequence=sequence)
    assert check_poll_authorization(value, key, method=method, target=target) == sequence


def test_a_header_is_good_for_nothing_else() -> None:
    value = poll_authorization(KEY, method="GET", target=TARGET, sequence=7)
    assert value == ("EC262-Poll sequence=7, mac=f2ac74093737c96b42027cf858298b89cc120eedb357f8d8e762e31ec24e41b7")
    check_poll_authorization(value, KEY, method="GET", target=TARGET)
    for key, method, target in (
        (bytes(32), "GET", TARGET),
        (KEY, "DELETE", TARGET),
        (KEY, "GET", TARGET + "1"),
        (KEY, "GET", TARGET.replace("x", "y")),
        (KEY, "GET T", TARGET),
    ):
        with pytest.raises(Malformed, match="poll key"):
            check_poll_authorization(value, key, method=method, target=target)
    with pytest.raises(Malformed, match="poll key"):
        check_poll_authorization(value.replace("=7,", "=8,"), KEY, method="GET", target=TARGET)


GOOD = poll_authorization(KEY, method="GET", target=TARGET, sequence=7)


@pytest.mark.parametrize(
    "value",
    [
        *("", "Basic YTpi", "EC262-Poll", GOOD[:-1], GOOD + "0", GOOD + "\n", " " + GOOD, GOOD.upper()),
        *(GOOD.replace("=7", "=-7"), GOOD.replace("=7", "=٧"), GOOD.replace("=7", "=" + "7" * 19)),
        *(GOOD.replace("=7", "="), GOOD.replace("mac=", "mac=é"), GOOD.replace(", ", ",")),
    ],
)
def test_other_headers_are_malformed(value: str) -> None:
    with pytest.raises(Malformed):
        check_poll_authorization(value, KEY, method="GET", target=TARGET)


@QUICK
@given(st.one_of(st.text(), st.from_regex(r"EC262-Poll sequence=[0-9]{1,30}, mac=[0-9a-fA-F]{60,66}")))
def test_any_header_is_malformed(value: str) -> None:
    with pytest.raises(Malformed):
        check_poll_authorization(value, KEY, method="GET", target=TARGET)
