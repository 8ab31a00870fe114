"""Kinds of options that click lacks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """A click.FloatRange of numbers alone: NaN passes every comparison with a bound, and infinity an open side."""

    def _describe_range(self) -> str:
        return '' if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f'{value} is not a finite number.', param, ctx)
        return number


class Pair(click.ParamType):
    """Two whole numbers from 1 on, as '4x3' -> (4, 3): columns and rows."""

    name = 'WxH'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r'([1-9]\d{0,3})[x,]([1-9]\d{0,3})', value.strip())
        if match is None:
            self.fail(f"{value!r} is no size; columns x rows are meant, as in '4x3'", param, ctx)
        return int(match[1]), int(match[2])


class Point(click.ParamType):
    """Two finite numbers, as '0.3,1' -> (0.3, 1.0)."""

    name = 'x,y'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            x, y = (float(part) for part in value.split(','))
        except ValueError:
            self.fail(f"{value!r} is no pair of numbers, as in '0.3,1'", param, ctx)
        if not (math.isfinite(x) and math.isfinite(y)):
            self.fail(f'{value} is not finite', param, ctx)
        return x, y


class Numbers(click.ParamType):
    """Whole numbers and ranges, as '0,1,4-6' -> (0, 1, 4, 5, 6); where `word` is given, that word stays as it is."""

    name = '0,1,4-6'
    limit = 1_000_000  # A slip of the finger is no reason to fill the memory.

    def __init__(self, word: str | None = None, highest: int = 2**32 - 1) -> None:
        self.word, self.highest = word, highest

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | str:
        if not isinstance(value, str) or value == self.word:
            return value
        numbers: list[int] = []
        for part in value.split(','):
            match = re.fullmatch(r'\s*(\d{1,12})(?:\s*-\s*(\d{1,12}))?\s*', part)
            if match is None:
                self.fail(f"{value!r} is no list of numbers, as in '0,1,4-6'", param, ctx)
            low, high = int(match[1]), int(match[2] or match[1])
            if not low <= high <= self.highest:
                self.fail(f'{part.strip()}: expected an ascending range that ends at {self.highest}', param, ctx)
            if len(numbers) + high - low >= self.limit:
                self.fail(f'{value}: more than {self.limit} numbers', param, ctx)
            numbers += range(low, high + 1)
        return tuple(numbers)


class NumberSet(Numbers):
    """The same for layers and coordinates: in rising order, none twice."""

    name = '0-6'

    def __init__(self) -> None:
        super().__init__(highest=1_000_000)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        return tuple(sorted(set(super().convert(value, param, ctx))))  # type: ignore[arg-type]


def compact(numbers: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> '0-2,5': what `NumberSet` reads."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ','.join('-'.join(map(str, part)) for part in parts)
