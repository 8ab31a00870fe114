"""The Python API: kinds in are kinds out, all kinds give the same numbers, the commands' numbers, and bad inputs."""

import doctest
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_lia_plugin_inversion import RESOLUTION, make_generator, run, save_pickle, save_pictures
from test_lia_plugin_refinement import make_stock

import lia_plugin
from lia_plugin import codes, images, memory
from lia_plugin.api import Lia
from lia_plugin.api_images import give_images, read_images

R = RESOLUTION


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp('in'), 3)


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', make_generator())


@pytest.fixture
def lia(network: str) -> Lia:
    return lia_plugin.load(network, device='cpu', batch=2)


def test_auto_takes_as_many_as_fit(network: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lia, two = (lia_plugin.load(network, device='cpu', batch=batch) for batch in ('auto', 2))
    costs: list[int] = []

    def batch_size(device: torch.device, work: Any) -> int:
        costs.append(memory.peak_bytes(work, device))
        return 2

    monkeypatch.setattr(memory, 'batch_size', batch_size)
    one = str(sorted(folder.iterdir())[0])
    lia.reconstruct(one)
    assert not costs, 'one image is one image'
    for method, settings in (('reconstruct', {}), ('refine', dict(steps=2)), ('generate', {})):
        given = [0, 1, 2] if method == 'generate' else str(folder)
        found, expected = (getattr(net, method)(given, **settings) for net in (lia, two))
        one, other = (each.y if method == 'refine' else np.stack(each) for each in (found, expected))
        np.testing.assert_array_equal(one, other)
    assert len(costs) >= 3 and max(costs) > 1.5 * min(costs), 'a refinement is measured with its gradients'
    lia.batch = 1
    lia.generate([0, 1])
    for wrong in (0, 'all', 1.5, True):
        with pytest.raises(ValueError, match='batch: expected'):
            lia.batch = wrong  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        yield


def pixels(folder: Path) -> np.ndarray:
    """uint8 [3, H, W, 3]"""
    return np.stack([np.array(PIL.Image.open(path)) for path in sorted(folder.iterdir())])


def kinds(folder: Path) -> dict[str, Any]:
    """The same three images, in every kind that comes in."""
    array = pixels(folder)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    paths = sorted(folder.iterdir())
    return {
        'folder': folder, 'paths': paths, 'names': [str(path) for path in paths], 'pattern': str(folder / '*.png'),
        'pil': [PIL.Image.fromarray(one) for one in array], 'numpy': array, 'arrays': list(array),
        'torch': tensor, 'floats': images.to_float(tensor), 'tensors': list(images.to_float(tensor)),
    }  # fmt: skip


KINDS = ('folder', 'paths', 'names', 'pattern', 'pil', 'numpy', 'arrays', 'torch', 'floats', 'tensors')


def check_kind(kind: str, made: Any, lead: tuple[int, ...], channels: int = 3) -> None:
    """Whether pictures are of the kind that came in, laid out as `lead`."""
    if kind in ('numpy', 'arrays'):
        assert isinstance(made, np.ndarray) and made.dtype == np.uint8 and made.shape == (*lead, R, R, channels)
    elif kind in ('torch', 'floats', 'tensors'):
        assert isinstance(made, torch.Tensor) and tuple(made.shape) == (*lead, channels, R, R)
        assert made.dtype == (torch.uint8 if kind == 'torch' else torch.float32)
    else:
        for size in lead:
            assert isinstance(made, list) and len(made) == size
            made = made[0]
        assert isinstance(made, PIL.Image.Image) and made.size == (R, R)
        assert made.mode == ('RGB' if channels == 3 else 'L')


def as_pixels(made: Any) -> np.ndarray:
    """Pictures of any kind -> uint8 [..., H, W, C]."""
    if isinstance(made, torch.Tensor):
        made = (made if made.dtype == torch.uint8 else images.to_uint8(made)).movedim(-3, -1).numpy()
    return np.asarray([as_pixels(one) for one in made] if isinstance(made, list) else made)


# Kinds


@pytest.mark.parametrize('kind', KINDS)
def test_all_kinds_give_the_same_and_their_own(lia: Lia, folder: Path, kind: str) -> None:
    given = kinds(folder)[kind]
    expected = lia.G.invert(images.to_float(torch.from_numpy(pixels(folder)).permute(0, 3, 1, 2)))
    y, z = lia.invert(given)
    array = torch.Tensor if kind in ('torch', 'floats', 'tensors') else np.ndarray
    assert isinstance(y, array) and isinstance(z, array) and isinstance(lia.encode(given), array)
    np.testing.assert_allclose(y, expected.y, atol=1e-5)
    np.testing.assert_allclose(z, expected.z, atol=1e-5)
    np.testing.assert_array_equal(lia.encode(given), y)
    made = {
        'reconstruct': (lia.reconstruct(given), (3,)),
        'decode': (lia.decode(lia.invert(given)), (3,)),
        'interpolate': (lia.interpolate(given, steps=2), (5,)),
        'mix': (lia.mix(given, given, [0, 1]), (3, 3)),
        'variations': (lia.variations(given, num=2), (3, 2)),
    }
    reference = {name: as_pixels(getattr(lia, name)(*args)) for name, args in {
        'reconstruct': [folder], 'decode': [lia.invert(folder)]}.items()}  # fmt: skip
    for name, (pictures, lead) in made.items():
        check_kind(kind, pictures, lead)
        if name in reference:
            np.testing.assert_array_equal(as_pixels(pictures), reference[name], err_msg=name)
    for out, same_as in (('pil', 'pil'), ('numpy', 'numpy'), ('torch', 'floats')):
        chosen = lia.reconstruct(given, out=out)
        check_kind(kind if out in kind else same_as, chosen, (3,))
        np.testing.assert_array_equal(as_pixels(chosen), reference['reconstruct'])


@pytest.mark.parametrize('kind', ('paths', 'pil', 'numpy', 'torch', 'floats'))
def test_one_image_in_is_one_image_out(lia: Lia, folder: Path, kind: str) -> None:
    several = kinds(folder)[kind]
    one = several[1]
    found = lia.invert(one)
    assert found.y.shape == found.z.shape == (1, 16), 'latents keep the batch'
    np.testing.assert_allclose(found.y, lia.invert(several).y[1:2], atol=1e-5)
    for name, made, lead in (
        ('reconstruct', lia.reconstruct(one), ()), ('decode', lia.decode(found), ()),
        ('mix', lia.mix(one, one, [0]), ()), ('mix one', lia.mix(one, several, [0]), (3,)),
        ('variations', lia.variations(one, num=2), (2,)), ('interpolate', lia.interpolate(one, one, steps=3), (4,)),
        ('list', lia.reconstruct([one]), (1,)), ('batch', lia.reconstruct(several[:1]), (1,)),
        ('refine', lia.decode(lia.refine(one, steps=1)), ()),
    ):  # fmt: skip
        check_kind(kind, made, lead)
        if name in ('reconstruct', 'decode', 'mix'):
            np.testing.assert_array_equal(as_pixels(made), as_pixels(lia.reconstruct(several))[1], err_msg=name)


def test_floats_go_out_in_the_range_that_is_stated(lia: Lia, folder: Path) -> None:
    array = pixels(folder)
    expected = lia.reconstruct(kinds(folder)['floats'])
    with pytest.raises(ValueError, match=r'NumPy floats, here 0 … .*no agreed range.*value_range = \(0, 1\)'):
        lia.reconstruct(array / np.float32(255))
    with pytest.raises(ValueError, match='taken to be in .-1, 1., but these, 0 … .*have none below 0'):
        lia.reconstruct(torch.from_numpy(array).movedim(3, 1) / 255)
    for high in (1, 255):
        lia.value_range = (0, high)
        made = lia.reconstruct(array / np.float64(255) * high)
        assert made.dtype == np.float32 and made.shape == array.shape
        np.testing.assert_allclose(made / high * 2 - 1, expected.movedim(1, 3), atol=1e-5)
        tensor = lia.reconstruct(torch.from_numpy(array).movedim(3, 1) / 255 * high)
        np.testing.assert_allclose(tensor / high * 2 - 1, expected, atol=1e-5)
        with pytest.raises(ValueError, match=rf'floats in \[0, {high}\], got -1'):
            lia.reconstruct(kinds(folder)['floats'])
    with pytest.raises(ValueError, match='value_range: expected'):
        lia.value_range = (1, 0)


def test_floats_are_not_rounded(lia: Lia) -> None:
    img = torch.rand([2, 3, R, R]) * 2 - 1
    torch.testing.assert_close(lia.encode(img), lia.G.encode(img))
    torch.testing.assert_close(lia.reconstruct(img), lia.G.decode(lia.G.encode(img)).clamp(-1, 1), atol=1e-5, rtol=0)


def test_other_sizes_modes_and_channels_are_fitted_with_a_note(lia: Lia, tmp_path: Path) -> None:
    wide = np.random.RandomState(0).randint(0, 255, [R * 2, R * 3, 4], dtype=np.uint8)
    PIL.Image.fromarray(wide).save(tmp_path / 'wide.png')
    expected = images.read_image(tmp_path / 'wide.png', R, 3)
    for given in (wide, PIL.Image.fromarray(wide), str(tmp_path / 'wide.png')):
        with pytest.warns(UserWarning, match=f'transparency.*centre {R * 2}x{R * 2} cut.*resized') as told:
            found = lia.invert(given)
        assert told[0].filename == __file__, 'the caller is who is told'
        assert found.notes == (expected.notes,)
        assert found.placements[0].size == (R * 3, R * 2)
        np.testing.assert_allclose(found.y, lia.G.encode(images.to_float(expected.pixels)[None]), atol=1e-5)
    grey = wide[:R, :R, 0]
    for one in (grey, grey[:, :, None], PIL.Image.fromarray(grey), torch.from_numpy(grey)[None].float() / 127.5 - 1):
        with pytest.warns(UserWarning, match='grey turned into RGB'):
            assert as_pixels(lia.reconstruct(one)).shape == (R, R, 3)


def test_grey_networks(tmp_path: Path) -> None:
    lia = Lia(dict(G_ema=make_generator(channels=1)), 'grey.pkl', torch.device('cpu'))
    grey = np.random.RandomState(0).randint(0, 255, [R, R], dtype=np.uint8)
    assert lia.reconstruct(grey).shape == (R, R) and lia.reconstruct(grey[:, :, None]).shape == (R, R, 1)
    assert lia.reconstruct(torch.from_numpy(grey)[None]).shape == (1, R, R)
    picture = lia.reconstruct(PIL.Image.fromarray(grey))
    assert picture.mode == 'L' and np.array_equal(picture, lia.reconstruct(grey))
    assert lia.generate(3).mode == 'L'


# The commands' numbers


def test_the_same_as_the_command(network: str, folder: Path, lia: Lia, tmp_path: Path) -> None:
    assert run('--network', network, '--target', str(folder), '--outdir', str(tmp_path), '--lpips=none') == 0
    told = json.loads((tmp_path / 'results.json').read_text())
    found = lia.invert(folder)
    with np.load(tmp_path / 'latents.npz') as stored:
        np.testing.assert_allclose(found.y, stored['y'], atol=1e-5)
        np.testing.assert_allclose(found.z, stored['z'], atol=1e-5)
        assert found.names == tuple(stored['names'])
    for i, row in enumerate(told['images']):
        for name in ('mse', 'psnr', 'ssim', 'z_norm2', 'log_prob', 'typicality'):
            assert found.figures[name][i] == pytest.approx(row[name], rel=1e-3, abs=1e-12)
        recon = np.asarray(PIL.Image.open(tmp_path / f'picture{i}_recon.png'))
        assert np.abs(recon.astype(int) - lia.reconstruct(folder, out='numpy')[i]).max() <= 1
    again = lia.decode(str(tmp_path / 'latents.npz'), out='numpy')
    assert np.abs(again.astype(int) - lia.reconstruct(folder, out='numpy')).max() <= 1
    lia.save(tmp_path / 'mine.npz', found)
    np.testing.assert_array_equal(codes.file_codes(lia.G, str(tmp_path / 'mine.npz')).code, found.y)


def test_refine_is_the_command(network: str, folder: Path, lia: Lia, tmp_path: Path) -> None:
    args = ('--refine=4', '--space=y+', '--prior-weight=0.01', '--percep=none', '--lpips=none', '--batch=2')
    assert run('--network', network, '--target', str(folder), '--outdir', str(tmp_path), *args) == 0
    found = lia.refine(folder, 4, 'y+', prior_weight=0.01, percep='none')
    with np.load(tmp_path / 'latents.npz') as stored:
        np.testing.assert_allclose(found.y_plus, stored['y_plus'], atol=1e-4)
    assert (found.figures['mse'] < found.figures['start_mse']).all()
    assert lia.decode(found.pick(2)).size == (R, R)
    np.testing.assert_array_equal(found.pick(2, 0).y, found.y[[2, 0]])


def test_typicality_is_that_of_the_prior(lia: Lia) -> None:
    from scipy.stats import chi2

    z = np.random.RandomState(0).randn(4, 16).astype(np.float32)
    y = lia.to_y(z)
    np.testing.assert_allclose(lia.to_z(y), z, atol=1e-4)
    found = lia.typicality(y)
    square = (z.astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(found.z_norm2, square, rtol=1e-4)
    np.testing.assert_allclose(found.p, 2 * np.minimum(chi2.cdf(square, 16), chi2.sf(square, 16)), rtol=1e-3)
    phi = lia.G.mapping.y_to_z
    jacobian = torch.autograd.functional.jacobian(lambda one: phi(one[None])[0], torch.from_numpy(y[0]))
    log_p = -square[0] / 2 - 8 * np.log(2 * np.pi) + float(torch.linalg.slogdet(jacobian.double())[1])
    assert found.log_p[0] == pytest.approx(log_p, abs=1e-3)


def test_seeds_are_those_of_generate(lia: Lia) -> None:
    z = codes.seeds_to_z([3, 5], 16)
    expected = lia.G(z, None, truncation_psi=0.7, noise_mode='const').clamp(-1, 1)
    torch.testing.assert_close(lia.generate([3, 5], psi=0.7, out='torch'), expected)
    torch.testing.assert_close(lia.generate(5, psi=0.7, out='torch'), expected[1])
    np.testing.assert_array_equal(as_pixels(lia.generate('3,5')), as_pixels(lia.generate((3, 5))))


# Edits


@pytest.mark.parametrize('space', ['z', 'y', 'y+'])
@pytest.mark.parametrize('path', ['linear', 'cubic'])
def test_paths_end_in_the_reconstructions(lia: Lia, folder: Path, space: str, path: str) -> None:
    made = lia.interpolate(folder, 7, steps=3, space=space, path=path, out='numpy')
    assert len(made) == 10
    np.testing.assert_array_equal(made[:9:3], lia.reconstruct(folder, out='numpy'))
    np.testing.assert_array_equal(made[9], lia.generate(7, out='numpy'))
    assert len(lia.interpolate(folder, space=space, path=path, steps=2, loop=True)) == 6


def test_paths_as_latents(lia: Lia) -> None:
    y = lia.interpolate(1, 2, steps=4, space='y', out='latents').y
    np.testing.assert_allclose(y[2], (y[0] + y[4]) / 2, atol=1e-5)
    z = lia.interpolate(1, 2, steps=4, space='z', out='latents').z
    norms = np.linalg.norm(z, axis=1)
    np.testing.assert_allclose(norms, np.linspace(norms[0], norms[4], 5), rtol=1e-4)


def test_mixing_takes_layers(lia: Lia, folder: Path) -> None:
    a, b = lia.encode(folder)[:2]
    mixed = lia.mix(a[None], b[None], [2, 5], out='latents').y_plus[0]
    for layer in range(lia.num_ws):
        np.testing.assert_array_equal(mixed[layer], b if layer in (2, 5) else a)


def test_variations_keep_what_rho_says(lia: Lia) -> None:
    y = lia.encode(np.zeros([R, R, 3], np.uint8))
    same = lia.variations(y, num=2, rho=1.0, out='latents')
    np.testing.assert_allclose(same.y, np.repeat(y, 2, axis=0), atol=1e-4)
    anew = lia.variations(y, num=500, rho=0.0, out='latents').z
    assert anew.std() == pytest.approx(1, abs=0.05) and abs(anew.mean()) < 0.05
    first, again, other = (lia.variations(y, num=1, seed=seed, out='latents').z for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_an_unchanged_crop_pasted_back_changes_nothing(lia: Lia, tmp_path: Path) -> None:
    full = np.random.RandomState(0).randint(0, 255, [40, 64, 3], dtype=np.uint8)
    with pytest.warns(UserWarning, match='resized'):
        found = lia.invert(full)
        edited = lia.reconstruct(full)
    same = lia.paste(edited, full, base=edited)
    np.testing.assert_array_equal(same, full)
    filled = lia.paste(edited, full, found.placements[0])
    np.testing.assert_array_equal(filled, lia.paste(edited, full))
    assert filled.shape == full.shape and np.array_equal(filled[:, :12], full[:, :12])
    assert (filled[20, 20:40] != full[20, 20:40]).any()
    picture = lia.paste(edited, PIL.Image.fromarray(full))
    assert isinstance(picture, PIL.Image.Image) and np.array_equal(picture, filled)
    with pytest.raises(ValueError, match='expected uint8'):
        lia.paste(full, full)


def test_truncation_and_noise(lia: Lia, folder: Path) -> None:
    mean = lia.decode(lia.invert(folder), psi=0, out='numpy')
    np.testing.assert_array_equal(mean[0], mean[2])
    np.testing.assert_array_equal(mean[0], lia.decode(lia.G.mapping.w_avg.numpy()[None])[0])


# Classes, stage 1, stock networks


def test_classes(tmp_path: Path, folder: Path) -> None:
    G = make_generator(c_dim=2)
    lia = Lia(dict(G_ema=G), 'classes.pkl', torch.device('cpu'))
    c = torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    img = kinds(folder)['floats']
    for given in ([0, 1, 1], np.array([0, 1, 1]), c, c.numpy()):
        found = lia.invert(img, c=given)
        torch.testing.assert_close(found.y, G.encode(img, c))
        torch.testing.assert_close(found.z, G.mapping.y_to_z(found.y, c))
        assert torch.equal(found.c, c)
    torch.testing.assert_close(lia.to_y(lia.to_z(found.y, c=c), c=c), found.y, atol=1e-4, rtol=0)
    assert lia.variations(found, num=2).shape == (3, 2, 3, R, R)
    assert lia.interpolate(found, steps=2, space='z', out='latents').c.shape == (5, 2)
    pictures = [np.asarray(lia.generate(3, c=one)) for one in (0, 1)]
    assert not np.array_equal(*pictures)
    labels = {'labels': [[f'picture{i}.png', int(c[i, 1])] for i in range(3)]}
    for path in sorted(folder.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / 'dataset.json').write_text(json.dumps(labels))
    np.testing.assert_allclose(lia.invert(tmp_path).z, found.z, atol=1e-5)
    for wrong, complaint in ((None, 'needs the class'), (2, 'got 2'), ([0, 1], r'got \[0, 1\]'), ('x', 'got str'),
                             (np.zeros([3, 5]), r'got \[3, 5\]')):  # fmt: skip
        with pytest.raises(ValueError, match=f'^c: .*{complaint}'):
            lia.invert(img, c=wrong)


def test_stock_networks_and_stage_1(folder: Path) -> None:
    stock = Lia(dict(G_ema=make_stock()), 'stock.pkl', torch.device('cpu'))
    assert 'stock StyleGAN' in repr(stock) and 'no encoder' in repr(stock)
    image = np.random.RandomState(0).randint(0, 255, [stock.resolution, stock.resolution, 3], dtype=np.uint8)
    found = stock.refine(image, 2)
    assert found.y.shape == (1, stock.dim) and found.z is None and found.y_plus is None
    assert stock.refine(image, 1, 'y+').y_plus.shape == (1, stock.num_ws, stock.dim)
    assert stock.decode(found).shape == image.shape
    assert stock.interpolate(found, 3, steps=2).shape == (3, *image.shape)
    with pytest.raises(ValueError, match='no encoder; lia.refine'):
        stock.invert(image)
    for call in (lambda: stock.typicality(3), lambda: stock.variations(3), lambda: stock.to_z(found.y)):
        with pytest.raises(ValueError, match='stock.pkl is no LIA network'):
            call()
    with pytest.raises(ValueError, match='space: z needs φ'):
        stock.interpolate(1, 2, space='z')
    first = Lia(dict(G_ema=make_generator(encoder=False)), 'stage1.pkl', torch.device('cpu'))
    with pytest.raises(ValueError, match='stage1.pkl: comes from stage 1 and has no encoder'):
        first.reconstruct(folder)
    assert first.typicality([1, 2]).p.shape == (2,)
    with pytest.raises(ValueError, match=rf'code: expected .N, {stock.dim}.'):
        stock.decode(first.interpolate(1, 2, out='latents'))


# Bad inputs


@pytest.mark.parametrize('bad, complaint', [
    (np.zeros([3, R, R], np.uint8), r'channels \(1, 3 or 4\) last, got \[3, 16, 16\]'),
    (np.zeros([R, R, 3], np.int64), 'expected uint8 .* or floats, got int64'),
    (np.zeros([R, R, 3], bool), 'got bool'),
    (np.zeros([R, 20]), r'\[H, W, 1\], got \[16, 20\]'),
    (np.zeros([0, R, R, 3], np.uint8), r'got \[0, 16, 16, 3\]'),
    (torch.zeros([R, R, 3]), r'\[C, H, W\] .* got \[16, 16, 3\]'),
    (torch.zeros([R, 20]), r'got \[16, 20\]'),
    (torch.full([3, R, R], float('nan')), 'not finite'),
    (torch.full([3, R, R], -3.0), r'floats in \[-1, 1\], got -3'),
    (torch.zeros([3, R, R], dtype=torch.int32), 'got torch.int32'),
    ([], 'at least one, got none'),
    ([np.zeros([2, R, R, 3], np.uint8)], 'item 0 is several'),
    (3.5, 'got float'),
    (None, 'got NoneType'),
    ('missing.png', 'missing.png: no such file'),
])  # fmt: skip
def test_what_is_no_image_is_named(lia: Lia, bad: Any, complaint: str) -> None:
    for method in (lia.invert, lia.encode, lia.reconstruct, lia.variations):
        with pytest.raises(ValueError, match=complaint):
            method(bad)


@pytest.mark.parametrize('bad, complaint', [
    (np.zeros([3, 5], np.float32), r'expected floats \[N, 16\] or \[N, 6, 16\], got float32 \[3, 5\]'),
    (np.zeros([16], np.float32), r'got float32 \[16\]'),
    (np.zeros([2, 16], np.int64), 'got int64'),
    (np.full([1, 16], np.inf), 'not finite'),
    ('y', 'got str'),
])  # fmt: skip
def test_what_is_no_code_is_named(lia: Lia, bad: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        lia.to_z(bad)


def test_settings_that_cannot_be(lia: Lia, network: str, tmp_path: Path) -> None:
    for call, complaint in (
        (lambda: lia.reconstruct(np.zeros([R, R, 3], np.uint8), out='jpeg'), "out: expected .* got 'jpeg'"),
        (lambda: lia.interpolate(3), 'two images at least, got 1'),
        (lambda: lia.interpolate(), 'got 0'),
        (lambda: lia.interpolate(1, 2, space='w'), "space: .* got 'w'"),
        (lambda: lia.interpolate(1, 2, path='wavy'), "kind is linear or cubic, got 'wavy'"),
        (lambda: lia.variations(1, num=0), 'num: expected a whole number from 1 on, got 0'),
        (lambda: lia.variations(1, rho=2), 'rho: expected 0 to 1, got 2'),
        (lambda: lia.mix(1, 2, [9]), 'layers: expected some of 0 to 5'),
        (lambda: lia.generate(-1), 'seeds: expected'),
        (lambda: lia.generate(1.5), 'seeds: expected whole numbers, .* got 1.5'),
        (lambda: lia.generate('a.png'), "seeds: .* got 'a.png'"),
        (lambda: lia.generate([]), 'seeds: expected'),
        (lambda: lia.refine(np.zeros([R, R, 3], np.uint8), steps=-1), 'steps'),
        (lambda: lia.refine(np.zeros([R, R, 3], np.uint8), space='x'), "space: .* got 'x'"),
        (lambda: lia.refine(np.zeros([R, R, 3], np.uint8), percep='eyes'), 'eyes'),
        (lambda: lia_plugin.load(network, device='cpu', batch=0), 'batch: expected a whole number from 1 on, got 0'),
        (lambda: lia_plugin.load(network, device='cpu', noise_mode='loud'), "'loud'"),
        (lambda: lia_plugin.load(str(tmp_path / 'none.pkl')), 'none.pkl'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=complaint):
            call()


# Around it


def test_the_examples_are_true(lia: Lia, folder: Path) -> None:
    photo = PIL.Image.open(folder / 'picture0.png')
    (example,) = [one for one in doctest.DocTestFinder().find(Lia, globs=dict(lia=lia, photo=photo)) if one.examples]
    assert doctest.DocTestRunner().run(example).failed == 0
    photo.close()


def test_show_and_save_video(lia: Lia, folder: Path, tmp_path: Path) -> None:
    rows = lia.mix(folder, [7], [0])
    for given in (rows, lia.mix(folder, [7], [0], out='numpy'), lia.mix(folder, [7], [0], out='torch')):
        made = lia_plugin.show(given, captions=['a'], rows=['x', 'y', 'z'])
        assert made._repr_png_()[:4] == b'\x89PNG'
        assert np.array_equal(made.image, lia_plugin.show(rows, ['a'], ['x', 'y', 'z']).image)
    assert lia_plugin.show(lia.generate(7)).image.height == 128
    made.save(tmp_path / 'sheet.png')
    assert PIL.Image.open(tmp_path / 'sheet.png').size == made.image.size
    frames = lia.interpolate(1, 2, steps=4, out='numpy')
    lia_plugin.save_video(tmp_path / 'a.gif', frames, fps=10)
    assert PIL.Image.open(tmp_path / 'a.gif').n_frames == 5
    for call, complaint in ((lambda: lia_plugin.show([]), 'got none'), (lambda: lia_plugin.show([3]), 'got int'),
                            (lambda: lia_plugin.show(frames, captions='ab'), 'captions: expected 5, got 2')):
        with pytest.raises(ValueError, match=complaint):
            call()


def modules_after(code: str) -> set[str]:
    """Packages beyond Python's own that a fresh interpreter has loaded; whatever opens a connection fails."""
    cut_off = 'import socket, sys\nold = set(sys.modules)\nsocket.socket.connect = None\n'
    told = "\nprint(*{name.split('.')[0] for name in set(sys.modules) - old} - set(sys.stdlib_module_names))"
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, '-c', cut_off + code + told], check=True, capture_output=True, env=env)
    return set(done.stdout.decode().split())


def test_importing_the_package_is_light() -> None:
    assert modules_after("import lia_plugin; assert {'load', 'show', 'save_video'} <= set(dir(lia_plugin))") == {
        'lia_plugin'}  # fmt: skip
    loaded = modules_after('import lia_plugin; lia_plugin.load, lia_plugin.show')
    assert 'torch' in loaded
    heavy = {'sklearn', 'scipy', 'matplotlib', 'imageio', 'imageio_ffmpeg', 'metrics', 'training', 'requests', 'pytest'}
    assert not loaded & heavy, 'what single methods need, they import'
    with pytest.raises(AttributeError, match='lia_plugin'):
        lia_plugin.nothing  # noqa: B018


def test_out_is_in_again(folder: Path) -> None:
    """Reading undoes giving, in every form."""
    stored = torch.from_numpy(pixels(folder)).permute(0, 3, 1, 2)
    for kind in KINDS:
        given = read_images(kinds(folder)[kind], R, 3)
        img = given.img if given.form.floats else stored
        again = read_images(give_images(img, given.form, (3,)), R, 3)
        assert torch.equal(again.img, images.to_float(stored)) and not again.single
