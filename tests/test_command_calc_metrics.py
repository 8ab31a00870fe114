"""`calc_metrics.py` as people call it: little networks in files, a real data set, text on stdout and exit codes."""

import io
import json
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch
from generator_fakes import Flat, save_script
from metric_fakes import Face
from stand_in_vgg import save_vgg

from lia_plugin import cli
from torch_utils import network_pickle

SIDE = 16
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')


def write_zip(path, num=9, side=SIDE, channels=3, labels=None):
    stream = np.random.RandomState(0)
    with zipfile.ZipFile(path, 'w') as archive:
        names = [f'00000/img{i:08d}.png' for i in range(num)]
        for name in names:
            pixels = stream.randint(0, 255, [side, side, channels], dtype=np.uint8)
            buffer = io.BytesIO()
            PIL.Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(buffer, format='PNG')
            archive.writestr(name, buffer.getvalue())
        if labels:
            archive.writestr('dataset.json', json.dumps({'labels': [[n, i % labels] for i, n in enumerate(names)]}))
    return str(path)


def write_network(path, data, encoder=True, c_dim=0, plain=False, space='y'):
    from lia_plugin.networks import Generator
    from training.networks import Generator as PlainGenerator

    torch.manual_seed(0)
    kwargs = dict(z_dim=16, c_dim=c_dim, w_dim=16, img_resolution=SIDE, img_channels=3)
    kwargs['synthesis_kwargs'] = dict(channel_base=64, channel_max=16)
    encoder_kwargs = dict(encoder_kwargs=dict(channel_base=64, channel_max=16, space=space) if encoder else None)
    G = PlainGenerator(**kwargs) if plain else Generator(**kwargs, **encoder_kwargs)
    training_set = dict(class_name='training.dataset.ImageFolderDataset', path=data, use_labels=bool(c_dim))
    network_pickle.save(str(path), dict(
        training_set_kwargs=training_set, G=None, D=None, G_ema=G.eval().requires_grad_(False), augment_pipe=None))
    return str(path)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a data set and a network trained on it."""
    folder = tmp_path_factory.mktemp('place')
    write_network(folder / 'net.pkl', write_zip(folder / 'data.zip'))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))


def call(capsys, *args):
    """(exit code, the lines of stdout as JSON, stderr)"""
    code = cli.run(cli.load_command('calc_metrics'), ['--device=cpu', *map(str, args)])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_every_metric_of_an_encoding_network(place, capsys, tmp_path):
    names = 'recon_mse,recon_psnr,recon_ssim,recon_fid,cycle_y,cycle_z,latent_fd,fid50k_full,fid50k,kid50k_full'
    code, lines, _err = call(
        capsys, f'--network={place}/net.pkl', f'--metrics={names}', '--detector=random:0', '--num=9',
        f'--json={tmp_path}/all.json')
    assert code == 0 and [line['metric'] for line in lines] == names.split(',')
    for line in lines:
        assert np.isfinite(line['results'][line['metric']]) and line['n'] == 9
        assert line['snapshot_pkl'] == f'{place}/net.pkl' and line['value_range']
        assert line['detector' if 'id' in line['metric'] else 'data']
    assert {line['detector'] for line in lines if 'detector' in line} == {'random:0'}
    stored = json.loads((tmp_path / 'all.json').read_text())
    assert [entry['results'] for entry in stored] == [line['results'] for line in lines]
    assert not list(place.glob('metric-*'))  # Not a run directory.


def test_numbers_that_json_has_no_word_for_are_null(place, capsys, tmp_path):
    contents = network_pickle.load(f'{place}/net.pkl')
    for buffer in contents['G_ema'].synthesis.buffers():
        buffer.fill_(float('nan'))
    network_pickle.save(str(tmp_path / 'nan.pkl'), contents)
    args = [f'--network={tmp_path}/nan.pkl', '--metrics=recon_mse', f'--json={tmp_path}/nan.json', '--num=2']
    code, (line,), err = call(capsys, *args)
    assert code == 0 and line['results'] == {'recon_mse': None} and 'recon_mse is nan' in err
    assert 'NaN' not in (tmp_path / 'nan.json').read_text()
    assert json.loads((tmp_path / 'nan.json').read_text())[0]['results'] == {'recon_mse': None}


def test_the_answer_is_that_of_the_network(place, capsys):
    from lia_plugin import images, similarity
    from training.dataset import ImageFolderDataset

    (line,) = call(capsys, f'--network={place}/net.pkl', '--metrics=recon_mse', '--batch=2')[1]
    G = network_pickle.load(f'{place}/net.pkl')['G_ema']
    dataset = ImageFolderDataset(f'{place}/data.zip')
    img = images.to_float(np.stack([dataset[i][0] for i in range(9)]))
    recon = G.decode(G.encode(img), noise_mode='const').clamp(-1, 1)
    assert line['results']['recon_mse'] == pytest.approx(float(similarity.mse(img, recon).mean()), rel=1e-4)


def test_in_a_run_directory_the_held_out_images_are_measured_and_lines_are_kept(place, capsys, tmp_path):
    data = f'{place}/data.zip'
    run = tmp_path / '00000-run'
    run.mkdir()
    network = write_network(run / 'network-snapshot-000001.pkl', data)
    common = dict(class_name='training.dataset.ImageFolderDataset', path=data, val_share=0.3, val_seed=0)
    stage = dict(training_set_kwargs=dict(common, split='train'), val_set_kwargs=dict(common, split='val'))
    (run / 'training_options.json').write_text(json.dumps(dict(options={}, gan=None, encoder=stage)))
    metrics = '--metrics=recon_mse,fid50k_full'
    code, lines, err = call(capsys, f'--network={network}', metrics, '--num=50', '--detector=random:1', '--batch=32')
    assert code == 0 and 'Note' not in err
    assert (lines[0]['n'], lines[0]['data']) == (3, 'data (val split)')
    assert (lines[1]['n_real'], lines[1]['data']) == (6, 'data (train split)')
    for line in lines:
        assert line['snapshot_pkl'] == 'network-snapshot-000001.pkl'
        assert json.loads((run / f'metric-{line["metric"]}.jsonl').read_text()) == line
    code, lines, err = call(capsys, f'--network={network}', '--metrics=recon_mse', f'--data={data}')
    assert (lines[0]['n'], lines[0]['data']) == (9, 'data')
    assert 'Note: these images were trained on; without --data' in err


def test_data_that_were_trained_on_are_told_from_others(place, capsys, tmp_path):
    (tmp_path / 'link.zip').symlink_to(place / 'data.zip')
    (tmp_path / 'copy.zip').write_bytes((place / 'data.zip').read_bytes())
    for name, metric, noted in (('link', 'recon_mse', True), ('copy', 'recon_mse', False), ('link', 'cycle_y', False)):
        args = [f'--network={place}/net.pkl', f'--metrics={metric}', f'--data={tmp_path}/{name}.zip', '--num=2']
        code, _lines, err = call(capsys, *args)
        assert code == 0 and ('Note: these images were trained on' in err) == noted, (name, metric)


def test_only_data_that_a_metric_reads_are_asked_for(place, capsys, tmp_path):
    moved = write_network(tmp_path / 'moved.pkl', '/no/such/place.zip')
    code, lines, _err = call(capsys, f'--network={moved}', '--metrics=cycle_y,cycle_z', '--num=4')
    assert code == 0 and [line['data'] for line in lines] == ['generated images'] * 2
    conditional = write_network(tmp_path / 'conditional.pkl', '/no/such/place.zip', c_dim=3)
    code, _lines, err = call(capsys, f'--network={conditional}', '--metrics=cycle_y', '--num=4')
    assert code == 2 and '--data: missing' in err, 'labels are drawn from the data'
    training = dict(class_name='training.dataset.ImageFolderDataset', path='/no/such/place.zip')
    stage = dict(training_set_kwargs=training, val_set_kwargs=dict(training, path=f'{place}/data.zip'))
    (tmp_path / 'training_options.json').write_text(json.dumps(dict(encoder=stage)))
    code, lines, _err = call(capsys, f'--network={moved}', '--metrics=recon_mse')
    assert code == 0 and lines[0]['n'] == 9, 'held-out images are elsewhere'


def test_two_processes_from_the_command(place, capfd, tmp_path):
    args = [f'--network={place}/net.pkl', '--metrics=recon_mse', '--num=5', '--verbose=False']
    one = call(capfd, *args)[1]
    code, (two,), _err = call(capfd, *args, '--gpus=2', f'--json={tmp_path}/two.json')
    assert code == 0 and json.loads((tmp_path / 'two.json').read_text())[0]['results'] == two['results']
    assert two['results']['recon_mse'] == pytest.approx(one[0]['results']['recon_mse'], rel=1e-5)
    assert (two['num_gpus'], two['n']) == (2, 5)


def test_conditional_network_and_plain_stylegan(capsys, tmp_path):
    data = write_zip(tmp_path / 'labelled.zip', labels=3)
    network = write_network(tmp_path / 'conditional.pkl', data, c_dim=3)
    code, lines, _err = call(capsys, f'--network={network}', '--metrics=recon_mse,cycle_z', '--num=9')
    assert code == 0 and [line['n'] for line in lines] == [9, 9]
    plain = write_network(tmp_path / 'plain.pkl', data, plain=True)
    code, lines, _err = call(capsys, f'--network={plain}', '--metrics=fid50k', '--num=9', '--detector=random:0')
    assert code == 0 and lines[0]['n'] == 9
    code, _lines, err = call(capsys, f'--network={plain}', '--metrics=recon_mse')
    assert code == 2 and 'not a LIA network' in err


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Stand-ins of the networks that some metrics need, as options."""
    folder = tmp_path_factory.mktemp('files')
    return [f'--lpips={save_vgg(folder / "vgg16.pt")}', f'--id-detector={save_script(Face(), folder / "face.pt")}',
            '--detector=random:0']  # fmt: skip


