"""From real and generated images to a sealed study: choice of cases, order for each reader, images, key, links."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from nodule_plugin.data.datalist import datalist_kernel
from nodule_plugin.data.evaluation_images import LoadSetImaged, generated_items, image_size, real_items
from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.data.transforms import chain_id
from nodule_plugin.errors import InputError
from nodule_plugin.files import new_folder, replacing
from nodule_plugin.reader_study.answers import AnswerStore
from nodule_plugin.reader_study.cues import compare_arms, image_cues, refuse_telling
from nodule_plugin.reader_study.questions import ITEMS
from nodule_plugin.reader_study.seal import REAL_ARM, Key, Sealed, commitment, encode_key
from nodule_plugin.reader_study.sheet import csv_bytes
from nodule_plugin.reader_study.study import (
    ANSWERS_FILE,
    FORMAT,
    IMAGES,
    LINKS_FILE,
    STUDY_FILE,
    VERSION,
    Plan,
    new_links,
)
from nodule_plugin.settings import whole_number

_logger = logging.getLogger(__name__)

MEASURED_CASES = 200
"""At most so many cases are looked at for cues: with them chance alone stays near an area of 0.6."""
FILE_TIME = 946684800
"""Time stamp of every image: 2000-01-01T00:00:00Z."""


@dataclass(frozen=True)
class Settings:
    """The size of a study. The defaults are the reference method's: 20 real images, 20 of each model, three readers.

    Attributes:
        cases: how many findings; each gives one real image and one of each model.
        repeats: how many images are shown twice, unannounced, for the agreement of a reader with herself.
        practice: how many images of further cases come first and do not count.
        readers: the readers' names, which only the study's team sees.
        plan: how the answers are going to be judged.
        title: shown to the readers.
        accepted_cues: families of cues (see :mod:`.cues`) by which a program may tell the arms apart.
    """

    cases: int = 20
    repeats: int = 6
    practice: int = 3
    readers: tuple[str, ...] = ("R1", "R2", "R3")
    plan: Plan = field(default_factory=Plan)
    title: str = "Reader study of nodule images"
    accepted_cues: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One set of findings: its real image and one generated image of each model.

    Attributes:
        patient_id: of the real image.
        items: arm -> item for :class:`LoadSetImaged`; the first arm is "real".
    """

    patient_id: str
    items: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DesignedStudy:
    """What :func:`write_study` wrote, and what it measured (see :func:`.cues.compare_arms`)."""

    study: Path
    key: Path
    links: Path
    commitment: str
    blinding: Mapping[str, Any]


