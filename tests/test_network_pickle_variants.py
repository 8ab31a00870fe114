"""Network pickles of other versions and other hands: old torch, NumPy 1, slim dicts, odd memory, LIA of a checkout."""

import copy
import io
import pickle
import warnings
from typing import Any

import hostile_pickles
import numpy as np
import pytest
import torch

import legacy
import lia_plugin.networks
import training.networks
from dnnlib.util import UserError
from torch_utils import host_dialects, network_pickle, persistence, safe_unpickler

IMAGE = dict(c_dim=2, img_resolution=8, img_channels=1)
WIDTH = dict(channel_base=32, channel_max=4)


def make_G() -> Any:
    torch.manual_seed(0)
    G = training.networks.Generator(z_dim=4, w_dim=4, synthesis_kwargs=WIDTH, **IMAGE)
    return G.eval().requires_grad_(False)


def load(content: Any, protocol: int = 4) -> Any:
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
    return legacy.load_network_pkl(io.BytesIO(data))


def assert_same(one: Any, other: Any) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


# Slim files.


def test_a_file_of_g_ema_alone() -> None:
    G = make_G()
    for content in (dict(G_ema=G), dict(G_ema=G, kimg=3, notes=['x']), G):
        data = load(content)
        assert_same(data['G_ema'], G)
        assert data['D'] is None and data['G'] is None and data['training_set_kwargs'] is None
    assert load(dict(G_ema=G, kimg=3))['kimg'] == 3


def test_without_a_generator_one_line_says_so() -> None:
    D = training.networks.Discriminator(**IMAGE, **WIDTH)
    for content, word in (
        (dict(D=D), 'no network G_ema'),
        ({}, 'no network G_ema'),
        ([make_G()], 'holds a list'),
        (3, 'holds a int'),
    ):
        with pytest.raises(UserError, match=word):
            load(content)
    for content in (D, dict(G_ema=D), make_G().mapping):
        with pytest.raises(UserError, match='is no generator'):
            load(content)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_every_protocol_gives_the_same(protocol: int) -> None:
    G = make_G()
    G._init_kwargs['mapping_kwargs'] = dict(lr_multiplier=np.float64(0.01), num_layers=np.int64(8))
    data = load(dict(G_ema=G, D=None, sizes=np.arange(4), kinds={1}), protocol)
    assert_same(data['G_ema'], G)
    assert type(data['G_ema'].init_kwargs.mapping_kwargs['lr_multiplier']) is float and data['kinds'] == {1}


def test_numpy_1_names_its_core_differently() -> None:
    G = make_G()
    G._init_kwargs['mapping_kwargs'] = dict(lr_multiplier=np.float64(0.01))
    data = pickle.dumps(dict(G_ema=G, sizes=np.arange(4.0)), 3)
    assert data.count(b'numpy._core.') >= 2
    result = load(data.replace(b'numpy._core.', b'numpy.core.'))
    assert (
        result['sizes'].tolist() == [0, 1, 2, 3] and result['G_ema'].init_kwargs.mapping_kwargs['lr_multiplier'] == 0.01
    )


# Tensors.

KINDS = dict(Float=torch.float32, Half=torch.float16, Double=torch.float64, BFloat16=torch.bfloat16, Long=torch.int64)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('view', [b'N', b''])
@pytest.mark.parametrize('device', ['cpu', 'cuda:0', 'cuda:17', 'mps:0', 'meta'])
def test_storages_of_any_age_and_place(kind: str, view: bytes, device: str) -> None:
    """Five or six parts of a persistent id; written on whatever device, they come to the CPU."""
    values = torch.tensor([1, 2, 3, 4], dtype=KINDS[kind])
    content = values.view(torch.uint8).numpy().tobytes()
    stream = hostile_pickles.storage(content, f'ctorch\n{kind}Storage\n'.encode(), device=device, view=view)
    loaded = safe_unpickler.loads(hostile_pickles.whole(hostile_pickles.tensor(stream, (2, 2), (1, 2))))
    assert loaded.device.type == 'cpu' and torch.equal(loaded, values.reshape(2, 2).t())


def test_half_precision_weights_become_the_classes_own() -> None:
    G = make_G()
    for small in (copy.deepcopy(G).half(), copy.deepcopy(G).bfloat16(), copy.deepcopy(G).double()):
        twin = load(dict(G_ema=small))['G_ema']
        for name, tensor in small.state_dict().items():
            assert twin.state_dict()[name].dtype == torch.float32 and torch.equal(
                twin.state_dict()[name], tensor.float()
            )
        assert torch.isfinite(twin(torch.ones([1, 4]), torch.eye(2)[:1])).all()


def test_views_and_shared_memory_come_apart() -> None:
    G = make_G()
    big = torch.randn([20, 4, 4]).transpose(1, 2)
    for index, part in enumerate([G.mapping.fc0, G.mapping.fc1]):
        part.bias = torch.nn.Parameter(big[index, 1], requires_grad=False)  # Strided, far inside a larger storage.
    G.mapping.fc3.weight = G.mapping.fc2.weight
    twin = load(dict(G_ema=G))['G_ema']
    assert_same(twin, G)
    twin.mapping.fc3.weight.zero_()
    twin.mapping.fc0.bias.zero_()
    assert twin.mapping.fc2.weight.abs().sum() > 0 and twin.mapping.fc1.bias.abs().sum() > 0


def test_one_network_under_two_names_stays_one() -> None:
    G = make_G()
    data = load(dict(G=G, G_ema=G))
    assert data['G'] is data['G_ema']


# Networks of other hosts, by the look of their records. (Those that the hosts really make: test_host_fidelity.)


