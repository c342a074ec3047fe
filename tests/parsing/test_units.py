from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.quota import LIMIT_MAX, WINDOW_MS_MAX, AnyQuota, Balance, Bucket, Period, Quota, Slots
from ratelimiter.parsing.units import (
    PLAIN,
    LimitOptions,
    name_of,
    options_of,
    parse_duration_ms,
    parse_limit,
    spell_duration,
    spell_limit,
    spell_window,
)

UNITS_MS = {"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": 86_400_000}


@pytest.mark.parametrize(
    ("text", "limit", "window_ms"),
    [
        ("60/minute", 60, 60_000),
        ("1000 per hour", 1000, 3_600_000),
        ("5 per 2 seconds", 5, 2000),
        ("1/DAY", 1, 86_400_000),
        (" 10 / 5 minutes ", 10, 300_000),
        ("60/min", 60, 60_000),
        ("10/sec", 10, 1000),
        ("10r/s", 10, 1000),
        ("5 per 2mins", 5, 120_000),
        ("7/10 secs", 7, 10_000),
        ("100/h", 100, 3_600_000),
        ("100/2hrs", 100, 7_200_000),
        ("9/d", 9, 86_400_000),
        ("1000000000 per 366 days", LIMIT_MAX, WINDOW_MS_MAX),
    ],
)
def test_limits_are_read(text: str, limit: int, window_ms: int) -> None:
    """The notation is that of the package `limits`."""
    assert Quota(limit, window_ms) == parse_limit(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 parsecs", "'10 parsecs' is not a limit; write one like 60/minute, 1000 per hour or 5 per 2 seconds"),
        ("10 concurent", "'10 concurent' is not a limit; did you mean 10 concurrent?"),
        ("500 creds", "'500 creds' is not a limit; did you mean 500 credits?"),
        ("", "'' is not a limit; write one like 60/minute, 1000 per hour or 5 per 2 seconds"),
        ("60/minuet", "'60/minuet' is not a limit; did you mean 60 per minute?"),
        ("10r/ss", "'10r/ss' is not a limit; write one like 60/minute, 1000 per hour or 5 per 2 seconds"),
        ("5/2mintes", "'5/2mintes' is not a limit; did you mean 5 per 2 minutes?"),
        ("0/minute", "'0/minute' is not a limit of 1 to 1000000000; write 60/minute, for example"),
        ("1000000001/day", "'1000000001/day' is not a limit of 1 to 1000000000; write 60/minute, for example"),
        (
            "5 per 0 seconds",
            "'5 per 0 seconds' is not a limit; write one like 60/minute, 1000 per hour or 5 per 2 seconds",
        ),
        (
            "1/week",
            "'1/week' is not in seconds, minutes, hours or days; write 1 per 7 days, or algorithm: calendar",
        ),
        (
            "9 per 2 months",
            "'9 per 2 months' is not of one period of the calendar; write 9 per month, or 9 per 60 days",
        ),
        ("9/2 years", "'9/2 years' is not of one period of the calendar; write 9 per year, or 9 per 366 days"),
        ("0/month", "'0/month' is not a limit of 1 to 1000000000; write 10000/month, for example"),
        (
            "0 concurrent",
            "'0 concurrent' is not a limit of 1 to 1000 at the same time; write 10 concurrent, for example",
        ),
        ("0 credits", "'0 credits' is not a limit of 1 to 1000000000; write 1000 credits, for example"),
        (
            "9 credits/minute",
            (
                "'9 credits/minute' is not credits per hour, day, week, month or year; "
                "write 9 credits/month, or 9 credits for a balance"
            ),
        ),
        ("1 per 367 days", "'1 per 367 days' is not in a window of at most 366 days; write 1 per 366 days"),
        ("60/minute, 5/second", "'60/minute, 5/second' is not one limit; write one rule for each"),
        ("60/minute|5/second", "'60/minute|5/second' is not one limit; write one rule for each"),
        ("1.5/second", "'1.5/second' is not a limit; write one like 60/minute, 1000 per hour or 5 per 2 seconds"),
        ("\u0666/minute", "'\u0666/minute' is not a limit; write one like 60/minute, 1000 per hour or 5 per 2 seconds"),
    ],
)
def test_what_is_no_limit_says_what_would_do(text: str, expected: str) -> None:
    """Every refusal names the text and a text that is accepted."""
    with pytest.raises(ValueError, match="is not") as caught:
        parse_limit(text)

    assert expected == str(caught.value)


@given(st.integers(1, LIMIT_MAX), st.integers(1, 366), st.sampled_from(sorted(UNITS_MS)))
def test_a_limit_is_spelled_as_it_is_read(limit: int, count: int, unit: str) -> None:
    """Spelling a quota and reading it gives the same quota."""
    quota = Quota(limit, count * UNITS_MS[unit])

    assert quota == parse_limit(spell_limit(quota))


