"""Two gloo processes do what one would; failures stop everybody with one error."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tqdm

from dnnlib.util import UserError
from torch_utils import distributed, misc, training_stats


def make_model(seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten())
    return model.to(memory_format=torch.channels_last).eval()   # type: ignore[call-overload]


def data() -> torch.Tensor:
    return torch.randn([4, 2, 5, 5], generator=torch.Generator().manual_seed(7))


def gradients(model: torch.nn.Module) -> list[torch.Tensor | None]:
    return [param.grad for param in model.parameters()]


def check_everything(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Runs in each process; what it returns in the first is looked at in the test."""
    assert (distributed.rank(), distributed.world_size()) == (rank, world_size)
    assert distributed.is_distributed() == (world_size > 1)
    model = make_model(seed=rank)
    model[1].weight.requires_grad_(False)
    distributed.broadcast_module(model)
    if world_size > 1:
        misc.check_ddp_consistency(model)
    share = data().chunk(world_size)[rank]
    model(share).square().mean().backward()
    distributed.all_reduce_gradients(model.parameters(), world_size)

    collector = training_stats.Collector()
    for name in ('a', 'b') if rank == 0 else ('b', 'a'):    # Not in the same order.
        training_stats.report(name, [rank + 1.0, 10.0] if name == 'a' else [])
    collector.update()
    Path(folder, str(rank)).touch()
    if world_size > 1 and rank == 1:
        with torch.no_grad():
            model[0].bias[0] += 1
    message = ''
    if world_size > 1:
        try:
            misc.check_ddp_consistency(model, ignore_regex=r'.*\.running_.*')
        except AssertionError as err:
            message = str(err)
        assert message == ('differs between processes: Sequential.0.bias' if rank == 1 else '')
        misc.check_ddp_consistency(model, ignore_regex=r'Sequential\.0\.bias')
    return dict(grads=gradients(model), stats=collector.as_dict(), weight=model[0].weight.detach())


def test_two_processes_are_one(tmp_path: Path) -> None:
    one = distributed.spawn(check_everything, 1, (str(tmp_path),), device='cpu')
    two = distributed.spawn(check_everything, 2, (str(tmp_path),), device='cpu')
    assert sorted(os.listdir(tmp_path)) == ['0', '1']
    assert torch.equal(one['weight'], two['weight'])
    assert [grad is None for grad in one['grads']] == [False, False, True, False]
    for a, b in zip(one['grads'], two['grads']):
        assert a is b is None or torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert two['grads'][0].stride() == one['grads'][0].stride()
    assert two['stats']['a'] == dict(num=4, mean=5.75, std=pytest.approx(np.std([1, 10, 2, 10])))
    assert two['stats']['b']['num'] == 0 and not distributed.is_distributed()


def fail(rank: int, world_size: int) -> None:
    if rank == 1:
        raise UserError('picture.png: is broken')
    torch.distributed.barrier()     # Would wait for ever.


def test_one_failure_stops_all() -> None:
    with pytest.raises(UserError) as caught:
        distributed.spawn(fail, 2, device='cpu')
    assert str(caught.value) == 'picture.png: is broken'
    assert torch.multiprocessing.active_children() == []


