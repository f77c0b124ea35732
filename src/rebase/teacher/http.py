"""Headers of HTTP responses, of the hub and of the teacher's providers."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

_NUMBER = r"\d{1,12}(\.\d+)?"


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, by ``retry-after-ms`` or ``retry-after`` (seconds or a date); None if absent."""
    from email.utils import parsedate_to_datetime

    if re.fullmatch(_NUMBER, text := headers.get("retry-after-ms", "")):
        return float(text) / 1000
    if re.fullmatch(_NUMBER, text := headers.get("retry-after", "")):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