def test_all_reconstruction_metrics_with_and_without_their_files(place, files, capsys):
    args = [f'--network={place}/net.pkl', '--metrics=all-recon,latent_fd']
    code, lines, err = call(capsys, *args)
    assert code == 0
    names = ['recon_mse', 'recon_psnr', 'recon_ssim', 'recon_swd', 'latent_fd']
    assert [line['metric'] for line in lines] == names and all(line['n'] == 9 for line in lines)
    (said,) = [line for line in err.splitlines() if 'leaves out' in line]
    assert all(name in said for name in ('recon_msssim', 'recon_lpips', 'recon_id', 'recon_fid', 'recon_fid_train'))
    code, lines, err = call(capsys, *args, *files)
    found = {line['metric']: line for line in lines}
    assert code == 0 and set(found) == {*names, 'recon_lpips', 'recon_id', 'recon_fid', 'recon_fid_train'}
    assert all(np.isfinite(line['results'][name]) and line['space'] == 'y' for name, line in found.items())
    assert found['recon_lpips']['lpips'].startswith('VGG16, vgg16-')
    assert found['recon_id']['id_detector'].startswith('face-')
    assert found['recon_fid_train']['results']['recon_fid_train'] == pytest.approx(
        found['recon_fid']['results']['recon_fid'], rel=1e-6), 'measured on what it was trained on, both are the same'