def write_study(
    output: str | Path,
    datalist: str | Path,
    generated: Sequence[str | Path],
    settings: Settings = Settings(),
    split: str | Sequence[str] = "test",
    dataset_dir: str | Path | None = None,
    key: str | Path | None = None,
    seed: int | None = None,
) -> DesignedStudy:
    """Design a study and seal it.

    Args:
        output: folder of the study; it must not be there yet. The server needs it and nothing else.
        datalist: data list of the real images.
        generated: generated sets (folders or their ``manifest.json``), made from that data list's findings.
        settings: size and plan.
        split: of the data list; several are joined.
        dataset_dir: folder of the data list's images; by default the one that it names.
        key: file for the key, outside of ``output``; by default beside it, with ``.key.json`` added to its name. The
            readers' links go to a file ``.links.csv`` beside the key.
        seed: for rehearsals: the same seed draws the same cases. Whoever chose it may have chosen them, so that the
            study is marked as a rehearsal. Names and orders come from the operating system's randomness in any case.

    Raises:
        InputError: naming what does not fit or does not suffice.
    """
    root = Path(output)
    key_file = root.with_name(f"{root.name}.key.json") if key is None else Path(key)
    links_file = key_file.with_name(f"{root.name}.links.csv")
    _check(settings, root, (key_file, links_file))
    folders = [Path(path).parent if Path(path).is_file() else Path(path) for path in generated]
    window_hu = _common_window(folders)
    kernel = datalist_kernel(datalist)
    made = generated_items(folders, chain_id(kernel))
    arms = (REAL_ARM, *_models(made))
    real = real_items(datalist=datalist, split=split, dataset_dir=dataset_dir)
    rng = random.SystemRandom()
    cases = draw_cases(match_cases(real, made, arms), settings, rng if seed is None else random.Random(seed))
    size = image_size(made)
    load = LoadSetImaged(size, window_hu, kernel)
    blinding = refuse_telling(measure_cues(cases, arms, load), settings.accepted_cues)

    with new_folder(root) as folder:
        sealed = _write_images(folder / IMAGES, cases, arms, settings, load, rng)
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "id": f"{rng.getrandbits(64):016x}",
            "title": settings.title,
            "size": list(size),
            "window_hu": list(window_hu),
            "chain": chain_id(kernel),
            "phantoms": any(item["record"].phantom for item in real),
            "rehearsal": seed is not None,
            "keyed_answers": True,
            "plan": asdict(settings.plan),
            "readers": {reader: draw_order(sealed, rng) for reader in settings.readers},
        }
        sealed_key = Key(arms, sealed, blinding, secrets.token_bytes(32))
        raw = encode_key(content, sealed_key)
        content["commitment"] = {"algorithm": "SHA-256 of the key file", "sha256": commitment(raw)}
        links, digests = new_links(list(settings.readers))
        (folder / STUDY_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / LINKS_FILE).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
        _start_answers(folder / ANSWERS_FILE, content["id"], sealed_key)
        _write_private({key_file: raw, links_file: _links_table(links)})
    _logger.info("%d images of %d cases in %s", len(sealed), settings.cases, root)
    return DesignedStudy(root, key_file, links_file, commitment(raw), blinding)


def _check(settings: Settings, root: Path, outside: Sequence[Path]) -> None:
    for name in ("cases", "repeats", "practice"):
        whole_number(name, getattr(settings, name), least=2 if name == "cases" else 0)
    if not settings.readers or len(set(settings.readers)) < len(settings.readers) or not all(settings.readers):
        raise InputError(f"readers: different names are needed, not {', '.join(settings.readers) or 'none'}")
    plan = settings.plan
    if not (0 < plan.margin < 4 and 0 < plan.auc_margin < 0.5 and 0 < plan.alpha < 0.5):
        raise InputError(
            f"plan: margin {plan.margin:g} (0 to 4 points), auc_margin {plan.auc_margin:g} (0 to 0.5) and alpha "
            f"{plan.alpha:g} (0 to 0.5) must lie between these ends"
        )
    if plan.primary not in ITEMS:
        raise InputError(f"primary: there is no item {plan.primary!r}; choose one of {', '.join(ITEMS)}")
    for path in outside:
        if root.absolute() in path.absolute().parents:
            raise InputError(f"key: {path} lies in the study's folder, which is served; give a file elsewhere")
        if path.exists():
            raise InputError(f"key: {path} is already there; a key is never replaced: move it or give another name")


def _common_window(folders: Sequence[Path]) -> tuple[float, float]:
    windows = {folder: load_generated(folder).window_hu for folder in folders}
    if not windows:
        raise InputError("generated: give at least one generated set")
    if len(set(windows.values())) > 1:
        told = ", ".join(f"{folder.name} {lower:g} to {upper:g}" for folder, (lower, upper) in windows.items())
        raise InputError(f"generated: the sets have different windows, which would tell them apart: {told} HU")
    return next(iter(windows.values()))


def _models(made: Sequence[dict[str, Any]]) -> list[str]:
    scales: dict[str, set[float | None]] = defaultdict(set)
    for item in made:
        scales[item["set"].model].add(item["set"].guidance_scale)
    for model, own in scales.items():
        if len(own) > 1:
            told = ", ".join(f"{scale:g}" for scale in sorted(filter(None, own)))
            raise InputError(
                f"generated: {model} holds the guidance scales {told}; give a set of one scale for each arm"
            )
        if model == REAL_ARM:
            raise InputError("generated: a model is called 'real'; rename its folder")
    return list(scales)


