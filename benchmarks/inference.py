"""Images a second at inference: drawing, encoding, reconstructing, and a folder from disk to disk.

    python benchmarks/inference.py --size=B,C --host=stylegan2-ada-pytorch
    python benchmarks/inference.py --device=cuda --size=G,E --batches=1,32 --folder=2000

Prints Markdown tables on stdout. Networks have random weights, stirred as after training; all sides have the same ones,
one process, and take turns. The original has no encoder: it draws, and its projector stands for its inversion.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import common
from common import number

Work = Callable[[], Any]
DIFFERS = 1e-3  # Of the largest value: then sides do not draw the same, and nothing is timed.
PROJECTOR_STEPS = 1000  # projector.py's default.


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def build(size: str, device: str) -> Any:
    """This project's generator with its encoder."""
    import torch

    from lia_plugin.networks import Generator

    resolution, channel_base, channel_max, _batch, latent = common.SIZES[size]
    widths = dict(channel_base=channel_base, channel_max=channel_max)
    torch.manual_seed(0)
    G = Generator(latent, 0, latent, resolution, 3, synthesis_kwargs=widths, encoder_kwargs=widths)
    with torch.no_grad():
        for name, value in G.named_buffers():
            if name.endswith(('.bias', '.noise_strength')):
                value.add_(torch.randn(value.shape) * 0.1)
    return G.eval().requires_grad_(False).to(device)


def build_original(host: str, size: str, G: Any) -> Any:
    """The original's synthesis network with the same weights."""
    from namespaces import CodeBase

    resolution, channel_base, channel_max, _batch, latent = common.SIZES[size]
    theirs = CodeBase([host])
    with theirs.active():
        from training.networks import SynthesisNetwork

        net = SynthesisNetwork(w_dim=latent, img_resolution=resolution, img_channels=3, channel_base=channel_base,
                               channel_max=channel_max)  # fmt: skip
    missing = net.load_state_dict(G.synthesis.state_dict(), strict=False)
    if missing.missing_keys:
        raise click.ClickException(f'--host: its synthesis network has other weights: {missing.missing_keys[:3]}')
    return net.eval().requires_grad_(False).to(next(G.buffers()).device), theirs


def sessions(G: Any, threads: int) -> dict[str, Any]:
    """ONNX Runtime's encoder and synthesis; {} where it, or the exporter, is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return {}
    from lia_plugin import onnx_export, onnx_parts

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    found = {}
    for part in onnx_parts.parts(G)[0]:
        if part.name in ('encoder', 'synthesis'):
            data = onnx_export._convert(part, 'network', {})
            found[part.name] = onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def works(G: Any, original: Any, onnx: dict[str, Any], batch: int) -> Iterator[tuple[str, dict[str, Work]]]:
    """What to time: the work's name, and how each side does it."""
    import torch

    from lia_plugin.engine import Engine

    device = next(G.buffers()).device
    fast = Engine(G)
    img = torch.rand([batch, 3, G.img_resolution, G.img_resolution], device=device) * 2 - 1
    ws = G.mapping.y_to_ws(G.encode(img))
    const: dict[str, Any] = dict(noise_mode='const')
    arrays = dict(ws=ws.cpu().numpy(), img=img.cpu().numpy())
    draw: dict[str, Work] = {
        'eager': lambda: G.synthesis(ws, **const), 'engine': lambda: fast.synthesis(ws, **const)}  # fmt: skip
    encode: dict[str, Work] = {'eager': lambda: G.encode(img), 'engine': lambda: fast.encode(img)}
    if onnx:
        draw['onnx'] = lambda: torch.from_numpy(onnx['synthesis'].run(None, {'ws': arrays['ws']})[0])
        encode['onnx'] = lambda: torch.from_numpy(onnx['encoder'].run(None, {'img': arrays['img']})[0])
    if original is not None:
        net, theirs = original

        def drawn() -> Any:
            with theirs.active():
                return net(ws, **const)

        draw['original'] = drawn
    yield f'draw {batch}', draw
    yield f'encode {batch}', encode
    yield f'reconstruct {batch}', {
        'eager': lambda: G.decode(G.encode(img), **const),
        'engine': lambda: fast.decode(fast.encode(img), **const),
    }


