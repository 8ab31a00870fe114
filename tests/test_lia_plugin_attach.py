"""φ for networks that are there: the fit against closed forms, what stays as it was, and the ways to get there."""

import copy
import json
import math
import pathlib
from typing import Any

import hosts
import numpy as np
import PIL.Image
import pytest
import torch

from lia_plugin import attach, attach_files, attach_report, cli, host, phi_fit, stages
from lia_plugin.commands.attach import attach as attach_command
from lia_plugin.commands.attach import default_name
from lia_plugin.commands.train import train as train_command
from lia_plugin.host import UserError
from lia_plugin.networks import Phi
from lia_plugin.phi_fit import Fit, Labels, OldMapping
from training import networks

QUICK = Fit(steps=30, batch=64, couplings=2, hidden=16)
TINY = dict(channel_base=128, channel_max=8)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phi_fit, 'STATISTICS_SAMPLES', 16384)


class Linear(torch.nn.Module):
    """w = z·A + c·B: a mapping network whose density is known."""

    def __init__(self, dim: int, c_dim: int = 0, seed: int = 0, z_dim: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.z_dim = z_dim or dim
        self.A = torch.nn.Parameter(torch.randn([self.z_dim, dim], generator=generator))
        self.B = torch.nn.Parameter(3 * torch.randn([c_dim, dim], generator=generator))

    def forward(self, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        return z @ self.A if c is None else z @ self.A + c @ self.B


def make_phi(dim: int, c_dim: int = 0, activation: str = 'linear', couplings: int = 2) -> Phi:
    torch.manual_seed(0)
    return Phi(
        dim, c_dim, num_couplings=couplings, hidden_features=32, coupling='affine', shift_activation='linear',
        zero_init=True, y_activation=activation, standardize=True,
    )  # fmt: skip


def make_snapshot(c_dim: int = 0, z_dim: int = 8, channels: int = 3, **mapping: Any) -> dict[str, Any]:
    """A plain StyleGAN2 whose weights are random and whose w_avg and noise say something."""
    torch.manual_seed(0)
    image = dict(c_dim=c_dim, img_resolution=16, img_channels=channels)
    mapping = dict(num_layers=2, **mapping)
    G = networks.Generator(z_dim=z_dim, w_dim=8, mapping_kwargs=mapping, synthesis_kwargs=TINY, **image)
    for name, parameter in G.named_parameters():
        if name.endswith('noise_strength'):
            parameter.data.fill_(0.3)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    G_ema.mapping.w_avg.normal_()
    G_ema.synthesis.b4.const.mul_(1.1)
    D = networks.Discriminator(**image, **TINY).eval().requires_grad_(False)
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', path='/nowhere.zip', use_labels=c_dim > 0)
    return dict(
        training_set_kwargs=kwargs, G=G.eval().requires_grad_(False), D=D, G_ema=G_ema, augment_pipe=None, cur_nimg=7
    )


def save(folder: pathlib.Path, data: dict[str, Any], name: str = 'theirs.pkl') -> str:
    path = folder / name
    host.save_network_pkl(str(path), data)
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# The fit


@pytest.mark.parametrize('c_dim', [0, 3])
def test_a_linear_gaussian_mapping_is_fitted_to_its_entropy(c_dim: int) -> None:
    """log p of a Gaussian's own samples is −½·log det(2πe Σ) in the mean; noise adds its share to Σ."""
    mapping, fit = Linear(6, c_dim), Fit(steps=20, batch=128, noise=0.1)
    fitted = phi_fit.fit_phi(make_phi(6, c_dim), OldMapping(mapping, Labels(c_dim), 'cpu'), fit)
    cov = mapping.A.detach().double().t() @ mapping.A.detach().double()
    cov += torch.diag(cov.diagonal()) * fit.noise**2
    truth = -0.5 * (torch.logdet(cov) / 6 + math.log(2 * math.pi * math.e))
    for reached in (fitted.start, fitted.learned, fitted.gaussian):
        assert reached == pytest.approx(float(truth), abs=0.02)


def test_phi_learns_what_a_gaussian_cannot() -> None:
    """Half of w follows the other half along a bend."""

    class Bend(Linear):
        def forward(self, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
            return torch.cat([z[:, :2], z[:, :2].square() + 0.1 * z[:, 2:]], dim=1)

    fit = Fit(steps=150, batch=128, lr=1e-2)
    fitted = phi_fit.fit_phi(make_phi(4, couplings=4), OldMapping(Bend(4), Labels(0), 'cpu'), fit)
    assert fitted.learned > fitted.start + 0.3 and fitted.start == pytest.approx(fitted.gaussian, abs=0.02)


def test_undoing_the_activation_makes_an_activated_gaussian_one_again() -> None:
    class Activated(Linear):
        def forward(self, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
            return phi_fit.redo(super().forward(z, c), 'lrelu')

    mapping = Activated(5)
    w = mapping(torch.randn([10, 5]), None)
    assert torch.allclose(phi_fit.undo(w, 'lrelu') @ torch.linalg.inv(mapping.A) @ mapping.A, phi_fit.undo(w, 'lrelu'),
                          atol=1e-4)
    fitted = phi_fit.fit_phi(make_phi(5, activation='lrelu'), OldMapping(mapping, Labels(0), 'cpu'), Fit(steps=0))
    with torch.no_grad():
        z = fitted.phi(mapping(torch.randn([20000, 5]), None))[0]
    assert torch.allclose(torch.cov(z.t()), torch.eye(5), atol=0.05) and z.mean(0).abs().max() < 0.05
    assert fitted.start > fitted.gaussian + 0.1


def test_a_flat_w_needs_noise_and_gets_along_with_it() -> None:
    old = OldMapping(Linear(6, z_dim=3), Labels(0), 'cpu')
    with pytest.raises(UserError, match='--noise: .* fewer dimensions'):
        phi_fit.fit_phi(make_phi(6), old, Fit(steps=0, noise=0))
    fitted = phi_fit.fit_phi(make_phi(6), old, Fit(steps=0, noise=0.01))
    z = torch.randn([100, 6])
    with torch.no_grad():
        assert (fitted.phi(fitted.phi.inverse(z)[0])[0] - z).abs().max() < 1e-3


def test_a_fit_that_gets_worse_keeps_its_start() -> None:
    fitted = phi_fit.fit_phi(make_phi(4), OldMapping(Linear(4), Labels(0), 'cpu'), Fit(steps=20, batch=8, lr=10))
    assert fitted.learned >= fitted.start - 0.01


def test_a_mapping_that_stands_still_is_told() -> None:
    mapping = Linear(4)
    mapping.A.data.zero_()
    with pytest.raises(UserError, match='same w for every z'):
        phi_fit.fit_phi(make_phi(4), OldMapping(mapping, Labels(0), 'cpu'), Fit(steps=0))


def test_moments_give_the_mean_of_each_class_and_the_covariance_within() -> None:
    moments, generator = phi_fit.Moments(2, 3), torch.Generator().manual_seed(0)
    c = torch.eye(3)[torch.randint(3, [3000], generator=generator)]
    centers = torch.tensor([[0.0, 5.0], [1.0, 0.0], [-4.0, 2.0]])
    x = c @ centers + torch.randn([3000, 2], generator=generator)
    moments.add(x[:1000], c[:1000])
    moments.add(x[1000:], c[1000:])
    gaussian = moments.gaussian()
    means = torch.stack([x[c[:, i] == 1].mean(0) for i in range(3)]).double()
    assert torch.allclose(gaussian.mean + gaussian.label_mean, means, atol=1e-4)
    residual = (x.double() - c.double() @ means)
    assert torch.allclose(gaussian.cov, residual.t() @ residual / 3000, atol=1e-4)
    oracle = torch.distributions.MultivariateNormal(means[0], gaussian.cov)
    expected = oracle.log_prob(x[:5].double())
    assert torch.allclose(gaussian.log_prob(x[:5], torch.eye(3)[[0] * 5]), expected, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# What stays as it was


@pytest.mark.parametrize('c_dim', [0, 3])
def test_front_changes_no_bit_of_any_picture(c_dim: int) -> None:
    data = make_snapshot(c_dim, z_dim=6)
    result, fitted = attach.attach(data, 'theirs', Labels(c_dim), 'front', QUICK)
    assert fitted is None and result['G_ema'].z_dim == 6
    z = torch.randn([3, 6], dtype=torch.float64)
    c = torch.eye(3)[[2, 0, 1]] if c_dim else None
    for kwargs in (dict(), dict(truncation_psi=0.5), dict(truncation_psi=0.7, truncation_cutoff=2)):
        for key in ('G', 'G_ema'):
            ours, theirs = (net[key](z, c, noise_mode='const', **kwargs) for net in (result, data))
            assert torch.equal(ours, theirs), (key, kwargs)
    mapping = result['G_ema'].mapping
    assert torch.equal(mapping.y_to_z(mapping.z_to_y(z, c), c), z.float())


def test_front_needs_an_even_number_of_reversals() -> None:
    with pytest.raises(UserError, match='--couplings: 3 is odd'):
        attach.attach(make_snapshot(), 'theirs', Labels(0), 'front', Fit(couplings=3))


@pytest.mark.parametrize('mode', attach.MODES)
def test_all_else_of_the_file_stays(mode: str, tmp_path: pathlib.Path) -> None:
    before = make_snapshot()
    path = save(tmp_path, before)
    attach_files.attach_file(path, str(tmp_path / 'out.pkl'), mode, QUICK, num=4)
    after = host.load_network_pkl(str(tmp_path / 'out.pkl'))
    assert after['cur_nimg'] == 7 and after['training_set_kwargs'] == before['training_set_kwargs']
    assert all(torch.equal(v, before['D'].state_dict()[k]) for k, v in after['D'].state_dict().items())
    ws = torch.randn([2, after['G'].num_ws, 8])
    for key in ('G', 'G_ema'):
        G = after[key]
        assert (G.z_dim, G.c_dim, G.w_dim, G.num_ws) == (8, 0, 8, before[key].num_ws) and not G.training
        assert torch.equal(G.mapping.w_avg, before[key].mapping.w_avg)
        assert torch.equal(G.synthesis(ws, noise_mode='const'), before[key].synthesis(ws, noise_mode='const'))
    phis = [after[key].mapping.phi.state_dict() for key in ('G', 'G_ema')]
    assert all(torch.equal(phis[0][k], phis[1][k]) for k in phis[0])
    assert {p.name for p in tmp_path.iterdir()} == {'theirs.pkl', 'out.pkl', 'out.json', 'out.png'}


def test_replace_stands_in_the_mappings_place(tmp_path: pathlib.Path) -> None:
    data = make_snapshot(z_dim=5)
    path = save(tmp_path, dict(G_ema=data['G_ema']))
    report = attach_files.attach_file(path, str(tmp_path / 'out.pkl'), fit=QUICK, num=64)
    result = host.load_network_pkl(str(tmp_path / 'out.pkl'))
    G = result['G_ema']
    assert result['D'] is None and G.z_dim == 8 and report['z_dim_before'] == 5
    w = phi_fit.undo(G.mapping.z_to_y(torch.randn([20000, 8])), 'lrelu')
    old = phi_fit.undo(OldMapping(data['G_ema'].mapping, Labels(0), 'cpu', seed=5).draw(20000)[0], 'lrelu')
    assert torch.allclose(w.mean(0), old.mean(0), atol=0.1)
    error = torch.linalg.norm(torch.cov(w.t()) - torch.cov(old.t())) / torch.linalg.norm(torch.cov(old.t()))
    assert error < 0.15
    told = ' '.join(attach_files.notes(report))
    assert 'z has 8 dimensions now' in told and 'G is a copy of G_ema' in told and 'no D in the file' in told
    assert report == {**json.loads((tmp_path / 'out.json').read_text()), 'fit': report['fit']}


def test_labels_lead_phi_to_the_w_of_their_class() -> None:
    data = make_snapshot(c_dim=2)
    result, _ = attach.attach(data, 'theirs', Labels(2), fit=QUICK)
    old = OldMapping(data['G_ema'].mapping, Labels(2), 'cpu', seed=5)
    means = []
    for label in torch.eye(2):
        c = label.expand(5000, -1)
        expected = old.w(torch.randn([5000, 8]), c).mean(0)
        means.append(expected)
        assert torch.allclose(result['G_ema'].mapping.z_to_y(torch.randn([5000, 8]), c).mean(0), expected, atol=0.1)
    assert (means[0] - means[1]).abs().max() > 0.3


@pytest.mark.parametrize('mode', attach.MODES)
def test_alias_free_networks_get_phi_and_an_encoder(mode: str, tmp_path: pathlib.Path) -> None:
    alias_free = pytest.importorskip('training.networks_stylegan3')
    torch.manual_seed(0)
    shape = dict(channel_base=256, channel_max=16, num_layers=4, mapping_kwargs=dict(num_layers=2))
    G = alias_free.Generator(8, 2, 8, 16, 3, **shape).eval().requires_grad_(False)
    G.mapping.w_avg.normal_()
    attach_files.attach_file(save(tmp_path, dict(make_snapshot(2), G=G, G_ema=G)), str(tmp_path / 'o.pkl'), mode, QUICK,
                             num=4)
    encoder = dict(channel_base=128, channel_max=8)
    stages.prepare_encoder_stage(str(tmp_path / 'o.pkl'), str(tmp_path / 'init.pkl'), encoder)
    new, c, ws = host.load_network_pkl(str(tmp_path / 'init.pkl'))['G_ema'], torch.eye(2), torch.randn([2, G.num_ws, 8])
    assert torch.equal(new.synthesis(ws), G.synthesis(ws)) and all('encoder' in n for n, _ in new.named_parameters())
    if mode == 'front':
        z = torch.randn([2, 8])
        assert torch.equal(new(z, c, truncation_psi=0.5), G(z, c, truncation_psi=0.5))
    y, z = new.invert(torch.rand([2, 3, 16, 16]) * 2 - 1, c)
    assert torch.allclose(new.mapping.z_to_y(z, c), y, atol=1e-3)


def test_a_linear_activation_is_not_undone() -> None:
    kwargs = attach.lia_kwargs(make_snapshot(activation='linear')['G_ema'])
    assert kwargs['mapping_kwargs']['phi_kwargs']['y_activation'] == 'linear'
    assert attach.lia_kwargs(make_snapshot()['G_ema'])['mapping_kwargs']['phi_kwargs']['y_activation'] == 'lrelu'


def test_networks_that_cannot_have_phi_are_told() -> None:
    G = make_snapshot()['G_ema']
    attached, _ = attach.attach(dict(G_ema=G), 'theirs', Labels(0), 'front', QUICK)
    with pytest.raises(UserError, match='has its φ already'):
        attach.check_network(attached['G_ema'], 'theirs')
    with pytest.raises(UserError, match='it has no z_dim'):
        attach.check_network(torch.nn.Linear(2, 2), 'theirs')

    class PerLayer(type(G.mapping)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().forward(*args, **kwargs) * torch.arange(self.num_ws)[:, None]

    per_layer = copy.deepcopy(G)
    per_layer.mapping.__class__ = PerLayer
    with pytest.raises(UserError, match='a w of its own'):
        attach.check_network(per_layer, 'theirs')
    other = copy.deepcopy(G)
    other.synthesis.b4.conv1.activation = 'linear'  # The same weights, another function.
    with pytest.raises(UserError, match='computes something else'):
        attach.attach(dict(G_ema=other), 'theirs', Labels(0), 'front', QUICK)


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def _labelled(folder: pathlib.Path, labels: list[Any]) -> str:
    folder.mkdir()
    names = [f'{i}.png' for i in range(len(labels))]
    for i, name in enumerate(names):
        PIL.Image.fromarray(np.full([16, 16, 3], i, np.uint8)).save(folder / name)
    (folder / 'dataset.json').write_text(json.dumps({'labels': list(map(list, zip(names, labels)))}))
    return str(folder)


def test_labels_are_classes_evenly_or_the_data_sets_vectors(tmp_path: pathlib.Path) -> None:
    G = make_snapshot(c_dim=3)['G_ema']
    classes = _labelled(tmp_path / 'classes', [0, 2, 2, 2, 1, 2])
    vectors = _labelled(tmp_path / 'vectors', [[0.5, 0.1, 2.0], [1.0, 0.0, 3.0], [0.0, 0.0, 0.25]])
    drawn = attach.choose_labels(G, classes)[0].draw(3000, torch.Generator().manual_seed(0))
    assert drawn is not None and (drawn.mean(0) - 1 / 3).abs().max() < 0.05
    for path, recorded in ((vectors, None), (None, dict(path=vectors))):
        labels, told = attach.choose_labels(G, path, recorded)
        assert labels.vectors is not None and labels.vectors.shape == (3, 3) and 'label vectors of 3 images' in told
    labels, told = attach.choose_labels(G, None, dict(path='/nowhere'))
    assert labels.vectors is None and '--data must say which' in told
    assert attach.choose_labels(make_snapshot()['G_ema'], None)[1] == ''
    with pytest.raises(UserError, match='--data: needed'):
        attach.choose_labels(make_snapshot(c_dim=1)['G_ema'], None)
    with pytest.raises(UserError, match='--data: .* labels of 3 dimensions, but the network takes 2'):
        attach.choose_labels(make_snapshot(c_dim=2)['G_ema'], vectors)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def test_a_perfect_phi_is_as_far_away_as_another_draw() -> None:
    """w of the old mapping is z·A·√2 after a leaky ReLU: φ's start is exact, so its distance is the floor."""
    data = make_snapshot()
    mapping = data['G_ema'].mapping
    detector, _name = host.feature_detector('random:0', 'cpu')
    result, fitted = attach.attach(data, 'theirs', Labels(0), fit=Fit(steps=0, couplings=2))
    assert fitted is not None
    G = result['G_ema']

    class Exact(OldMapping):
        def w(self, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
            return G.mapping.z_to_y(z, c)

    exact = Exact(mapping, Labels(0), 'cpu', seed=3)
    figures = attach_report.distances(G, exact, detector, 400)
    assert 0.4 < figures['frechet'] / figures['frechet_floor'] < 2.5 and figures['frechet_n'] == 400
    with torch.no_grad():
        G.mapping.phi.standardize.mean.add_(1)
    assert attach_report.distances(G, OldMapping(mapping, Labels(0), 'cpu'), detector, 400)['frechet'] > (
        5 * figures['frechet_floor'])
    exact_samples = phi_fit.NoisyW(exact, torch.zeros(8), 0, 'lrelu')
    typical = attach_report.latents(G, phi_fit.Fitted(G.mapping.phi, exact_samples, 0, 0, 0), 2000)
    assert typical['norm2_per_dim'] == pytest.approx(1, abs=0.05) and typical['norm2_ks_p'] > 1e-3
    assert typical['norm2_std'] == pytest.approx(1, abs=0.1) and typical['z_round_trip'] < 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def run(*args: str) -> int:
    return cli.run(attach_command, ['--device=cpu', '--steps=10', '--batch=32', '--num=8', *args], prog_name='attach')


def test_the_command_writes_a_network_a_report_and_a_picture(tmp_path: pathlib.Path, capsys: Any) -> None:
    path = save(tmp_path, make_snapshot(c_dim=2))
    assert run(f'--network={path}', f'--outdir={tmp_path / "new"}') == 0
    out = capsys.readouterr().out
    assert '2 classes, drawn evenly' in out and 'random:0, n=8' in out and 'largest error' in out
    report = json.loads((tmp_path / 'new' / 'theirs-phi.json').read_text())
    assert report['log_p'] > report['log_p_gaussian'] and report['fit']['steps'] == 10
    assert PIL.Image.open(tmp_path / 'new' / 'theirs-phi.png').size == (8 * 64, 6 * (22 + 64))
    assert run(f'--network={path}', f'--out={tmp_path / "front.pkl"}', '--mode=front') == 0
    assert 'identical bit for bit' in capsys.readouterr().out
    assert default_name('https://x.org/nets/ffhq.pkl?download=1') == 'ffhq-phi.pkl'


@pytest.mark.parametrize('args, message', [
    (['--network={nowhere}'], 'nowhere.pkl'), (['--network={theirs}', '--out={theirs}'], 'is the network itself'),
    (['--network={theirs}', '--out={theirs}.txt'], 'a .pkl file'), (['--network={lia}'], 'has its φ already'),
    (['--network={theirs}', '--detector=nowhere.pt'], 'nowhere.pt'), (['--network={theirs}', '--noise=nan'], '--noise'),
    (['--network={theirs}', '--mode=front', '--couplings=3'], '--couplings: 3 is odd'),
    (['--network={theirs}', '--device=abacus'], '--device'),
])
def test_bad_input_is_one_line(args: list[str], message: str, tmp_path: pathlib.Path, capsys: Any) -> None:
    data = make_snapshot()
    lia = attach.attach(data, 'theirs', Labels(0), 'front', QUICK)[0]
    paths = dict(theirs=save(tmp_path, data), lia=save(tmp_path, lia, 'lia.pkl'), nowhere=str(tmp_path / 'nowhere.pkl'))
    assert run(f'--outdir={tmp_path}', *(arg.format(**paths) for arg in args)) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['lia.pkl', 'theirs.pkl']


def _train(folder: pathlib.Path, *args: str) -> int:
    data = folder / 'data'
    if not data.exists():
        data.mkdir()
        rng = np.random.RandomState(0)
        for i in range(8):
            PIL.Image.fromarray(rng.randint(0, 256, [16, 16, 3], dtype=np.uint8)).save(data / f'{i}.png')
    shared = ['--batch=4', '--metrics=none', '--device=cpu', '--workers=0', '--val=none', f'--outdir={folder / "runs"}']
    return cli.run(train_command, [f'--data={data}', *shared, *args], prog_name='train.py')


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phi_fit.Fit.__init__, '__defaults__', (20, 32, 2, None, 0.01, 2e-3, 0))
    monkeypatch.setattr(attach_report, 'distances', lambda *_args: dict(frechet=1.0, frechet_floor=1.0, frechet_n=2))


@pytest.mark.parametrize('slim', [False, True])
def test_stage_2_attaches_on_the_way_once(slim: bool, tmp_path: pathlib.Path, quick_fits: None, capsys: Any,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_snapshot()
    path = save(tmp_path, dict(G_ema=data['G_ema']) if slim else data)
    command = ['--stage=encoder', f'--resume={path}', '--enc-kimg=0.008']
    assert _train(tmp_path, *command, '-n') == 0
    out = capsys.readouterr().out
    assert 'has no φ' in out and ('makes a new one' in out) == slim and not (tmp_path / 'runs').exists()
    assert _train(tmp_path, *command) == 0
    folder = next((tmp_path / 'runs').iterdir())
    assert 'log p(w)' in capsys.readouterr().out and (folder / 'attached.png').exists()
    recorded = json.loads((folder / 'training_options.json').read_text())
    assert recorded['attach']['network'] == path
    monkeypatch.setattr(attach_files, 'attach_file', None)
    pathlib.Path(path).unlink()
    assert _train(tmp_path, '--resume=latest', '--enc-kimg=0.016') == 0
    again = json.loads((folder / 'training_options.json').read_text())
    assert again['attach'] == recorded['attach']
    G = host.load_network_pkl(str(folder / 'network-snapshot-000000.pkl'))['G_ema']
    attached = host.load_network_pkl(str(folder / 'attached.pkl'))['G_ema']
    assert G.encoder is not None
    assert all(torch.equal(v, G.state_dict()[k]) for k, v in attached.state_dict().items())


def test_stage_1_goes_on_from_a_plain_network(tmp_path: pathlib.Path, quick_fits: None, capsys: Any) -> None:
    path = save(tmp_path, make_snapshot())
    command = ['--stage=gan', f'--resume={path}', '--kimg=0.004', '--cbase=128', '--cmax=8', '--aug=noaug', '--fp32']
    assert _train(tmp_path, *command) == 0
    out = capsys.readouterr().out
    assert 'not taken over: mapping.fc0 (2), mapping.fc1 (2)' in out
    assert all(f'{name}: all ' in out for name in ('G', 'D', 'G_ema')), 'what the loop is given is complete'
    folder = next((tmp_path / 'runs').iterdir())
    started = host.load_network_pkl(str(folder / 'attached.pkl'))['G'].state_dict()
    trained = host.load_network_pkl(str(folder / 'network-snapshot-000000.pkl'))['G'].state_dict()
    assert started.keys() == trained.keys()
    moved = {k: not torch.equal(v, trained[k]) for k, v in started.items()}
    assert moved['mapping.phi.coupling0.shift.weight'] and not moved['mapping.phi.standardize.white']
    largest = max(float((started[k] - trained[k]).abs().max()) for k in started if k.startswith('synthesis'))
    assert 0 < largest < 0.1, 'one step away from where it was taken over'


# ---------------------------------------------------------------------------------------------------------------------
# NVIDIA's own tools


@pytest.mark.parametrize('name, script, mode', [
    ('stylegan2-ada-pytorch', 'generate.py', 'front'), ('stylegan3', 'gen_images.py', 'replace'),
])
def test_untouched_checkouts_generate_from_it(name: str, script: str, mode: str, tmp_path: pathlib.Path) -> None:
    hosts.find(name)
    path = save(tmp_path, make_snapshot(c_dim=2))
    attach_files.attach_file(path, str(tmp_path / 'out.pkl'), mode, QUICK, num=4)
    network, outdir = f'--network={tmp_path / "out.pkl"}', f'--outdir={tmp_path / "png"}'
    hosts.check(hosts.run(name, script, network, outdir, '--seeds=3', '--class=1', '--trunc=0.7'))
    theirs = np.asarray(PIL.Image.open(tmp_path / 'png' / 'seed0003.png')).astype(int)
    z = torch.from_numpy(np.random.RandomState(3).randn(1, 8))
    G = host.load_network_pkl(str(tmp_path / 'out.pkl'))['G_ema']
    img = G(z, torch.eye(2)[1:], truncation_psi=0.7, noise_mode='const')
    ours = (img[0].permute(1, 2, 0) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy().astype(int)
    assert np.abs(ours - theirs).max() <= 1
