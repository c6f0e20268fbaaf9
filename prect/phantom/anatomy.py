"""The reference trunk and its organs: which shapes lie where, in painting order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prect.phantom.patient import OrganVariation, Patient
from prect.phantom.shapes import (
    Box,
    Capsule,
    Ellipsoid,
    FloatArray,
    Material,
    Matrix,
    Part,
    Point,
    Profile,
    View,
    as_point,
    profile,
    tube,
)
from prect.phantom.skeleton import SPINE_CURVE, skeleton_parts
from prect.phantom.thorax import Diaphragm, Lungs, airway_parts, lung_vessel_parts
from prect.phantom.tissue import ORGANS

# Outer half width and half depth of the muscle of the body wall, by height.
_HALF_WIDTH = profile(
    *[(0, 152), (50, 160), (100, 158), (160, 148), (220, 136), (280, 132), (340, 142)],
    *[(400, 146), (450, 144), (520, 134), (570, 116), (600, 96), (640, 74)],
)
_HALF_DEPTH = profile(
    *[(0, 88), (50, 95), (120, 96), (200, 89), (280, 90), (340, 98), (400, 102)],
    *[(480, 100), (550, 89), (600, 76), (640, 64)],
)
# Thickness of the wall: chest with its ribs, thin belly, thick buttocks.
_WALL_SIDE = profile((0, 70), (60, 66), (120, 40), (170, 18), (240, 14), (330, 18), (640, 18))
_WALL_FRONT_BACK = profile((0, 30), (80, 26), (150, 18), (240, 12), (330, 16), (640, 18))
# Fat under the skin relative to its thickness at the belly.
_FAT = profile((0, 1.2), (100, 1.25), (220, 1.0), (330, 0.7), (480, 0.5), (640, 0.45))
# How far cross sections are from an ellipse (0) towards a rectangle (1).
_SQUARENESS = np.float32(0.42)


@dataclass(frozen=True)
class Layer:
    """One closed surface around the trunk: cross sections between ellipse and rectangle."""

    half_width: Profile
    half_depth: Profile

    def squared_radius(self, x2: FloatArray, y2: FloatArray, z: FloatArray) -> FloatArray:
        """Squared radius relative to the surface from x squared, y squared and z.

        The curve u^2 + v^2 - q u^2 v^2 = 1 is the squircle of Fernandez-Guasti (1992). It bends
        back far outside, so both squares are limited; inside and outside stay right.
        """
        rows = self.half_width.index(z)
        u2 = np.minimum(x2 / self.half_width.take(rows) ** 2, np.float32(2))
        v2 = np.minimum(y2 / self.half_depth.take(rows) ** 2, np.float32(2))
        result: FloatArray = u2 + v2
        # The product term only where it keeps the sum rising.
        result -= _SQUARENESS * np.minimum(u2, 1) * np.minimum(v2, 1)
        return result


@dataclass(frozen=True)
class Anatomy:
    """A body in coordinates of the reference trunk."""

    skin: Layer
    wall: Layer
    cavity: Layer
    parts: tuple[Part, ...]
    """Everything inside, in painting order."""
    box: Box
    """Holds the whole body at any height that is scanned."""
    hu: Mapping[str, float]


def _inset(outer: Profile, thickness: Profile, factor: float = 1.0) -> Profile:
    table = outer.table - np.float32(factor) * thickness.table
    return Profile(outer.lowest, np.asarray(table, dtype=np.float32))


def build_anatomy(patient: Patient, hu: Mapping[str, float], rng: np.random.Generator) -> Anatomy:
    """Lay out the body of ``patient``.

    Args:
        patient: its fat and organ variations are used; size and pose are up to the renderer.
        hu: HU of each tissue, see `prect.phantom.tissue.tissue_hu`.
        rng: for what needs no parameters of its own: lung vessels, bowel loops, texture.
    """
    wall = Layer(_HALF_WIDTH, _HALF_DEPTH)
    cavity = Layer(_inset(_HALF_WIDTH, _WALL_SIDE), _inset(_HALF_DEPTH, _WALL_FRONT_BACK))
    skin = Layer(
        _inset(_HALF_WIDTH, _FAT, -patient.fat), _inset(_HALF_DEPTH, _FAT, -0.9 * patient.fat)
    )
    reach_x = float(skin.half_width.table.max())
    reach_y = float(skin.half_depth.table.max()) + (30.0 if patient.breasts else 0.0)
    thorax = (-150.0, -105.0, 262.0), (150.0, 105.0, 650.0)
    varied = patient.organs
    parts: list[Part] = [
        *_breasts(patient, hu, skin),
        *_back_muscles(hu),
        Lungs(hu, rng.standard_normal((64, 64, 64), dtype=np.float32)),
        *lung_vessel_parts(hu, rng),
        *_mediastinum(hu, varied["heart"]),
        *airway_parts(hu),
        Diaphragm(hu),
        *_upper_abdomen(hu, varied),
        *_bowel(hu, rng),
        *_kidney(hu, varied["kidney_right"], 1.0),
        *_kidney(hu, varied["kidney_left"], -1.0),
        *_pelvic_organs(hu, varied["bladder"]),
        *skeleton_parts(hu, thorax),
        *_great_vessels(hu),
    ]
    box = (-reach_x, -reach_y, -80.0), (reach_x, reach_y, 740.0)
    return Anatomy(skin, wall, cavity, tuple(parts), box, hu)


def _varied(organ: OrganVariation, centre: Point, half_axes: Point) -> tuple[Point, Point]:
    moved = as_point(np.array(centre) + np.array(organ.shift))
    return moved, as_point(np.array(half_axes) * organ.scale)


def _turned(about_x: float = 0.0, about_y: float = 0.0, about_z: float = 0.0) -> Matrix:
    """(3, 3) rotation from degrees about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = (
        f(np.deg2rad([about_x, about_y, about_z])) for f in (np.cos, np.sin)
    )
    turn_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    turn_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    turn_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(turn_z @ turn_y @ turn_x, dtype=np.float64)


