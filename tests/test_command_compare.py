"""The command `compare`: all methods from nothing to the table in miniature, again at once, and after Ctrl-C."""

import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from lia_plugin import cli, compare_run, launch, run_dir
from lia_plugin.commands.compare import compare

METHODS = 'lia-y,lia-y+,encoder-z,mlp-w,lia-y-disc,no-disc,bigan,opt-2,opt-5,refine-2'
TRAINED = ('stage1', 'stage1-mlp', 'lia-y', 'lia-y+', 'encoder-z', 'mlp-w', 'lia-y-disc', 'no-disc', 'bigan')
TINY = ('--kimg=0.008', '--enc-kimg=0.008', '--batch=8', '--cbase=128', '--cmax=8', '--latent-dim=8', '--gamma=0.1',
        '--aug=noaug', '--val=0.3', '--device=cpu', '--workers=0', '--fit-steps=0', '--gen-num=8', '--num=5',
        '--opt-num=2', '--shown=2', '--detector=random:0', '--mlp-depth=2',
        '--enc-start=random')


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp('compare') / 'data'
    folder.mkdir()
    stream = np.random.RandomState(0)
    for i in range(20):
        PIL.Image.fromarray(stream.randint(0, 256, [16, 16, 3]).astype(np.uint8)).save(folder / f'{i:03d}.png')
    return str(folder)


def run(*args: str) -> int:
    return cli.run(compare, list(args), prog_name='lia compare')


