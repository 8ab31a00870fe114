"""The operators of one code base at work: forward, backward and double backward of each, timed one by one.

`ops.py` starts it once for each side. The only argument is a JSON object, see `Worker`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import worker
from common import PROJECT
from peaks import CountFlops, seconds_of

ORDERS = ('forward', 'backward', 'double backward')
Tensors = Sequence[torch.Tensor]


class Case:
    """A function of some inputs, and the derivatives of it that training takes."""

    def __init__(self, function: Callable[..., torch.Tensor], inputs: Tensors, moved: Sequence[float] = ()) -> None:
        """moved: bytes that have to be read and written in each order, where these are what an operator costs."""
        self.function, self.moved = function, list(moved)
        self.inputs = [x.detach().requires_grad_() for x in inputs]
        y = function(*self.inputs)
        stream = torch.Generator(y.device).manual_seed(3)
        # Gradients have the layout of what they belong to, as in training.
        self.dy = torch.empty_like(y).copy_(_noise(y.shape, stream, y)).requires_grad_()
        self.v = torch.empty_like(inputs[0]).copy_(_noise(inputs[0].shape, stream, y))
        self.y = y
        (self.dx,) = torch.autograd.grad(function(*self.inputs), self.inputs[:1], self.dy, create_graph=True)

    def work(self, order: str) -> Callable[[], Any]:
        """One call. Backward: gradients of all inputs. Double backward: of the first gradient, as in R1."""
        grad = torch.autograd.grad
        if order == 'forward':
            return torch.no_grad()(lambda: self.function(*self.inputs))
        if order == 'backward':
            return lambda: grad(self.y, self.inputs, self.dy.detach(), retain_graph=True)
        return lambda: grad(self.dx, [*self.inputs, self.dy], self.v, retain_graph=True, allow_unused=True)

    def results(self) -> dict[str, list[torch.Tensor]]:
        found = {order: self.work(order)() for order in ORDERS}
        found['forward'] = [found['forward']]
        return {order: [x.detach().double().cpu() for x in tensors if x is not None and x.any()]
                for order, tensors in found.items()}


def _noise(shape: Any, stream: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    return torch.randn(shape, generator=stream, device=stream.device).to(like.dtype)


class Worker:
    """All cases of a code base; those that it lacks are absent.

    Args:
        root: Folder that torch_utils and training come from.
        device, batch, channels, resolution, dtype: Of the tensors.
        last: whether they are in channels_last.
    """

    def __init__(self, root: str, weights: str, first: bool, device: str, batch: int, channels: int, resolution: int,
                 dtype: str, last: dict[str, bool]) -> None:
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.is_host = root != PROJECT
        self.last = last['original' if self.is_host else 'this project']
        self.shape = [batch, channels, resolution, resolution]
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        importlib.import_module('torch_utils.ops.conv2d_gradfix').enabled = True  # type: ignore[attr-defined]
        if self.is_host and self.device.type == 'cuda':
            worker.require_plugins()
        self.stream = torch.Generator().manual_seed(0)
        self.cases = self._cases()
        self.names = [f'{name}, {order}' for name in self.cases for order in ORDERS]

    def _draw(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        x = (torch.randn(shape, generator=self.stream) * scale).to(self.device, self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.last and x.ndim == 4 else x

    def _cases(self) -> dict[str, Case]:
        ops = {name: importlib.import_module(f'torch_utils.ops.{name}')
               for name in ('bias_act', 'upfirdn2d', 'conv2d_gradfix', 'conv2d_resample')}
        n, c, side, _ = self.shape
        x, b = self._draw(*self.shape), self._draw(c)
        w1, w3 = (self._draw(c, c, k, k, scale=1 / (k * c**0.5)) for k in (1, 3))
        f = ops['upfirdn2d'].setup_filter([1, 3, 3, 1]).to(self.device)
        size = x.numel() * x.element_size()
        bias_act, conv = ops['bias_act'].bias_act, ops['conv2d_gradfix'].conv2d
        resample = ops['conv2d_resample'].conv2d_resample
        up, down, same = (lambda x: ops['upfirdn2d'].upsample2d(x, f), lambda x: ops['upfirdn2d'].downsample2d(x, f),
                          lambda x: ops['upfirdn2d'].filter2d(x, f))
        # A gradient reads a gradient and the output, and writes one; a filter's is another filter.
        cases = {
            'bias_act lrelu': Case(lambda x, b: bias_act(x, b, act='lrelu', clamp=256), [x, b],
                                   [2 * size, 3 * size, 3 * size]),
            'upfirdn2d up 2': Case(up, [x], [5 * size] * 3),
            'upfirdn2d down 2': Case(down, [x], [1.25 * size] * 3),
            'upfirdn2d filter': Case(same, [x], [2 * size] * 3),
            'conv 1x1': Case(lambda x, w: conv(x, w), [x, w1]),
            'conv 3x3': Case(lambda x, w: conv(x, w, padding=1), [x, w3]),
            'conv 3x3 up 2': Case(lambda x, w: resample(x, w, f, up=2, padding=1), [x, w3]),
            'conv 3x3 down 2': Case(lambda x, w: resample(x, w, f, down=2, padding=1), [x, w3]),
        }
        for name, factor in (('modulated conv + epilogue', 1), ('modulated conv up 2 + epilogue', 2)):
            cases[name] = self._layer(x, factor)
        if not self.is_host:
            filtered = importlib.import_module('torch_utils.ops.filtered_lrelu').filtered_lrelu
            taps = ops['upfirdn2d'].setup_filter([1, 4, 9, 14, 17, 17, 17, 14, 9, 4, 1, 0]).to(self.device)
            cases['filtered_lrelu up 2 down 2'] = Case(
                lambda x, b: filtered(x, fu=taps, fd=taps, b=b, up=2, down=2, padding=[11, 10, 11, 10], clamp=256),
                [x, b], [2 * size, 3 * size, 3 * size])
        return cases

    def _layer(self, x: torch.Tensor, up: int) -> Case:
        """A layer of the synthesis network as training runs it: noise, bias, leaky ReLU, gain and clamp included."""
        networks = importlib.import_module('training.networks')
        n, c, side, _ = self.shape
        layer = networks.SynthesisLayer(c, c, w_dim=64, resolution=side * up, up=up, conv_clamp=256)
        for parameter in layer.parameters():
            drawn = torch.randn(parameter.shape, generator=self.stream)
            parameter.data.copy_(drawn * (1 if parameter.ndim > 1 else 0.1))
        layer.affine.bias.data.add_(1)
        layer.noise_const.copy_(torch.randn(layer.noise_const.shape, generator=self.stream))
        layer.to(self.device)
        if self.last:
            layer.to(memory_format=torch.channels_last)
        weight, bias = layer.weight, layer.bias

        def function(x: torch.Tensor, w: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            layer.weight, layer.bias = others
            return layer(x, w, noise_mode='const', fused_modconv=False)

        w = torch.randn([n, 64], generator=self.stream).to(self.device)
        del layer._parameters['weight'], layer._parameters['bias']
        return Case(function, [x, w, weight, bias])

    # -----------------------------------------------------------------------------------------------------------------
    # Commands

    def facts(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else ''
        return dict(work=self.names, torch=torch.__version__, gpu=name, threads=torch.get_num_threads())

    def measure(self, name: str) -> float:
        """Seconds of one call."""
        case, order = name.rsplit(', ', 1)
        return seconds_of(self.cases[case].work(order), self.device, least=0.04)

    def moved(self) -> dict[str, float]:
        """Bytes, of those whose cost they are."""
        return {f'{name}, {order}': size for name, case in self.cases.items()
                for order, size in zip(ORDERS, case.moved)}

    def count_flops(self) -> dict[str, int]:
        counts = {}
        for name in self.names:
            case, order = name.rsplit(', ', 1)
            work = self.cases[case].work(order)
            with CountFlops() as counter:
                work()
            counts[name] = counter.flops
        return counts

    def results(self, path: str) -> None:
        """Writes what every case gives, to compare."""
        torch.save({f'{name}, {order}': tensors for name, case in self.cases.items()
                    for order, tensors in case.results().items()}, path)


if __name__ == '__main__':
    given = json.loads(sys.argv[1])
    sys.path[0:0] = worker.folders(given['root'])
    worker.serve(given, Worker)
