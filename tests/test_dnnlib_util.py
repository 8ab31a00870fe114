"""dnnlib: names, times, logs, whole files and downloads."""

import copy
import hashlib
import http.server
import io
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dnnlib
from dnnlib import util


def test_easy_dict_is_a_dict_with_attributes() -> None:
    options = dnnlib.EasyDict(a=1, nested=dnnlib.EasyDict(b=2))
    options.c = 3
    del options.a
    assert options == {'nested': {'b': 2}, 'c': 3} and options.nested.b == 2
    for twin in (copy.deepcopy(options), pickle.loads(pickle.dumps(options))):
        assert twin == options and type(twin) is dnnlib.EasyDict and twin.nested is not options.nested
    with pytest.raises(AttributeError, match='gone'):
        _ = options.gone
    with pytest.raises(AttributeError, match='gone'):
        del options.gone
    assert not hasattr(options, '__deepcopy__')


@pytest.mark.parametrize('seconds, text, brief', [
    (0.4, '0s', '0s'), (59.4, '59s', '59s'), (59.6, '1m 00s', '1m 00s'), (3599, '59m 59s', '59m 59s'),
    (7384, '2h 03m 04s', '2h 03m'), (93784, '1d 02h 03m', '1d 02h'), (1e6, '11d 13h 46m', '11d 13h'),
])
def test_format_time(seconds: float, text: str, brief: str) -> None:
    assert util.format_time(seconds) == text
    assert util.format_time_brief(seconds) == brief


def test_objects_by_name() -> None:
    assert util.get_obj_by_name('dnnlib.util.EasyDict') is dnnlib.EasyDict
    assert util.get_obj_by_name('dnnlib.util.Logger.close') is util.Logger.close
    assert util.get_obj_by_name('dnnlib.util') is util
    assert util.get_obj_by_name('np.pi') == pytest.approx(3.14159265)
    assert util.construct_class_by_name(class_name='dnnlib.EasyDict', x=1) == {'x': 1}
    assert util.call_func_by_name(61, func_name='dnnlib.util.format_time') == '1m 01s'
    with pytest.raises(TypeError, match='os.sep'):
        util.call_func_by_name(func_name='os.sep')


@pytest.mark.parametrize('name', ['dnnlib.util.Nothing', 'dnnlib.nothing.Nothing', 'no_such_package.x', 'nothing'])
def test_unknown_names_are_named(name: str) -> None:
    with pytest.raises(ImportError, match='[Nn]othing|no_such_package'):
        util.get_obj_by_name(name)


