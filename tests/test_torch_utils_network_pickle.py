"""The safe reader: faithful to good files, one line for bad ones, and nothing in a file ever runs."""

import copy
import io
import os
import pickle
import pickletools
import random
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import persistent_nets
import pytest
import torch

import dnnlib
from dnnlib.util import UserError
from torch_utils import host_dialects, network_pickle, persistence, pickle_machine
from training import networks_stylegan3

HINT = '--trust-pickle'


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_pickle, 'KNOWN_MODULES', (*network_pickle.KNOWN_MODULES, 'persistent_nets'))


def make_net(**kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    net = persistent_nets.Net(3, **kwargs).eval().requires_grad_(False)
    net.step.fill_(7)
    return net


def load(content: Any, trust: bool = False, protocol: int = 4) -> Any:
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
    return network_pickle.load(io.BytesIO(data), trust=trust)


def refusal(content: Any) -> str:
    """The message that a file is refused with: one line, soon, with the file's name at its front."""
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load(content)
    message = str(caught.value)
    assert message.startswith('<stream>: ') and message.isprintable() and len(message) < 700
    assert time.process_time() - started < 5
    return message


# Faithful to good files.

@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_networks_come_back_whole(protocol: int) -> None:
    net = make_net(depth=2)
    twin = load(dict(G=net, G_ema=net, kimg=5), protocol=protocol)
    assert list(twin) == ['G', 'G_ema', 'kimg'] and twin['kimg'] == 5 and twin['G'] is twin['G_ema']
    assert type(twin['G']) is persistent_nets.Net and twin['G'].init_kwargs == {'depth': 2}
    for (name, mine), (other, theirs) in zip(net.state_dict().items(), twin['G'].state_dict().items()):
        assert name == other and mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    x = torch.randn([4, 3])
    assert torch.equal(net(x), twin['G'](x))


def test_modes_and_gradients_are_the_files() -> None:
    net = make_net()
    net.head.train()
    net.head.weight.requires_grad_(True)
    twin = load(dict(G=net))['G']
    assert not twin.training and twin.head.training and not twin.layers.training
    assert [name for name, param in twin.named_parameters() if param.requires_grad] == ['head.weight']
    with torch.no_grad():
        twin.head.weight.zero_()    # Its memory is its own, and can be written to.


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_plain_content_of_every_kind(protocol: int) -> None:
    shared = [1, 2]
    content = dict(
        G=None, number=1.5, large=2**70, negative=-3, text='ψ' * 5000, raw=b'\x00\xff' * 3000, flag=True,
        pair=(1, (2,)), options=dnnlib.EasyDict(a=dnnlib.EasyDict(b=[])), ordered=OrderedDict(x=1), kinds={1, 'a'},
        scalar=np.float32(0.5), count=np.int64(3), array=np.arange(6.0).reshape(2, 3).T, shared=[shared, shared],
        tensor=torch.arange(6).reshape(2, 3).t(), half=torch.ones([2], dtype=torch.bfloat16), none=torch.zeros([0, 2]),
        param=torch.nn.Parameter(torch.ones([1])), broadcast=torch.ones([1]).expand(3), size=torch.ones([2, 3]).shape)
    result = load(content, protocol=protocol)
    assert list(result) == list(content)
    for name in ('number', 'large', 'negative', 'text', 'raw', 'flag', 'pair', 'options', 'ordered', 'kinds', 'size'):
        assert result[name] == content[name]
    assert type(result['options'].a) is dnnlib.EasyDict and type(result['ordered']) is OrderedDict
    assert type(result['scalar']) is float and result['scalar'] == 0.5 and type(result['count']) is int
    assert np.array_equal(result['array'], content['array']) and result['array'].flags.writeable
    assert result['shared'][0] is result['shared'][1]
    for name in ('tensor', 'half', 'none', 'broadcast'):
        assert result[name].dtype == content[name].dtype and torch.equal(result[name], content[name])
    assert isinstance(result['param'], torch.nn.Parameter) and result['param'].requires_grad


def test_numpy_scalars_in_arguments_become_python_numbers() -> None:
    net = persistent_nets.Net(np.int64(3), depth=1, options=dict(gain=np.float64(0.5), f=np.float32([1, 3])))
    twin = load(dict(G=net))['G']
    assert type(twin.init_args[0]) is int and type(twin.init_kwargs.options['gain']) is float
    assert twin.init_kwargs.options['f'].tolist() == [1, 3]


def test_save_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / 'net.pkl'
    network_pickle.save(path, dict(G=make_net()))
    before = path.read_bytes()
    assert before[:2] == b'\x80\x04'
    with pytest.raises((AttributeError, pickle.PicklingError)):
        network_pickle.save(path, dict(G=make_net(), bad=lambda: None))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['net.pkl']
    with path.open('rb') as file:
        for source in (path, str(path), path.as_uri(), file):
            assert network_pickle.load(source)['G'].init_args == (3,)


def test_loading_does_not_touch_the_random_state() -> None:
    data = pickle.dumps(dict(G=make_net()))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_buffers_that_code_recomputes_may_come_and_go() -> None:
    net = make_net()
    del net.derived
    assert load(dict(G=net))['G'].derived.tolist() == [0, 1, 2]
    net = make_net()
    net.register_buffer('cache', torch.ones([2]), persistent=False)
    assert not hasattr(load(dict(G=net))['G'], 'cache')


def test_parameters_and_buffers_may_trade_places() -> None:
    net = make_net()
    weight = net.head.weight.detach().clone()
    del net.head.weight
    net.head.register_buffer('weight', weight)
    twin = load(dict(G=net))['G']
    assert torch.equal(twin.head.weight, weight) and not twin.head.weight.requires_grad


def test_large_files_load_in_seconds(tmp_path: Path) -> None:
    net = persistent_nets.Net(1, options=None)
    big = persistent_nets.Layer(5000, 5000)     # 100 MB
    network_pickle.save(tmp_path / 'big.pkl', dict(G=net, D=big))
    started = time.process_time()
    twin = network_pickle.load(tmp_path / 'big.pkl')
    assert time.process_time() - started < 5 and torch.equal(twin['D'].weight, big.weight)


# Strict about weights.

def meddle(change: Callable[[Any], Any]) -> str:
    net = make_net(depth=2)
    change(net)
    return refusal(dict(G=net))


def test_weights_must_fit_by_name_and_shape() -> None:
    def give_shape(net: Any) -> None:
        net.head.bias = torch.nn.Parameter(torch.zeros([5]))

    message = meddle(give_shape)
    assert 'head.bias [5] instead of [2]' in message and HINT in message and 'Net' in message
    assert 'lacks head.weight' in meddle(lambda net: delattr(net.head, 'weight'))
    assert 'unknown extra' in meddle(lambda net: net.register_buffer('extra', torch.ones([1])))
    assert 'step' in meddle(lambda net: net.register_buffer('step', torch.ones([])))   # Not an integer any more.


def test_arguments_must_fit_the_class() -> None:
    assert 'width' in meddle(lambda net: setattr(net, '_init_args', ()))
    assert 'colour' in meddle(lambda net: net._init_kwargs.update(colour=1))
    assert 'lacks layers.2' in meddle(lambda net: net._init_kwargs.update(depth=3))
    assert 'unknown layers.1' in meddle(lambda net: net._init_kwargs.update(depth=1))


@pytest.mark.parametrize('args', [(10**6,), (10**30,), (2**31,), (-1,), ('many',), (3.5,), (None,), ([3],)])
def test_arguments_cannot_exhaust_memory(args: Any) -> None:
    message = meddle(lambda net: setattr(net, '_init_args', args))
    assert "can't be built" in message and HINT in message


def test_arguments_cannot_ask_for_endless_depth() -> None:
    assert 'beyond 1,048,576' in meddle(lambda net: net._init_kwargs.update(depth=10**9))
    assert 'beyond 1,048,576' in meddle(lambda net: net._init_kwargs.update(options={'a': [(2**21,)]}))
    assert 'far more than the weights' in meddle(lambda net: net._init_kwargs.update(depth=2**20))


def test_only_persistent_network_classes_of_known_modules() -> None:
    net = make_net()
    _, (meta,), _ = net.__reduce__()

    def swapped(**changes: Any) -> Any:
        return dict(G=_Call('torch_utils.persistence', '_reconstruct_persistent_obj', ({**meta, **changes},)))

    assert isinstance(load(swapped())['G'], persistent_nets.Net)
    assert 'not one of' in refusal(swapped(module_name='os'))
    assert 'not one of' in refusal(swapped(module_name='persistent_nets.torch'))
    for name in ('torch', 'Any', 'persistence', '__builtins__', 'Gone', 'Plain', 'persistence.persistent_class'):
        assert 'does not have it' in refusal(swapped(class_name=name))
    assert 'unknown version' in refusal(swapped(version=7))
    assert 'unknown version' in refusal(swapped(type='function'))
    for junk in (dict(class_name=3), dict(module_src=None), dict(state=None), dict(module_name=['x']), dict(state={})):
        refusal(swapped(**junk))


def test_odd_names_do_not_get_into_messages() -> None:
    def rename(where: str, key: Any) -> Callable[[Any], Any]:
        return lambda net: getattr(net, where).update({key: net.head.weight if where != '_modules' else net.head})

    for key in ('a\nb', 'x' * 1000, 'a.b', 5, '\x1b[2J'):
        assert 'no module' in meddle(rename('_modules', key))
        assert 'unknown ?' in meddle(rename('_buffers', key))
    assert 'no module' in meddle(lambda net: net._modules.update(head=3))
    assert 'damaged' in meddle(lambda net: net.__dict__.update(_modules=[1]))
    assert 'damaged' in meddle(lambda net: net.__dict__.update(_init_kwargs=[1]))
    for name in ('a\nb', 'x' * 200, ''):
        net = make_net()
        meta = {**net.__reduce__()[1][0], 'class_name': name}
        assert 'class' in refusal(dict(G=_Call('torch_utils.persistence', '_reconstruct_persistent_obj', (meta,))))


def test_a_plain_torch_module_is_no_network() -> None:
    assert HINT in refusal(dict(G=torch.nn.Linear(2, 2)))


# Nothing in a file runs.

class _Call:
    """Pickles to a call of any function, by its name."""

    def __init__(self, module: str, name: str, args: tuple[Any, ...] = ()) -> None:
        self.target = _Name(module, name), args

    def __reduce__(self) -> Any:
        return self.target


class _Name:
    """Pickles to a global name; `_Pickler` takes care of it."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        raise AssertionError('never called')


class _Pickler(pickle._Pickler):    # type: ignore[name-defined,misc]
    """The pure Python pickler, which can be taught to write names that don't exist here."""

    def save(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(obj, _Name):
            return self.write(f'c{obj.module}\n{obj.name}\n'.encode())
        return super().save(obj, *args, **kwargs)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    def dumps(obj: Any, protocol: int = 4) -> bytes:
        file = io.BytesIO()
        _Pickler(file, protocol).dump(obj)
        return file.getvalue()

    monkeypatch.setattr(pickle, 'dumps', dumps)


FORBIDDEN = [
    ('os', 'system'), ('posix', 'system'), ('builtins', 'eval'), ('builtins', 'getattr'), ('builtins', 'exec'),
    ('subprocess', 'Popen'), ('importlib', 'import_module'), ('torch', 'load'), ('torch.hub', 'load'),
    ('torch.utils.collect_env', 'run'), ('torch_utils.persistence', '_src_to_module'), ('builtins', 'set.__class__'),
    ('torch_utils.persistence', 'import_hook'), ('torch_utils.persistence', 'sys.modules'),
    ('dnnlib.util', 'get_obj_by_name'), ('dnnlib.util', 'EasyDict.__init__'), ('dnnlib.util', 'open_url'),
    ('collections', 'OrderedDict.__reduce__'), ('numpy', 'load'), ('numpy.testing._private.utils', 'runstring'),
    ('numpy.core.multiarray', '_reconstruct.__globals__'), ('_codecs', 'decode'), ('torch.storage', 'io.BytesIO'),
    ('torch._utils', '_rebuild_parameter_with_state'), ('collections ', 'OrderedDict'), ('', ''),
    ('persistent_nets', 'Net'), ('torch.nn.modules.linear', 'Linear.forward'), ('torch', 'FloatStorage'),
]


@pytest.mark.parametrize('module, name', FORBIDDEN)
@pytest.mark.parametrize('stacked', [False, True])
def test_forbidden_names(module: str, name: str, stacked: bool) -> None:
    content = pickle.dumps(dict(G=_Call(module, name, ('touch /tmp/should_not_exist',))))
    if stacked:
        text = b''.join(b'\x8c' + bytes([len(part)]) + part.encode() for part in (module, name)) + b'\x93'
        content = b'\x80\x04' + text + b'(X\x01\x00\x00\x00xtR.'
    message = refusal(content)
    assert 'asks for' in message and HINT in message and f'{module}.{name}'.replace(' ', '.') in message


def test_embedded_source_runs_only_when_trusted(tmp_path: Path) -> None:
    flag = tmp_path / 'flag'
    _, (meta,), _ = make_net().__reduce__()
    source = meta['module_src'] + f'\nopen({str(flag)!r}, "w").close()\n'
    data = pickle.dumps(dict(G=_Call('torch_utils.persistence', '_reconstruct_persistent_obj',
                                     ({**meta, 'module_src': source},))))
    assert torch.equal(load(data)['G'].head.weight, make_net().head.weight) and not flag.exists()
    trusted = load(data, trust=True)['G']
    assert flag.exists() and type(trusted) is not persistent_nets.Net and persistence.is_persistent(trusted)


def test_trusting_a_broken_file_is_still_one_line() -> None:
    for data in (pickle.dumps(dict(G=_Call('no_module', 'x'))), pickle.dumps(dict(a=1))[:-3]):
        with pytest.raises(UserError, match='<stream>: does not load even with --trust-pickle') as caught:
            load(data, trust=True)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('key', ['class_name', 'func_name'])
@pytest.mark.parametrize('value', [
    'os.system', 'subprocess.Popen', 'persistent_nets.torch', 'persistent_nets.persistence.persistent_class',
    'dnnlib.util.atomic_write', 'training.dataset.zipfile', '', 3, None])
def test_options_cannot_name_functions(key: str, value: Any) -> None:
    """Constructors follow class_name: LIA's builds its synthesis network with it."""
    for options in ({key: value}, {'synthesis_kwargs': {key: value}}, [{'deep': ({key: value},)}]):
        assert HINT in refusal(dict(G=make_net(options=options)))
    assert HINT in refusal(dict(extra={key: value}))
    options = {key: 'persistent_nets.Layer'}
    assert load(dict(G=make_net(options=options)))['G'].init_kwargs.options == options


def test_foreign_data_sets_are_left_out() -> None:
    good = dict(class_name='training.dataset.ImageFolderDataset', path='x.zip')
    assert load(dict(G=make_net(), training_set_kwargs=good))['training_set_kwargs'] == good
    with pytest.warns(UserWarning, match='os.system'):
        result = load(dict(G=make_net(), training_set_kwargs=dict(class_name='os.system', command='x')))
    assert result['training_set_kwargs'] is None and result['G'].init_args == (3,)


# Hostile instructions, by hand. Each would hurt a plain unpickler or a careless one.

def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


ENCODE = b'c_codecs\nencode\n'
EASY = b'cdnnlib.util\nEasyDict\n'
HOSTILE = {
    'memo index of 4 billion': (b'Nr\xff\xff\xff\xff.', 'NoneType'),
    'bytearray of an exabyte': b'\x96' + struct.pack('<Q', 1 << 60) + b'.',
    'bytes of an exabyte': b'\x8e' + struct.pack('<Q', 1 << 60) + b'.',
    'text of an exabyte': b'\x8d' + struct.pack('<Q', 1 << 60) + b'.',
    'negative length': b'T\xff\xff\xff\xff.',
    'state of a function': ENCODE + b'}' + text('__defaults__') + b'Nsb.',
    'slots of a class': EASY + b'N}' + text('__getattr__') + b'Ns\x86b.',
    'items of a class': EASY + text('__getattr__') + b'Ns.',
    'append to a function': ENCODE + b'Na.',
    'add to a dict': b'}(N\x90.',
    'call of a dict': b'})R.',
    'call of a text': text('os.system') + text('ls') + b'\x85R.',
    'construct a function': ENCODE + b')\x81.',
    'arguments that are no tuple': ENCODE + b']R.',
    'keyword arguments': EASY + b')}\x92.',
    'old instance': b'(ios\nsystem\n.',
    'old object': b'(cos\nsystem\no.',
    'extension': b'\x82\x01.',
    'outside object': text('x') + b'Q.',
    'outside object by text': b'Px\n.',
    'out-of-band buffer': b'\x97.',
    'encoder of another kind': ENCODE + text('x') + text('zip') + b'\x86R.',
    'object dtype': b'cnumpy\ndtype\n' + text('O8') + b'\x85R.',
    'structured dtype': b'cnumpy\ndtype\n' + text('f4,f4') + b'\x85R.',
    'call of ndarray': b'cnumpy\nndarray\n)R.',
    'nested key': b'}' + b')' + b'\x85' * 200_000 + b'Ns.',
    'list as a key': b'}]Ns.',
    'empty stack': b'0.',
    'no mark': b't.',
    'unknown memo': b'h\x05.',
    'nothing': b'.',
    'unknown instruction': b'\xfe.',
    'long name': b'c' + b'x' * 100_000 + b'\ny\n.',
    'long stacked name': text('x' * 100_000) + text('y') + b'\x93.',
    'number of many digits': b'L' + b'9' * 4000 + b'L\nX.',
    'no end': b'N' * 1000,
    'itself': b']\x94h\x00a.',
    'deep lists': b']' * 100_000 + b'a' * 99_999 + b'.',
    'deep dicts': b'}' + (text('a') + b'}') * 1000 + b's' * 1000 + b'.',
    'a list': b'].',
    'TensorFlow': b'cdnnlib.tflib.network\nNetwork\n)\x81.',
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_instructions(name: str) -> None:
    entry = HOSTILE[name]
    code, word = entry if isinstance(entry, tuple) else (entry, 'TensorFlow' if name == 'TensorFlow' else '')
    assert word in refusal(b'\x80\x04' + code)
    assert not hasattr(dnnlib.EasyDict, 'x') and dnnlib.EasyDict(a=1).a == 1


def test_shared_content_cannot_multiply() -> None:
    """A billion laughs: forty levels of ten references each are a few bytes, until somebody prints them."""
    level: list[Any] = []
    for _ in range(40):
        level = [level] * 10
    assert '1,000,000 values' in refusal(dict(a=level))
    assert '1,000,000 values' in refusal(dict(G=make_net(options=level)))
    for place in ('class_name', 'func_name'):
        assert HINT in refusal({place: level})
    assert 'NumPy' in refusal(dict(a=_Call('numpy', 'dtype', (level,))))
    block = b'\x80\x04' + text('x' * 1_000_000) + b'\x94](' + (ENCODE + b'h\x00' + text('latin1') + b'\x86R') * 1000
    assert 'more than its own size' in refusal(block + b'e.')
    parts = make_net()
    inner: Any = torch.nn.Sequential()
    for _ in range(40):
        inner = torch.nn.Sequential(inner, inner)
    parts.head = inner
    assert 'parts' in refusal(dict(G=parts))


def test_instructions_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, 'MAX_OPCODES', 5000)
    assert load(dict(a=1)) == {'a': 1}
    assert '5,000 instructions' in refusal(b'\x80\x04' + b'N0' * 5000 + b'.')


def storage_bytes() -> bytes:
    """The stream inside a tensor of [0, 1, 2, 3]: torch.save's old format."""
    file = io.BytesIO()
    torch.save(torch.arange(4.0).storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def tensor_of(content: bytes, size: Any = (4,), stride: Any = (1,), offset: int = 0) -> Any:
    storage = _Call('torch.storage', '_load_from_bytes', (content,))
    return dict(a=_Call('torch._utils', '_rebuild_tensor_v2', (storage, offset, size, stride, False, OrderedDict())))


@pytest.mark.filterwarnings('ignore:TypedStorage')
def test_tensor_streams_are_checked() -> None:
    good = storage_bytes()
    assert load(tensor_of(good))['a'].tolist() == [0, 1, 2, 3]
    assert load(tensor_of(good, (2, 2), (1, 2)))['a'].tolist() == [[0, 2], [1, 3]]
    refusal(tensor_of(good[:-4]))
    refusal(tensor_of(good.replace(struct.pack('<q', 4), struct.pack('<q', 1 << 40))))
    refusal(tensor_of(good.replace(struct.pack('<q', 4), struct.pack('<q', -4))))
    refusal(tensor_of(b'PK\x03\x04' + good))
    refusal(tensor_of(good.replace(b'FloatStorage', b'DoubleStorage')))
    refusal(tensor_of(good.replace(b'torch\nFloatStorage', b'os\nsystem')))
    for wrong in (((5,), (1,), 0), ((4,), (1,), 1), ((4,), (2,), 0), ((2**40,), (0,), 0), ((4,), (-1,), 3),
                  ((-1,), (1,), 0), ((2,) * 40, (0,) * 40, 0), (('4',), (1,), 0), ((4,), (1,), 2**70)):
        refusal(tensor_of(good, *wrong))
    refusal(dict(a=_Call('torch.storage', '_load_from_bytes', ('text',))))
    refusal(dict(a=_Call('torch._utils', '_rebuild_parameter', ([1], True))))
    refusal(dict(a=_Call('torch._utils', '_rebuild_parameter', (torch.arange(2), True))))


# Damaged and foreign files.

@pytest.fixture(scope='module')
def small_file() -> bytes:
    return pickle.dumps(dict(G=make_net(), options=dict(a=[1, (2.5, 'x')])), 4)


def test_every_truncation_is_noticed(small_file: bytes) -> None:
    step = max(len(small_file) // 150, 1)
    for end in [*range(1, len(small_file), step), len(small_file) - 1]:
        refusal(small_file[:end])


def test_bit_flips_never_do_worse_than_a_line(small_file: bytes) -> None:
    dice = random.Random(0)
    structure = [pos for op, _, pos in pickletools.genops(small_file) if op.name not in ('BINBYTES', 'BINUNICODE')]
    outcomes = set()
    for trial in range(600):
        data = bytearray(small_file)
        for _ in range(1 + trial % 3):
            where = dice.choice(structure) + dice.randrange(3) if trial % 2 else dice.randrange(len(data))
            data[min(where, len(data) - 1)] ^= 1 << dice.randrange(8)
        try:
            outcomes.add(type(load(bytes(data))))
        except UserError as err:
            assert str(err).startswith('<stream>: ') and str(err).isprintable()
            outcomes.add(UserError)
    assert outcomes == {dict, UserError}


@pytest.mark.parametrize('content, word', [
    (b'', 'is empty'), (b'\x80', 'not a network pickle'), (b'PK\x03\x04abc', 'zip'), (b'\x89PNG\r\n', 'PNG'),
    (b'<!DOCTYPE html>', 'web page'), (b'version https://git-lfs', 'LFS'), (b'\x1f\x8b', 'gzip'),
    (b'\x80\x09.', 'not a network pickle'), (b'(lp0\n.', 'not a network pickle'), (bytes(1000), 'not a network pickle'),
])
def test_foreign_files(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / 'net.pkl'
    path.write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        network_pickle.load(path)
    assert str(caught.value).startswith(f'{path}: ')


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path, word in ((tmp_path / 'no.pkl', 'no such file'), (tmp_path, 'folder')):
        with pytest.raises(UserError, match=word):
            network_pickle.load(path)


# NVIDIA's own files, by their shape. (Their code is not part of this project, so the looks are given by hand.)

def test_alias_free_networks_are_told_apart() -> None:
    """Both kinds of StyleGAN3's generators have the same class name; the hosts' files don't say of which module."""
    net = networks_stylegan3.Generator(4, 0, 4, 16, 1, channel_base=64, channel_max=4, num_layers=3, num_critical=1)
    _, (meta,), _ = net.__reduce__()
    meta = {key: value for key, value in meta.items() if key != 'module_name'}
    twin = load(dict(G=_Call('torch_utils.persistence', '_reconstruct_persistent_obj', (meta,))))['G']
    assert type(twin) is networks_stylegan3.Generator and twin.init_kwargs == net.init_kwargs


def test_stylegan3_options_are_translated() -> None:
    result = host_dialects.sg3_kwargs('Generator', dict(
        z_dim=1, img_channels=3, mapping_kwargs=dict(num_layers=2), channel_base=64, fused_modconv_default='x'))
    assert result == dict(z_dim=1, img_channels=3, mapping_kwargs=dict(num_layers=2, w_avg_beta=0.998),
                          synthesis_kwargs=dict(channel_base=64, num_fp16_res=4, conv_clamp=256))
    assert host_dialects.sg3_kwargs('Discriminator', dict(conv_clamp=None)) == dict(num_fp16_res=4, conv_clamp=None)


def test_the_file_is_left_as_it_is() -> None:
    """Reading twice gives two independent networks."""
    data = pickle.dumps(dict(G=make_net()))
    first, second = load(data)['G'], load(data)['G']
    first.head.weight.zero_()
    assert second.head.weight.abs().sum() > 0 and copy.deepcopy(second).init_args == (3,)
