"""StyleGAN2's training losses (Karras et al. 2020, arXiv 1912.04958), with lazy regularisation.

    generator       Gmain   softplus(-D(G(z)))                                     non-saturating logistic
                    Greg    pl_weight * (||J_w^T y|| - a)^2                         path length, sec. 3.2
    discriminator   Dmain   softplus(D(G(z))) + softplus(-D(x))
                    Dreg    r1_gamma / 2 * ||grad_x D(x)||^2                       R1 (Mescheder et al. 2018)

Gboth and Dboth are main and regulariser in one phase.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch.nn.functional import softplus

from torch_utils import distributed, misc, training_stats
from torch_utils.ops import conv2d_gradfix

PHASES = {  # phase: (network, main term, regulariser)
    'Gmain': ('G', True, False),
    'Greg': ('G', False, True),
    'Gboth': ('G', True, True),
    'Dmain': ('D', True, False),
    'Dreg': ('D', False, True),
    'Dboth': ('D', True, True),
}


class Loss:
    """What the training loop knows of a loss."""

    def accumulate_gradients(
        self,
        phase: str,
        real_img: torch.Tensor,
        real_c: torch.Tensor | None,
        gen_z: torch.Tensor,
        gen_c: torch.Tensor | None,
        sync: bool,
        gain: float,
    ) -> torch.Tensor | None:
        """Adds the phase's gradients, times `gain`, to the `.grad` of the phase's parameters.

        Returns the phase's loss as a scalar, by which the loop sees divergence; None if nothing was due.

        Args:
            phase: a key of PHASES.
            real_img: [N, C, H, W] in [-1, 1].
            real_c: [N, c_dim] or None.
            gen_z: [N, z_dim].
            gen_c: [N, c_dim] or None.
            sync: False = networks wrapped in DDP leave their gradients local.
        """
        raise NotImplementedError

    def begin(self, phase: str, batch: int) -> Hashable | None:
        """Does what `accumulate_gradients` does beside tensors, and says all that its work on them depends on.

        After it, `add_gradients` of the same arguments does that work, which may be recorded and replayed as long as
        the answer is the same. None = nothing done, and it can't be recorded.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the loss carries from step to step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict()` of an earlier run."""


def mix_styles(ws: torch.Tensor, other: torch.Tensor, cutoff: torch.Tensor) -> torch.Tensor:
    """The first `cutoff` styles of `ws` and the rest of `other`, both [N, num_ws, w_dim]; no wait for the device."""
    layer = torch.arange(ws.shape[1], device=ws.device)
    return torch.where((layer < cutoff)[:, None], ws, other)


def draw_cutoff(num_ws: int, probability: float, device: torch.device) -> torch.Tensor:
    """Int64 scalar: uniform over 1 ... num_ws - 1 with `probability`, else num_ws, which mixes nothing."""
    cutoff = torch.empty([], dtype=torch.int64, device=device).random_(1, num_ws)
    mixes = torch.rand([], device=device) < probability
    return torch.where(mixes, cutoff, num_ws)


def path_lengths(img: torch.Tensor, ws: torch.Tensor) -> torch.Tensor:
    """||J_w^T y|| for each sample [N], y normal noise of the image's shape scaled by its size; differentiable."""
    noise = torch.randn_like(img) / math.sqrt(img.shape[2] * img.shape[3])
    with conv2d_gradfix.no_weight_gradients():
        (grads,) = torch.autograd.grad([(img * noise).sum()], [ws], create_graph=True)
    return grads.square().sum(dim=2).mean(dim=1).sqrt()


def r1_penalty(logits: torch.Tensor, img: torch.Tensor) -> torch.Tensor:
    """||grad_x D(x)||^2 for each sample [N]; differentiable."""
    with conv2d_gradfix.no_weight_gradients():
        (grads,) = torch.autograd.grad([logits.sum()], [img], create_graph=True)
    return grads.square().sum(dim=(1, 2, 3))


def halves_in_one(first: torch.Tensor, second: torch.Tensor, groups: int) -> torch.Tensor:
    """Two batches [N, ...] as one [2N, ...], so that sample i of each meets in `i % (2 * groups)` only its own.

    `groups` is how many there are in each alone, by the same rule. `apart` undoes it.
    """
    pairs = [half.unflatten(0, (-1, groups)) for half in (first, second)]
    return torch.cat(pairs, dim=1).flatten(0, 1)


