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


class Count(click.IntRange):
    """A whole number from 1 on that counts what lies in memory: no more than a tensor has rows."""

    def __init__(self) -> None:
        super().__init__(1, 2**31 - 1)

    def _describe_range(self) -> str:
        return 'x>=1'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if click.INT.convert(value, param, ctx) >= 2**31:
            self.fail(f'{str(value)[:40]} is more than any memory can hold', param, ctx)
        return int(super().convert(value, param, ctx))


class Batch(click.ParamType):
    """A whole number from 1 on, or 'auto' -> None."""

    name = 'N|auto'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == 'auto' or isinstance(value, int):
            return None if value == 'auto' else value
        if not value.isdecimal() or not 1 <= int(value[:20]) < 2**31:
            self.fail(f"{value!r} is neither 'auto' nor a whole number from 1 on that a memory can hold", param, ctx)
        return int(value)


class Memory(click.ParamType):
    """'auto', 'off', or an amount of memory in bytes: '8GB' -> 8_000_000_000, '8GiB' -> 2**33. 0 -> 'off'."""

    name = 'auto|off|SIZE'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if isinstance(value, int) or value in ('auto', 'off'):
            return value
        match = re.fullmatch(r'(\d+\.?\d*|\.\d+)\s*([kmgt])(i?)b?', value.strip().lower())
        if match is None and value.strip() != '0':
            self.fail(f"{value!r} is neither 'auto' nor 'off' nor an amount of memory with its unit, as in 8GB",
                      param, ctx)
        if match is None:
            return 'off'
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** (1 + 'kmgt'.index(match[2]))) or 'off'


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


def parse_numbers(text: str, highest: int, limit: int) -> tuple[int, ...]:
    """Whole numbers and ranges, '0,1,4-6' -> (0, 1, 4, 5, 6).

    Raises:
        ValueError: no such list, a range that goes backwards or past `highest`, more than `limit` numbers.
    """
    numbers: list[int] = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)(?:\s*-\s*(\d+))?\s*', part)
        if match is None:
            raise ValueError(f"{text!r} is no list of numbers, as in '0,1,4-6'")
        low, high = int(match[1]), int(match[2] or match[1])
        if not low <= high <= highest:
            raise ValueError(f'{part.strip()}: expected an ascending range that ends at {highest}')
        if len(numbers) + high - low >= limit:
            raise ValueError(f'{text}: more than {limit} numbers')
        numbers += range(low, high + 1)
    return tuple(numbers)


class Numbers(click.ParamType):
    """Whole numbers and ranges, as `parse_numbers` reads them; where `word` is given, that word stays as it is."""

    name = '0,1,4-6'
    limit = 1_000_000  # A slip of the finger is no reason to fill the memory.

    def __init__(self, word: str | None = None, highest: int = 2**32 - 1) -> None:
        self.word, self.highest = word, highest

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | str:
        if not isinstance(value, str) or value == self.word:
            return value
        try:
            return parse_numbers(value, self.highest, self.limit)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NumberSet(Numbers):
    """The same for layers and coordinates: in rising order, none twice."""

    name = '0-6'

    def __init__(self, word: str | None = None) -> None:
        super().__init__(word, highest=1_000_000)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | str:
        found = super().convert(value, param, ctx)
        return found if isinstance(found, str) else tuple(sorted(set(found)))


def compact(numbers: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> '0-2,5': what `NumberSet` reads."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ','.join('-'.join(map(str, part)) for part in parts)
