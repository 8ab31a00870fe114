"""φ for an existing StyleGAN generator: stage 1 without training it (method: Zhu et al. 2022; the fit is `phi_fit`).

mode='replace'  φ is fitted to the w of the old mapping network and takes its place: y is w, z is N(0, I). Pictures come
                from the same distribution, as far as φ has learned it, but another one belongs to each z.
mode='front'    φ stands before the whole old mapping network and starts as the identity: every z gives the very picture
                that it gave. What an encoder finds is then a code of the entangled, z-like kind, until φ is trained.

Networks are told by what they have (`mapping`, `synthesis`, …), never by class: a host's live in modules of no name.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from lia_plugin import host
from lia_plugin.host import UserError
from lia_plugin.networks import Generator
from lia_plugin.phi_fit import Fit, Fitted, Labels, OldMapping, fit_phi
from torch_utils import misc

MODES = ('replace', 'front')
GENERATOR_KEYS = ('z_dim', 'c_dim', 'w_dim', 'img_resolution', 'img_channels')
FACTS = (*GENERATOR_KEYS, 'num_ws', 'mapping', 'synthesis')
ALIAS_FREE = 'training.networks_stylegan3'
LR_MULTIPLIER = 0.01  # As in a φ that is trained from the beginning, so that stage 1 can go on with it.
SAME_PICTURE = 1e-3  # Of a picture's standard deviation: what two implementations of one network may differ by.


def has_phi(G: Any) -> bool:
    """Whether a generator is LIA's."""
    return getattr(getattr(G, 'mapping', None), 'phi', None) is not None


def is_alias_free(G: Any) -> bool:
    """Whether a generator's synthesis network is StyleGAN3's, which begins with Fourier features."""
    return hasattr(G.synthesis, 'input')


def check_network(G: Any, name: str) -> None:
    """UserError, one line, for a generator that φ can't be attached to."""
    if has_phi(G):
        raise UserError(f'{name}: has its φ already; train.py --stage=encoder --resume={name} gives it an encoder')
    missing = next((fact for fact in FACTS if not hasattr(G, fact)), None)
    if missing is not None:
        raise UserError(f'{name}: no StyleGAN generator: it has no {missing}')
    recorded = all(hasattr(part, 'init_kwargs') for part in (G, G.mapping))
    if not recorded or len(G.init_args) > len(GENERATOR_KEYS) or G.mapping.init_args:
        raise UserError(f'{name}: its arguments are not recorded as StyleGAN2 and StyleGAN3 record theirs')
    if getattr(G.mapping, 'w_avg', None) is None:
        raise UserError(f'{name}: its mapping network has no mean of w (w_avg), which truncation needs')
    z, c = torch.ones([2, G.z_dim]), torch.eye(G.c_dim)[[0, -1]] if G.c_dim else None
    was_training = G.mapping.training
    with torch.no_grad():
        ws = G.mapping.eval()(z, c)
    G.mapping.train(was_training)
    if list(ws.shape) != [2, G.num_ws, G.w_dim] or not torch.equal(ws, ws[:, :1].expand_as(ws)):
        raise UserError(f'{name}: its mapping network gives each layer a w of its own; φ can stand for one w only')


def lia_kwargs(G: Any, mode: str = 'replace', fit: Fit | None = None) -> dict[str, Any]:
    """Arguments of lia_plugin.networks.Generator for a network with φ attached, without those of a loop's data."""
    fit = fit or Fit()
    synthesis = synthesis_kwargs(G)
    alias_free = is_alias_free(G)
    if alias_free:
        synthesis['class_name'] = f'{ALIAS_FREE}.SynthesisNetwork'
    phi: dict[str, Any] = dict(
        num_couplings=fit.couplings, hidden_features=fit.hidden or G.w_dim, coupling='affine',
        lr_multiplier=LR_MULTIPLIER, shift_activation='linear', zero_init=True,
    )  # fmt: skip
    mapping: dict[str, Any] = dict(num_layers=0, w_avg_beta=G.mapping.w_avg_beta, phi_kwargs=phi)
    old = host.plain(dict(G.mapping.init_kwargs))
    if mode == 'replace':
        phi.update(y_activation=_last_activation(G.mapping, old), standardize=True)
    else:
        drop = (*GENERATOR_KEYS, 'num_ws', 'w_avg_beta')
        mapping['base_kwargs'] = {k: v for k, v in old.items() if k not in drop}
        if alias_free:
            mapping['base_kwargs']['class_name'] = f'{ALIAS_FREE}.MappingNetwork'
    # Where φ stands in the mapping's place, y is w.
    z_dim = G.w_dim if mode == 'replace' else G.z_dim
    return dict(z_dim=z_dim, w_dim=G.w_dim, mapping_kwargs=mapping, synthesis_kwargs=synthesis)


def synthesis_kwargs(G: Any) -> dict[str, Any]:
    """Arguments of a generator's synthesis network, which hosts keep in a dict of their own or among G's."""
    said = host.plain(dict(G.init_kwargs))
    loose = {k: v for k, v in said.items() if k not in (*GENERATOR_KEYS, 'mapping_kwargs', 'synthesis_kwargs')}
    kwargs = {**loose, **(said.get('synthesis_kwargs') or {})}
    return kwargs if is_alias_free(G) else host.said_precision(G.synthesis, kwargs)


