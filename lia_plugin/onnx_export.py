"""Networks for ONNX Runtime and its kind: float32, any number of images, no operators but ONNX's own.

Each part (`onnx_parts`) is a file. What they compute is compared with the network before anything is written, if
onnxruntime is there.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from lia_plugin import host, onnx_parts
from lia_plugin.export import headline
from lia_plugin.host import UserError, atomic_write
from lia_plugin.onnx_parts import Part
from lia_plugin.outputs import check_new_folder

OPSET = 18
TOLERANCE = 1e-4  # Of the largest number of a result.
CHECKED = (1, 2, 5)  # Images at once.
FACTS, CARD = 'onnx.json', 'README.md'
MISSING = "ONNX needs packages that are not here ({}): pip install 'lia-plugin[onnx]'"


class Exported(NamedTuple):
    """What was written: each part's largest error, relative to its results (None = not checked); what was not."""

    errors: dict[str, float | None]
    left_out: dict[str, str]  # Name -> why.


def export(network: str, outdir: str, noise: str = 'const', license_name: str = 'other', title: str | None = None,
           trust: bool = False) -> Exported:
    """Writes `network` (pickle, URL or folder) as NAME.onnx of each part, onnx.json and README.md to a new folder.

    noise: see `onnx_parts.parts`. Raises UserError, and writes nothing, if packages are missing, the network has
    operators that ONNX hasn't, or ONNX Runtime gives other numbers.
    """
    _check_packages()
    check_new_folder('--outdir', outdir)
    place = os.path.abspath(outdir)  # Of '', too.
    G = host.load_network_pkl(network, trust=trust).get('G_ema')
    if G is None:
        raise UserError(f'{network}: holds no generator (G_ema)')
    G = copy.deepcopy(G).eval().requires_grad_(False).cpu().float()
    found, left_out = onnx_parts.parts(G, noise)
    facts = dict(title=headline(title, place), license=license_name)
    files, errors = {}, {}
    for part in found:
        files[f'{part.name}.onnx'] = data = _convert(part, network, facts)
        errors[part.name] = _check(part, data)
    told = {**facts, 'opset': OPSET, 'parts': [onnx_parts.described(part) for part in found], 'left_out': left_out}
    files[FACTS] = json.dumps(told, indent=2, ensure_ascii=False).encode() + b'\n'
    files[CARD] = card(told, errors).encode()
    os.makedirs(place, exist_ok=True)
    for name, data in files.items():
        with atomic_write(os.path.join(place, name)) as file:
            file.write(data)
    return Exported(errors, left_out)


def _check_packages() -> None:
    """UserError if PyTorch's exporter can't work."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(MISSING.format(host.one_line(error))) from None


# ---------------------------------------------------------------------------------------------------------------------
# One part


def _convert(part: Part, network: str, facts: dict[str, str]) -> bytes:
    """The part as an ONNX file's content."""
    batch = torch.export.Dim('N', min=1)
    dynamic = tuple({0: batch} if value.ndim else {} for value in part.inputs.values())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                part.module, tuple(part.inputs.values()), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=list(part.inputs), output_names=list(part.outputs),
                dynamic_shapes=(dynamic,),
            )  # fmt: skip
    except Exception as error:  # The exporter's errors are of many kinds.
        reason = str(error.__cause__ or error).strip().splitlines()
        what = reason[0][:200] if reason else type(error).__name__
        raise UserError(f'{network}: its {part.name} has operators that ONNX cannot have ({what})') from error
    assert program is not None, 'of the exporter that is asked for'
    model = program.model_proto
    if not all(entry.type.tensor_type.shape.dim[0].dim_param for entry, value
               in zip(model.graph.input, part.inputs.values(), strict=True) if value.ndim):  # fmt: skip
        raise UserError(f'{network}: its {part.name} can be recorded for {onnx_parts.BATCH} images at once alone')
    model.producer_name, model.doc_string = 'lia-plugin', f'{part.name}: {json.dumps(onnx_parts.described(part))}'
    for name, value in {**facts, **part.facts, 'part': part.name}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter has much to say about packages and its own steps that nobody here can change."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _check(part: Part, data: bytes) -> float | None:
    """The largest error that ONNX Runtime makes of several batches; None without it.

    Raises UserError for one above TOLERANCE.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    worst = 0.0
    for batch in CHECKED:
        inputs = part.draw(batch, seed=batch)
        expected = part.module(*inputs.values())
        try:
            got = session.run(list(part.outputs), {name: value.numpy() for name, value in inputs.items()})
        except Exception as error:  # ONNX Runtime's own classes, which it doesn't tell.
            raise UserError(f'{part.name}: ONNX Runtime cannot run it ({host.one_line(error)}); nothing was '
                            'written') from error
        for one, other in zip(expected if isinstance(expected, tuple) else (expected,), got, strict=True):
            off = float((torch.from_numpy(other) - one).abs().max() / one.abs().max().clamp(min=1e-6))
            worst = max(worst, off if off == off else float('inf'))
    if worst > TOLERANCE:
        raise UserError(f'{part.name}: ONNX Runtime {onnxruntime.__version__} is off by {worst:.1e} of the largest '
                        f'value, more than {TOLERANCE:g}; nothing was written')
    return worst


# ---------------------------------------------------------------------------------------------------------------------
# What stands beside


def card(told: dict[str, Any], errors: dict[str, float | None]) -> str:
    """README.md of the folder: every file with what goes in and out."""
    head = ['---', f'license: {json.dumps(told["license"])}', 'tags:', '- onnx', '- gan', '---', '',
            f'# {" ".join(told["title"].split())}', '',
            f'ONNX, opset {told["opset"]}, float32. N is the number of images, any from 1 on. '
            f'`{FACTS}` has the same to be read by programs.', '']  # fmt: skip
    lines = ['| file | in | out | largest error, of the largest value |', '| --- | --- | --- | --- |']
    for part in told['parts']:
        ends = [', '.join(f'{name} {json.dumps(value["shape"]).replace(chr(34), "")}'
                          for name, value in part[side].items()) for side in ('inputs', 'outputs')]
        error = errors[part['file'].removesuffix('.onnx')]
        told_error = 'not checked' if error is None else f'{error:.0e}'
        lines.append(f'| {part["file"]} | {ends[0]} | {ends[1]} | {told_error} |')
    sides = [part[side] for part in told['parts'] for side in ('inputs', 'outputs')]
    names = {name: end['meaning'] for side in sides for name, end in side.items() if not name.startswith('noise.')}
    lines += ['', *(f'- `{name}`: {what}' for name, what in names.items())]
    noise = next(part['noise'] for part in told['parts'] if 'noise' in part)
    lines += ['', {'const': "The layers' constant noise is part of synthesis.onnx.", 'none': 'Layers have no noise.',
                   'input': "Each layer's noise is an input, noise.LAYER: normal numbers for each image."}[noise]]
    lines += [f'- {name}.onnx is left out: {why}' for name, why in told['left_out'].items()]
    return '\n'.join([*head, *lines, ''])
