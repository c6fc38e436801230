"""From what a page's controls say to images, one at a time, and to files of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nodule_plugin.data.evaluation_images import LoadSetImaged, real_items
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.data.requests import checked_prompt, generation_requests, rating_steps
from nodule_plugin.data.window import DEFAULT_WINDOW_HU, checked_window
from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.latent_space import latent_shape
from nodule_plugin.diffusion.model import FineTunedModel, Source, load_few_steps, load_model
from nodule_plugin.diffusion.provenance import Distilled, chosen_on
from nodule_plugin.diffusion.sampling import GenerationPrepareBatch, GuidedSampler
from nodule_plugin.errors import InputError
from nodule_plugin.findings import SCALES, Findings
from nodule_plugin.handlers.generation import GeneratedSetWriter, grey_image
from nodule_plugin.metrics.likeness import FittedIndex
from nodule_plugin.metrics.memorization import copy_threshold
from nodule_plugin.prompts import get_template
from nodule_plugin.provenance.marking import ImageMark, image_mark
from nodule_plugin.settings import whole_number

GUIDANCE_SCALES = (1.0, 1.5, 3.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""The row "the same seed at all guidance scales": from the prompt alone to far beyond what keeps variety."""
START = Findings(sphericity=4, margin=4, texture=5, spiculation=1, lobulation=1, malignancy=3)
"""What the sliders say at first."""
START_SEED = 7
"""Of the first image: looked at, a nodule as most seeds give one (0 gives a mass in noise)."""
FINDINGS, FREE_PROMPT = "findings", "a free prompt"
"""What a nodule is described by."""
USUAL_STEPS = 15
"""Of the sampler at first, as in the comparison that chose the small model's guidance scale."""
MOST_IMAGES, MOST_STEPS, LARGEST = 16, 50, 768
"""What one visitor may ask for at once, the side in pixels (768: Stable Diffusion 2's); others wait for it."""


@dataclass(frozen=True)
class Order:
    """What the controls of a page say.

    Attributes:
        findings: ratings by name; they make the prompt unless there is one.
        prompt: free text; None for that of the findings.
        guidance: scale.
        seed: of the first image.
        count: of seeds, counted up from the first.
        steps: of the sampler.
        size: side of an image, pixels.
        roi_mm: side of the square that an image shows, mm.
        template: that words the findings.
        quick: in few steps, with guidance built in, where there is a model for that; ``guidance`` and ``steps`` say
            nothing then.
    """

    findings: Mapping[str, int]
    prompt: str | None = None
    guidance: float = 3.0
    seed: int = 0
    count: int = 8
    steps: int = USUAL_STEPS
    size: int = 64
    roi_mm: float = 20.0
    template: str = "reference"
    quick: bool = False

    def __post_init__(self) -> None:
        whole_number("images", self.count, most=MOST_IMAGES)
        whole_number("steps", self.steps, most=MOST_STEPS)
        whole_number("size", self.size, most=LARGEST)

    def one(self) -> list[dict[str, Any]]:
        """The request for the first seed's image; see :func:`nodule_plugin.data.requests.generation_requests`."""
        return replace(self, count=1).grid()

    def grid(self) -> list[dict[str, Any]]:
        """Requests for all seeds."""
        return self._requests(seeds=list(range(self.seed, self.seed + self.count)))

    def sweep(self, rating: str) -> list[dict[str, Any]]:
        """Requests with the first seed for every code of one rating; all else stays.

        Raises:
            InputError: if there is a free prompt, or the template does not word the rating.
        """
        if self.prompt is not None:
            raise InputError("sweep: a free prompt has no findings to move; choose findings")
        if not (steps := rating_steps(self.findings, rating, self.template)):
            raise InputError(f"sweep: the template {self.template!r} does not word {rating!r}; choose another finding")
        return self._requests(findings=steps)

    def guidance_row(self) -> list[dict[str, Any]]:
        """Requests with the first seed at all of :data:`GUIDANCE_SCALES`; not for few steps."""
        return self._requests(guidance_scales=list(GUIDANCE_SCALES))

    def _requests(self, **changed: Any) -> list[dict[str, Any]]:
        what = {"findings": dict(self.findings)} if self.prompt is None else {"prompts": [self.prompt]}
        given: dict[str, Any] = {
            "guidance_scales": 1.0 if self.quick else self.guidance,
            "seeds": self.seed,
            **what,
            **changed,
        }
        return generation_requests(roi_mm=self.roi_mm, template=self.template, **given)


def read_order(template: str, by: str, prompt: str, **given: Any) -> Order:
    """What a page's controls say.

    Args:
        template: that words the findings.
        by: :data:`FINDINGS` or :data:`FREE_PROMPT`.
        prompt: in the latter case.
        given: ratings and the other attributes of :class:`Order`, by name.

    Raises:
        InputError: if a field or a free prompt is empty, or a value is beyond what a page allows.
    """
    for name, value in given.items():
        if value is None:
            raise InputError(f"{name}: the field is empty; give a number")
    findings = {name: int(given.pop(name)) for name in worded(template)}
    free = checked_prompt("prompt", prompt) if by == FREE_PROMPT else None
    # A template may word fewer ratings than Findings needs.
    return Order({**START.to_dict(), **findings}, free, template=template, **given)


@dataclass(frozen=True)
class Drawing:
    """One image.

    Attributes:
        request: that it answers.
        unit: (rows, columns) float32 in [-1, 1].
    """

    request: dict[str, Any]
    unit: np.ndarray


