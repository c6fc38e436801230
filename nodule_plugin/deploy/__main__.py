"""The MONAI Deploy application: findings in, DICOM out. docs/deploy.md says how to set it up.

nodule deploy -i order.json -m bundle -o output
"""

from __future__ import annotations

from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application

from nodule_plugin.deploy.operators import (
    NoduleGenerationOperator,
    OrderReaderOperator,
    SyntheticDicomWriterOperator,
)
from nodule_plugin.errors import show_input_errors


class NoduleApplication(Application):
    """Reads one order, generates its images, writes them as DICOM.

    Input, model and output come from the SDK's options (-i, -m, -o) or its variables (HOLOSCAN_INPUT_PATH, ...).
    """

    def compose(self) -> None:
        """Connect the three operators."""
        context = Application.init_app_context(self.argv)
        reader = OrderReaderOperator(
            self, CountCondition(self, 1), input_path=Path(context.input_path), name="order_reader"
        )
        generator = NoduleGenerationOperator(self, model_path=Path(context.model_path), name="generator")
        writer = SyntheticDicomWriterOperator(self, output_folder=Path(context.output_path), name="dicom_writer")
        self.add_flow(reader, generator, {("order", "order")})
        self.add_flow(generator, writer, {("images", "images")})


if __name__ == "__main__":
    show_input_errors()
    NoduleApplication().run()
