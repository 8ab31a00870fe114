"""Perceptual path length: linear generators, whose path lengths can be written down, and torchmetrics as oracle."""

import numpy as np
import pytest
import torch
from generator_fakes import Flat, LinearGenerator, save_script

from metrics import metric_main, perceptual_path_length
from metrics.metric_utils import MetricOptions, get_feature_detector
from metrics.perceptual_path_length import PathSampler, bring_down, crop_face, own_noise, slerp, trimmed_mean

CPU = torch.device('cpu')
MATRIX = [[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.3, 0.0, 1.0]]
DATA = dict(class_name='metric_fakes.FakeImages', num=6, channels=3, resolution=16, label_dim=3)


@pytest.fixture
def flat(tmp_path):
    return save_script(Flat(), tmp_path / 'flat.pt')


def sampler(flat, G, space, sampling, crop=False, **options):
    opts = MetricOptions(G=G, device=CPU, **options)
    return PathSampler(opts, get_feature_detector(flat), space, sampling, crop)


def measured(found, num=12):
    """Distances of the first paths, and their ends, float64."""
    ends = found.draw(range(num))
    return found.distances(range(num)).double().numpy(), [x.double().numpy() for x in ends[:3]]


def angles(z0, z1):
    cosine = (z0 * z1).sum(axis=1) / np.linalg.norm(z0, axis=1) / np.linalg.norm(z1, axis=1)
    return np.arccos(cosine)


@pytest.mark.parametrize('sampling', ['end', 'full'])
def test_in_w_a_linear_generator_has_the_squared_length_of_the_step_everywhere(sampling, flat):
    distances, (z0, z1, t) = measured(sampler(flat, LinearGenerator(gain=1, matrix=MATRIX), 'w', sampling))
    expected = np.square((z1 - z0) @ np.array(MATRIX).T).sum(axis=1)
    np.testing.assert_allclose(distances, expected, rtol=0.02)
    assert (t == 0).all() if sampling == 'end' else len(np.unique(t)) == 12 and (t > 0).all() and (t < 1).all()


@pytest.mark.parametrize('sampling', ['end', 'full'])
def test_in_z_the_path_turns_by_the_angle_and_grows_by_the_difference_of_lengths(sampling, flat):
    """d/dt of length L(t) along direction u(t): (L1 − L0)² + (L(t) θ)²."""
    distances, (z0, z1, t) = measured(sampler(flat, LinearGenerator(gain=1), 'z', sampling))
    l0, l1 = np.linalg.norm(z0, axis=1), np.linalg.norm(z1, axis=1)
    length = l0 + t[:, 0] * (l1 - l0)
    np.testing.assert_allclose(distances, (l1 - l0) ** 2 + (length * angles(z0, z1)) ** 2, rtol=0.02)


def unit_slerp(a, b, t):
    """The published one, whose lengths are 1."""
    z = slerp(a, b, t)
    return z / z.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize('sampling', ['end', 'full'])
def test_lengths_change_nothing_where_the_network_normalises_and_much_where_it_does_not(sampling, flat, monkeypatch):
    networks = [LinearGenerator(gain=1, normalise=normalise) for normalise in (True, False)]
    ours = [measured(sampler(flat, G, 'z', sampling)) for G in networks]
    monkeypatch.setattr(perceptual_path_length, 'slerp', unit_slerp)
    theirs = [measured(sampler(flat, G, 'z', sampling))[0] for G in networks]
    np.testing.assert_allclose(ours[0][0], theirs[0], rtol=0.02)
    np.testing.assert_allclose(ours[0][0], angles(*ours[0][1][:2]) ** 2, rtol=0.02)
    assert np.median(ours[1][0] / theirs[1]) > 1.5


