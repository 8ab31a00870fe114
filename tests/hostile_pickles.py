"""Pickles that mean harm, by name: every known way, written opcode by opcode. None of them is ever run by `pickle`."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Iterator
from typing import Any

# An assembler: each function gives the opcodes that leave one object on the stack.


def text(value: str) -> bytes:
    data = value.encode('utf-8', 'surrogatepass')
    return b'X' + struct.pack('<I', len(data)) + data


def raw(value: bytes) -> bytes:
    return b'B' + struct.pack('<I', len(value)) + value


def name(module: str, attribute: str) -> bytes:
    return f'c{module}\n{attribute}\n'.encode()


def stacked_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b'\x93'


def tuple_of(*items: bytes) -> bytes:
    return b'(' + b''.join(items) + b't'


def list_of(*items: bytes) -> bytes:
    return b'](' + b''.join(items) + b'e'


def dict_of(**items: bytes) -> bytes:
    return b'}(' + b''.join(text(key) + value for key, value in items.items()) + b'u'


def call(function: bytes, *args: bytes) -> bytes:
    return function + tuple_of(*args) + b'R'


def plain(value: Any) -> bytes:
    """Any harmless value, as Python writes it, but without the memo, which is the caller's."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 2)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()[2:-1]


def whole(body: bytes, protocol: int = 4) -> bytes:
    return b'\x80' + bytes([protocol]) + body + b'.'


def record(class_name: str, source: str, state: bytes = b'}', **more: bytes) -> bytes:
    """A persistent object, as the hosts write them."""
    meta = dict_of(
        type=text('class'), version=b'K\x06', module_src=text(source), class_name=text(class_name), state=state, **more
    )
    return call(name('torch_utils.persistence', '_reconstruct_persistent_obj'), meta)


def module_state(init: bytes = b')', options: bytes = b'}', **kinds: bytes) -> bytes:
    return dict_of(
        _init_args=init,
        _init_kwargs=options,
        training=b'\x89',
        **{'_parameters': b'}', '_buffers': b'}', '_modules': b'}', **kinds},
    )


MAGIC = (
    pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    + pickle.dumps(1001, 2)
    + pickle.dumps(dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4)), 2)
)


def storage(
    content: bytes = b'\0' * 16,
    kind: bytes = b'ctorch\nFloatStorage\n',
    key: bytes = text('0'),
    device: str = 'cpu',
    length: int = 4,
    claimed: int | None = None,
    view: bytes = b'N',
) -> bytes:
    """torch.save's old stream of one storage. `view` empty: without that entry, as the oldest versions wrote it."""
    identity = tuple_of(text('storage'), kind, key, text(device), plain(length), view) + b'Q'
    claim = length if claimed is None else claimed
    return MAGIC + whole(identity, 2) + whole(list_of(key), 2) + struct.pack('<q', claim) + content


def tensor(stream: bytes | None = None, size: Any = (4,), stride: Any = (1,), offset: Any = 0) -> bytes:
    loaded = call(name('torch.storage', '_load_from_bytes'), raw(storage() if stream is None else stream))
    return call(
        name('torch._utils', '_rebuild_tensor_v2'),
        loaded,
        plain(offset),
        plain(size),
        plain(stride),
        b'\x89',
        call(name('collections', 'OrderedDict')),
    )


def layer(init: bytes = b'K\x01K\x01\x86', options: bytes = b'}', **kinds: bytes) -> bytes:
    """A FullyConnectedLayer of ours, complete unless `kinds` says otherwise."""
    weights = dict_of(weight=tensor(size=(1, 1), stride=(1, 1)), bias=tensor(size=(1,)))
    state = module_state(init, options, **{'_parameters': weights, **kinds})
    return record('FullyConnectedLayer', 'x', state, module_name=text('training.networks'))


# Functions that a file would like to call.

