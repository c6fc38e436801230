from __future__ import annotations

import numpy as np
import pytest
import torch

from nodule_plugin.metrics.radiomics import (
    FEATURES,
    RadiomicFeatures,
    cooccurrence_statistics,
    histogram_statistics,
    intensity_statistics,
)

# The digital phantom of the IBSI reference manual (its section 5.1); 0 is outside the region.
PHANTOM = np.array(
    [
        [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
        [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
    ]
)
# The manual's reference values for it, with the digits printed there.
REFERENCE = {
    "mean": "2.15",
    "variance": "3.05",
    "skewness": "1.08",
    "excess kurtosis": "-0.355",
    "median": "1",
    "minimum": "1",
    "10th percentile": "1",
    "90th percentile": "4",
    "maximum": "6",
    "interquartile range": "3",
    "range": "5",
    "mean absolute deviation": "1.55",
    "robust mean absolute deviation": "1.11",
    "median absolute deviation": "1.15",
    "energy": "567",
    "root mean square": "2.77",
    "discretised intensity entropy": "1.27",
    "discretised intensity uniformity": "0.512",
    "joint maximum": "0.519",
    "joint average": "2.14",
    "joint variance": "2.69",
    "joint entropy": "2.05",
    "difference average": "1.42",
    "difference variance": "2.9",
    "difference entropy": "1.4",
    "sum average": "4.28",
    "sum variance": "5.47",
    "sum entropy": "1.6",
    "angular second moment": "0.368",
    "contrast": "5.28",
    "dissimilarity": "1.42",
    "inverse difference": "0.678",
    "normalised inverse difference": "0.851",
    "inverse difference moment": "0.619",
    "normalised inverse difference moment": "0.899",
    "inverse variance": "0.0567",
    "correlation": "-0.0121",
    "autocorrelation": "5.09",
    "cluster tendency": "5.47",
    "cluster shade": "7",
    "cluster prominence": "79.1",
    "information correlation 1": "-0.155",
    "information correlation 2": "0.487",
}


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    region = PHANTOM[PHANTOM > 0]
    slices = [cooccurrence_statistics(layer, layer > 0) for layer in PHANTOM]
    means = {name: float(np.mean([found[name] for found in slices])) for name in slices[0]}
    return intensity_statistics(region) | histogram_statistics(region) | means


@pytest.mark.parametrize("name", REFERENCE)
def test_values_are_those_of_the_ibsi_reference_manual(name: str, measured: dict[str, float]) -> None:
    printed = REFERENCE[name]
    digits = len(printed.lstrip("-0.").replace(".", ""))
    assert float(f"{measured[name]:.{digits}g}") == float(printed)


def test_features_of_images_are_in_hounsfield_units_and_tell_texture() -> None:
    extract = RadiomicFeatures((-1000, 400))
    smooth = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    noise = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1) * 2 - 1
    found = extract(torch.cat([smooth, noise]))
    assert found.shape == (2, len(FEATURES))
    rows = [dict(zip(FEATURES, row.tolist())) for row in found]
    assert rows[0]["mean"] == pytest.approx(-300, abs=1)
    assert rows[0]["maximum"] == 400
    assert rows[0]["contrast"] < rows[1]["contrast"] / 10
    assert torch.isfinite(extract(torch.zeros(1, 3, 8, 8))).all()
    assert extract.fingerprint != RadiomicFeatures((-1000, 500)).fingerprint
