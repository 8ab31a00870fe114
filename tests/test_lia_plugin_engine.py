"""Engines: the network's numbers by the same calls, with what kernels keep of weights and with batches replayed."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from test_lia_plugin_inversion import RESOLUTION, make_generator

import training.networks
from lia_plugin import codes, engine, inversion
from lia_plugin.cuda_replay import MOST_GRAPHS, Replay
from lia_plugin.host import UserError
from torch_utils.ops import amx_conv, bias_act, kept


def images(count: int) -> torch.Tensor:
    return torch.rand([count, 3, RESOLUTION, RESOLUTION], generator=torch.Generator().manual_seed(count)) * 2 - 1


@pytest.fixture(scope='module')
def G() -> Any:
    return make_generator()


@torch.no_grad()
def test_calls_give_what_the_networks_give(G: Any) -> None:
    fast = engine.Engine(G)
    z = torch.randn([3, 16])
    for _ in range(3):
        img = images(3)
        y = G.encode(img)
        torch.testing.assert_close(fast.encode(img), y)
        torch.testing.assert_close(fast.invert(img, space='y').z, G.invert(img, space='y').z)
        pictures = [net.decode(y, None, 0.7, noise_mode='const') for net in (fast, G)]
        torch.testing.assert_close(*pictures)
        kwargs = dict(truncation_psi=0.5, truncation_cutoff=2, noise_mode='none')
        torch.testing.assert_close(fast(z, None, **kwargs), G(z, None, **kwargs))
    assert fast.num_ws == G.num_ws and fast.synthesis.num_ws == G.num_ws and not fast.training


@torch.no_grad()
def test_labels_reach_the_encoder_and_random_noise_is_random() -> None:
    G = make_generator(c_dim=2)
    fast, img, c = engine.Engine(G), images(2), torch.eye(2)
    torch.testing.assert_close(fast.invert(img, c).z, G.invert(img, c).z)
    for layer in (G.synthesis.b16.conv1,):
        layer.noise_strength.fill_(1)
    ws = G.mapping.y_to_ws(G.encode(img, c))
    torch.manual_seed(3)
    first = fast.synthesis(ws)
    torch.manual_seed(3)
    torch.testing.assert_close(G.synthesis(ws), first)
    assert not torch.equal(fast.synthesis(ws), first)


def test_gradients_go_through(G: Any) -> None:
    y = torch.randn([2, 16], requires_grad=True)
    found, expected = (torch.autograd.grad(net.decode(y, noise_mode='const').square().sum(), y)[0]
                       for net in (engine.Engine(G), G))  # fmt: skip
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_changed_weights_count(G: Any) -> None:
    G = copy.deepcopy(G)
    fast, img = engine.Engine(G), images(2)
    before = fast.encode(img)
    G.encoder.stage0.conv0.weight.mul_(1.5)
    G.encoder.output_std.add_(0.5)
    after = fast.encode(img)
    torch.testing.assert_close(after, G.encode(img))
    assert (after - before).abs().max() > 1e-2
    G.synthesis.b16.conv1.weight.data = G.synthesis.b16.conv1.weight * 2
    ws = G.mapping.y_to_ws(after)
    torch.testing.assert_close(engine.of(G).synthesis(ws, noise_mode='const'), G.synthesis(ws, noise_mode='const'))


def test_one_engine_for_a_network_and_none_outlives_it(G: Any) -> None:
    assert engine.of(G) is engine.of(G) and engine.of('no module') == 'no module'
    other = copy.deepcopy(G)
    assert engine.of(other) is not engine.of(G)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_copies_are_engines_of_copies(G: Any) -> None:
    twin = copy.deepcopy(engine.Engine(G)).eval().requires_grad_(False).to('cpu')
    assert isinstance(twin, engine.Engine) and twin.G is not G
    with torch.no_grad():
        torch.testing.assert_close(twin.encode(images(1)), G.encode(images(1)))


def test_the_plugin_uses_it(G: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Spy(engine.Engine):
        def encode(self, *args: Any, **kwargs: Any) -> Any:
            calls.append('encode')
            return super().encode(*args, **kwargs)

    monkeypatch.setattr(engine, '_engines', weakref.WeakKeyDictionary())
    monkeypatch.setattr(engine, 'Engine', Spy)
    inversion.invert_images(G, images(2))
    assert calls == ['encode']
    codes.render(G, torch.randn([2, 16]))
    assert list(engine._engines[G].synthesis.fast) == [(('noise_mode', 'const'),)]


def test_modes_are_checked(G: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LIA_INFERENCE', 'faster')
    with pytest.raises(UserError, match="LIA_INFERENCE: expected one of auto, eager, graph, compile, got 'faster'"):
        engine.Engine(G)
    with pytest.raises(UserError, match='graph: needs a CUDA device, not cpu'):
        engine.Engine(G, 'graph')


# ---------------------------------------------------------------------------------------------------------------------
# Replays, with a stand-in for CUDA's graphs


class FakeGraph:
    """Runs in fixed memory, as a graph does."""

    def __init__(self, function: Any, tensors: tuple[torch.Tensor, ...]) -> None:
        self.function = function
        self.inputs = [t.clone() for t in tensors]
        self.runs = 0

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        for place, given in zip(self.inputs, tensors, strict=True):
            place[: len(given)].copy_(given)
        return self.function(*self.inputs)[: len(tensors[0])].clone()


def test_the_second_batch_of_a_size_is_recorded_and_batches_of_half_of_it_on_fill_a_part() -> None:
    called: list[int] = []

    def function(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        called.append(len(x))
        return x * 2 + c

    made: list[FakeGraph] = []

    def recorder(*args: Any) -> Any:
        made.append(FakeGraph(*args))
        return made[-1]

    replay = Replay(function, 'it', recorder=recorder)
    for size in (4, 4, 4, 3, 2, 5, 5, 5):
        x, c = torch.randn([size, 3]), torch.randn([size, 1])
        torch.testing.assert_close(replay(x, c), x * 2 + c)
    assert [len(graph.inputs[0]) for graph in made] == [4, 5]
    assert [graph.runs for graph in made] == [4, 2], 'each once to be compared'
    assert [size for size in called if size not in (4, 5)] == [], 'others are filled up'
    replay(torch.randn([4, 2]), torch.randn([4, 1]))  # Of other rows: not the same graph.
    assert len(made) == 2


def test_a_batch_of_less_than_half_a_graph_is_not_filled_up_but_gets_its_own() -> None:
    computed: list[int] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        computed.append(len(x))
        return x * 2

    replay = Replay(function, 'it', recorder=FakeGraph)  # type: ignore[arg-type]
    for size, rows_computed in ((8, [8]), (8, [8, 8]), (4, [8]), (3, [3]), (1, [1]), (3, [3, 3]), (3, [3]), (2, [3]),
                                (1, [1, 1]), (1, [1]), (5, [8])):  # fmt: skip
        computed.clear()
        x = torch.randn([size, 3])
        torch.testing.assert_close(replay(x), x * 2)
        assert computed == rows_computed, f'of {size} rows'


def test_random_batches_are_never_filled_up() -> None:
    replay = Replay(lambda x: x + torch.randn(x.shape), 'it', random=True, recorder=FakeGraph)  # type: ignore[arg-type]
    for size in (4, 4, 3, 3):
        replay(torch.zeros([size, 2]))
    assert sorted(*replay.graphs.values()) == [3, 4]


@pytest.mark.parametrize('fault', ['raises', 'differs'])
def test_what_cannot_be_recorded_is_said_once(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    def recorder(function: Any, tensors: Any) -> Any:
        if fault == 'raises':
            raise RuntimeError('operation not permitted\nwhen stream is capturing')
        return lambda x: x + 2

    replay = Replay(lambda x: x * 2, 'encoder', recorder=recorder)
    for _ in range(4):
        assert torch.equal(replay(torch.ones([2])), torch.full([2], 2.0))
    reason = 'operation not permitted when stream is capturing' if fault == 'raises' else 'its results differ'
    assert capsys.readouterr().err == f'encoder: no CUDA graph ({reason}); going on without\n'


def test_graphs_come_to_an_end() -> None:
    replay = Replay(lambda x: x, 'it', recorder=FakeGraph)  # type: ignore[arg-type]
    for size in range(1, 20):
        for _ in range(2):
            replay(torch.zeros([size]))
    assert sum(map(len, replay.graphs.values())) == MOST_GRAPHS


# ---------------------------------------------------------------------------------------------------------------------
# What is kept of weights


def test_results_are_kept_for_known_weights_until_they_change() -> None:
    w, other = torch.randn([3, 2, 3, 3]), torch.randn([3, 2, 3, 3])
    store = kept.Store([w])
    with torch.no_grad(), kept.using(store):
        norms = bias_act.squared_norms(w)
        assert bias_act.squared_norms(w) is norms, 'kept'
        assert bias_act.squared_norms(other) is not bias_act.squared_norms(other)
        w.mul_(2)
        torch.testing.assert_close(bias_act.squared_norms(w), norms * 4)
        with torch.enable_grad():
            assert kept.store_of(w) is None
    assert kept.store_of(w) is None and len(store.results) == 1


@pytest.mark.skipif(not amx_conv.available(), reason='no matrix tiles here')
@pytest.mark.parametrize('parts', [1, 3])
@pytest.mark.parametrize('inputs, outputs', [(40, 33), (64, 32)])
def test_packed_weights_are_those_that_a_call_packs(parts: int, inputs: int, outputs: int) -> None:
    x, w = torch.randn([2, inputs, 6, 5]), torch.randn([outputs, inputs, 3, 3])
    turned = w.transpose(0, 1)
    calls = (lambda: amx_conv.conv2d(x, w, 1, (1, 1), parts), lambda: amx_conv.conv2d(x, w, 2, (1, 1), parts),
             lambda: amx_conv.conv_transpose2d(x, turned, 2, parts=parts))  # fmt: skip
    expected = [call() for call in calls]
    with torch.no_grad(), kept.using(store := kept.Store([w])):
        for _ in range(2):
            for call, value in zip(calls, expected):
                assert torch.equal(call(), value)
        w.neg_()
        for call, value in zip(calls, expected):
            assert torch.equal(call(), -value)
    assert len(store.results) == 3


def test_a_stock_network_is_drawn_too() -> None:
    torch.manual_seed(0)
    G = training.networks.Generator(8, 0, 8, 16, 3, synthesis_kwargs=dict(channel_base=64, channel_max=8)).eval()
    z = torch.randn([2, 8])
    with torch.no_grad():
        torch.testing.assert_close(engine.Engine(G)(z, noise_mode='const'), G(z, None, noise_mode='const'))