CALLS = """
os.system os.popen os.execv os.remove os._exit os.kill posix.system nt.system subprocess.Popen subprocess.run
subprocess.check_output commands.getoutput pty.spawn builtins.eval builtins.exec builtins.compile builtins.getattr
builtins.setattr builtins.open builtins.__import__ builtins.breakpoint builtins.input builtins.print builtins.type
builtins.object builtins.map builtins.dict builtins.list builtins.bytearray __builtin__.eval __builtin__.file
operator.attrgetter operator.methodcaller operator.itemgetter functools.partial functools.reduce itertools.starmap
importlib.import_module importlib.machinery.SourceFileLoader imp.load_source runpy.run_path runpy._run_code
code.interact codecs.decode codecs.open _codecs.lookup _codecs.decode io.open io.FileIO _io.FileIO pathlib.Path
shutil.rmtree shutil.copyfile types.FunctionType types.CodeType types.ModuleType marshal.loads pickle.loads
_pickle.loads copyreg._reconstructor copyreg.__newobj__ ctypes.CDLL socket.create_connection urllib.request.urlopen
urllib.request.urlretrieve webbrowser.open timeit.timeit cProfile.run pdb.run trace.Trace bdb.Bdb pydoc.locate
pydoc.pipepager logging.config.fileConfig asyncio.create_subprocess_shell multiprocessing.Process threading.Thread
signal.signal gc.get_objects sys.exit sys.settrace sys.modules sys.path weakref.finalize atexit.register
ast.literal_eval sqlite3.connect tempfile.mktemp zipimport.zipimporter torch.load torch.save torch.serialization.load
torch.jit.load torch.hub.load torch.hub.download_url_to_file torch.hub.load_state_dict_from_url
torch.utils.cpp_extension.load_inline torch.utils.collect_env.run torch.utils.model_zoo.load_url
torch.ops.load_library torch._utils._rebuild_parameter_with_state torch._utils._rebuild_device_tensor_from_numpy
torch._utils._import_dotted_name torch._tensor._rebuild_from_type_v2 torch.distributed.rpc.rpc_sync
torch._inductor.codecache.compile_file torch.nn.Module torch.FloatStorage torch.storage.UntypedStorage
torch.storage.TypedStorage.from_file torch.from_file torch.package.PackageImporter
torch.testing._internal.common_utils.shell numpy.load numpy.save numpy.fromfile numpy.memmap
numpy.testing._private.utils.runstring numpy.testing.rundocs numpy.distutils.exec_command.exec_command
numpy.f2py.compile numpy.lib.npyio.DataSource numpy.lib.format.read_array numpy.core.multiarray.fromfile
numpy._core.multiarray._reconstruct.__globals__ numpy.ctypeslib.load_library scipy.io.loadmat PIL.Image.open
click.launch click.edit requests.get joblib.load dill.loads cloudpickle.loads dnnlib.util.call_func_by_name
dnnlib.util.get_obj_by_name dnnlib.util.construct_class_by_name dnnlib.util.get_module_from_obj_name
dnnlib.util.open_url dnnlib.util.Logger dnnlib.util.atomic_write dnnlib.util.EasyDict.update dnnlib.util.sys.modules
dnnlib.EasyDict torch_utils.persistence._src_to_module torch_utils.persistence.import_hook
torch_utils.persistence._module_to_src torch_utils.persistence.exec torch_utils.persistence.persistent_class
torch_utils.persistence.inspect.os.system torch_utils.custom_ops.get_plugin torch_utils.network_pickle.save
torch_utils.network_pickle._unpickle_trusting torch_utils.safe_unpickler.loads legacy.load_network_pkl
training.networks.Generator lia_plugin.files.os.system collections.OrderedDict.__init__.__globals__
collections.namedtuple collections._sys.modules torch.storage.io.BytesIO torch.storage._load_from_bytes.__globals__
torch._utils.sys.exit torch._utils._rebuild_tensor_v2.__code__
""".split()

