"""Networks as ONNX files: the same numbers in ONNX Runtime for any batch, with names that say what they are."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.networks_stylegan3
from lia_plugin import cli, export, host, networks, onnx_export, onnx_parts
from lia_plugin.host import UserError
from torch_utils.ops import upfirdn2d

IMAGE = dict(img_resolution=8, img_channels=3)
WIDTH = dict(channel_base=32, channel_max=4)


def make_generator(c_dim: int = 0, mapping: dict[str, Any] | None = None, **encoder: Any) -> Any:
    torch.manual_seed(0)
    G = networks.Generator(
        4, c_dim, 4, **IMAGE, mapping_kwargs=mapping or dict(phi_kwargs=dict(hidden_features=8)),
        synthesis_kwargs=WIDTH, encoder_kwargs={**WIDTH, **encoder},
    )  # fmt: skip
    with torch.no_grad():
        for name, value in G.named_buffers():
            if name.split('.')[-1] in ('bias', 'noise_strength', 'unlocked', 'w_avg'):
                value.add_(torch.randn(value.shape) * 0.5)
    return G.eval().requires_grad_(False)


def save(G: Any, path: Path) -> str:
    host.save_network_pkl(str(path), dict(G=G, D=None, G_ema=G, augment_pipe=None, training_set_kwargs=None))
    return str(path)


def run(*args: str) -> int:
    return cli.main(['export', *args])


PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason=f'needs {", ".join(PACKAGES)}')


# ---------------------------------------------------------------------------------------------------------------------
# All files of one network


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator(c_dim=2)


@pytest.fixture(scope='module')
def folder(G: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional network, its noise as inputs."""
    place = tmp_path_factory.mktemp('onnx')
    args = ['--format=onnx', '--noise=input', '--license=mit', '--title=Tiny']
    assert run('--network', save(G, place / 'net.pkl'), '--outdir', str(place / 'out'), *args) == 0
    return place / 'out'


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])


@needs_onnx
def test_an_image_goes_to_z_and_back_in_onnx_runtime_alone(G: Any, folder: Path) -> None:
    names = ('encoder', 'phi', 'phi_inverse', 'mapping', 'y_to_ws', 'synthesis')
    model = {name: _session(folder / f'{name}.onnx') for name in names}
    for batch in (1, 3, 7):
        img = torch.rand([batch, 3, 8, 8], generator=torch.Generator().manual_seed(batch)) * 2 - 1
        c = torch.eye(2)[torch.arange(batch) % 2]
        noise = {entry.name: np.random.RandomState(0).randn(batch, 1, *entry.shape[2:]).astype(np.float32)
                 for entry in model['synthesis'].get_inputs()[1:]}  # fmt: skip
        y = model['encoder'].run(None, {'img': img.numpy()})[0]
        z, log_det = model['phi'].run(None, {'y': y, 'c': c.numpy()})
        back = model['phi_inverse'].run(None, {'z': z, 'c': c.numpy()})[0]
        psi = np.array(0.6, np.float32)
        ws = model['y_to_ws'].run(None, {'y': y, 'truncation_psi': psi})[0]
        same = model['mapping'].run(None, {'z': z, 'c': c.numpy(), 'truncation_psi': psi})[0]
        recon = model['synthesis'].run(None, {'ws': ws, **noise})[0]
        expected = G.invert(img, c)
        np.testing.assert_allclose(y, expected.y, atol=1e-5)
        np.testing.assert_allclose(z, expected.z, atol=1e-4)
        np.testing.assert_allclose(log_det, G.mapping.phi(expected.y, c)[1], atol=1e-4)
        np.testing.assert_allclose(back, y, atol=1e-4)
        np.testing.assert_allclose(ws, G.mapping.y_to_ws(expected.y, c, 0.6), atol=1e-5)
        np.testing.assert_allclose(same, ws, atol=1e-4)
        buffers = {f'{name[6:]}.noise_const': torch.from_numpy(value) for name, value in noise.items()}
        drawn = torch.func.functional_call(G.synthesis, buffers, (torch.from_numpy(ws),), dict(noise_mode='const'))
        np.testing.assert_allclose(recon, drawn, atol=1e-5)
        assert np.abs(recon - G.synthesis(torch.from_numpy(ws), noise_mode='const').numpy()).max() > 1e-3


