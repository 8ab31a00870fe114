"""The loss of stage 2: each term against its formula, both hosts' ways of calling it, what it trains and what not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lia_plugin import networks
from lia_plugin.loss import EncoderLoss
from lia_plugin.networks import BatchNorm, Generator
from training.networks import Discriminator

WIDTHS: dict[str, int] = dict(channel_base=256, channel_max=16)
NOTHING = dict(pixel_weight=0.0, percep='none', adv_weight=0.0, latent_weight=0.0)
N = 4


@pytest.fixture
def nets() -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    G = Generator(8, 2, 8, 16, 1, synthesis_kwargs=WIDTHS, encoder_kwargs=dict(WIDTHS))
    D = Discriminator(2, 16, 1, epilogue_kwargs=dict(mbstd_group_size=2), **WIDTHS)
    return G.train().requires_grad_(False), D.train().requires_grad_(False)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    c = torch.eye(2)[torch.arange(N) % 2]
    return dict(real_img=torch.rand([N, 1, 16, 16]) * 2 - 1, real_c=c, gen_z=torch.randn([N, 8]), gen_c=c.flip(0))


def run(loss: EncoderLoss, module: torch.nn.Module, phase: str, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """One phase as a host runs it; gradients stay in the module."""
    module.zero_grad(set_to_none=True)
    module.requires_grad_(True)
    value = loss.accumulate_gradients(phase=phase, **batch)
    module.requires_grad_(False)
    return value


def make(nets: tuple[Generator, Discriminator], **kwargs: Any) -> EncoderLoss:
    return EncoderLoss(torch.device('cpu'), G=nets[0], D=nets[1], **{**NOTHING, **kwargs})


def test_pixel_term_and_its_gradient_are_those_of_the_mean_squared_error(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    G, _ = nets
    value = run(make(nets, pixel_weight=3.0), G, 'Gboth', batch)
    found = {n: p.grad for n, p in G.named_parameters()}
    G.requires_grad_(True)
    recon = G.decode(G.encode(batch['real_img']), noise_mode='const')
    expected = 3 * F.mse_loss(recon, batch['real_img'])
    grads = torch.autograd.grad(expected, list(G.parameters()))
    assert value is not None
    torch.testing.assert_close(value, expected.detach())
    for (name, _), grad in zip(G.named_parameters(), grads, strict=True):
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-7, msg=name)


def test_gradients_pass_the_frozen_generator_enlarged(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    """What a float16 layer would see is √pixels larger than the gradient of the loss; what the encoder gets is not."""
    G, _ = nets
    loss = make(nets, pixel_weight=1.0)
    seen: list[torch.Tensor] = []
    synthesis = loss.synthesis

    def spy(ws: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        img = synthesis(ws, **kwargs)
        img.register_hook(seen.append)
        return img

    spy.img_channels, spy.img_resolution = 1, 16  # type: ignore[attr-defined]
    loss.synthesis = spy
    run(loss, G, 'Gboth', batch)
    recon = G.decode(G.encode(batch['real_img']), noise_mode='const')
    plain = 2 * (recon - batch['real_img']) / recon.numel()
    torch.testing.assert_close(seen[0], plain * 16)


def test_latent_term_is_the_error_of_y_in_units_of_its_variance(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    G, _ = nets
    loss = make(nets, latent_weight=0.5, mix=0.5)
    value = run(loss, G, 'Gmain', batch)
    half = [2, 3]
    y = G.mapping.z_to_y(batch['gen_z'][half], batch['gen_c'][half])
    again = G.encode(G.decode(y, noise_mode='const'))
    assert value is not None
    torch.testing.assert_close(value, 0.5 * 0.5 * F.mse_loss(again, y) / loss.code_variance)
    wide = G.mapping.z_to_y(torch.randn([20000, 8]), torch.eye(2)[torch.arange(20000) % 2])
    assert float(loss.code_variance) == pytest.approx(float(wide.var(dim=0).mean()), rel=0.1)


def test_discriminator_phases_add_up(nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]) -> None:
    G, D = nets
    loss = make(nets, adv_weight=0.1, r1_gamma=4.0)
    main, reg, both = (run(loss, D, phase, batch) for phase in ('Dmain', 'Dreg', 'Dboth'))
    img = batch['real_img'].clone().requires_grad_()
    logits = D(img, batch['real_c'])
    (grad,) = torch.autograd.grad(logits.sum(), [img])
    recon = G.decode(G.encode(batch['real_img']), noise_mode='const')
    expected = F.softplus(D(recon, batch['real_c'])).mean() + F.softplus(-logits).mean()
    assert main is not None and reg is not None and both is not None
    torch.testing.assert_close(main, expected.detach())
    torch.testing.assert_close(reg, 2 * grad.square().sum([1, 2, 3]).mean())
    torch.testing.assert_close(both, main + reg)


def test_without_adversarial_weight_the_discriminator_rests(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    loss = make(nets, pixel_weight=1.0)
    assert run(loss, nets[1], 'Dboth', batch) is None and run(loss, nets[0], 'Greg', batch) is None
    assert all(p.grad is None for p in nets[1].parameters())


def test_both_hosts_ways_to_call_it_agree(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    G, D = nets
    kwargs: dict[str, Any] = dict(NOTHING, pixel_weight=1.0)
    ada = EncoderLoss(
        device=torch.device('cpu'), G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=None, **kwargs
    )
    sg3 = EncoderLoss(device=torch.device('cpu'), G=G, D=D, augment_pipe=None, **kwargs)
    G.requires_grad_(True)
    a = ada.accumulate_gradients('Gmain', *batch.values(), sync=True, gain=1)
    b = sg3.accumulate_gradients('Gmain', *batch.values(), gain=1, cur_nimg=7)
    assert a is not None and b is not None and torch.equal(a, b)


def test_encoder_towards_z_learns_z(batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    G = Generator(8, 2, 8, 16, 1, synthesis_kwargs=WIDTHS, encoder_kwargs=dict(WIDTHS, space='z')).requires_grad_(False)
    loss = EncoderLoss(torch.device('cpu'), G=G, **{**NOTHING, 'latent_weight': 1.0, 'mix': 1.0})
    value = run(loss, G, 'Gmain', batch)
    img = G.decode(G.mapping.z_to_y(batch['gen_z'], batch['gen_c']), noise_mode='const')
    assert value is not None
    torch.testing.assert_close(value, F.mse_loss(G.encoder(img), batch['gen_z']))


def test_batch_norm_counts_a_batch_once_a_step(batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    G = Generator(8, 2, 8, 16, 1, synthesis_kwargs=WIDTHS, encoder_kwargs=dict(arch='paper')).train()
    D = Discriminator(2, 16, 1, epilogue_kwargs=dict(mbstd_group_size=2), **WIDTHS)
    loss = make((G.requires_grad_(False), D.requires_grad_(False)), pixel_weight=1.0, adv_weight=0.1)
    norm = next(m for m in G.modules() if isinstance(m, BatchNorm))
    run(loss, G, 'Gboth', batch)
    after_encoder = norm.running_mean.clone()
    assert after_encoder.any()
    run(loss, D, 'Dboth', batch)
    assert torch.equal(norm.running_mean, after_encoder)


def test_a_generator_without_encoder_is_refused() -> None:
    G = Generator(8, 0, 8, 16, 1, synthesis_kwargs=WIDTHS)
    with pytest.raises(ValueError, match='no encoder'):
        EncoderLoss(torch.device('cpu'), G=G)


def plus_nets(**encoder: Any) -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    G = Generator(8, 2, 8, 16, 1, synthesis_kwargs=WIDTHS, encoder_kwargs=dict(WIDTHS, **encoder))
    D = Discriminator(2, 16, 1, epilogue_kwargs=dict(mbstd_group_size=2), **WIDTHS)
    return G.train().requires_grad_(False), D.train().requires_grad_(False)


def test_a_mixed_batch_has_generated_images(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    G, _ = nets
    value = run(make(nets, pixel_weight=1.0, mix=0.25), G, 'Gmain', batch)
    y = G.mapping.z_to_y(batch['gen_z'][3:], batch['gen_c'][3:])
    img = torch.cat([batch['real_img'][:3], G.decode(y, noise_mode='const')])
    expected = F.mse_loss(G.decode(G.encode(img), noise_mode='const'), img)
    assert value is not None
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize('mix', [0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('world_size', [1, 2, 3, 8])
def test_every_process_has_its_share_of_generated_images(
    nets: tuple[Generator, Discriminator], mix: float, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = make(nets, pixel_weight=1.0, mix=mix)
    found = []
    for rank in range(world_size):
        monkeypatch.setattr('lia_plugin.host.world_size', lambda: world_size)
        monkeypatch.setattr('lia_plugin.host.rank', lambda rank=rank: rank)
        places = loss._generated(64)
        assert abs(len(places) - 64 * mix) <= 2
        found += (places * world_size + rank).tolist()
    monkeypatch.undo()
    assert sorted(found) == loss._generated(64 * world_size).tolist(), 'the same images as of one process'


def test_the_adversary_waits_for_its_share_of_the_stage(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    G, D = nets
    loss = make(nets, pixel_weight=1.0, adv_weight=0.5, adv_start=0.5, total_kimg=4 * N / 1000)
    seen = []
    for _ in range(4):
        pixel = F.mse_loss(G.decode(G.encode(batch['real_img']), noise_mode='const'), batch['real_img'])
        value = run(loss, G, 'Gmain', batch)
        assert value is not None
        seen.append(float(value) > float(pixel) + 1e-3)
    assert seen == [False, False, True, True]
    early = make(nets, pixel_weight=1.0, adv_weight=0.5, adv_start=0.5, total_kimg=4 * N / 1000)
    assert run(early, D, 'Dboth', batch) is None and run(loss, D, 'Dboth', batch) is not None


def test_its_time_goes_on_after_a_resumption(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    first = make(nets, pixel_weight=1.0, total_kimg=1.0)
    run(first, nets[0], 'Gmain', batch)
    second = make(nets, pixel_weight=1.0, total_kimg=1.0)
    second.load_state_dict(first.state_dict())
    assert second.shown == first.shown == N
    assert make(nets, pixel_weight=1.0, total_kimg=1.0, first_kimg=0.5).shown == 500


def test_layers_of_y_plus_are_unlocked_coarse_ones_first(batch: dict[str, torch.Tensor]) -> None:
    nets = plus_nets(space='y+')
    loss = make(nets, pixel_weight=1.0, total_kimg=40 * N / 1000)
    counts = []
    for _ in range(40):
        run(loss, nets[0], 'Gmain', batch)
        unlocked = nets[0].encoder.unlocked
        assert torch.equal(unlocked, unlocked.sort(descending=True).values)
        counts.append(int(unlocked.sum()))
    assert counts[0] == 0 and counts[-1] == nets[0].num_ws - 1 and counts == sorted(counts)
    assert len(set(counts)) == nets[0].num_ws, 'one by one'


def test_offsets_cost_their_mean_square_in_units_of_the_variance(batch: dict[str, torch.Tensor]) -> None:
    nets = plus_nets(space='y+')
    with torch.no_grad():
        nets[0].encoder.offsets.weight.normal_()
    value = run(make(nets, offset_weight=0.5), nets[0], 'Gmain', batch)
    y = nets[0].encode(batch['real_img'])
    assert value is not None
    loss = make(nets)
    torch.testing.assert_close(value, 0.5 * (y[:, 1:] - y[:, :1]).square().mean() / loss.code_variance)


def test_each_answer_counts_and_none_is_trained_through_the_next(batch: dict[str, torch.Tensor]) -> None:
    nets = plus_nets(iters=2)
    G, encoder, img, c = nets[0], nets[0].encoder, batch['real_img'], batch['real_c']
    value = run(make(nets, pixel_weight=1.0), G, 'Gmain', batch)
    found = encoder.head.weight.grad.clone()
    G.requires_grad_(True)
    first = encoder(img)
    again = encoder(img, G.mapping.feedback(img, first, c, G.synthesis))  # Which is cut off from the first answer.
    losses = [F.mse_loss(G.decode(y, noise_mode='const'), img) for y in (first, again)]
    (grad,) = torch.autograd.grad(torch.stack(losses).mean(), [encoder.head.weight])
    assert value is not None
    torch.testing.assert_close(value, torch.stack(losses).mean().detach())
    torch.testing.assert_close(found, grad, rtol=1e-3, atol=1e-6)


def test_the_exact_prior_is_a_term_and_phi_learns_nothing_of_it(
    nets: tuple[Generator, Discriminator], batch: dict[str, torch.Tensor]
) -> None:
    G, _ = nets
    value = run(make(nets, prior_weight=0.5), G, 'Gmain', batch)
    z, log_det = G.mapping.phi(G.encode(batch['real_img']), batch['real_c'])
    expected = -0.5 * (torch.distributions.Normal(0, 1).log_prob(z).sum(dim=1) + log_det).mean() / 8
    assert value is not None
    torch.testing.assert_close(value, expected)
    assert not list(G.mapping.phi.parameters()), 'frozen: its weights are buffers'


@pytest.mark.parametrize('n', [2, 16])
def test_the_direction_is_the_same_in_training_and_in_use(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the encoder is shown; also where the residual is small, and whatever the size of the batch."""
    G, D = plus_nets(iters=2)
    z = torch.randn([n, 8], generator=torch.Generator().manual_seed(5))
    c = torch.eye(2)[torch.arange(n) % 2]
    with torch.no_grad():
        near = G.encode(torch.zeros([n, 1, 16, 16])) + 1e-4 * z
        img = G.decode(near, c, noise_mode='const')
    seen: list[torch.Tensor] = []
    normal = networks._direction
    monkeypatch.setattr(networks, '_direction', lambda x: seen.append(normal(x)) or seen[-1])
    loss = make((G, D), pixel_weight=1.0)
    run(loss, G, 'Gmain', dict(real_img=img, real_c=c, gen_z=z, gen_c=c))
    G.encode(img, c)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen[1].square().mean(dim=1), torch.ones([n]), rtol=1e-3, atol=1e-3)


