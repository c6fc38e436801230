"""The MONAI Deploy application: findings (and a CT series) in, DICOM out. docs/deploy.md says how to set it up.

nodule deploy -i order.json -m bundle -o output
"""

from __future__ import annotations

from pathlib import Path

from nodule_plugin.errors import InputError, show_input_errors

try:
    from monai.deploy.conditions import CountCondition
    from monai.deploy.core import Application
except ModuleNotFoundError as error:
    raise InputError(
        "monai.deploy: not installed; MONAI Deploy's SDK wants an environment of its own, see docs/deploy.md"
    ) from error

from nodule_plugin.deploy.generator import read_order
from nodule_plugin.deploy.inserter import FIELD
from nodule_plugin.deploy.operators import (
    NoduleGenerationOperator,
    NoduleInsertionOperator,
    OrderReaderOperator,
    SyntheticDicomWriterOperator,
)


class NoduleApplication(Application):
    """Reads one order and fills it: generates its images and writes them as DICOM, or inserts nodules into a CT series.

    Input, model and output come from the SDK's options (-i, -m, -o) or its variables (HOLOSCAN_INPUT_PATH, ...).
    """

    def compose(self) -> None:
        """Connect the operators that the order needs."""
        context = Application.init_app_context(self.argv)
        given, model, output = (Path(path) for path in (context.input_path, context.model_path, context.output_path))
        reader = OrderReaderOperator(self, CountCondition(self, 1), input_path=given, name="order_reader")
        if FIELD in read_order(given):
            series = given if given.is_dir() else given.parent
            inserter = NoduleInsertionOperator(
                self, model_path=model, series=series, output_folder=output, name="inserter"
            )
            self.add_flow(reader, inserter, {("order", "order")})
            return
        generator = NoduleGenerationOperator(self, model_path=model, name="generator")
        writer = SyntheticDicomWriterOperator(self, output_folder=output, name="dicom_writer")
        self.add_flow(reader, generator, {("order", "order")})
        self.add_flow(generator, writer, {("images", "images")})


if __name__ == "__main__":
    show_input_errors()
    NoduleApplication().run()
