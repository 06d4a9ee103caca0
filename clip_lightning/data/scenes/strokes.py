"""Digits drawn as pen strokes: how people write 0 to 9, with the pen, the hand and the scanner varied.

The forms come from handwriting as it is taught and habitually written (open and closed 4, crossed 7, 1 with and without
flag and foot, ...), not from any data set of scans.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from clip_lightning.data.order.counter_rng import CounterRng

PER_SEGMENT = 4  # straight pieces between two control points
OVERSAMPLING = 4

# One line per way to write a digit: strokes separated by `/`, control points `x,y` in percent of a box, y downwards,
# joined by a smooth curve; a point given twice in a row is a corner.
FORMS = (
    (
        "55,0 20,10 0,50 20,92 50,100 85,90 100,50 85,10 50,0",
        "80,6 35,0 0,45 15,90 55,100 95,70 95,25 60,0",
        "60,2 20,15 2,55 30,97 75,93 100,50 80,8 50,6",
    ),
    (
        "50,0 50,50 50,100",
        "32,20 55,0 55,0 54,50 54,100",
        "15,36 40,18 60,0 60,0 60,50 60,100",
        "28,22 52,0 52,0 52,50 52,100 / 20,100 52,100 85,100",
    ),
    (
        "5,22 30,1 75,3 90,30 55,65 2,100 2,100 50,98 100,98",
        "8,18 45,0 85,18 70,55 25,92 5,90 20,78 60,95 100,92",
        "10,30 20,5 60,0 85,22 60,60 10,97 10,97 40,94 90,100",
    ),
    (
        "10,10 50,0 88,20 70,43 35,48 35,48 80,55 95,78 60,100 5,92",
        "5,2 85,2 85,2 40,40 40,40 85,50 92,80 50,100 5,90",
        "8,14 40,0 82,8 84,32 50,47 50,47 90,62 88,90 40,100 2,85",
    ),
    (
        "20,0 10,30 2,60 2,60 50,60 100,57 / 78,10 74,55 70,100",
        "72,100 72,50 72,0 72,0 35,35 2,66 2,66 50,66 100,66",
        "10,5 6,30 10,50 45,55 85,48 / 90,0 85,50 80,100",
        "50,0 25,35 0,62 0,62 90,68 / 70,35 66,68 60,100",
    ),
    (
        "20,2 15,25 12,45 12,45 55,37 92,60 75,92 35,100 0,90 / 20,2 55,3 92,0",
        "95,2 25,5 25,5 18,42 18,42 60,40 88,68 50,100 5,92",
        "85,0 30,2 30,2 12,50 12,50 50,45 70,70 45,95 2,100",
    ),
    (
        "75,0 30,20 3,60 20,96 65,100 92,75 65,50 25,58 8,75",
        "50,0 20,35 5,72 30,100 75,95 85,68 50,52 12,68",
        "85,5 45,8 10,45 12,90 50,100 80,82 60,60 20,68",
    ),
    (
        "2,3 50,2 95,3 95,3 62,50 35,100",
        "5,3 50,2 95,2 95,2 65,50 45,100 / 30,50 60,50 95,48",
        "5,20 5,2 5,2 50,6 92,0 92,0 70,45 50,100",
        "5,22 10,4 10,4 50,6 90,0 90,0 68,50 45,100 / 30,55 60,50 95,46",
    ),
    (
        "80,12 45,0 12,20 50,48 90,76 50,100 8,78 50,48 85,22 75,6",
        "50,0 18,20 50,46 82,20 50,0 / 50,46 6,74 50,100 94,74 50,46",
        "70,5 30,4 25,28 60,52 72,85 45,100 20,85 40,52 78,25 65,3",
    ),
    (
        "85,20 50,0 12,20 30,48 70,42 87,15 87,15 82,55 75,100",
        "85,22 55,0 15,15 20,45 60,48 86,20 80,60 45,95 20,100",
        "88,18 50,0 10,22 35,50 75,40 88,15 92,60 70,97 30,100 10,85",
        "75,22 40,2 8,28 40,52 75,30 / 78,2 76,50 74,100",
    ),
)


@lru_cache(maxsize=64)
def spline(num_points: int) -> np.ndarray:
    """The curve through control points as a matrix on them: float64 [(num_points - 1) * PER_SEGMENT + 1, num_points].

    Source: Catmull and Rom, "A class of local interpolating splines", 1974; the end points are repeated.
    """
    rows = []
    for position in np.arange((num_points - 1) * PER_SEGMENT + 1) / PER_SEGMENT:
        segment = min(int(position), num_points - 2)
        t = position - segment
        weights = np.array([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2
        row = np.zeros(num_points)
        np.add.at(row, np.clip(np.arange(segment - 1, segment + 3), 0, num_points - 1), weights)
        rows.append(row)
    return np.array(rows)


@lru_cache(maxsize=64)
def _strokes(digit: int, form: int) -> tuple[np.ndarray, ...]:
    """The control points of a form, float64 [points, 2] per stroke, in a box of side 1 around 0."""
    strokes = FORMS[digit][form].split("/")
    return tuple(
        np.array([[float(x) for x in point.split(",")] for point in stroke.split()]) / 100 - 0.5 for stroke in strokes
    )


def write_digit(digit: int, rng: CounterRng) -> list[np.ndarray]:
    """The lines that a hand draws for a digit, float64 [points, 2] each, about 1 high.

    Drawn by `rng`: the form, the shake of every control point, the digit's width, its slant and its tilt.
    """
    strokes = _strokes(digit, rng.index(len(FORMS[digit])))
    width, slant, tilt = rng.between(0.45, 0.95), rng.between(-0.2, 0.45), rng.between(-0.12, 0.12)
    hand = np.array([[width, 0.0], [-slant, 1.0]]) @ np.array([[1.0, tilt], [-tilt, 1.0]])
    shake = rng.between(0.01, 0.05)
    shaken = [points + shake * rng.generator.standard_normal(points.shape) for points in strokes]
    return [spline(len(points)) @ points @ hand for points in shaken]


def ink(lines: list[np.ndarray], size: int, pen: float) -> Image.Image:
    """Lines drawn with a round pen, both in pixels: a grey image of `size` x `size` pixels, 255 is ink."""
    paper = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
    brush = ImageDraw.Draw(paper)
    width = pen * OVERSAMPLING
    for line in lines:
        points = [tuple(point) for point in (line * OVERSAMPLING).tolist()]
        brush.line(points, 255, round(width))
        for x, y in points[::PER_SEGMENT]:  # round ends and corners: both are control points
            brush.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 255)
    return paper.reduce(OVERSAMPLING)


def scan_digit(digit: int, rng: CounterRng, size: int) -> np.ndarray:
    """A digit as optical character recognition sees it: fitted to the frame by its height, often coarse.

    Forms of the tax and postal trade are scanned, cut out by the bounding box and reduced to few pixels (Garris et al.,
    "NIST form-based handprint recognition system", 1994). Returns ink, uint8 [size, size].
    """
    lines = write_digit(digit, rng)
    pen = size * rng.between(0.08, 0.2)
    points = np.concatenate(lines)
    low, high = points.min(0), points.max(0)
    wide, tall = np.maximum(high - low, 1e-6)
    scale = min((size - pen) / wide, (size * rng.between(0.9, 1.03) - pen) / tall)
    centre = size / 2 + size * np.array([rng.between(-0.06, 0.06), rng.between(-0.03, 0.03)])
    scan = ink([(line - (low + high) / 2) * scale + centre for line in lines], size, pen)
    coarse = rng.pick((1, 2, 4, 4, 4))
    if coarse > 1:
        scan = scan.reduce(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(scan)
