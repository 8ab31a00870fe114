"""Several processes compute what one computes on the whole batch, and a run goes on with another number of them."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_training_loop import SYNTHESIS, gan, weights

from lia_plugin.loss import EncoderLoss
from lia_plugin.networks import Generator
from lia_plugin.stages import prepare_encoder_stage
from torch_utils import distributed, misc, training_stats
from torch_utils.distributed import LostProcess
from training import checkpoint
from training.iteration import adapt_augmentation
from training.loss import StyleGAN2Loss
from training.networks import Discriminator

BATCH, RESOLUTION = 8, 16
Result = dict[str, torch.Tensor]

# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def share(x: torch.Tensor) -> torch.Tensor:
    """This process's images: all take turns, as they do with a data set's."""
    return x[distributed.rank() :: distributed.world_size()]


def data(*shape: int, seed: int) -> torch.Tensor:
    return share(torch.randn([BATCH, *shape], generator=torch.Generator().manual_seed(seed)))


def draw_like(x: torch.Tensor) -> torch.Tensor:
    """Noise of an image's place in the batch, whichever process has it."""
    whole = [len(x) * distributed.world_size(), *x.shape[1:]]
    return share(torch.randn(whole, generator=torch.Generator().manual_seed(9)))


def networks(encoder_kwargs: dict[str, Any] | None) -> tuple[Any, Any]:
    torch.manual_seed(0)
    G = Generator(8, 2, 8, RESOLUTION, 1, synthesis_kwargs=dict(SYNTHESIS, use_noise=False),
                  encoder_kwargs=encoder_kwargs)
    D = Discriminator(2, RESOLUTION, 1, epilogue_kwargs=dict(mbstd_group_size=2), **SYNTHESIS)
    return G.train().requires_grad_(False), D.train().requires_grad_(False)


def phase_gradients(loss: Any, phases: dict[str, Any]) -> Result:
    """Of every parameter in every phase, averaged over all processes as the training loop does it."""
    c = share(torch.eye(2)[torch.arange(BATCH) % 2])
    img, z = data(1, RESOLUTION, RESOLUTION, seed=1), data(8, seed=2)
    found = {}
    for phase, module in phases.items():
        module.requires_grad_(True).zero_grad(set_to_none=True)
        loss.accumulate_gradients(phase=phase, real_img=img, real_c=c, gen_z=z, gen_c=c.flip(1), sync=True, gain=1)
        module.requires_grad_(False)
        distributed.all_reduce_gradients(module.parameters(), distributed.world_size())
        found.update({f'{phase} {name}': p.grad for name, p in module.named_parameters() if p.grad is not None})
    return found


def stage1() -> Result:
    G, D = networks(None)
    loss = StyleGAN2Loss(torch.device('cpu'), G.mapping, G.synthesis, D, style_mixing_prob=0, r1_gamma=5, pl_weight=2)
    found = phase_gradients(loss, dict(Gmain=G, Greg=G, Dmain=D, Dreg=D))
    w_avg = distributed.mean_over_ranks(G.mapping.w_avg)  # As the loop does before anybody looks at it.
    return {**found, 'pl_mean': loss.pl_mean, 'w_avg': w_avg, 'p': adapted_p()}


def adapted_p() -> torch.Tensor:
    """ADA's probability after a step; the mean sign of all processes' images, 0.25, decides, not that of one's."""
    signs = share(torch.tensor([1.0, 1, 1, 1, 1, -1, -1, -1]))
    training_stats.report('Loss/signs/real', signs)
    state = SimpleNamespace(ada_stats=training_stats.Collector('Loss/signs/real'),
                            augment_pipe=SimpleNamespace(p=torch.tensor(0.5)))  # fmt: skip
    training_stats.report('Loss/signs/real', signs)
    args = SimpleNamespace(ada_target=0.3, batch_size=BATCH, ada_interval=4, ada_kimg=1)
    adapt_augmentation(args, state)  # type: ignore[arg-type]
    return state.augment_pipe.p


def stage2() -> Result:
    G, D = networks(dict(SYNTHESIS, space='y+'))
    loss = EncoderLoss(torch.device('cpu'), G=G, D=D, percep='none', adv_weight=0.1, latent_weight=0.5, mix=0.5,
                       offset_weight=0.1, prior_weight=0.01, r1_gamma=5)  # fmt: skip
    loss.code_variance.fill_(1)
    loss.shown = 3 * BATCH  # Now the base code of y+ has to be good alone; two batches in a row see both ways.
    first = phase_gradients(loss, dict(Gmain=G, Dmain=D, Dreg=D))
    return {**first, **{f'second {name}': g for name, g in phase_gradients(loss, dict(Gboth=G)).items()}}


def both_stages(rank: int, world_size: int) -> Result:
    torch.set_num_threads(1)
    torch.randn_like = draw_like  # type: ignore[assignment]
    return {**stage1(), **stage2()}


