"""Stage-2 loss: the encoder f learns image → y with the generator frozen, the discriminator goes on (section 3.3).

    E:  pixel · mean (x − x̃)²  +  percep · ε(x, x̃)  +  adv · softplus(−c(x̃))
        +  latent · mean (f(g(y)) − y)² / var y  +  offset · mean (y+ − y)² / var y  −  prior · log p(y) / dim y
    c:  softplus(c(x̃)) + softplus(−c(x)) + γ/2 · ‖∇c(x)‖²                  with x̃ = g(f(x))

The class stands in the place of the host's StyleGAN2Loss and takes what either host gives its loss.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from lia_plugin import host
from lia_plugin.networks import Encoder, Feedback, MappingNetwork, base_code, code_gradient
from lia_plugin.perceptual import make_perceptual
from lia_plugin.stages import code_statistics
from torch_utils import misc, training_stats

STRIDE = 3418070365  # (√23 - 4) 2^32: its multiples spread evenly over 2^32, also every 2nd, 3rd, 4th, 8th … of them.
BASE_EVERY = 4  # Every so many batches the base code of y+ is decoded alone.
UNLOCKING = (0.1, 0.4)  # The share of stage 2 after which the first and the last layer of y+ have offsets.


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] * ctx.factor, None


class Known(NamedTuple):
    """What is known of the generated images of a batch."""

    places: torch.Tensor  # int64 [K], in the batch
    codes: torch.Tensor  # [K, z_dim]


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
        adv_start: float = 0.0,  # Share of the stage before which it rests, too.
        latent_weight: float = 0.0,  # Supervision of generated images' codes, which are known.
        mix: float = 0.0,  # Share of a batch whose images are generated ones.
        offset_weight: float = 0.0,  # Penalty on the offsets of y+ from its base code.
        prior_weight: float = 0.0,  # Of the code's likelihood under the exact prior, per dimension; φ is frozen.
        r1_gamma: float = 10.0,
        total_kimg: float | None = None,  # Length of the stage. None = unknown, nothing waits for its time.
        first_kimg: float = 0.0,  # How much of it is over, in a host that keeps no state of a loss.
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
        self.adv_weight, self.adv_start = adv_weight, adv_start
        self.latent_weight, self.mix = latent_weight, mix
        self.offset_weight, self.prior_weight = offset_weight, prior_weight
        self.total_kimg = total_kimg
        self.shown = round(first_kimg * 1000)  # Images of the stage so far, over all ranks.
        self.adversary_has_begun = False
        self.unlocked_layers = 0
        self.base_is_alone, self.is_judged = False, False  # Of the pass under way, see `begin`.
        self.places: torch.Tensor | None = None  # Of its generated images; one tensor for each number of them.
        self._places_of: dict[int, torch.Tensor] = {}
        if latent_weight and not mix:
            raise ValueError('EncoderLoss: latent_weight needs generated images, mix > 0')
        # Errors are counted in units of the latent space's own variance, measured once: a batch's would depend on
        # how the batch is cut into rounds and ranks.
        self.code_variance = code_statistics(mapping, self.encoder.space)[1].square().mean().to(device)
        self.r1_gamma = r1_gamma

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run can't measure again: its φ is at random until the checkpoint is in place."""
        return {'code_variance': self.code_variance.cpu(), 'shown': torch.tensor(self.shown),
                'adversary_has_begun': torch.tensor(self.adversary_has_begun)}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.code_variance = state['code_variance'].to(self.device)
        # States of earlier versions have neither, nor anything that needs them.
        self.shown = int(state.get('shown', self.shown))
        self.adversary_has_begun = bool(state.get('adversary_has_begun', False))

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
        self.begin(phase, len(real_img))
        return self.add_gradients(phase, real_img, real_c, gen_z, gen_c, sync, gain)

    def begin(self, phase: str, batch: int) -> tuple[bool, bool, int]:
        """Counts, and decides what `add_gradients` does, which is all that its work depends on besides tensors."""
        encodes = phase in ('Gmain', 'Gboth')
        if encodes:
            self._unlock_layers()
        self.base_is_alone = encodes and self.encoder.offsets is not None and self._base_alone(batch)
        self.is_judged = self._adversary_counts()
        if encodes:
            self._place_generated(batch)
            self.shown += batch * host.world_size()
        return self.base_is_alone, self.is_judged, 0 if self.places is None or not encodes else len(self.places)

    def _place_generated(self, batch: int) -> None:
        places = self._generated(batch)
        self.places = None
        if len(places):
            self.places = self._places_of.setdefault(len(places), torch.empty_like(places, device=self.device))
            pinned = torch.device(self.device).type == 'cuda'
            self.places.copy_(places.pin_memory() if pinned else places, non_blocking=True)

    def add_gradients(
        self, phase: str, real_img: torch.Tensor, real_c: torch.Tensor, gen_z: torch.Tensor, gen_c: torch.Tensor,
        sync: bool = True, gain: float = 1,
    ) -> torch.Tensor | None:
        """The work on tensors of `accumulate_gradients`, after `begin`."""
        if phase in ('Gmain', 'Gboth'):
            loss = self._encoder_loss(real_img, real_c, gen_z, gen_c)
        elif phase in ('Dmain', 'Dreg', 'Dboth') and self.is_judged:
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
        """The mean over the encoder's answers, each of which starts from what the one before has made."""
        img, c, known = self._mix(real_img, real_c, gen_z, gen_c)
        feedback, losses = None, []
        for _ in range(self.encoder.iters):
            code = self.encoder(img, feedback)
            seen = code[:, :1].expand_as(code) if code.ndim == 3 and self.base_is_alone else code
            recon = self._decode_amplified(self.mapping.code_to_y(seen, c), c)
            terms = self._terms(img, c, code, recon, known)
            losses.append(torch.stack(list(terms.values())).sum())
            if len(losses) < self.encoder.iters:
                gradient = code_gradient(recon, img, code, retain_graph=True)
                feedback = Feedback(recon.detach().to(torch.float32), code.detach(), gradient)
        for name, value in terms.items():
            training_stats.report(f'Loss/E/{name}', value)
        training_stats.report('Loss/E/loss', losses[-1])
        return torch.stack(losses).mean()

    def _terms(
        self, img: torch.Tensor, c: torch.Tensor, code: torch.Tensor, recon: torch.Tensor, known: Known | None
    ) -> dict[str, torch.Tensor]:
        """The weighted terms of one answer."""
        terms = {'pixel': self.pixel_weight * F.mse_loss(recon, img)}
        if self.percep is not None:
            terms['percep'] = self.percep_weight * self.percep.distance(img, recon).mean()
        if self.is_judged:
            logits = self._run_D(recon, c, sync=False)
            training_stats.report('Loss/scores/recon', logits)
            terms['adv'] = self.adv_weight * F.softplus(-logits).mean()
        if known is not None and self.latent_weight:
            found = base_code(code)[known.places]
            # In proportion to the batch: however few the generated images, each weighs the same.
            share = len(known.places) / len(img)
            terms['latent'] = self.latent_weight * share * F.mse_loss(found, known.codes) / self.code_variance
        if code.ndim == 3 and self.offset_weight:
            offsets = (code[:, 1:] - code[:, :1]).square().mean() / self.code_variance
            terms['offset'] = self.offset_weight * offsets
        if self.prior_weight:
            y = base_code(self.mapping.code_to_y(code, c))
            terms['prior'] = -self.prior_weight * self.mapping.log_prob(y, c).mean() / y.shape[1]
        return terms

    @torch.no_grad()
    def _mix(
        self, img: torch.Tensor, c: torch.Tensor, z: torch.Tensor, gen_c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Known | None]:
        """The batch with some of its images replaced by those of their z, and what is known of these."""
        places = self.places
        if places is None:
            return img, c, None
        z, gen_c = z[places], gen_c[places]
        y = self.mapping.z_to_y(z, gen_c)
        fakes = self._decode(y, gen_c).to(img.dtype)
        known = Known(places, z if self.encoder.space == 'z' else y)
        return img.index_copy(0, places, fakes), c.index_copy(0, places, gen_c.to(c.dtype)), known

    def _generated(self, count: int) -> torch.Tensor:
        """Which of a round's images are generated ones: about the share `mix`, by their numbers in the stage.

        Processes take turns with images, so these are the same ones however many processes and rounds there are.
        """
        numbers = self.shown + torch.arange(count) * host.world_size() + host.rank()
        return ((numbers + 1) * STRIDE % 2**32 < self.mix * 2**32).nonzero().flatten()

    def _base_alone(self, batch: int) -> bool:
        """Whether the base code of y+ has to do without offsets this time: else nothing would ask it to be good alone.

        Told by the images shown, so that a resumed run goes on in step.
        """
        return self.shown // (batch * host.world_size()) % BASE_EVERY == BASE_EVERY - 1

    def _progress(self) -> float:
        """The share of stage 2 that is over, 0 to 1; 1 where nobody said how long it is."""
        return 1.0 if self.total_kimg is None else min(self.shown / (self.total_kimg * 1000), 1.0)

    def _adversary_counts(self) -> bool:
        """Whether its time has come. Once it has, it stays, also if the stage is made longer."""
        self.adversary_has_begun |= self._progress() >= self.adv_start
        return bool(self.adv_weight) and self.adversary_has_begun

    @torch.no_grad()
    def _unlock_layers(self) -> None:
        """Lets the layers of y+ leave the base code one after the other, coarse ones first; none is locked again."""
        if self.encoder.offsets is None:
            return
        count = len(self.encoder.unlocked)
        first, last = UNLOCKING
        due = sum(self._progress() >= first + (last - first) * i / count for i in range(count))
        if due > self.unlocked_layers:
            self.encoder.unlocked[:due] = 1
            self.unlocked_layers = due

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
                recon = self._decode(self.mapping.encode(real_img, real_c, self.synthesis), real_c)
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
