"""Compiled kernels: built once, remembered, refused with a reason. Where there is no compiler, only the refusals."""

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from dnnlib.util import UserError
from torch_utils import custom_ops

SOURCE = """
#include <cstdint>
#include <omp.h>
extern "C" int64_t team() {
    int64_t count = 0;
    #pragma omp parallel reduction(+ : count)
    count += 1;
    return count;
}
"""
needs_compiler = pytest.mark.skipif(
    custom_ops._find('c++') is None or custom_ops._find('ninja') is None, reason='no C++ compiler or no ninja')


@pytest.fixture
def write(tmp_path, monkeypatch) -> Callable[..., None]:
    """Writes a source; an empty cache, nothing loaded and nothing said yet."""
    sources = tmp_path / 'the sources'
    sources.mkdir()
    monkeypatch.setattr(custom_ops, 'SOURCE_DIR', str(sources))
    monkeypatch.setattr(custom_ops, '_loaded', {})
    monkeypatch.setattr(custom_ops, '_said', set())
    monkeypatch.setenv('LIA_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setenv('LIA_KERNELS', 'auto')
    return lambda text=SOURCE, name='tiny.cpp': (sources / name).write_text(text)


def forget() -> None:
    """What a new process would know."""
    custom_ops._loaded.clear()
    custom_ops._said.clear()


def built(tmp_path, ending: str = '.so') -> list[str]:
    return sorted(str(path) for path in (tmp_path / 'cache' / 'kernels').glob(f'*{ending}'))


@needs_compiler
def test_builds_once_says_so_once_and_shares_torchs_threads(write, tmp_path, capfd) -> None:
    write()
    library = custom_ops.load('tiny', ['tiny.cpp'])
    assert library is not None
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert library.team() == threads
    finally:
        torch.set_num_threads(before)
    forget()
    assert custom_ops.load('tiny', ['tiny.cpp']) is not None
    assert capfd.readouterr().err.count('Building CPU kernels (once') == 1
    assert len(built(tmp_path)) == 1


@needs_compiler
def test_building_several_libraries_is_one_line(write, capfd) -> None:
    for name in ('tiny', 'other'):
        write(name=f'{name}.cpp')
        assert custom_ops.load(name, [f'{name}.cpp']) is not None
    assert capfd.readouterr().err.count('\n') == 1


@needs_compiler
def test_changed_sources_and_headers_are_built_anew(write, tmp_path) -> None:
    write('#include "answer.h"\nextern "C" int answer() { return ANSWER; }')
    for expected in (1, 2):
        write(f'#define ANSWER {expected}', 'answer.h')
        forget()
        assert custom_ops.load('tiny', ['tiny.cpp']).answer() == expected
    assert len(built(tmp_path)) == 2


@needs_compiler
@pytest.mark.parametrize(('text', 'reason'), [('no C++ at all', 'error'), (
    'extern "C" void elsewhere(); extern "C" void here() { elsewhere(); }', 'does not load')])
def test_a_failure_is_remembered_on_disk_and_said_once(write, tmp_path, capfd, monkeypatch, text, reason) -> None:
    write(text)
    for _ in range(2):
        assert custom_ops.load('tiny', ['tiny.cpp']) is None
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and 'Building' in lines[0] and reason in lines[1]
    forget()
    monkeypatch.setattr(custom_ops, '_build', lambda *args: pytest.fail('built again'))
    assert custom_ops.load('tiny', ['tiny.cpp']) is None
    assert capfd.readouterr().err == lines[1] + '\n'
    monkeypatch.setenv('LIA_KERNELS', 'required')
    with pytest.raises(UserError, match=f'LIA_KERNELS=required.*{reason}.*to try again'):
        custom_ops.load('tiny', ['tiny.cpp'])


@needs_compiler
@pytest.mark.parametrize('content', [None, b'', b'\x7fELF and then nothing', 'short'])
def test_a_broken_cache_file_is_built_again(write, tmp_path, content) -> None:
    write()
    custom_ops.load('tiny', ['tiny.cpp'])
    (path,) = built(tmp_path)
    whole = open(path, 'rb').read()
    os.remove(path)  # The file that is mapped into this process stays as it is.
    if content is not None:
        with open(path, 'wb') as f:
            f.write(whole[:-1000] if content == 'short' else content)
    forget()
    assert custom_ops.load('tiny', ['tiny.cpp']) is not None
    assert os.path.getsize(path) == len(whole)


@needs_compiler
def test_a_folder_that_others_have_filled_need_not_be_written_to(write, monkeypatch) -> None:
    write()
    assert custom_ops.load('tiny', ['tiny.cpp']) is not None
    forget()
    monkeypatch.setattr(custom_ops, '_lock', lambda path: pytest.fail('a file for a lock was wanted'))
    assert custom_ops.load('tiny', ['tiny.cpp']).team() > 0


@needs_compiler
@pytest.mark.parametrize(('told', 'passes'), [
    ('c++: fatal error: Killed signal terminated program cc1plus', True),
    ('fatal error: error writing to /tmp/x.s: No space left on device', True),
    ('cc1plus: out of memory allocating 65536 bytes', True), ('tiny.cpp:1: error: no such thing', False)])
def test_only_a_failure_that_would_come_again_is_remembered(write, tmp_path, capfd, monkeypatch, told, passes) -> None:
    write()
    compiler = tmp_path / 'my-c++'
    compiler.write_text(f'#!/bin/sh\n[ -e {tmp_path}/well ] && exec {custom_ops._find("c++")} "$@"\n'
                        f'echo "{told}" >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    assert custom_ops.load('tiny', ['tiny.cpp']) is None
    assert told in capfd.readouterr().err
    monkeypatch.setattr(custom_ops, '_known', lambda compiler, flags: [])  # As the failing one understood none.
    (tmp_path / 'well').touch()
    forget()
    assert (custom_ops.load('tiny', ['tiny.cpp']) is not None) is passes


def test_a_broken_record_is_as_none(write, tmp_path) -> None:
    for text in ('', '{', '[]', '\0'):
        (tmp_path / 'x.json').write_text(text)
        assert custom_ops._read_record(str(tmp_path / 'x')) == {}


@needs_compiler
def test_two_processes_at_once_build_once(write, tmp_path) -> None:
    write()
    code = ('import sys; from torch_utils import custom_ops; custom_ops.SOURCE_DIR = sys.argv[1]\n'
            'assert custom_ops.load("tiny", ["tiny.cpp"]).team() > 0')
    both = [subprocess.Popen([sys.executable, '-c', code, custom_ops.SOURCE_DIR], stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert ''.join(said).count('Building') == 1
    assert len(built(tmp_path)) == 1


@pytest.mark.parametrize(('missing', 'reason'), [('c++', 'no C.. compiler'), ('ninja', 'no ninja')])
def test_what_is_missing_is_said_once_and_not_remembered(write, capfd, monkeypatch, missing, reason) -> None:
    write()
    find = custom_ops._find
    monkeypatch.setattr(custom_ops, '_find', lambda *names: None if missing in names else find(*names) or '/bin/false')
    write(name='other.cpp')
    for name in ('tiny', 'tiny', 'other'):
        assert custom_ops.load(name, [f'{name}.cpp']) is None
    lines = [line for line in capfd.readouterr().err.splitlines() if 'Building' not in line]
    assert len(lines) == 1 and reason.replace('..', '++') in lines[0] and "PyTorch's slower operators" in lines[0]
    monkeypatch.setenv('LIA_KERNELS', 'required')
    with pytest.raises(UserError, match=f'LIA_KERNELS=required.*{reason}'):
        custom_ops.load('tiny', ['tiny.cpp'])


@needs_compiler
def test_a_folder_that_cannot_be_written_is_a_reason(write, tmp_path, capfd, monkeypatch) -> None:
    write()
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('LIA_CACHE_DIR', str(tmp_path / 'file'))
    assert custom_ops.load('tiny', ['tiny.cpp']) is None
    assert re.search(r'No CPU kernels.*file/kernels: Not a directory; LIA_CACHE_DIR', capfd.readouterr().err)


def test_off_is_off_and_unknown_modes_are_refused(write, capfd, monkeypatch) -> None:
    write()
    monkeypatch.setenv('LIA_KERNELS', 'off')
    assert custom_ops.load('tiny', ['tiny.cpp']) is None
    assert capfd.readouterr().err == ''
    monkeypatch.setenv('LIA_KERNELS', 'on')
    with pytest.raises(UserError, match="LIA_KERNELS: got 'on', expected one of auto, off, required"):
        custom_ops.load('tiny', ['tiny.cpp'])


def test_instructions_to_do_without_have_a_minus(monkeypatch) -> None:
    monkeypatch.setattr(custom_ops, '_own_cpu_features', lambda: {'avx2', 'avx512f', 'amx_tile'})
    left = custom_ops._cpu_features_but.__wrapped__  # Not what others have asked for.
    assert left('') == {'avx2', 'avx512f', 'amx_tile'}
    assert left('-avx512, -amx') == {'avx2'}
    for wrong in ('avx512', '-amx,avx512', '-'):
        with pytest.raises(UserError, match='LIA_CPU_FEATURES: got .*such as -amx'):
            left(wrong)


def test_flags_follow_the_cpus_features(monkeypatch) -> None:
    levels = [set(), set(custom_ops.LEVEL_3), set(custom_ops.LEVEL_3) | set(custom_ops.LEVEL_4)]
    monkeypatch.setattr('platform.machine', lambda: 'x86_64')
    flags = []
    for features in levels + [levels[2] | {'avx512_bf16', 'unheard_of'}]:
        monkeypatch.setattr(custom_ops, '_cpu_features', lambda features=features: features)
        flags.append(custom_ops._cpu_flags())
    assert flags[0] == [] and '-mfma' in flags[1] and '-mavx512f' not in flags[1]
    assert '-mavx512f' in flags[2] and flags[3] == flags[2] + ['-mavx512bf16']
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    assert custom_ops._cpu_flags() == []




# ---------------------------------------------------------------------------------------------------------------------
# nvcc, of which a script stands here


@pytest.fixture
def nvcc(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Gives the recipe's flags for cards and for what nvcc knows."""
    home = tmp_path / 'cuda'
    (home / 'bin').mkdir(parents=True)
    monkeypatch.setenv('CUDA_HOME', str(home))
    for name in ('NVCC_CCBIN', 'CUDAHOSTCXX', 'CXX'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)

    def flags(cards: list[tuple[int, int]], known: str) -> list[str]:
        (home / 'bin' / 'nvcc').write_text(f'#!/bin/sh\nprintf "%s\\n" {known}\n')
        (home / 'bin' / 'nvcc').chmod(0o755)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(cards))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: cards[index])
        recipe = custom_ops._cuda_recipe()
        assert recipe.compiler == str(home / 'bin' / 'nvcc') and set(recipe.link) - {'-shared'} <= set(recipe.flags)
        return [flag for flag in recipe.flags if flag.startswith('arch=')]
    return flags


@needs_compiler
def test_code_is_made_for_each_kind_of_card_and_for_cards_newer_than_nvcc(nvcc) -> None:
    known = 'compute_80 compute_90 compute_100 compute_110 compute_103'
    assert nvcc([(9, 0)], known) == ['arch=compute_90,code=[sm_90,compute_90]']
    assert nvcc([(9, 0), (8, 6), (9, 0)], known) == [
        'arch=compute_80,code=[sm_80,compute_80]', 'arch=compute_90,code=[sm_90,compute_90]']
    assert nvcc([(12, 0)], known) == ['arch=compute_110,code=[sm_110,compute_110]']
    assert nvcc([(9, 0), (6, 1)], known) == ['arch=compute_90,code=[sm_90,compute_90]']  # The older one goes without.
    assert nvcc([(8, 9)], '') == ['arch=compute_89,code=[sm_89,compute_89]']
    with pytest.raises(custom_ops._Unavailable, match=r'compute capability 8.0 and newer, this card has 7.0'):
        nvcc([(7, 0)], known)


@needs_compiler
def test_nvccs_host_compiler_is_named(nvcc, monkeypatch, tmp_path) -> None:
    nvcc([(9, 0)], 'compute_90')
    flags = custom_ops._cuda_recipe().flags
    assert '++' in flags[flags.index('-ccbin') + 1]
    other = tmp_path / 'my-c++'
    other.write_text('#!/bin/sh\n')
    other.chmod(0o755)
    monkeypatch.setenv('CXX', str(other))
    assert str(other) in custom_ops._cuda_recipe().flags
    monkeypatch.setenv('CXX', '')
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(custom_ops._Unavailable, match='no C.. compiler beside nvcc'):
        custom_ops._cuda_recipe()


def test_a_program_keeps_the_name_that_it_goes_by(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('PATH', str(tmp_path))
    for name in ('ccache', 'g++-13'):
        (tmp_path / name).write_text('#!/bin/sh\n')
        (tmp_path / name).chmod(0o755)
    for name, real in (('c++', 'ccache'), ('g++', 'g++-13')):
        (tmp_path / name).symlink_to(tmp_path / real)
    assert custom_ops._find('c++') == str(tmp_path / 'c++')
    assert custom_ops._find('no such', None, '', 'g++') == str(tmp_path / 'g++-13')


def test_the_line_that_says_why() -> None:
    assert custom_ops._first_error(
        'ninja: Entering directory\n[1/3] nvcc -c a.cu\nFAILED: [code=1] 0.o\nnvcc -c a.cu\n'
        "nvcc fatal   : Unsupported gpu architecture 'sm_70'\nninja: build stopped: subcommand failed.") == (
        "nvcc fatal   : Unsupported gpu architecture 'sm_70'")
    assert custom_ops._first_error(
        'FAILED: library.so\nc++ -shared -o library.so\n/usr/bin/ld: cannot find -lcudart_static: No such file\n'
        'collect2: error: ld returned 1 exit status\nninja: build stopped: subcommand failed.') == (
        '/usr/bin/ld: cannot find -lcudart_static: No such file')
    assert custom_ops._first_error('gcc: not found\nnvcc fatal   : Failed to preprocess\nninja: build stopped: x') == (
        'gcc: not found')
    assert custom_ops._first_error('x.cu(3): warning\nx.cu(4): error: no such thing') == 'x.cu(4): error: no such thing'
    assert custom_ops._first_error('ninja: build stopped: x') == 'the build failed'
