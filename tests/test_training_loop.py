"""The training loop: both stages by class name, exact resumption, several processes, divergence."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from dnnlib.util import EasyDict, UserError
from lia_plugin.stages import prepare_encoder_stage
from torch_utils import distributed
from training import checkpoint
from training.dataset import ImageFolderDataset
from training.loss import StyleGAN2Loss
from training.networks import Discriminator
from training.reports import drop_later_ticks
from training.training_loop import _batches, training_loop

SYNTHESIS = dict(channel_base=128, channel_max=8)
ENCODER = dict(channel_base=128, channel_max=8)
ADAM = dict(class_name='torch.optim.Adam', lr=0.002, betas=[0, 0.99], eps=1e-8)


@pytest.fixture(scope='module')
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve 16×16 pictures and two classes."""
    folder = tmp_path_factory.mktemp('faces')
    rng = np.random.RandomState(0)
    names = [f'img{i:02d}.png' for i in range(12)]
    for name in names:
        PIL.Image.fromarray(rng.randint(0, 256, [16, 16], dtype=np.uint8)).save(folder / name)
    (folder / 'dataset.json').write_text(json.dumps({'labels': [[n, i % 2] for i, n in enumerate(names)]}))
    return str(folder)


@pytest.fixture(scope='module')
def stage1(faces: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The snapshot of a finished stage 1, in its run directory."""
    path = gan(tmp_path_factory.mktemp('stage1'), faces)
    assert path is not None, 'nothing interrupts it'
    return path


def gan(run_dir: pathlib.Path, faces: str, **kwargs: Any) -> str | None:
    """Stage 1 with everything on that has a state: ADA, path length's mean, style mixing, lazy regularisation."""
    run_dir.mkdir(exist_ok=True)
    G_kwargs = dict(class_name='lia_plugin.networks.Generator', z_dim=8, w_dim=8, synthesis_kwargs=SYNTHESIS)
    D_kwargs = dict(class_name='training.networks.Discriminator', **SYNTHESIS)
    D_kwargs['epilogue_kwargs'] = dict(mbstd_group_size=2)
    defaults = dict(
        training_set_kwargs=dict(class_name='training.dataset.ImageFolderDataset', path=faces, use_labels=True),
        G_kwargs=G_kwargs, D_kwargs=D_kwargs, G_opt_kwargs=ADAM, D_opt_kwargs=ADAM, batch_size=4, batch_gpu=2,
        loss_kwargs=dict(class_name='training.loss.StyleGAN2Loss'),
        augment_kwargs=dict(class_name='training.augment.AugmentPipe', xflip=1, scale=1, brightness=1),
        augment_p=0.1, ada_target=0.6, ada_kimg=1, ada_interval=3, kimg_per_tick=0.008, total_kimg=0.04,
        network_snapshot_ticks=2, image_snapshot_ticks=2, device='cpu',
    )  # fmt: skip
    return training_loop(run_dir=str(run_dir), **{**defaults, **kwargs})


def encoder(
    run_dir: pathlib.Path, faces: str, stage1: str, loss_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> str | None:
    init = str(run_dir / 'encoder-init.pkl')
    run_dir.mkdir(exist_ok=True)
    G_kwargs = prepare_encoder_stage(stage1, init, dict(**ENCODER))
    loss = dict(class_name='lia_plugin.loss.EncoderLoss', percep='disc', percep_network=init, adv_weight=0.1)
    defaults = dict(
        G_kwargs=dict(class_name='lia_plugin.networks.Generator', **G_kwargs),
        loss_kwargs=dict(loss, **(loss_kwargs or {'latent_weight': 0.1, 'mix': 0.5})),
        G_reg_interval=None, stage='encoder', start_kimg=0.04, total_kimg=0.08, resume_pkl=init, augment_kwargs=None,
        augment_p=0, ada_target=None,
    )  # fmt: skip
    return gan(run_dir, faces, **{**defaults, **kwargs})


def weights(run_dir: pathlib.Path) -> dict[str, torch.Tensor]:
    data = checkpoint.load(str(run_dir / checkpoint.FILE), checkpoint_stage(run_dir))
    found = {f'{m}.{k}': v for m, state in data['modules'].items() for k, v in state.items()}
    found['rng'] = data['random_states'][0]['cpu']
    found['latents'] = data['latents']
    found.update({f'loss.{k}': v for k, v in data['losses'][0].items()})
    for i, opt in enumerate(data['optimizers']):
        found.update({f'opt{i}.{j}.{k}': v for j, s in opt['state'].items() for k, v in s.items()})
    return found


def checkpoint_stage(run_dir: pathlib.Path) -> str:
    return torch.load(run_dir / checkpoint.FILE, weights_only=True)['stage']


def statistics(run_dir: pathlib.Path) -> dict[tuple[int, str, str], float]:
    """stats.jsonl without what a clock or a machine says: {(line, name, moment): value}."""
    lines = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    return {
        (i, name, moment): value
        for i, line in enumerate(lines)
        for name, moments in line.items()
        if name.startswith(('Loss', 'Progress'))
        for moment, value in moments.items()
    }


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k]))] == []