def test_slerp_meets_both_ends_and_keeps_a_common_length():
    stream = torch.Generator().manual_seed(0)
    a, b = (torch.randn([50, 8], generator=stream, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(slerp(a, b, torch.zeros([50, 1])), a)
    torch.testing.assert_close(slerp(a, b, torch.ones([50, 1], dtype=torch.float64)), b)
    middle = slerp(a, b, torch.full([50, 1], 0.5, dtype=torch.float64)).norm(dim=1)
    torch.testing.assert_close(middle, (a.norm(dim=1) + b.norm(dim=1)) / 2)
    torch.testing.assert_close(slerp(a, a * 3, torch.full([50, 1], 0.5)), a * 2, rtol=1e-6, atol=1e-6)


def test_slerp_agrees_with_torchmetrics_where_lengths_are_equal():
    from torchmetrics.functional.image.perceptual_path_length import _interpolate

    stream = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn([50, 8], generator=stream).double(), dim=1) for _ in range(2))
    for t in (0.0, 0.3, 0.999):
        found = slerp(a, b, torch.full([50, 1], t, dtype=torch.float64))
        torch.testing.assert_close(found, _interpolate(a, b, t, 'slerp_unit'), rtol=1e-6, atol=1e-8)


def test_path_length_agrees_with_torchmetrics(flat, monkeypatch):
    from torchmetrics.functional.image import perceptual_path_length as oracle

    found = sampler(flat, LinearGenerator(gain=1), 'w', 'end')
    z0, z1 = found.draw(range(101))[:2]  # 101, so that 1 and 99 % fall on items: it rounds both of them down.

    class Sampler(torch.nn.Module):
        ends = [z0, z1]

        def sample(self, num):
            return self.ends.pop(0)

        def forward(self, z):
            img = found.G(z, torch.zeros([len(z), 0]), noise_mode='const')
            return (img + 1) * 127.5

    class Distance(torch.nn.Module):
        def forward(self, a, b):
            return (a[:, 0, 0] - b[:, 0, 0]).square().sum(dim=1)

    monkeypatch.setitem(oracle.__globals__, '_TORCHVISION_AVAILABLE', True)
    expected = oracle(Sampler(), num_samples=101, resize=None, sim_net=Distance())[0]
    distances = found.distances(range(101)).numpy()
    assert trimmed_mean(distances) == pytest.approx(float(expected), rel=1e-3)


def test_the_smallest_and_largest_hundredth_are_left_out():
    values = np.random.RandomState(0).permutation(np.arange(101.0))
    assert trimmed_mean(np.append(values[values < 100], [1e9]).astype(np.float32)) == 50.0
    assert trimmed_mean(np.array([3.0])) == 3


def test_noise_is_an_image_s_own_the_same_for_both_points_and_put_back(flat):
    G = LinearGenerator(gain=1, strength=5.0)
    before = G.synthesis.noise_const.clone()
    with own_noise(G, [1, 2]):
        first, second, first_again, _second_again = G.synthesis.noise_const
        assert G.synthesis.noise_const.shape == (4, 1, 16, 16) and torch.equal(first, first_again)
        assert not torch.equal(first, second)
    assert torch.equal(G.synthesis.noise_const, before) and 'noise_const' in dict(G.synthesis.named_buffers())
    with pytest.raises(KeyError), own_noise(G, [1]):
        raise KeyError
    assert torch.equal(G.synthesis.noise_const, before)
    quiet = sampler(flat, LinearGenerator(gain=1), 'w', 'end').distances(range(6))
    torch.testing.assert_close(sampler(flat, G, 'w', 'end').distances(range(6)), quiet, rtol=0.1, atol=0)


@pytest.mark.parametrize('space', ['z', 'w'])
def test_which_paths_share_a_batch_changes_nothing(space, flat):
    found = sampler(flat, LinearGenerator(gain=1, strength=1.0), space, 'full')
    alone = torch.cat([found.distances(range(item, item + 1)) for item in range(5)])
    torch.testing.assert_close(found.distances(range(5)), alone, rtol=1e-6, atol=0)


