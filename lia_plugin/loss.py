"""Stage-2 loss: the encoder f learns image → y with the generator frozen, the discriminator goes on (section 3.3).

    E:  pixel · mean (x − x̃)²  +  percep · ε(x, x̃)  +  adv · softplus(−c(x̃))  +  latent · |f(g(y)) − y|² / var y
    c:  softplus(c(x̃)) + softplus(−c(x)) + γ/2 · ‖∇c(x)‖²                  with x̃ = g(f(x))

The class stands in the place of the host's StyleGAN2Loss and takes what either host gives its loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from lia_plugin import host
from lia_plugin.networks import Encoder, MappingNetwork
from lia_plugin.perceptual import make_perceptual
from lia_plugin.stages import code_statistics
from torch_utils import misc, training_stats


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] * ctx.factor, None


class EncoderLoss:
    """Accumulates the gradients of stage 2, phase by phase, in a StyleGAN host's training loop.

    Constructed by name, with `G_mapping, G_synthesis` (stylegan2-ada-pytorch) or `G` (stylegan3). Images are NCHW in
    [-1, 1]. The G phases train the encoder, which lives in G.mapping; the D phases the discriminator.
    """

    def __init__(
        self,
        device: torch.device,
        G_mapping: MappingNetwork | None = None,
        G_synthesis: torch.nn.Module | None = None,
        D: torch.nn.Module | None = None,
        augment_pipe: torch.nn.Module | None = None,
        G: torch.nn.Module | None = None,
        pixel_weight: float = 1.0,
        percep: str = 'disc',  # Feature extractor ε: 'disc', 'vgg16', 'vgg16-conv4_3' or 'none'.
        percep_weight: float = 0.1,
        percep_network: str | None = None,  # Pickle whose D gives the features of percep='disc'.
        adv_weight: float = 0.0,  # 0 = no adversarial term; the discriminator then rests.
        latent_weight: float = 0.0,  # Supervision on generated images, whose y is known.
        r1_gamma: float = 10.0,
    ) -> None:
        if G is None and (G_mapping is None or G_synthesis is None):
            raise ValueError('EncoderLoss: needs G, or G_mapping and G_synthesis')
        mapping: Any = G.mapping if G is not None else getattr(G_mapping, 'module', G_mapping)
        if getattr(mapping, 'encoder', None) is None:
            raise ValueError('EncoderLoss: the generator has no encoder; prepare stage 2 first (lia_plugin.stages)')
        self.device = device
        self.mapping: MappingNetwork = mapping
        self.encoder: Encoder = mapping.encoder
        self.synthesis: Any = G.synthesis if G is not None else G_synthesis
        if host.loss_must_sync():  # Frozen weights are buffers, which DDP leaves alone.
            host.broadcast_weights(mapping, self.synthesis)
        self.D = D
        self.augment_pipe = augment_pipe
        self.pixel_weight = pixel_weight
        self.percep_weight = percep_weight
        self.percep = make_perceptual(percep, percep_network, device) if percep_weight else None
        self.adv_weight = adv_weight
        self.latent_weight = latent_weight
        # Errors are counted in units of the latent space's own variance, measured once: a batch's would depend on
        # how the batch is cut into rounds and ranks.
        self.code_variance = code_statistics(mapping, self.encoder.space)[1].square().mean().to(device)
        self.r1_gamma = r1_gamma

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run can't measure again: its φ is at random until the checkpoint is in place."""
        return {'code_variance': self.code_variance.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.code_variance = state['code_variance'].to(self.device)

    def accumulate_gradients(
        self,
        phase: str,  # Gmain, Greg, Gboth, Dmain, Dreg or Dboth.
        real_img: torch.Tensor,
        real_c: torch.Tensor,
        gen_z: torch.Tensor,
        gen_c: torch.Tensor,
        sync: bool = True,  # stylegan2-ada-pytorch: the last round before the optimiser's step.
        gain: float = 1,
        cur_nimg: int | None = None,
    ) -> torch.Tensor | None:
        """Adds one round's gradients to the phase's parameters; gives the loss as a scalar, None if nothing was due."""
        if phase in ('Gmain', 'Gboth'):
            loss = self._encoder_loss(real_img, real_c, gen_z, gen_c)
        elif phase in ('Dmain', 'Dreg', 'Dboth') and self.adv_weight:
            loss = self._discriminator_loss(phase, real_img, real_c, sync)
        else:
            return None
        loss.mul(gain).backward()
        if phase.startswith('G') and sync and host.loss_must_sync():
            host.average_gradients(self.encoder.parameters())
        return loss.detach()

    def _encoder_loss(
        self, real_img: torch.Tensor, real_c: torch.Tensor, gen_z: torch.Tensor, gen_c: torch.Tensor
    ) -> torch.Tensor:
        fake_img, fake_y = self._draw(gen_z, gen_c)
        # One pass for both halves: a batch norm in the encoder then sees, and counts, one batch a step.
        code = self.encoder(real_img if fake_img is None else torch.cat([real_img, fake_img]))
        code, fake_code = code[: len(real_img)], code[len(real_img) :]
        y = self.mapping.code_to_y(code, real_c)
        recon = self._decode_amplified(y, real_c)

        terms = {'pixel': self.pixel_weight * F.mse_loss(recon, real_img)}
        if self.percep is not None:
            terms['percep'] = self.percep_weight * self.percep.distance(real_img, recon).mean()
        if self.adv_weight:
            logits = self._run_D(recon, real_c, sync=False)
            training_stats.report('Loss/scores/recon', logits)
            terms['adv'] = self.adv_weight * F.softplus(-logits).mean()
        if fake_y is not None:
            target = gen_z if self.encoder.space == 'z' else fake_y
            terms['latent'] = self.latent_weight * F.mse_loss(fake_code, target) / self.code_variance
        for name, value in terms.items():
            training_stats.report(f'Loss/E/{name}', value)
        loss = torch.stack(list(terms.values())).sum()
        training_stats.report('Loss/E/loss', loss)
        return loss

    @torch.no_grad()
    def _draw(self, z: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Generated images and their y, (None, None) if they don't count."""
        if not self.latent_weight:
            return None, None
        y = self.mapping.z_to_y(z, c)
        return self._decode(y, c), y

    def _decode(self, y: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.synthesis(self.mapping.y_to_ws(y, c), noise_mode='const')

    def _decode_amplified(self, y: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Decodes; gradients pass the frozen generator enlarged.

        The losses are means over pixels, whose gradients vanish in float16 layers: half of them at 1024². A power of
        two costs float32 nothing.
        """
        pixels = self.synthesis.img_channels * self.synthesis.img_resolution**2
        factor = 2.0 ** round(math.log2(pixels) / 2)
        return _ScaleGradient.apply(self._decode(_ScaleGradient.apply(y, 1 / factor), c), factor)

    def _run_D(self, img: torch.Tensor, c: torch.Tensor, sync: bool) -> torch.Tensor:
        """Logits. Where D is wrapped in DDP, one pass a step, the last one, waits for the other ranks' gradients."""
        assert self.D is not None, 'the host constructs every loss with its D'
        with misc.ddp_sync(self.D, sync):
            return self.D(self.augment_pipe(img) if self.augment_pipe is not None else img, c)

    def _discriminator_loss(
        self, phase: str, real_img: torch.Tensor, real_c: torch.Tensor, sync: bool
    ) -> torch.Tensor:
        judges_recon = phase in ('Dmain', 'Dboth')
        if judges_recon:
            with torch.no_grad():
                recon = self._decode(self.mapping.encode(real_img, real_c), real_c)
            recon_logits = self._run_D(recon, real_c, sync=False)
        real_img = real_img.detach().requires_grad_(phase in ('Dreg', 'Dboth') and self.r1_gamma != 0)
        real_logits = self._run_D(real_img, real_c, sync)
        training_stats.report('Loss/scores/real', real_logits)
        training_stats.report('Loss/signs/real', real_logits.sign())
        loss = real_logits.sum() * 0  # R1 alone leaves the last bias without a gradient, for which DDP would wait.
        if judges_recon:
            main = F.softplus(recon_logits).mean() + F.softplus(-real_logits).mean()
            training_stats.report('Loss/D/loss', main)
            loss = loss + main
        if real_img.requires_grad:
            (grads,) = torch.autograd.grad(real_logits.sum(), [real_img], create_graph=True)
            r1 = grads.square().sum([1, 2, 3]).mean()
            training_stats.report('Loss/r1_penalty', r1)
            loss = loss + 0.5 * self.r1_gamma * r1
        return loss
