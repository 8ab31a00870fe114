"""The demo: its page on a tiny random network, its formulas, and that it goes on where it stopped."""

import base64
import importlib
import io
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import PIL.Image
import pytest
import torch

import dnnlib
from lia_plugin import run_dir
from lia_plugin.networks import Generator
from torch_utils import network_pickle

DEMO = Path(__file__).resolve().parents[1] / 'demo'
SIDE, DIM = 16, 8
TONES = ('light', 'dark')


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module(name)


@pytest.fixture
def exhibits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load('exhibits', monkeypatch)


@pytest.fixture
def exhibition(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load('exhibition', monkeypatch)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load('demo', monkeypatch)


def tiny_network() -> Generator:
    torch.manual_seed(0)
    G = Generator(DIM, 0, DIM, SIDE, 3, synthesis_kwargs=dict(channel_base=64, channel_max=8),
                  mapping_kwargs=dict(phi_kwargs=dict(hidden_features=8)),
                  encoder_kwargs=dict(channel_base=64, channel_max=8))
    return G.eval().requires_grad_(False)


def pictures(exhibits: ModuleType, people: int, seed: int) -> Any:
    img = torch.rand([people * len(TONES), 3, SIDE, SIDE], generator=torch.Generator().manual_seed(seed)) * 2 - 1
    labels = [dict(look=f'person {i}', gender='neutral', skin_tone=tone) for i in range(people) for tone in TONES]
    return exhibits.Pictures(img, labels)


def history() -> dict[str, Any]:
    return dict(network='net.pkl', stages=[dict(stage='gan', kimg=24.0, seconds=321.0)],
                curve=[dict(kimg=25.5, recon_mse=0.125)], commands=['train.py --cfg=lia --data=<set>'])


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_page_has_every_section_and_the_numbers_of_the_results(
    exhibits: ModuleType, exhibition: ModuleType, tmp_path: Path
) -> None:
    train, held_out = pictures(exhibits, 20, seed=1), pictures(exhibits, 10, seed=2)
    results = exhibition.build(tiny_network(), train, held_out, str(tmp_path), torch.device('cpu'), history())
    text = (tmp_path / 'demo.html').read_text(encoding='utf-8')

    headings = re.findall(r'<h2>(.*?)</h2>', text)
    assert headings == ['What it is', 'Pictures it has never seen, and their reconstructions',
                        'Paths between two of them', 'Variations of a real picture', 'A simple edit',
                        'Pictures out of nothing', 'Figures', 'How it was made']
    embedded = re.findall(r'src="data:image/png;base64,(.*?)"', text)
    sizes = [PIL.Image.open(io.BytesIO(base64.b64decode(data))).size for data in embedded]
    assert len(sizes) == 5 and {width for width, _ in sizes} == {exhibits.COLUMNS * 64}
    # One self-contained file: nothing is loaded from elsewhere.
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and '<script' not in text

    assert results == json.loads((tmp_path / 'results.json').read_text())
    cells = dict(re.findall(r'<tr><td>(\w+)</td><td>([^<]*)</td>', text))
    for name, figure in results['figures'].items():
        assert float(cells[name]) == pytest.approx(figure['value'], rel=0.06, abs=6e-5), name
    assert '<td>321</td>' in text and '<td>25.5</td><td>0.1250</td>' in text
    assert 'python train.py --cfg=lia --data=&lt;set&gt;' in text
    said = exhibition.summary(results)
    assert f'{results["figures"]["recon_mse"]["value"]:.4f}' in said and '20 held-out pictures' in said
    overview = PIL.Image.open(tmp_path / 'demo.png')
    assert overview.size == (exhibits.COLUMNS * 64, 15 * (64 + 22))


def test_figures_are_those_of_their_definitions(exhibits: ModuleType) -> None:
    train, held_out, G = pictures(exhibits, 6, seed=1), pictures(exhibits, 3, seed=2), tiny_network()
    codes = exhibits.invert(G, held_out.img, torch.device('cpu'))
    figures = {f.name: f for f in exhibits.reconstruction_figures(held_out, train, codes)}
    recon = G.decode(G.encode(held_out.img), noise_mode='const').clamp(-1, 1)
    assert figures['recon_mse'].value == pytest.approx(float((recon - held_out.img).square().mean()), rel=1e-5)
    mean = train.img.mean(dim=0)
    assert figures['mean_picture_mse'].value == pytest.approx(float((mean - held_out.img).square().mean()), rel=1e-5)
    nearest = [min(float((x - known).square().mean()) for known in train.img) for x in held_out.img]
    assert figures['nearest_picture_mse'].value == pytest.approx(sum(nearest) / len(nearest), rel=1e-5)
    assert figures['z_norm2'].value == pytest.approx(float(codes.z.square().sum(1).mean()), rel=1e-5)
    assert {f.n for f in figures.values()} == {6}
    # An edit by the true difference of the codes ends at what the true code gives.
    pairs, cpu = exhibits.same_person(held_out, *TONES), torch.device('cpu')
    assert pairs == [(0, 1), (2, 3), (4, 5)]
    edited = {f.name: f.value for f in exhibits.edit_figures(G, held_out, codes, torch.zeros(DIM), pairs, cpu)}
    assert edited['edit_mse'] == pytest.approx(edited['unedited_mse'], rel=1e-5)
    expected = (recon[[0, 2, 4]] - held_out.img[[1, 3, 5]]).square().mean()
    assert edited['unedited_mse'] == pytest.approx(float(expected), rel=1e-5)


def test_rows_begin_and_end_with_what_they_say(exhibits: ModuleType) -> None:
    held_out, G, cpu = pictures(exhibits, 6, seed=2), tiny_network(), torch.device('cpu')
    codes = exhibits.invert(G, held_out.img, cpu)
    recon = codes.recon.clamp(-1, 1)
    for row in exhibits.interpolation_rows(G, held_out, codes, [(0, 5)], cpu):
        assert len(row.images) == exhibits.COLUMNS
        for place, expected in [(0, held_out.img[0]), (1, recon[0]), (-2, recon[5]), (-1, held_out.img[5])]:
            torch.testing.assert_close(row.images[place], expected, atol=1e-4, rtol=0)
    (row,) = exhibits.edit_rows(G, held_out, codes, codes.y[1] - codes.y[0], [(0, 1)], cpu)
    for place, expected in [(0, held_out.img[0]), (1, recon[0]), (-2, recon[1]), (-1, held_out.img[1])]:
        torch.testing.assert_close(row.images[place], expected, atol=1e-4, rtol=0)
    rows = exhibits.variation_rows(G, held_out, codes, [3], cpu)
    assert [row.caption.split(':')[0] for row in rows] == ['rho = 0.95', 'rho = 0.8', 'rho = 0.5']
    assert all(row.caption.isascii() for row in rows)
    assert all(torch.equal(row.images[0], held_out.img[3]) for row in rows)


def test_paths_and_variations(exhibits: ModuleType) -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    arc = exhibits.slerp_path(a, b, 3)
    torch.testing.assert_close(arc, torch.tensor([[3.0, 0.0], [math.sqrt(2), math.sqrt(2)], [0.0, 1.0]]))
    torch.testing.assert_close(exhibits.slerp_path(a, 2 * a, 3)[1], 1.5 * a)  # One direction: 0 / 0 in the formula.
    torch.testing.assert_close(exhibits.lerp_path(a, b, 3)[1], torch.tensor([1.5, 0.5]))
    z = torch.randn([20_000], generator=torch.Generator().manual_seed(1))
    near = exhibits.vary(z, 0.8, count=2, seed=0)
    assert near.var().item() == pytest.approx(1, abs=0.03)
    for row in near:
        assert (row @ z / len(z)).item() == pytest.approx(0.8, abs=0.03)
    assert torch.equal(exhibits.vary(z, 1.0, count=1, seed=0)[0], z)


def test_direction_is_the_difference_of_class_means(exhibits: ModuleType) -> None:
    train = pictures(exhibits, 2, seed=1)
    y = torch.tensor([[0.0, 1.0], [4.0, 5.0], [2.0, 3.0], [6.0, 11.0]])  # light, dark, light, dark
    assert exhibits.class_direction(y, train, 'skin_tone', 'light', 'dark').tolist() == [4.0, 6.0]


# ---------------------------------------------------------------------------------------------------------------------
# From the shipped data to a page


def make_run(outdir: Path, options: dict[str, Any], done: bool) -> run_dir.Run:
    run = run_dir.create(str(outdir), 'lia')
    stage = dict(total_kimg=1)
    run.write_options(dict(options=options, gan=stage, encoder=stage))
    run.note_finished('gan', 1, 'network-snapshot-000001.pkl')
    if done:
        run.note_finished('encoder', 1, 'network-snapshot-000002.pkl')
    return run


def test_statistics_of_a_run(exhibition: ModuleType) -> None:
    def line(stage: str, kimg: float, **more: float) -> dict[str, Any]:
        values = {'Progress/kimg': kimg, 'Timing/sec_per_tick': 10.0, 'Timing/maintenance_sec': 1.0, **more}
        return {'stage': stage, **{name: dict(num=1, mean=value, std=0) for name, value in values.items()}}

    lines = [line('gan', 1), line('gan', 4), line('encoder', 5, **{'Metrics/recon_mse': 0.5}), line('encoder', 6)]
    costs = [dict(stage='gan', kimg=4, seconds=22), dict(stage='encoder', kimg=2, seconds=22)]
    assert exhibition.stage_costs(lines) == costs
    assert exhibition.learning_curve(lines) == [dict(kimg=5, recon_mse=0.5)]


def test_a_finished_run_is_not_trained_again(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def fake_command(script: str, options: dict[str, Any]) -> None:
        asked.append((script, options))
        make_run(tmp_path, {**options, **{name: str(Path(options[name]).resolve()) for name in ('data', 'val')}}, True)

    monkeypatch.setattr(demo, 'run_command', fake_command)
    first, words = demo.trained_run(str(tmp_path), 'a.zip', 'b.zip', dict(kimg=None, device='cpu'))
    assert words[:3] == ['train.py', '--cfg=lia', '--data=a.zip'] and f'--kimg={demo.TRAINING["kimg"]}' in words
    assert f'--outdir={tmp_path}' in words and '--device=cpu' in words and '--noise-inputs=false' in words
    again, _ = demo.trained_run(str(tmp_path), 'a.zip', 'b.zip', dict(kimg=None, device='cpu'))
    assert again == first and len(asked) == 1
    demo.trained_run(str(tmp_path), 'a.zip', 'b.zip', dict(kimg=2.0, device='cpu'))  # Another length: another command.
    assert len(asked) == 2 and asked[1][1]['kimg'] == 2.0


def test_unfinished_runs_are_left_to_the_command(demo: ModuleType, tmp_path: Path) -> None:
    options = dict(data='a.zip', val='b.zip', kimg=1)
    recorded = {**options, 'data': str(Path('a.zip').resolve()), 'val': str(Path('b.zip').resolve())}
    make_run(tmp_path, recorded, done=False)
    assert demo.finished_run(str(tmp_path), options) is None
    run = make_run(tmp_path, recorded, done=True)
    assert demo.finished_run(str(tmp_path), options) == run


@pytest.mark.parametrize('code', [2, 130])
def test_exit_codes_of_commands_are_the_demos(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    from lia_plugin import cli

    monkeypatch.setattr(cli, 'run', lambda *args, **kwargs: code)
    with pytest.raises(SystemExit) as stopped:
        demo.run_command('train', dict(data='a.zip'))
    assert stopped.value.code == code


def test_shipped_data_to_page(demo: ModuleType, exhibits: ModuleType, exhibition: ModuleType, tmp_path: Path) -> None:
    data, val = demo.scale_pictures(str(tmp_path))
    before = Path(data).stat().st_mtime_ns
    assert demo.scale_pictures(str(tmp_path)) == (data, val) and Path(data).stat().st_mtime_ns == before
    held_out = exhibits.load_pictures(val, demo.TABLE, 'val')
    assert held_out.img.shape == (90, 3, demo.RESOLUTION, demo.RESOLUTION)
    # Pictures stand in the order of the table: yellow faces are yellow, dark ones are dark.
    brightness = held_out.img[:, :, 12:20, 12:20].mean(dim=(1, 2, 3))
    yellow, dark = (brightness[held_out.where(skin_tone=tone)] for tone in ('yellow', 'dark'))
    assert (yellow > dark).all()
    assert len(exhibits.same_person(held_out, exhibition.SKIN_ORIGIN, exhibition.SKIN_GOAL)) == 15
    assert held_out.name(held_out.where(look='pilot')[0]) == 'pilot, man, yellow skin'
    with pytest.raises(ValueError, match='804 rows for train'):
        exhibits.load_pictures(val, demo.TABLE, 'train')


def test_a_network_without_encoder_is_refused(exhibition: ModuleType, demo: ModuleType, tmp_path: Path) -> None:
    G = Generator(DIM, 0, DIM, SIDE, 3, synthesis_kwargs=dict(channel_base=64, channel_max=8))
    path = str(tmp_path / 'net.pkl')
    network_pickle.save(path, dict(G=G, D=None, G_ema=G, augment_pipe=None, training_set_kwargs=None))
    with pytest.raises(dnnlib.util.UserError, match='has no encoder'):
        exhibition.make(str(tmp_path), path, 'a.zip', 'b.zip', demo.TABLE, str(tmp_path), [], 'cpu')
    assert sys.path[0] == str(DEMO) and list(tmp_path.iterdir()) == [Path(path)]