class _Meta:
    """Pickles as a persistent object with changed meta data."""

    def __init__(self, net: Any, **changes: Any) -> None:
        function, (meta,), _ = net.__reduce__()
        self.parts = function, ({key: value for key, value in {**meta, **changes}.items() if value is not ...},), None

    def __reduce__(self) -> Any:
        return self.parts


SG3_LIKE = 'def forward(self, update_emas=False): ...'


def lia_of_a_checkout(child: str, **synthesis_kwargs: Any) -> Any:
    """LIA's generator as a checkout pickles it: no module names, and somebody else's synthesis network inside."""
    torch.manual_seed(0)
    G: Any = lia_plugin.networks.Generator(z_dim=4, w_dim=4, synthesis_kwargs=WIDTH, **IMAGE)
    G.eval().requires_grad_(False)
    G._init_kwargs['synthesis_kwargs'] = {**WIDTH, **synthesis_kwargs}
    G._modules['synthesis'] = _Meta(G.synthesis, module_src=child, module_name=...)
    return _Meta(G, module_name=...)


@pytest.mark.parametrize('named', [{}, {'class_name': 'training.networks_stylegan2.SynthesisNetwork'}])
def test_lia_of_stylegan3_has_that_hosts_defaults(named: dict[str, str]) -> None:
    with pytest.warns(UserWarning, match='SynthesisNetwork is neither'):  # The text above isn't NVIDIA's.
        G = load(dict(G_ema=lia_of_a_checkout(SG3_LIKE, **named)))['G_ema']
    assert G.synthesis.num_fp16_res == 4 and G.synthesis.b8.conv1.conv_clamp == 256 and G.synthesis.b8.use_fp16
    assert G.init_kwargs.synthesis_kwargs == {**WIDTH, 'num_fp16_res': 4, 'conv_clamp': 256}
    with pytest.warns(UserWarning, match='neither'):
        G = load(dict(G_ema=lia_of_a_checkout(SG3_LIKE, conv_clamp=None, num_fp16_res=0, **named)))['G_ema']
    assert G.synthesis.b8.conv1.conv_clamp is None and not G.synthesis.b8.use_fp16


def test_lia_of_ada_keeps_its_own() -> None:
    with pytest.warns(UserWarning, match='neither'):
        G = load(dict(G_ema=lia_of_a_checkout('def forward(self, skip_w_avg_update): ...')))['G_ema']
    assert G.synthesis.num_fp16_res == 0 and G.synthesis.b8.conv1.conv_clamp is None
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load(dict(G_ema=lia_of_a_checkout(training.networks.Generator._orig_module_src)))


def test_stylegan3s_arguments_by_position() -> None:
    D = training.networks.Discriminator(**IMAGE, **WIDTH, num_fp16_res=2, conv_clamp=256)
    D._init_args, D._init_kwargs = (2, 8, 1, 'resnet', 32, 4, 2), {}
    with pytest.warns(UserWarning, match='neither'):
        twin = load(dict(G_ema=make_G(), D=_Meta(D, module_src=SG3_LIKE, module_name=...)))['D']
    assert twin.init_kwargs == dict(IMAGE, **WIDTH, architecture='resnet', num_fp16_res=2, conv_clamp=256)
    for args in ((1,) * 13, (2, 8, 1, 'resnet', 32, 4, 2, 256)):
        D._init_args, D._init_kwargs = args, dict(img_resolution=8)
        with pytest.raises(UserError, match='by position'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            load(dict(G_ema=make_G(), D=_Meta(D, module_src=SG3_LIKE, module_name=...)))


def test_named_classes_of_stylegan3_become_ours() -> None:
    options = host_dialects.our_options({'class_name': 'training.networks_stylegan2.Discriminator', 'conv_clamp': 3})
    assert options == {'class_name': 'training.networks.Discriminator', 'conv_clamp': 3, 'num_fp16_res': 4}
    same = {'class_name': 'training.networks.Discriminator', 'conv_clamp': 3}
    assert host_dialects.our_options(same) is same
    with pytest.raises(UserError, match='does not have it'):
        load(dict(G_ema=make_G(), extra={'class_name': 'training.networks_stylegan2.torch'}))


def test_a_name_that_meant_something_in_another_process_only() -> None:
    """Unpickled from its source in a checkout and pickled again: such a module's name is made up."""
    G = make_G()
    for name in ('_imported_module_0123456789abcdef', None, ...):
        assert_same(load(dict(G_ema=_Meta(G, module_name=name)))['G_ema'], G)
    source = 'from torch_utils import persistence\n\n@persistence.persistent_class\nclass Thing:\n    pass\n'
    cls = persistence.persistent_class(vars(persistence._src_to_module(source))['Thing'])
    assert cls._orig_module_name is None


def test_an_edited_source_is_warned_of_once() -> None:
    source = training.networks.Generator._orig_module_src + '\n# Edited.\n'
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        load(
            dict(
                G=_Meta(make_G(), module_src=source, module_name=...),
                G_ema=_Meta(make_G(), module_src=source, module_name=...),
            )
        )
    assert len(caught) == 1 and "neither NVIDIA's release nor ours" in str(caught[0].message)


def test_networks_cannot_multiply_by_sharing_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    G = make_G()
    twins = [copy.copy(G) for _ in range(5)]  # Five objects of the same tensors.
    assert len(load(dict(G_ema=G, all=twins))['all']) == 5
    monkeypatch.setattr(network_pickle, '_MAX_NETWORKS', 5)
    with pytest.raises(UserError, match='much more than its own size'):
        load(dict(G_ema=G, all=twins))