def test_ticks_after_the_last_state_are_dropped_and_come_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'stats.jsonl'
    lines = [json.dumps({'Progress/kimg': {'mean': kimg}}) + '\n' for kimg in (0.004, 0.012, 0.02)]
    path.write_text(''.join(lines) + '{"Progress/kimg": {"me')
    drop_later_ticks(str(path), cur_nimg=12)
    assert path.read_text() == ''.join(lines[:2])
    drop_later_ticks(str(tmp_path / 'none.jsonl'), cur_nimg=12)
    assert not (tmp_path / 'none.jsonl').exists()


def stop_after(iterations: int) -> Callable[[], bool]:
    """An abort function that lets so many iterations pass, at no tick's end."""
    calls = iter(range(iterations + 1))
    return lambda: next(calls) >= iterations


@pytest.mark.parametrize('stage', ['gan', 'encoder'])
def test_resumed_run_equals_an_unbroken_one_bit_for_bit(
    stage: str, faces: str, stage1: str, tmp_path: pathlib.Path
) -> None:
    train = functools.partial(encoder, stage1=stage1) if stage == 'encoder' else gan

    unbroken, broken = tmp_path / 'unbroken', tmp_path / 'broken'
    train(unbroken, faces)
    assert train(broken, faces, abort_fn=stop_after(5)) is None
    state = str(broken / checkpoint.FILE)
    first = weights(broken)
    torch.manual_seed(12345)  # another process, another random state
    assert train(broken, faces, resume_state=state, random_seed=0) is not None
    assert_equal(weights(unbroken), weights(broken))
    assert any(not torch.equal(torch.as_tensor(v), torch.as_tensor(first[k])) for k, v in weights(broken).items())
    # Totals are shared by all runs in a process, so differences of totals round differently.
    assert statistics(unbroken) == pytest.approx(statistics(broken), rel=1e-9, abs=1e-6)


def test_run_directory_and_snapshot_hold_what_the_host_writes(faces: str, stage1: str) -> None:
    import legacy

    run_dir = pathlib.Path(stage1).parent
    assert os.path.basename(stage1) == 'network-snapshot-000000.pkl'
    files = set(os.listdir(run_dir))
    assert {'reals.png', 'fakes_init.png', 'fakes000000.png', 'stats.jsonl', 'training-state.pt'} <= files
    with open(stage1, 'rb') as f:
        data = legacy.load_network_pkl(f)
    assert list(data)[:5] == ['training_set_kwargs', 'G', 'D', 'G_ema', 'augment_pipe']
    assert data['training_set_kwargs']['path'] == faces
    assert not any(p.requires_grad for p in data['G'].parameters()) and not data['G_ema'].training
    state = weights(run_dir)
    assert torch.equal(data['G_ema'].state_dict()['mapping.w_avg'], state['G.mapping.w_avg'])


def test_encoder_stage_leaves_the_generator_as_it_was(faces: str, stage1: str, tmp_path: pathlib.Path) -> None:
    import legacy

    def load(path: str) -> torch.nn.Module:
        with open(path, 'rb') as f:
            return legacy.load_network_pkl(f)['G_ema']

    before, after = load(stage1), load(encoder(tmp_path / 'run', faces, stage1))
    old = {**dict(before.named_parameters()), **dict(before.named_buffers())}
    new = dict(after.named_buffers())
    assert_equal({k: v.detach() for k, v in old.items()}, {k: new[k] for k in old})
    fresh = load(str(tmp_path / 'run' / 'encoder-init.pkl'))
    moved = [k for k, v in after.named_parameters() if not torch.equal(v, dict(fresh.named_parameters())[k])]
    assert len(moved) == len(list(after.parameters()))


def test_encoder_starts_from_the_measured_statistics_of_y(stage1: str, tmp_path: pathlib.Path) -> None:
    prepare_encoder_stage(stage1, str(tmp_path / 'init.pkl'), dict(**ENCODER))
    from lia_plugin.host import load_network_pkl

    G = load_network_pkl(str(tmp_path / 'init.pkl'))['G_ema']
    c = torch.eye(2)[torch.arange(20000) % 2]
    y = G.mapping.z_to_y(torch.randn([20000, 8]), c)
    assert torch.allclose(G.encoder.output_mean, y.mean(0), atol=0.1)
    assert torch.allclose(G.encoder.output_std, y.std(0), rtol=0.05)


