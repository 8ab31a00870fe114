"""torch_utils.misc: constants, shapes, sampling order, weights, the summary table."""

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from torch_utils import misc


def test_constants_are_shared_by_value_dtype_and_shape() -> None:
    one = misc.constant([1, 2])
    assert one is misc.constant([1, 2]) and one.dtype == torch.float32 and one.tolist() == [1, 2]
    assert misc.constant(3, shape=[2, 2]).tolist() == [[3, 3], [3, 3]]
    assert misc.constant([1, 2], dtype=torch.int64).dtype == torch.int64
    assert misc.constant([[1, 2]]).shape == (1, 2) and misc.constant(1.5).shape == ()
    assert misc.constant([1, 2], shape=[3, 2]).is_contiguous()
    # Equal bytes are not equal values.
    assert misc.constant(np.float32([1])).item() == 1 != misc.constant(np.int32([0x3F800000])).item()
    assert misc.constant(np.zeros([0, 3])).shape == (0, 3)
    image = misc.constant(1, shape=[1, 2, 3, 4], memory_format=torch.channels_last)
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_a_constant_made_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        value = misc.constant([0.125, 7])
    x = torch.ones([2], requires_grad=True)
    (x * value).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.125, 7]


def test_assert_shape() -> None:
    x = torch.zeros([2, 3])
    misc.assert_shape(x, [2, 3])
    misc.assert_shape(x, [None, 3])
    with pytest.raises(AssertionError, match='dimension 1: got 3, expected 4'):
        misc.assert_shape(x, [2, 4])
    with pytest.raises(AssertionError, match='got 2, expected 3'):
        misc.assert_shape(x, [2, 3, 1])
    with pytest.raises(AssertionError, match='dimension 0'):
        misc.assert_shape(x, [torch.tensor(5), None])
    misc.assert_shape(x, [torch.tensor(2), None])


def test_suppress_tracer_warnings_silences_only_those() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        filters = list(warnings.filters)
        with misc.suppress_tracer_warnings():
            warnings.warn('traced', torch.jit.TracerWarning, stacklevel=1)
            warnings.warn('other', UserWarning, stacklevel=1)
        assert warnings.filters == filters
    assert [str(item.message) for item in caught] == ['other']


def test_profiled_function_keeps_name_and_result() -> None:
    @misc.profiled_function
    def add(a: int, b: int = 1) -> int:
        """Sum."""
        return a + b

    assert add(1, b=2) == 3 and add.__name__ == 'add' and add.__doc__ == 'Sum.'


# The order that StyleGAN2-ADA's own sampler gave for 11 items and seed 0: one process, and the second of three.
HOST_ORDER = {
    (0, 1): [4, 9, 2, 10, 6, 1, 7, 8, 3, 2, 5, 4, 10, 8, 6, 2, 7, 1, 3, 10],
    (1, 3): [9, 6, 8, 5, 8, 7, 10, 7, 6, 1, 8, 5, 10, 8, 3, 10, 1, 8, 0, 1],
}


def take(count: int, *args: Any, **kwargs: Any) -> list[int]:
    return list(itertools.islice(misc.InfiniteSampler(*args, **kwargs), count))


@pytest.mark.parametrize('replica', HOST_ORDER)
def test_sampler_has_the_hosts_order(replica: tuple[int, int]) -> None:
    assert take(20, range(11), *replica) == HOST_ORDER[replica]
    assert all(type(index) is int for index in take(3, range(11)))


def one_by_one(count: int, seed: int, window_size: float) -> Iterator[int]:
    """The definition, drawing each number when it is needed."""
    random = np.random.RandomState(seed)
    order = np.arange(count)
    random.shuffle(order)
    window = int(np.rint(count * window_size))
    for position in itertools.count():
        here = position % count
        yield int(order[here])
        if window >= 2:
            there = (here - random.randint(window)) % count
            order[[here, there]] = order[[there, here]]


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.integers(1, 50), st.integers(0, 2**31), st.sampled_from([0, 0.3, 0.5, 1]), st.integers(1, 4),
                  st.integers(0, 40))
def test_sampler_equals_its_definition_over_replicas_and_starts(
    count: int, seed: int, window_size: float, replicas: int, start: int
) -> None:
    wanted = list(itertools.islice(one_by_one(count, seed, window_size), (start + 20) * replicas))
    for rank in range(replicas):
        got = take(20, range(count), rank, replicas, seed=seed, window_size=window_size, start=start)
        assert got == wanted[rank::replicas][start:]


