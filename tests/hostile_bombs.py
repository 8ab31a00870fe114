"""Small pickles that want much memory or time, by name. The assembler is that of hostile_pickles."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from hostile_pickles import (
    call,
    dict_of,
    layer,
    list_of,
    module_state,
    name,
    plain,
    raw,
    record,
    storage,
    tensor,
    text,
    tuple_of,
    whole,
)


def bombs() -> Iterator[tuple[str, bytes]]:
    huge = struct.pack('<Q', 1 << 40)
    for op, label in ((b'\x8e', 'BINBYTES8'), (b'\x8d', 'BINUNICODE8'), (b'\x96', 'BYTEARRAY8'), (b'\x95', 'FRAME')):
        yield f'{label} of a terabyte', whole(op + huge)
        yield f'{label} of 2**64 - 1', whole(op + b'\xff' * 8)
    for op, label in ((b'B', 'BINBYTES'), (b'X', 'BINUNICODE'), (b'T', 'BINSTRING'), (b'\x8b', 'LONG4')):
        yield f'{label} of 2 GB', whole(op + struct.pack('<I', 0x7FFFFFFF))
        yield f'{label} of 4 GB', whole(op + struct.pack('<I', 0xFFFFFFFF))
    yield from _memory_bombs()
    yield from _number_bombs()
    yield from _tensor_bombs()
    yield from _argument_bombs()


def _memory_bombs() -> Iterator[tuple[str, bytes]]:
    many = 1_000_000
    for op in (
        b'\x8f',
        b'}',
        b']',
        b'(',
        b')',
        b'N',
        b'N\x85',
        b'G' + b'\x01' * 8,
        b'}\x94',
        b'](',
        b'cnumpy\nndarray\n',
    ):
        yield f'a million of {op!r}', whole(op * (many // len(op)))
    yield 'a million EasyDicts', whole(name('dnnlib.util', 'EasyDict') + b'\x94' + b'h\0)R' * (many // 4))
    yield (
        'a million Linear layers',
        whole(name('torch.nn.modules.linear', 'Linear') + b'\x94' + b'h\0)\x81' * (many // 4)),
    )
    yield 'memo index of 4 billion', whole(b'Nr\xff\xff\xff\xff')
    yield 'memo indices far apart', whole(b'N' + b''.join(b'r' + struct.pack('<I', 4000 * n) for n in range(100_000)))
    yield 'DUP doubling by lists', whole(b']' + b'2\x86' * 100)
    yield 'DUP doubling by tuples in a dict', whole(dict_of(G_ema=layer(), extra=b'K\x01' + b'2\x86' * 100))
    yield 'doubling in the arguments', whole(dict_of(G_ema=layer(options=dict_of(activation=b'K\x01' + b'2\x86' * 60))))
    yield 'doubling as a name', whole(b'K\x01' + b'2\x86' * 60 + text('x') + b'\x93')
    block = text('x' * 1_000_000)
    yield 'a list of texts as a name', whole(block + b'\x94](' + b'h\0' * 190 + b'e' + text('x') + b'\x93')
    yield (
        'bytes over and over',
        whole(block + b'\x940' + (name('_codecs', 'encode') + b'h\0' + text('latin1') + b'\x86R') * 500),
    )
    array = (
        name('numpy.core.multiarray', '_reconstruct') + tuple_of(name('numpy', 'ndarray'), b'K\0\x85', text('b')) + b'R'
    )
    dtype = call(name('numpy', 'dtype'), text('u1'))
    state = tuple_of(b'K\x01', plain((1_000_000,)), dtype, b'\x89', raw(b'0' * 1_000_000))
    yield 'arrays over and over', whole(state + b'\x940](' + (array + b'h\0b') * 2000 + b'e')
    yield 'one array over and over', whole(state + b'\x940' + array + b'h\0b' * 20_000)
    yield (
        'array larger than its bytes',
        whole(array + tuple_of(b'K\x01', plain((10**6, 10**6)), dtype, b'\x89', raw(b'0')) + b'b'),
    )
    items = list_of(*(plain(n) for n in range(10_000)))
    yield 'sets over and over', whole(items + b'\x940](' + (name('builtins', 'set') + b'h\0\x85R') * 3000 + b'e')
    yield 'deep lists', whole(b']' * 200_000 + b'a' * 199_999)
    yield 'deep dicts', whole((b'}' + text('a')) * 50_000 + b'N' + b's' * 50_000)
    yield 'deep tuples', whole(dict_of(G_ema=b')' + b'\x85' * 200_000))
    yield 'a list in itself', whole(b']\x94h\0a')
    yield 'a dict in itself', whole(dict_of(G_ema=b'}\x94' + text('a') + b'h\0s'))
    yield 'arguments in themselves', whole(dict_of(G_ema=layer(options=b'}\x94' + text('activation') + b'h\0s')))
    yield 'a module in itself', whole(dict_of(G_ema=_linear(b'}\x94' + text('a') + b'h\x01s', memo=True)))


def _linear(modules: bytes, memo: bool = False) -> bytes:
    """A plain torch module as a record; with `memo`, before its state is, as pickle does it."""
    return (
        name('torch.nn.modules.linear', 'Linear')
        + b')\x81'
        + b'q\x01' * memo
        + dict_of(_parameters=b'}', _buffers=b'}', _modules=modules)
        + b'b'
    )


def _number_bombs() -> Iterator[tuple[str, bytes]]:
    long_number = b'\x8b' + struct.pack('<I', 1_000_000) + b'\x7f' * 1_000_000
    yield 'a number of a megabyte', whole(dict_of(G_ema=long_number))
    yield 'a huge number as a key', whole(b'}' + long_number + b'\x94(' + b'h\0N' * 20_000 + b'u')
    yield (
        'huge numbers as a size',
        whole(long_number + b'\x940' + tensor(size=(1,)).replace(plain((1,)), tuple_of(*[b'h\0'] * 15), 1)),
    )
    yield 'a decimal number without end', whole(b'I' + b'9' * 3_000_000 + b'\n')
    yield 'many long decimal numbers', whole((b'L' + b'9' * 4000 + b'L\n0') * 1000)
    modulus = (1 << 61) - 1
    colliding = b''.join(plain(n * modulus) + b'N' for n in range(1, 40_000))
    yield 'keys that collide', whole(b'}(' + colliding + b'u')
    yield 'memo indices that collide', whole(b'N' + b''.join(b'p%d\n' % (n * modulus) for n in range(1, 40_000)))
    yield 'a float without end', whole(b'F' + b'1' * 100_000 + b'\n')
    yield 'no end', b'\x80\x04' + b'N' * 3_000_000
    yield 'a name without end', whole(b'c' + b'x' * 1_000_000)
    yield 'MARKs and POP_MARKs', whole(b'N' * 100 + b'(1' * 1_000_000)


def _tensor_bombs() -> Iterator[tuple[str, bytes]]:
    one = storage(b'\0' * 4, length=1)
    for label, args in {
        'larger than its data': ((10**6, 10**6), (10**6, 1), 0),
        'broadcast without bounds': ((10**6, 10**6), (0, 0), 0),
        'of 2**62': ((2**62,), (0,), 0),
        'beyond 64 bits': ((2**70,), (0,), 0),
        'with a stride beyond all': ((2,), (2**62,), 0),
        'with an offset beyond all': ((1,), (1,), 2**62),
        'of negative size': ((-1,), (1,), 0),
        'with a negative stride': ((1,), (-1,), 0),
        'before its beginning': ((1,), (1,), -1),
        'of 100 dimensions': ((1,) * 100, (1,) * 100, 0),
        'of texts': (('1',), (1,), 0),
        'of floats': ((1.0,), (1,), 0),
        'of a list': ([1], [1], 0),
        'of True': ((True,), (1,), 0),
        'with too few strides': ((1, 1), (1,), 0),
    }.items():
        yield f'tensor {label}', whole(dict_of(G_ema=layer(), a=tensor(one, *args)))
    yield 'storage of an exabyte', whole(dict_of(a=tensor(storage(length=1 << 60))))
    yield 'storage of negative length', whole(dict_of(a=tensor(storage(length=-1))))
    yield 'storage that claims more', whole(dict_of(a=tensor(storage(claimed=1 << 40))))
    yield 'storage as a view', whole(dict_of(a=tensor(storage(view=tuple_of(text('0'), b'K\0', b'K\x04')))))
    yield 'storage of an unknown type', whole(dict_of(a=tensor(storage(kind=b'ctorch\nQInt8Storage\n'))))
    yield 'storage that is a zip', whole(dict_of(a=tensor(b'PK\x03\x04' + b'\0' * 100)))
    block = raw(storage(b'\0' * 4_000_000, length=1_000_000))
    load = name('torch.storage', '_load_from_bytes')
    yield 'one storage over and over', whole(block + b'\x940](' + (load + b'h\0\x85R') * 500 + b'e')
    wide = tensor(one, (4096, 4096), (0, 0))
    network = record(
        'FullyConnectedLayer',
        'x',
        module_state(plain((4096, 4096, False)), _parameters=b'}' + text('weight') + b'h\0s'),
        module_name=text('training.networks'),
    )
    yield 'networks of one broadcast number', whole(wide + b'\x940' + dict_of(G_ema=list_of(*[network] * 200)))
    buffers = b'}(' + b''.join(text(f'b{n}') + b'h\0' for n in range(2000)) + b'u'
    shared = (
        tensor(one, (1,), (1,))
        + b'\x940'
        + _linear(b'}').replace(text('_buffers') + b'}', text('_buffers') + buffers)
        + b'\x940'
    )
    nested = (
        shared
        + b'h\x01\x94'
        + b''.join(
            _linear(b'}(' + text('a') + b'h' + bytes([n]) + text('b') + b'h' + bytes([n]) + b'u') + b'\x94'
            for n in range(2, 12)
        )
    )
    yield 'tensors multiplied by shared modules', whole(nested + b'0' * 10 + dict_of(G_ema=b'h\x0c'))


def _argument_bombs() -> Iterator[tuple[str, bytes]]:
    """Honest-looking networks whose constructors would work without end."""

    def of(class_name: str, module_name: str, **options: Any) -> bytes:
        body = record(class_name, 'x', module_state(options=plain(options)), module_name=text(module_name))
        return whole(dict_of(G_ema=body))

    image = dict(c_dim=0, img_resolution=32, img_channels=3)
    G = dict(z_dim=8, w_dim=8, **image)
    for key, value in {
        'img_resolution': 2**20,
        'z_dim': 10**9,
        'w_dim': 2**20,
        'c_dim': 2**20,
        'img_channels': 2**20,
        'synthesis_kwargs': dict(channel_base=10**9),
        'mapping_kwargs': dict(num_layers=2**20),
    }.items():
        for module in ('training.networks', 'lia_plugin.networks'):
            yield f'Generator of {module} with {key} {value}', of('Generator', module, **{**G, key: value})
    wide = dict(channel_base=2**20, channel_max=2**20)
    yield 'Generator with wide layers', of('Generator', 'training.networks', **G, synthesis_kwargs=wide)
    yield 'Discriminator with wide layers', of('Discriminator', 'training.networks', **image, **wide)
    yield 'kernel without end', of('Generator', 'training.networks', **G, synthesis_kwargs=dict(kernel_size=2**19))
    yield (
        'filter without end',
        of('Generator', 'training.networks', **G, synthesis_kwargs=dict(resample_filter=[1] * 9000)),
    )
    yield (
        'couplings without end',
        of('Generator', 'lia_plugin.networks', **G, mapping_kwargs=dict(phi_kwargs=dict(num_couplings=2**20))),
    )
    yield 'encoder without end', of('Generator', 'lia_plugin.networks', **G, encoder_kwargs=dict(**wide))
    yield (
        'minibatch without end',
        of('Discriminator', 'training.networks', **image, epilogue_kwargs=dict(mbstd_num_channels=2**20)),
    )
    for label, value in {
        'a long text': 'x' * 1_000_000,
        'many texts': ['x' * 900] * 100_000,
        'nothing': None,
        'a dict': {'x': 'y' * 1_000_000},
        'a format': '{0.__class__}' * 50 + '%s' * 100,
        'NaN': float('nan'),
        'infinity': float('inf'),
        'half': 0.5,
        'minus one': -1,
    }.items():
        yield (
            f'architecture {label}',
            of('Generator', 'training.networks', **G, synthesis_kwargs=dict(architecture=value)),
        )
        yield f'activation {label}', of('Generator', 'training.networks', **G, mapping_kwargs=dict(activation=value))
        yield f'w_dim {label}', of('Generator', 'training.networks', **{**G, 'w_dim': value})
    repeated = b'](' + text('x' * 900_000) + b'\x94' + b'h\0' * 100_000 + b'e'
    yield 'a message of gigabytes', whole(dict_of(G_ema=layer(options=dict_of(activation=repeated))))
    yield 'a keyword of megabytes', whole(dict_of(G_ema=layer(options=dict_of(**{'x' * 1_000_000: b'N'}))))
    yield 'a source of megabytes', whole(dict_of(G_ema=record('Net', 'x' * 5_000_000, module_state())))
    yield 'a part of a long name', whole(dict_of(G_ema=layer(_modules=dict_of(**{'x' * 1_000_000: layer()}))))
    yield 'many small networks', whole(dict_of(G_ema=layer(), extra=list_of(*[layer(b'K\x00K\x00\x86')] * 5000)))