MONTHLY = Period(10_000, "month")


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("10 concurrent", PLAIN, Slots(10)),
        ("10concurrent", LimitOptions(lease_ttl_ms=5000), Slots(10, 5000)),
        ("10000/month", PLAIN, MONTHLY),
        ("10000 per 1 month", PLAIN, MONTHLY),
        ("5 Per Year", LimitOptions(timezone="Europe/Berlin"), Period(5, "year", "Europe/Berlin")),
        ("60/day", LimitOptions("calendar"), Period(60, "day")),
        ("60 per week", LimitOptions("calendar"), Period(60, "week")),
        ("1000 credits", PLAIN, Balance(1000)),
        ("1 credit", PLAIN, Balance(1)),
        ("10000 credits/month", PLAIN, Period(10_000, "month", credits=True)),
        ("50 credits per day", LimitOptions("calendar"), Period(50, "day", credits=True)),
        ("10/second", LimitOptions("token-bucket"), Bucket(10, 10, 1000)),
        ("10/second", LimitOptions("token-bucket", 100), Bucket(100, 10, 1000)),
        ("10/second", LimitOptions("sliding-window"), Quota(10, 1000)),
    ],
)
def test_other_kinds_are_read(text: str, options: LimitOptions, expected: AnyQuota) -> None:
    """What is counted by other than a window has words of its own, or options beside it."""
    assert expected == parse_limit(text, options)


@pytest.mark.parametrize(
    ("quota", "spelled", "named"),
    [
        (Bucket(100, 10, 1000), "10 per second, 100 at once", "per-second"),
        (Period(9, "month", "Europe/Berlin"), "9 per month of the calendar in Europe/Berlin", "per-month"),
        (Period(9, "day", credits=True), "9 credits per day of the calendar in UTC", "per-day"),
        (Slots(3), "3 concurrent", "concurrent"),
        (Balance(3), "3 credits", "credits"),
        (Quota(3, 120_000), "3 per 2 minutes", "per-2-minutes"),
    ],
)
def test_every_kind_is_spelled_and_named(quota: AnyQuota, spelled: str, named: str) -> None:
    """In words that say what kind of limit it is."""
    assert (spelled, named) == (spell_limit(quota), name_of(quota))


@pytest.mark.parametrize("text", ["60/minute", "7/month", "7 concurrent", "7 credits", "7/day"])
@pytest.mark.parametrize("algorithm", ["", "calendar", "token-bucket"])
def test_a_limit_is_read_again_by_its_own_terms(text: str, algorithm: str) -> None:
    """So an override of a rule's limit is a limit of its kind."""
    try:
        quota = parse_limit(text, LimitOptions(algorithm, 0, "Europe/Berlin", 5000))
    except ValueError:
        assert (text, algorithm) in {("60/minute", "calendar"), ("7/month", "token-bucket")}
    else:
        assert quota == parse_limit(text, options_of(quota))


@given(
    st.text(max_size=80) | st.from_regex(r"[0-9]{1,30} ?(/|per) ?[0-9]{0,30} ?([a-z]{0,8}|month|year)", fullmatch=True)
)
def test_no_text_raises_anything_but_valueerror(text: str) -> None:
    """Any text is a quota, a duration, or a ValueError on one line."""
    told = "read"
    for parse in (parse_limit, parse_duration_ms):
        try:
            parse(text)
        except ValueError as fault:
            told = str(fault)

        assert told.isprintable()


@pytest.mark.parametrize(
    ("text", "expected_ms"), [("50ms", 50), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)]
)
def test_durations_are_read(text: str, expected_ms: int) -> None:
    """A duration is a whole number and its unit."""
    assert expected_ms == parse_duration_ms(text)


@pytest.mark.parametrize(
    "text", ["50", "1.5s", "5 m", "05s", "-1s", "5M", "s", "", "1m30s", "1:30", "5d", "5s\n", "\u0665s"]
)
def test_what_is_no_duration_says_what_would_do(text: str) -> None:
    """A number without its unit could mean anything."""
    with pytest.raises(ValueError, match="is not a duration; write a whole number with ms, s, m or h"):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("window_ms", "expected"),
    [
        (1000, "second"),
        (60_000, "minute"),
        (120_000, "2 minutes"),
        (90_000, "90 seconds"),
        (86_400_000, "day"),
        (1500, "1500 ms"),
    ],
)
def test_windows_are_spelled_in_the_largest_unit(window_ms: int, expected: str) -> None:
    """A window is spelled in the largest unit that divides it."""
    assert expected == spell_window(window_ms)


@pytest.mark.parametrize("duration_ms", [0, 1, 999, 1000, 1500, 60_000, 3_600_000, 3_601_000, 86_400_000])
def test_a_duration_is_spelled_as_it_is_read(duration_ms: int) -> None:
    """What an error suggests is what would do."""
    assert duration_ms == parse_duration_ms(spell_duration(duration_ms))