LOOK_ALIKES = [
    ('оs', 'system'),
    ('torch._utіls', '_rebuild_tensor_v2'),
    ('torch.storage\u200b', '_load_from_bytes'),
    ('ｔorch._utils', '_rebuild_parameter'),
    ('collections', 'ＯrderedDict'),
    ('torch._utils', '_rebuild_tensor_v2\u0301'),
    ('torch._utils ', '_rebuild_tensor_v2'),
    ('collections\0', 'OrderedDict'),
    ('dnnlib.util', 'EasyDict\x1b[2J'),
    ('torch\u2024_utils', '_rebuild_parameter'),
    ('\u202esliu_.hcrot', 'x'),
]


def calls(command: str) -> Iterator[tuple[str, bytes]]:
    """Each function in each way that pickle can call one."""
    arg = text(command)
    for dotted in CALLS:
        module, _, attribute = dotted.rpartition('.')
        target = name(module, attribute)
        yield f'call {dotted}', whole(dict_of(G_ema=call(target, arg)))
        yield f'call {dotted}, stacked name', whole(dict_of(G_ema=call(stacked_name(module, attribute), arg)))
        outer, _, inner = module.rpartition('.')
        if outer:
            yield f'call {dotted}, dotted name', whole(call(stacked_name(outer, f'{inner}.{attribute}'), arg))
        yield f'INST {dotted}', whole(b'(' + arg + f'i{module}\n{attribute}\n'.encode())
        yield f'OBJ {dotted}', whole(b'(' + target + arg + b'o')
        yield f'NEWOBJ {dotted}', whole(target + arg + b'\x85\x81')
        yield f'NEWOBJ_EX {dotted}', whole(target + arg + b'\x85}\x92')
    for module, attribute in LOOK_ALIKES:
        yield f'look-alike {ascii(module)} {ascii(attribute)}', whole(call(stacked_name(module, attribute), arg))
        yield f'look-alike name {ascii(module)} {ascii(attribute)}', whole(call(name(module, attribute), arg))
    for number, code in enumerate((b'\x82\x01', b'\x83\x01\0', b'\x84\x01\0\0\0')):
        yield f'EXT{2**number}', whole(code + arg + b'\x85R')


