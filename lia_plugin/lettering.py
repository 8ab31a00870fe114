"""Words inside pictures, in the font that comes with Pillow: always there, but with hardly more than ASCII.

Names of files and labels are anybody's, so what the font lacks is spelled with what it has.
"""

from __future__ import annotations

import functools
import unicodedata

import PIL.ImageFont

Font = PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont

NOWHERE = '\U0010ffff'  # No font has it: it looks as everything does that is missing.
UNKNOWN = '?'
# What has no decomposition in Unicode, or one that says something else.
SPELLINGS = {
    'ß': 'ss', 'ẞ': 'SS', 'æ': 'ae', 'Æ': 'AE', 'œ': 'oe', 'Œ': 'OE', 'ø': 'o', 'Ø': 'O', 'ł': 'l', 'Ł': 'L',
    'đ': 'd', 'Đ': 'D', 'ð': 'd', 'Ð': 'D', 'þ': 'th', 'Þ': 'Th', 'ı': 'i', '²': '^2', '³': '^3', '‖': '|',
    '‐': '-', '‑': '-', '–': '-', '—': '-', '−': '-', '×': 'x', '≤': '<=', '≥': '>=', '→': '->', '…': '...',
    '‘': "'", '’': "'", '“': '"', '”': '"', '„': '"', 'φ': 'phi', 'ρ': 'rho', 'χ': 'chi', 'σ': 'sigma', 'ψ': 'psi',
}  # fmt: skip


@functools.cache
def font(size: int) -> Font:
    """Pillow's own, at so many pixels."""
    return PIL.ImageFont.load_default(size)


def drawable(text: str) -> str:
    """The text in characters that the font has: 'jürgen' -> 'jurgen', '猫' -> '?'."""
    return ''.join(_spelled(character) for character in unicodedata.normalize('NFC', text))


@functools.cache
def _spelled(character: str) -> str:
    if _has(character):
        return character
    parts = SPELLINGS.get(character) or unicodedata.normalize('NFKD', character)
    kept = [part for part in parts if not _leaves_nothing(part)]
    if not kept:
        return ''
    return ''.join(part if _has(part) else UNKNOWN for part in kept)


def _leaves_nothing(character: str) -> bool:
    """Accents that stand alone, joiners, variation selectors: they change what is before them."""
    return unicodedata.category(character) in ('Mn', 'Me', 'Cf')


@functools.cache
def _has(character: str) -> bool:
    if character.isascii():
        return True
    own, missing = (font(13).getmask(each) for each in (character, NOWHERE))
    return (own.size, bytes(own)) != (missing.size, bytes(missing))
