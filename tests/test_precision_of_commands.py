# ruff: noqa: F811  Fixtures of other modules are named as arguments.
"""`--precision` of the commands: what reaches the loop, what a run keeps, and what one process computes in."""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from typing import Any

import pytest
import torch
from test_lia_plugin_generate import generate, nets, pixels  # noqa: F401  nets is a fixture.
from test_lia_plugin_train import data, loop, run  # noqa: F401  Fixtures.
from test_training_loop import assert_equal, faces, gan, stop_after, weights  # noqa: F401  faces is a fixture.

from lia_plugin import host, process_options
from torch_utils import custom_ops, precision
from training import checkpoint, iteration, reports, training_loop


@pytest.fixture
def has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_ops, 'cpu_has', lambda name: name == 'amx_bf16')


@pytest.mark.parametrize(('said', 'reached'), [
    ([], None), (['--precision=fp32'], 'fp32'), (['--precision=bf16'], 'bf16'), (['--precision=auto'], 'bf16')])
def test_both_stages_compute_in_what_was_said(said, reached, run, loop, data, has_bf16, capsys) -> None:
    assert run(f'--data={data}', '--batch=4', *said) == 0
    assert [call['precision'] for call in loop.calls] == [reached, reached]
    assert ('--precision=auto: bfloat16 layers' in capsys.readouterr().out) == (said == ['--precision=auto'])


@pytest.mark.parametrize(('said', 'line'), [
    (['--precision=fp16'], '--precision=fp16: on a CPU there are bf16 and fp32; --precision=auto takes'),
    (['--precision=bf16'], '--precision=bf16: this CPU has no instructions for bfloat16'),
    (['--fp32', '--precision=bf16'], '--fp32: .* contradicts --precision=bf16'),
])
def test_what_cannot_be_is_a_line(said, line, run, loop, data, monkeypatch, capsys) -> None:
    monkeypatch.setattr(custom_ops, 'cpu_has', lambda name: False)
    assert run(f'--data={data}', '--batch=4', *said) == 2
    assert not loop.calls
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and re.search(line, error)


def test_a_run_goes_on_in_what_it_began_with(run, loop, data, has_bf16, monkeypatch, capsys) -> None:
    loop.endings = ['Ctrl-C']
    asked = [f'--data={data}', '--batch=4', '--precision=auto', '--stage=gan']
    run(*asked)
    monkeypatch.setattr(custom_ops, 'cpu_has', lambda name: name == 'avx512_bf16')
    loop.endings = ['Ctrl-C']
    run('--resume=latest')
    assert [call['precision'] for call in loop.calls] == ['bf16', 'bf16']
    assert 'no matrix tiles (amx_bf16), so that fp32 is likely faster, as it began' in capsys.readouterr().out
    monkeypatch.setattr(custom_ops, 'cpu_has', lambda name: False)  # Another machine.
    assert run(*asked) == 2
    assert 'this CPU has no instructions for bfloat16' in capsys.readouterr().err
    assert run('--resume=latest', '--precision=fp32') == 2
    assert '--precision: fp32 now, auto in' in capsys.readouterr().err
    assert len(loop.calls) == 2


def test_the_loop_computes_in_it_and_looks_as_others_do(faces, tmp_path, monkeypatch) -> None:
    seen: dict[str, set[Any]] = {}

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*args: Any) -> Any:
            seen.setdefault(name, set()).add(precision.chosen())
            return real(*args)
        monkeypatch.setattr(owner, name, watched)

    watch(iteration, 'iterate')
    watch(training_loop, '_maintain')
    watch(reports.Reporter, 'images')
    unbroken, broken = tmp_path / 'unbroken', tmp_path / 'broken'
    gan(unbroken, faces, precision='bf16')
    assert seen == {'iterate': {'bf16'}, '_maintain': {'bf16'}, 'images': {None}}
    assert precision.chosen() is None
    gan(broken, faces, precision='bf16', abort_fn=stop_after(5))
    gan(broken, faces, precision='bf16', resume_state=str(broken / checkpoint.FILE))
    assert_equal(weights(unbroken), weights(broken))
    assert all(torch.as_tensor(value).dtype != torch.bfloat16 for value in weights(broken).values())


