"""One nodule's ratings on the scales of the LIDC-IDRI readers.

The scales and their labels are those of the LIDC reading form (McNitt-Gray et al., "The Lung Image Database Consortium
(LIDC) data collection process for nodule detection and annotation", Acad Radiol 2007;14:1464-1474).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from typing import Any

from nodule_plugin.errors import InputError


@dataclass(frozen=True)
class Scale:
    """A rating scale: what each code means, and whether the codes are in order.

    Attributes:
        labels: code -> the reading form's wording.
        ordinal: True where a higher code is more of the same; False for a list of kinds (calcification, internal
            structure), on which medians and differences mean nothing.
    """

    labels: Mapping[int, str]
    ordinal: bool = True

    @property
    def codes(self) -> tuple[int, ...]:
        """The valid codes, ascending."""
        return tuple(self.labels)


def _scale(*labels: str, ordinal: bool = True) -> Scale:
    return Scale(dict(enumerate(labels, start=1)), ordinal)


SCALES: dict[str, Scale] = {
    "sphericity": _scale("linear", "ovoid/linear", "ovoid", "ovoid/round", "round"),
    "margin": _scale("poorly defined", "near poorly defined", "medium margin", "near sharp", "sharp"),
    "texture": _scale("non-solid (ground-glass)", "non-solid/mixed", "part-solid", "solid/mixed", "solid"),
    "spiculation": _scale("none", "nearly none", "medium", "near marked", "marked"),
    "lobulation": _scale("none", "nearly none", "medium", "near marked", "marked"),
    "calcification": _scale("popcorn", "laminated", "solid", "non-central", "central", "absent", ordinal=False),
    "malignancy": _scale(
        "highly unlikely", "moderately unlikely", "indeterminate", "moderately suspicious", "highly suspicious"
    ),
    "subtlety": _scale("extremely subtle", "moderately subtle", "fairly subtle", "moderately obvious", "obvious"),
    "internal_structure": _scale("soft tissue", "fluid", "fat", "air", ordinal=False),
}
"""Every scale by the name of its field in :class:`Findings`."""

CALCIFICATION_ABSENT = 6


def check_rating(name: str, value: Any) -> None:
    """Refuse what is not a code of a scale.

    Raises:
        InputError: if there is no such scale or code.
    """
    if name not in SCALES:
        raise InputError(f"findings: no rating is called {name!r}; there are {', '.join(SCALES)}")
    codes = SCALES[name].codes
    if isinstance(value, bool) or not isinstance(value, Integral) or value not in codes:
        raise InputError(f"{name}: whole numbers {codes[0]} to {codes[-1]} are ratings, not {value!r}")


@dataclass(frozen=True)
class Findings:
    """One nodule's ratings, whole numbers on :data:`SCALES`; :meth:`from_dict` makes them of a dictionary.

    The first five appear in the reference method's prompts; None in the others means "not rated".

    Attributes:
        sphericity: 1 (linear) to 5 (round).
        margin: 1 (poorly defined) to 5 (sharp).
        texture: 1 (ground-glass) to 5 (solid).
        spiculation, lobulation: 1 (none) to 5 (marked).
        calcification: 1 popcorn, 2 laminated, 3 solid, 4 non-central, 5 central, 6 absent.
        malignancy: 1 (highly unlikely) to 5 (highly suspicious).
        subtlety: 1 (extremely subtle) to 5 (obvious).
        internal_structure: 1 soft tissue, 2 fluid, 3 fat, 4 air.

    Raises:
        InputError: if a rating is not a code of its scale, see :data:`SCALES`.
    """

    sphericity: int
    margin: int
    texture: int
    spiculation: int
    calcification: int = CALCIFICATION_ABSENT
    lobulation: int | None = None
    malignancy: int | None = None
    subtlety: int | None = None
    internal_structure: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in OPTIONAL_RATINGS:
                continue
            check_rating(field.name, value)
            object.__setattr__(self, field.name, int(value))  # NumPy's and pandas' are whole numbers, but no JSON

    @property
    def calcified(self) -> bool:
        """Whether any calcification is present."""
        return self.calcification != CALCIFICATION_ABSENT

    def to_dict(self) -> dict[str, int]:
        """The ratings that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, ratings: Mapping[str, Any]) -> Findings:
        """Findings from names and ratings, as :meth:`to_dict` writes them and a user's JSON gives them.

        Raises:
            InputError: if a name is not a rating, a required rating is missing, or a value is off its scale.
        """
        for name in sorted(set(ratings) - set(SCALES)):
            check_rating(name, ratings[name])
        if missing := [name for name in REQUIRED_RATINGS if name not in ratings]:
            raise InputError(f"findings: the rating {missing[0]!r} is missing; needed: {', '.join(REQUIRED_RATINGS)}")
        return cls(**ratings)

    def describe(self) -> dict[str, str]:
        """The ratings that were given, by name, in the reading form's words."""
        return {name: SCALES[name].labels[value] for name, value in self.to_dict().items()}


REQUIRED_RATINGS = ("sphericity", "margin", "texture", "spiculation", "calcification")
OPTIONAL_RATINGS = ("lobulation", "malignancy", "subtlety", "internal_structure")
