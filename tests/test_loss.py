"""Contracts of training.loss on networks so small that every gradient has a closed form."""

from typing import Any

import pytest
import torch

from torch_utils import training_stats
from training import loss, networks

CPU = torch.device('cpu')
PHASES = ['Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg', 'Dboth']
SIDE, WS, DIM = 3, 4, 2  # One grey SIDE x SIDE image from WS styles of DIM numbers.


class Mapping(torch.nn.Module):
    """z is w; remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones([]))
        self.calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def forward(self, z: torch.Tensor, c: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        self.calls.append((z, kwargs))
        return (z * self.scale).unsqueeze(1).repeat(1, WS, 1)


class Synthesis(torch.nn.Module):
    """Linear: its Jacobian is `matrix`."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(WS * DIM, SIDE * SIDE))

    def forward(self, ws: torch.Tensor) -> torch.Tensor:
        return (ws.flatten(1) @ self.matrix).reshape(-1, 1, SIDE, SIDE)


class Quadratic(torch.nn.Module):
    """D(x) = sum of a x^2 / 2 + b x, so grad_x D = a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(SIDE, SIDE))
        self.b = torch.nn.Parameter(torch.randn(SIDE, SIDE))

    def forward(self, img: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        return (img.square() * self.a / 2 + img * self.b).sum(dim=(2, 3))


class Toy:
    """Toy networks in float64, a loss of them and a batch."""

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        torch.manual_seed(seed)
        self.mapping, self.synthesis, self.D = Mapping().double(), Synthesis().double(), Quadratic().double()
        self.z = torch.randn(6, DIM, dtype=torch.float64)
        self.real = torch.randn(6, 1, SIDE, SIDE, dtype=torch.float64)
        self.loss = loss.StyleGAN2Loss(CPU, self.mapping, self.synthesis, self.D, **{'style_mixing_prob': 0, **kwargs})
        self.loss.pl_mean = self.loss.pl_mean.double()

    def run(self, phase: str, gain: float = 1, seed: int = 7) -> dict[str, Any]:
        """Gradients of the phase's network alone, as the training loop asks for them."""
        nets: dict[str, list[torch.nn.Module]] = {'G': [self.mapping, self.synthesis], 'D': [self.D]}
        for name, members in nets.items():
            for net in members:
                net.requires_grad_(name == phase[0]).zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        self.loss.accumulate_gradients(phase, self.real, None, self.z, None, True, gain)
        idle = [p.grad for net in nets['D' if phase[0] == 'G' else 'G'] for p in net.parameters()]
        assert all(grad is None for grad in idle)
        return {name: p.grad for net in nets[phase[0]] for name, p in net.named_parameters()}

    def images(self) -> torch.Tensor:
        return self.synthesis(self.mapping(self.z, None)).detach()


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(training_stats, 'report', lambda name, value: values.setdefault(name, value.detach().clone()))
    return values


# ------------------------------------------------------------------------------------------------------- main terms


def test_generator_minimises_the_non_saturating_loss(reported: dict[str, torch.Tensor]) -> None:
    toy = Toy()
    grads = toy.run('Gmain', gain=2)
    img = toy.images()
    logits = toy.D(img, None).detach()
    weight = -torch.sigmoid(-logits)[:, :, None, None] * (toy.D.a * img + toy.D.b).detach()  # dloss / dimg
    ws = toy.mapping(toy.z, None).flatten(1).detach()
    torch.testing.assert_close(grads['matrix'], 2 * ws.t() @ weight.flatten(1) / len(ws))
    torch.testing.assert_close(reported['Loss/G/loss'], torch.logaddexp(-logits, torch.zeros_like(logits)))
    assert torch.equal(reported['Loss/signs/fake'], logits.sign()) and torch.equal(reported['Loss/scores/fake'], logits)