def match_cases(real: Sequence[dict[str, Any]], made: Sequence[dict[str, Any]], arms: Sequence[str]) -> list[Case]:
    """Real images of which every model made an image from the same findings.

    A generated image belongs to the real one that its manifest names as source; where it names none, to one with the
    same prompt. It is used once.
    """
    pools: dict[tuple[str, str, str | None], list[dict[str, Any]]] = defaultdict(list)
    for item in made:
        record = item["record"]
        by = ("source", record.source_id) if record.source_id is not None else ("prompt", record.prompt)
        pools[(item["set"].model, *by)].append(item)
    cases = []
    for item in real:
        record = item["record"]
        pool_of = {
            arm: pools.get((arm, "source", record.id)) or pools.get((arm, "prompt", record.prompt)) for arm in arms[1:]
        }
        if all(pool_of.values()):
            items = {REAL_ARM: item, **{arm: pool.pop(0) for arm, pool in pool_of.items() if pool}}
            cases.append(Case(record.patient_id or record.id, items))
    return cases


def draw_cases(cases: Sequence[Case], settings: Settings, rng: random.Random) -> list[Case]:
    """All cases in an order drawn at random, different patients first: the study's, those to practise with, the rest.

    Raises:
        InputError: if there are too few.
    """
    needed = settings.cases + settings.practice
    if len(cases) < needed:
        raise InputError(
            f"cases: {settings.cases} and {settings.practice} to practise with are asked for, but only {len(cases)} "
            "real images have a generated one of every set; generate from more of the data list or ask for fewer"
        )
    shuffled = rng.sample(list(cases), len(cases))
    patients: set[str] = set()
    first: list[Case] = []
    further: list[Case] = []
    for case in shuffled:
        (further if case.patient_id in patients else first).append(case)
        patients.add(case.patient_id)
    if len(first) < needed:
        _logger.warning("only %d patients for %d cases: some cases share a patient", len(first), needed)
    return [*first, *further]


def measure_cues(cases: Sequence[Case], arms: Sequence[str], load: LoadSetImaged) -> dict[str, Any]:
    """What tells the arms apart (see :func:`.cues.compare_arms`), on the study's cases and the rest of them."""
    cues: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for case in tqdm(cases[:MEASURED_CASES], desc="measuring cues", unit="case"):
        for arm in arms:
            grey = _load_grey(case.items[arm], load)
            cues[arm].append(image_cues(grey, encode_image(grey)))
    return compare_arms(cues)


def _load_grey(item: Mapping[str, Any], load: LoadSetImaged) -> np.ndarray:
    """An image of whichever arm as the study shows it: (rows, columns) uint8."""
    grey = to_uint8(load(item)["image"].float()[None])[0, 0].numpy()
    if grey.shape != tuple(load.size):
        raise InputError(
            f"generated: {item['image']} has {grey.shape} pixels, another {tuple(load.size)}; one size is needed"
        )
    return grey


def _write_images(
    folder: Path,
    cases: Sequence[Case],
    arms: Sequence[str],
    settings: Settings,
    load: LoadSetImaged,
    rng: random.Random,
) -> dict[str, Sealed]:
    shown = [(number, arm, False) for number in range(1, settings.cases + 1) for arm in arms]
    shown += [(settings.cases + 1 + n, arms[n % len(arms)], True) for n in range(settings.practice)]
    sealed: dict[str, Sealed] = {}
    contents: dict[str, bytes] = {}
    for number, arm, practice in tqdm(shown, desc="reading images", unit="image"):
        item = cases[number - 1].items[arm]
        name = _new_name(sealed, rng)
        contents[name] = encode_image(_load_grey(item, load))
        sealed[name] = Sealed(arm, number, None, practice, hashlib.sha256(contents[name]).hexdigest(), _origin(item))
    for name in _draw_repeats(sealed, arms, settings.repeats, rng):
        copy = _new_name(sealed, rng)
        contents[copy] = contents[name]
        sealed[copy] = replace(sealed[name], repeat_of=name)
    folder.mkdir()
    for name in sorted(contents):  # in the order of their random names: the file system keeps the order of writing
        file = folder / f"{name}.png"
        file.write_bytes(contents[name])
        file.chmod(0o644)
        os.utime(file, (FILE_TIME, FILE_TIME))
    return sealed