def interrupt_all(rank: int, world_size: int, folder: str) -> None:
    """Ctrl-C reaches all processes of a terminal; each finishes what it has to."""
    try:
        Path(folder, f'ready{rank}').touch()
        while len(list(Path(folder).glob('ready*'))) < world_size:
            time.sleep(0.05)
        if rank == 0:
            os.kill(os.getppid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    except KeyboardInterrupt:
        time.sleep(0.5)
        Path(folder, f'saved{rank}').touch()


def stop_with_a_bar(rank: int, _world_size: int) -> None:
    with tqdm.tqdm(total=1, disable=False, file=io.StringIO()):
        if rank == 0:
            raise UserError('no')
        time.sleep(60)


def test_stopped_progress_bars_leave_nothing() -> None:
    code = ('import test_torch_utils_distributed as t\n'
            'try: t.distributed.spawn(t.stop_with_a_bar, 2, (), device=None)\n'
            'except t.UserError as error: print(error)\n')
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': path})
    assert done.stdout == 'no\n' and 'leaked' not in done.stderr, done.stderr


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_ctrl_c_lets_all_processes_finish(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distributed.spawn(interrupt_all, 2, (str(tmp_path),))
    assert len(list(tmp_path.glob('saved*'))) == 2


def end_the_parent(
        rank: int, world_size: int, folder: str, signum: int, handled: bool, comes: int | None = None) -> None:
    """What stops the command that was started, as `kill`, `timeout` and containers do, is told to all processes."""
    def save(*_: Any) -> None:
        Path(folder, f'saved{rank}').touch()

    if handled:
        signal.signal(signum if comes is None else comes, save)
    Path(folder, f'ready{rank}').touch()
    while len(list(Path(folder).glob('ready*'))) < world_size:
        time.sleep(0.05)
    if rank == 0:
        os.kill(os.getppid(), signum)
    for _ in range(4000):    # More than enough, on a starved machine too.
        if Path(folder, f'saved{rank}').exists():
            return
        time.sleep(0.05)


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_an_interrupt_of_the_command_alone_reaches_all_processes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `kill -INT` or another program sends it: a terminal's Ctrl-C would have reached them."""
    monkeypatch.setattr(distributed, 'ASK_AGAIN', 0.2)
    with pytest.raises(KeyboardInterrupt):
        distributed.spawn(end_the_parent, 2, (str(tmp_path), signal.SIGINT, True, signal.SIGTERM))
    assert len(list(tmp_path.glob('saved*'))) == 2


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize(('name', 'handled'), [('SIGTERM', True), ('SIGUSR1', True), ('SIGTERM', False)])
def test_a_signal_to_the_command_stops_all_processes(tmp_path: Path, name: str, handled: bool) -> None:
    signum = getattr(signal, name)
    def ignore(*_: Any) -> None:
        """Were the signal not passed on, this process would end, and all tests with it."""

    before = signal.signal(signum, ignore)
    try:
        with pytest.raises(KeyboardInterrupt):
            distributed.spawn(end_the_parent, 2, (str(tmp_path), signum, handled))
        assert signal.getsignal(signum) is ignore
    finally:
        signal.signal(signum, before)
    assert len(list(tmp_path.glob('saved*'))) == 2 * handled
    assert torch.multiprocessing.active_children() == []


def test_one_process_is_this_one() -> None:
    assert distributed.spawn(lambda rank, world_size, x: (rank, world_size, x, os.getpid()), 1, (5,)) == (
        0, 1, 5, os.getpid())
    with pytest.raises(UserError, match='x'):
        distributed.spawn(fail_at_once, 1)
    distributed.init(0, 1, 'cpu', '/nowhere')
    assert (distributed.rank(), distributed.world_size(), distributed.is_distributed()) == (0, 1, False)


def fail_at_once(rank: int, world_size: int) -> None:
    raise UserError('x')


def test_gradients_become_finite() -> None:
    param = torch.nn.Parameter(torch.zeros([4]))
    param.grad = torch.tensor([float('nan'), float('inf'), -float('inf'), 2.0])
    distributed.all_reduce_gradients([param, torch.nn.Parameter(torch.zeros([1]))], 1)
    assert param.grad.tolist() == [0, 1e5, -1e5, 2]


def test_print0(capsys: pytest.CaptureFixture[str]) -> None:
    distributed.print0('tick', end='!')
    assert capsys.readouterr().out == 'tick!'


def test_gradients_in_buckets_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU does it, for one process."""
    monkeypatch.setattr(distributed, 'BUCKET', 10)
    odd = torch.tensor([float('nan'), float('inf'), -float('inf'), 2.0])
    weights = torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)
    grads = [odd.clone(), weights.clone(), torch.ones(3, dtype=torch.float64), torch.randn([])]
    wanted = [torch.nan_to_num(grad, nan=0.0, posinf=1e5, neginf=-1e5) for grad in grads]
    distributed._average_in_buckets(grads, 1)
    assert all(torch.equal(got, want) for got, want in zip(grads, wanted, strict=True))
    assert grads[1].stride() == weights.stride()
