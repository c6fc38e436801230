"""The guidance scale that suits a trained model, chosen on the validation split."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn
from tqdm import tqdm

from nodule_plugin.diffusion.network import merged_copy
from nodule_plugin.diffusion.provenance import add_guidance, read_record
from nodule_plugin.files import replacing, write_json
from nodule_plugin.handlers.selection import ModelSelection
from nodule_plugin.handlers.validation import SetDistances
from nodule_plugin.metrics.distances import DistanceMeasure
from nodule_plugin.settings import as_numbers
from nodule_plugin.weights import read_weights

logger = logging.getLogger(__name__)
FORMAT = "nodule-plugin guidance"


class GuidanceChoice:
    """Once training is over, generate the validation's images with the chosen weights at several guidance scales.

    The scale of the least value goes into the record beside the weights (``model.json``), where inference finds it;
    all values go into ``guidance.json`` and ``guidance.png``. Each scale starts from the same noise. Of several
    processes each generates its own images.

    Args:
        selection: writes the weights; its evaluator tells data, preparation of batches and sampler. Where it has none,
            nothing is chosen.
        measures: see :func:`nodule_plugin.handlers.validation.measures`.
        scales: numbers, or text such as "1, 1.5, 3"; None chooses nothing.
        directory: of the curve.
    """

    def __init__(
        self, selection: ModelSelection, measures: Sequence[DistanceMeasure], scales: Any, directory: str
    ) -> None:
        self.selection, self.distances, self.directory = selection, SetDistances(measures), Path(directory)
        self.scales = [] if scales is None else [float(scale) for scale in as_numbers("val_guidance_scales", scales)]

    def attach(self, engine: Engine) -> None:
        """Choose when training is complete. Attach it after all that must be done by then, such as checkpoints."""
        if self.scales and self.selection.evaluator is not None:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Measure every scale, and write which is best; nothing where the record has the choice for these weights."""
        idist.barrier()  # the first process has written the weights
        known = read_record(self.selection.path).get("guidance", {})  # written anew, without it, with new weights
        if known == {**self._conditions(), "scale": known.get("scale")}:
            return
        network = merged_copy(self.selection.network).eval()
        network.load_state_dict(read_weights(self.selection.path, "weights"))
        progress = tqdm(self.scales, desc="guidance scales", disable=idist.get_rank() > 0)
        curve = [{"guidance_scale": scale, **self._measure(network, scale)} for scale in progress]
        if idist.get_rank() == 0:
            self._write(curve)

    def _conditions(self) -> dict[str, Any]:
        """What decides the choice, of JSON's types."""
        how = {key: value for key, value in self.selection.measured_by.items() if key != "guidance_scale"}
        return {**how, "scales": self.scales}

    @torch.no_grad()
    def _measure(self, network: nn.Module, scale: float) -> dict[str, float]:
        evaluator = cast(SupervisedEvaluator, self.selection.evaluator)
        self.distances.reset()
        for batch in evaluator.data_loader:
            noise, real, _, conditions = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking)
            self.distances.update((evaluator.inferer(noise, network, **{**conditions, "guidance_scale": scale}), real))
        return self.distances.compute()

    def _write(self, curve: Sequence[Mapping[str, float]]) -> None:
        measures, name = self.distances.measures, self.distances.name
        label = measures[0].name if len(measures) == 1 else "mean, in deviations of real halves"
        best = min(curve, key=lambda point: point[name])
        how = self._conditions()
        add_guidance(self.selection.path, {"scale": best["guidance_scale"], **how})
        content = {"format": FORMAT, "version": 1, **how, "decides": name, "curve": list(curve)}
        write_json(self.directory / "guidance.json", content)
        draw_guidance(curve, label, name, self.directory / "guidance.png")
        limits = f" [{best[f'{name}_low']:.4g}, {best[f'{name}_high']:.4g}]" if f"{name}_low" in best else ""
        logger.info(
            "Guidance scale %g is best of %s by %s, %.4g%s, on %s images of the %s split; %s names it.",
            *(best["guidance_scale"], ", ".join(f"{scale:g}" for scale in self.scales), label, best[name], limits),
            *(how["images"], how["split"], self.selection.path.with_suffix(".json")),
        )


def draw_guidance(curve: Sequence[Mapping[str, float]], label: str, name: str, path: Path) -> None:
    """Draw what decides over the guidance scales, with its interval and the least marked.

    Args:
        curve: of each scale "guidance_scale", ``name`` and where known ``name``'s limits, ``_low`` and ``_high``.
        label: of the axis.
        name: what decides.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # only here: a run that chooses nothing need not load it

    points = sorted(curve, key=lambda point: point["guidance_scale"])
    scales, values = [point["guidance_scale"] for point in points], [point[name] for point in points]
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(scales, values, "o-", color="C3", lw=2)
    if all(f"{name}_low" in point for point in points):
        low, high = ([point[name + end] for point in points] for end in ("_low", "_high"))
        axes.fill_between(scales, low, high, color="C3", alpha=0.2, lw=0, label="95 %")
        axes.legend(frameon=False)
    best = min(range(len(values)), key=values.__getitem__)
    axes.plot(scales[best], values[best], "o", ms=12, mfc="none", color="black")
    axes.set(xlabel="guidance scale", ylabel=label, xticks=scales, xticklabels=[f"{scale:g}" for scale in scales])
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
