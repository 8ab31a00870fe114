"""Kinds of options: what they make of texts, and what they refuse in one line."""

from typing import Any

import click
import pytest

from lia_plugin import params
from lia_plugin.params import NumberSet, compact


@pytest.mark.parametrize('kind, text, value', [
    (params.Numbers(), '0,1,4-6', (0, 1, 4, 5, 6)), (params.Numbers(), '7', (7,)), (params.Numbers(), '2,2', (2, 2)),
    (params.Numbers(), f'{2**32 - 1}', (2**32 - 1,)), (params.Numbers('all'), 'all', 'all'),
    (params.Numbers('all'), '1,2', (1, 2)), (params.Pair(), '4x3', (4, 3)), (params.Pair(), '4,3', (4, 3)),
    (params.Point(), '0.3,-1', (0.3, -1.0)), (params.Memory(), 'auto', 'auto'), (params.Memory(), '8GB', 8 * 10**9),
    (params.Memory(), '1.5g', 1500 * 10**6), (params.Memory(), '500 MB', 5 * 10**8), (params.Memory(), '2GiB', 2**31),
    (params.Memory(), '0', 'off'), (params.Memory(), '0GB', 'off'), (params.Batch(), '8', 8),
    (params.Count(), f'{2**31 - 1}', 2**31 - 1),
])
def test_texts(kind: click.ParamType, text: str, value: Any) -> None:
    assert kind.convert(text, None, None) == value
    assert kind.convert(value, None, None) == value, 'defaults come as values'


@pytest.mark.parametrize('kind, text, reason', [
    (params.Numbers(), 'all', 'no list'), (params.Numbers(), '', 'no list'), (params.Numbers(), '1,,2', 'no list'),
    (params.Numbers(), '-3', 'no list'), (params.Numbers(), '6-4', 'ascending'),
    (params.Numbers(), f'{2**32}', 'ends at'),
    (params.Numbers(), '0-9999999', 'more than'), (params.Numbers(highest=5), '6', 'ends at 5'),
    (params.Pair(), '4', "'4x3'"), (params.Pair(), '0x3', "'4x3'"), (params.Point(), '1', 'no pair'),
    (params.Memory(), '8', 'with its unit'), (params.Memory(), 'ram', "neither 'auto'"),
    (params.Memory(), '-1GB', "neither 'auto'"), (params.Point(), '1,2,3', 'no pair'),
    (params.Point(), 'nan,0', 'not finite'), (params.Count(), '0', 'not in the range x>=1'),
    (params.Count(), f'{2**31}', 'more than any memory'), (params.Count(), '9' * 50, 'more than any memory'),
    *((params.Batch(), text, 'a whole number from 1 on') for text in ('0', '-1', '', '1.5', 'AUTO', '²', '9' * 5000)),
])
def test_what_is_refused(kind: click.ParamType, text: str, reason: str) -> None:
    with pytest.raises(click.UsageError, match=reason):
        kind.convert(text, None, None)


@pytest.mark.parametrize('text, numbers', [('3', (3,)), ('0-6', (0, 1, 2, 3, 4, 5, 6)), ('5,0,2-3,2', (0, 2, 3, 5)),
                                           (' 1 , 4 - 5 ', (1, 4, 5))])
def test_sets(text: str, numbers: tuple[int, ...]) -> None:
    assert NumberSet().convert(text, None, None) == numbers


@pytest.mark.parametrize('text', ['', 'a', '3-1', '-2', '1,', '1.5', '0-99999999', '1--3'])
def test_what_is_no_set(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r'is no list of numbers, as in|ascending range'):
        NumberSet().convert(text, None, None)


@pytest.mark.parametrize('numbers, text', [((0, 1, 2, 5), '0-2,5'), ((4,), '4'), ((1, 3), '1,3'), ((), '')])
def test_lists_in_few_words(numbers: tuple[int, ...], text: str) -> None:
    assert compact(numbers) == text
    assert not numbers or NumberSet().convert(text, None, None) == numbers