def test_what_has_begun_goes_on_in_a_longer_stage(batch: dict[str, torch.Tensor]) -> None:
    nets = plus_nets(space='y+')
    short = make(nets, pixel_weight=1.0, adv_weight=0.1, adv_start=0.5, total_kimg=4 * N / 1000)
    for _ in range(5):
        run(short, nets[0], 'Gmain', batch)
    assert nets[0].encoder.unlocked.all() and run(short, nets[1], 'Dboth', batch) is not None
    longer = make(nets, pixel_weight=1.0, adv_weight=0.1, adv_start=0.5, total_kimg=400 * N / 1000)
    longer.load_state_dict(short.state_dict())
    run(longer, nets[0], 'Gmain', batch)
    assert nets[0].encoder.unlocked.all() and run(longer, nets[1], 'Dboth', batch) is not None


def test_the_base_code_of_y_plus_is_decoded_alone_now_and_then(batch: dict[str, torch.Tensor]) -> None:
    nets = plus_nets(space='y+')
    G = nets[0]
    G.encoder.unlocked.fill_(1)
    torch.nn.init.normal_(G.encoder.offsets.weight)
    loss = make(nets, pixel_weight=1.0)
    img, seen = batch['real_img'], []
    y = G.encode(img)
    alone, layered = (F.mse_loss(G.decode(code, noise_mode='const'), img) for code in (y[:, 0], y))
    for _ in range(8):
        value = run(loss, G, 'Gmain', batch)
        assert value is not None
        offsets = G.encoder.offsets.weight.grad.abs().sum()
        seen.append('base' if torch.isclose(value, alone) and offsets == 0 else 'y+')
        assert torch.isclose(value, alone if seen[-1] == 'base' else layered)
    assert seen == ['y+', 'y+', 'y+', 'base'] * 2
