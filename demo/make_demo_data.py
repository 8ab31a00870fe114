"""Renders the demo data set: emoji people of the Noto Color Emoji font. `python demo/make_demo_data.py --help`.

Writes people64.zip (training), people64_val.zip (persons held out as a whole, in all skin tones) and people_labels.csv
(what each picture shows). The pictures are artwork, not photographs; see the file NOTICE beside this one.
"""

import csv
import dataclasses
import io
import os
import sys
from collections.abc import Iterable

import click
import PIL.features
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from dnnlib.util import UserError, atomic_write  # noqa: E402
from training.dataset_writers import image_name, label_json, open_dest  # noqa: E402
from training.image_archive import LABEL_FILE  # noqa: E402

FONT = '/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf'  # Debian and Ubuntu: fonts-noto-color-emoji.
FONT_SIZE = 109  # The only size that the font's bitmaps have.
TILE = (136, 128)  # Pixels of each bitmap.
CROP = (4, 0, 132, 128)  # Its square middle: nothing but the tips of tools lies outside.
BACKGROUND = (232, 234, 237)  # Light grey: white hair, coats and hats would vanish on white.

JOINER, EMOJI_STYLE = '\u200d', '\ufe0f'
SKIN_TONES = {'yellow': '', 'light': '\U0001f3fb', 'medium-light': '\U0001f3fc', 'medium': '\U0001f3fd',
              'medium-dark': '\U0001f3fe', 'dark': '\U0001f3ff'}
GENDER_SIGNS = {'neutral': '', 'man': '\u2642', 'woman': '\u2640'}
ADULTS = {'neutral': '\U0001f9d1', 'man': '\U0001f468', 'woman': '\U0001f469'}

# An adult joined with an object (Unicode TR51, "Role" and "Hair").
PROFESSIONS = {
    'health worker': '\u2695', 'judge': '\u2696', 'pilot': '\u2708', 'farmer': '\U0001f33e', 'cook': '\U0001f373',
    'student': '\U0001f393', 'singer': '\U0001f3a4', 'artist': '\U0001f3a8', 'teacher': '\U0001f3eb',
    'factory worker': '\U0001f3ed', 'technologist': '\U0001f4bb', 'office worker': '\U0001f4bc',
    'mechanic': '\U0001f527', 'scientist': '\U0001f52c', 'astronaut': '\U0001f680', 'firefighter': '\U0001f692',
}
HAIR = {'red': '\U0001f9b0', 'curly': '\U0001f9b1', 'bald': '\U0001f9b2', 'white': '\U0001f9b3'}

# A person in a role or with a gesture, joined with a gender sign.
SIGNED_PROFESSIONS = {
    'police officer': '\U0001f46e', 'construction worker': '\U0001f477', 'guard': '\U0001f482',
    'detective': '\U0001f575', 'mage': '\U0001f9d9', 'vampire': '\U0001f9db', 'elf': '\U0001f9dd',
}
SIGNED_LOOKS = {
    'veil': '\U0001f470', 'blond hair': '\U0001f471', 'turban': '\U0001f473', 'tuxedo': '\U0001f935',
    'beard': '\U0001f9d4', 'tipping hand': '\U0001f481', 'massage': '\U0001f486', 'haircut': '\U0001f487',
    'no': '\U0001f645', 'ok': '\U0001f646', 'bowing': '\U0001f647', 'raising hand': '\U0001f64b',
    'frowning': '\U0001f64d', 'pouting': '\U0001f64e', 'facepalm': '\U0001f926', 'shrugging': '\U0001f937',
}

# Single characters: look, gender, age.
SINGLES = {
    '\U0001f466': ('boy', 'man', 'child'), '\U0001f467': ('girl', 'woman', 'child'),
    '\U0001f9d2': ('child', 'neutral', 'child'), '\U0001f476': ('baby', 'neutral', 'child'),
    '\U0001f47c': ('angel', 'neutral', 'child'), '\U0001f468': ('man', 'man', 'adult'),
    '\U0001f469': ('woman', 'woman', 'adult'), '\U0001f9d1': ('person', 'neutral', 'adult'),
    '\U0001f474': ('old man', 'man', 'old'), '\U0001f475': ('old woman', 'woman', 'old'),
    '\U0001f9d3': ('old person', 'neutral', 'old'), '\U0001f472': ('skullcap', 'man', 'adult'),
    '\U0001f934': ('crown', 'man', 'adult'), '\U0001f478': ('crown', 'woman', 'adult'),
    '\U0001fac5': ('crown', 'neutral', 'adult'), '\U0001f385': ('santa claus', 'man', 'old'),
    '\U0001f936': ('santa claus', 'woman', 'old'), '\U0001f9d5': ('headscarf', 'woman', 'adult'),
    '\U0001f977': ('ninja', 'neutral', 'adult'),
}

# About a tenth, chosen so that none has a near twin among the others (a fireman and a firewoman differ by some pixels).
HELD_OUT = frozenset({
    ('police officer', 'woman'), ('cook', 'man'), ('scientist', 'woman'), ('judge', 'man'), ('pilot', 'man'),
    ('student', 'neutral'), ('construction worker', 'neutral'), ('vampire', 'neutral'), ('red hair', 'woman'),
    ('curly hair', 'neutral'), ('blond hair', 'woman'), ('raising hand', 'man'), ('pouting', 'woman'),
    ('shrugging', 'neutral'), ('child', 'neutral'),
})


