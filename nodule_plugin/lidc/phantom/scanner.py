"""What a scanner does to the picture: point spread, reconstruction kernel, slice thickness and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from nodule_plugin.lidc.phantom.grid import Grid


@dataclass(frozen=True)
class Scanner:
    """One series' imaging properties.

    Attributes:
        blur_mm: standard deviation of the in-plane point spread.
        tails: fraction of the point spread in its wide tails.
        sharpening: weight of the unsharp mask that edge-enhancing kernels amount to; 0 for soft ones.
        noise_hu: standard deviation of the noise in lung.
        noise_peak: spatial frequency at which the noise is strongest, as a fraction of the Nyquist frequency.
        streaks: anisotropy of the noise; 1 none, larger values draw it out along the rows, as the shoulders do.
    """

    blur_mm: float
    tails: float
    sharpening: float
    noise_hu: float
    noise_peak: float
    streaks: float

    @classmethod
    def draw(cls, slice_thickness: float, rng: np.random.Generator) -> Scanner:
        """A scanner out of the range seen in LIDC-IDRI: most soft, some sharp; thin slices are noisier."""
        sharp = rng.random() < 0.3
        noise = np.exp(rng.normal(np.log(52 if sharp else 23), 0.7)) * np.sqrt(1.8 / max(slice_thickness, 0.6))
        streaks = rng.uniform(1.5, 4) if rng.random() < 0.3 else 1.0
        return cls(
            blur_mm=rng.uniform(0.35, 0.5) if sharp else rng.uniform(0.55, 0.85),
            tails=rng.uniform(0.0, 0.1) if sharp else rng.uniform(0.05, 0.2),
            sharpening=rng.uniform(0.3, 1.2) if sharp else rng.choice([0, rng.uniform(0, 0.3)]),
            noise_hu=float(np.clip(noise, 7, 170)),
            noise_peak=rng.uniform(0.5, 0.8) if sharp or streaks > 1 else rng.uniform(0.3, 0.5),
            streaks=streaks,
        )

    def image(self, volume: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
        """The scan of ``volume`` (HU, on ``grid``): float32 (slices, rows, columns) in the scan's pixels."""
        sigma = self.blur_mm / grid.pitch
        halo = 1.6 / grid.pitch
        # A narrow core and wide, weak tails: scatter, focal spot and interpolation.
        tails = self.tails * gaussian_filter(volume, (0, halo, halo), truncate=2.5)
        blurred = (1 - self.tails) * gaussian_filter(volume, (0, sigma, sigma)) + tails
        if self.sharpening:
            wide = 0.9 / grid.pitch
            blurred = blurred + self.sharpening * (blurred - gaussian_filter(blurred, (0, wide, wide)))
        pixels = grid.bin_down(blurred)
        return (pixels + self.noise_hu * self._noise(pixels.shape, rng)).astype(np.float32)

    def _noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Noise of unit variance with the spectrum of filtered back-projection: a ramp, cut off by the kernel."""
        rows = np.fft.fftfreq(shape[1])[:, None]
        columns = np.fft.rfftfreq(shape[2])[None, :]
        frequency = np.hypot(rows, columns * self.streaks)
        cutoff = self.noise_peak * 0.5
        amplitude = np.sqrt(frequency + 0.01) * np.exp(-0.5 * (frequency / cutoff) ** 2)
        white = rng.standard_normal(shape)
        noise = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=shape[1:])
        return noise / noise.std()
