"""The handler that puts fine-tuned weights into the network when a generation run starts."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from monai.handlers import CheckpointLoader

from nodule_plugin.diffusion.fine_tuned import BASE_WEIGHTS, load_weights


class WeightsLoader(CheckpointLoader):
    """MONAI's CheckpointLoader for all the forms in which fine-tuned weights come.

    Args:
        weights: file or folder, see :func:`nodule_plugin.diffusion.fine_tuned.load_weights`; "base" leaves the base
            model's own.
        network: gets the weights, once: low-rank updates would be added again by every further run.
    """

    def __init__(self, weights: str, network: Any) -> None:
        super().__init__(load_path=weights, load_dict={"network": network})
        self._pending = weights != BASE_WEIGHTS

    def __call__(self, engine: Engine) -> None:
        """Load.

        Raises:
            InputError: if the weights do not fit.
        """
        if self._pending:
            load_weights(self.load_path, self.load_dict["network"])
            self.logger.info(f"Restored all variables from {self.load_path}")
        self._pending = False