def window(model: FineTunedModel) -> tuple[float, float]:
    """Hounsfield units of black and white in a model's training images."""
    return checked_window(model.preprocessing.get("window_hu", DEFAULT_WINDOW_HU))


def sizes(side: int) -> list[int]:
    """Sides of an image that a page offers, pixels: the training images' and, where it is allowed, twice that."""
    return [size for size in (side, 2 * side) if size <= LARGEST]


def worded(template: str) -> list[str]:
    """The ratings that a template words, in the reading form's order."""
    return [name for name in SCALES if name in get_template(template).wording]


def quick_label(distilled: Distilled | None) -> str:
    """What both pages write beside the choice of few steps."""
    if distilled is None:
        return "Quick"
    return f"Quick: {distilled.steps} steps, guidance {distilled.guidance_scale:g} built in"


class Studio:
    """A model that draws what is ordered, and the one that does so in few steps, if there is one.

    Args:
        source: of the model.
        device: None for a GPU where there is one.

    Raises:
        InputError: see :func:`nodule_plugin.diffusion.model.load_model`; or if images are larger than a page allows.
    """

    def __init__(self, source: Source, device: torch.device | None = None) -> None:
        self.model = load_model(source)
        self.quick = load_few_steps(self.model)
        whole_number("image_size", self.model.image_size, most=LARGEST)
        self.window_hu = window(self.model)
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for model in filter(None, (self.model, self.quick)):
            for network in (model.network, model.vae, model.text_encoder):
                network.to(self.device)

    def draw(self, requests: Sequence[dict[str, Any]], order: Order) -> Iterator[Drawing]:
        """The images of ``requests``, each as soon as it is there.

        Raises:
            InputError: if a prompt is too long, or the model cannot make images of that size in so many steps.
        """
        model = self._model(order)
        # A conditioner remembers every prompt, and a page meets too many: each order has its own.
        conditioner = TextConditioner(model.tokenizer, model.text_encoder)
        prepare = GenerationPrepareBatch(conditioner, model.vae, order.size, mark=_mark(model, order.size))
        sampler = _sampler(model, order.steps)
        for request in requests:
            noise, _, _, conditions = prepare([request], self.device)
            image = sampler(noise, model.network, **conditions)[0]
            yield Drawing(request, grey_image(image, request["id"]))

    def write(self, drawings: Sequence[Drawing], order: Order, formats: Sequence[str], folder: Path) -> Path:
        """Write a generated set, as inference writes it, and pack it.

        Args:
            drawings: of one order.
            order: the one.
            formats: beside PNG; see :class:`nodule_plugin.handlers.generation.GeneratedSetWriter`.
            folder: for the set.

        Returns:
            The set as one zip beside ``folder``.

        Raises:
            InputError: if a package is missing or the disk is full.
        """
        model = self._model(order)
        writer = GeneratedSetWriter(
            folder,
            [drawing.request for drawing in drawings],
            _sampler(model, order.steps).settings,
            model.source.base_model,
            model.sha256,
            order.size,
            self.window_hu,
            formats=["png", *formats],
            revision=model.source.revision,
            chain=model.preprocessing.get("chain"),
            chosen_on=chosen_on(model.source.weights),
            mark=_mark(model, order.size),
        )
        writer.start()
        for drawing in drawings:
            writer.write(drawing.request, drawing.unit)
        writer.finish()
        return Path(shutil.make_archive(str(folder), "zip", folder))

    def _model(self, order: Order) -> FineTunedModel:
        return self.quick if order.quick and self.quick else self.model


def _mark(model: FineTunedModel, size: int) -> ImageMark | None:
    return image_mark(True, None, model.sha256, latent_shape(model.vae, size))


def _sampler(model: FineTunedModel, steps: int) -> GuidedSampler:
    steps = model.distilled.steps if model.distilled else steps
    return GuidedSampler(model.scheduler, model.vae, steps, scheduler_class=None)


@dataclass(frozen=True)
class Nearest:
    """The training image most like a drawing.

    Attributes:
        id: of the data list's item.
        likeness: from -1 to 1, see :class:`nodule_plugin.metrics.likeness.FittedIndex`.
        suspicious: whether it is more alike than all but one in a hundred held-out real images are.
    """

    id: str
    likeness: float
    suspicious: bool


class TrainingImages:
    """The images that a model learnt from, to warn of copies.

    Args:
        datalist: of the training.
        size: pixels to compare at.
        window_hu: of the drawings.
        dataset_dir: folder of the data list's images; None for the one that it names.

    Raises:
        InputError: if the list has no training images, or none of other splits to set the measure.
    """

    def __init__(
        self, datalist: Path, size: int, window_hu: tuple[float, float], dataset_dir: Path | None = None
    ) -> None:
        load = LoadSetImaged((size, size), window_hu)

        def images(items: Sequence[Mapping[Any, Any]]) -> list[torch.Tensor]:
            return [to_uint8(load(item)["image"][None])[0] for item in items]

        training = real_items(datalist=datalist, split="training", dataset_dir=dataset_dir)
        held_out = real_items(datalist=datalist, split=["validation", "test"], dataset_dir=dataset_dir)
        self._ids = [item["record"].id for item in training]
        self._index = FittedIndex(images(training))
        self.threshold = copy_threshold(self._index.find(images(held_out)).likeness)

    def nearest(self, drawing: Drawing) -> Nearest:
        """The training image most like ``drawing``, in whatever orientation."""
        unit = torch.from_numpy(drawing.unit).expand(1, 3, -1, -1)
        found = self._index.find(list(to_uint8(unit)))
        likeness = float(found.likeness[0])
        return Nearest(self._ids[int(found.index[0])], likeness, likeness > self.threshold)
