"""What editing commands write on a GPU is what they write on the CPU: codes to rounding, pictures to a grey level.

Skipped without CUDA. LIA_TEST_DEVICE names another device; with `cpu` the tests test themselves.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_device import DEVICE, float32_is_float32  # noqa: F401  A fixture of every test here.
from test_lia_plugin_inversion import make_generator, save_pickle, save_pictures

from lia_plugin import cli, images

pytestmark = pytest.mark.skipif(not DEVICE, reason='no CUDA device; LIA_TEST_DEVICE names another one')

COMMANDS = {
    'interpolate': ['edit_interpolate', 'IMAGES', '3', '--space=z', '--space=y', '--steps=3', '--path=cubic'],
    'mix': ['edit_mix', '--rows=IMAGES', '--cols=4', '--styles=0-1'],
    'variations': ['edit_variations', 'IMAGES', '--rho=0.7', '--num=3', '--resample=0.5'],
    'sefa': ['edit_directions', '--method=sefa', '--count=2', '--space=z', '--show=3'],
    'pca': ['edit_directions', '--method=pca', '--count=2', '--samples=50', '--show=3'],
    'retarget': ['edit_retarget', 'IMAGES', '--before=1', '--after=2', '--strength=0.5'],
    'generate': ['generate', '--seeds=0-3', '--trunc=0.7', '--trunc-space=y', '--save-latents', '--noise-mode=random'],
    'invert': ['invert', '--target=IMAGES', '--lpips=none', '--refine=3', '--refine-optimizer=adam'],
}


@pytest.fixture(scope='module')
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pickle(tmp_path_factory.mktemp('network') / 'lia.pkl', make_generator())


def results(folder: Path) -> dict[str, Any]:
    """File's name -> numbers of it: arrays of .npz files, pixels of pictures."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob('*')):
        if path.suffix == '.npz':
            with np.load(path) as file:
                found |= {f'{path.name}:{key}': file[key] for key in file if file[key].dtype.kind == 'f'}
        elif path.suffix == '.png':
            found[path.name] = images.read_image(path).pixels.int()
    return found


def assert_alike(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert (got[key] - value).abs().max() <= 1, key
        else:
            np.testing.assert_allclose(got[key], value, rtol=1e-3, atol=1e-3, err_msg=key)


@pytest.mark.parametrize('name', COMMANDS)
def test_commands_write_what_they_write_on_the_cpu(name: str, network: str, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 2)
    written = []
    for device in (DEVICE, 'cpu'):
        command, *args = [word.replace('IMAGES', str(folder)) for word in COMMANDS[name]]
        out = tmp_path / f'{len(written)}'
        where = [f'--network={network}', f'--device={device}', f'--outdir={out}']
        assert cli.run(cli.load_command(command), [*args, *where]) == 0
        written.append(results(out))
    assert written[0] and written[0].keys() == written[1].keys()
    assert_alike(*written)


def test_manipulation_stops_at_the_same_places(network: str, tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / 'in', 2)
    made = cli.load_command('edit_directions')
    assert cli.run(made, ['--method=pca', '--count=2', '--samples=50', '--show=3', '--device=cpu',
                          f'--network={network}', f'--outdir={tmp_path / "d"}']) == 0
    written = []
    for device in (DEVICE, 'cpu'):
        out = tmp_path / f'{len(written)}'
        args = [str(folder), f'--direction={tmp_path / "d" / "directions.npz"}:pc0', '--stay-typical=0.2', '--steps=5',
                f'--conditions={tmp_path / "d" / "directions.npz"}:pc1', f'--device={device}']
        command = cli.load_command('edit_manipulate')
        assert cli.run(command, [*args, f'--network={network}', f'--outdir={out}']) == 0
        written.append(results(out))
    assert_alike(*written)
