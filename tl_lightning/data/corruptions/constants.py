"""The published constants of every corruption, by severity, and their scaling to the image size.

Source: ``make_cifar_c.py`` (32 px) and ``make_imagenet_c.py`` (224 px) of Hendrycks and Dietterich 2019,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
https://github.com/hendrycks/robustness. Between the two sizes a constant is interpolated linearly in the logarithm of
the size; outside, the nearer table holds.
"""

from __future__ import annotations

import math

Row = tuple[float, ...]
Table = tuple[Row, Row, Row, Row, Row]

_SMALL, _LARGE = 32, 224

# name: (at 32 px, at 224 px), each a row per severity
_PUBLISHED: dict[str, tuple[Table, Table]] = {
    "gaussian_noise": (((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)), ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    "shot_noise": (((500,), (250,), (100,), (75,), (50,)), ((60,), (25,), (12,), (5,), (3,))),
    "impulse_noise": (((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)), ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "speckle_noise": (((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)), ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,))),
    "gaussian_blur": (((0.4,), (0.6,), (0.7,), (0.8,), (1.0,)), ((1,), (2,), (3,), (4,), (6,))),
    # radius of the disk, sigma of its smoothing
    "defocus_blur": (
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    # radius and sigma of the one-sided Gaussian along the path
    "motion_blur": (
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    # largest zoom factor
    "zoom_blur": (((1.06,), (1.11,), (1.16,), (1.21,), (1.26,)), ((1.11,), (1.16,), (1.21,), (1.26,), (1.31,))),
    # amount, decay of the plasma fractal
    "fog": (
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": (((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)), ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "contrast": (((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)), ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    "jpeg_compression": (((80,), (65,), (58,), (50,), (40,)), ((25,), (18,), (15,), (10,), (7,))),
    "pixelate": (((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)), ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    # Not as published: there, severities 1 and 2 desaturate and 3 to 5 saturate. factor, offset
    "saturate": (
        ((1.25, 0), (1.5, 0), (1.75, 0.05), (2, 0.1), (2.5, 0.2)),
        ((1.5, 0), (2, 0), (3, 0.05), (5, 0.1), (20, 0.2)),
    ),
    # Not as published: there, severities 1 and 2 are of another kind (an affine shift) and hit harder than 3.
    # root mean square displacement and smoothness of the displacement, as parts of the image size
    "elastic_transform": (
        ((0.01, 0.05), (0.02, 0.05), (0.03, 0.05), (0.04, 0.05), (0.05, 0.05)),
        ((0.005, 0.03), (0.01, 0.03), (0.015, 0.03), (0.02, 0.03), (0.03, 0.03)),
    ),
}


def constants(name: str, severity: int, size: int) -> Row:
    """Return the constants of a corruption at a severity (1..5) for images of ``size`` pixels."""
    small, large = (table[severity - 1] for table in _PUBLISHED[name])
    share = min(1.0, max(0.0, math.log(size / _SMALL) / math.log(_LARGE / _SMALL)))
    return tuple(a + share * (b - a) for a, b in zip(small, large, strict=True))
