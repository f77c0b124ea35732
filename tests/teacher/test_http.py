from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rebase.teacher.http import read_retry_after


@given(st.floats(0, 10**6))
def test_retry_after_in_seconds_and_in_milliseconds(seconds: float) -> None:
    assert read_retry_after({"retry-after": f"{seconds:.3f}"}) == pytest.approx(seconds, abs=0.001)
    said = {"retry-after-ms": f"{seconds * 1000:.3f}", "retry-after": "7"}
    assert read_retry_after(said) == pytest.approx(seconds, abs=0.001)


def test_retry_after_as_a_date() -> None:
    then = datetime.now(UTC) + timedelta(seconds=1000)
    assert 900 < (read_retry_after({"retry-after": format_datetime(then, usegmt=True)}) or 0) <= 1000
    assert read_retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


@pytest.mark.parametrize("garbage", ["", "soon", "-3", "nan", "inf", "1e5", "9" * 400, "Wed, 99 Oct 2015", "10 s", "²"])
def test_retry_after_that_says_nothing(garbage: str) -> None:
    assert read_retry_after({"retry-after": garbage}) is None
    assert read_retry_after({"retry-after-ms": garbage, "retry-after": "7"}) == 7
    assert read_retry_after({}) is None


@given(
    st.text() | st.from_regex(r"[0-9]{1,3} Oct [0-9]+ [0-9]{1,9}:[0-9]+(:[0-9]+)?( GMT| [+-][0-9]+)?", fullmatch=True)
)
@example("0 Oct 0 0:3000000000 GMT")
@example("1 Oct 2026 0:00 +99999999999")
def test_any_text_as_retry_after_is_a_time_or_nothing(text: str) -> None:
    wait = read_retry_after({"retry-after": text, "retry-after-ms": text})
    assert wait is None or 0 <= wait < float("inf")