def now(device: str) -> float:
    import torch

    if device.startswith('cuda'):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turns(sides: dict[str, Work], device: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each side, round by round. ClickException if their results differ."""
    expected = None
    for name, work in sides.items():
        for _ in range(3):  # The second call is recorded on CUDA.
            result = work().cpu()
        expected = result if expected is None else expected
        off = float((result - expected).abs().max() / expected.abs().max())
        if off > DIFFERS:
            raise click.ClickException(f'{name}: differs by {off:.1e} of the largest value')
    times: dict[str, list[float]] = {name: [] for name in sides}
    began = time.monotonic()
    while len(times['eager']) < rounds and (time.monotonic() - began < seconds or not times['eager']):
        order = list(sides) if len(times['eager']) % 2 == 0 else list(sides)[::-1]
        for name in order:
            start = now(device)
            sides[name]()
            times[name].append(now(device) - start)
    return times


def table(G: Any, original: Any, onnx: dict[str, Any], batches: list[int], device: str, rounds: int,
          seconds: float) -> list[str]:
    import torch

    rows = []
    with torch.no_grad():
        for batch in batches:
            for name, sides in works(G, original, onnx, batch):
                times = in_turns(sides, device, rounds, seconds)
                ms = {side: statistics.median(values) * 1e3 for side, values in times.items()}
                cells = [number(ms[side]) if side in ms else '' for side in ('eager', 'engine', 'onnx', 'original')]
                for side in ('eager', 'onnx', 'original'):
                    cells.append(common.ratio_cells(times['engine'], times[side])[0] if side in ms else '')
                rows.append([name, *cells, number(batch / ms['engine'] * 1e3)])
                print(f'{name}: {ms}', file=sys.stderr)
    head = ['ms a batch', 'eager', 'engine', 'ONNX Runtime', 'original', 'engine over eager', 'over ONNX Runtime',
            'over the original', 'images/s']  # fmt: skip
    return common.markdown(head, rows)


def projection(G: Any, original: Any, device: str, steps: int = 5) -> list[str]:
    """How long the original's projector would draw, forward and backward, for one image; without VGG16."""
    import torch

    net, theirs = original
    target = torch.zeros([1, 3, G.img_resolution, G.img_resolution], device=device)
    w = torch.zeros([1, 1, G.w_dim], device=device, requires_grad=True)
    times = []
    with theirs.active():
        for _ in range(steps + 1):
            start = now(device)
            (net(w.repeat(1, G.num_ws, 1), noise_mode='const') - target).square().sum().backward()
            times.append(now(device) - start)
    total = statistics.median(times[1:]) * PROJECTOR_STEPS
    return ['', f"{PROJECTOR_STEPS} steps of the original's projector draw, forward and backward, for {number(total)} "
            's an image, without VGG16.']  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# A folder


class Clock:
    """Adds up the seconds that calls take, in whatever threads."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def folder(G: Any, device: str, count: int) -> list[str]:
    """invert.py of a folder, and how long its stages take: those of threads overlap with the network's."""
    import torch

    from lia_plugin import host, images
    from lia_plugin.invert_options import InvertOptions
    from lia_plugin.invert_run import Job
    from lia_plugin.targets import collect

    with tempfile.TemporaryDirectory() as place:
        network, source = os.path.join(place, 'net.pkl'), os.path.join(place, 'in')
        os.mkdir(source)
        host.save_network_pkl(network, dict(G=G, D=None, G_ema=G, augment_pipe=None, training_set_kwargs=None))
        with torch.no_grad():
            for i in range(count):  # Smooth, as photographs are, with some noise.
                small = torch.rand([1, 3, 8, 8]) * 2 - 1
                img = torch.nn.functional.interpolate(small, size=[G.img_resolution] * 2, mode='bicubic')[0]
                images.save_png(img + torch.randn(img.shape) * 0.02, os.path.join(source, f'{i:05}.png'))
        asked = InvertOptions(
            network=network, targets=(source,), outdir=os.path.join(place, 'out'), lpips_source='none',
            check_alignment=False, device=device,
        )  # fmt: skip
        job = Job(asked, collect(asked.targets), torch.device(device))
        clocks = {name: Clock() for name in ('decode', 'network', 'write')}
        do = job.writer.background.do
        job.cropper.read = clocks['decode'].around(job.cropper.read)  # type: ignore[method-assign]
        job.inverter.start = clocks['network'].around(job.inverter.start)  # type: ignore[method-assign]
        job.writer.background.do = (  # type: ignore[method-assign]
            lambda call, *args: do(clocks['write'].around(call), *args))
        start = time.perf_counter()
        with contextlib.redirect_stderr(open(os.devnull, 'w')):
            job.run()
        total = time.perf_counter() - start
    ms = {name: clock.seconds / count * 1e3 for name, clock in clocks.items()}
    serial = sum(ms.values())
    cells = [str(count), str(job.batch), number(count / total), number(1e3 / serial), *map(number, ms.values()),
             f'{clocks["network"].seconds / total:.0%}']  # fmt: skip
    return common.markdown(['images', 'batch', 'images/s', 'one stage after the other', 'decode, ms an image',
                            'network with figures', 'write, three files', "network's share of the time"],
                           [cells])  # fmt: skip


@click.command(context_settings={'show_default': True})
@common.host_option()
@common.device_option()
@click.option('--size', default='B', metavar='NAMES', help=f'With commas, of {", ".join(common.SIZES)}')
@click.option('--batches', default='1,8', metavar='NUMBERS', help='Images at once')
@click.option('--folder', 'count', type=click.IntRange(min=0), default=128, help='Images of the folder; 0 = none')
@click.option('--rounds', type=click.IntRange(min=1), default=15)
@click.option('--seconds', type=float, default=8.0, help='Of one row, about')
@click.option('--onnx/--no-onnx', default=True, help='ONNX Runtime, where it is installed')
def main(host: str | None, device: str, size: str, batches: str, count: int, rounds: int, seconds: float,
         onnx: bool) -> None:
    """Measure inference."""
    common.settle()
    device = common.pick_device(device)
    import torch

    sys.path.insert(0, common.PROJECT)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in size.split(','):
        G = build(name, device)
        original = build_original(host, name, G) if host else None
        found = sessions(G.cpu(), torch.get_num_threads()) if onnx and device == 'cpu' else {}
        resolution, base, most = common.SIZES[name][:3]
        widths = f'channel_base {base}, channel_max {most}'
        print(f'\n### {name}: {resolution}x{resolution}, {widths}\n\n{common.here(device)}\n')
        print('\n'.join(table(G, original, found, [int(n) for n in batches.split(',')], device, rounds, seconds)))
        if original is not None:
            print('\n'.join(projection(G, original, device)))
        if count:
            print('\nA folder, disk to disk\n\n' + '\n'.join(folder(G, device, count)), flush=True)


if __name__ == '__main__':
    main()