@needs_onnx
@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere file systems have names in Unicode alone')
def test_a_place_whose_name_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    parts = onnx_parts.parts
    monkeypatch.setattr(onnx_parts, 'parts', lambda G, noise: (
        [part for part in parts(G, noise)[0] if part.name == 'y_to_ws'], {}))
    monkeypatch.setattr(onnx_export, 'card', lambda told, errors: told['title'])
    place = os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9')
    args = ['--format=onnx', os.fsdecode(b'--license=l\xe9')]
    assert run('--network', save(make_generator(), tmp_path / 'net.pkl'), '--outdir', place, *args) == 0
    with open(os.path.join(place, 'y_to_ws.onnx'), 'rb') as file:
        facts = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert (facts['title'], facts['license']) == ('caf\N{REPLACEMENT CHARACTER}', 'l\N{REPLACEMENT CHARACTER}')


@needs_onnx
def test_files_say_what_they_are(folder: Path) -> None:
    import onnx

    told = json.loads((folder / 'onnx.json').read_text())
    assert told['title'] == 'Tiny' and told['license'] == 'mit' and told['left_out'] == {}
    for part in told['parts']:
        model = onnx.load(str(folder / part['file']))
        onnx.checker.check_model(model, full_check=True)
        assert [entry.domain for entry in model.opset_import] == [''] and model.opset_import[0].version >= 17
        assert [entry.name for entry in model.graph.input] == list(part['inputs'])
        assert [entry.name for entry in model.graph.output] == list(part['outputs'])
        notes = {entry.key: entry.value for entry in model.metadata_props}
        assert notes['license'] == 'mit' and notes['title'] == 'Tiny' and part['file'] == notes['part'] + '.onnx'
    by_name = {part['file']: part for part in told['parts']}
    assert by_name['encoder.onnx']['inputs']['img']['shape'] == ['N', 3, 8, 8]
    assert by_name['synthesis.onnx']['inputs']['noise.b8.conv1']['shape'] == ['N', 1, 8, 8]
    text = (folder / 'README.md').read_text()
    assert text.startswith('---\nlicense: "mit"')
    assert '| phi.onnx | y [N, 4], c [N, 2] | z [N, 4], log_det [N] |' in text


# ---------------------------------------------------------------------------------------------------------------------
# Other networks, part by part


def _checked(G: Any, *names: str, noise: str = 'const') -> dict[str, float | None]:
    found = {part.name: part for part in onnx_parts.parts(G, noise)[0]}
    return {name: onnx_export._check(found[name], onnx_export._convert(found[name], 'net', {})) for name in names}


@needs_onnx
def test_an_attached_network_with_a_code_for_each_layer() -> None:
    phi = dict(coupling='affine', y_activation='lrelu', standardize=True, hidden_features=8)
    G = make_generator(2, dict(base_kwargs=dict(num_layers=2), phi_kwargs=phi), space='y+')
    errors = _checked(G, 'encoder', 'y_to_ws', 'phi_inverse')
    assert all(error is not None and error < 1e-5 for error in errors.values())


@needs_onnx
def test_a_stock_stylegan3() -> None:
    torch.manual_seed(0)
    G = training.networks_stylegan3.Generator(z_dim=4, c_dim=0, w_dim=4, num_layers=3, **IMAGE, **WIDTH).eval()
    G.requires_grad_(False)
    assert [part.name for part in onnx_parts.parts(G)[0]] == ['mapping', 'synthesis']
    errors = _checked(G, 'synthesis')
    assert errors['synthesis'] is not None and errors['synthesis'] < 1e-5


def test_an_encoder_that_is_asked_again_is_left_out() -> None:
    found, left_out = onnx_parts.parts(make_generator(iters=2))
    assert 'encoder' not in [part.name for part in found] and 'asked 2 times' in left_out['encoder']


