"""The benchmarks: iteration.py's arithmetic in closed form, and one small run of each as a whole."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from lia_plugin import encoder_start
from lia_plugin.host import save_network_pkl
from lia_plugin.networks import Generator
from lia_plugin.options import Options
from training.networks import Discriminator

SCRIPT = pathlib.Path(__file__).parents[1] / 'benchmarks' / 'iteration.py'
sys.path.insert(0, str(SCRIPT.parent))  # As for a script of that folder.


@pytest.fixture(scope='module')
def iteration() -> ModuleType:
    return load(SCRIPT)


def load(script: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'benchmarks_{script.stem}', script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rounds(*factors: float) -> list[dict[str, list[float]]]:
    """One round for each factor, by which the original is slower; pieces take 4, 8, 12, 16 and 2 seconds."""
    pieces = {'Gmain': 4.0, 'Greg': 8.0, 'Dmain': 12.0, 'Dreg': 16.0, 'update': 2.0}
    return [{name: [seconds, seconds * factor] for name, seconds in pieces.items()} for factor in factors]


def test_an_iteration_counts_lazy_regularisation_by_its_intervals(iteration: ModuleType) -> None:
    (result,) = iteration.with_iteration(rounds(3))
    assert result['iteration'] == [4 + 8 / 4 + 12 + 16 / 16 + 2, 63]


def test_table_has_medians_and_ratios_within_rounds(iteration: ModuleType) -> None:
    lines = iteration.table(iteration.with_iteration(rounds(2, 3, 100)), batch=42)
    cells = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]] for line in lines}
    assert cells['Gmain'] == ['4000.0', '12000.0', '3.00', '2.50–51.50']
    assert cells['images per second'][:2] == ['2.0', '0.7']
    assert len({line.count('|') for line in lines}) == 1


def test_work_that_only_this_project_does_has_no_ratio(iteration: ModuleType) -> None:
    results = [dict(r, encoder=[1.0]) for r in rounds(2)]
    line = next(line for line in iteration.table(iteration.with_iteration(results), 1) if 'encoder' in line)
    assert line == '| encoder | 1000.0 | – | – | – |'


def test_a_run_prints_a_table() -> None:
    env = dict(os.environ, OMP_NUM_THREADS='1')
    command = [sys.executable, str(SCRIPT), '--size=S', '--device=cpu', '--rounds=1']
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    rows = [line.split('|')[1].strip() for line in run.stdout.splitlines() if line.startswith('|')]
    assert rows[2:] == ['G eval', 'D forward', 'Gmain', 'Greg', 'Dmain', 'Dreg', 'update', 'encoder step', 'iteration',
                        'images per second']


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, str(SCRIPT), f'--host={tmp_path}']
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and 'no checkout of stylegan2-ada-pytorch' in run.stderr


def test_alias_free_networks_are_compared_with_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load(SCRIPT.with_name('stylegan3.py'))
    small = dict(img_resolution=16, channel_base=64, channel_max=4, num_layers=4)
    monkeypatch.setattr(script, 'OPTIONS', {'small': small})
    monkeypatch.setattr(script, 'SPEEDS', {'small, batch 2': (2, small)})
    run = CliRunner().invoke(script.main, [f'--host={SCRIPT.parents[1]}', '--rounds=2'])
    assert run.exit_code == 0, run.output
    rows = [line for line in run.output.splitlines() if line.startswith('| small')]
    assert rows[0] == '| small | 0.0e+00 | 0.0e+00 | 0.0e+00 |' and rows[1].startswith('| small, batch 2 | ')
    assert CliRunner().invoke(script.main, [f'--host={SCRIPT.parent}']).exit_code == 2


@pytest.fixture
def stage1_and_data(tmp_path: pathlib.Path) -> tuple[str, str]:
    """A tiny network of stage 1 and 20 grey pictures."""
    torch.manual_seed(0)
    widths: dict[str, int] = dict(channel_base=64, channel_max=8)
    image: dict[str, int] = dict(c_dim=0, img_resolution=16, img_channels=1)
    G = Generator(z_dim=8, w_dim=8, synthesis_kwargs=widths, **image).eval().requires_grad_(False)
    D = Discriminator(epilogue_kwargs=dict(mbstd_group_size=2), **widths, **image).eval().requires_grad_(False)
    network = str(tmp_path / 'stage1.pkl')
    save_network_pkl(network, dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None))
    stream = np.random.default_rng(0)
    (tmp_path / 'data').mkdir()
    for i in range(20):
        picture = PIL.Image.fromarray(stream.integers(0, 255, [16, 16], dtype=np.uint8))
        picture.save(tmp_path / 'data' / f'{i:02d}.png')
    return network, str(tmp_path / 'data')


def test_recipes_are_trained_for_their_time_and_judged(
    stage1_and_data: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    script = load(SCRIPT.with_name('recipes.py'))
    monkeypatch.setattr(encoder_start, 'START_IMAGES', 32)
    names = ['default', 'y+']
    network, data = stage1_and_data
    args = [f'--network={network}', f'--data={data}', '--seconds=4', '--batch=4', '--num=2']
    args.append(f'--out={tmp_path / "t.md"}')
    monkeypatch.setattr(sys, 'argv', ['recipes.py', *args, f'--recipes={",".join(names)}'])
    script.main()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in (tmp_path / 't.md').read_text().splitlines()]
    assert [row[0] for row in rows[2:]] == names
    assert all(float(row[1]) > 0 and 0 < float(row[2]) < 4 and float(row[4]) > 0 for row in rows[2:])
    assert [bool(row[3]) for row in rows[2:]] == [name == 'y+' for name in names], 'y+ alone has a base code of its own'


def test_every_recipe_changes_options_that_there_are() -> None:
    recipes = load(SCRIPT.with_name('recipes.py')).RECIPES
    assert not any(',' in name for name in recipes), '--recipes takes names with commas between them'
    fields = {f.name for f in dataclasses.fields(Options)} | {'scale_lr', 'betas'}
    assert all(set(changes) <= fields for changes in recipes.values())
