"""The scale of weights: even steps of lightness, in OKLab, from that of the page to the darkest."""

import numpy as np

__all__ = ["ENTRIES", "scale"]

ENTRIES = 256
# Lightness, chroma, and hue in degrees, of weights 0 and 1; and chroma that is added half-way.
LIGHT = ((0.985, 0.003, 210.0), (0.30, 0.13, 285.0), 0.05)
DARK = ((0.235, 0.012, 265.0), (0.96, 0.06, 130.0), 0.055)


def scale(*, dark: bool = False) -> np.ndarray:
    """The colours of weights from 0 to 1: uint8 `[256, 3]`, sRGB."""
    (start, end, bow), t = (DARK if dark else LIGHT), np.linspace(0.0, 1.0, ENTRIES)
    lightness, chroma, hue = ((1 - t) * a + t * b for a, b in zip(start, end, strict=True))
    chroma = chroma + bow * np.sin(np.pi * t)
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    return np.round(255 * _srgb(np.stack([lightness, a, b], axis=-1))).astype(np.uint8)


def _srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab (Ottosson 2020) to sRGB from 0 to 1; what is out of gamut is cut off: [..., 3]."""
    to_cones = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_linear.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
