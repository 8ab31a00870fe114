"""train.py around the training loop, which is a fake here: bad input, and which stage of which run goes on."""

import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

import training.training_loop
from lia_plugin import cli, launch, planning, run_dir, stages
from lia_plugin.commands.train import train


def _images(folder: pathlib.Path, count: int = 20, size: int = 16) -> str:
    folder.mkdir(parents=True)
    for i in range(count):
        PIL.Image.fromarray(np.full([size, size, 3], i, np.uint8)).save(folder / f'{i:03d}.png')
    return str(folder)


@pytest.fixture
def data(tmp_path: pathlib.Path) -> str:
    return _images(tmp_path / 'data')


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Callable[..., int]:
    """Runs the command with --outdir in the test's folder."""
    def call(*args: str) -> int:
        return cli.run(train, ['--device=cpu', f'--outdir={tmp_path / "runs"}', *args], prog_name='train.py')
    return call


class Loop:
    """Stands in the loop's place: notes its arguments, leaves a state and a snapshot, and ends as told."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.endings: list[str] = []

    def __call__(self, **kwargs: Any) -> str | None:
        self.calls.append(kwargs)
        ending = self.endings.pop(0) if self.endings else 'done'
        folder = pathlib.Path(kwargs['run_dir'])
        if ending == 'killed at once':
            raise SystemExit(9)
        if ending == 'Ctrl-C at once':
            raise KeyboardInterrupt
        (folder / run_dir.STATE_FILE).write_text(kwargs['stage'])
        if ending == 'killed':
            raise SystemExit(9)
        snapshot = folder / f'network-snapshot-{int(kwargs["total_kimg"]):06d}.pkl'
        snapshot.write_text(kwargs['stage'])
        return None if ending == 'Ctrl-C' else str(snapshot)

    @property
    def stages(self) -> list[tuple[str, bool]]:
        """(stage, whether it went on from a state) of each call."""
        return [(call['stage'], call['resume_state'] is not None) for call in self.calls]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    fake = Loop()

    def prepare(network_pkl: str, out_pkl: str, **_other: Any) -> None:
        pathlib.Path(out_pkl).write_text(pathlib.Path(network_pkl).read_text())

    monkeypatch.setattr(training.training_loop, 'training_loop', fake)
    monkeypatch.setattr(planning, 'augpipe', lambda _options: {})
    monkeypatch.setattr(stages, 'prepare_encoder_stage', prepare)
    return fake


def _runs(tmp_path: pathlib.Path) -> list[str]:
    return sorted(os.listdir(tmp_path / 'runs')) if (tmp_path / 'runs').exists() else []


SHORT = ('--kimg=10', '--enc-kimg=4', '--aug=noaug')


# ---------------------------------------------------------------------------------------------------------------------
# A whole run.


def test_both_stages_in_one_directory(run: Any, loop: Loop, data: str, tmp_path: pathlib.Path, capsys: Any) -> None:
    assert run(f'--data={data}', *SHORT, '--desc=my words/here', '--percep=disc') == 0
    assert _runs(tmp_path) == ['00000-lia-data-gpus1-batch32-gamma0.0016-my_words_here']
    gan, encoder = loop.calls
    folder = gan['run_dir']
    assert (gan['stage'], gan['total_kimg'], gan['resume_pkl']) == ('gan', 10, None)
    assert (encoder['stage'], encoder['start_kimg'], encoder['total_kimg']) == ('encoder', 10, 14)
    init = os.path.join(folder, run_dir.ENCODER_INIT_FILE)
    assert encoder['resume_pkl'] == encoder['loss_kwargs']['percep_network'] == init
    assert encoder['G_kwargs']['encoder_kwargs']['arch'] == 'resnet' and encoder['G_reg_interval'] is None
    assert loop.stages == [('gan', False), ('encoder', False)], 'stage 2 must not go on from the state of stage 1'
    assert gan['metrics'] == [] and encoder['metrics'] == ['recon_mse', 'recon_psnr', 'latent_fd']
    captured = capsys.readouterr()
    assert f'python invert.py --network={os.path.join(folder, "network-snapshot-000014.pkl")}' in captured.out
    recorded = json.loads(pathlib.Path(folder, run_dir.OPTIONS_FILE).read_text())
    assert recorded['options']['kimg'] == 10 and recorded['data']['num_images'] == 20
    assert not os.path.exists(os.path.join(folder, run_dir.RUNNING_FILE))


@pytest.mark.parametrize('args', [['--stage=gan'], ['--cfg=auto', '--metrics=none']])
def test_one_stage(args: list[str], run: Any, loop: Loop, data: str) -> None:
    assert run(f'--data={data}', '--aug=noaug', *args) == 0
    assert loop.stages == [('gan', False)]


def test_dry_run_writes_nothing(run: Any, loop: Loop, data: str, tmp_path: pathlib.Path, capsys: Any) -> None:
    assert run(f'--data={data}', *SHORT, '-n') == 0
    assert not loop.calls and not _runs(tmp_path)
    printed = capsys.readouterr().out
    assert json.loads(printed[:printed.rindex('}') + 1])['gan']['total_kimg'] == 10


@pytest.mark.parametrize('said, value', [
    (['--mirror'], True), (['--mirror=1'], True), (['--mirror=true'], True), (['--mirror=0'], False),
    (['--mirror=False'], False), ([], False),
])
def test_switches(said: list[str], value: bool, run: Any, loop: Loop, data: str) -> None:
    assert run(f'--data={data}', *SHORT, *said, '--stage=both') == 0
    assert loop.calls[0]['training_set_kwargs']['xflip'] is value


# ---------------------------------------------------------------------------------------------------------------------
# Going on.


@pytest.mark.parametrize('endings, expected', [
    (['Ctrl-C'], [('gan', False), ('gan', True), ('encoder', False)]),
    (['killed'], [('gan', False), ('gan', True), ('encoder', False)]),
    (['killed at once'], [('gan', False), ('gan', False), ('encoder', False)]),
    (['done', 'Ctrl-C'], [('gan', False), ('encoder', False), ('encoder', True)]),
    (['done', 'killed'], [('gan', False), ('encoder', False), ('encoder', True)]),
    (['done', 'killed at once'], [('gan', False), ('encoder', False), ('encoder', False)]),
])
@pytest.mark.parametrize('again', ['same command', '--resume=latest'])
def test_an_unfinished_run_goes_on(endings: list[str], expected: list[tuple[str, bool]], again: str, run: Any,
                                   loop: Loop, data: str, tmp_path: pathlib.Path, capsys: Any) -> None:
    loop.endings = list(endings)
    command = [f'--data={data}', *SHORT]
    if endings[-1] == 'Ctrl-C':
        assert run(*command) == 130
        out = capsys.readouterr().out
        assert '--resume=latest' in out and 'goes on from the last saved state' in out
    else:
        with pytest.raises(SystemExit):
            run(*command)
    assert run(*(command if again == 'same command' else [again])) == 0
    assert loop.stages == expected and len(_runs(tmp_path)) == 1
    assert 'Going on with' in capsys.readouterr().out


@pytest.mark.parametrize('endings, message', [
    (['Ctrl-C at once'], 'Nothing is saved yet: the same command starts again'),
    (['done', 'Ctrl-C at once'], 'Stage 1 is saved, nothing of stage 2 yet'),
    (['killed', 'Ctrl-C at once'], 'goes on from the last saved state'),
])
def test_interrupted_before_the_loop_could_save(endings: list[str], message: str, run: Any, loop: Loop, data: str,
                                                capsys: Any) -> None:
    loop.endings = list(endings)
    if endings[0] == 'killed':
        with pytest.raises(SystemExit):
            run(f'--data={data}', *SHORT)
    assert run(f'--data={data}', *SHORT) == 130
    assert message in capsys.readouterr().out


def test_interrupted_while_stage_2_is_prepared(run: Any, loop: Loop, data: str, monkeypatch: Any) -> None:
    def interrupted(**_kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, 'prepare_encoder_stage', interrupted)
        assert run(f'--data={data}', *SHORT) == 130
    assert run(f'--data={data}', *SHORT) == 0
    assert loop.stages == [('gan', False), ('encoder', False)]


@pytest.mark.parametrize('args', [['--new-run'], ['--seed=1'], ['--gamma=1', '--kimg=11']])
def test_what_starts_a_new_run(args: list[str], run: Any, loop: Loop, data: str, tmp_path: pathlib.Path) -> None:
    loop.endings = ['Ctrl-C']
    assert run(f'--data={data}', *SHORT) == 130
    assert run(f'--data={data}', *SHORT, *args) == 0
    assert len(_runs(tmp_path)) == 2 and loop.stages[1] == ('gan', False)


def test_a_finished_run_is_left_alone(run: Any, loop: Loop, data: str, tmp_path: pathlib.Path, capsys: Any) -> None:
    assert run(f'--data={data}', *SHORT) == run(f'--data={data}', *SHORT) == 0
    assert len(_runs(tmp_path)) == 2
    capsys.readouterr()
    assert run('--resume=latest') == 0
    assert 'has finished already' in capsys.readouterr().out and len(loop.calls) == 4


def test_latest_may_be_longer(run: Any, loop: Loop, data: str, capsys: Any) -> None:
    assert run(f'--data={data}', *SHORT) == 0
    assert run('--resume=latest', '--enc-kimg=8', '--snap=3', '--metrics=recon_ssim') == 0
    last = loop.calls[-1]
    assert (last['stage'], last['start_kimg'], last['total_kimg']) == ('encoder', 10, 18)
    assert (last['network_snapshot_ticks'], last['metrics']) == (3, ['recon_ssim']) and last['resume_state'] is not None
    assert run('--resume=latest', '--kimg=20') == 2
    assert 'stage 2 has begun' in capsys.readouterr().err and len(loop.calls) == 3


def test_how_images_are_kept_and_work_is_launched_may_change(run: Any, loop: Loop, data: str) -> None:
    loop.endings = ['Ctrl-C']
    assert run(f'--data={data}', *SHORT, '--cuda-graphs=auto') == 130
    assert run(f'--data={data}', *SHORT, '--cache=1.5GB', '--workers=2', '--cuda-graphs=off') == 0
    assert [call['cache'] for call in loop.calls] == ['auto', 1_500_000_000, 1_500_000_000]
    assert [call['cuda_graphs'] for call in loop.calls] == ['auto', 'off', 'off']
    assert loop.stages == [('gan', False), ('gan', True), ('encoder', False)], 'the same run'


def test_a_longer_stage_1_before_stage_2(run: Any, loop: Loop, data: str) -> None:
    loop.endings = ['Ctrl-C']
    run(f'--data={data}', *SHORT)
    assert run('--resume=latest', '--kimg=20') == 0
    assert [call['total_kimg'] for call in loop.calls] == [10, 20, 24] and loop.calls[2]['start_kimg'] == 20


def test_the_first_command_finds_its_run_after_latest_changed_it(run: Any, loop: Loop, data: str,
                                                                 tmp_path: pathlib.Path) -> None:
    loop.endings = ['Ctrl-C', 'Ctrl-C']
    run(f'--data={data}', *SHORT)
    run('--resume=latest', '--kimg=20', '--snap=3')
    assert run(f'--data={data}', *SHORT) == 0 and len(_runs(tmp_path)) == 1
    assert loop.stages == [('gan', False), ('gan', True), ('gan', True), ('encoder', False)]


def test_the_run_of_exactly_these_options_comes_first(run: Any, loop: Loop, data: str, tmp_path: pathlib.Path) -> None:
    loop.endings = ['Ctrl-C'] * 3
    run(f'--data={data}', *SHORT)
    run(f'--data={data}', *SHORT, '--kimg=20', '--new-run')
    run(f'--data={data}', *SHORT)
    assert [pathlib.Path(call['run_dir']).name[:5] for call in loop.calls] == ['00000', '00001', '00000']


def test_a_longer_stage_2_keeps_its_average(run: Any, loop: Loop, data: str) -> None:
    loop.endings = ['done', 'Ctrl-C']
    run(f'--data={data}', *SHORT)
    assert run('--resume=latest', '--enc-kimg=40') == 0
    before, after = loop.calls[1:]
    assert before['ema_kimg'] == after['ema_kimg'] == pytest.approx(0.05 * 4)
    assert before['kimg_per_tick'] != after['kimg_per_tick']


def test_a_longer_stage_2_stretches_what_follows_a_schedule(run: Any, loop: Loop, data: str) -> None:
    loop.endings = ['done', 'Ctrl-C']
    run(f'--data={data}', *SHORT)
    assert run('--resume=latest', '--enc-kimg=40') == 0
    before, after = loop.calls[1:]
    steps = [call['G_opt_kwargs']['total_steps'] for call in (before, after)]
    assert steps == [math.ceil(kimg * 1000 / before['batch_size']) for kimg in (4, 40)]
    assert [call['loss_kwargs']['total_kimg'] for call in (before, after)] == [4, 40]


def test_a_run_that_began_under_other_defaults_keeps_its_encoder(run: Any, loop: Loop, data: str,
                                                                 tmp_path: pathlib.Path) -> None:
    loop.endings = ['done', 'Ctrl-C']
    run(f'--data={data}', *SHORT)
    path = tmp_path / 'runs' / _runs(tmp_path)[0] / run_dir.OPTIONS_FILE
    recorded = json.loads(path.read_text())
    del recorded['encoder']['G_kwargs']['encoder_kwargs']['hidden_features']
    recorded['encoder']['G_opt_kwargs'] = dict(class_name='torch.optim.Adam', lr=3e-3, betas=[0.0, 0.99], eps=1e-8)
    path.write_text(json.dumps(recorded))
    assert run('--resume=latest') == 0
    assert loop.calls[-1]['G_kwargs'] == recorded['encoder']['G_kwargs']
    assert loop.calls[-1]['G_opt_kwargs'] == recorded['encoder']['G_opt_kwargs']


def test_a_run_of_before_an_option_was_there_is_found_and_says_what_contradicts_it(
    run: Any, loop: Loop, data: str, tmp_path: pathlib.Path, capsys: Any
) -> None:
    loop.endings = ['done', 'Ctrl-C', 'Ctrl-C']
    run(f'--data={data}', *SHORT)
    path = tmp_path / 'runs' / _runs(tmp_path)[0] / run_dir.OPTIONS_FILE
    recorded = json.loads(path.read_text())
    del recorded['options']['enc_prior'], recorded['options']['enc_start']
    path.write_text(json.dumps(recorded))
    run(f'--data={data}', *SHORT)
    assert len(_runs(tmp_path)) == 1, 'the same command goes on with it'
    assert run('--resume=latest', '--enc-prior=0.5') == 2
    assert '--enc-prior: 0.5 now, None in' in capsys.readouterr().err


def test_a_stage_2_that_has_not_begun_follows_its_new_length(run: Any, loop: Loop, data: str) -> None:
    loop.endings = ['Ctrl-C']
    run(f'--data={data}', *SHORT)
    assert run('--resume=latest', '--enc-kimg=40') == 0
    assert loop.calls[-1]['stage'] == 'encoder' and loop.calls[-1]['ema_kimg'] == pytest.approx(0.05 * 40)


@pytest.mark.parametrize('args, said', [
    ([], '--metrics=recon_mse,recon_psnr,latent_fd,fid50k_full adds one'),
    (['--stage=gan'], '--metrics=fid50k_full adds one'), (['--metrics=none'], None), (['--cfg=auto'], None),
])
def test_a_stage_1_without_metrics_says_so(args: list[str], said: str | None, run: Any, loop: Loop, data: str,
                                           capsys: Any) -> None:
    assert run(f'--data={data}', '--aug=noaug', *args, '-n') == 0
    out = capsys.readouterr().out
    assert (said in out) if said else ('has no metric' not in out)


@pytest.mark.parametrize('change', ['--gamma=5', '--batch=16', '--mirror'])
def test_latest_must_be_the_same(change: str, run: Any, loop: Loop, data: str, capsys: Any) -> None:
    loop.endings = ['Ctrl-C']
    run(f'--data={data}', *SHORT)
    capsys.readouterr()
    assert run('--resume=latest', change) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and change.split('=')[0] in err and len(loop.calls) == 1


def test_latest_must_see_the_same_images(run: Any, loop: Loop, data: str, capsys: Any) -> None:
    loop.endings = ['Ctrl-C']
    run(f'--data={data}', *SHORT)
    os.remove(os.path.join(data, '003.png'))
    assert run('--resume=latest') == 2
    assert '20 then, 19 now' in capsys.readouterr().err


def test_two_commands_never_share_a_directory(run: Any, loop: Loop, data: str, tmp_path: pathlib.Path,
                                              monkeypatch: Any, capsys: Any) -> None:
    loop.endings = ['killed']
    with pytest.raises(SystemExit):
        run(f'--data={data}', *SHORT)
    folder = tmp_path / 'runs' / _runs(tmp_path)[0]
    other = os.getppid()  # Some process that is alive and not this one.
    (folder / run_dir.RUNNING_FILE).write_text(json.dumps(
        dict(pid=other, born=run_dir._born(other), host=run_dir.socket.gethostname())))
    assert run(f'--data={data}', *SHORT) == 2
    assert f'process {other}' in capsys.readouterr().err
    (folder / run_dir.RUNNING_FILE).write_text(json.dumps(dict(pid=other, born=1.0, host=run_dir.socket.gethostname())))
    assert run(f'--data={data}', *SHORT) == 0, 'the number is used again: the process that wrote it is gone'


def test_failure_of_the_loop_is_a_line(run: Any, data: str, loop: Loop, monkeypatch: Any, capsys: Any) -> None:
    def diverge(**_kwargs: Any) -> None:
        raise launch.UserError('training diverged at kimg 1.0')

    monkeypatch.setattr(training.training_loop, 'training_loop', diverge)
    assert run(f'--data={data}', *SHORT) == 2
    assert capsys.readouterr().err.strip() == 'Error: training diverged at kimg 1.0'


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one line, exit code 2, nothing written.


def _odd_sizes(folder: pathlib.Path) -> str:
    return _images(folder, size=12)


def _tiny(folder: pathlib.Path) -> str:
    return _images(folder, size=4)


def _one_image(folder: pathlib.Path) -> str:
    return _images(folder, count=1)


def _no_zip(folder: pathlib.Path) -> str:
    file = folder.with_suffix('.zip')
    file.write_bytes(b'PK\x03\x04 not really')
    return str(file)


@pytest.mark.parametrize('make, named', [
    (str, 'bad'), (_odd_sizes, '12x12'), (_tiny, '4x4'), (_one_image, '1 image'), (_no_zip, 'bad.zip'),
])
def test_bad_data(make: Callable[[pathlib.Path], str], named: str, run: Any, loop: Loop, tmp_path: pathlib.Path,
                  capsys: Any) -> None:
    assert run(f'--data={make(tmp_path / "bad")}', *SHORT) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and named in err
    assert not loop.calls and not _runs(tmp_path)


@pytest.mark.parametrize('args, named', [
    (['--kimg=0'], '--kimg'), (['--kimg=abc'], '--kimg'), (['--cfg=nonsense'], '--cfg'), (['--batch=0'], '--batch'),
    *(([f'{name}={value}'], name) for name in ('--kimg', '--gamma', '--enc-pixel') for value in ('nan', 'inf')),
    (['--aug=ada', '--target=nan'], '--target'), (['--val=nan'], '--val'),
    (['--mirror=perhaps'], '--mirror'), (['--gpus=0'], '--gpus'), (['--p=1.5', '--aug=fixed'], '--p'),
    (['--bacth=4'], '--bacth'), (['--device=abacus'], '--device'),
    (['--batch=9', '--gpus=2'], '--batch'), (['--enc-batch=9', '--gpus=2'], '--enc-batch'), (['--gpus=3'], '--batch'),
    (['--batch=6'], '--mbstd-group'), (['--batch=8', '--batch-gpu=3'], '--batch-gpu'), (['--aug=fixed'], '--p'),
    (['--stage=encoder'], '--resume'), (['--cfg=auto', '--enc-kimg=3'], '--enc-kimg'), (['--subset=50'], '--subset'),
    (['--cond'], '--cond'), (['--val=1.5'], '--val'), (['--val=nowhere.zip'], 'nowhere.zip'),
    (['--metrics=fid51k'], 'fid51k'), (['--stage=gan', '--metrics=recon_mse'], 'recon_mse'),
    (['--metrics=pr50k3', '--detector=nowhere.pt'], 'nowhere.pt'),
    (['--metrics=is50k', '--detector=random:0'], 'is50k'),
    (['--metrics=fid50k_full', '--detector=nowhere.pt'], 'nowhere.pt'), (['--resume=nowhere.pkl'], 'nowhere.pkl'),
    (['--stage=encoder', '--resume=nowhere.pkl'], 'nowhere.pkl'), (['--resume=latest'], '--resume'),
    (['--resume=latest', '--new-run'], '--new-run'),
])
def test_bad_options(args: list[str], named: str, run: Any, loop: Loop, data: str, tmp_path: pathlib.Path,
                     capsys: Any) -> None:
    assert run(f'--data={data}', *args) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and named in err
    assert not loop.calls and not _runs(tmp_path)


def test_no_data(run: Any, capsys: Any) -> None:
    assert run('--kimg=1') == 2
    assert '--data' in capsys.readouterr().err


def test_outdir_that_is_a_file(data: str, loop: Loop, tmp_path: pathlib.Path, capsys: Any) -> None:
    (tmp_path / 'file').write_text('')
    assert cli.run(train, [f'--data={data}', *SHORT, f'--outdir={tmp_path / "file"}', '--device=cpu']) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and '--outdir' in err and not loop.calls


@pytest.mark.parametrize('metrics, percep', [
    ('fid50k_full', 'disc'), ('is50k,swd', 'disc'), ('ppl2_wend', 'disc'), ('pr50k3_full', 'disc'), ('none', 'vgg16')])
def test_offline_says_so_before_training(metrics: str, percep: str, run: Any, loop: Loop, data: str, monkeypatch: Any,
                                         tmp_path: pathlib.Path, capsys: Any) -> None:
    """One line: the file, the folder to put it in, and the option that does without."""
    import requests

    def no_connection(*_args: Any, **_kwargs: Any) -> None:
        raise requests.ConnectionError('offline')

    monkeypatch.setattr(requests, 'get', no_connection)
    monkeypatch.setattr('time.sleep', lambda _seconds: None)
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    assert run(f'--data={data}', *SHORT, f'--metrics={metrics}', f'--percep={percep}') == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    of_vgg16 = percep == 'vgg16' or metrics.startswith('p')
    assert str(tmp_path / 'cache') in err and ('vgg16.pt' if of_vgg16 else 'inception') in err
    assert ('--detector' if percep == 'disc' else '--percep=disc') in err
    assert not loop.calls and not _runs(tmp_path)


@pytest.mark.parametrize('trained', [False, True])
def test_a_run_that_failed_before_its_first_tick_leaves_no_directory(
    trained: bool, run: Any, data: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run_dir: str, **_other: Any) -> None:
        if trained:
            (pathlib.Path(run_dir) / 'stats.jsonl').write_text('{}\n')
        raise launch.UserError('017.png: damaged or unreadable image')

    monkeypatch.setattr(training.training_loop, 'training_loop', fail)
    assert run(f'--data={data}', *SHORT) == 2
    assert len(_runs(tmp_path)) == trained