def _last_activation(mapping: Any, kwargs: dict[str, Any]) -> str:
    """What φ has to undo first: 'lrelu' or nothing that it could."""
    undone = kwargs.get('activation', 'lrelu') == 'lrelu' and getattr(mapping, 'num_layers', 0) > 0
    return 'lrelu' if undone else 'linear'


def build(G: Any, kwargs: dict[str, Any], name: str, seed: int = 0) -> Generator:
    """The same generator with a φ that has learned nothing yet, of arguments that `lia_kwargs` gave.

    UserError if this host's classes don't take the arguments and weights: the file's code is another.
    """
    image = dict(img_resolution=G.img_resolution, img_channels=G.img_channels)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = Generator(c_dim=G.c_dim, **image, **kwargs).eval().requires_grad_(False)
        misc.copy_params_and_buffers(G.synthesis, new.synthesis, require_all=True)
        new.mapping.w_avg.copy_(G.mapping.w_avg)
        if new.mapping.base is not None:
            misc.copy_params_and_buffers(G.mapping, new.mapping.base, require_all=True)
    except Exception as error:  # Foreign arguments can fail anywhere, and each host says so in its own way.
        reason = host.one_line(error)
        raise UserError(f'{name}: cannot be rebuilt from the classes of {host.NAME} ({reason})') from error
    _check_pictures(G, new, name)
    return new


@torch.no_grad()
def _check_pictures(G: Any, new: Generator, name: str) -> None:
    """UserError if the synthesis network isn't what the class of that name here computes."""
    noise = torch.randn([1, 1, G.w_dim], generator=torch.Generator().manual_seed(0))
    ws = (G.mapping.w_avg + noise).repeat([1, G.num_ws, 1])
    theirs, ours = (net.synthesis(ws, noise_mode='const', force_fp32=True) for net in (G, new))
    if not (theirs - ours).abs().max() <= SAME_PICTURE * theirs.std():
        raise UserError(f'{name}: its synthesis network computes something else than {type(G.synthesis).__name__} here')


def attach(
    data: dict[str, Any],
    name: str,
    labels: Labels,
    mode: str = 'replace',
    fit: Fit | None = None,  # None = the defaults.
    device: torch.device | str = 'cpu',
) -> tuple[dict[str, Any], Fitted | None]:
    """A snapshot's dict with φ in G and G_ema; all else as it was. With mode='replace' also what the fit found.

    φ is fitted to G_ema's mapping network, and G gets the same one: their w are of one kind, for G_ema is the average
    of what G has been. A file without G gets a copy of G_ema for it.

    Raises UserError, one line that begins with `name`, for a network that can't have φ.
    """
    fit = fit or Fit()
    if mode not in MODES:
        raise ValueError(f'mode: expected one of {", ".join(MODES)}, got {mode!r}')
    if mode == 'front' and fit.couplings % 2:
        raise UserError(f'--couplings: {fit.couplings} is odd, and only an even number of them starts as the identity')
    old = data['G_ema']
    check_network(old, name)
    G_ema = build(old, lia_kwargs(old, mode, fit), name, fit.seed)
    fitted = None
    if mode == 'replace':
        mapping = OldMapping(old.mapping, labels, device, fit.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fit.seed)
            fitted = fit_phi(G_ema.mapping.phi, mapping, fit)
        G_ema.mapping.phi.cpu()
    G = copy.deepcopy(G_ema)
    if data.get('G') is not None:
        check_network(data['G'], name)
        G = build(data['G'], lia_kwargs(data['G'], mode, fit), name, fit.seed)
        misc.copy_params_and_buffers(G_ema.mapping.phi, G.mapping.phi, require_all=True)
    return {**data, 'G': G, 'G_ema': G_ema}, fitted


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def choose_labels(G: Any, path: str | None, recorded: Any = None) -> tuple[Labels, str]:
    """Labels to fit with, and what to say of them ('' = nothing).

    Those of a data set if they are vectors; else its classes, drawn evenly. `path` is what the user said, `recorded`
    the pickle's training_set_kwargs, which may name a data set that is here. UserError if there is nothing to draw.
    """
    if not G.c_dim:
        return Labels(0), ''
    if path is None and isinstance(recorded, dict):
        try:
            return _labels_of(G, recorded.get('path'))
        except (UserError, OSError, TypeError):  # Somebody else's path, most often.
            pass
    if path is not None:
        return _labels_of(G, path)
    if G.c_dim == 1:
        raise UserError('--data: needed: this network takes one number as its label, and its data set is not here')
    return Labels(G.c_dim), f'{G.c_dim} classes, drawn evenly; if its labels are vectors, --data must say which'


def _labels_of(G: Any, path: Any) -> tuple[Labels, str]:
    data_set = host.open_data_set(class_name='training.dataset.ImageFolderDataset', path=path, use_labels=True)
    if data_set.label_dim != G.c_dim:
        raise UserError(f'--data: {path}: labels of {data_set.label_dim} dimensions, but the network takes {G.c_dim}')
    table = torch.stack([torch.from_numpy(data_set.get_label(i)) for i in range(len(data_set))]).to(torch.float32)
    data_set.close()
    if ((table == 0) | (table == 1)).all() and (table.sum(dim=1) == 1).all():
        return Labels(G.c_dim), f'{G.c_dim} classes, drawn evenly'
    return Labels(G.c_dim, table), f'label vectors of {len(table)} images of {path}'
