"""Phases that are recorded and replayed train as others do: by a stand-in for graphs where there is no GPU."""

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_training_loop import assert_equal, encoder, faces, gan, stage1, statistics, stop_after, weights  # noqa: F401

from dnnlib.util import EasyDict, UserError
from lia_plugin import loss as encoder_loss
from lia_plugin import networks as lia_networks
from lia_plugin.perceptual import DiscriminatorFeatures
from torch_utils import misc, training_stats
from training import augment, checkpoint, cuda_graphs, iteration, networks
from training.loss import StyleGAN2Loss

CPU = torch.device('cpu')


class StandIn:
    """Keeps the work at capture, and does it at each replay: on what its static tensors hold then."""

    made: list['StandIn'] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.replays = 0
        StandIn.made.append(self)

    def capture(self, work: Callable[[], cuda_graphs.Outputs]) -> None:
        self.work = work

    def replay(self) -> cuda_graphs.Outputs:
        self.replays += 1
        return self.work()


class Broken(StandIn):
    def capture(self, work: Callable[[], cuda_graphs.Outputs]) -> None:
        raise RuntimeError('operation not permitted when stream is capturing\nand more')


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(StandIn, 'made', [])
    monkeypatch.setattr(cuda_graphs, 'make', lambda mode, device, resolution: (
        None if mode == 'off' else cuda_graphs.Graphs(StandIn, required=mode == 'on')))
    return StandIn


@pytest.mark.parametrize('stage', ['gan', 'encoder'])
def test_recorded_training_equals_eager_bit_for_bit_and_resumes(
    stage: str, faces: str, stage1: str, tmp_path: pathlib.Path, recording: type[StandIn],  # noqa: F811
) -> None:
    train = functools.partial(encoder, stage1=stage1) if stage == 'encoder' else gan
    kimg = 0.032 if stage == 'gan' else 0.072  # Eight iterations of two rounds.
    more: dict[str, Any] = dict(D_reg_interval=2, G_reg_interval=2, total_kimg=kimg, kimg_per_tick=1,
                                image_snapshot_ticks=None)
    if stage == 'encoder':
        more['G_reg_interval'] = None
    train(tmp_path / 'eager', faces, **more)
    assert not recording.made
    train(tmp_path / 'replayed', faces, cuda_graphs='on', **more)
    assert len(recording.made) >= (4 if stage == 'gan' else 3) and min(graph.replays for graph in recording.made) > 0
    assert_equal(weights(tmp_path / 'eager'), weights(tmp_path / 'replayed'))
    assert statistics(tmp_path / 'eager') == pytest.approx(statistics(tmp_path / 'replayed'), nan_ok=True)

    if stage == 'encoder':  # Which resumes by the same code.
        return
    assert train(tmp_path / 'broken', faces, cuda_graphs='on', abort_fn=stop_after(3), **more) is None
    train(tmp_path / 'broken', faces, cuda_graphs='on', resume_state=str(tmp_path / 'broken' / checkpoint.FILE), **more)
    assert_equal(weights(tmp_path / 'eager'), weights(tmp_path / 'broken'))


def test_a_capture_that_fails_is_said_once_or_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(x: torch.Tensor) -> torch.Tensor:
        return x.sum()

    graphs = cuda_graphs.Graphs(Broken)
    values = [graphs.run('key', work, {'x': torch.full([2], float(i))}) for i in range(6)]
    assert [float(v) for v in values if v is not None] == [0, 2, 4, 6, 8, 10]
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'not permitted when stream is capturing' in said

    class Ending(StandIn):
        """As torch's: what had gone wrong is lost in the error of the end."""

        def capture(self, work: Callable[[], cuda_graphs.Outputs]) -> None:
            try:
                raise RuntimeError('no copies here\nand more')
            finally:
                raise RuntimeError('operation failed due to a previous error during capture')

    graphs = cuda_graphs.Graphs(Ending)
    for _ in range(6):
        graphs.run('key', work, {'x': torch.ones(2)})
    assert 'could not be captured (no copies here);' in capsys.readouterr().err
    graphs = cuda_graphs.Graphs(Broken, required=True)
    with pytest.raises(UserError, match='--cuda-graphs=on: .*off does without'):
        for _ in range(6):
            graphs.run('key', work, {'x': torch.ones(2)})


def test_shapes_and_keys_have_graphs_of_their_own() -> None:
    graphs = cuda_graphs.Graphs(StandIn)
    for _ in range(5):
        for size in (2, 3):
            for key in (1, 2):
                value = graphs.run(key, lambda x, key=key: x.sum() * key, {'x': torch.ones(size)})
                assert value is not None and float(value) == size * key
    assert len(graphs.captured) == 4


