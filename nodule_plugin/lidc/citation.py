"""Under what terms LIDC-IDRI is shared, and how it is cited: what everything made from it has to carry."""

from __future__ import annotations

LICENCE = "CC BY 3.0"
LICENCE_URL = "https://creativecommons.org/licenses/by/3.0/"
CITATION = (
    "Armato SG III et al. (2015). Data From LIDC-IDRI. The Cancer Imaging Archive. doi:10.7937/K9/TCIA.2015.LO9QL9SX",
    "Armato SG III et al. (2011). The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative"
    " (IDRI): a completed reference database of lung nodules on CT scans. Med Phys 38:915-931.",
    "Clark K et al. (2013). The Cancer Imaging Archive (TCIA): maintaining and operating a public information"
    " repository. J Digit Imaging 26:1045-1057.",
)
ATTRIBUTION = f"LIDC-IDRI, {LICENCE}: " + " ".join(CITATION)
"""Both in one line, for a page or a file that has room for no more."""
