"""`python -m lia_plugin figures`: the paper's figures from any trained pair of data set and network."""

from __future__ import annotations

from typing import Any

import click

from lia_plugin.params import Count

POSITIVE = Count()


@click.command(context_settings={'show_default': True})
@click.option('--network', metavar='PATH|URL', help='Network pickle; --only=swiss-roll needs none')
@click.option('--data', metavar='PATH', help='Real images: folder or zip; best such as the network was not trained on')
@click.option('--outdir', default='figures', metavar='DIR', help='Where to write')
@click.option('--only', metavar='LIST',
              help='Which figures, with commas; --only=list tells which there are  [default: all]')
@click.option('--num', type=POSITIVE, default=256, help='Real images to encode, spread evenly over --data')
@click.option('--opt-num', type=POSITIVE, default=32, help='Those of them to refine and to optimise')
@click.option('--refine', type=POSITIVE, default=100, metavar='N', help='Steps of these optimisations')
@click.option('--pairs', type=POSITIVE, default=32, help='Pairs of real images to interpolate')
@click.option('--samples', type=click.IntRange(4, 50_000), default=4000, help='Generated images on the map by t-SNE')
@click.option('--steps', type=click.IntRange(2, 100), default=9, help='Images in a strip')
@click.option('--shown', type=click.IntRange(1, 50), default=6, help='Images or pairs in pictures')
@click.option('--labels', metavar='FILE',
              help='Attributes of the images, for directions: CSV or dataset.json, as in edit directions')
@click.option('--split', metavar='NAME',
              help="What the labels' column `split` calls --data, if it has one, as train or val  [default: all rows]")
@click.option('--group-column', metavar='COLUMN',
              help='Images with the same value there are held out together, as variants of one motif')
@click.option('--directions', metavar='FILE', help='Directions to move along, as edit directions writes them')
@click.option('--direction-space', type=click.Choice(['y', 'z', 'w']),
              help='Of --directions, if they do not tell  [default: as in edit manipulate]')
@click.option('--force', is_flag=True, help='Take directions that were found with another network')
@click.option('--compare', metavar='DIR', help="A comparison's folder (python -m lia_plugin compare), to show with it")
@click.option('--percep', type=click.Choice(['disc', 'vgg16', 'none']),
              help='Features that images are compared by; none = pixels  [default: vgg16 if it was downloaded before, '
                   "else disc, the pickle's own D]")
@click.option('--lpips', 'vgg16', metavar='PATH|URL', help="NVIDIA's vgg16.pt, for --percep=vgg16")
@click.option('--roll-steps', type=POSITIVE, default=2500, help="Training steps of the Swiss roll's φ")
@click.option('--class', 'class_idx', type=int, metavar='N',
              help='Class of all images, for a conditional network  [default: by dataset.json]')
@click.option('--batch', type=POSITIVE, default=16, help='Images at once')
@click.option('--seed', type=click.IntRange(min=0, max=2**32 - 1), default=0, help='Of everything random')
@click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1, mps …  [default: the best there is]')
@click.option('--trust-pickle', is_flag=True, help='Run the code inside the network pickle; only for files you trust')
def figures(
    network: str | None, data: str | None, outdir: str, only: str | None, class_idx: int | None, batch: int,
    device: str | None, trust_pickle: bool, **settings: Any,
) -> int:
    """Draw the paper's figures for a network and a data set.

    Writes to --outdir: index.html with everything, each figure as a PNG, and figures.json with every number.

    \b
    python -m lia_plugin figures --network=network.pkl --data=test.zip
    python -m lia_plugin figures --only=swiss-roll

    A figure that can't be drawn, for want of an encoder or of scikit-learn, is left out and said to be;
    --labels insists on scikit-learn.

    Exit codes: 0 done; 1 done, but figures or images are missing; 2 nothing written.
    """
    from lia_plugin import figure_manipulation, outputs
    from lia_plugin import figures as work
    from lia_plugin.figure_base import Exhibit, Options

    if only == 'list':
        for name, entry in work.CONTENTS.items():
            click.echo(f'{name:<16} {entry.about}')
        return 0
    names = work.parse_only(only)
    options = Options(**settings)
    check_files(options)
    outputs.check_output('--outdir', outdir, folder=True)
    session: Any = None
    items: list[Any] = []
    everything: list[Any] = []
    if any(work.CONTENTS[name].needs_network for name in names):
        session = open_session(network, outdir, device, trust_pickle, class_idx, batch, options.seed)
        items, everything = choose_images(data, options.num)
    elif network is not None or data is not None:
        raise click.UsageError(f'--{"network" if network else "data"}: {", ".join(names)} needs none; leave it out')
    exhibit = Exhibit(options, session, items, everything)
    if 'manipulation' in names:
        figure_manipulation.check(exhibit)
    facts = dict(network=network, data=data, **facts_of(exhibit, session))
    outcome = work.draw_all(exhibit, names, lambda found: work.save(outdir, found, facts, len(exhibit.failures)))
    return finish(exhibit, outcome, outdir)