def test_discriminator_minimises_the_logistic_loss(reported: dict[str, torch.Tensor]) -> None:
    toy = Toy()
    grads = toy.run('Dmain', gain=3)
    fake, real = toy.images(), toy.real
    on_fake, on_real = torch.sigmoid(toy.D(fake, None)).detach(), torch.sigmoid(-toy.D(real, None)).detach()
    slope = on_fake[:, :, None, None] * fake - on_real[:, :, None, None] * real
    torch.testing.assert_close(grads['b'], 3 * slope.mean(dim=0)[0])
    curve = on_fake[:, :, None, None] * fake.square() - on_real[:, :, None, None] * real.square()
    torch.testing.assert_close(grads['a'], 3 * curve.mean(dim=0)[0] / 2)
    zero = torch.zeros(6, 1, dtype=torch.float64)
    want = torch.logaddexp(toy.D(fake, None), zero) + torch.logaddexp(-toy.D(real, None), zero)
    torch.testing.assert_close(reported['Loss/D/loss'], want.detach())
    assert {'Loss/signs/real', 'Loss/scores/real', 'Loss/signs/fake'} <= set(reported)


# ------------------------------------------------------------------------------------------------------ regularisers


def test_r1_of_a_quadratic(reported: dict[str, torch.Tensor]) -> None:
    toy = Toy(r1_gamma=5)
    grads = toy.run('Dreg', gain=16)
    slope = (toy.D.a * toy.real + toy.D.b).detach()  # grad_x D, [N, 1, H, W]
    torch.testing.assert_close(reported['Loss/r1_penalty'], slope.square().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(grads['b'], 16 * 5 * slope.mean(dim=0)[0])
    torch.testing.assert_close(grads['a'], 16 * 5 * (slope * toy.real).mean(dim=0)[0])
    assert toy.real.grad is None and not toy.real.requires_grad


def test_path_lengths_against_the_jacobian() -> None:
    toy = Toy()
    ws = torch.randn(3, WS, DIM, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    got = loss.path_lengths(toy.synthesis(ws), ws)
    torch.manual_seed(3)
    noise = torch.randn(3, 1, SIDE, SIDE, dtype=torch.float64) / SIDE
    for sample in range(3):
        one = ws[sample:sample + 1].detach()
        jacobian = torch.autograd.functional.jacobian(toy.synthesis, one).reshape(SIDE * SIDE, WS, DIM)
        product = torch.einsum('pld,p->ld', jacobian, noise[sample].flatten())
        torch.testing.assert_close(got[sample], product.square().sum(dim=1).mean().sqrt())


def test_path_length_penalty_and_its_running_mean(reported: dict[str, torch.Tensor]) -> None:
    toy = Toy(pl_decay=0.25, pl_weight=3, pl_batch_shrink=3)
    toy.loss.pl_mean.fill_(0.5)
    grads = toy.run('Greg', gain=4, seed=9)
    torch.manual_seed(9)
    noise = torch.randn(2, 1, SIDE, SIDE, dtype=torch.float64) / SIDE  # A third of six.
    matrix = toy.synthesis.matrix.detach().requires_grad_(True)
    lengths = ((noise.flatten(1) @ matrix.t()).square().sum(dim=1) / WS).sqrt()  # J^T y has WS * DIM numbers.
    mean = 0.75 * 0.5 + 0.25 * lengths.mean()
    (4 * 3 * (lengths - mean).square().mean()).backward()
    torch.testing.assert_close(toy.loss.pl_mean, mean.detach())
    torch.testing.assert_close(grads['matrix'], matrix.grad)
    torch.testing.assert_close(reported['Loss/pl_penalty'], (lengths - mean).square().detach())
    torch.testing.assert_close(reported['Loss/G/reg'], 3 * (lengths - mean).square().detach())
    assert not toy.loss.pl_mean.requires_grad


def test_path_length_takes_at_least_one_sample() -> None:
    toy = Toy(pl_batch_shrink=100)
    grads = toy.run('Greg')
    assert torch.isfinite(grads['matrix']).all() and grads['matrix'].any()


def test_weights_of_zero_switch_the_regularisers_off() -> None:
    toy = Toy(pl_weight=0, r1_gamma=0)
    for phase in ('Greg', 'Dreg'):
        assert all(grad is None for grad in toy.run(phase).values())
    for both, main in (('Gboth', 'Gmain'), ('Dboth', 'Dmain')):
        want = toy.run(main)
        for name, grad in toy.run(both).items():
            assert torch.equal(grad, want[name])


@pytest.mark.parametrize(('both', 'main', 'regulariser'), [('Gboth', 'Gmain', 'Greg'), ('Dboth', 'Dmain', 'Dreg')])
def test_both_is_the_sum(both: str, main: str, regulariser: str) -> None:
    runs = [Toy().run(phase, gain=2) for phase in (both, main, regulariser)]
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name] + runs[2][name])