def test_sampler_draws_by_the_block_what_it_would_draw_one_by_one() -> None:
    wanted = list(itertools.islice(one_by_one(1000, 3, 0.5), 10_000))
    assert take(10_000, range(1000), seed=3) == wanted
    assert take(10, range(1000), seed=3, start=9_990) == wanted[-10:]


def test_sampler_without_shuffling() -> None:
    assert take(5, range(3), shuffle=False) == [0, 1, 2, 0, 1]
    assert take(3, range(3), 1, 2, shuffle=False, start=1) == [0, 2, 1]


@pytest.mark.parametrize('kwargs, name', [
    (dict(dataset=[]), 'dataset'), (dict(dataset=[1], rank=1), 'rank'), (dict(dataset=[1], window_size=2), 'window'),
    (dict(dataset=[1], start=-1), 'start'), (dict(dataset=[1], num_replicas=0), 'replicas')])
def test_sampler_refuses_nonsense(kwargs: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        misc.InfiniteSampler(**kwargs)


def test_params_and_buffers() -> None:
    norm = torch.nn.BatchNorm1d(2)
    names = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    assert [name for name, _ in misc.named_params_and_buffers(norm)] == names
    assert misc.params_and_buffers(norm)[0] is norm.weight


def test_copy_params_and_buffers() -> None:
    torch.manual_seed(0)
    src, dst = torch.nn.BatchNorm1d(2), torch.nn.Sequential(torch.nn.BatchNorm1d(2))[0]
    torch.nn.init.normal_(src.weight)
    src.running_mean.fill_(7)  # type: ignore[union-attr]
    dst.weight.requires_grad_(False)
    misc.copy_params_and_buffers(src, dst, require_all=True)
    assert all(torch.equal(a, b) for a, b in zip(misc.params_and_buffers(src), misc.params_and_buffers(dst)))
    assert not dst.weight.requires_grad and dst.bias.requires_grad and dst.weight is not src.weight

    before = dst.weight.clone()
    with pytest.raises(ValueError, match='running_mean'):
        misc.copy_params_and_buffers(torch.nn.Linear(2, 2), dst, require_all=True)
    with pytest.raises(ValueError, match=r'weight: got shape \[2, 2\], expected \[2\]'):
        misc.copy_params_and_buffers(torch.nn.Linear(2, 2), dst)
    assert torch.equal(dst.weight, before)


def test_copy_without_require_all_leaves_the_rest() -> None:
    src, dst = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2)
    bias = dst.bias.clone()
    misc.copy_params_and_buffers(src, dst)
    assert torch.equal(dst.weight, src.weight) and torch.equal(dst.bias, bias)


def test_ddp_sync_leaves_plain_modules_alone() -> None:
    module = torch.nn.Linear(1, 1)
    for sync in (True, False):
        with misc.ddp_sync(module, sync):
            module(torch.ones([1, 1]))


class _Summed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.act = torch.nn.Identity()
        self.register_buffer('scale', torch.ones([2]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.act(self.first(x))
        return y + 1, y.double()


def test_module_summary(capsys: pytest.CaptureFixture[str]) -> None:
    module = _Summed()
    outputs = misc.print_module_summary(module, [torch.ones([5, 3])])
    assert [item.dtype for item in outputs] == [torch.float32, torch.float64]
    rows = [line.split() for line in capsys.readouterr().out.strip().splitlines()]
    assert rows[0][:3] == ['_Summed', 'Parameters', 'Buffers']
    assert rows[2] == ['first', '16', '-', '[5,', '4]', 'float32']
    assert rows[3] == ['<top-level>:0', '-', '2', '[5,', '4]', 'float32']
    assert rows[4] == ['<top-level>:1', '-', '-', '[5,', '4]', 'float64']
    assert rows[-1] == ['Total', '16', '2', '-', '-']
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    misc.print_module_summary(module, [torch.ones([5, 3])], skip_redundant=False, max_nesting=1)
    text = capsys.readouterr().out
    assert 'act' in text
    misc.print_module_summary(module, [torch.ones([5, 3])], max_nesting=0)
    assert 'first' not in capsys.readouterr().out