@pytest.mark.parametrize('noise, mode', [('const', 'const'), ('none', 'none')])
def test_noise_is_the_networks_own_or_none(G: Any, noise: str, mode: str) -> None:
    part = next(part for part in onnx_parts.parts(G, noise)[0] if part.name == 'synthesis')
    ws = part.draw(3, 0)['ws']
    torch.testing.assert_close(part.module(ws), G.synthesis(ws, noise_mode=mode))
    assert list(part.inputs) == ['ws'] and part.facts == {'noise': noise}


# ---------------------------------------------------------------------------------------------------------------------
# What is recorded


@pytest.mark.parametrize('up, down, padding, taps, flip', [
    (1, 1, 1, 3, False), (2, 1, [2, 1, 1, 0], 4, False), (1, 2, [1, 1, 2, 3], 4, True), ([2, 1], [1, 2], 3, 4, True),
    (2, 3, [-1, 3, 2, -2], 5, False), (4, 1, 0, 2, False),
])  # fmt: skip
def test_a_recorded_filter_is_the_filter(up: Any, down: Any, padding: Any, taps: int, flip: bool) -> None:
    x = torch.randn([2, 3, 7, 9], dtype=torch.float64)
    f = torch.randn([taps, taps]) if taps != 4 else torch.randn([taps])
    expected = upfirdn2d.upfirdn2d(x, f, up, down, padding, flip, gain=1.5, impl='ref')
    x0, x1, y0, y1 = upfirdn2d.parse_padding(padding)
    (up_x, up_y), (down_x, down_y) = upfirdn2d._pair(up, 'up'), upfirdn2d._pair(down, 'down')
    axes = upfirdn2d._Axis(up_x, down_x, x0, x1), upfirdn2d._Axis(up_y, down_y, y0, y1)
    found = upfirdn2d._upfirdn2d_recorded(x, f.double(), *axes, flip, 1.5)
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_missing_packages_are_one_line(
    G: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    out = tmp_path / 'out'
    assert run('--network', save(G, tmp_path / 'net.pkl'), '--outdir', str(out), '--format=onnx') == 2
    said = capsys.readouterr().err.strip()
    assert "pip install 'lia-plugin[onnx]'" in said and '\n' not in said and not out.exists()


@needs_onnx
def test_other_numbers_are_refused(G: Any) -> None:
    part = next(part for part in onnx_parts.parts(G)[0] if part.name == 'phi_inverse')
    data = onnx_export._convert(part, 'net', {})
    with torch.no_grad():
        moved = next(value for name, value in part.module.named_buffers() if name.endswith('shift.bias'))
        before = moved.clone()
        moved += 0.5
    with pytest.raises(UserError, match='phi_inverse: ONNX Runtime .* is off by .*; nothing was written'):
        onnx_export._check(part, data)
    moved.copy_(before)


@needs_onnx
def test_what_onnx_cannot_have_is_one_line(G: Any) -> None:
    class Odd(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(inputs[0].t() @ inputs[0])

    with pytest.raises(UserError, match='net.pkl: its odd has operators that ONNX cannot have'):
        onnx_export._convert(onnx_parts.Part('odd', Odd(), {'z': torch.ones([2, 4])}, ('y',)), 'net.pkl', {})


@pytest.mark.parametrize('args, said', [
    (['--to-pickle=x.pkl', '--format=onnx'], '--format=onnx'), (['--outdir=x', '--noise=none'], '--noise'),
])  # fmt: skip
def test_options_that_do_nothing_are_refused(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run('--network=net.pkl', *args) == 2
    assert said in capsys.readouterr().err


def test_the_licence_is_that_of_a_folders_card(G: Any, tmp_path: Path) -> None:
    network = save(G, tmp_path / 'net.pkl')
    export.to_folder(network, str(tmp_path / 'out'), 'cc-by-nc-4.0')
    assert export.card_license(str(tmp_path / 'out')) == 'cc-by-nc-4.0'
    assert export.card_license(network) is None


@pytest.mark.parametrize('name', ['', 'file', 'file/below', 'full'])
def test_a_place_that_will_not_do_is_told_before_the_network_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'file').touch()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'one').touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='name a new folder|give another place'):
        onnx_export.export('nowhere.pkl', name)
