"""`invert --align` and the check of centre crops, from pictures to results.json."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import RESOLUTION, make_generator, save_pickle

from lia_plugin import alignment, alignment_search, cli, cropping, face_detector, images, pasting, placement

MARKS = [[30.0, 20], [38, 20], [34, 24], [31, 28], [37, 28]]


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', make_generator())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures, 64x48 and grey."""
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    (tmp_path / 'in').mkdir()
    for i, name in enumerate('ab'):
        pixels = np.random.RandomState(i).randint(0, 255, [6, 8], dtype=np.uint8)
        PIL.Image.fromarray(pixels).resize((64, 48), PIL.Image.Resampling.BICUBIC).save(tmp_path / 'in' / f'{name}.png')
    return tmp_path


def invert(folder: Path, network: str, *args: str, code: int = 0) -> Any:
    given = ['--device=cpu', f'--network={network}', f'--target={folder / "in"}', f'--outdir={folder / "out"}', *args]
    assert cli.run(cli.load_command('invert'), given) == code
    results = folder / 'out' / 'results.json'
    return json.loads(results.read_text()) if results.exists() else None


def test_crops_by_landmarks_are_stored_and_go_back(folder: Path, network: str) -> None:
    (folder / 'marks.json').write_text(json.dumps({name: MARKS for name in 'ab'}))
    told = invert(folder, network, f'--align={folder / "marks.json"}')
    expected = alignment.face_placement(np.array(MARKS), (64, 48), RESOLUTION)
    full = images.read_image(folder / 'in' / 'a.png').pixels
    for entry in told['images']:
        where = placement.Placement.from_json(entry['placement'])
        assert where.matrix == expected.matrix and where.source.endswith(f'{entry["image"]}.png')
        assert any('aligned' in change for change in entry['changes']) and 'moved_gain' not in entry
    with np.load(folder / 'out' / 'a.npz') as stored:
        (where,) = placement.from_arrays(dict(stored), 1)
    assert where is not None and where.matrix == expected.matrix and told['align'].endswith('marks.json')
    assert torch.equal(pasting.paste(full, pasting.take(full, where), where, base=pasting.take(full, where)), full)


def test_an_image_without_landmarks_is_told_and_the_rest_goes_on(
    folder: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / 'marks.csv').write_text('a.png,' + ','.join(str(value) for pair in MARKS for value in pair))
    told = invert(folder, network, f'--align={folder / "marks.csv"}', code=1)
    assert told['n'] == 1 and 'has no landmarks of it' in told['failed'][0]['reason']
    assert 'b.png: --align=' in capsys.readouterr().err


