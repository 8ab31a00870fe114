"""The notebook in docs/ runs from top to bottom on any network, says what is missing, and holds no machine's paths."""

import base64
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from test_lia_plugin_inversion import make_generator, save_pickle, save_pictures

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / 'docs' / 'editing.ipynb'


def load_runner() -> Any:
    spec = importlib.util.spec_from_file_location('run_notebook', ROOT / 'docs' / 'run_notebook.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(ROOT / 'docs')  # Where Jupyter starts.
    for name in ('NETWORK', 'IMAGES', 'LABELLED', 'LABELS', 'SPLIT', 'ATTRIBUTE', 'GROUPS', 'OUTDIR'):
        monkeypatch.delenv(f'LIA_{name}', raising=False)
    return load_runner()


def test_it_runs_from_top_to_bottom(runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(tmp_path / 'in', 12)
    save_pictures(tmp_path / 'labelled', 40)
    rows = ''.join(f'picture{i}.png,{"round" if i % 2 else "square"},person{i // 2}\n' for i in range(40))
    (tmp_path / 'labels.csv').write_text('file,shape,look\n' + rows)
    for name, value in dict(NETWORK=save_pickle(tmp_path / 'lia.pkl', make_generator()), IMAGES=tmp_path / 'in',
                            LABELLED=tmp_path / 'labelled', LABELS=tmp_path / 'labels.csv', ATTRIBUTE='shape',
                            OUTDIR=tmp_path / 'out').items():  # fmt: skip
        monkeypatch.setenv(f'LIA_{name}', str(value))
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        done = runner.run(runner.strip(runner.read(NOTEBOOK)), found)
    assert found['people'].count == 12 and found['y'].shape == (12, 16)
    assert (found['refined'].figures['mse'] <= found['refined'].figures['start_mse'] + 1e-6).all()
    assert list(found['directions']) == ['shape=square']
    assert found['directions']['shape=square'].figures['held_out_by'] == 'groups of look'
    assert np.shape(found['mixed'])[:2] == (3, 4) and len(found['frames']) == 36
    assert np.array_equal(np.asarray(found['result'])[:, :80], np.asarray(found['photo'])[:, :80])
    assert PIL.Image.open(tmp_path / 'out' / 'people.gif').n_frames > 1 and (tmp_path / 'out' / 'pasted.png').exists()
    cells = [cell for cell in done['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [output for cell in cells for output in cell['outputs'] if 'image/jpeg' in output.get('data', {})]
    assert len(pictures) >= 9
    shown = PIL.Image.open(io.BytesIO(base64.b64decode(pictures[0]['data']['image/jpeg'])))
    assert shown.width > 12 * 64 and 2 * 64 < shown.height < 3 * 64, 'originals over reconstructions'
    printed = ''.join(''.join(output.get('text', [])) for cell in cells for output in cell['outputs'])
    assert 'largest error of y -> z -> y' in printed and str(tmp_path) not in json.dumps(done)


def test_it_says_what_is_missing(runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = runner.read(NOTEBOOK)
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'demo').mkdir()
    monkeypatch.chdir(tmp_path / 'docs')
    with pytest.raises(FileNotFoundError, match=r'NETWORK: no network has been trained\. Run `make demo`, or'):
        runner.run(notebook)
    assert os.getcwd() == str(tmp_path), 'paths are those of the project'
    (tmp_path / 'demo-run' / '00000-lia').mkdir(parents=True)
    (tmp_path / 'demo-run' / '00000-lia' / 'network-snapshot-000001.pkl').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match='IMAGES: there is no demo/people64_val.zip'):
        runner.run(notebook)


def test_the_script_says_it_in_a_line(tmp_path: Path) -> None:
    """Nothing is written, and there is no traceback to read."""
    (tmp_path / 'docs').mkdir()
    copy = tmp_path / 'docs' / 'editing.ipynb'
    copy.write_bytes(NOTEBOOK.read_bytes())
    env = {**os.environ, 'LIA_NETWORK': 'nowhere.pkl'}
    script = [sys.executable, str(ROOT / 'docs' / 'run_notebook.py'), str(copy)]
    done = subprocess.run(script, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and copy.read_bytes() == NOTEBOOK.read_bytes()
    told = 'NETWORK: there is no nowhere.pkl. Run `make demo`, or set LIA_NETWORK to a path of yours.\n'
    assert done.stderr == told


def test_it_is_clean(runner: Any) -> None:
    text = NOTEBOOK.read_text(encoding='utf-8')
    assert len(text) < 500_000
    notebook = json.loads(text)
    assert (notebook['nbformat'], set(notebook['metadata'])) == (4, {'kernelspec', 'language_info'})
    assert all(cell['metadata'] == {} for cell in notebook['cells'])
    assert len({cell['id'] for cell in notebook['cells']}) == len(notebook['cells'])
    shown = re.sub(r'"image/jpeg": "[^"]*"', '', text)
    assert not re.search(r'(?<![\w*.])/(?:home|root|tmp|work|Users)/|[A-Z]:\\\\', shown)
    assert not any(output['output_type'] == 'error' for cell in notebook['cells'] for output in cell.get('outputs', []))
    source = '\n'.join(''.join(cell['source']) for cell in notebook['cells'])
    for method in ('invert', 'typicality', 'decode', 'refine', 'interpolate', 'directions_from_labels', 'sefa',
                   'manipulate', 'stay_typical', 'mix', 'variations', 'retarget', 'save_video', 'paste'):  # fmt: skip
        assert method in source


def test_the_runner_shows_what_a_notebook_shows(runner: Any, tmp_path: Path) -> None:
    cells = [dict(cell_type='code', id=str(i), metadata={}, execution_count=7, outputs=[1], source=source)
             for i, source in enumerate([['x = 2\n', 'print("a")'], ['x * 21'], ['x * 21;'], ['None']])]  # fmt: skip
    notebook = dict(cells=[*cells, dict(cell_type='markdown', source=['# b'])], nbformat=4)
    first, second, third, fourth, text = runner.run(notebook)['cells']
    assert first['outputs'] == [dict(output_type='stream', name='stdout', text=['a\n'])]
    assert second['outputs'][0]['data'] == {'text/plain': ['42']} and not third['outputs'] and not fourth['outputs']
    assert text == notebook['cells'][-1]
    runner.write(str(tmp_path / 'a.ipynb'), runner.strip(notebook))
    assert os.listdir(tmp_path) == ['a.ipynb']
    assert [cell.get('outputs') for cell in runner.read(str(tmp_path / 'a.ipynb'))['cells']] == [[], [], [], [], None]