def apart(both: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The two batches that `halves_in_one` was given."""
    first, second = both.unflatten(0, (-1, 2 * groups)).split(groups, dim=1)
    return first.flatten(0, 1), second.flatten(0, 1)


def _groups_of_half(D: torch.nn.Module, batch: int) -> int | None:
    """Into how many groups D takes statistics of `batch` samples, if `halves_in_one` keeps those of two such batches
    apart; None if it doesn't, or if D says nothing of it."""
    rule = getattr(getattr(D, 'module', D), 'statistics_groups', None)  # DDP has it inside.
    if rule is None:
        return None
    groups = rule(batch)
    return groups if groups is not None and rule(2 * batch) == 2 * groups else None


def _report_logits(kind: str, logits: torch.Tensor) -> None:
    training_stats.report(f'Loss/scores/{kind}', logits)
    training_stats.report(f'Loss/signs/{kind}', logits.sign())


def _accumulate(loss: torch.Tensor, gain: float) -> torch.Tensor:
    """Backpropagates the mean times `gain`; gives the mean."""
    mean = loss.mean()
    mean.mul(gain).backward()
    return mean.detach()


class StyleGAN2Loss(Loss):
    """The losses of the module's table for the networks given; see `Loss.accumulate_gradients`."""

    def __init__(
        self,
        device: torch.device,
        G_mapping: torch.nn.Module,
        G_synthesis: torch.nn.Module,
        D: torch.nn.Module,
        augment_pipe: torch.nn.Module | None = None,  # Applied to all D sees.
        style_mixing_prob: float = 0.9,
        r1_gamma: float = 10,  # 0 = no R1.
        pl_batch_shrink: int = 2,  # Path lengths are taken over 1 / so much of the batch.
        pl_decay: float = 0.01,  # Of the running mean path length.
        pl_weight: float = 2,  # 0 = no path length regularisation.
        one_batch: bool = True,  # Dmain shows D both halves at once, if D's statistics permit; same gradients.
    ) -> None:
        self.device = device
        self.G_mapping, self.G_synthesis, self.D = G_mapping, G_synthesis, D
        self.augment_pipe = augment_pipe
        self.style_mixing_prob, self.r1_gamma = style_mixing_prob, r1_gamma
        self.pl_batch_shrink, self.pl_decay, self.pl_weight = pl_batch_shrink, pl_decay, pl_weight
        self.one_batch = one_batch
        self.pl_mean = torch.zeros([], device=device)

    def state_dict(self) -> dict[str, Any]:
        return {'pl_mean': self.pl_mean.detach().cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pl_mean.copy_(state['pl_mean'])

    def begin(self, phase: str, batch: int) -> Hashable | None:
        # The mean path length is that of all processes, who can't talk inside of a recording.
        talks = distributed.is_distributed() and PHASES[phase][0] == 'G' and PHASES[phase][2] and self.pl_weight != 0
        return None if talks else ()

    def add_gradients(self, phase: str, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        """`accumulate_gradients`, of which nothing but work on tensors depends on when it is called."""
        return self.accumulate_gradients(phase, *args, **kwargs)

    def run_G(self, z: torch.Tensor, c: torch.Tensor | None, sync: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [N, C, H, W] and the styles [N, num_ws, w_dim] they were made of."""
        with misc.ddp_sync(self.G_mapping, sync):
            ws = self.G_mapping(z, c)
            if self.style_mixing_prob > 0:
                cutoff = draw_cutoff(ws.shape[1], self.style_mixing_prob, ws.device)
                ws = mix_styles(ws, self.G_mapping(torch.randn_like(z), c, skip_w_avg_update=True), cutoff)
        with misc.ddp_sync(self.G_synthesis, sync):
            return self.G_synthesis(ws), ws

    def run_D(self, img: torch.Tensor, c: torch.Tensor | None, sync: bool) -> torch.Tensor:
        """Logits [N, 1] of augmented images."""
        with misc.ddp_sync(self.D, sync):
            return self.D(self._augment(img), c)

    def _augment(self, img: torch.Tensor) -> torch.Tensor:
        return img if self.augment_pipe is None else self.augment_pipe(img)

    def accumulate_gradients(
        self,
        phase: str,
        real_img: torch.Tensor,
        real_c: torch.Tensor | None,
        gen_z: torch.Tensor,
        gen_c: torch.Tensor | None,
        sync: bool,
        gain: float,
    ) -> torch.Tensor | None:
        if phase not in PHASES:
            raise ValueError(f'phase: expected one of {", ".join(PHASES)}, got {phase!r}')
        network, main, regularise = PHASES[phase]
        losses: list[torch.Tensor] = []
        if network == 'G':
            regularise = regularise and self.pl_weight != 0
            if main:
                losses.append(self._generator_main(gen_z, gen_c, sync and not regularise, gain))
            if regularise:
                losses.append(self._generator_path_length(gen_z, gen_c, sync, gain))
        else:
            regularise = regularise and self.r1_gamma != 0
            groups = _groups_of_half(self.D, len(real_img)) if self.one_batch and len(real_img) == len(gen_z) else None
            if main and not regularise and groups is not None:  # R1 would go through the other half, too, for nothing.
                return self._discriminator_at_once(real_img, real_c, gen_z, gen_c, groups, sync, gain)
            generated = self._discriminator_fake(gen_z, gen_c, gain) if main else None
            if generated is not None:
                losses.append(generated.mean())
            if main or regularise:
                losses.append(self._discriminator_real(real_img, real_c, generated, regularise, sync, gain))
        return torch.stack(losses).sum() if losses else None

    def _generator_main(self, z: torch.Tensor, c: torch.Tensor | None, sync: bool, gain: float) -> torch.Tensor:
        img, _ = self.run_G(z, c, sync)
        logits = self.run_D(img, c, sync=False)
        _report_logits('fake', logits)
        loss = softplus(-logits)
        training_stats.report('Loss/G/loss', loss)
        return _accumulate(loss, gain)

    def _generator_path_length(
        self, z: torch.Tensor, c: torch.Tensor | None, sync: bool, gain: float
    ) -> torch.Tensor:
        samples = max(z.shape[0] // self.pl_batch_shrink, 1)
        img, ws = self.run_G(z[:samples], None if c is None else c[:samples], sync)
        lengths = path_lengths(img, ws)
        # The running mean takes part in the gradient with its share of this batch, as in the reference.
        mean = self.pl_mean.lerp(distributed.mean_over_ranks(lengths.mean()), self.pl_decay)
        self.pl_mean.copy_(mean.detach())
        penalty = (lengths - mean).square()
        loss = penalty * self.pl_weight
        training_stats.report('Loss/pl_penalty', penalty)
        training_stats.report('Loss/G/reg', loss)
        return _accumulate(loss + self._touch(img), gain)

    def _discriminator_at_once(
        self,
        real_img: torch.Tensor,
        real_c: torch.Tensor | None,
        z: torch.Tensor,
        gen_c: torch.Tensor | None,
        groups: int,  # Of each half.
        sync: bool,
        gain: float,
    ) -> torch.Tensor:
        """Both halves of Dmain in one pass, of the same random numbers and with the same gradients as in two."""
        with torch.no_grad():
            halves = [self._augment(self.run_G(z, gen_c, sync=False)[0]), self._augment(real_img.detach())]
            img = halves_in_one(halves[0], halves[1], groups)
            c = None if real_c is None or gen_c is None else halves_in_one(gen_c, real_c, groups)
        with misc.ddp_sync(self.D, sync):
            fake, real = apart(self.D(img, c), groups)
        _report_logits('fake', fake)
        _report_logits('real', real)
        loss = softplus(fake) + softplus(-real)
        training_stats.report('Loss/D/loss', loss)
        return _accumulate(loss, gain)

    def _discriminator_fake(self, z: torch.Tensor, c: torch.Tensor | None, gain: float) -> torch.Tensor:
        """Returns the fake half of D's loss [N, 1], for the report."""
        with torch.no_grad():
            img, _ = self.run_G(z, c, sync=False)
        logits = self.run_D(img, c, sync=False)  # Gradients are synchronised with those of the real half.
        _report_logits('fake', logits)
        loss = softplus(logits)
        _accumulate(loss, gain)
        return loss.detach()

    def _discriminator_real(
        self,
        img: torch.Tensor,
        c: torch.Tensor | None,
        generated: torch.Tensor | None,  # The loss of the fake half; None = regulariser only.
        regularise: bool,
        sync: bool,
        gain: float,
    ) -> torch.Tensor:
        img = img.detach().requires_grad_(regularise)
        logits = self.run_D(img, c, sync)
        _report_logits('real', logits)
        loss = self._touch(logits)
        if generated is not None:
            loss = softplus(-logits)
            training_stats.report('Loss/D/loss', generated + loss)
        if regularise:
            penalty = r1_penalty(logits, img)
            training_stats.report('Loss/r1_penalty', penalty)
            training_stats.report('Loss/D/reg', penalty * (self.r1_gamma / 2))
            loss = loss + penalty[:, None] * (self.r1_gamma / 2)
        return _accumulate(loss, gain)

    @staticmethod
    def _touch(output: torch.Tensor) -> torch.Tensor:
        """A zero that depends on every parameter: all of them get a gradient, as optimisers and DDP expect.

        [N, 1] of logits stay [N, 1]; images [N, C, H, W] give [N], from one pixel.
        """
        return (output if output.ndim == 2 else output[:, 0, 0, 0]) * 0