def test_where_there_can_be_none() -> None:
    assert cuda_graphs.make('off', CPU, 64) is None and cuda_graphs.make('auto', CPU, 64) is None
    assert cuda_graphs.make('auto', torch.device('cuda'), 512) is None
    with pytest.raises(UserError, match='--cuda-graphs=on: needs a CUDA GPU'):
        cuda_graphs.make('on', CPU, 64)
    with pytest.raises(ValueError, match='cuda_graphs: expected one of'):
        cuda_graphs.make('yes', CPU, 64)


def test_a_parameter_without_gradient_stays_without_one() -> None:
    module = torch.nn.ParameterList([torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.ones(2)])
    graphs = cuda_graphs.Graphs(StandIn)
    for _ in range(3):
        graphs.begin_phase('phase', module)
        (module[0].sum() * 2).backward()
        graphs.end_phase('phase', module, True)
        assert module[1].grad is None and module[0].grad is not None and (module[0].grad == 2).all()
        assert module[0].grad.stride() == module[0].stride() and module[0].grad.data_ptr() % 64 == 0
    graphs.begin_phase('phase', module)
    graphs.end_phase('phase', module, False)
    assert module[0].grad is None


class Linear:
    """A loss of one layer."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(3, 1).requires_grad_(False)

    def begin(self, phase: str, batch: int) -> tuple[()]:
        return ()

    def accumulate_gradients(self, **kwargs: Any) -> torch.Tensor:
        return self.add_gradients(**kwargs)

    def add_gradients(self, phase: str, real_img: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        loss = self.module(real_img).square().sum()
        loss.backward()
        return loss.detach()


def test_many_rounds_are_recorded_only_with_gradients_that_stay() -> None:
    recorded_with = []

    class Recording(StandIn):
        def capture(self, work: Callable[[], cuda_graphs.Outputs]) -> None:
            super().capture(work)
            grads = [p.grad for p in loss.module.parameters()]
            recorded_with.append([grad is not None and grad.untyped_storage().data_ptr() for grad in grads])

    torch.manual_seed(0)
    loss, args = Linear(), EasyDict(num_gpus=1)
    opt = torch.optim.SGD(loss.module.parameters(), lr=0.1)
    phase = EasyDict(name='Dmain', module=loss.module, interval=1, opt=opt)
    state = EasyDict(loss=loss, graphs=cuda_graphs.Graphs(Recording))
    rounds = torch.randn(10, 3).split(2)
    for _ in range(3):
        iteration.run_phase(args, state, phase, rounds, rounds, rounds, rounds)
    static = state.graphs.gradients[loss.module].buffer.untyped_storage().data_ptr()
    assert recorded_with == [[static, static]]


def test_gradients_have_the_strides_of_their_parameters() -> None:
    """Fused Adam on CUDA refuses others, also if they differ along axes of length 1 alone."""
    loss = Linear()
    small: dict[str, Any] = {'channel_base': 64, 'channel_max': 8}
    D = networks.Discriminator(0, 8, 3, **small).requires_grad_(False)
    c, z = (torch.zeros(4, 0),), (torch.zeros(4, 8),)
    for module, made in ((loss.module, loss), (D, StyleGAN2Loss(CPU, D, D, D))):
        phase = EasyDict(name='Dreg', module=module, interval=1, opt=torch.optim.Adam(module.parameters(), fused=True))
        img = torch.randn(4, 3, 8, 8) if module is D else torch.randn(4, 3)
        iteration.run_phase(EasyDict(num_gpus=1), EasyDict(loss=made, graphs=None), phase, (img,), c, z, c)
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in module.parameters())
    weight = torch.nn.Parameter(torch.ones(4, 2, 1, 1))
    weight.grad = torch.arange(8.0).reshape(4, 2, 1, 1).as_strided([4, 2, 1, 1], [2, 1, 2, 2])
    iteration._match_strides([weight])
    assert weight.grad.stride() == weight.stride() and torch.equal(weight.grad.flatten(), torch.arange(8.0))


def test_held_back_reports_count_when_they_are_added() -> None:
    collector = training_stats.Collector('held.*')
    with training_stats.held_back() as moments:
        training_stats.report('held', torch.tensor([1.0, 3.0]))
        training_stats.report('held', 5.0)
    collector.update()
    assert collector.num('held') == 0
    training_stats.add(moments)
    training_stats.add(moments)
    collector.update()
    assert collector.num('held') == 6 and collector.mean('held') == 3


# ---------------------------------------------------------------------------------------------------------------------
# Nothing waits for the device


def test_no_phase_asks_for_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {'channel_base': 64, 'channel_max': 8}
    G = networks.Generator(8, 2, 8, 8, 3, mapping_kwargs={'num_layers': 1}, synthesis_kwargs=small)
    D = networks.Discriminator(2, 8, 3, **small)
    pipe = augment.AugmentPipe(**augment.augpipe_specs['bgcfnc'])
    for net in (G, D, pipe):
        net.requires_grad_(False)
    loss = StyleGAN2Loss(CPU, G.mapping, G.synthesis, D, pipe, one_batch=True)
    c = (torch.eye(2).repeat(2, 1),)
    args = EasyDict(num_gpus=1)
    state = EasyDict(loss=loss, graphs=None)
    monkeypatch.setattr(augment, '_asks_device', lambda device, size: False)  # As on a GPU.

    def refuse(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError('waits for the device')

    phases = []
    for name in ('Gmain', 'Greg', 'Dmain', 'Dreg', 'Gboth', 'Dboth'):
        module = G if name[0] == 'G' else D
        opt = torch.optim.Adam(module.parameters(), fused=True)
        phases.append(EasyDict(name=name, module=module, interval=1, opt=opt))
    with monkeypatch.context() as patch:
        for name in ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__int__', '__float__', '__index__', 'nonzero'):
            patch.setattr(torch.Tensor, name, refuse)
        losses = [iteration.run_phase(args, state, phase, (torch.zeros(4, 3, 8, 8),), c, (torch.zeros(4, 8),), c)
                  for phase in phases]
    assert all(torch.isfinite(torch.stack(values)).all() for values in losses)


@pytest.mark.slow
def test_no_phase_brings_a_tensor_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU. torch's device without numbers stands for one: it refuses others' tensors, and to be read."""
    device, small = torch.device('meta'), {'channel_base': 64, 'channel_max': 8, 'num_fp16_res': 2, 'conv_clamp': 256}
    shape: dict[str, Any] = dict(z_dim=8, c_dim=2, w_dim=8, img_resolution=8, img_channels=3, synthesis_kwargs=small)
    D = networks.Discriminator(2, 8, 3, **small).to(device)
    pipe = augment.AugmentPipe(**augment.augpipe_specs['bgcfnc']).to(device)
    img, z, c = (torch.zeros(4, *rest, device=device) for rest in ((3, 8, 8), (8,), (2,)))
    monkeypatch.setattr(augment, '_asks_device', lambda device, size: False)
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: contextlib.nullcontext())  # It doesn't know meta.
    monkeypatch.setattr(encoder_loss, 'code_statistics', lambda *args: (None, torch.ones(8, device=device)))
    for stage in ('gan', 'y+'):
        code = None if stage == 'gan' else dict(small, space=stage)
        G: Any = lia_networks.Generator(encoder_kwargs=code, **shape).to(device)
        halves = dict(G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=pipe)
        loss: Any = StyleGAN2Loss(device, **halves, one_batch=True) if code is None else encoder_loss.EncoderLoss(
            device, **halves, percep='none', adv_weight=1, latent_weight=1, mix=0.5, prior_weight=1, offset_weight=1)
        loss.percep = DiscriminatorFeatures(D)
        for phase in ('Gmain', 'Greg', 'Dmain', 'Dreg'):
            for net in (G, D):
                net.requires_grad_(net is (G if phase[0] == 'G' else D))
            with training_stats.held_back():  # Nobody could read them later.
                value = loss.accumulate_gradients(phase, img, c, z, c, True, 1)
            assert (value is None and code is not None and phase == 'Greg') or value.device == device


