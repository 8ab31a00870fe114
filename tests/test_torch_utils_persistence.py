"""Persistent classes: the format, and that a reader who knows nothing but the format can use it."""

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import persistent_nets
import pytest
import torch

import dnnlib
from torch_utils import persistence

# A host as the format describes it, written without looking at ours: what NVIDIA's checkouts do with a pickle.
STAND_IN = '''
import types
def persistent_class(cls):
    return cls
def _reconstruct_persistent_obj(meta):
    assert list(meta)[:5] == ['type', 'version', 'module_src', 'class_name', 'state'], list(meta)
    assert type(meta) is dict and meta['type'] == 'class' and meta['version'] == 6
    module = types.ModuleType('embedded')
    exec(meta['module_src'], module.__dict__)
    cls = getattr(module, meta['class_name'])
    obj = cls.__new__(cls)
    obj.__setstate__(meta['state']) if hasattr(obj, '__setstate__') else obj.__dict__.update(meta['state'])
    return obj
'''


def make_net(**kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return persistent_nets.Net(3, **kwargs)


def test_the_class_looks_like_the_original() -> None:
    net = make_net(depth=2)
    assert type(net).__name__ == 'Net' and type(net).__module__ == 'torch_utils.persistence'
    assert persistence.is_persistent(net) and persistence.is_persistent(persistent_nets.Net)
    assert not persistence.is_persistent(torch.nn.Linear(1, 1)) and not persistence.is_persistent([])
    assert persistence.persistent_class(persistent_nets.Net) is persistent_nets.Net
    assert not persistence.is_persistent(type('Sub', (persistent_nets.Net,), {}))


def test_constructor_arguments_are_deep_copies() -> None:
    options: dict[str, Any] = {'a': [1]}
    net: Any = persistent_nets.Net(3, options=options)
    options['a'].append(2)
    assert net.init_args == (3,) and net.init_kwargs == {'options': {'a': [1]}}
    assert type(net.init_kwargs) is dnnlib.EasyDict
    net.init_kwargs.options['a'].append(3)
    assert net.init_kwargs.options == {'a': [1]}


def test_reduce_is_the_hosts_format() -> None:
    net = make_net()
    func, (meta,), state = net.__reduce__()
    assert func is persistence._reconstruct_persistent_obj and state is None and type(meta) is dict
    assert list(meta) == ['type', 'version', 'module_src', 'class_name', 'state', 'module_name']
    assert (meta['type'], meta['version'], meta['class_name']) == ('class', 6, 'Net')
    assert meta['module_src'] == inspect.getsource(persistent_nets) and meta['module_name'] == 'persistent_nets'
    assert meta['state']['_init_args'] == (3,) and meta['state']['_init_kwargs'] == {}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_round_trip(protocol: int) -> None:
    net = make_net(depth=2).eval()
    twin = pickle.loads(pickle.dumps(net, protocol))
    x = torch.randn([4, 3])
    assert type(twin) is type(net) and type(twin.layers[1]) is persistent_nets.Layer
    assert torch.equal(twin(x), net(x)) and not twin.training and twin.init_kwargs == {'depth': 2}


def test_deepcopy_goes_through_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(persistence, '_hooks', [lambda meta: seen.append(meta.class_name) or meta])
    net = make_net()
    twin = copy.deepcopy(net)
    assert seen == ['Layer', 'Net']
    assert torch.equal(twin.layers[0].weight, net.layers[0].weight)
    assert twin.layers[0].weight is not net.layers[0].weight


def test_a_host_without_this_project_opens_it(tmp_path: Path) -> None:
    net = make_net(depth=2)
    (tmp_path / 'torch_utils').mkdir()
    (tmp_path / 'torch_utils' / '__init__.py').write_text('')
    (tmp_path / 'torch_utils' / 'persistence.py').write_text(STAND_IN)
    (tmp_path / 'net.pkl').write_bytes(pickle.dumps(net, 4))
    code = ("import pickle, torch; net = pickle.load(open('net.pkl', 'rb'))\n"
            "print(type(net).__module__, net._init_kwargs, net(torch.ones([1, 3])).tolist())")
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                            env={'PYTHONPATH': str(tmp_path), 'OMP_NUM_THREADS': '1'}, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"embedded {{'depth': 2}} {net(torch.ones([1, 3])).tolist()}"


def test_foreign_source_becomes_a_module_once_and_is_pickled_on() -> None:
    _, (meta,), _ = make_net().__reduce__()
    source = meta['module_src'].replace('* self.gain', '* self.gain * 4')
    old = [persistence._reconstruct_persistent_obj({**meta, 'module_src': source}) for _ in range(2)]
    assert type(old[0]) is type(old[1]) is not persistent_nets.Net
    assert old[0].__module__ == 'torch_utils.persistence'
    again = old[0].__reduce__()[1][0]
    assert again['module_src'] == source and again['module_name'] == 'persistent_nets'
    x = torch.ones([1, 3])
    assert torch.allclose(pickle.loads(pickle.dumps(old[0]))(x), make_net()(x) * 4)


def test_source_that_fails_leaves_no_module_behind() -> None:
    meta = {**make_net().__reduce__()[1][0], 'module_src': 'raise OSError("broken")'}
    before = set(sys.modules)
    for _ in range(2):  # The second time it must not pass for loaded.
        with pytest.raises(OSError, match='broken'):
            persistence._reconstruct_persistent_obj(meta)
    assert set(sys.modules) == before


def test_import_hooks_can_change_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, '_hooks', [])

    @persistence.import_hook
    def double(meta: dnnlib.EasyDict) -> dnnlib.EasyDict:
        meta.state['gain'] = 1.0 if meta.class_name == 'Net' else None
        return meta

    net = make_net()
    assert torch.allclose(copy.deepcopy(net)(torch.ones([1, 3])), net(torch.ones([1, 3])) * 2)
    persistence.import_hook(lambda meta: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match='None'):
        copy.deepcopy(net)
    with pytest.raises(TypeError, match='function'):
        persistence.import_hook(3)  # type: ignore[arg-type]


@pytest.mark.parametrize('change', [{'version': 7}, {'type': 'function'}])
def test_unknown_versions_are_refused(change: dict[str, Any]) -> None:
    meta = make_net().__reduce__()[1][0]
    with pytest.raises(pickle.UnpicklingError, match='unknown kind'):
        persistence._reconstruct_persistent_obj({**meta, **change})


def test_what_cannot_be_pickled_is_told_at_construction() -> None:
    with pytest.raises(TypeError, match='Plain.*picklable'):
        persistent_nets.Plain(lambda: None)
    persistent_nets.Plain([torch.zeros(2), persistent_nets.Plain(3)])


def test_a_class_inside_a_function_is_refused() -> None:
    class Hidden:
        pass

    with pytest.raises(ValueError, match='top level'):
        persistence.persistent_class(Hidden)()
