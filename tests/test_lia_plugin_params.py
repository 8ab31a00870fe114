"""Kinds of options: lists of numbers."""

import click
import pytest

from lia_plugin.params import Numbers, NumberSet, compact


@pytest.mark.parametrize('text, numbers', [('3', (3,)), ('0-6', (0, 1, 2, 3, 4, 5, 6)), ('5,0,2-3,2', (0, 2, 3, 5)),
                                           (' 1 , 4 - 5 ', (1, 4, 5))])
def test_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert NumberSet().convert(text, None, None) == numbers


def test_seeds_keep_their_order() -> None:
    assert Numbers().convert('5,0,2-3,2', None, None) == (5, 0, 2, 3, 2)
    assert Numbers('all').convert('all', None, None) == 'all'


@pytest.mark.parametrize('text', ['', 'a', '3-1', '-2', '1,', '1.5', '0-99999999', '1--3'])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r'is no list of numbers, as in|ascending range'):
        NumberSet().convert(text, None, None)


@pytest.mark.parametrize('numbers, text', [((0, 1, 2, 5), '0-2,5'), ((4,), '4'), ((1, 3), '1,3'), ((), '')])
def test_lists_in_few_words(numbers: tuple[int, ...], text: str) -> None:
    assert compact(numbers) == text
    assert not numbers or NumberSet().convert(text, None, None) == numbers