def test_gradients_averages_and_ada_are_those_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of the minibatch standard deviation are the same images, too, as processes take turns with them."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'randn_like', torch.randn_like)  # Put back afterwards.
        one = both_stages(0, 1)
    assert len(one) > 200 and any(name.startswith('second Gboth') for name in one)
    assert float(one['p']) == pytest.approx(0.5 - BATCH * 4 / 1000)
    for size in (2, 4):
        several = distributed.spawn(both_stages, size, device='cpu')
        assert several.keys() == one.keys()
        for name, right in one.items():
            scale = max(float(right.abs().max()), 1e-5)
            assert float((several[name] - right).abs().max()) < 1e-4 * scale, f'{name}, {size} processes'


# ---------------------------------------------------------------------------------------------------------------------
# Runs that die and go on


@pytest.fixture(scope='module')
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp('faces')
    for i in range(10):
        pixels = np.random.RandomState(i).randint(0, 256, [16, 16], dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f'{i:02d}.png')
    labels = [[f'{i:02d}.png', i % 2] for i in range(10)]
    (folder / 'dataset.json').write_text(json.dumps({'labels': labels}))
    return str(folder)


class DyingLoss(EncoderLoss):
    """Its process, if it is the second, is killed in the sixth iteration."""

    def accumulate_gradients(self, phase: str, **kwargs: Any) -> torch.Tensor | None:
        self.calls = getattr(self, 'calls', 0) + (phase[0] == 'G' and kwargs['sync'])
        if self.calls == 6 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().accumulate_gradients(phase, **kwargs)


def train(
    rank: int, world_size: int, run: str, faces: str, init: tuple[str, Any], kimg: float, loss: Any = EncoderLoss
) -> None:
    torch.set_num_threads(1)
    state = os.path.join(run, checkpoint.FILE)
    D_kwargs = dict(class_name='training.networks.Discriminator', **SYNTHESIS, epilogue_kwargs=dict(mbstd_group_size=1))
    loss_kwargs = dict(class_name=f'{loss.__module__}.{loss.__name__}', percep='none', adv_weight=0.1,
                       latent_weight=0.1, mix=0.5)  # fmt: skip
    gan(pathlib.Path(run), faces, num_gpus=world_size, rank=rank, batch_gpu=1, resume_pkl=init[0], D_kwargs=D_kwargs,
        G_kwargs=dict(class_name='lia_plugin.networks.Generator', **init[1]), loss_kwargs=loss_kwargs, stage='encoder',
        G_reg_interval=None, augment_kwargs=None, augment_p=0, ada_target=None, kimg_per_tick=0.008,
        network_snapshot_ticks=1, image_snapshot_ticks=None, start_kimg=0.04, total_kimg=kimg,
        resume_state=state if os.path.exists(state) else None)  # fmt: skip


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_a_killed_run_goes_on_with_other_numbers_of_processes(faces: str, tmp_path: pathlib.Path) -> None:
    """Nothing in stage 2 is random but z, which all processes draw alike: the weights must be those of one process."""
    pkl = gan(tmp_path / 'stage1', faces, total_kimg=0.008)
    assert pkl is not None
    path = str(tmp_path / 'init.pkl')
    init = (path, prepare_encoder_stage(pkl, path, dict(SYNTHESIS)))
    one, several = str(tmp_path / 'one'), str(tmp_path / 'several')
    train(0, 1, one, faces, init, 0.088)
    with pytest.raises(LostProcess, match='^rank 1 on .* died: killed .* all 2 processes were stopped$'):
        distributed.spawn(train, 2, (several, faces, init, 0.088, DyingLoss), device='cpu')
    assert torch.multiprocessing.active_children() == []
    saved = checkpoint.load(os.path.join(several, checkpoint.FILE), 'encoder')
    assert saved['progress']['cur_nimg'] == 60
    distributed.spawn(train, 4, (several, faces, init, 0.072), device='cpu')
    distributed.spawn(train, 2, (several, faces, init, 0.088), device='cpu')
    right, found = weights(pathlib.Path(one)), weights(pathlib.Path(several))
    assert torch.equal(right['latents'], found['latents'])
    for key in right:
        if key.startswith(('G.', 'G_ema.', 'D.')):
            assert torch.allclose(right[key], found[key], atol=3e-4), key


def test_no_image_is_lost_or_shown_twice_as_the_number_of_processes_changes() -> None:
    images = range(23)

    def shown(processes: int, begin: int, count: int) -> list[int]:
        streams = [iter(misc.InfiniteSampler(images, rank, processes, seed=5, start=begin // processes))
                   for rank in range(processes)]  # fmt: skip
        return [next(stream) for _, stream in zip(range(count), itertools.cycle(streams))]

    parts: list[Callable[[], list[int]]] = [
        lambda: shown(2, 0, 16), lambda: shown(4, 16, 48), lambda: shown(2, 64, 8), lambda: shown(1, 72, 20)]
    assert [image for part in parts for image in part()] == shown(1, 0, 92)
