"""The house's order, read from the imports themselves: arrows point one way, travelling files are hermetic."""

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Each may import those before it and itself. legacy.py belongs with torch_utils: it only names the reader.
LAYERS = ['dnnlib', 'torch_utils', 'metrics', 'training', 'lia_plugin']
LEVEL = {**{name: level for level, name in enumerate(LAYERS)}, 'legacy': LAYERS.index('torch_utils')}

# Their source stands in network pickles, and must run where nothing of ours but the host's own modules is.
TRAVELLING = ['training/networks.py', 'training/networks_stylegan3.py', 'training/augment.py', 'lia_plugin/networks.py',
              'lia_plugin/bigan_networks.py']
HERMETIC = {'numpy', 'scipy', 'torch', 'torch_utils', 'dnnlib'}


def _sources() -> list[pathlib.Path]:
    files = [path for name in LAYERS for path in (ROOT / name).rglob('*.py')]
    return sorted(files) + [ROOT / 'legacy.py']


def _scripts() -> list[pathlib.Path]:
    return sorted(path for path in ROOT.glob('*.py') if path.name not in ('legacy.py', 'setup.py', 'conftest.py'))


def _relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: pathlib.Path) -> Iterator[tuple[int, str, list[str]]]:
    """(line, module, names) of every import in a file, also those inside functions; relative ones made absolute."""
    package = list(path.relative_to(ROOT).with_suffix('').parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            names = [alias.name for alias in node.names]
            yield node.lineno, '.'.join(base + ([node.module] if node.module else [])), names


def _top(module: str) -> str:
    return module.split('.')[0]


@pytest.mark.parametrize('path', _sources(), ids=_relative)
def test_imports_point_one_way(path: pathlib.Path) -> None:
    own = LEVEL[_top(_relative(path).removesuffix('.py').replace('/', '.'))]
    scripts = {script.stem for script in _scripts()}
    for line, module, _names in _imports(path):
        where = f'{_relative(path)}:{line} imports {module}'
        assert LEVEL.get(_top(module), -1) <= own, f'{where}, which stands above it'
        assert _top(module) not in scripts, f'{where}, a script'


@pytest.mark.parametrize('path', _sources() + _scripts(), ids=_relative)
def test_no_star_imports(path: pathlib.Path) -> None:
    assert all('*' not in names for _line, _module, names in _imports(path))


@pytest.mark.parametrize('name', TRAVELLING)
def test_travelling_files_are_hermetic(name: str) -> None:
    path = ROOT / name
    allowed = HERMETIC | set(sys.stdlib_module_names)
    for line, module, _names in _imports(path):
        assert _top(module) in allowed, f'{name}:{line} imports {module}, which a reader of the pickle may not have'
    tree = ast.parse(path.read_text(encoding='utf-8'))
    relative = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert not relative, f'{name}:{relative}: relative imports fail in a module that has no package'
    named = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert '__file__' not in named, f'{name}: a module out of a pickle has no file'


@pytest.mark.parametrize('path', _scripts(), ids=_relative)
def test_scripts_are_shims(path: pathlib.Path) -> None:
    """No script holds code of its own that a package would then want to import."""
    assert len(path.read_text(encoding='utf-8').splitlines()) <= 10


def test_package_list_is_complete() -> None:
    """Every package with code is installed: setup.cfg names them one by one."""
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    named = set(config['options']['packages'].split())
    there = {_relative(path.parent).replace('/', '.') for path in _sources() if path.name != 'legacy.py'}
    assert named == there