def test_the_real_synthesis_network_takes_noise_of_each_path():
    from training.networks import Generator

    torch.manual_seed(0)
    G = Generator(z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3,
                  synthesis_kwargs=dict(channel_base=64, channel_max=8)).eval().requires_grad_(False)
    for module in G.modules():
        if hasattr(module, 'noise_strength'):
            module.noise_strength.fill_(0.5)
    opts = MetricOptions(G=G, device=CPU)
    found = PathSampler(opts, get_feature_detector('random:0'), 'z', 'full', False)
    alone = torch.cat([found.distances(range(item, item + 1)) for item in range(3)])
    torch.testing.assert_close(found.distances(range(3)), alone, rtol=0.05, atol=0)
    with own_noise(found.G, [1, 2]):
        ws = found.G.mapping(torch.ones([4, 8]), torch.zeros([4, 0]))
        img = found.G.synthesis(ws, noise_mode='const')
    torch.testing.assert_close(img[:2], img[2:])
    assert (img[0] - img[1]).abs().max() > 0.01


def test_a_conditional_network_gets_one_class_a_path(flat):
    G = LinearGenerator(gain=1, c_dim=3, shift=1.0)
    found = sampler(flat, G, 'w', 'end', dataset_kwargs=DATA)
    distances, (z0, z1, _t) = measured(found)
    classes = found.draw(range(12)).c.argmax(dim=1).numpy()
    assert len(set(classes)) == 3
    np.testing.assert_allclose(distances, np.square((1 + classes[:, None]) * (z1 - z0)).sum(axis=1), rtol=0.02)


def test_truncation_shortens_paths_and_grey_images_are_seen_as_rgb(flat):
    whole = measured(sampler(flat, LinearGenerator(gain=1), 'w', 'end'))[0]
    half = measured(sampler(flat, LinearGenerator(gain=1), 'w', 'end', G_kwargs=dict(truncation_psi=0.5)))[0]
    grey = measured(sampler(flat, LinearGenerator(gain=1, channels=1), 'w', 'end'))[0]
    np.testing.assert_allclose(half, whole / 4, rtol=0.02)
    np.testing.assert_allclose(grey, whole)


def test_the_crop_is_the_middle_of_the_face_and_large_images_come_down_by_means():
    img = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert crop_face(img).flatten(1).tolist() == [[row * 8 + column for row in (3, 4, 5, 6) for column in (2, 3, 4, 5)]]
    large = torch.rand([1, 3, 512, 256], generator=torch.Generator().manual_seed(0))
    assert bring_down(large, 256) is large
    torch.testing.assert_close(bring_down(large, 1024)[0, 1, 3, 5], large[0, 1, 12:16, 20:24].mean())


def test_metrics_name_their_measure_and_only_those_of_stylegan_crop(flat):
    calls = {name: metric_main.calc_metric(name, G=LinearGenerator(gain=1), num=5, device=CPU, detector=flat)
             for name in ('ppl2_wend', 'ppl_zfull', 'ppl_wfull', 'ppl_zend', 'ppl_wend')}
    # What moves is in the first row, which the crop leaves out.
    assert {name for name, result in calls.items() if result.results[name] > 0.1} == {'ppl2_wend'}
    assert calls['ppl2_wend'].distance == 'LPIPS' and calls['ppl2_wend'].n == 5
    paths = {name: result.get('path') for name, result in calls.items()}
    slerp = 'slerp, lengths interpolated'
    assert paths == dict(ppl2_wend=None, ppl_zfull=slerp, ppl_wfull=None, ppl_zend=slerp, ppl_wend=None)
    other = metric_main.calc_metric('ppl2_wend', G=LinearGenerator(gain=1), num=5, device=CPU, detector='random:0')
    assert (other.detector, other.distance) == ('random:0', 'squared distance of features')
    assert other.results.ppl2_wend > 0


def test_senseless_spaces_are_refused(flat):
    with pytest.raises(ValueError, match="expected 'z' or 'w'"):
        sampler(flat, LinearGenerator(), 'y', 'end')
