"""Kinds of options: lists of numbers."""

import click
import pytest

from lia_plugin.params import Numbers, compact


@pytest.mark.parametrize('text, numbers', [('3', (3,)), ('0-6', (0, 1, 2, 3, 4, 5, 6)), ('5,0,2-3,2', (0, 2, 3, 5)),
                                           (' 1 , 4 - 5 ', (1, 4, 5))])
def test_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert Numbers().convert(text, None, None) == numbers


@pytest.mark.parametrize('text', ['', 'a', '3-1', '-2', '1,', '1.5', '0-99999999', '1--3'])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(click.BadParameter, match='is not a list of numbers such as 0-6'):
        Numbers().convert(text, None, None)


@pytest.mark.parametrize('numbers, text', [((0, 1, 2, 5), '0-2,5'), ((4,), '4'), ((1, 3), '1,3'), ((), '')])
def test_lists_in_few_words(numbers: tuple[int, ...], text: str) -> None:
    assert compact(numbers) == text
    assert not numbers or Numbers().convert(text, None, None) == numbers
