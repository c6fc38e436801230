"""A nodule's pixels brought into a series, in Hounsfield units.

What the source changed (its pixels less the host's, on its own samples) is added to the host's voxels, so that the
host's finest detail stays. The change counts in full in the nodule and close to it, in part a little farther, and
beyond nothing changes (:mod:`nodule_plugin.insertion.place`). What noise the change took away is put back, up to the
level measured near by (:mod:`nodule_plugin.insertion.noise`).

Others have blended in gradients (Pezeshk A et al., "Seamless insertion of pulmonary nodules in chest CT images", IEEE
Trans Biomed Eng 2015;62:2812-2827); a model that has seen the surroundings needs no more than a soft edge.
"""

from __future__ import annotations

import numpy as np
import torch

from nodule_plugin.errors import InputError
from nodule_plugin.insertion.host import Host
from nodule_plugin.insertion.noise import matched_noise
from nodule_plugin.insertion.place import Place, sample_weight
from nodule_plugin.insertion.sources import Asked, NoduleSource


def insert(hu: np.ndarray, place: Place, host: Host, source: NoduleSource, guidance_scale: float, steps: int) -> None:
    """Put a nodule into a series.

    Args:
        hu: (slices, rows, columns) Hounsfield units, the host's with what was inserted before; changed where the
            nodule's weight is above 0, except for the host's padding.
        place: where, and what.
        host: the series.
        source: of the pixels.
        guidance_scale, steps: of its sampling.

    Raises:
        InputError: if the source gives values that are not finite.
    """
    before = place.block.from_series(hu)
    given = torch.from_numpy(before), torch.from_numpy(place.drawn)
    asked = Asked(place.lesion.prompt, place.drawn_mm, guidance_scale, steps, place.seed)
    made = source(*given, asked).numpy()
    if not np.isfinite(made).all():
        raise InputError(f"the nodule of seed {place.seed} has values that are not finite; use a lower guidance_scale")
    change = place.block.to_series((made - before) * sample_weight(place.drawn, place.block.spacing), place.box)
    result = hu[place.box] + change
    result += matched_noise(hu, result, place, host) * place.weight
    changed = (place.weight > 0) & ~host.padding[place.box]
    hu[place.box][changed] = result[changed]
