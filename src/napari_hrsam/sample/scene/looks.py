"""How a scene looks: colours, textures and edges of the background and of every kind of object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from napari_hrsam.sample.scene.noise import Wave

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coat:
    """How the objects of a kind look.

    Attributes
    ----------
    colours : tuple of colours
        An object takes one of them, by its variant.
    spread : float
        How much brighter or darker single objects are, in grey values.
    rim : colour
        Added at the outline, fading inwards.
    waves : tuple of waves
        Cells of the texture in level-0 pixels, with amplitudes.
    grain : colour
        The texture's amplitude of 1 in this colour.
    """

    colours: tuple[Colour, ...]
    spread: float
    rim: Colour
    waves: tuple[Wave, ...]
    grain: Colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How a scene looks.

    Attributes
    ----------
    ground : colour
        Of the background.
    fibres_y, fibres_x, mix : tuples of waves
        Textures of the background along two directions, and where which of them prevails.
    fibre_colour : colour
        The fibres' amplitude of 1.
    mottle : tuple of waves
        Slow changes of the background's brightness.
    slope : (float, float)
        Change of the whole picture's brightness from its first row and column to its last.
    coats : mapping of str to Coat
        By the kind's name.
    """

    ground: Colour
    fibres_y: tuple[Wave, ...]
    fibres_x: tuple[Wave, ...]
    mix: tuple[Wave, ...]
    fibre_colour: Colour
    mottle: tuple[Wave, ...]
    slope: tuple[float, float]
    coats: Mapping[str, Coat]


_TISSUE = Look(
    ground=(224.0, 180.0, 206.0),
    fibres_y=((32, 4, 0.7), (256, 32, 0.5)),
    fibres_x=((4, 32, 0.7), (32, 256, 0.5)),
    mix=((256, 256, 0.7), (2048, 2048, 0.6)),
    fibre_colour=(14.0, 26.0, 16.0),
    mottle=((2, 2, 7.0), (1024, 1024, 5.0), (8192, 8192, 6.0)),
    slope=(-7.0, 5.0),
    coats={
        "nucleus": Coat(
            colours=((104.0, 70.0, 138.0), (84.0, 62.0, 126.0), (124.0, 84.0, 146.0)),
            spread=12.0,
            rim=(-26.0, -22.0, -18.0),
            waves=((2, 2, 0.5), (8, 8, 1.0)),
            grain=(20.0, 18.0, 16.0),
        ),
        "gland": Coat(
            colours=((176.0, 84.0, 112.0), (142.0, 98.0, 168.0), (104.0, 116.0, 152.0)),
            spread=6.0,
            rim=(-44.0, -48.0, -32.0),
            waves=((4, 4, 0.6), (32, 32, 0.8)),
            grain=(9.0, 11.0, 9.0),
        ),
        "lobule": Coat(
            colours=((164.0, 98.0, 152.0), (150.0, 88.0, 120.0)),
            spread=8.0,
            rim=(-34.0, -40.0, -26.0),
            waves=((4, 4, 0.6), (32, 32, 0.7), (256, 256, 0.6)),
            grain=(14.0, 17.0, 12.0),
        ),
        "lesion": Coat(
            colours=((138.0, 104.0, 166.0), (126.0, 92.0, 142.0)),
            spread=8.0,
            rim=(-30.0, -34.0, -20.0),
            waves=((4, 4, 0.6), (16, 16, 0.8), (128, 128, 0.5), (1024, 1024, 0.5)),
            grain=(15.0, 16.0, 12.0),
        ),
    },
)


def _grey(value: float) -> Colour:
    return (value, value, value)


_EM = Look(
    ground=_grey(176.0),
    fibres_y=((16, 2, 0.8), (128, 16, 0.5)),
    fibres_x=((2, 16, 0.8), (16, 128, 0.5)),
    mix=((128, 128, 0.7), (1024, 1024, 0.6)),
    fibre_colour=_grey(24.0),
    mottle=((2, 2, 12.0), (1024, 1024, 5.0), (8192, 8192, 5.0)),
    slope=(8.0, -6.0),
    coats={
        "nucleus": Coat(
            colours=(_grey(92.0), _grey(80.0), _grey(104.0)),
            spread=8.0,
            rim=_grey(-36.0),
            waves=((2, 2, 0.8), (2, 16, 1.0)),
            grain=_grey(18.0),
        ),
        "gland": Coat(
            colours=(_grey(112.0), _grey(96.0)),
            spread=8.0,
            rim=_grey(-60.0),
            waves=((2, 2, 0.9), (32, 32, 0.7)),
            grain=_grey(12.0),
        ),
        "lobule": Coat(
            colours=(_grey(120.0), _grey(108.0)),
            spread=6.0,
            rim=_grey(-40.0),
            waves=((2, 2, 0.7), (16, 16, 0.7), (128, 128, 0.6)),
            grain=_grey(16.0),
        ),
        "lesion": Coat(
            colours=(_grey(128.0),),
            spread=8.0,
            rim=_grey(-40.0),
            waves=((2, 2, 0.7), (8, 8, 0.7), (64, 64, 0.5), (1024, 1024, 0.5)),
            grain=_grey(16.0),
        ),
    },
)

LOOKS = {"tissue": _TISSUE, "em": _EM}
