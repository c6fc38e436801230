"""Who an image claims to be: identifiers, dates and descriptions that no patient, scanner or hospital has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from highdicom import UID, ContributingEquipment
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from nodule_plugin import __version__
from nodule_plugin.data.generated import NOTICE
from nodule_plugin.errors import InputError

MANUFACTURER = "nodule-plugin"
MODEL_NAME = "SYNTHETIC image generator"
_LONG_STRING, _SHORT_TEXT = 64, 1024
"""How many characters the value representations LO and ST take (PS3.5, 6.2)."""


@dataclass(frozen=True)
class RunIdentity:
    """What all files of one generation run share.

    UIDs follow from what made the files and from ``created``: no two runs share one, since a file with another date
    must not carry an old UID, and a run repeated with the same ``created`` gives the same files.

    Attributes:
        run: settings of the run, as manifests hold them (``model``, ``scheduler``, ``window_hu``, ``software``, ...).
        created: when, with a time zone.
        made_from: what else the UIDs follow from, which is written nowhere: the patient's series, for instance.
    """

    run: Mapping[str, Any]
    created: datetime
    made_from: str = ""

    def uid(self, *parts: str) -> str:
        """A UID of our own (2.25., PS3.5 annex B.2) for the thing that ``parts`` name."""
        source = [self.made_from] if self.made_from else []
        text = json.dumps([self.run, self.created.isoformat(), *source, *parts], sort_keys=True)
        return str(UID.from_uuid(str(uuid5(NAMESPACE_URL, text))))

    @property
    def arguments(self) -> dict[str, Any]:
        """Of highdicom's constructors: patient, study, equipment."""
        study = self.uid("study")
        when = self.created.astimezone(timezone.utc)
        return {
            "study_instance_uid": study,
            "study_id": "1",
            "study_date": when.date(),
            "study_time": when.time(),
            "series_date": when.date(),
            "series_time": when.time(),
            "content_date": when.date(),
            "content_time": when.time(),
            "accession_number": "",
            "referring_physician_name": "",
            # One "patient" for each run: archives file what has no identifier under whoever had none before.
            "patient_id": f"SYNTHETIC-{study[-8:]}",
            "patient_name": "SYNTHETIC^NOT A PATIENT",
            "patient_birth_date": "",
            "patient_sex": "",
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": MODEL_NAME,
            "software_versions": __version__,
            "content_qualification": "RESEARCH",
            "specific_character_set": "ISO_IR 192",
        }

    def mark(self, dataset: Dataset, request: Mapping[str, Any]) -> None:
        """Say, wherever SOP Common, General Study and Patient have a place for it, that ``dataset`` is synthetic."""
        dataset.StudyDescription = "SYNTHETIC chest CT nodules"
        dataset.PatientComments = NOTICE
        dataset.TimezoneOffsetFromUTC = "+0000"
        self.mark_instance(dataset, request)

    def mark_instance(self, dataset: Dataset, request: Mapping[str, Any], offset: str | None = None) -> None:
        """Say it in SOP Common alone, and when series and content began: study and patient are others' too.

        Args:
            dataset: to be marked.
            request: see :meth:`parameters`.
            offset: the study's from UTC, where ``dataset`` does not say it itself.
        """
        if offset:
            dataset.TimezoneOffsetFromUTC = offset
        when = self.created.astimezone(datetime.strptime(dataset.get("TimezoneOffsetFromUTC") or "+0000", "%z").tzinfo)
        dataset.SyntheticData = "YES"
        for name in ("InstanceCreation", "Series", "Content"):
            setattr(dataset, f"{name}Date", when.date())
            setattr(dataset, f"{name}Time", when.time())
        dataset.ContributingEquipmentSequence = [self._generator(request)]

    def _generator(self, request: Mapping[str, Any]) -> ContributingEquipment:
        software = self.run.get("software", {})
        return ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=codes.DCM.SynthesizingEquipment,
            manufacturer_model_name=long_string(self.run["model"]["base_model"]),
            software_versions=[long_string(f"{name} {version}") for name, version in software.items()] or __version__,
            device_serial_number=long_string(self.run["model"]["weights_sha256"]),
            contribution_datetime=self.created.astimezone(timezone.utc),
            contribution_description="; ".join(self.parameters(request))[:_SHORT_TEXT],
        )

    def parameters(self, request: Mapping[str, Any]) -> list[str]:
        """What decided how an image looks, beside its prompt: "name=value", weights first."""
        settings = {
            "weights_sha256": self.run["model"]["weights_sha256"],
            "base_model_revision": self.run["model"].get("revision"),
            "guidance_scale": request["guidance_scale"],
            "seed": request["seed"],
            **{name: value for name, value in self.run.items() if name not in ("model", "software")},
            "prediction_type": self.run["model"].get("prediction_type"),
        }
        return [f"{name}={json.dumps(value).strip(chr(34))}" for name, value in settings.items() if value is not None]


def long_string(text: str) -> str:
    """``text`` cut to what a Long String takes, without the backslash that would end a value and control characters."""
    return "".join(c if c.isprintable() else " " for c in text.replace("\\", "/"))[:_LONG_STRING]


def parse_created(created: str) -> datetime:
    """The time that DICOM files carry.

    Args:
        created: in ISO 8601; without a time zone it is taken as UTC.

    Raises:
        InputError: if it is not a time.
    """
    try:
        parsed = datetime.fromisoformat(created)
    except (TypeError, ValueError) as error:
        raise InputError(f"created: a time such as 2026-01-31T12:00:00 is needed, not {created!r}") from error
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
