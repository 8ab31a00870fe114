"""Batches by memory: what work takes, what is free, and what becomes of a folder when it is not enough."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lia_plugin_inversion import make_generator, run, save_pickle, save_pictures

import dnnlib.memory
from lia_plugin import host, memory
from lia_plugin.inverter import Inverter

CPU = torch.device('cpu')
MB = 2**20


def _floats(megabytes: int) -> torch.Tensor:
    return torch.zeros([megabytes * MB // 4])


def test_the_peak_is_what_lives_at_one_time() -> None:
    def work() -> torch.Tensor:
        a = _floats(4)
        b = a + 1  # 8 MB.
        a.add_(1)
        del a
        b = torch.cat([b, b])  # 4 + 8 MB.
        c = b[1:].view(-1)  # No more.
        return c

    assert memory.peak_bytes(work, CPU) == 12 * MB


def test_what_a_backward_pass_keeps_counts() -> None:
    x = torch.ones([MB // 4], requires_grad=True)

    def work() -> None:
        y = x
        for _ in range(3):
            y = y.exp()  # Keeps its result.
        y.sum().backward()

    assert 4 * MB <= memory.peak_bytes(work, CPU) <= 6 * MB


def test_as_many_as_fit_but_one_at_least_and_no_more_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, 'free_bytes', lambda device: 100 * MB)
    for megabytes, most, expected in ((20, 10, 3), (1, 10, 10), (200, 10, 1), (1, None, memory.MOST['cpu'])):
        assert memory.batch_size(CPU, lambda mb=megabytes: _floats(mb), most) == expected


def test_this_process_can_take_what_the_host_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from dnnlib import memory as host_memory

    monkeypatch.setattr(host_memory, 'cgroup_free', lambda: [5 * MB])
    assert memory.free_bytes(CPU) == host.free_memory() == 5 * MB


def test_in_a_checkout_the_very_same_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    host._hidden_memory_module.cache_clear()
    monkeypatch.setattr(host, 'OURS', False)
    try:
        found = host._hidden_memory_module()
        assert found.__name__ == '_lia_memory' and found.__file__ == dnnlib.memory.__file__
        assert memory.free_bytes(CPU) > MB
        host._hidden_memory_module.cache_clear()
        monkeypatch.setattr(host, '__file__', '/nowhere/lia_plugin/host.py')
        with pytest.raises(host.UserError, match='nowhere/dnnlib/memory.py: is missing'):
            memory.free_bytes(CPU)
    finally:
        host._hidden_memory_module.cache_clear()


def test_this_machine_has_some_memory_free() -> None:
    assert memory.free_bytes(CPU) > MB


@pytest.mark.parametrize('error', [
    torch.OutOfMemoryError('CUDA out of memory. Tried …'),
    RuntimeError('[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: not enough memory: you tried …'),
    'real',
])
def test_a_folder_goes_on_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception | str
) -> None:
    """'real' is what this machine's allocator says."""
    network = save_pickle(tmp_path / 'net.pkl', make_generator())
    folder = save_pictures(tmp_path / 'in', 6)
    assert run('--network', network, '--target', str(folder), '--outdir', str(tmp_path / 'all'), '--batch=6') == 0
    sizes: list[int] = []
    start = Inverter.start

    def small(self: Inverter, img: torch.Tensor, *args: Any) -> Any:
        sizes.append(len(img))
        if len(img) > 3:
            if isinstance(error, Exception):
                raise error
            torch.empty([2**60], dtype=torch.uint8)
        return start(self, img, *args)

    monkeypatch.setattr(Inverter, 'start', small)
    capsys.readouterr()
    args = ['--network', network, '--target', str(folder), '--lpips=none', '--batch=5']
    assert run(*args, '--outdir', str(tmp_path / 'parts')) == 0
    assert sizes == [1, 5, 2, 2, 1, 1]
    assert [line for line in capsys.readouterr().err.splitlines() if 'memory' in line] == [
        'not enough memory on cpu for 5 images at once; going on with 2']
    rows = [json.loads((tmp_path / name / 'results.json').read_text())['images'] for name in ('all', 'parts')]
    for one, other in zip(*rows, strict=True):
        assert one['image'] == other['image'] and one['mse'] == pytest.approx(other['mse'], rel=1e-4)


def test_no_memory_for_one_image_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(Inverter, 'start', fail)
    network = save_pickle(tmp_path / 'net.pkl', make_generator())
    folder = save_pictures(tmp_path / 'in', 2)
    assert run('--network', network, '--target', str(folder), '--outdir', str(tmp_path / 'out')) == 2
    assert capsys.readouterr().err.strip() == f'Error: {network}: not enough memory on cpu for one image'
    assert not (tmp_path / 'out').exists()


def test_a_refinement_is_measured_with_its_gradients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[int] = []

    def batch_size(device: torch.device, work: Any, **_more: Any) -> int:
        found.append(memory.peak_bytes(work, device))
        return 2

    monkeypatch.setattr(memory, 'batch_size', batch_size)
    network = save_pickle(tmp_path / 'net.pkl', make_generator())
    folder = save_pictures(tmp_path / 'in', 3)
    for more in ([], ['--refine=2']):
        args = ['--network', network, '--target', str(folder), '--outdir', str(tmp_path / 'out'), '--lpips=none', *more]
        assert run(*args, '--no-check-alignment') == 0
    assert found[1] > 1.5 * found[0]
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['refine']['batch'] == 2


def _fails_in_the_second(rank: int, world_size: int) -> None:
    if rank == 1:
        torch.empty([2**60])  # PyTorch's own error.
    torch.distributed.barrier()  # The first one waits for it.


def test_a_lack_of_memory_in_one_of_several_processes_is_no_defect() -> None:
    with pytest.raises(host.UserError, match='^not enough memory for this on rank 1 .*; take fewer images at once$'):
        host.spawn(_fails_in_the_second, 2, (), device='cpu')