def test_the_training_set_is_that_of_the_network_whatever_data_says(place, capsys, tmp_path):
    other = write_zip(tmp_path / 'other.zip', num=4)
    common = ['--metrics=recon_fid_train', '--num=3', f'--data={other}', '--detector=random:0']
    code, (line,), _err = call(capsys, f'--network={place}/net.pkl', *common)
    assert code == 0 and (line['n'], line['data'], line['n_real'], line['real_data']) == (3, 'other', 9, 'data')
    moved = write_network(tmp_path / 'moved.pkl', '/no/such/place.zip')
    code, lines, err = call(capsys, f'--network={moved}', *common)
    assert (code, lines) == (2, []) and 'recon_fid_train needs the training set, and that of the network file' in err


def test_separability_with_labels_of_the_data_and_of_a_file(place, capsys, tmp_path):
    labelled = write_zip(tmp_path / 'labelled.zip', num=24, labels=2)
    args = [f'--network={place}/net.pkl', '--metrics=ls', f'--data={labelled}']
    code, (line,), _err = call(capsys, *args)
    assert code == 0 and line['n'] == 24 and line['results']['ls_chance'] == pytest.approx(2)
    assert 1 <= line['results']['ls_y'] <= 2.0001 and 1 <= line['results']['ls_z'] <= 2.0001
    rows = [f'img{i:08d}.png,{i // 2 % 2}' for i in range(24)]
    (tmp_path / 'pairs.csv').write_text('\n'.join(['file,pair', *rows]))
    code, (line,), _err = call(capsys, *args, f'--labels={tmp_path}/pairs.csv', '--num=20')
    assert code == 0 and line['attributes'] == 'pair' and line['n'] == 20