def _breasts(patient: Patient, hu: Mapping[str, float], skin: Layer) -> list[Part]:
    if not patient.breasts:
        return []
    front = skin.half_depth.at(455.0) - 16.0
    material = Material(hu["fat"], ORGANS["body"], 15.0, 0.5, within="outside")
    return [
        Ellipsoid((side * 68.0, front, 455.0), (52.0, 40.0, 50.0), material) for side in (1, -1)
    ]


def _back_muscles(hu: Mapping[str, float]) -> list[Part]:
    """Paraspinal muscles beside, and psoas muscles in front of, the spine."""
    muscle = Material(hu["muscle"], ORGANS["body"], within="wall")
    parts: list[Part] = []
    heights = (110.0, 180.0, 250.0, 320.0, 400.0, 500.0, 600.0)
    for side in (1.0, -1.0):
        column = [(side * 30.0, SPINE_CURVE.at(z) - 32.0, z) for z in heights]
        parts += tube(column, [20, 24, 26, 24, 19, 16, 14], muscle)
        psoas = [
            (side * 27.0, -40.0, 330.0),
            (side * 40.0, -32.0, 240.0),
            (side * 52.0, -22.0, 170.0),
            (side * 74.0, 20.0, 95.0),
        ]
        parts += tube(psoas, [9, 19, 21, 16], muscle)
    return parts


def _mediastinum(hu: Mapping[str, float], heart: OrganVariation) -> list[Part]:
    """Heart with its chambers in a bed of fat, and the oesophagus."""
    turn = _turned(about_y=-28.0, about_z=28.0)
    centre, half = _varied(heart, (-16.0, 22.0, 447.0), (55.0, 42.0, 56.0))

    def chamber(offset: Point, axes: Point, tissue: str) -> Ellipsoid:
        place = np.array(centre) + turn @ np.array(offset) * heart.scale
        size = as_point(np.array(axes) * heart.scale)
        material = Material(hu[tissue], ORGANS["heart"])
        return Ellipsoid(as_point(place), size, material, turn)

    bed = as_point(np.array(half) + 8.0)
    oesophagus = [(2.0, SPINE_CURVE.at(z) + 27.0, z) for z in (640.0, 540.0, 470.0)]
    oesophagus += [(-8.0, -10.0, 415.0), (-22.0, 5.0, 385.0)]
    return [
        Ellipsoid(centre, bed, Material(hu["fat"] + 10, ORGANS["body"], within="cavity"), turn),
        *tube(oesophagus, [8] * 5, Material(hu["soft"], ORGANS["body"])),
        Ellipsoid(centre, half, Material(hu["myocardium"], ORGANS["heart"]), turn),
        chamber((-16.0, -6.0, -8.0), (25.0, 20.0, 30.0), "blood"),
        chamber((22.0, 14.0, -6.0), (20.0, 20.0, 34.0), "venous_blood"),
        chamber((-2.0, -24.0, 28.0), (24.0, 14.0, 18.0), "blood"),
        chamber((34.0, -6.0, 22.0), (15.0, 20.0, 20.0), "venous_blood"),
    ]


