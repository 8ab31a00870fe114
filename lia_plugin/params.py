"""Kinds of options that click lacks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """A click.FloatRange of numbers alone: NaN passes every comparison with a bound, and infinity an open side."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f'{value} is not a finite number.', param, ctx)
        return number


MAX_NUMBER = 1_000_000  # No list of layers or coordinates reaches further.


class Numbers(click.ParamType):
    """A list of numbers from 0 on, '0-6' or '0,2,8-11' -> tuple in rising order, none twice."""

    name = 'list'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found: set[int] = set()
        for part in value.split(','):
            match = re.fullmatch(r'\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*', part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not first <= last < MAX_NUMBER:
                self.fail(f'{value!r} is not a list of numbers such as 0-6 or 0,2,8-11.', param, ctx)
            found.update(range(first, last + 1))
        return tuple(sorted(found))


def compact(numbers: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> '0-2,5': what `Numbers` reads."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ','.join('-'.join(map(str, part)) for part in parts)
