"""φ, the mapping, the encoder and the generator of lia_plugin.networks."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
import zuko
from hypothesis import given, settings
from hypothesis import strategies as st

from lia_plugin.networks import BatchNorm, Encoder, Generator, Phi, Standardize

SYNTHESIS = dict(channel_base=256, channel_max=16)
ENCODER = dict(channel_base=256, channel_max=16)


def make_phi(features=6, c_dim=0, coupling='affine', seed=0, dtype=torch.float64, **kwargs):
    torch.manual_seed(seed)
    phi = Phi(features, c_dim, hidden_features=16, coupling=coupling, **kwargs).to(dtype)
    if phi.standardize is not None:
        phi.standardize.set_gaussian(*random_gaussian(features, c_dim))
    for name, p in phi.named_parameters():
        if 'log_scale' in name:  # Affine steps start as additive ones; that would prove nothing here.
            p.data = torch.randn_like(p) * 50
    return phi


def random_gaussian(features, c_dim):
    factor = torch.randn([features, features], dtype=torch.float64)
    cov = factor @ factor.t() + 0.1 * torch.eye(features)
    return torch.randn([features]), cov, torch.randn([c_dim, features]) if c_dim else None


def make_generator(encoder=None, c_dim=0, **kwargs):
    torch.manual_seed(0)
    return Generator(
        z_dim=8, c_dim=c_dim, w_dim=8, img_resolution=16, img_channels=1, synthesis_kwargs=SYNTHESIS,
        encoder_kwargs=encoder, **kwargs,
    ).requires_grad_(False)  # fmt: skip


def _output(direction, label, y):
    return direction(y, label)[0]


def _shift_by(net, x):
    return zuko.transforms.DependentTransform(zuko.transforms.AdditiveTransform(net(x)), 1)


phis = st.builds(
    make_phi,
    features=st.integers(2, 9),
    c_dim=st.sampled_from([0, 3]),
    coupling=st.sampled_from(['additive', 'affine']),
    seed=st.integers(0, 100),
    num_couplings=st.integers(1, 5),
    shift_activation=st.sampled_from(['lrelu', 'linear']),
    y_activation=st.sampled_from(['linear', 'lrelu']),
    standardize=st.booleans(),
)


@given(phis, st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_phi_log_det_is_that_of_the_autograd_jacobian(phi, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn([2, phi.features], generator=generator, dtype=torch.float64)
    c = torch.eye(3, dtype=torch.float64)[:2] if phi.c_dim else None
    for direction in (phi, phi.inverse):
        _, log_det = direction(y, c)
        for i in range(2):
            label = c[i : i + 1] if phi.c_dim else None
            # [1, D, 1, D] of a batch of one: no per-sample closure needed.
            jacobian = torch.autograd.functional.jacobian(partial(_output, direction, label), y[i : i + 1])[0, :, 0]
            assert abs(torch.linalg.slogdet(jacobian)[1] - log_det[i]) < 1e-8


@given(phis, st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_phi_round_trip_in_float64_and_log_dets_cancel(phi, seed):
    y = torch.randn([5, phi.features], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1]] if phi.c_dim else None
    z, there = phi(y, c)
    back, here = phi.inverse(z, c)
    assert (back - y).abs().max() < 1e-10
    assert (there + here).abs().max() < 1e-10


@given(st.integers(0, 1000), st.sampled_from(['additive', 'affine']))
@settings(max_examples=10, deadline=None)
def test_phi_round_trip_in_float32_at_full_width(seed, coupling):
    torch.manual_seed(seed)
    phi = Phi(512, coupling=coupling)
    z = torch.randn([64, 512])
    assert (phi(phi.inverse(z)[0])[0] - z).abs().max() < 1e-4


@pytest.mark.parametrize('coupling', ['additive', 'affine'])
def test_phi_with_zero_init_is_the_identity(coupling):
    torch.manual_seed(0)
    phi, z = Phi(9, 2, coupling=coupling, zero_init=True), torch.randn([5, 9])
    c = torch.eye(2)[[0, 1, 1, 0, 1]]
    for direction in (phi, phi.inverse):
        h, log_det = direction(z, c)
        assert torch.equal(h, z) and not log_det.any()
    flipped = Phi(9, coupling=coupling, zero_init=True, num_couplings=3)
    assert torch.equal(flipped(z)[0], z.flip(1))


def test_standardize_makes_its_gaussian_a_standard_one():
    torch.manual_seed(0)
    step = Standardize(3, 2).double()
    mean, cov, label_mean = random_gaussian(3, 2)
    step.set_gaussian(mean, cov, label_mean)
    c = torch.eye(2, dtype=torch.float64)[[0, 1]]
    oracle = torch.distributions.MultivariateNormal((mean + label_mean).double(), cov)
    x = oracle.sample()
    h, log_det = step(x, c)
    prior = torch.distributions.Normal(0, 1).log_prob(h).sum(1)
    assert torch.allclose(prior + log_det, oracle.log_prob(x), atol=1e-8)
    assert torch.allclose(step.white.t() @ cov @ step.white, torch.eye(3, dtype=torch.float64), atol=1e-10)
    widest = (cov @ step.white)[:, 0] / step.white[:, 0]
    assert torch.allclose(widest, torch.linalg.eigvalsh(cov)[-1].expand(3), rtol=1e-8), 'the widest axis is first'
    with pytest.raises(ValueError, match='positive definite'):
        step.set_gaussian(mean, torch.ones([3, 3]))


def test_standardize_round_trip_in_float32_at_full_width():
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn([512, 512], dtype=torch.float64))[0]
    cov = axes @ torch.diag(torch.logspace(1, -4, 512, dtype=torch.float64)) @ axes.t()
    phi = Phi(512, zero_init=True, standardize=True, y_activation='lrelu', coupling='affine')
    phi.standardize.set_gaussian(torch.randn([512]), cov)
    z = torch.randn([64, 512])
    assert (phi(phi.inverse(z)[0])[0] - z).abs().max() < 5e-4


@pytest.mark.parametrize('c_dim', [0, 3])
def test_a_mapping_network_of_the_hosts_stands_between_y_and_w(c_dim):
    from training.networks import MappingNetwork as HostMapping

    base = dict(num_layers=2, lr_multiplier=0.1)
    G = make_generator(c_dim=c_dim, mapping_kwargs=dict(base_kwargs=base, phi_kwargs=dict(hidden_features=16))).eval()
    oracle = HostMapping(8, c_dim, 8, None, **base)
    oracle.load_state_dict(G.mapping.base.state_dict())
    z, c = torch.randn([3, 8]), torch.eye(3) if c_dim else None
    y = G.mapping.z_to_y(z, c)
    assert torch.equal(G.mapping(z, c)[:, 4], oracle(y, c))
    assert torch.equal(G.mapping.y_to_ws(5 * y, c)[:, 0], oracle(5 * y, c)), 'the length of y is free'
    assert torch.equal(pickle.loads(pickle.dumps(G))(z, c, noise_mode='const'), G(z, c, noise_mode='const'))
    with pytest.raises(ValueError, match='num_layers must be 0'):
        make_generator(mapping_kwargs=dict(base_kwargs=base, num_layers=1))
    stage2 = make_generator(dict(**ENCODER), c_dim, mapping_kwargs=dict(base_kwargs=base)).eval()
    assert all(name.startswith('mapping.encoder.') for name, _ in stage2.named_parameters())
    y = stage2.encode(torch.rand([2, 1, 16, 16]), None if c is None else c[:2])
    assert torch.allclose(y.square().mean(dim=1), torch.ones(2), atol=1e-4)


def test_phi_agrees_with_zuko():
    phi = make_phi(features=6, coupling='additive', num_couplings=3)
    y = torch.randn([4, 6], dtype=torch.float64)
    reverse = zuko.transforms.PermutationTransform(torch.arange(5, -1, -1))
    steps = []
    for step in phi.couplings:
        mask = torch.tensor([True] * 3 + [False] * 3)  # True: passed through
        meta = partial(_shift_by, torch.nn.Sequential(step.hidden, step.shift))
        steps += [reverse, zuko.transforms.CouplingTransform(meta, mask)]
    oracle = zuko.transforms.ComposedTransform(*steps)
    z, log_det = phi(y)
    assert torch.allclose(z, oracle(y), atol=1e-12)
    assert torch.allclose(log_det, oracle.log_abs_det_jacobian(y, z), atol=1e-12)
    assert torch.allclose(phi.inverse(z)[0], oracle.inv(z), atol=1e-12)


def test_phi_starts_as_the_reference_code_does():
    torch.manual_seed(0)
    phi = Phi(512)
    assert sum(p.numel() for p in phi.parameters()) == 1_051_648
    y, log_det = phi.inverse(torch.randn([2000, 512]))
    assert -2.0 < y.mean() < -1.0 and 1.2 < y.std(dim=0).mean() < 3.1
    assert log_det.abs().max() == 0  # additive coupling preserves volume


def test_phi_stays_float32_under_autocast_and_half_input():
    phi = make_phi(features=8, coupling='additive', dtype=torch.float32)
    z = torch.randn([4, 8])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y, _ = phi.inverse(z)
    assert y.dtype == torch.float32 and torch.equal(y, phi.inverse(z)[0])
    assert phi.inverse(z.half())[0].dtype == torch.float32


@pytest.mark.parametrize('coupling', ['additive', 'affine'])
def test_phi_every_parameter_gets_a_gradient(coupling):
    phi = make_phi(c_dim=3, coupling=coupling)
    z, log_det = phi(torch.randn([16, 6], dtype=torch.float64), torch.eye(3, dtype=torch.float64)[[0, 1] * 8])
    (z.square().sum() + log_det.sum()).backward()
    assert [n for n, p in phi.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_phi_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r'\[N, 6\], got \[2, 5\]'):
        make_phi()(torch.zeros([2, 5]))
    with pytest.raises(ValueError, match=r'labels expected \[2, 3\], got None'):
        make_phi(c_dim=3)(torch.zeros([2, 6]))
    with pytest.raises(ValueError, match='planar'):
        Phi(4, coupling='planar')


def test_labels_change_phi_but_not_its_invertibility():
    phi = make_phi(c_dim=2)
    z = torch.randn([1, 6], dtype=torch.float64)
    a, b = (phi.inverse(z, label[None])[0] for label in torch.eye(2, dtype=torch.float64))
    assert (a - b).abs().max() > 1e-3
    assert torch.allclose(phi(b, torch.eye(2, dtype=torch.float64)[1:])[0], z, atol=1e-12)


def test_log_prob_is_a_density():
    """Integrated over the plane it gives one, and for a volume-preserving φ it is N(φ(y); 0, I)."""
    G = Generator(2, 0, 2, 16, 1, synthesis_kwargs=SYNTHESIS, mapping_kwargs=dict(phi_kwargs=dict(hidden_features=8)))
    axis = torch.linspace(-12, 12, 601)
    grid = torch.cartesian_prod(axis, axis)
    mass = G.mapping.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass - 1) < 1e-2
    z = G.mapping.y_to_z(grid[:5])
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    assert torch.allclose(G.mapping.log_prob(grid[:5]), expected, atol=1e-4)


def test_truncation_pulls_w_to_its_mean():
    G = make_generator().eval()
    G.mapping.w_avg.copy_(torch.arange(8.0))
    z = torch.randn([3, 8])
    full, half = G.mapping(z, None), G.mapping(z, None, truncation_psi=0.5)
    assert torch.allclose(half, (full + torch.arange(8.0)) / 2, atol=1e-6)
    cut = G.mapping(z, None, truncation_psi=0.5, truncation_cutoff=2)
    assert torch.equal(cut[:, 2:], full[:, 2:]) and torch.allclose(cut[:, :2], half[:, :2])


def test_w_avg_follows_both_hosts_keywords():
    G = make_generator().train()
    z = torch.randn([4, 8])
    w = G.mapping.z_to_y(z)
    G.mapping(z, None, skip_w_avg_update=True)
    G.mapping(z, None, update_emas=False)
    assert not G.mapping.w_avg.any()
    G.mapping(z, None)
    assert torch.allclose(G.mapping.w_avg, w.mean(0) * (1 - 0.995), atol=1e-6)
    G.eval()
    before = G.mapping.w_avg.clone()
    G.mapping(z, None)
    assert torch.equal(G.mapping.w_avg, before)
    G.mapping(z, None, update_emas=True)
    assert not torch.equal(G.mapping.w_avg, before)


def test_without_layers_y_is_w_and_with_layers_it_is_not():
    G = make_generator()
    y = torch.randn([2, 8])
    assert torch.equal(G.mapping.y_to_ws(y)[:, 3], y)
    deep = make_generator(mapping_kwargs=dict(num_layers=2))
    assert not torch.allclose(deep.mapping.y_to_ws(y)[:, 3], y)
    z = torch.randn([2, 8])
    assert torch.allclose(deep.mapping.y_to_z(deep.mapping.z_to_y(z)), z, atol=1e-4)
    with pytest.raises(ValueError, match='z_dim must be w_dim'):
        Generator(8, 0, 16, 16, 1, synthesis_kwargs=SYNTHESIS)


def test_generator_is_decode_of_phi_inverse():
    G = make_generator()
    z = torch.randn([2, 8])
    assert torch.allclose(G(z, noise_mode='const'), G.decode(G.mapping.z_to_y(z), noise_mode='const'), atol=1e-6)


@pytest.mark.parametrize('arch', ['resnet', 'paper'])
@pytest.mark.parametrize('space', ['y', 'z'])
def test_inversion_gives_y_and_its_exact_z(arch, space):
    G = make_generator(dict(arch=arch, space=space, **ENCODER), c_dim=3).eval()
    img, c = torch.rand([2, 1, 16, 16]) * 2 - 1, torch.eye(3)[:2]
    y, z = G.invert(img, c)
    assert y.shape == z.shape == (2, 8)
    assert torch.allclose(G.mapping.z_to_y(z, c), y, atol=1e-5)
    code = G.encoder(img)
    assert torch.allclose(code, y if space == 'y' else z, atol=1e-5)


def test_stage_1_has_no_encoder_and_says_so():
    with pytest.raises(ValueError, match='stage 1'):
        make_generator().encode(torch.zeros([1, 1, 16, 16]))


def test_encoder_names_the_shape_it_wants():
    with pytest.raises(ValueError, match=r'\[N, 1, 16, 16\], got \[1, 3, 16, 16\]'):
        Encoder(8, 16, 1, **ENCODER)(torch.zeros([1, 3, 16, 16]))
    with pytest.raises(ValueError, match='power of two'):
        Encoder(8, 24, 1)


def test_stage_2_leaves_only_the_encoder_to_optimisers():
    G = make_generator(dict(**ENCODER))
    assert all(name.startswith('mapping.encoder.') for name, _ in G.named_parameters())
    G.requires_grad_(True)  # what a host does to the whole of G
    img = torch.rand([2, 1, 16, 16])
    G.decode(G.encode(img), noise_mode='const').sum().backward()
    assert [n for n, p in G.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not any(b.requires_grad for b in G.buffers())


def test_stage_2_takes_stage_1_weights_by_name():
    stage1, stage2 = make_generator(), make_generator(dict(**ENCODER))
    names = {n for n, _ in stage1.named_parameters()} | {n for n, _ in stage1.named_buffers()}
    frozen = {n for n, _ in stage2.named_buffers() if not n.startswith('mapping.encoder.')}
    assert names == frozen


def test_output_statistics_set_the_codes_scale():
    torch.manual_seed(0)
    encoder = Encoder(8, 16, 1, **ENCODER)
    mean, std = torch.linspace(-3, 3, 8), torch.linspace(0.5, 4, 8)
    plain = encoder(torch.rand([4, 1, 16, 16]))
    encoder.set_output_statistics(mean, std)
    torch.manual_seed(1)
    img = torch.rand([4, 1, 16, 16])
    scaled = encoder(img)
    encoder.set_output_statistics(torch.zeros(8), torch.ones(8))
    assert torch.allclose(scaled, encoder(img) * std + mean, atol=1e-5)
    assert plain.isfinite().all()


def test_batch_norm_is_torchs():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    for _ in range(3):
        x = torch.randn([50, 3, 8, 8]) * 3 + 1
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=1e-3)  # torch keeps the unbiased one
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-2)


@pytest.mark.parametrize('encoder', [None, dict(**ENCODER), dict(arch='paper')])
def test_pickle_and_deepcopy_keep_every_number(encoder):
    G = make_generator(encoder).eval()
    z = torch.randn([2, 8])
    for twin in (pickle.loads(pickle.dumps(G)), copy.deepcopy(G)):
        assert torch.equal(twin(z, noise_mode='const'), G(z, noise_mode='const'))
        assert [n for n, _ in twin.named_parameters()] == [n for n, _ in G.named_parameters()]


def test_state_holds_no_numpy_scalars():
    """Old hosts can't unpickle NumPy's newer ones."""
    G = make_generator(dict(**ENCODER))
    for module in G.modules():
        for name, value in vars(module).items():
            assert type(value).__module__ != 'numpy', f'{type(module).__name__}.{name}'


def test_log_prob_of_standard_normal_latents():
    """E[log N(z; 0, I)] = −d/2 (1 + log 2π), and log p(y) = log p(z) − log|det ∂y/∂z|."""
    phi_kwargs = dict(coupling='affine', hidden_features=16)
    G = make_generator(mapping_kwargs=dict(phi_kwargs=phi_kwargs))
    for step in G.mapping.phi.couplings:
        step.log_scale.weight.normal_(std=20)
    z = torch.randn([4000, 8])
    y, log_det = G.mapping.phi.inverse(z)
    log_p_z = G.mapping.log_prob(y) + log_det
    assert log_det.abs().max() > 0.1
    assert abs(log_p_z.mean() + 4 * (1 + math.log(2 * math.pi))) < 0.2


def test_y_plus_of_equal_layers_is_y():
    G = make_generator()
    y = torch.randn([3, 8])
    plus = y.unsqueeze(1).repeat([1, G.num_ws, 1])
    torch.testing.assert_close(G.mapping.y_to_ws(plus, None, 0.7, 2), G.mapping.y_to_ws(y, None, 0.7, 2))


def test_y_plus_reaches_each_layer_by_itself():
    G = make_generator(c_dim=3, mapping_kwargs=dict(num_layers=2))
    y, c = torch.randn([2, G.num_ws, 8]), torch.eye(3)[:2]
    ws = G.mapping.y_to_ws(y, c)
    for layer in range(G.num_ws):
        torch.testing.assert_close(ws[:, layer], G.mapping.y_to_w(y[:, layer], c))


def test_y_plus_with_another_number_of_layers_is_refused():
    G = make_generator()
    with pytest.raises(ValueError, match=r'expected \[N, 8\] or \[N, 6, 8\], got \[2, 5, 8\]'):
        G.mapping.y_to_ws(torch.zeros([2, 5, 8]))


def plus_generator(**encoder):
    G = make_generator(dict(ENCODER, **encoder))
    torch.manual_seed(1)
    if G.encoder.offsets is not None:
        G.encoder.unlocked.fill_(1)
    for layer in (G.encoder.offsets, getattr(G.encoder, 'change', None)):
        if layer is not None:  # They begin without effect, which would prove nothing here.
            torch.nn.init.normal_(layer.weight)
    return G


def test_a_new_encoder_to_y_plus_gives_one_code_for_all_layers():
    G = make_generator(dict(ENCODER, space='y+'))
    y = G.encode(torch.rand([2, 1, 16, 16]) * 2 - 1)
    assert y.shape == (2, G.num_ws, 8) and torch.equal(y, y[:, :1].expand_as(y))


def test_later_answers_begin_as_the_first_one():
    G = make_generator(dict(ENCODER, iters=3))
    img = torch.rand([2, 1, 16, 16]) * 2 - 1
    assert torch.equal(G.encode(img), G.encoder(img))


def test_offsets_count_as_far_as_their_layers_are_unlocked():
    G = plus_generator(space='y+')
    img = torch.rand([2, 1, 16, 16]) * 2 - 1
    free = G.encode(img)
    G.encoder.unlocked[2:] = 0
    y = G.encode(img)
    assert torch.equal(y[:, :3], free[:, :3]) and torch.equal(y[:, 3:], y[:, :1].expand_as(y[:, 3:]))
    assert (free[:, 3:] != y[:, 3:]).all()


def test_spaces_of_an_encoder():
    img = torch.rand([2, 1, 16, 16]) * 2 - 1
    plus = plus_generator(space='y+')
    y = plus.encode(img)
    assert torch.equal(plus.encode(img, space='y'), y[:, 0])
    inverted = plus.invert(img)
    assert torch.equal(inverted.y, y)
    torch.testing.assert_close(plus.mapping.z_to_y(inverted.z), y[:, 0])
    with pytest.raises(ValueError, match='one y for all layers'):
        make_generator(ENCODER).encode(img, space='y+')
    with pytest.raises(ValueError, match="'y', 'y\\+' or None"):
        plus.encode(img, space='w')


@pytest.mark.parametrize('space', ['y', 'y+'])
def test_an_encoder_is_asked_again_with_what_has_come_of_its_answer(space):
    G = plus_generator(space=space, iters=2)
    img = torch.rand([2, 1, 16, 16]) * 2 - 1
    first = G.encoder(img)
    seen = G.mapping.feedback(img, first, None, G.synthesis)
    torch.testing.assert_close(seen.recon, G.decode(first, noise_mode='const'))
    leaf = first.clone().requires_grad_(True)
    (plain,) = torch.autograd.grad((G.decode(leaf, noise_mode='const') - img).square().sum(), [leaf])
    torch.testing.assert_close(seen.gradient / seen.gradient.norm(), plain / plain.norm())
    torch.testing.assert_close(G.encode(img), G.encoder(img, seen))
    assert not torch.allclose(G.encode(img), first)


def test_an_answer_depends_on_its_own_image_alone():
    G = plus_generator(iters=3)
    img = torch.rand([3, 1, 16, 16]) * 2 - 1
    torch.testing.assert_close(G.encode(img)[1:2], G.encode(img[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_feedback_works_where_gradients_are_off(mode):
    G = plus_generator(iters=2)
    img = torch.rand([2, 1, 16, 16]) * 2 - 1
    expected = G.encode(img)
    with mode():
        assert torch.equal(G.encode(img), expected)


@pytest.mark.parametrize('wrong, told', [
    (dict(space='z', iters=2), 'towards z, got 2'), (dict(arch='paper', iters=2), "needs arch='resnet'"),
    (dict(space='w'), "'y', 'y\\+' or 'z'"),
])
def test_encoders_that_cannot_be(wrong, told):
    with pytest.raises(ValueError, match=told):
        Encoder(8, 16, 1, **wrong)


def test_every_parameter_of_an_encoder_that_is_asked_again_gets_a_gradient():
    G = plus_generator(space='y+', iters=2)
    G.encoder.requires_grad_(True)
    img = torch.rand([2, 1, 16, 16]) * 2 - 1
    code = G.encoder(img)
    again = G.encoder(img, G.mapping.feedback(img, code, None, G.synthesis))
    (code.square().sum() + again.square().sum()).backward()
    missing = [n for n, p in G.encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
