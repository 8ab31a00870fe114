"""`edit.py directions`: find directions that mean something."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin.edit_options import common_options
from lia_plugin.params import FiniteRange, Numbers


def parse_words(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """'a,b,a' -> ('a', 'b')."""
    words = tuple(dict.fromkeys(word.strip() for word in (value or '').split(',') if word.strip()))
    if value is not None and not words:
        raise click.BadParameter('names nothing', ctx, param)
    return words


@click.command(name='directions', context_settings={'show_default': True})
@click.option('--method', type=click.Choice(['labels', 'sets', 'sefa', 'pca']), required=True,
              help="labels: of --data's images; sets: two sets of images; sefa: what style weights amplify; pca: "
                   'how codes vary')
@click.option('--space', type=click.Choice(['y', 'z']), default='y', help='Where; y is w in a stock network')
@click.option('--layers', type=Numbers(), metavar='LIST',
              help='Layers that the directions move, as 0-3; SeFa looks at the weights of these  [default: all]')
# From labels.
@click.option('--data', metavar='PATH', help='Images: zip, folder or pattern, or .npz with their codes; also for pca')
@click.option('--labels', metavar='FILE',
              help="CSV or other table, one column of file names and one per attribute; or dataset.json  [default: "
                   "--data's]")
@click.option('--attribute', 'attributes', multiple=True, metavar='COLUMN',
              help='May be given several times  [default: all that make classes]')
@click.option('--values', metavar='A,B', callback=parse_words,
              help='Only images with one of these values; of two, the direction leads from A to B')
@click.option('--val', metavar='PATH', help='Images held out, to judge by  [default: a share of --data]')
@click.option('--splits', metavar='TRAIN[,VAL]', callback=parse_words,
              help="What the table's column `split` calls --data and --val, if it has one  [default: train,val]")
@click.option('--group-column', metavar='COLUMN', help='Images with the same value are held out together')
@click.option('--holdout', type=FiniteRange(min=0, max=0.5, min_open=True), metavar='SHARE',
              help='Share of images held out  [default: 0.2]')
@click.option('--fit', type=click.Choice(['means', 'plane']),
              help='means: from the mean of one kind to that of the other; plane: the normal of the plane that parts '
                   'them best, which may hardly change a picture  [default: means]')
# From two sets.
@click.option('--positive', multiple=True, metavar='INPUT', help='Images that the direction leads to')
@click.option('--negative', multiple=True, metavar='INPUT', help='Images that it leads away from')
@click.option('--name', metavar='TEXT', help='What it is called  [default: as --positive]')
# Without labels.
@click.option('--count', type=click.IntRange(min=1), help='So many, the strongest first  [default: 8]')
@click.option('--samples', type=click.IntRange(min=2), help='Codes of the prior that PCA is of  [default: 10000]')
# The sheet.
@click.option('--show', multiple=True, metavar='INPUT',
              help='Images on the sheet  [default: three ordinary ones of --data or --negative, or seeds 0-2]')
@click.option('--extent', type=FiniteRange(min=0, min_open=True), default=3.0,
              help='The sheet goes so many standard deviations to either side')
@common_options
def edit_directions(**options: Any) -> int:
    """Find directions: by labels, by two sets of images, or without either.

    With labels or sets it leads from the mean code of one kind of images to that of the other; an attribute with more
    than two values gives one direction for each, against the rest. Its accuracy on images held out stands in the file,
    beside that of always naming the more frequent kind, and that of logistic regression, which tells how well codes
    know the label. --fit=plane takes the normal of the latter's plane, as InterFaceGAN does: it tells labels best, and
    changes pictures less.

    \b
    python edit.py directions --network=net.pkl --method=labels --data=train.zip --labels=labels.csv --attribute=hair
    python edit.py directions --network=net.pkl --method=sets --positive=smiling/ --negative=serious/
    python edit.py directions --network=net.pkl --method=sefa --layers=0-3

    \b
    Writes
      directions.npz     for edit manipulate --direction=directions.npz:NAME
      directions.json    all figures
      index.html         figures, and what each direction does to some images
      sheet.png          the same at a glance, on the first of these

    Exit codes: 0 done; 1 done, but some images could not be used; 2 nothing written.
    """
    from lia_plugin import direction_report, direction_search, results
    from lia_plugin.edit_session import Session, report_failures

    own = {name: options.pop(name) for name in direction_search.SearchOptions.__dataclass_fields__}
    show, extent = options.pop('show'), options.pop('extent')
    asked = direction_search.SearchOptions(**own)
    asked.check()
    session = Session.open(**options)
    failures: list[tuple[str, str]] = []
    chosen = show or (() if asked.has_images else (direction_search.SEEDS_SHOWN,))
    shown = session.read(chosen, '--show') if chosen else None
    search = direction_search.Search(session, asked, failures)
    shown = shown or search.shown
    assert shown is not None, 'a search in images has some to show'
    found = direction_report.save_all(session, search.found, shown, extent, f'Directions by {asked.method}')
    header, rows = direction_report.table(found)
    click.echo('\n'.join(results.aligned([header, *rows])))
    return report_failures(failures)