def files_of(folder: Any) -> dict[str, int]:
    """Time of the last change of each file of a run or measurement."""
    return {str(path): path.stat().st_mtime_ns for part in ('runs', 'measured')
            for path in pathlib.Path(folder, part).rglob('*') if path.is_file()}


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing may be trained or measured."""
    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError('done already')

    monkeypatch.setattr(launch, 'train', never)
    monkeypatch.setattr(compare_run, 'measured', never)
    monkeypatch.setattr(compare_run.compare_measure, 'registry', never)


@pytest.mark.slow
def test_all_methods_and_again_at_once(
    data: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    args = (f'--data={data}', f'--outdir={tmp_path}', f'--methods={METHODS}', *TINY)
    assert run(*args) == 0
    text = (tmp_path / 'compare.md').read_text()
    for label in ('LIA, y', 'LIA, y+', 'encoder to z', 'MLP mapping, encoder to w', 'LIA, y, D in the loss',
                  'LIA, y, no discriminator', 'BiGAN/ALI', 'Adam, 2 steps', 'Adam, 5 steps',
                  'LIA, y + 2 steps'):
        assert f'| {label} | ' in text
    for label in ('φ (LIA)', 'MLP mapping', 'φ, trained as BiGAN'):
        assert f'| {label} | ' in text
    assert f'lia compare --outdir={tmp_path} --methods={METHODS}' in text
    content = json.loads((tmp_path / 'compare.json').read_text())
    assert [r['name'] for r in content['records']] == METHODS.split(',') and not content['failed']
    assert all(r['shared']['n'] == 2 and r['shared']['mse'] > 0 for r in content['records'])
    assert [r['name'] for r in content['records'] if r['all']] == [n for n in METHODS.split(',') if '-2' not in n
                                                                   and '-5' not in n]
    assert sorted(os.listdir(tmp_path / 'runs')) == sorted(
        [f'seed0-{name}' for name in TRAINED] + [f'seed0-stage1-mlp-phi.{kind}' for kind in ('pkl', 'png', 'json')])
    assert PIL.Image.open(tmp_path / 'grid.png').size[0] == 11 * 132 - 4

    before = files_of(tmp_path)
    forbid(monkeypatch)
    (tmp_path / 'compare.md').unlink()
    assert run(*args) == 0
    assert files_of(tmp_path) == before
    assert (tmp_path / 'compare.md').read_text() == text
    # A part of it needs nothing new either.
    assert run(*args, '--methods=opt-5,bigan') == 0
    assert 'LIA, y' not in capfd.readouterr().out.rpartition('# Comparison')[2]
    # Other options must not be mixed in, of whatever run.
    for option, told in (('--batch=4', '--batch: 4 now, 8 in'), ('--enc-lr=0.5', '--enc-lr: 0.5 now, None in')):
        assert run(*args, option) == 2
        assert told in capfd.readouterr().err
    assert files_of(tmp_path) == before


def test_a_folder_where_another_process_is_at_work(data: str, tmp_path: pathlib.Path, capfd: Any) -> None:
    with run_dir.Run(str(tmp_path)).at_work():
        noted = json.loads((tmp_path / 'running.json').read_text())
    parent = dict(noted, pid=os.getppid(), born=run_dir._born(os.getppid()))
    (tmp_path / 'running.json').write_text(json.dumps(parent))
    assert run(f'--data={data}', f'--outdir={tmp_path}', *TINY) == 2
    assert f'process {os.getppid()} is at work here' in capfd.readouterr().err


@pytest.mark.slow
def test_a_given_network_is_measured_and_nothing_trained(
    data: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = (f'--data={data}', f'--outdir={tmp_path / "a"}', '--methods=opt-2', *TINY)
    assert run(*first) == 0
    run_folder = tmp_path / 'a' / 'runs' / 'seed0-stage1'
    snapshot = next(run_folder.glob('network-snapshot-*.pkl'))
    shutil.copy(snapshot, tmp_path / 'given.pkl')
    monkeypatch.setattr(launch, 'train', lambda *_: pytest.fail('nothing is to be trained'))
    capfd.readouterr()
    for number, given in enumerate((tmp_path / 'given.pkl', run_folder)):
        out = tmp_path / f'b{number}'
        assert run(*first, f'--outdir={out}', f'--network={given}', '--seeds=3') == 0
        assert ('not known' in (out / 'compare.md').read_text()) == given.name.endswith('.pkl')
        a, b = (json.loads((folder / 'compare.json').read_text()) for folder in (tmp_path / 'a', out))
        assert [r['shared']['mse'] for r in a['records']] == [r['shared']['mse'] for r in b['records']]
        assert b['records'][0]['given'] == ['stage1'] and not (out / 'runs').exists()


@pytest.mark.slow
def test_after_ctrl_c_the_same_command_goes_on(
    data: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    args = (f'--data={data}', f'--outdir={tmp_path}', '--methods=lia-y,opt-2', *TINY)
    train, trained = launch.train, []

    def interrupted(run: Any, plan: Any) -> str | None:
        trained.append(os.path.basename(run.path))
        return None if len(trained) == 2 else train(run, plan)

    monkeypatch.setattr(launch, 'train', interrupted)
    assert run(*args) == cli.EXIT_INTERRUPTED
    assert 'the same command goes on' in capfd.readouterr().out
    assert run(*args) == 0
    assert trained == ['seed0-stage1', 'seed0-lia-y', 'seed0-lia-y']
    assert '| LIA, y | ' in (tmp_path / 'compare.md').read_text()


@pytest.mark.slow
def test_a_method_that_fails_is_told_and_the_others_go_on(
    data: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train = launch.train

    def diverging(run: Any, plan: Any) -> str | None:
        if run.path.endswith('bigan'):
            raise compare_run.UserError('training diverged at kimg 0.0')
        return train(run, plan)

    monkeypatch.setattr(launch, 'train', diverging)
    assert run(f'--data={data}', f'--outdir={tmp_path}', '--methods=bigan,opt-2', *TINY) == 1
    text = (tmp_path / 'compare.md').read_text()
    assert 'bigan, seed 0: failed: training diverged' in text and '| Adam, 2 steps |' in text
    assert '1 failed' in capfd.readouterr().out
    assert not (tmp_path / 'runs' / 'seed0-bigan').exists()


def test_a_dry_run_says_what_would_be_done(data: str, tmp_path: pathlib.Path, capfd: Any) -> None:
    out = tmp_path / 'out'
    assert run(f'--data={data}', f'--outdir={out}', '-n', '--seeds=2', *TINY) == 0
    lines = capfd.readouterr().out.splitlines()
    assert f'seed1-bigan: trained for 0.016 kimg in {out / "runs"}' in lines
    assert sum(': trained for ' in line for line in lines) == 2 * len(TRAINED)
    assert not out.exists()


def test_the_list_of_methods() -> None:
    result = CliRunner().invoke(compare, ['--methods=list'])
    assert result.exit_code == 0
    for name in ('lia-y+ ', 'mlp-w ', 'bigan ', 'opt-1000 ', 'refine-100 '):
        assert f'\n{name}' in result.output


@pytest.mark.parametrize('args, reason', [
    ([], "Missing option '--data'"),
    (['--data=DATA', '--methods=lia'], '--methods: lia: there are lia-y'),
    (['--data=DATA', '--val=none'], '--val=none: nothing is held out'),
    (['--data=DATA', '--network=/no/such.pkl', '--methods=opt-2'], '--take stage1=/no/such.pkl: no such file'),
    (['--data=/no/such.zip'], '/no/such.zip'),
    (['--data=DATA', '--detector=/no/such.pt'], '/no/such.pt: no such file'),
    (['--data=DATA', '--percep=none', '--enc-percep=1'], '--enc-percep: contradicts --percep=none'),
])  # fmt: skip
def test_bad_input_gets_one_line_and_leaves_nothing(
    args: list[str], reason: str, data: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    said = [arg.replace('DATA', data) for arg in args]
    assert run(f'--outdir={out}', '--kimg=1', '--device=cpu', *said) == 2
    told = capfd.readouterr().err
    assert reason in told and told.count('\n') == 1
    assert not out.exists()