def test_an_error_inside_a_module_is_not_taken_for_a_missing_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'broken_module.py').write_text('import package_that_is_missing\nclass Net: pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='package_that_is_missing'):
        util.get_obj_by_name('broken_module.Net')


def test_logger_copies_both_streams_and_gives_them_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    path = tmp_path / 'log.txt'
    with util.Logger(str(path)) as logger:
        print('result')
        print('progress', file=sys.stderr)
        sys.stderr.write('\r50%')
        logger.write('direct\n')
        assert sys.stdout.isatty() is False
    assert (sys.stdout, sys.stderr) == before
    assert path.read_text() == 'result\nprogress\ndirect\n'
    streams = capsys.readouterr()
    assert streams.out == 'result\ndirect\n' and streams.err == 'progress\n\r50%'
    with util.Logger(str(path), file_mode='a'):
        print('more')
    assert path.read_text().endswith('direct\nmore\n')


def test_atomic_write_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / 'snapshot.pkl'
    with util.atomic_write(path) as file:
        file.write(b'one')
        assert not path.exists()
    with pytest.raises(RuntimeError, match='disk'), util.atomic_write(path) as file:
        file.write(b'two')
        raise RuntimeError('disk')
    assert path.read_bytes() == b'one' and os.listdir(tmp_path) == ['snapshot.pkl']
    with util.atomic_write(path, 'w', encoding='utf-8') as file:
        file.write('ψ')
    assert path.read_bytes() == 'ψ'.encode()


def test_atomic_write_keeps_links_and_umask(tmp_path: Path) -> None:
    target, link = tmp_path / 'target', tmp_path / 'link'
    target.write_bytes(b'old')
    link.symlink_to(target)
    with util.atomic_write(link) as file:
        file.write(b'new')
    assert link.is_symlink() and target.read_bytes() == b'new'
    plain = tmp_path / 'plain'
    plain.write_bytes(b'')
    assert target.stat().st_mode == plain.stat().st_mode


def test_atomic_write_names_what_cannot_be_written(tmp_path: Path) -> None:
    nowhere = tmp_path / 'missing' / 'x'
    with pytest.raises(util.UserError, match='missing.*cannot be written'), util.atomic_write(nowhere):
        pass
    with pytest.raises(ValueError, match='mode'), util.atomic_write(tmp_path / 'x', 'ab'):
        pass


def test_file_hash(tmp_path: Path) -> None:
    path = tmp_path / 'x'
    path.write_bytes(b'abc' * 1_000_000)
    assert util.file_hash(path) == hashlib.sha256(b'abc' * 1_000_000).hexdigest()


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DNNLIB_CACHE_DIR', '/cache')
    assert dnnlib.make_cache_dir_path('downloads') == os.path.join('/cache', 'downloads')
    monkeypatch.delenv('DNNLIB_CACHE_DIR')
    monkeypatch.setenv('HOME', '/home/x')
    assert dnnlib.make_cache_dir_path('a', 'b') == os.path.join('/home/x', '.cache', 'dnnlib', 'a', 'b')


@pytest.mark.parametrize('text, plain, with_files', [
    ('https://example.com/net.pkl', True, True), ('http://127.0.0.1:80/x', True, True), ('file:///x.pkl', False, True),
    ('net.pkl', False, False), ('C:\\net.pkl', False, False), ('https://', False, False), ('http://[x', False, False),
    (None, False, False), (3, False, False),
])
def test_is_url(text: Any, plain: bool, with_files: bool) -> None:
    assert util.is_url(text) is plain
    assert util.is_url(text, allow_file_urls=True) is with_files


def read(url: str, **kwargs: Any) -> bytes:
    with util.open_url(url, **kwargs) as file:
        return file.read()


class _Server(http.server.BaseHTTPRequestHandler):
    """/good.bin, /named (another name), /short (broken off), /page (HTML), /flaky (503 the first time), else 404."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        first_time = self.asked.count(self.path) == 1
        status = {'/missing.bin': 404, '/flaky': 503 if first_time else 200}.get(self.path, 200)
        self.send_response(status)
        self.send_header('Content-Length', '100' if self.path == '/short' else '5')
        self.send_header('Content-Type', 'text/html' if self.path == '/page' else 'application/octet-stream')
        if self.path == '/named':
            self.send_header('Content-Disposition', 'attachment; filename="../we ird.pt"')
        self.end_headers()
        self.wfile.write(b'bytes')

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv('NO_PROXY', '*')
    monkeypatch.setattr(util.time, 'sleep', lambda seconds: None)
    _Server.asked.clear()
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Server) as httpd:
        threading.Thread(target=httpd.serve_forever, args=[0.01], daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_download_is_cached_under_its_hash(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = server + '/good.bin'
    with util.open_url(url, cache_dir=str(tmp_path)) as file:
        assert file.read() == b'bytes'
    name = f'{hashlib.md5(url.encode()).hexdigest()}_good.bin'
    assert os.listdir(tmp_path) == [name]
    assert util.open_url(url, cache_dir=str(tmp_path), return_filename=True) == str(tmp_path / name)
    assert _Server.asked == ['/good.bin']
    streams = capsys.readouterr()
    assert url in streams.err and streams.out == ''


def test_download_without_cache_and_other_names(server: str, tmp_path: Path) -> None:
    assert read(server + '/good.bin', cache_dir=str(tmp_path), cache=False, verbose=False) == b'bytes'
    assert os.listdir(tmp_path) == []
    named = util.open_url(server + '/named', cache_dir=str(tmp_path), return_filename=True, verbose=False)
    assert os.path.dirname(named) == str(tmp_path) and named.endswith('_we_ird.pt')
    assert read(server + '/flaky', cache_dir=str(tmp_path), verbose=False) == b'bytes'
    assert _Server.asked.count('/flaky') == 2


@pytest.mark.parametrize('path, tries, reason', [
    ('/missing.bin', 1, '404'), ('/short', 3, 'broke off|IncompleteRead'), ('/page', 3, 'web page')])
def test_failed_downloads_name_the_file_to_save(
    server: str, tmp_path: Path, path: str, tries: int, reason: str
) -> None:
    url = server + path
    with pytest.raises(util.UserError, match=reason) as caught:
        util.open_url(url, cache_dir=str(tmp_path), num_attempts=3, verbose=False)
    message = str(caught.value)
    name = f'{hashlib.md5(url.encode()).hexdigest()}_{path[1:]}'
    assert url in message and f'{name} in {tmp_path}' in message and '\n' not in message
    assert _Server.asked == [path] * tries and os.listdir(tmp_path) == []
    (tmp_path / name).write_bytes(b'by hand')   # The advice works.
    assert read(url, cache_dir=str(tmp_path), verbose=False) == b'by hand'


def test_offline_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(util.time, 'sleep', lambda seconds: None)
    monkeypatch.setenv('NO_PROXY', '*')
    with pytest.raises(util.UserError, match='no connection') as caught:
        util.open_url('http://127.0.0.1:9/net.pkl', cache_dir=str(tmp_path), verbose=False)
    assert '\n' not in str(caught.value)


def test_local_files(tmp_path: Path) -> None:
    path = tmp_path / 'a b.bin'
    path.write_bytes(b'x')
    assert read(str(path)) == b'x'
    assert read(path.as_uri()) == b'x'
    assert util.open_url(path.as_uri(), return_filename=True) == str(path)
    for missing in (str(tmp_path / 'no.bin'), str(tmp_path)):
        with pytest.raises(util.UserError, match='no such file|folder'):
            util.open_url(missing)
    with pytest.raises(ValueError, match='return_filename'):
        util.open_url(str(path), return_filename=True, cache=False)
    with util.open_url(str(path)) as file:
        assert isinstance(file, io.BufferedReader)


@pytest.mark.parametrize('cpus, items, expected', [(1, 4096, 1), (2, 4096, 2), (64, 9999, 3), (64, 4095, 0)])
def test_images_are_read_by_no_more_processes_than_there_are_cpus_for(
    cpus: int, items: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lia_plugin import host
    from metrics import metric_utils

    monkeypatch.setattr(os, 'cpu_count', lambda: 128)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cpus)), raising=False)
    for workers in (util.loader_workers, host.loader_workers, host._loader_workers):
        assert workers(items) == expected
    assert metric_utils._default_loader_kwargs(items, torch.device('cpu'))['num_workers'] == expected
    monkeypatch.delattr(os, 'sched_getaffinity')  # As on macOS and Windows.
    assert (util.usable_cpus(), host._loader_workers(4096)) == (128, 3)
