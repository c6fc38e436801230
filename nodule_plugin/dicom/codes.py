"""LIDC's ratings as coded concepts, as the published DICOM version of LIDC-IDRI's readings has them.

The Imaging Data Commons offers the readings as structured reports (collection "DICOM-LIDC-IDRI-Nodules"; Fedorov et
al., "DICOM re-encoding of volumetrically annotated Lung Imaging Database Consortium (LIDC) nodules", Med Phys 2020;
47:5953-5965). Its codes are used here too, so that a query that finds its nodules finds ours: NCI Thesaurus and RadLex
where they have a term, that collection's own scheme where they do not. One thing differs: RadLex is designated
"RADLEX", as PS3.16 (table 8-1) spells it.
"""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept

NCIT, RADLEX, QIICR, OWN = "NCIt", "RADLEX", "99LIDCQIICR", "99NODULEPLUGIN"

CODING_SCHEMES = (
    CodingSchemeIdentificationItem(
        QIICR,
        name="LIDC-IDRI reading scales, as coded in the collection DICOM-LIDC-IDRI-Nodules",
        responsible_organization="Quantitative Image Informatics for Cancer Research (QIICR)",
    ),
    CodingSchemeIdentificationItem(OWN, name="nodule-plugin", responsible_organization="nodule-plugin"),
)
"""The private schemes; what their codes mean stands beside each code in the files and in docs/dicom.md."""

PROMPT = CodedConcept("prompt", OWN, "Text prompt of generative model")

CONCEPTS: dict[str, CodedConcept] = {
    "sphericity": CodedConcept("400", QIICR, "Sphericity"),
    "margin": CodedConcept("C25563", NCIT, "Margin"),
    "texture": CodedConcept("C41144", NCIT, "Texture"),
    "spiculation": CodedConcept("C28749", NCIT, "Spiculation"),
    "lobulation": CodedConcept("C62175", NCIT, "Lobular Pattern"),
    "calcification": CodedConcept("C3672", NCIT, "Calcification"),
    "malignancy": CodedConcept("RID36042", RADLEX, "Malignancy"),
    "subtlety": CodedConcept("C45992", NCIT, "Subtlety score"),
    "internal_structure": CodedConcept("200", QIICR, "Internal structure"),
}
"""Every rating's name, by the name of its field in :class:`nodule_plugin.findings.Findings`."""


def _values(*codes: tuple[str, str, str]) -> dict[int, CodedConcept]:
    return {rating: CodedConcept(*code) for rating, code in enumerate(codes, start=1)}


def _between(lowest: tuple[str, str, str], middle: tuple[str, str, str], highest: tuple[str, str, str]) -> dict:
    """A scale of five whose second and fourth step have no name but their number."""
    return _values(lowest, ("002", QIICR, "2 out of 5"), middle, ("004", QIICR, "4 out of 5"), highest)


_MIDDLE = ("003", QIICR, "3 out of 5")

VALUES: dict[str, dict[int, CodedConcept]] = {
    "sphericity": _between(("RID5811", RADLEX, "linear"), ("RID5800", RADLEX, "ovoid"), ("RID5799", RADLEX, "round")),
    "margin": _between(("RID5709", RADLEX, "Indistinct margin"), _MIDDLE, ("RID5707", RADLEX, "Circumscribed margin")),
    "texture": _between(
        ("RID50153", RADLEX, "non-solid pulmonary nodule"),
        ("RID50152", RADLEX, "part-solid pulmonary nodule"),
        ("RID50151", RADLEX, "solid pulmonary nodule"),
    ),
    "spiculation": _between(
        ("701", QIICR, "1 out of 5 (No spiculation)"), _MIDDLE, ("705", QIICR, "5 out of 5 (Marked spiculation)")
    ),
    "lobulation": _between(
        ("601", QIICR, "1 out of 5 (No lobulation)"), _MIDDLE, ("605", QIICR, "5 out of 5 (Marked lobulation)")
    ),
    "calcification": _values(
        ("RID35453", RADLEX, "Popcorn calcification sign"),
        ("302", QIICR, "Laminated appearance"),
        ("RID5741", RADLEX, "Solid appearance"),
        ("304", QIICR, "Non-central appearance"),
        ("RID5827", RADLEX, "Central calcification"),
        ("RID28473", RADLEX, "Absent"),
    ),
    "malignancy": _values(
        ("901", QIICR, "1 out of 5 (Highly Unlikely for Cancer)"),
        ("902", QIICR, "2 out of 5 (Moderately Unlikely for Cancer)"),
        ("903", QIICR, "3 out of 5 (Indeterminate Likelihood)"),
        ("904", QIICR, "4 out of 5 (Moderately Suspicious for Cancer)"),
        ("905", QIICR, "5 out of 5 (Highly Suspicious for Cancer)"),
    ),
    "subtlety": _values(
        ("101", QIICR, "1 out of 5 (Extremely subtle)"),
        ("102", QIICR, "2 out of 5 (Moderately subtle)"),
        ("103", QIICR, "3 out of 5 (Fairly subtle)"),
        ("104", QIICR, "4 out of 5 (Moderately obvious)"),
        ("105", QIICR, "5 out of 5 (Obvious)"),
    ),
    "internal_structure": _values(
        ("C12471", NCIT, "Soft tissue"),
        ("C25278", NCIT, "Fluid"),
        ("C12472", NCIT, "Adipose tissue"),
        ("C73434", NCIT, "Air"),
    ),
}
"""Every code of every rating's scale."""