def check_files(options: Any) -> None:
    """UserError for files of options that can't be used: before long work."""
    import os

    from lia_plugin import figure_reconstruction
    from lia_plugin.directions import split_name
    from lia_plugin.host import UserError

    if options.labels is not None and options.directions is not None:
        raise click.UsageError('--labels, --directions: learn directions or take given ones, not both')
    for option, value in (('--split', options.split), ('--group-column', options.group_column)):
        if value is not None and options.labels is None:
            raise click.UsageError(f'{option}: only with --labels, of which it is a part')
    if options.directions is None and (options.force or options.direction_space is not None):
        raise click.UsageError(f'--{"force" if options.force else "direction-space"}: only with --directions')
    if options.vgg16 is not None and options.percep not in (None, 'vgg16'):
        raise click.UsageError(f'--lpips: --percep={options.percep} takes no such file; leave one of them out')
    for option, path in (('--labels', options.labels), ('--directions', options.directions)):
        if path is not None and not os.path.exists(split_name(path)[0]):
            raise UserError(f'{option}={path}: no such file')
    if options.compare is not None:
        figure_reconstruction.read_comparison(options.compare)


def open_session(
    network: str | None, outdir: str, device: str | None, trust_pickle: bool, class_idx: int | None, batch: int,
    seed: int,
) -> Any:
    """The network at hand. UserError or UsageError unless it is one with φ."""
    from lia_plugin import evaluation, spaces
    from lia_plugin.edit_session import Session
    from lia_plugin.host import UserError

    if network is None:
        raise click.UsageError("Missing option '--network' (--only=swiss-roll does without)")
    session = Session.open(
        network, outdir, device, trust_pickle, class_idx=class_idx, batch=batch, seed=seed)
    if not spaces.has_prior(session.G):
        raise UserError(f'{network}: not a LIA network, it has no φ, which all figures but the Swiss roll are of; '
                        'python -m lia_plugin attach gives it one')  # fmt: skip
    evaluation.full_precision()
    return session


def choose_images(data: str | None, num: int) -> tuple[list[Any], list[Any]]:
    """So many images, spread evenly over the set; and all of them."""
    from lia_plugin.figure_base import spread
    from lia_plugin.targets import collect

    if data is None:
        return [], []
    found = collect([data], option='--data')
    return [found[i] for i in spread(len(found), num)], found


def facts_of(exhibit: Any, session: Any) -> dict[str, Any]:
    """What was asked for, and of which network."""
    import dataclasses

    from lia_plugin.network_hash import generator_hash

    settings = dataclasses.asdict(exhibit.options)
    if session is None:
        return settings
    G = session.G
    space = G.encoder.space if exhibit.has_encoder else None
    return dict(network_hash=generator_hash(G), resolution=G.img_resolution, channels=G.img_channels, z_dim=G.z_dim,
                encoder=space, images_in_set=len(exhibit.everything), device=str(session.device),
                **settings)  # fmt: skip


def finish(exhibit: Any, outcome: Any, outdir: str) -> int:
    """Tells what is where, and gives the exit code."""
    import os

    from lia_plugin.edit_session import report_failures
    from lia_plugin.host import UserError

    if not outcome.figures:
        raise UserError('no figure can be drawn: '
                        + '; '.join(f'{name}: {reason}' for name, reason in outcome.missing.items()))  # fmt: skip
    for figure in outcome.figures.values():
        click.echo(f'{figure.heading}: {figure.text}')
    click.echo(f'{len(outcome.figures)} figures; look at {click.format_filename(os.path.join(outdir, "index.html"))}')
    return max(1 if outcome.missing else 0, report_failures(exhibit.failures))