# ---------------------------------------------------------------------------------------------------- style mixing


def test_mixing_keeps_the_first_styles_of_one_and_the_rest_of_the_other() -> None:
    one, other = torch.zeros(2, 5, 3), torch.ones(2, 5, 3)
    mixed = loss.mix_styles(one, other, torch.tensor(2))
    assert mixed[:, :, 0].tolist() == [[0, 0, 1, 1, 1]] * 2
    assert torch.equal(loss.mix_styles(one, other, torch.tensor(5)), one)


def test_cutoffs() -> None:
    torch.manual_seed(0)
    always = [int(loss.draw_cutoff(4, 1.0, CPU)) for _ in range(200)]
    assert set(always) == {1, 2, 3}
    assert {int(loss.draw_cutoff(4, 0.0, CPU)) for _ in range(50)} == {4}
    share = sum(int(loss.draw_cutoff(4, 0.9, CPU)) < 4 for _ in range(1000)) / 1000
    assert abs(share - 0.9) < 0.04


def test_the_second_mapping_leaves_the_running_mean_alone() -> None:
    toy = Toy(style_mixing_prob=1)
    toy.run('Gmain')
    (first, plain), (second, skipping) = toy.mapping.calls
    assert torch.equal(first, toy.z) and plain == {}
    assert skipping == {'skip_w_avg_update': True} and not torch.equal(second, first)
    _, ws = toy.loss.run_G(toy.z, None, sync=True)
    third, fourth = (z.unsqueeze(1) for z, _ in toy.mapping.calls[2:])
    from_second = (ws == fourth).all(dim=(0, 2))
    assert torch.equal(from_second, ~(ws == third).all(dim=(0, 2))) and from_second.tolist() == sorted(from_second)
    assert not from_second[0] and from_second[-1]


# ----------------------------------------------------------------------------------------------------- the contract


def test_augmentation_stands_before_the_discriminator_only() -> None:
    seen: list[torch.Tensor] = []

    class Pipe(torch.nn.Module):
        def forward(self, img: torch.Tensor) -> torch.Tensor:
            seen.append(img.detach())
            return -img

    plain, piped = Toy(), Toy(augment_pipe=Pipe())
    piped.run('Dmain')
    assert torch.equal(seen[0], plain.images()) and torch.equal(seen[1], plain.real)
    slope = (piped.D.b - piped.D.a * piped.real).detach()
    torch.testing.assert_close(piped.run('Dreg')['b'], 10 * slope.mean(dim=0)[0])


def test_state_goes_on() -> None:
    one, other = Toy(), Toy()
    one.run('Greg')
    assert one.loss.state_dict()['pl_mean'] > 0
    other.loss.load_state_dict(one.loss.state_dict())
    assert torch.equal(one.run('Greg', seed=11)['matrix'], other.run('Greg', seed=11)['matrix'])
    assert torch.equal(one.loss.pl_mean, other.loss.pl_mean)


def test_unknown_phase() -> None:
    with pytest.raises(ValueError, match="phase: .*'Gmian'"):
        Toy().loss.accumulate_gradients('Gmian', torch.zeros(1), None, torch.zeros(1), None, True, 1)


@pytest.mark.parametrize('phase', PHASES)
def test_every_phase_gives_every_parameter_a_gradient(phase: str) -> None:
    """Optimisers with state and DDP both expect that, in the lazy phases too."""
    torch.manual_seed(0)
    small: dict[str, Any] = {'channel_base': 64, 'channel_max': 8}
    G = networks.Generator(8, 2, 8, 8, 3, mapping_kwargs={'num_layers': 2}, synthesis_kwargs=small)
    D = networks.Discriminator(2, 8, 3, **small)
    net, idle = (G, D) if phase[0] == 'G' else (D, G)
    idle.requires_grad_(False)
    step = loss.StyleGAN2Loss(CPU, G.mapping, G.synthesis, D)
    real, c, z = torch.randn(4, 3, 8, 8), torch.eye(2).repeat(2, 1), torch.randn(4, 8)
    step.accumulate_gradients(phase, real, c, z, c, True, 1)
    missing = [name for name, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing
