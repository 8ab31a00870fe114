"""`edit.py evaluate`: how good edits along directions are, measured on held-out images."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin.edit_options import common_options
from lia_plugin.params import FiniteRange


class Amounts(click.ParamType):
    """Numbers above 0, as '0.5,1,2' -> (0.5, 1.0, 2.0)."""

    name = '0.5,1,2'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if not isinstance(value, str):
            return tuple(value)
        positive = FiniteRange(min=0, min_open=True)
        return tuple(positive.convert(part.strip(), param, ctx) for part in value.split(','))


@click.command(name='evaluate', context_settings={'show_default': True})
@click.option('--data', required=True, metavar='PATH', help='Training images: folder or zip')
@click.option('--val', required=True, metavar='PATH|SHARE',
              help='Held-out images, which are edited: folder or zip, or the share of --data that train.py --val holds '
                   'out')
@click.option('--labels', required=True, metavar='FILE',
              help='CSV with a column of file names (and a column "split", if --data and --val share names), or '
                   'dataset.json')
@click.option('--attributes', metavar='LIST',
              help='Columns, as hair,gender; emotion=neutral/happiness takes some values alone  [default: all that '
                   'have classes]')
@click.option('--directions', multiple=True, metavar='FILE',
              help='Directions called COLUMN=VALUE, as `edit directions` writes them; several times for several files  '
                   '[default: learned from --data, in y and in z]')
@click.option('--fit', type=click.Choice(['means', 'plane']),
              help='How they are learned: see edit directions  [default: means]')
@click.option('--aim', 'aims', nargs=2, multiple=True, metavar='NAME COLUMN=VALUE',
              help='What a direction of another name leads to')
@click.option('--shift', 'shifts', type=Amounts(), default='0.5,1,1.5,2,3,4,6,9,14,20,30', metavar='LIST',
              help="Amounts, in standard deviations of a direction's coordinate, until success is enough")
@click.option('--success', 'levels', type=FiniteRange(min=0, max=1, min_open=True), multiple=True, default=(0.5,),
              metavar='SHARE', help='Compare where so many images have come to the wanted class; several times for '
                                    'several levels')
@click.option('--conditional/--no-conditional', default=True,
              help="Also measure each edit with other attributes' directions projected out")
@click.option('--num', type=click.IntRange(min=2), default=500, metavar='INT',
              help='Try an edit on at most so many images, and judge at most four times as many')
@click.option('--num-train', type=click.IntRange(min=20), default=10000, metavar='INT',
              help='Learn from at most so many of --data')
@click.option('--force', is_flag=True, help="Take directions of another network")
@common_options
def edit_evaluate(**options: Any) -> int:
    """Measure edits along directions on held-out images: do they succeed, and what else do they change?

    Success is decided by judges, classifiers that are learned from the real pictures of --data and see no codes; how
    well they read held-out pictures and reconstructions is told first. Every figure at equal success has a 95 %
    bootstrap interval over images; y and z are compared on the same images.

    \b
      success     held-out images of another class that a judge sees in the wanted one
      outside     MSE outside the region in which real pictures of the classes differ (the same for all edits)
      recognised  edited pictures whose nearest unedited one, outside the region, is their own
      leakage     how much judges of the other attributes change their mind (0 … 1)
      typical     codes whose |z|^2 the prior calls usual

    \b
    Writes
      index.html        tables, curves, leakage matrix, regions, strips of median and worst examples
      evaluation.json   all figures, with intervals
      directions_y.npz, directions_z.npz   what was learned, without --directions

    \b
    Example
      python edit.py evaluate --network=net.pkl --data=people.zip --val=people_val.zip --labels=labels.csv
          --attributes=gender,hair --outdir=edits

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    from lia_plugin import edit_evaluation_report
    from lia_plugin.edit_evaluation_inputs import EvaluateOptions
    from lia_plugin.edit_evaluation_run import run
    from lia_plugin.edit_session import Session, report_failures

    asked = EvaluateOptions(**{name: options.pop(name) for name in EvaluateOptions.__dataclass_fields__})
    asked.check()
    session = Session.open(**options)
    failures: list[tuple[str, str]] = []
    evaluation = run(asked, session, failures)
    click.echo(edit_evaluation_report.save_all(evaluation))
    return report_failures(failures)
