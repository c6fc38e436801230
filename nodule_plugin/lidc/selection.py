"""Which nodules to use: limits on readers, diameter and slice thickness, by name or one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nodule_plugin.errors import InputError


@dataclass(frozen=True)
class Selection:
    """Limits that a nodule must keep; each includes its bound, None sets none.

    Attributes:
        min_readers, max_readers: annotations of the nodule. More than four readings of one nodule cannot be: such a
            group is of nodules too close to be told apart.
        min_diameter_mm, max_diameter_mm: of the nodule's maximum diameter.
        max_slice_thickness_mm: of the scan.
    """

    min_readers: int = 1
    max_readers: int | None = None
    min_diameter_mm: float | None = None
    max_diameter_mm: float | None = None
    max_slice_thickness_mm: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
                raise InputError(f"{name}: a number of 0 or more is needed, not {value!r}")
        for low, high in (("min_readers", "max_readers"), ("min_diameter_mm", "max_diameter_mm")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise InputError(f"{low}: {least:g} is above {high} {most:g}; no nodule can satisfy both")

    def objection(self, readers: int, diameter_mm: float, slice_thickness_mm: float | None = None) -> str | None:
        """Why a nodule is not selected, or None where it is. An unknown slice thickness (None) keeps every limit."""
        checks = (
            ("readers", readers, self.min_readers, self.max_readers, ""),
            ("diameter", diameter_mm, self.min_diameter_mm, self.max_diameter_mm, " mm"),
            ("slice thickness", slice_thickness_mm, None, self.max_slice_thickness_mm, " mm"),
        )
        for name, value, least, most, unit in checks:
            if value is None:
                continue
            if least is not None and value < least:
                return f"{name} below {least:g}{unit}"
            if most is not None and value > most:
                return f"{name} above {most:g}{unit}"
        return None


SELECTIONS: dict[str, Selection] = {
    "all": Selection(),
    # The reference method does not say how its 2,077 nodules were selected. Of the simple rules tried this one comes
    # closest (2,080 of LIDC-IDRI's 2,651), see docs/lidc.md.
    "reference": Selection(max_readers=4, min_diameter_mm=5, max_diameter_mm=40, max_slice_thickness_mm=2.5),
}
"""Every named selection."""


def get_selection(name: str = "all", **limits: float | None) -> Selection:
    """A named selection, with some of its limits replaced.

    Args:
        name: a name in :data:`SELECTIONS`.
        limits: fields of :class:`Selection`; None keeps the named selection's own.

    Raises:
        InputError: if there is no such selection or a limit makes no sense.
    """
    if name not in SELECTIONS:
        raise InputError(f"selection: there is no {name!r}; choose one of {', '.join(SELECTIONS)}")
    given = {field: value for field, value in limits.items() if value is not None}
    return replace(SELECTIONS[name], **given)  # type: ignore[arg-type]