def test_all_margin_there_can_be_gives_what_measured_margins_give(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = augment.AugmentPipe(**augment.augpipe_specs['geom'], **augment.augpipe_specs['blit'])
    img = torch.nn.functional.interpolate(torch.randn(6, 3, 4, 4), size=[16, 24], mode='bilinear')
    results = []
    for asks in (True, False):
        monkeypatch.setattr(augment, '_asks_device', lambda device, size, asks=asks: asks)
        torch.manual_seed(3)
        results.append(pipe(img))
        pipe.p.fill_(0)
        torch.testing.assert_close(pipe(img), img, rtol=0, atol=1e-4)
        pipe.p.fill_(1)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-4)


def test_a_recording_of_augmentation_copies_no_number_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes before it measure margins of images above a size, and so meet other numbers."""
    pipe = augment.AugmentPipe(**augment.augpipe_specs['bgcfnc'])
    misc._cached_constant.cache_clear()
    for asks in (True, False):
        monkeypatch.setattr(augment, '_asks_device', lambda device, size, asks=asks: asks)
        before = misc._cached_constant.cache_info().misses
        pipe(torch.zeros(4, 3, 20, 20))
    assert misc._cached_constant.cache_info().misses == before


def test_a_loss_is_looked_at_one_iteration_later_and_before_anything_is_saved() -> None:
    watch = iteration.Watch(CPU, 'gan', later=True)
    watch.note([torch.tensor(1.0)], 4)
    watch.note([torch.tensor(1.0), torch.tensor(float('inf'))], 8)
    watch_too = iteration.Watch(CPU, 'gan', later=True)
    watch_too.note([torch.tensor(float('nan'))], 8000)
    with pytest.raises(UserError, match='kimg 0.0'):
        watch.note([torch.tensor(1.0)], 12)
    with pytest.raises(UserError, match='kimg 8.0'):
        watch_too.check()
    watch_too.check()
    with pytest.raises(UserError):
        iteration.Watch(CPU, 'gan').note([torch.tensor(float('nan'))], 0)
