"""What HTTP responses say, whoever asked: the hub's and the teacher's providers'."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

_NUMBER = r"\d{1,12}(\.\d+)?"


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the response's headers (``retry-after-ms``, or ``retry-after`` as seconds or as a date)."""
    from email.utils import parsedate_to_datetime

    if re.fullmatch(_NUMBER, text := headers.get("retry-after-ms", "")):
        return float(text) / 1000
    if re.fullmatch(_NUMBER, text := headers.get("retry-after", "")):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