def test_every_metric_of_generated_images_with_a_stand_in(place, capsys, tmp_path):
    names = 'pr50k3_full pr50k3 ppl2_wend ppl_zfull ppl_wfull ppl_zend ppl_wend swd kid50k_full'.split()
    common = [f'--network={place}/net.pkl', '--num=9']
    code, lines, _err = call(capsys, *common, f'--metrics={",".join(names)}', '--detector=random:0')
    assert code == 0 and [line['metric'] for line in lines] == names
    for line in lines:
        assert line['n'] == 9 and all(np.isfinite(value) for value in line['results'].values())
        assert line['value_range'] and line.get('detector') == (None if line['metric'] == 'swd' else 'random:0')
    assert [line['data'] for line in lines[1:3]] == ['data', 'generated images']
    moved = write_network(tmp_path / 'moved.pkl', '/no/such/place.zip')
    detector = save_script(Flat(), tmp_path / 'flat.pt')
    code, lines, _err = call(
        capsys, f'--network={moved}', '--num=10', '--metrics=is50k,ppl2_wend', f'--detector={detector}')
    assert code == 0 and lines[0]['results']['is50k_mean'] >= 1, 'neither needs a data set'
    code, lines, err = call(capsys, *common, '--metrics=swd,is50k', '--detector=random:0')
    assert (code, lines) == (2, []) and 'random:0 has no classes' in err, 'said before the first metric'


def test_a_y_plus_network_is_measured_in_y_plus_and_by_its_base_code_alone(place, capsys, tmp_path):
    from lia_plugin import images, similarity
    from training.dataset import ImageFolderDataset

    network = write_network(tmp_path / 'plus.pkl', f'{place}/data.zip', space='y+')
    G = network_pickle.load(network)['G_ema']
    with torch.no_grad():  # A fresh encoder's offsets are zero; these are not.
        for tensor in [*G.encoder.parameters(), *G.encoder.buffers()]:
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    network_pickle.save(network, dict(network_pickle.load(network), G_ema=G))
    dataset = ImageFolderDataset(f'{place}/data.zip')
    img = images.to_float(np.stack([dataset[i][0] for i in range(9)]))
    found = {}
    for space in ('y+', 'y'):
        args = [f'--network={network}', '--metrics=recon_mse,cycle_y,latent_fd', '--num=9', f'--space={space}']
        code, lines, _err = call(capsys, *args)
        assert code == 0 and {line['space'] for line in lines} == {space}
        with torch.no_grad():
            recon = G.decode(G.encode(img, space=space), noise_mode='const').clamp(-1, 1)
        assert lines[0]['results']['recon_mse'] == pytest.approx(float(similarity.mse(img, recon).mean()), rel=1e-4)
        found[space] = [line['results'] for line in lines]
    assert found['y'][0] != found['y+'][0], 'the layers differ'
    for alone, layers in zip(found['y'][1:], found['y+'][1:]):
        assert alone == pytest.approx(layers, rel=1e-6), 'latents are those of the base code'
    code, lines, err = call(capsys, f'--network={network}', '--metrics=recon_mse', '--space=z')
    assert (code, lines) == (2, []) and "this network's encoder gives y+; measure it in y+ or y" in err


def test_list_needs_no_network(capsys):
    assert cli.run(cli.load_command('calc_metrics'), ['--metrics=list']) == 0
    header, *lines, blank, note, lpips_note = capsys.readouterr().out.splitlines()
    columns = [header.index(title) for title in ('Metric', 'Needs', 'What')]
    rows = [[line[start:stop].strip() for start, stop in zip(columns, [*columns[1:], None])] for line in lines]
    needs = {name: need for name, need, _what in rows}
    expected = dict(fid50k_full='Inception*', is50k='Inception*', pr50k3='VGG16*', ppl_zfull='VGG16*', swd='-',
                    recon_psnr='encoder', recon_fid='encoder, Inception*', recon_lpips='encoder, VGG16**')
    assert needs.items() >= expected.items()
    assert all(len(what.split()) > 3 for _name, _need, what in rows)
    assert blank == '' and note.startswith('* ') and '--detector' in note
    assert lpips_note.startswith('** ') and '--lpips=FILE' in lpips_note and '--detector' not in lpips_note


@pytest.fixture(scope='module')
def wrong(tmp_path_factory, place):
    """Files with something wrong with each."""
    folder = tmp_path_factory.mktemp('wrong')
    data = f'{place}/data.zip'
    write_network(folder / 'stage1.pkl', data, encoder=False)
    write_network(folder / 'conditional.pkl', data, c_dim=3)
    write_network(folder / 'moved.pkl', '/no/such/place.zip')
    write_zip(folder / 'grey.zip', channels=1)
    write_zip(folder / 'large.zip', side=32)
    write_zip(folder / 'one-class.zip', labels=1)
    (folder / 'cut.zip').write_bytes((place / 'data.zip').read_bytes()[:400])
    (folder / 'cut.pkl').write_bytes((place / 'net.pkl').read_bytes()[:4000])
    contents = network_pickle.load(f'{place}/net.pkl')
    contents['training_set_kwargs'] = dict(class_name='subprocess.check_output', args=['touch', str(folder / 'trap')])
    network_pickle.save(str(folder / 'hostile.pkl'), contents)
    return folder