def test_landmarks_of_another_size_of_the_picture_are_refused(
    folder: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = {'a': (np.array(MARKS) * 4).tolist(), 'b': (np.array(MARKS) / 64).tolist()}
    (folder / 'marks.json').write_text(json.dumps(marks))
    assert invert(folder, network, f'--align={folder / "marks.json"}', code=2) is None
    told = capsys.readouterr().err
    assert 'a.png: its landmarks lie outside of it, about (136, 83' in told and 'has 64x48 pixels' in told
    assert 'b.png: landmarks: hardly a pixel apart; they must be in pixels' in told


def test_detected_faces(folder: Path, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector sees the picture enlarged by ten; of the first one it finds a face, of the second none."""
    calls = []

    def detect(pixels: torch.Tensor) -> np.ndarray:
        calls.append(tuple(pixels.shape))
        row = np.append((np.array(MARKS) * 10 - 0.5).flatten(), 0.9)
        return row[None] if len(calls) == 1 else np.zeros([0, 11])

    monkeypatch.setattr(face_detector, 'open_yunet', lambda: detect)
    told = invert(folder, network, '--align=detect', code=1)
    expected = alignment.face_placement(np.array(MARKS), (64, 48), RESOLUTION)
    np.testing.assert_allclose(told['images'][0]['placement']['matrix'], expected.matrix, atol=1e-9)
    assert calls[0] == (3, 480, 640) and 'no face found' in told['failed'][0]['reason']


def test_the_search_draws_better_than_the_centre(folder: Path, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment_search, 'ROUNDS', ((4, 1.0),))
    monkeypatch.setattr(alignment_search, 'SCALES', (1.0,))
    told = invert(folder, network, '--align=search')
    G = make_generator()
    for entry in told['images']:
        full = images.with_channels(images.read_image(folder / 'in' / f'{entry["image"]}.png').pixels, 3)
        base = placement.centre_crop((64, 48), RESOLUTION)
        found = placement.Placement.from_json(entry['placement'])
        crops = [pasting.to_float(pasting.take(full, where)) for where in (base, found)]
        before, after = alignment_search.misfit(G, torch.stack(crops)).tolist()
        assert after < before + 0.01


def test_the_check_tells_which_image_is_far_and_what_helps(
    folder: Path, network: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = invert(folder, network, '--no-check-alignment')
    assert plain['far_from_alignment'] == [] and 'moved_gain' not in plain['images'][0]
    capsys.readouterr()
    gains = iter([cropping.alignment_search.FAR_GAIN + 1, cropping.alignment_search.FAR_GAIN - 1])
    monkeypatch.setattr(alignment_search, 'moved_gain', lambda judge: next(gains))
    told = invert(folder, network)
    assert told['far_from_alignment'] == [str(folder / 'in' / 'a.png')]
    lines = [line for line in capsys.readouterr().err.splitlines() if 'looks far' in line]
    assert len(lines) == 1 and lines[0].startswith(str(folder / 'in' / 'a.png')) and '--align=search' in lines[0]
    assert told['alignment_checked'] == 2 and 'nats' in told['units']['moved_gain']
    assert plain['alignment_checked'] == 0 and 'moved_gain' not in plain['units']
    assert [entry['mse'] for entry in told['images']] == [entry['mse'] for entry in plain['images']]
    assert [entry['placement'] for entry in told['images']] == [entry['placement'] for entry in plain['images']]
    assert [entry['changes'] for entry in told['images']] == [entry['changes'] for entry in plain['images']]


def test_of_many_images_a_sample_is_looked_at(
    folder: Path, network: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [cropping.Target(f'{i}.png', None, str(i)) for i in range(10)]
    assert cropping.sample_names(items) == {str(i) for i in range(10)}
    assert cropping.sample_names(items, 3) == {'0', '3', '6'} and cropping.sample_names([]) == frozenset()
    sample = cropping.sample_names
    monkeypatch.setattr(cropping, 'sample_names', lambda items: sample(items, 1))
    monkeypatch.setattr(alignment_search, 'moved_gain', lambda judge: 1.0)
    told = invert(folder, network)
    assert told['alignment_checked'] == 1 and ['moved_gain' in entry for entry in told['images']] == [True, False]
    assert 'Of 2 images 1, spread over all, were looked at' in capsys.readouterr().err


def test_a_tiny_p_of_the_calibration_is_far_too() -> None:
    cropper = cropping.Cropper(make_generator(), None, None, 'ab', 8)
    cropper.gains['b'] = -0.5
    entries = [dict(image='a', source='a.png', p_distance=0.0005), dict(image='b', source='b.png', p_distance=0.4)]
    assert list(cropper.far(entries)) == ['a.png'] and entries[1]['moved_gain'] == -0.5


@pytest.mark.parametrize('more, told', [(0.2, '0.55'), (0.001, '0.351'), (0.00004, '0.35004'), (2e-16, None)])
def test_a_gain_and_what_is_usual_are_never_told_as_equal(more: float, told: str | None) -> None:
    cropper = cropping.Cropper(make_generator(), None, None, 'a', 8)
    cropper.gains['a'] = alignment_search.FAR_GAIN + more
    line = cropper.far([dict(image='a', source='a.png')])['a.png']
    gain, usual = (line.partition(word)[2].split()[0] for word in ('by ', 'up to '))
    assert float(gain) > float(usual) == alignment_search.FAR_GAIN and told in (None, gain)


def test_every_class_has_its_own_codes(tmp_path: Path) -> None:
    """The check encodes an image's crops with its own label."""
    G = make_generator(c_dim=2)
    full = torch.randint(256, [3, 32, 32], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    base = placement.centre_crop((32, 32), RESOLUTION)
    judges = [alignment_search.Judge(G, full, base, torch.eye(2)[[k]], 4) for k in (0, 1)]
    values = [judge([alignment_search.Motion()] * 6) for judge in judges]
    assert np.ptp(values[0]) < 1e-4 and abs(values[0][0] - values[1][0]) > 1e-3


@pytest.mark.parametrize('args, complaint', [
    (['--align=none.json'], "--align=none.json: no such file; it may be 'detect'"),
    (['--align=detect'], '--align=detect: OpenCV is missing'),
])
def test_bad_calls(
    folder: Path, network: str, args: list[str], complaint: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, 'cv2', None)
    assert invert(folder, network, *args, code=2) is None
    assert re.search(complaint, capsys.readouterr().err) and not (folder / 'out').exists()


def test_networks_without_an_encoder_cannot_search_and_check_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage1 = save_pickle(tmp_path / 'stage1.pkl', make_generator(encoder=False))
    assert invert(folder, stage1, '--refine=1', '--align=search', code=2) is None
    assert '--align=search: needs a network with an encoder' in capsys.readouterr().err
    assert invert(folder, stage1, '--refine=1')['far_from_alignment'] == []
