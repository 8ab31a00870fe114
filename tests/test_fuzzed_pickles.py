"""Random pickles, by hypothesis: made of random instructions, or of a real snapshot's instructions rearranged.

`LIA_FUZZ_EXAMPLES=100000 python -m pytest -s -o timeout=0 tests/test_fuzzed_pickles.py` looks longer, at other examples
each time, and prints what it met.
"""

import codecs
import collections
import importlib
import io
import os
import pickle
import pickletools
import sys
import time
import warnings
from typing import Any

import hostile_pickles
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import training.networks
from dnnlib.util import UserError
from torch_utils import network_pickle

EXAMPLES = int(os.environ.get('LIA_FUZZ_EXAMPLES', '0'))
fuzz = settings(
    max_examples=EXAMPLES or 250,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
HARMFUL = ('exec', 'compile', 'os.', 'subprocess.', 'socket.', 'ctypes.', 'pickle.', 'marshal.', 'import', 'shutil.')
outcomes: collections.Counter[str] = collections.Counter()
watched: list[list[str]] = []  # What happens during a reading goes to the last list.


@pytest.fixture(scope='module', autouse=True)
def watch() -> Any:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watched and (event.startswith(HARMFUL) or event == 'open') and event not in ('os.listdir', 'os.scandir'):
            watched[-1].append(f'{event} {str(args)[:100]}')

    network_pickle.load(io.BytesIO(small_snapshot()))  # What reading imports is there before the watch begins.
    for name in network_pickle.KNOWN_MODULES:
        importlib.import_module(name)
    codecs.lookup('raw_unicode_escape')     # Protocol 0's, which Python loads when it meets it.
    sys.addaudithook(hook)
    yield
    if EXAMPLES:
        print('\n' + '\n'.join(f'{count:8d} {outcome}' for outcome, count in outcomes.most_common()))


def small_snapshot() -> bytes:
    torch.manual_seed(0)
    G = training.networks.Generator(
        z_dim=2,
        c_dim=0,
        w_dim=2,
        img_resolution=4,
        img_channels=1,
        mapping_kwargs=dict(num_layers=1),
        synthesis_kwargs=dict(channel_base=8, channel_max=2),
    )
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', path='x.zip')
    return pickle.dumps(dict(G_ema=G.eval().requires_grad_(False), training_set_kwargs=kwargs, kimg=1.5), 4)


def read(data: bytes) -> None:
    """The contract: a dict, or one line; soon; and nothing else happens."""
    started = time.process_time()
    watched.append([])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert isinstance(network_pickle.load(io.BytesIO(data)), dict)
        outcome = 'a dict'
    except UserError as err:
        message = str(err)
        assert message.startswith('<stream>: ') and message.isprintable() and len(message) < 900
        outcome = ' '.join(message.split()[1:6])
    finally:
        events = watched.pop()
    outcomes[outcome] += 1
    assert not events and time.process_time() - started < 10


# Random instructions.

GLOBALS = [
    ('torch_utils.persistence', '_reconstruct_persistent_obj'),
    ('dnnlib.util', 'EasyDict'),
    ('collections', 'OrderedDict'),
    ('torch._utils', '_rebuild_parameter'),
    ('torch._utils', '_rebuild_tensor_v2'),
    ('torch.storage', '_load_from_bytes'),
    ('torch', 'Size'),
    ('numpy', 'dtype'),
    ('numpy', 'ndarray'),
    ('_codecs', 'encode'),
    ('numpy.core.multiarray', 'scalar'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('numpy._core.numeric', '_frombuffer'),
    ('builtins', 'set'),
    ('torch.nn.modules.linear', 'Linear'),
    ('os', 'system'),
    ('builtins', 'getattr'),
]
words = st.sampled_from(
    [
        'G_ema',
        'D',
        'class_name',
        'module_src',
        'state',
        'type',
        'class',
        'version',
        'module_name',
        '_init_args',
        '_init_kwargs',
        '_modules',
        '_parameters',
        '_buffers',
        'training',
        'weight',
        'bias',
        'training.networks',
        'FullyConnectedLayer',
        'Generator',
        'os.system',
        'latin1',
        'f4',
        'u1',
        '<',
        'storage',
        'cpu',
        '',
    ]
)
values = st.one_of(
    words.map(hostile_pickles.text),
    st.sampled_from(GLOBALS).map(lambda pair: hostile_pickles.name(*pair)),
    st.one_of(
        st.integers(-3, 8), st.integers(-(2**70), 2**70), st.floats(), st.binary(max_size=20), st.text(max_size=9)
    ).map(hostile_pickles.plain),
    st.sampled_from(
        [b']', b'}', b')', b'\x8f', b'N', b'\x88', b'\x89', hostile_pickles.layer(), hostile_pickles.tensor()]
    ),
)
SINGLE = [bytes([code]) for code in b'.012(tldaeusRbQ\x81\x82\x85\x86\x87\x90\x91\x92\x93\x94\x97oi']
instructions = st.one_of(
    values,
    values,
    st.sampled_from(SINGLE),
    st.integers(0, 5).map(lambda index: b'h' + bytes([index])),
    st.integers(0, 5).map(lambda index: b'q' + bytes([index])),
    st.binary(min_size=1, max_size=6),
)


@fuzz
@given(st.lists(instructions, max_size=40).map(b''.join))
def test_random_instructions(body: bytes) -> None:
    read(b'\x80\x04' + body + b'.')


# Structures that stand where they belong, with random content.

trees = st.recursive(
    values,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: hostile_pickles.tuple_of(*items)),
        st.lists(inner, max_size=4).map(lambda items: hostile_pickles.list_of(*items)),
        st.dictionaries(words, inner, max_size=5).map(lambda items: hostile_pickles.dict_of(**items)),
        st.tuples(st.sampled_from(GLOBALS), st.lists(inner, max_size=6)).map(
            lambda pair: hostile_pickles.call(hostile_pickles.name(*pair[0]), *pair[1])
        ),
        st.dictionaries(
            st.sampled_from(['_init_args', '_init_kwargs', '_modules', '_parameters', '_buffers', 'training']), inner
        ).map(lambda state: hostile_pickles.record('FullyConnectedLayer', 'x', hostile_pickles.dict_of(**state))),
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1] + b'b'),
    ),
    max_leaves=12,
)


