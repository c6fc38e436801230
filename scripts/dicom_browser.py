"""Open generated DICOM files in a web viewer (dwv) in Chromium, compare every pixel, and take a screenshot.

    pip install playwright && npm install dwv esbuild
    echo 'import * as dwv from "dwv"; window.dwv = dwv;' > entry.js
    npx esbuild entry.js --bundle --format=esm --outfile=dwv.js
    python scripts/dicom_browser.py GENERATED --viewer dwv.js --output screenshot.png
    python scripts/dicom_browser.py INSERTED/seed0 --viewer dwv.js --output screenshot.png

GENERATED is a set that inference wrote with the formats png, nifti and dicom. What the viewer makes of each DICOM file
must equal the NIfTI file's Hounsfield units at every pixel, and the viewer must see the mark "synthetic". INSERTED is
what ``nodule insert`` wrote: the series is shown with its DICOM SEG laid over it, at the nodule's largest slice, and
both must equal the NIfTI files at every voxel.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from browser import CHROMIUM_FLAGS
from playwright.sync_api import Page, sync_playwright

from nodule_plugin.data.generated import load_generated

PAGE = """<!doctype html><meta charset="utf-8"><title>DICOM in dwv</title>
<style>
  body { background: #16181d; color: #e8e8e8; font: 14px/1.4 sans-serif; margin: 16px; display: flex; gap: 16px }
  figure { margin: 0; width: 384px } .view { width: 384px; height: 384px; background: #000; position: relative }
  .layer { position: absolute; pointer-events: none }
  dt { color: #9aa4b2; font-size: 12px } dd { margin: 0 0 4px }
</style><body></body><script type="module" src="dwv.js"></script>"""
TAGS = {
    "00080008": "Image Type",
    "0008001C": "Synthetic Data",
    "00189004": "Content Qualification",
    "00100010": "Patient's Name",
    "00080070": "Manufacturer",
    "00281054": "Rescale Type",
    "00280030": "Pixel Spacing",
    "00281050": "Window Center",
    "00281051": "Window Width",
    "00204000": "Image Comments",
}
# Shows one file and returns the Hounsfield units and tags that the viewer reads from it.
SHOW = """async ([url, index, names]) => {
  const figure = document.body.appendChild(document.createElement("figure"));
  figure.innerHTML = `<div class="view" id="view${index}"></div><dl></dl>`;
  const app = new dwv.App();
  app.init(new dwv.AppOptions({"*": [new dwv.ViewConfig(`view${index}`)]}));
  const id = await new Promise((done, failed) => {
    app.addEventListener("error", (event) => failed(new Error(String(event.error))));
    app.addEventListener("load", (event) => done(event.dataid));
    app.loadURLs([url]);
  });
  const image = app.getData(id).image, size = image.getGeometry().getSize(), meta = app.getMetaData(id);
  const hu = [], tags = {};
  for (let offset = 0; offset < size.get(0) * size.get(1); offset++) hu.push(image.getRescaledValueAtOffset(offset));
  for (const [tag, name] of Object.entries(names)) {
    tags[name] = meta[tag] ? meta[tag].value.join(" / ") : "";
    figure.querySelector("dl").insertAdjacentHTML("beforeend", `<dt>${name}</dt><dd></dd>`);
    figure.querySelector("dd:last-child").textContent = tags[name];
  }
  return {hu, tags, columns: size.get(0), rows: size.get(1)};
}"""

# Shows a series and a segmentation over it at a slice; returns all Hounsfield units and where the segmentation lies.
SHOW_SERIES = """async ([files, segmentation, slice]) => {
  const view = document.body.appendChild(document.createElement("div")), app = new dwv.App();
  view.id = "view0", view.className = "view";
  const mask = new dwv.ViewConfig("view0");
  mask.opacity = 0.5;
  app.init(new dwv.AppOptions({"0": [new dwv.ViewConfig("view0")], "1": [mask]}));
  const load = (urls) => new Promise((done, failed) => {
    app.addEventListener("error", (event) => failed(new Error(String(event.error))));
    app.addEventListener("loadend", () => done());
    app.loadURLs(urls);
  });
  await load(files);
  await load([segmentation]);
  const values = (id, read) => {
    const image = app.getData(id).image, geometry = image.getGeometry(), size = geometry.getSize();
    const count = size.get(0) * size.get(1) * size.get(2);
    return {size: [2, 1, 0].map((axis) => size.get(axis)),
            slice: geometry.getOrigin().getZ() / geometry.getSpacing().get(2),
            values: Array.from({length: count}, (_, offset) => read(image, offset))};
  };
  const layer = app.getLayerGroupByDivId("view0").getViewLayersByDataId("0")[0];
  layer.getViewController().setCurrentIndex(new dwv.Index([0, 0, slice]));
  return [values("0", (image, offset) => image.getRescaledValueAtOffset(offset)),
          values("1", (image, offset) => image.getValueAtOffset(offset))];
}"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which a server on this machine hands out ``folder``."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def compare(page: Page, item: dict[str, Any], index: int) -> None:
    """Show an image and compare what the viewer makes of it with the NIfTI file."""
    seen = page.evaluate(SHOW, [f"{index}.dcm", index, TAGS])
    volume: Any = nibabel.load(item["nifti"])
    expected = np.asarray(volume.dataobj)[:, :, 0].T
    found = np.reshape(seen["hu"], (seen["rows"], seen["columns"]))
    if not np.array_equal(found, expected):
        sys.exit(f"error: {item['id']}: the viewer reads other Hounsfield units than the NIfTI file holds")
    if seen["tags"]["Synthetic Data"].strip() != "YES" or not seen["tags"]["Image Type"].startswith("DERIVED"):
        sys.exit(f"error: {item['id']}: the viewer does not see that the image is synthetic: {seen['tags']}")
    print(f"{item['id']}: {found.size} pixels equal, {found.min():g} to {found.max():g} HU")


def show_inserted(page: Page, folder: Path) -> None:
    """Show a series with its segmentation and compare every voxel with the NIfTI files."""
    files: list[Any] = [nibabel.load(folder / name) for name in ("volume.nii.gz", "mask.nii.gz")]
    volume, mask = (np.asarray(file.dataobj).T for file in files)
    urls = [path.name for path in sorted((folder / "ct").glob("*.dcm"))]
    largest = int((mask > 0).sum((1, 2)).argmax())
    series, segmented = page.evaluate(SHOW_SERIES, [urls, "segmentation_binary.dcm", largest])
    seen, laid = (np.reshape(part["values"], part["size"]) for part in (series, segmented))
    overlay, first = np.zeros(mask.shape), round(segmented["slice"] - series["slice"])
    overlay[first : first + len(laid)] = laid
    if not np.array_equal(seen, volume):
        sys.exit(f"error: {folder}: the viewer reads other Hounsfield units than the NIfTI file holds")
    if not np.array_equal(overlay, mask):
        sys.exit(f"error: {folder}: the viewer lays the segmentation elsewhere than the NIfTI mask")
    print(f"{folder}: {seen.size} voxels equal, {int((overlay > 0).sum())} of them nodule, laid over slice {largest}")


def main() -> None:
    """Compare the first images of a set, or a series with its segmentation, and keep a screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path)
    parser.add_argument("--viewer", type=Path, required=True, help="dwv in one file, as esbuild bundles it")
    parser.add_argument("--output", type=Path, required=True, help="the screenshot, PNG")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    inserted = options.generated if (options.generated / "ct").is_dir() else None
    items = [] if inserted else load_generated(options.generated).items[: options.images]
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        (folder / "index.html").write_text(PAGE, encoding="utf-8")
        shutil.copyfile(options.viewer, folder / "dwv.js")
        for index, item in enumerate(items):
            shutil.copyfile(item["dicom"], folder / f"{index}.dcm")
        for path in inserted.rglob("*.dcm") if inserted else ():
            shutil.copyfile(path, folder / path.name)
        with served(folder) as address:
            browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM_FLAGS)
            page = browser.new_page(viewport={"width": 32 + 400 * max(len(items), 1), "height": 820})
            page.goto(f"{address}/index.html")
            page.wait_for_function("window.dwv")
            for index, item in enumerate(items):
                compare(page, item, index)
            if inserted:
                show_inserted(page, inserted)
            page.wait_for_timeout(500)
            page.screenshot(path=options.output, full_page=True)
            browser.close()


if __name__ == "__main__":
    main()