def _great_vessels(hu: Mapping[str, float]) -> list[Part]:
    """Aorta with iliac arteries, pulmonary trunk, and both venae cavae."""
    aorta = Material(hu["blood"], ORGANS["aorta"])
    artery = Material(hu["blood"], ORGANS["body"])
    vein = Material(hu["venous_blood"], ORGANS["body"])

    def before_spine(z: float, gap: float) -> float:
        return SPINE_CURVE.at(z) + gap

    arch: list[Point] = [
        (2.0, 16.0, 462.0),
        (13.0, 20.0, 490.0),
        (13.0, 16.0, 520.0),
        (2.0, 0.0, 537.0),
        (-14.0, -20.0, 534.0),
        (-23.0, -32.0, 515.0),
    ]
    heights = (470.0, 410.0, 350.0, 300.0, 250.0, 205.0)
    sides = (-23.0, -20.0, -13.0, -9.0, -7.0, -6.0)
    descending = [
        (x, before_spine(z, gap), z)
        for x, z, gap in zip(sides, heights, (21, 25, 31, 33, 35, 35), strict=True)
    ]
    caval = [(17.0, before_spine(z, 36), z) for z in (200.0, 260.0, 320.0)]
    caval += [(22.0, 2.0, 375.0), (24.0, 10.0, 425.0)]
    parts: list[Part] = [
        *tube(caval, [11, 11, 12, 13, 13], vein),
        *tube([(30.0, 8.0, 470.0), (24.0, 6.0, 510.0), (22.0, 14.0, 560.0)], [10, 10, 8], vein),
        *tube([(-12.0, 36.0, 478.0), (-20.0, 16.0, 505.0)], [14, 13], vein),
        *tube([(-40.0, -2.0, 498.0), (-18.0, 8.0, 502.0), (34.0, -4.0, 490.0)], [9, 13, 9], vein),
        *tube(arch, [16, 16, 15, 13, 12, 12], aorta),
        *tube([arch[-1], *descending], [12, 12, 11, 11, 10, 9, 9], aorta),
    ]
    for side in (1.0, -1.0):
        iliac = [
            (-6.0 * (side < 0), 2.0, 203.0),
            (side * 38.0, -14.0, 140.0),
            (side * 64.0, 52.0, 75.0),
            (side * 72.0, 66.0, 20.0),
        ]
        parts += tube(iliac, [6, 6, 5, 5], artery)
        veins = [(x + side * 4.0, y - 13.0, z) for x, y, z in iliac]
        parts += tube(veins, [8, 7, 6, 6], vein)
    parts += tube([(4.0, 2.0, 537.0), (16.0, 2.0, 580.0)], [6, 5], artery)
    parts += tube([(-10.0, -10.0, 537.0), (-20.0, -2.0, 600.0)], [5, 4], artery)
    return parts


def _upper_abdomen(hu: Mapping[str, float], varied: Mapping[str, OrganVariation]) -> list[Part]:
    """Liver, stomach, spleen, gall bladder and pancreas."""
    liver, stomach, spleen = varied["liver"], varied["stomach"], varied["spleen"]
    under_dome = Material(hu["liver"], ORGANS["liver"], within="cavity")
    right_lobe, right_half = _varied(liver, (68.0, 2.0, 342.0), (64.0, 82.0, 92.0))
    left_lobe, left_half = _varied(liver, (8.0, 40.0, 362.0), (72.0, 42.0, 36.0))
    spleen_centre, spleen_half = _varied(spleen, (-90.0, -34.0, 345.0), (29.0, 46.0, 54.0))
    stomach_centre, stomach_half = _varied(stomach, (-58.0, 22.0, 352.0), (38.0, 46.0, 46.0))
    antrum: list[Point] = [
        (stomach_centre[0], stomach_centre[1] + 15.0, stomach_centre[2] - 18.0),
        (-25.0, 48.0, 300.0),
        (14.0, 38.0, 300.0),
    ]
    gut = Material(
        hu["gut_wall"],
        ORGANS["stomach"],
        hu["gut_content"],
        0.9,
        gas_above=stomach_centre[1] + 24.0,
        within="cavity",
    )
    bile = Material(hu["gut_wall"], ORGANS["body"], 8.0, 0.88, within="cavity")
    pancreas = Material(hu["soft"] + 40, ORGANS["body"], within="cavity")
    return [
        UnderDome(Ellipsoid(left_lobe, left_half, under_dome, _turned(about_y=12.0))),
        UnderDome(Ellipsoid(right_lobe, right_half, under_dome, _turned(about_y=-8.0))),
        UnderDome(Ellipsoid(stomach_centre, stomach_half, gut, _turned(about_y=-15.0))),
        *(UnderDome(part) for part in tube(antrum, [26, 20, 14], gut)),
        UnderDome(
            Ellipsoid(
                spleen_centre,
                spleen_half,
                Material(hu["spleen"], ORGANS["spleen"], within="cavity"),
                _turned(about_x=18.0, about_z=-14.0),
            )
        ),
        Ellipsoid((40.0, 46.0, 290.0), (15.0, 18.0, 30.0), bile, _turned(about_x=20.0)),
        *tube([(22.0, 14.0, 282.0), (-10.0, 20.0, 300.0)], [15, 10], pancreas),
        *tube([(-10.0, 20.0, 300.0), (-68.0, -12.0, 322.0)], [10, 8], pancreas),
    ]


