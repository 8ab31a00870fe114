"""Runs a notebook's code cells in a fresh namespace and writes what they put out into the file; needs no Jupyter.

    python docs/run_notebook.py docs/editing.ipynb            run it, and keep what it shows
    python docs/run_notebook.py docs/editing.ipynb --strip    only take out what it shows
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import sys
from typing import Any

import PIL.Image

Notebook = dict[str, Any]


def read(path: str) -> Notebook:
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def write(path: str, notebook: Notebook) -> None:
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'
    part = f'{path}.part'  # So that a run that is cut off leaves what was there.
    with open(part, 'w', encoding='utf-8') as file:
        file.write(text)
    os.replace(part, path)


def strip(notebook: Notebook) -> Notebook:
    """The same without outputs and counts."""
    cells = [{**cell, 'outputs': [], 'execution_count': None} if cell['cell_type'] == 'code' else cell
             for cell in notebook['cells']]  # fmt: skip
    return {**notebook, 'cells': cells}


def run(notebook: Notebook, namespace: dict[str, Any] | None = None) -> Notebook:
    """The same with the outputs of its code cells, run in order; what a cell raises passes through.

    `namespace`, a fresh one if it is not given, holds the cells' variables afterwards.
    """
    namespace = {'__name__': '__main__'} if namespace is None else namespace
    cells, count = [], 0
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            count += 1
            outputs = _run_cell(''.join(cell['source']), f'<cell {count}>', namespace, count)
            cell = {**cell, 'outputs': outputs, 'execution_count': count}
        cells.append(cell)
    return {**notebook, 'cells': cells}


def _run_cell(source: str, name: str, namespace: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Outputs of one cell: what it prints, and the value of the expression that it ends in."""
    body = ast.parse(source, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) and not source.rstrip().endswith(';') else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), name, 'exec'), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, 'eval'), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append(dict(output_type='stream', name='stdout', text=_lines(printed.getvalue())))
    if value is not None:
        outputs.append(dict(output_type='execute_result', execution_count=count, metadata={}, data=_shown(value)))
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    """MIME type -> what a notebook shows of a value."""
    data: dict[str, Any] = {'text/plain': _lines(repr(value))}
    if hasattr(value, '_repr_png_'):
        data['image/jpeg'] = base64.b64encode(_jpeg(value._repr_png_())).decode()
    return data


def _jpeg(png: bytes) -> bytes:
    """A fifth of the size: notebooks are kept with the code."""
    made = io.BytesIO()
    PIL.Image.open(io.BytesIO(png)).convert('RGB').save(made, 'JPEG', quality=80)
    return made.getvalue()


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebook')
    parser.add_argument('--strip', action='store_true', help='do not run it')
    asked = parser.parse_args()
    path = os.path.abspath(asked.notebook)
    sys.path.insert(0, os.path.dirname(os.path.dirname(path)))  # The package of this project, installed or not.
    os.chdir(os.path.dirname(path))  # As Jupyter does.
    try:
        write(path, strip(read(path)) if asked.strip else run(strip(read(path))))
    except FileNotFoundError as error:  # What the notebook is to work on: it says in a line what is missing.
        parser.exit(2, f'{error}\n')


if __name__ == '__main__':
    main()
