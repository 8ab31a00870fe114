"""BiGAN / ALI: generator, encoder and a discriminator of pairs (image, code), trained together from the beginning.

    D:     softplus(D(g(z), z)) + softplus(−D(x, f(x))) + γ/2 · ‖∇ D(x, f(x))‖²      over image and code
    G, E:  softplus(−D(g(z), z)) + softplus(D(x, f(x)))

The encoder is deterministic and leads to z, as in BiGAN (Donahue et al., arXiv 1605.09782, section 3); ALI's (Dumoulin
et al., arXiv 1606.00704) is the same but for a stochastic encoder. At the optimum both pairs have one distribution, so
f inverts g; there is no reconstruction term. Networks are those of LIA's two stages, nothing frozen: what is compared
is how they are trained. The class stands in the place of the host's StyleGAN2Loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import softplus

from lia_plugin import planning
from lia_plugin.networks import Generator
from lia_plugin.options import Options
from torch_utils import misc, training_stats


def generator(**kwargs: Any) -> Generator:
    """lia_plugin.networks.Generator of these arguments with an encoder, and everything in it trainable.

    In pickles it is a Generator like any other: the names of its weights are the same.
    """
    G = Generator(**kwargs)
    thaw(G, Generator(**{**kwargs, 'encoder_kwargs': None}))
    return G


def thaw(module: torch.nn.Module, like: torch.nn.Module) -> None:
    """Turns into parameters those buffers of a module that are parameters in `like`: undoes `networks.freeze`."""
    for name, _ in like.named_parameters():
        owner, _, leaf = name.rpartition('.')
        part = module.get_submodule(owner)
        value = part._buffers.pop(leaf)
        assert value is not None, f'{name} was frozen, so it is there'
        part.register_parameter(leaf, torch.nn.Parameter(value))


class BiganLoss:
    """Accumulates gradients phase by phase in our training loop: the G phases train g and f, the D phases D.

    Images are NCHW in [-1, 1]. D is called with (images, labels, codes). There is no path-length regularisation and
    no style mixing: an image must have one code.
    """

    def __init__(
        self,
        device: torch.device,
        G_mapping: Any,
        G_synthesis: Any,
        D: Any,
        augment_pipe: torch.nn.Module | None = None,  # Applied to all images that D sees.
        r1_gamma: float = 10.0,
    ) -> None:
        self.device = device
        self.mapping, self.synthesis, self.D = G_mapping, G_synthesis, D
        self.augment_pipe = augment_pipe
        self.r1_gamma = r1_gamma

    def accumulate_gradients(
        self,
        phase: str,  # Gmain, Greg, Gboth, Dmain, Dreg or Dboth.
        real_img: torch.Tensor,
        real_c: torch.Tensor,
        gen_z: torch.Tensor,
        gen_c: torch.Tensor,
        sync: bool = True,
        gain: float = 1,
    ) -> torch.Tensor | None:
        """Adds one round's gradients to the phase's parameters; gives the loss as a scalar, None if nothing was due."""
        if phase in ('Gmain', 'Gboth'):
            loss = self._deceive(real_img, real_c, gen_z, gen_c, sync)
        elif phase == 'Dmain' or phase == 'Dboth' or phase == 'Dreg' and self.r1_gamma:
            loss = self._judge(phase, real_img, real_c, gen_z, gen_c, sync)
        else:
            return None
        loss.mul(gain).backward()
        return loss.detach()

    def run_D(self, img: torch.Tensor, c: torch.Tensor, code: torch.Tensor, sync: bool) -> torch.Tensor:
        """Logits [N, 1] of pairs."""
        with misc.ddp_sync(self.D, sync):
            return self.D(img if self.augment_pipe is None else self.augment_pipe(img), c, code)

    def _deceive(
        self, real_img: torch.Tensor, real_c: torch.Tensor, z: torch.Tensor, c: torch.Tensor, sync: bool
    ) -> torch.Tensor:
        fake_logits = self.run_D(self.synthesis(self.mapping(z, c)), c, z, sync=False)
        real_logits = self.run_D(real_img, real_c, self.mapping.encoder(real_img), sync)
        loss = softplus(-fake_logits).mean() + softplus(real_logits).mean()
        training_stats.report('Loss/G/loss', loss)
        return loss

    def _judge(
        self, phase: str, real_img: torch.Tensor, real_c: torch.Tensor, z: torch.Tensor, c: torch.Tensor, sync: bool
    ) -> torch.Tensor:
        regularised = phase in ('Dreg', 'Dboth') and self.r1_gamma != 0
        with torch.no_grad():
            code = self.mapping.encoder(real_img)
        pair = [real_img.detach().requires_grad_(regularised), code.requires_grad_(regularised)]
        logits = self.run_D(pair[0], real_c, pair[1], sync)
        training_stats.report('Loss/scores/real', logits)
        training_stats.report('Loss/signs/real', logits.sign())
        loss = logits.sum() * 0  # R1 alone leaves the last bias without a gradient.
        if phase in ('Dmain', 'Dboth'):
            with torch.no_grad():
                fake = self.synthesis(self.mapping(z, c))
            fake_logits = self.run_D(fake, c, z, sync)
            training_stats.report('Loss/scores/fake', fake_logits)
            loss = loss + softplus(fake_logits).mean() + softplus(-logits).mean()
            training_stats.report('Loss/D/loss', loss)
        if regularised:
            grads = torch.autograd.grad(logits.sum(), pair, create_graph=True)
            penalty = torch.cat([grad.flatten(1) for grad in grads], dim=1).square().sum(dim=1).mean()
            training_stats.report('Loss/r1_penalty', penalty)
            loss = loss + penalty * (self.r1_gamma / 2)
        return loss


def plan(gan: Options, encoder: Options) -> dict[str, Any]:
    """A run's configuration, as `planning.plan` gives it, of one joint training of `gan.kimg` thousand images.

    `gan` are the options of a stage 1, whose learning rates, batch, EMA, augmentation and R1's weight hold; `encoder`
    those of a stage 2 towards z, from whose `resume` the sizes of all networks are taken.
    Raises UsageError or UserError as `planning.plan` does.
    """
    result, like = planning.plan(gan), planning.plan(encoder)['encoder']
    D_kwargs = {
        **like['D_kwargs'], 'class_name': 'lia_plugin.bigan_networks.JointDiscriminator',
        'code_dim': like['G_kwargs']['z_dim'],
    }  # fmt: skip
    loss = dict(class_name='lia_plugin.bigan.BiganLoss', r1_gamma=result['gan']['loss_kwargs']['r1_gamma'])
    G_kwargs = {**like['G_kwargs'], 'class_name': 'lia_plugin.bigan.generator'}
    result['gan'].update(G_kwargs=G_kwargs, D_kwargs=D_kwargs, loss_kwargs=loss, G_reg_interval=None)
    return result