def encode_image(grey: np.ndarray) -> bytes:
    """An 8-bit PNG with nothing in it but pixels, not compressed: noise would make real images longer than smooth ones.

    Args:
        grey: (rows, columns) uint8.
    """
    content = io.BytesIO()
    Image.fromarray(grey).save(content, "PNG", compress_level=0)
    return content.getvalue()


def _new_name(taken: dict[str, Sealed], rng: random.Random) -> str:
    while (name := f"{rng.getrandbits(40):010x}") in taken:
        continue
    return name


def _origin(item: dict[str, Any]) -> dict[str, Any]:
    key, record = item["set"], item["record"]
    return {"id": record.id, "model": key.model, "guidance_scale": key.guidance_scale, "prompt": record.prompt}


def _draw_repeats(sealed: dict[str, Sealed], arms: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Images to show twice: as many of each arm as possible, of different cases as far as there are enough."""
    names = [name for name, image in sealed.items() if not image.practice]
    if count > len(names) // 2:
        raise InputError(f"repeats: at most half of the {len(names)} images can be shown twice, not {count}")
    chosen: list[str] = []
    for number in range(count):
        pool = [name for name in names if name not in chosen and sealed[name].arm == arms[number % len(arms)]]
        pool = pool or [name for name in names if name not in chosen]
        used = {sealed[name].case for name in chosen}
        chosen.append(rng.choice([name for name in pool if sealed[name].case not in used] or pool))
    return chosen


def draw_order(sealed: dict[str, Sealed], rng: random.Random) -> dict[str, list[str]]:
    """One reader's sequence: practice, then every image at random.

    An image that is shown twice comes first in the first half and again in the last third, so that at least a sixth of
    the sequence lies between the two.

    Returns:
        {"practice": ids, "images": ids}.
    """
    repeats = [name for name, image in sealed.items() if image.repeat_of]
    originals = [str(sealed[name].repeat_of) for name in repeats]
    others = [n for n, image in sealed.items() if not image.practice and n not in repeats and n not in originals]
    count = len(repeats) + len(originals) + len(others)
    order: list[str | None] = [None] * count
    early = rng.sample(range(count // 2), len(originals))
    late = rng.sample(range(count - max(count // 3, len(repeats)), count), len(repeats))
    for indices, names in ((early, originals), (late, repeats)):
        for index, name in zip(indices, rng.sample(names, len(names))):
            order[index] = name
    rest = iter(rng.sample(others, len(others)))
    practice = [name for name, image in sealed.items() if image.practice]
    return {
        "practice": rng.sample(practice, len(practice)),
        "images": [next(rest) if name is None else name for name in order],
    }


def _start_answers(file: Path, study: str, key: Key) -> None:
    """Make the database of answers, which only its owner can read: until the first answer it holds the first key."""
    file.touch(mode=0o600)
    AnswerStore(file, study).seal(key.answers_key or b"")


def _links_table(links: Mapping[str, str]) -> bytes:
    return csv_bytes([{"reader": reader, "path": f"/r/{secret}"} for reader, secret in links.items()])


def _write_private(contents: dict[Path, bytes]) -> None:
    """Write files that only their owner can read, all of them or none."""
    written: list[Path] = []
    try:
        for path, content in contents.items():
            with replacing(path) as temporary:
                temporary.chmod(0o600)  # while it is empty
                temporary.write_bytes(content)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink()
        raise InputError(f"key: {error.filename} cannot be written ({error.strerror}); give another file") from error