@dataclass(frozen=True)
class UnderDome:
    """A part cut off at the lower side of the diaphragm."""

    part: Ellipsoid | Part

    @property
    def box(self) -> Box:
        return self.part.box

    def paint(self, view: View) -> None:
        # The lung lies right above the diaphragm: keep what is there and put it back.
        above = Diaphragm.height(view) < view.z + 3
        hu, labels = view.hu[above], view.labels[above]
        self.part.paint(view)
        view.hu[above], view.labels[above] = hu, labels


def _bowel(hu: Mapping[str, float], rng: np.random.Generator) -> list[Part]:
    """Small bowel as a heap of loops, then the colon as a frame around it."""
    loop = Material(hu["gut_wall"], ORGANS["body"], hu["gut_content"], 0.75, within="cavity")
    parts: list[Part] = []
    for _ in range(60):
        start = np.array([rng.uniform(-72, 72), rng.uniform(-2, 58), rng.uniform(105, 262)])
        end = start + rng.uniform([-40, -14, -22], [40, 14, 22])
        end = np.clip(end, [-76, -5, 100], [76, 60, 268])
        radius = float(rng.uniform(9, 14))
        parts.append(Capsule(as_point(start), as_point(end), radius, radius, loop))
    courses: tuple[tuple[list[Point], list[float]], ...] = (
        ([(92, 8, 140), (100, -4, 200), (94, -2, 262)], [26, 23, 20]),
        ([(94, -2, 262), (50, 58, 252), (-40, 60, 258), (-96, 8, 300)], [20, 18, 17, 17]),
        ([(-96, 8, 300), (-103, -14, 240), (-98, -4, 150)], [17, 15, 15]),
        ([(-98, -4, 150), (-50, 20, 118), (-10, -20, 128), (0, -34, 100)], [15, 13, 13, 16]),
        ([(0, -34, 100), (0, -34, 60), (0, -30, 10)], [17, 18, 11]),
    )
    for points, radii in courses:
        gas = float(np.mean([p[1] for p in points])) + float(rng.uniform(-4, 12))
        colon = Material(
            hu["gut_wall"], ORGANS["body"], hu["gut_content"] + 10, 0.84, gas, within="cavity"
        )
        parts += tube(points, radii, colon)
    return parts


def _kidney(hu: Mapping[str, float], variation: OrganVariation, side: float) -> list[Part]:
    """Cortex, medulla and fat at the hilum; the right kidney lies a little lower."""
    label = ORGANS["kidney_right" if side > 0 else "kidney_left"]
    height = 276.0 if side > 0 else 292.0
    centre, half = _varied(variation, (side * 63.0, -42.0, height), (26.0, 23.0, 54.0))
    turn = _turned(about_x=-10.0, about_y=-12.0 * side, about_z=25.0 * side)
    inward = as_point(np.array(centre) + turn @ [-side * 21.0, 0.0, 0.0])
    medulla = Material(hu["renal_cortex"], label, hu["renal_medulla"], 0.7)
    bed = Material(hu["fat"], ORGANS["body"], within="cavity")
    return [
        Ellipsoid(centre, as_point(np.array(half) + 7.0), bed, turn),
        Ellipsoid(centre, half, medulla, turn),
        Ellipsoid(inward, (15.0, 8.0, 19.0), Material(hu["fat"] + 30, ORGANS["body"]), turn),
    ]


def _pelvic_organs(hu: Mapping[str, float], bladder: OrganVariation) -> list[Part]:
    centre, half = _varied(bladder, (0.0, 28.0, 80.0), (42.0, 30.0, 30.0))
    wall = Material(hu["soft"], ORGANS["bladder"], hu["urine"], 0.93)
    gland = Material(hu["soft"] + 8, ORGANS["body"])
    return [
        Ellipsoid((0.0, 8.0, 46.0), (24.0, 18.0, 20.0), gland),
        Ellipsoid(centre, half, wall),
    ]