def hidden(command: str) -> Iterator[tuple[str, bytes]]:
    """One forbidden call, in every place of a snapshot where a reader could meet it late."""
    bad = call(name('os', 'system'), text(command))
    source = f'import os\nos.system({command!r})\nclass FullyConnectedLayer: pass\n'
    places = {
        'a key of the dict': b'}' + bad + b'Ns',
        'training_set_kwargs': dict_of(G_ema=layer(), training_set_kwargs=bad),
        'inside training_set_kwargs': dict_of(G_ema=layer(), training_set_kwargs=dict_of(path=bad)),
        'augment_pipe': dict_of(G_ema=layer(), augment_pipe=bad),
        'D': dict_of(G_ema=layer(), D=bad),
        'init_args': dict_of(G_ema=layer(tuple_of(bad, b'K\x01'))),
        'init_kwargs': dict_of(G_ema=layer(options=dict_of(activation=bad))),
        'a parameter': dict_of(G_ema=layer(_parameters=dict_of(weight=bad))),
        'a submodule': dict_of(G_ema=layer(_modules=dict_of(fc=bad))),
        'an extra entry': dict_of(G_ema=layer(), extra=bad),
        'hooks of a tensor': dict_of(a=tensor()[:-3] + bad + b'tR'),
        'a storage': dict_of(a=tensor(MAGIC + whole(bad, 2))),
        'keys of a storage': dict_of(a=tensor(storage().replace(whole(list_of(text('0')), 2), whole(bad, 2)))),
        'the kind of a storage': dict_of(a=tensor(storage(kind=b'cos\nsystem\n'))),
        'the key of a storage': dict_of(a=tensor(storage(key=bad))),
        'a storage inside a storage': dict_of(
            a=tensor(MAGIC + whole(call(name('torch.storage', '_load_from_bytes'), raw(whole(bad))), 2))
        ),
        'thrown away': bad + b'0' + dict_of(G_ema=layer()),
        'before a mark': bad + b'(1' + b'}',
        'the memo': bad + b'\x940h\x00',
        'state of an EasyDict': call(name('dnnlib.util', 'EasyDict')) + bad + b'b',
        'meta of a record': record('Net', source, bad),
        'a dtype': call(name('numpy', 'dtype'), bad),
    }
    for place, body in places.items():
        yield f'hidden in {place}', whole(body)
    yield 'hidden after the end', whole(dict_of(a=b'N')) + whole(bad)
    for class_name in ('Net', 'FullyConnectedLayer.__init__', 'os.system', '__builtins__', 'torch', 'persistence', ''):
        for module_name in (
            None,
            'training.networks',
            'os',
            'builtins',
            'training.networks.torch',
            '_imported_module_1',
        ):
            more = {} if module_name is None else {'module_name': text(module_name)}
            yield (
                f'source with effects: {class_name!r} of {module_name}',
                whole(dict_of(G_ema=record(class_name, source, module_state(), **more))),
            )
    complete = layer().replace(text('x'), text(source), 1)
    yield 'a complete layer whose source has effects', whole(dict_of(G_ema=complete))
    for word in ('G\u0435nerator', 'training.netw\u043erks'):
        yield f'look-alike class {ascii(word)}', whole(dict_of(G_ema=record(word, source, module_state())))
        yield (
            f'look-alike module {ascii(word)}',
            whole(dict_of(G_ema=record('Generator', source, module_state(), module_name=text(word)))),
        )
    for key in ('class_name', 'func_name'):
        for value in (
            'os.system',
            'subprocess.Popen',
            'builtins.exec',
            'dnnlib.util.open_url',
            'training.networks.torch',
            'training.networks.persistence.sys.exit',
            'training.networks_stylegan2.torch',
            'lia_plugin.networks.dnnlib',
            'training.dataset.ImageFolderDataset.__init__',
            'training.networks.normalize_2nd_moment',
            '.',
            '',
        ):
            options = dict_of(**{key: text(value), 'args': text(command)})
            yield f'{key} {value} in the arguments', whole(dict_of(G_ema=layer(options=options)))
            yield f'{key} {value} in an extra entry', whole(dict_of(G_ema=layer(), extra=list_of(options)))
            yield f'{key} {value} for the augmentation', whole(dict_of(G_ema=layer(), augment_pipe=options))
    for key in ('__setstate__', '__reduce__', '__class__', '__dict__', '__getattr__', '__init_subclass__'):
        for target in (
            name('dnnlib.util', 'EasyDict'),
            call(name('dnnlib.util', 'EasyDict')),
            name('collections', 'OrderedDict'),
            name('torch._utils', '_rebuild_parameter'),
            text('x'),
            tensor(),
            b'K\x01',
            b']',
        ):
            yield f'BUILD {key} on {target[:30]!r}', whole(target + dict_of(**{key: bad}) + b'b')
            yield (
                f'BUILD slots {key} on {target[:30]!r}',
                whole(target + b'N' + dict_of(**{key: name('os', 'system')}) + b'\x86b'),
            )
    for code in (
        text('os.system') + b'Q',
        b'Pos.system\n',
        tuple_of(text('storage'), name('os', 'system')) + b'Q',
        b'\x97',
        b'\x98',
    ):
        yield f'outside object {code[:12]!r}', whole(code)


def harmful(command: str) -> dict[str, bytes]:
    """Name → file. `command` is what those that run a shell command would run."""
    files: dict[str, bytes] = {}
    for source in (calls(command), hidden(command)):
        for label, data in source:
            assert label not in files, f'two files are called {label}'
            files[label] = data
    return files