def after_cycles(*args):
    """A command whose first metric has all that it needs: what is wrong must be found before that one is computed."""
    return ['--network={place}/net.pkl', '--num=9', f'--metrics=cycle_y,{args[0]}', *args[1:]]


@pytest.mark.parametrize('args, complaint', [
    (['--metrics=recon_mse'], '--network: missing'),
    (['--network={place}/none.pkl', '--metrics=recon_mse'], 'none.pkl: no such file'),
    (['--network={place}/data.zip', '--metrics=recon_mse'], 'data.zip'),
    (['--network={wrong}/cut.pkl', '--metrics=recon_mse'], 'cut.pkl'),
    (['--network={place}/net.pkl', '--metrics=recon_msee'], 'recon_msee: unknown'),
    (['--network={place}/net.pkl', '--metrics='], '--metrics: none given'),
    (['--network={wrong}/stage1.pkl', '--metrics=recon_mse'], 'train the encoder first'),
    (['--network={wrong}/moved.pkl', '--metrics=recon_mse'], '--data: missing'),
    (['--network={wrong}/hostile.pkl', '--metrics=recon_mse'], '--data: missing'),
    (['--network={wrong}/conditional.pkl', '--metrics=recon_mse'], 'label'),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--data={wrong}/grey.zip'], '1 channel'),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--data={wrong}/large.zip'], '32x32'),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--data={wrong}/cut.zip'], 'cut.zip'),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--data={wrong}/none.zip'], 'none.zip'),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--num=0'], '--num'),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--device=gpu'], '--device'),
    (['--network={place}/net.pkl', '--metrics=recon_msssim,recon_mse'], 'recon_msssim needs images of at least 161'),
    (['--network={place}/net.pkl', '--metrics=recon_mse,recon_id'], 'recon_id needs --id-detector=FILE'),
    (['--network={place}/net.pkl', '--metrics=recon_lpips', '--lpips={place}/data.zip'], '--lpips: '),
    (['--network={place}/net.pkl', '--metrics=recon_lpips', '--lpips=http://127.0.0.1:9/vgg16.pt'], '--lpips: '),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--space=y+'], "--space: y+: this network's encoder gives y"),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--space=w'], '--space'),
    (['--network={place}/none.pkl', '--metrics=cycle_y', '--json={wrong}/none/r.json'], '/none; make it first'),
    (['--network={place}/net.pkl', '--metrics=cycle_y', '--json={wrong}'], '--json: '),
    (after_cycles('ls', '--labels={place}/none.csv'), 'none.csv: cannot be read'),
    (after_cycles('ls'), 'ls needs labels, and data has none; --labels=FILE.csv'),
    (after_cycles('ls', '--data={wrong}/one-class.zip'), 'no attribute has two classes of at least 5 images'),
    (after_cycles('recon_fid', '--detector=none.pt'), '--detector: none.pt: no such file'),
    (after_cycles('kid50k', '--detector={place}/data.zip'), 'data.zip: not a TorchScript file'),
    (after_cycles('recon_id', '--id-detector=none.pt'), '--id-detector: none.pt: no such file'),
    (after_cycles('recon_lpips', '--lpips=none.pt'), '--lpips: none.pt: '),
    (['--network={place}/net.pkl', '--metrics=swd', '--detector=random:0'], '--detector: none of the metrics'),
    (['--network={place}/net.pkl', '--metrics=recon_mse', '--id-detector=x.pt'], '--id-detector: none of the metrics'),
    (['--network={place}/net.pkl', '--metrics=swd', '--space=y'], '--space: none of the metrics takes it (swd)'),
    (['--network={wrong}/stage1.pkl', '--metrics=all-recon'], 'train the encoder first'),
    (['--network={place}/net.pkl', '--metrics=recon_fid', '--detector=http://127.0.0.1:9/x.pt'], '--detector=random:0'),
])
def test_bad_input_is_one_line_and_exit_code_2(args, complaint, place, wrong, capsys, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    code, lines, err = call(capsys, '--verbose=0', *(arg.format(place=place, wrong=wrong) for arg in args))
    assert (code, lines) == (2, [])
    assert len(err.splitlines()) == 1 and complaint in err, err
    assert not (wrong / 'trap').exists()
