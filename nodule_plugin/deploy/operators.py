"""Operators of MONAI Deploy. This module and ``__main__`` alone import its SDK, which lives in its own environment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monai.deploy.core import Fragment, Image, Operator, OperatorSpec
from monai.deploy.operators import InferenceOperator
from torch import Tensor

from nodule_plugin.deploy.generator import BundleGenerator, read_order
from nodule_plugin.deploy.inserter import BundleInserter
from nodule_plugin.dicom import DicomEncoder
from nodule_plugin.errors import InputError
from nodule_plugin.files import write_bytes_atomically


class OrderReaderOperator(Operator):
    """Reads what to make from a JSON file.

    Output ``order``: a dictionary, see :meth:`nodule_plugin.deploy.generator.BundleGenerator.requests` and
    :class:`nodule_plugin.deploy.inserter.BundleInserter`.

    Args:
        fragment: that the operator belongs to.
        input_path: a JSON file, or a folder with one.
    """

    def __init__(self, fragment: Fragment, *args: Any, input_path: Path, **kwargs: Any) -> None:
        self.input_path = input_path
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the output."""
        spec.output("order")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Read and emit."""
        op_output.emit(read_order(self.input_path), "order")


class NoduleGenerationOperator(InferenceOperator):
    """Generates images in Hounsfield units from findings or prompts, guidance scales and seeds.

    Input ``order``: a dictionary. Output ``images``: a list of the SDK's images, each (rows, columns) int16 in
    Hounsfield units with the metadata ``request``, ``spacing_mm`` and ``run``. (The SDK's own operator for bundles
    would hand them on as uint8.)

    Args:
        fragment: that the operator belongs to.
        model_path: folder of the bundle, loaded at once.
        overrides: of the bundle's configuration, such as ``steps`` or ``device``.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        model_path: Path,
        overrides: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.generator = BundleGenerator(model_path, overrides)
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare input and output."""
        spec.input("order")
        spec.output("images")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Generate all that was ordered."""
        requests = self.generator.requests(op_input.receive("order"))
        op_output.emit(
            [self.post_process(self.predict(self.pre_process(request)), request) for request in requests], "images"
        )

    def pre_process(self, data: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Noise and conditions of one request."""
        return self.generator.prepare(data)

    def predict(self, data: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The sampler's image in [-1, 1]."""
        return self.generator.sample(*data)

    def post_process(self, data: Any, *args: Any, **kwargs: Any) -> Image:
        """The image in Hounsfield units; the second argument is its request."""
        request = args[0]
        spacing = float(request["roi_mm"]) / self.generator.image_size
        metadata = {"request": request, "spacing_mm": spacing, "run": self.generator.run}
        return Image(self.generator.to_hu(data, request["id"]), metadata)


class SyntheticDicomWriterOperator(Operator):
    """Writes generated images and their reports as DICOM, marked as synthetic; see docs/dicom.md.

    Input ``images``: as :class:`NoduleGenerationOperator` emits them.

    Args:
        fragment: that the operator belongs to.
        output_folder: gets ``image/<id>.dcm`` and ``report/<id>.dcm``.
    """

    def __init__(self, fragment: Fragment, *args: Any, output_folder: Path, **kwargs: Any) -> None:
        self.output_folder = output_folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the input."""
        spec.input("images")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write all images that come in as one study.

        Raises:
            InputError: if the folder cannot be written.
        """
        images = op_input.receive("images")
        encoder = DicomEncoder(images[0].metadata()["run"], datetime.now(timezone.utc))
        for number, image in enumerate(images, start=1):
            about = image.metadata()
            files = encoder.encode(image.asnumpy(), about["spacing_mm"], about["request"], number)
            for kind, data in zip(("image", "report"), files):
                path = self.output_folder / kind / f"{about['request']['id']}.dcm"
                try:
                    write_bytes_atomically(path, data)
                except OSError as error:
                    raise InputError(f"output: {path} cannot be written: {error}; give another folder") from error


class NoduleInsertionOperator(Operator):
    """Puts nodules into a CT series, and writes it with masks and reports as ``nodule insert`` does.

    Input ``order``: a dictionary with ``insert``.

    Args:
        fragment: that the operator belongs to.
        model_path: folder of the bundle, whose inpainting model is loaded at once.
        series: folder with the host's files, or with folders of them.
        output_folder: gets the folder ``inserted``, whole or not at all.
        overrides: of the bundle's ``insert.json``, such as ``inpainter`` or ``device``.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        model_path: Path,
        series: Path,
        output_folder: Path,
        overrides: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.inserter = BundleInserter(model_path, overrides)
        self.series, self.output_folder = series, output_folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the input."""
        spec.input("order")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Insert all that was ordered."""
        self.inserter(op_input.receive("order"), self.series, self.output_folder)
