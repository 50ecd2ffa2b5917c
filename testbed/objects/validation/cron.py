"""Schedules of CronJobs. Source: ``robfig/cron`` v3 ``parser.go``, which the API server asks."""

from __future__ import annotations

import re

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[int, int, dict[str, int]], ...] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    (0, 6, {name: number for number, name in enumerate(_DAYS)}),
)
"""Least, most and names of: minute, hour, day of month, month, day of week."""
_DESCRIPTORS = frozenset(["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"])
_EVERY = re.compile(r"@every (?=.)(\d+(\.\d*)?(h|m|s|ms|us|µs|ns))+")


def problem(schedule: str) -> str:
    """What the parser says against a schedule; "" if nothing."""
    if schedule.startswith("@"):
        if schedule in _DESCRIPTORS or _EVERY.fullmatch(schedule):
            return ""
        return f"unrecognized descriptor: {schedule}"
    fields = schedule.split()
    if len(fields) != len(_FIELDS):
        return f"expected exactly {len(_FIELDS)} fields, found {len(fields)}: [{' '.join(fields)}]"
    try:
        for text, (least, most, known) in zip(fields, _FIELDS, strict=True):
            for part in text.split(","):
                _check(part, least, most, known)
    except ValueError as error:
        return str(error)
    return ""


def _check(part: str, least: int, most: int, known: dict[str, int]) -> None:
    span, *steps = part.split("/")
    low, *high = span.split("-")
    if low in ("*", "?"):
        first, last = least, most
    else:
        first = _number(low, known)
        if len(high) > 1:
            raise ValueError(f"too many hyphens: {part}")
        last = _number(high[0], known) if high else most if steps else first
    if len(steps) > 1:
        raise ValueError(f"too many slashes: {part}")
    step = _number(steps[0], {}) if steps else 1
    if first < least:
        raise ValueError(f"beginning of range ({first}) below minimum ({least}): {part}")
    if last > most:
        raise ValueError(f"end of range ({last}) above maximum ({most}): {part}")
    if first > last:
        raise ValueError(f"beginning of range ({first}) beyond end of range ({last}): {part}")
    if step == 0:
        raise ValueError(f"step of range should be a positive number: {part}")


def _number(text: str, known: dict[str, int]) -> int:
    if text.lower() in known:
        return known[text.lower()]
    if not re.fullmatch("[+-]?[0-9]+", text, re.ASCII):
        why = f'strconv.Atoi: parsing "{text}": invalid syntax'
        raise ValueError(f"failed to parse int from {text}: {why}")
    if (number := int(text[:19])) < 0:
        raise ValueError(f"negative number ({number}) not allowed: {text}")
    return number
