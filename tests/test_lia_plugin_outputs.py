"""What is asked of a place before long work, and what JSON is given."""

import json
import math
import os
import pathlib

import pytest

from lia_plugin import cli
from lia_plugin.host import UserError
from lia_plugin.outputs import check_new_folder, check_output, finite


def test_places_that_will_do(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'there').mkdir()
    (tmp_path / 'file').touch()
    for path in ('there', 'new', 'new/and/deep'):
        check_output('--outdir', str(tmp_path / path), folder=True)
    for path in ('file', 'new.json'):
        check_output('--json', str(tmp_path / path), folder=False)
    check_output('--out', str(tmp_path / 'new/and/deep.pkl'), folder=False, makes_folders=True)
    for path in ('there', 'new'):
        check_new_folder('--outdir', str(tmp_path / path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'there'], 'nothing is made'
    assert not list((tmp_path / 'there').iterdir())


@pytest.mark.parametrize('path, folder, told', [
    ('file', True, 'is no folder'), ('there', False, 'is a folder'), ('file/below', True, 'file is no folder'),
    ('none/x.json', False, 'there is no folder'), ('file/x.json', False, 'is no folder'),
    ('x' * 300, True, 'cannot be made .File name too long'), ('x' * 300, False, 'cannot be made .File name too long'),
    ('pipe', False, 'is no file'),
])  # fmt: skip
def test_places_that_will_not(path: str, folder: bool, told: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'there').mkdir()
    (tmp_path / 'file').touch()
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(UserError, match=f'--out: .*{told}'):
        check_output('--out', str(tmp_path / path), folder)


def test_a_folder_that_is_full_is_not_new(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=f'--outdir: {tmp_path}: exists already'):
        check_new_folder('--outdir', str(tmp_path))


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc, where root may write and nothing is made')
def test_a_permission_is_not_enough(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command says so in one line, whatever it would have read."""
    for args in (
        ['edit', 'interpolate', '1', '2', '--network=none.pkl', '--outdir=/proc/x'],
        ['export', '--network=none.pkl', '--outdir=/proc/x'],
        ['export', '--network=none.pkl', '--to-pickle=/proc/a/x.pkl'],
        ['attach', '--network=none.pkl', '--outdir=/proc/x'],
        ['invert', '--network=none.pkl', '--target=none.png', '--outdir=/proc'],
    ):
        assert cli.main(args) == 2
        complaint = capsys.readouterr().err
        assert complaint.count('\n') == 1 and ' /proc' in complaint and 'give another place' in complaint


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    value = {'a': [1.5, math.inf, (math.nan, 'x')], 'b': {'c': -math.inf, 'd': 3}}
    assert json.loads(json.dumps(finite(value), allow_nan=False)) == {'a': [1.5, None, [None, 'x']],
                                                                      'b': {'c': None, 'd': 3}}  # fmt: skip
