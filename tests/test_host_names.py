"""What the plugin uses of a host: every name stands in the list below, and every host has it."""

from __future__ import annotations

import ast
import importlib
import json
import pathlib
import re
from collections.abc import Iterator

import hosts
import pytest

PLUGIN = hosts.ROOT / 'lia_plugin'
HOST_PACKAGES = ('dnnlib', 'torch_utils', 'training', 'metrics', 'legacy')

SHARED = {
    'dnnlib.EasyDict',
    'dnnlib.make_cache_dir_path',
    'dnnlib.util.Logger',
    'dnnlib.util.call_func_by_name',
    'dnnlib.util.construct_class_by_name',
    'dnnlib.util.format_time',
    'dnnlib.util.get_obj_by_name',
    'dnnlib.util.is_url',
    'dnnlib.util.open_url',
    'legacy.load_network_pkl',
    'metrics.metric_main.calc_metric',
    'metrics.metric_main.is_valid_metric',
    'metrics.metric_main.list_valid_metrics',
    'metrics.metric_main.register_metric',
    'metrics.metric_main.report_metric',
    'metrics.metric_utils.ProgressMonitor',
    'metrics.metric_utils.compute_feature_stats_for_dataset',
    'metrics.metric_utils.get_feature_detector',
    'metrics.metric_utils.get_feature_detector_name',
    'torch_utils.misc.InfiniteSampler',
    'torch_utils.misc.copy_params_and_buffers',
    'torch_utils.misc.ddp_sync',
    'torch_utils.ops.bias_act.activation_funcs',
    'torch_utils.ops.bias_act.bias_act',
    'torch_utils.ops.conv2d_resample.conv2d_resample',
    'torch_utils.ops.upfirdn2d.setup_filter',
    'torch_utils.persistence.persistent_class',
    'torch_utils.training_stats.init_multiprocessing',
    'torch_utils.training_stats.report',
    'training.augment.AugmentPipe',
    'training.dataset.ImageFolderDataset',
    'training.loss.StyleGAN2Loss',
    'training.training_loop.training_loop',
}

# Of our host alone. Only lia_plugin/host.py may use them, and says what the others do instead.
OURS_ONLY = {
    'dnnlib.memory.free_bytes',
    'metrics.detectors.URLS',
    'metrics.detectors.get_feature_detector',
    'metrics.metric_main.check_detector',
    'metrics.metric_main.get_metric',
    'metrics.metric_utils.dataset_label',
    'torch_utils.distributed.LostProcess',
    'torch_utils.distributed.spawn',
    'torch_utils.precision.chosen',
    'torch_utils.precision.described',
    'torch_utils.precision.is_slow',
    'torch_utils.precision.resolve',
    'torch_utils.precision.using',
    'torch_utils.ops.kept.Store',
    'torch_utils.ops.kept.using',
    'torch_utils.torchrun.run',
    'torch_utils.torchrun.team',
    'training.augment.augpipe_specs',
    'training.dataset_convert.Options',
    'training.dataset_convert.convert',
    'training.image_archive.parse_labels',
    'training.transfer.describe',
}

# These modules are asked for by one name here and another there: `host.networks_module`, `networks.SYNTHESIS_CLASSES`.
NETWORKS = re.compile(r'training\.networks(_stylegan\w+)?(\.\w+)?')


def _used(path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of each host name in a file: imports, attributes of imported modules, names in strings."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    modules: dict[str, str] = {}  # Local name -> dotted module.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update({(a.asname or a.name.split('.')[0]): a.asname and a.name or a.name.split('.')[0]
                            for a in node.names if a.name.split('.')[0] in HOST_PACKAGES})
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split('.')[0] in HOST_PACKAGES:
            for alias in node.names:
                dotted = f'{node.module}.{alias.name}'
                if _is_module(dotted):
                    modules[alias.asname or alias.name] = dotted
                else:
                    yield dotted, node.lineno
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner and (name := _chain(node, modules)):
            yield name, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r'(training|metrics|torch_utils|dnnlib)(\.\w+)+', node.value)
            if named and not _is_module(node.value):
                yield node.value, node.lineno


def _is_module(dotted: str) -> bool:
    path = hosts.ROOT.joinpath(*dotted.split('.'))
    return path.with_suffix('.py').is_file() or (path / '__init__.py').is_file()


def _chain(node: ast.expr, modules: dict[str, str]) -> str | None:
    """`misc.ddp_sync` -> torch_utils.misc.ddp_sync; None if the chain doesn't begin with a host's module."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in modules:
        return None
    name = modules[node.id]
    for part in parts:  # Down to the first thing that is no module; what follows belongs to that object.
        is_module = _is_module(name)
        name = f'{name}.{part}' if is_module else name
    return None if _is_module(name) else name


def _all_used() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(PLUGIN.rglob('*.py')):
        for name, line in _used(path):
            if not NETWORKS.fullmatch(name):
                found.setdefault(name, []).append(f'{path.relative_to(hosts.ROOT)}:{line}')
    return found


def test_the_plugin_uses_shared_names_and_host_py_alone_the_others() -> None:
    used = _all_used()
    for name, places in used.items():
        own = name in OURS_ONLY and all(place.startswith('lia_plugin/host.py:') for place in places)
        assert name in SHARED or own, f'{places[0]}: {name}: not every host has it; go through lia_plugin/host.py'
    assert SHARED | OURS_ONLY == set(used), f'no longer used: {(SHARED | OURS_ONLY) - set(used)}'


@pytest.mark.parametrize('name', sorted(SHARED | OURS_ONLY))
def test_our_host_has_it(name: str) -> None:
    module, attribute = name.rsplit('.', 1)
    assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize('host', hosts.NAMES)
def test_nvidias_hosts_have_the_shared_names(host: str) -> None:
    code = (
        'import importlib, json, sys\n'
        'names = json.loads(sys.argv[1])\n'
        'split = [n.rsplit(".", 1) for n in names]\n'
        'missing = [n for n, (m, a) in zip(names, split) if not hasattr(importlib.import_module(m), a)]\n'
        'import dnnlib; print(json.dumps([missing, dnnlib.__file__]))\n'
    )
    out = hosts.check(hosts.run(host, '-c', code, json.dumps(sorted(SHARED))))
    missing, where = json.loads(out.splitlines()[-1])
    assert not missing
    assert pathlib.Path(where).is_relative_to(hosts.find(host)), 'the checkout comes first on the path'
