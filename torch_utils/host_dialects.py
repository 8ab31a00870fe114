"""What networks of StyleGAN3's networks_stylegan2 recorded, in the words of this project's constructors.

Its classes are ADA's of the same names with other defaults, and its Generator takes the synthesis network's options as
its own. Where a file leaves something to those defaults, the default has to be said here.
"""

import copy
import inspect
from typing import Any

from .safe_unpickler import Record

SG3_MODULE, OUR_MODULE = 'training.networks_stylegan2', 'training.networks'
_SG3_DEFAULTS: dict[str, dict[str, Any]] = {
    'MappingNetwork': {'w_avg_beta': 0.998},
    'SynthesisBlock': {'conv_clamp': 256},
    'SynthesisNetwork': {'num_fp16_res': 4, 'conv_clamp': 256},
    'Discriminator': {'num_fp16_res': 4, 'conv_clamp': 256},
}
_GENERATOR_KEYS = ('z_dim', 'c_dim', 'w_dim', 'img_resolution', 'img_channels', 'mapping_kwargs', 'synthesis_kwargs')
_SET_BY_GENERATOR = ('w_dim', 'img_resolution', 'img_channels')


def is_sg3(record: Record) -> bool:
    """Whether a record's source is StyleGAN3's networks_stylegan2, as released or edited."""
    words = 'update_emas', 'skip_w_avg_update', 'magnitude_ema'     # The last stands in networks_stylegan3 alone.
    return [word in record.source for word in words] == [True, False, False]


def sg3_kwargs(class_name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Our constructor's arguments for the same network: all defaults said, synthesis options in a dict of their own."""
    kwargs = copy.deepcopy(kwargs)
    if class_name == 'Generator':
        loose = {key: kwargs.pop(key) for key in list(kwargs) if key not in _GENERATOR_KEYS}
        synthesis = {**loose, **kwargs.get('synthesis_kwargs', {})}
        kwargs['mapping_kwargs'] = sg3_kwargs('MappingNetwork', kwargs.get('mapping_kwargs', {}))
        kwargs['synthesis_kwargs'] = sg3_kwargs('SynthesisNetwork', synthesis)
        return kwargs
    # How a convolution is fused is not part of the network, and this project's has one way only.
    kwargs.pop('fused_modconv_default', None)
    return {**_SG3_DEFAULTS.get(class_name, {}), **kwargs}


def by_name(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A constructor's arguments, those given by position included: they have the same order in all hosts.

    Raises TypeError if there are too many or one is given twice, as the call itself would.
    """
    own = inspect.signature(cls.__mro__[1].__init__)    # type: ignore[misc]  # Under persistence's wrapper.
    names = [name for name, one in own.parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD][1:]
    if len(args) > len(names) or not kwargs.keys().isdisjoint(names[:len(args)]):
        raise TypeError(f'{cls.__name__} takes other arguments by position')
    return {**dict(zip(names, args)), **kwargs}


def lia_kwargs(kwargs: dict[str, Any], synthesis: Record, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of LIA's Generator around a synthesis network of StyleGAN3's, whose own arguments are `options`.

    The class's name is left out, for LIA takes each host's by default, and ours doesn't have that name in theirs.
    """
    if not is_sg3(synthesis) or synthesis.class_name != 'SynthesisNetwork':
        return kwargs
    recorded = {key: value for key, value in options.items() if key not in _SET_BY_GENERATOR}
    given = dict(kwargs.get('synthesis_kwargs', {}))
    if given.get('class_name') == f'{OUR_MODULE}.SynthesisNetwork':
        del given['class_name']
    return {**kwargs, 'synthesis_kwargs': sg3_kwargs('SynthesisNetwork', {**recorded, **given})}


def our_options(options: dict[Any, Any]) -> dict[Any, Any]:
    """Options that name a class of StyleGAN3's networks_stylegan2 to construct, for ours of that name; others as is."""
    module, _, class_name = str(options['class_name']).rpartition('.')
    if module != SG3_MODULE:
        return options
    rest = {key: value for key, value in options.items() if key != 'class_name'}
    return {'class_name': f'{OUR_MODULE}.{class_name}', **sg3_kwargs(class_name, rest)}