@fuzz
@given(st.dictionaries(st.sampled_from(['G_ema', 'G', 'D', 'augment_pipe', 'training_set_kwargs', 'extra']), trees))
def test_random_structures(content: dict[str, bytes]) -> None:
    read(hostile_pickles.whole(hostile_pickles.dict_of(**content)))


# A real snapshot, rearranged.

SNAPSHOT = small_snapshot()
STARTS = [position for _, _, position in pickletools.genops(SNAPSHOT)] + [len(SNAPSHOT)]
PARTS = [SNAPSHOT[a:b] for a, b in zip(STARTS, STARTS[1:])]
changes = st.tuples(
    st.sampled_from(['drop', 'double', 'move', 'replace', 'insert', 'flip']),
    st.integers(2, len(PARTS) - 2),
    st.integers(0, len(PARTS) - 1),
    instructions,
)


@fuzz
@given(st.lists(changes, min_size=1, max_size=4))
def test_rearranged_snapshots(edits: list[tuple[str, int, int, bytes]]) -> None:
    parts = list(PARTS)
    for kind, where, other, instruction in edits:
        old = parts[where % len(parts)]
        new = {
            'drop': b'',
            'double': old + old,
            'move': PARTS[other],
            'replace': instruction,
            'insert': old + instruction,
            'flip': bytes([*old[:-1], old[-1] ^ (1 << other % 8)]) if old else b'',
        }[kind]
        parts[where % len(parts)] = new
    read(b''.join(parts))