@dataclasses.dataclass(frozen=True)
class Identity:
    """A person in all skin tones."""

    look: str  # Role, gesture or what else tells this person from others.
    gender: str  # A key of ADULTS.
    first: str  # The character that skin tones modify …
    rest: str = ''  # … and what follows it.
    profession: str = ''  # Empty = none.
    hair: str = 'default'
    age: str = 'adult'

    @property
    def held_out(self) -> bool:
        return (self.look, self.gender) in HELD_OUT

    def emoji(self, skin_tone: str) -> str:
        return self.first + SKIN_TONES[skin_tone] + self.rest


def _joined(character: str) -> str:
    """The character behind a joiner, as a picture if it could be text too."""
    return JOINER + character + (EMOJI_STYLE if ord(character) < 0x10000 else '')


def identities() -> list[Identity]:
    """All persons, in a fixed order."""
    people = [Identity(look, gender, first, age=age) for first, (look, gender, age) in SINGLES.items()]
    people.append(Identity('santa claus', 'neutral', ADULTS['neutral'], _joined('\U0001f384'), age='old'))
    for gender, adult in ADULTS.items():
        people += [Identity(look, gender, adult, _joined(sign), look) for look, sign in PROFESSIONS.items()]
        people += [Identity(f'{hair} hair', gender, adult, _joined(sign), hair=hair) for hair, sign in HAIR.items()]
    for gender, sign in GENDER_SIGNS.items():
        rest = _joined(sign) if sign else ''
        people += [Identity(look, gender, first, rest, look) for look, first in SIGNED_PROFESSIONS.items()]
        people += [Identity(look, gender, first, rest, hair='blond' if look == 'blond hair' else 'default')
                   for look, first in SIGNED_LOOKS.items()]
    return people


def load_font(path: str) -> PIL.ImageFont.FreeTypeFont:
    """The font. UserError if it is missing or this Pillow can't render it."""
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such file; install fonts-noto-color-emoji or name the font with --font')
    if not PIL.features.check('raqm'):
        raise UserError('Pillow: joins no emoji without libraqm; install a Pillow that has it')
    try:
        return PIL.ImageFont.truetype(path, FONT_SIZE, layout_engine=PIL.ImageFont.Layout.RAQM)
    except OSError as error:
        raise UserError(f'{path}: not a build of Noto Color Emoji with bitmaps ({error})') from error


def render(emoji: str, font: PIL.ImageFont.FreeTypeFont, size: int) -> PIL.Image.Image:
    """One emoji as RGB image, size x size. UserError if the font shows it as several glyphs."""
    if font.getlength(emoji) > TILE[0]:
        raise UserError(f'font: has no single picture for {ascii(emoji)}; is it older than Unicode 14?')
    tile = PIL.Image.new('RGB', TILE, BACKGROUND)
    PIL.ImageDraw.Draw(tile).text((0, 0), emoji, font=font, embedded_color=True)
    return tile.crop(CROP).resize((size, size), PIL.Image.Resampling.BOX)


def write_archive(path: str, people: Iterable[Identity], font: PIL.ImageFont.FreeTypeFont, size: int) -> int:
    """A data set of all skin tones of `people`, labelled by skin tone. Returns the number of pictures."""
    labels: list[int | list[float]] = []
    with open_dest(path) as write:
        for person in people:
            for label, skin_tone in enumerate(SKIN_TONES):
                encoded = io.BytesIO()  # Compressed, as this one is kept under version control.
                render(person.emoji(skin_tone), font, size).save(encoded, format='PNG', optimize=True)
                write(image_name(len(labels)), encoded.getvalue())
                labels.append(label)
        write(LABEL_FILE, label_json(labels))
    return len(labels)


def write_labels(path: str, splits: dict[str, list[Identity]]) -> None:
    """A table of what each picture shows."""
    with atomic_write(path, 'w', encoding='utf-8', newline='') as file:
        table = csv.writer(file, lineterminator='\n')
        table.writerow(['split', 'file', 'emoji', 'look', 'skin_tone', 'gender', 'age', 'hair', 'profession'])
        for split, people in splits.items():
            pictures = [(person, skin_tone) for person in people for skin_tone in SKIN_TONES]
            for index, (person, skin_tone) in enumerate(pictures):
                table.writerow([split, image_name(index), person.emoji(skin_tone), person.look, skin_tone,
                                person.gender, person.age, person.hair, person.profession])


@click.command()
@click.option('--outdir', default=HERE, metavar='DIR', help='Where to write. [default: the folder of this script]')
@click.option('--size', type=click.Choice(['32', '64', '128']), default='64', show_default=True, help='Width, height.')
@click.option('--font', 'font_path', default=FONT, show_default=True, metavar='FILE', help='Noto Color Emoji, bitmaps.')
def make_demo_data(outdir: str, size: str, font_path: str) -> None:
    """Render the demo data set."""
    font = load_font(font_path)
    splits: dict[str, list[Identity]] = {'train': [], 'val': []}
    for person in identities():
        splits['val' if person.held_out else 'train'].append(person)
    for split, people in splits.items():
        path = os.path.join(outdir, f'people{size}{"_val" if split == "val" else ""}.zip')
        click.echo(f'{path}: {write_archive(path, people, font, int(size))} images of {len(people)} persons')
    write_labels(os.path.join(outdir, 'people_labels.csv'), splits)


if __name__ == '__main__':
    from lia_plugin.cli import run

    sys.exit(run(make_demo_data))