def test_network_without_phi_or_discriminator_is_refused(faces: str, stage1: str, tmp_path: pathlib.Path) -> None:
    from lia_plugin.host import load_network_pkl
    from torch_utils import network_pickle

    plain = dict(class_name='training.networks.Generator', z_dim=8, w_dim=8, synthesis_kwargs=SYNTHESIS)
    path = gan(tmp_path / 'plain', faces, G_kwargs=plain, total_kimg=0.004)
    with pytest.raises(UserError, match='no φ'):
        prepare_encoder_stage(path, str(tmp_path / 'init.pkl'), {})
    network_pickle.save(str(tmp_path / 'slim.pkl'), dict(G_ema=load_network_pkl(stage1)['G_ema']))
    with pytest.raises(UserError, match='discriminator'):
        prepare_encoder_stage(str(tmp_path / 'slim.pkl'), str(tmp_path / 'init.pkl'), {})
    assert not (tmp_path / 'init.pkl').exists()


class BrokenLoss(StyleGAN2Loss):
    """Gives NaN in the seventh iteration's generator phase; an iteration has two rounds."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.calls = 0

    def accumulate_gradients(self, phase: str, **kwargs: Any) -> torch.Tensor | None:
        self.calls += phase == 'Gmain'
        value = super().accumulate_gradients(phase, **kwargs)
        return value * float('nan') if value is not None and self.calls > 12 else value


def test_a_loss_that_is_not_finite_stops_the_run(faces: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match='NaN or infinite'):
        gan(tmp_path / 'run', faces, loss_kwargs=dict(class_name=f'{__name__}.BrokenLoss'))
    saved = checkpoint.load(str(tmp_path / 'run' / checkpoint.FILE), 'gan')
    assert saved['progress']['cur_nimg'] == 20  # the last snapshot before it
    assert all(v.isfinite().all() for v in saved['modules']['G'].values())


def test_a_bad_image_met_by_a_worker_is_one_line(faces: str, tmp_path: pathlib.Path) -> None:
    broken = shutil.copytree(faces, tmp_path / 'broken')
    data = (broken / 'img05.png').read_bytes()
    (broken / 'img05.png').write_bytes(data[: len(data) // 2])
    args = EasyDict(rank=0, num_gpus=1, random_seed=0, batch_size=4, device=torch.device('cpu'))
    args.data_loader_kwargs = dict(num_workers=1)
    batches = _batches(args, ImageFolderDataset(str(broken)), 0)
    with contextlib.closing(batches), pytest.raises(UserError) as caught:
        list(itertools.islice(batches, 6))
    assert 'img05.png' in str(caught.value) and '\n' not in str(caught.value)


def test_foreign_and_truncated_states_are_refused(stage1: str, tmp_path: pathlib.Path) -> None:
    path = pathlib.Path(shutil.copy(pathlib.Path(stage1).parent / checkpoint.FILE, tmp_path))
    with pytest.raises(UserError, match='belongs to stage gan'):
        checkpoint.load(str(path), 'encoder')
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match='damaged'):
        checkpoint.load(str(path), 'gan')


def _gradients(rank: int, world_size: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    D = Discriminator(c_dim=0, img_resolution=16, img_channels=1, **SYNTHESIS, epilogue_kwargs=dict(mbstd_group_size=1))
    distributed.broadcast_module(D)
    img = torch.randn([4, 1, 16, 16], generator=torch.Generator().manual_seed(1))[rank::world_size].requires_grad_()
    logits = D(img, None)
    (grads,) = torch.autograd.grad(logits.sum(), [img], create_graph=True)
    (torch.nn.functional.softplus(logits).mean() + grads.square().sum([1, 2, 3]).mean()).backward()
    distributed.all_reduce_gradients(D.parameters(), world_size)
    return [p.grad for p in D.parameters()]


def _train(rank: int, world_size: int, run_dir: str, faces: str, stage1: str) -> None:
    encoder(pathlib.Path(run_dir) / f'of{world_size}', faces, stage1, num_gpus=world_size, rank=rank, batch_gpu=2,
            total_kimg=0.052, loss_kwargs=dict(latent_weight=0.1, mix=1.0),
            D_kwargs=dict(class_name='training.networks.Discriminator', **SYNTHESIS,
                          epilogue_kwargs=dict(mbstd_group_size=1)))  # fmt: skip


def _share(rank: int, world_size: int, *args: str) -> list[torch.Tensor]:
    _train(rank, world_size, *args)
    return _gradients(rank, world_size)


def test_two_processes_give_one_process_gradients_and_encoder(
    faces: str, stage1: str, tmp_path: pathlib.Path
) -> None:
    """Nothing in stage 2 is random but z, which all ranks draw alike: three steps must give the same weights.

    All images of a batch are generated ones, or else which are would depend on the ranks' shares.
    """
    args = (str(tmp_path), faces, stage1)
    gradients = _share(0, 1, *args)
    for a, b in zip(gradients, distributed.spawn(_share, 2, args=args, device='cpu'), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    one, two = weights(tmp_path / 'of1'), weights(tmp_path / 'of2')
    for key in one:
        if key.startswith('G.'):
            assert torch.allclose(one[key], two[key], atol=2e-4), key
