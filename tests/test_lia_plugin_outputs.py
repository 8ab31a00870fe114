"""What is asked of a place before long work, and what JSON is given."""

import json
import math
import pathlib

import pytest

from lia_plugin.host import UserError
from lia_plugin.outputs import check_output, finite


def test_places_that_will_do(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'there').mkdir()
    (tmp_path / 'file').touch()
    for path in ('there', 'new', 'new/and/deep'):
        check_output('--outdir', str(tmp_path / path), folder=True)
    for path in ('file', 'new.json'):
        check_output('--json', str(tmp_path / path), folder=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'there'], 'nothing is made'


@pytest.mark.parametrize('path, folder, told', [
    ('file', True, 'is no folder'), ('there', False, 'is a folder'), ('file/below', True, 'file is no folder'),
    ('none/x.json', False, 'there is no folder'), ('file/x.json', False, 'is no folder'),
])  # fmt: skip
def test_places_that_will_not(path: str, folder: bool, told: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'there').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=f'--out: .*{told}'):
        check_output('--out', str(tmp_path / path), folder)


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    value = {'a': [1.5, math.inf, (math.nan, 'x')], 'b': {'c': -math.inf, 'd': 3}}
    assert json.loads(json.dumps(finite(value), allow_nan=False)) == {'a': [1.5, None, [None, 'x']],
                                                                      'b': {'c': None, 'd': 3}}  # fmt: skip
