"""How long an endpoint's answer asks to wait."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any


def retry_after(headers: Any) -> float:
    """Seconds that an answer's headers demand, two minutes at most; 0 without such a header.

    RFC 9110, section 10.2.3: a number of seconds, or a date, which is read by the endpoint's own
    clock where it tells the time. OpenAI and Azure also say it in milliseconds.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name) or "") * unit
        except ValueError:
            continue
        return min(120.0, seconds) if seconds > 0 else 0.0
    until = _date(headers.get("retry-after"))
    if until is None:
        return 0.0
    now = _date(headers.get("date")) or datetime.now(UTC)
    return min(120.0, max(0.0, (until - now).total_seconds()))


def _date(header: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(header or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