def test_generate_in_bfloat16_differs_by_little_and_leaves_nothing_chosen(nets, tmp_path, has_bf16, capsys) -> None:
    network = nets.path['deep']
    generate(network, tmp_path / 'full', '--seeds=0-3')
    generate(network, tmp_path / 'low', '--seeds=0-3', '--precision=auto')
    said = '--precision=auto: bfloat16 layers from 8x8 pixels on, the rest float32\n'
    assert capsys.readouterr().err.count(said) == 1
    assert precision.chosen() is None
    differences = [float((pixels(tmp_path / 'full' / f'seed000{i}.png') - pixels(tmp_path / 'low' / f'seed000{i}.png')
                          ).abs().float().mean()) for i in range(4)]
    assert 0 < max(differences) < 3
    codes = [json.loads((tmp_path / folder / 'generate.json').read_text()) for folder in ('full', 'low')]
    assert [row['log_prob'] for row in codes[0]['images']] == [row['log_prob'] for row in codes[1]['images']]


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another allocator')
def test_freed_memory_is_kept_by_this_process_and_the_next() -> None:
    """Of a large block that is freed and wanted again, pages are touched once instead of each time."""
    code = (
        'import ctypes, resource, subprocess, sys\n'
        'from lia_plugin import process_options\n'
        'if "keep" in sys.argv: process_options.keep_memory()\n'
        'libc = ctypes.CDLL(None)\n'
        'libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n'
        'def touch(bytes):\n'
        '    p = libc.malloc(ctypes.c_size_t(bytes))\n'
        '    ctypes.memset(p, 1, bytes)\n'
        '    libc.free(p)\n'
        '    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
        'before = touch(2**26)\n'
        'after = [touch(2**26) for _ in range(5)][-1]\n'
        'print(after - before, flush=True)\n'
        'if "keep" in sys.argv: subprocess.run([sys.executable, sys.argv[0]], check=True)\n'
    )

    def faults(*words: str) -> list[int]:
        with tempfile.TemporaryDirectory() as folder:
            script = os.path.join(folder, 'script.py')
            with open(script, 'w', encoding='utf-8') as f:
                f.write(code)
            env = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
            done = subprocess.run([sys.executable, script, *words], env=env, check=True, capture_output=True, text=True)
            return [int(line) for line in done.stdout.split()]

    (usual,), kept = faults(), faults('keep')
    assert len(kept) == 2 and all(count < usual / 8 for count in kept), (usual, kept)


def in_large_pages() -> bool:
    """Whether the system gives large pages to who asks."""
    with contextlib.suppress(OSError), open('/sys/kernel/mm/transparent_hugepage/enabled', encoding='ascii') as file:
        return platform.libc_ver()[0] == 'glibc' and '[never]' not in file.read()
    return False


@pytest.mark.skipif(not in_large_pages(), reason='no large pages')
def test_kept_memory_lies_in_large_pages_of_this_process_and_the_next() -> None:
    code = (
        'import ctypes, subprocess, sys\n'
        'from lia_plugin import process_options\n'
        'process_options.keep_memory()\n'
        'block = ctypes.create_string_buffer(2**26)\n'
        'block[::4096] = b"1" * 2**14\n'
        'lines = open("/proc/self/smaps_rollup").read().splitlines()\n'
        'print([line.split()[1] for line in lines if line.startswith("AnonHugePages")][0], flush=True)\n'
        'if sys.argv[1] == "2": subprocess.run([sys.executable, "-c", *sys.orig_argv[2:3], "1"], check=True)\n'
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith(('MALLOC_', 'GLIBC_TUNABLES'))}
    env['PYTHONPATH'] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, '-c', code, '2'], env=env, check=True, capture_output=True, text=True)
    found = [int(line) for line in done.stdout.split()]
    assert len(found) == 2 and all(kilobytes >= 2**15 for kilobytes in found), found


def test_keep_memory_needs_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    with pytest.raises(host.UserError, match="--keep-memory: is a setting of glibc's allocator"):
        process_options.keep_memory()


def test_nvidias_checkouts_have_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, 'OURS', False)
    with pytest.raises(host.UserError, match='--precision: .* has no such choice'):
        host.resolve_precision('fp32', torch.device('cpu'))
    with host.using_precision(None, torch.device('cpu')):
        pass
