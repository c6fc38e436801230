"""Use both pages of the playground in Chromium: mouse, keyboard, desktop, phone, two colour schemes, axe-core.

    nodule playground --port 7860 --series PHANTOM --crops CROPS & nodule playground --static FOLDER
    python -m http.server 7861 --bind 127.0.0.1 --directory FOLDER &
    pip install playwright && npm pack axe-core && tar xzf axe-core-*.tgz
    python scripts/playground_browser.py http://127.0.0.1:7860 http://127.0.0.1:7861 --axe package/axe.min.js \\
        --output DIR

Both must draw what the same model draws in Python, to 1 HU, load nothing from elsewhere, fit their width, follow mouse
and keyboard, and have no issue of WCAG 2.2 AA that axe-core finds. The page that Python serves must also give its
files, put a nodule into the series, and draw for three visitors at once what each asked for. DIR gets screenshots.
"""

from __future__ import annotations

import argparse
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pydicom
from browser import check_width, examine, look, shapes
from playwright.sync_api import Browser, Locator, Page, expect

from nodule_plugin.cli.options import find_bundle
from nodule_plugin.data.window import unit_to_hu
from nodule_plugin.diffusion.model import Source
from nodule_plugin.playground.drawing import START, START_SEED, Order, Studio

DRAWN, SLICES = ".viewer:not(.slices)", ".slices"
"""The viewers of drawn nodules and of a series' slices."""
PATIENCE_MS = 120_000
"""For a machine that has other work."""


def tool(page: Page, name: str) -> Locator:
    """A control of the viewer."""
    return page.locator(f"{DRAWN} [data-tool={name}]")


def canvases(page: Page, viewer: str = DRAWN) -> Locator:
    """The images that a viewer shows."""
    return page.locator(f"{viewer} figure canvas")


def wait_for(page: Page, count: int) -> None:
    """Until so many images are drawn, and no more are coming."""
    expect(tool(page, "note")).to_contain_text(f"{count} of {count},", timeout=PATIENCE_MS)
    expect(canvases(page)).to_have_count(count)


def greys(page: Page, index: int = 0, viewer: str = DRAWN) -> np.ndarray:
    """What a canvas shows, (pixels,)."""
    script = (
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).filter((_, i) => i % 4 == 0)"
    )
    return np.array(canvases(page, viewer).nth(index).evaluate(script))


def hounsfield(page: Page) -> np.ndarray:
    """The first image's Hounsfield units, read through windows so narrow that one grey value is one unit."""
    hu = np.full(greys(page).shape, np.iinfo(np.int16).min)
    for lowest in range(-1100, 500, 250):
        tool(page, "width").fill("255")
        tool(page, "level").fill(str(lowest + 127.5))
        seen = greys(page)
        hu = np.where((seen > 0) & (seen < 255), seen + lowest, hu)
    expect(tool(page, "window")).to_have_value("free")
    tool(page, "window").select_option("generated")
    return hu


def check_values(page: Page, studio: Studio, seed: int) -> None:
    """The image is the one that Python draws."""
    guidance, size = studio.model.guidance_scale, studio.model.image_size
    order = Order(START.to_dict(), guidance=guidance, seed=seed, size=size, quick=quick(page).is_checked())
    (drawing,) = studio.draw(order.one(), order)
    difference = np.abs(hounsfield(page) - np.rint(unit_to_hu(drawing.unit, studio.window_hu)).flatten()).max()
    print(f"largest difference from Python: {difference:g} HU", flush=True)
    assert difference <= 1


def quick(page: Page) -> Locator:
    """The choice of few steps."""
    return page.get_by_role("checkbox", name=re.compile("^Quick: 4 steps"))


def check_slowly(page: Page, studio: Studio, seed: int) -> None:
    """Without few steps, the image is the model's own."""
    guidance = page.get_by_role("slider", name=re.compile("Guidance scale"))
    expect(guidance).to_be_disabled()
    started = time.monotonic()
    quick(page).uncheck()
    expect(page.locator(f"{DRAWN} figcaption")).to_contain_text("guidance 1.5", timeout=PATIENCE_MS)
    print(f"in all steps it was drawn after {time.monotonic() - started:.1f} s", flush=True)
    expect(guidance).to_be_enabled()
    check_values(page, studio, seed)


def check_viewer(page: Page) -> None:
    """Windows, inversion, zoom and the value at a place, by mouse and by keyboard."""
    before = greys(page)
    tool(page, "window").select_option("mediastinum")
    assert (greys(page) != before).any()
    expect(tool(page, "level")).to_have_value("40")
    tool(page, "window").select_option("generated")
    tool(page, "invert").check()
    assert np.abs(greys(page) - (255 - before)).max() <= 1
    tool(page, "invert").uncheck()
    canvas = canvases(page).first
    width = canvas.evaluate("c => c.clientWidth")
    tool(page, "zoom").press("End")
    assert canvas.evaluate("c => c.clientWidth") > 3 * width
    tool(page, "zoom").press("Home")
    canvas.hover(position={"x": 1, "y": 1})
    expect(tool(page, "value")).to_contain_text(re.compile(r"-?\d+ HU at row 1, column 1 "))
    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    expect(tool(page, "value")).to_contain_text(" HU at row 2, column 3 ")


def check_drawing(page: Page, studio: Studio, output: Path, name: str) -> None:
    """A finding by keyboard, its whole scale, all guidance scales, and, in all steps, a grid."""
    started = time.monotonic()
    page.get_by_role("slider", name=re.compile("Spiculation")).press("End")
    prompt = page.get_by_label(re.compile("Prompt")).first
    expect(prompt).to_have_value(re.compile("marked spiculation is seen"), timeout=PATIENCE_MS)
    wait_for(page, 1)
    print(f"a change was drawn after {time.monotonic() - started:.1f} s", flush=True)
    page.get_by_role("button", name="Move it over its scale").click()
    wait_for(page, 5)
    captions = page.locator(f"{DRAWN} figcaption").all_inner_texts()
    assert captions[0].startswith("sphericity 1 (linear)"), captions
    assert captions[4].startswith("sphericity 5 (round)"), captions
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=output / f"{name}-sweep.png")
    page.get_by_role("button", name="All guidance scales").click()
    wait_for(page, 8)
    seed = page.get_by_label("Seed", exact=True).input_value()
    assert f"guidance 60, seed {seed}" in page.locator(f"{DRAWN} figcaption").last.inner_text()
    page.get_by_role("slider", name=re.compile("Spiculation")).press("Home")
    wait_for(page, 1)
    check_slowly(page, studio, int(seed))
    page.get_by_role("button", name="Grid of seeds").click()
    expect(canvases(page)).to_have_count(2, timeout=PATIENCE_MS)
    page.get_by_role("button", name="Stop").click()
    time.sleep(3)
    count = canvases(page).count()
    time.sleep(5)
    assert canvases(page).count() == count < 8


def check_download(page: Page, output: Path) -> None:
    """What is shown, as one zip, DICOM among it."""
    page.get_by_role("button", name=re.compile("^Download")).click()
    page.get_by_role("checkbox", name="DICOM").check()
    page.get_by_role("button", name="Pack the images shown").click()
    link = page.locator("a[download]").first
    expect(link).to_be_visible(timeout=PATIENCE_MS)
    with zipfile.ZipFile(_save(page, link, output / "nodules.zip")) as archive:
        written = [name for name in archive.namelist() if re.match(r"dicom/image/.*\.dcm", name)]
        assert len(written) == canvases(page).count(), archive.namelist()
        with archive.open(written[0]) as file:
            assert pydicom.dcmread(file).SyntheticData == "YES"


def _save(page: Page, link: Locator, path: Path) -> Path:
    """The file that a click gives."""
    with page.expect_download() as download:
        link.click()
    download.value.save_as(path)
    return path


def check_insertion(page: Page, output: Path) -> None:
    """A place by keyboard, a nodule there, its files, and a place where there can be none."""
    page.get_by_role("tab", name="Into a CT series").click()
    canvas, across = canvases(page, SLICES), page.get_by_label(re.compile("^x, mm"))
    expect(canvas).to_have_count(1, timeout=PATIENCE_MS)
    insert = page.get_by_role("button", name="Insert the nodule")
    insert.click()
    expect(canvas).to_have_count(2, timeout=PATIENCE_MS)
    assert (greys(page, 0, SLICES) != greys(page, 1, SLICES)).any()
    expect(page.locator(f"{SLICES} figcaption").last).to_contain_text("after: SYNTHETIC nodule")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=output / "insertion.png")
    save = page.get_by_role("button", name=re.compile("^Save the DICOM series"))
    expect(save).to_be_enabled(timeout=PATIENCE_MS)
    with zipfile.ZipFile(_save(page, save, output / "inserted.zip")) as archive:
        names = archive.namelist()
    assert "manifest.json" in names, names
    for name in ("ct/000001.dcm", "report.dcm", "segmentation_binary.dcm"):
        assert f"seed{START_SEED}/{name}" in names, names
    page.get_by_role("slider", name="Slice").press("Home")
    expect(page.locator(f"{SLICES} figcaption").last).to_have_text("slice 1, after: not changed", timeout=PATIENCE_MS)
    before = across.input_value()
    canvas.first.click(position={"x": 3, "y": 3})
    expect(across).not_to_have_value(before, timeout=PATIENCE_MS)
    before = across.input_value()
    canvas.first.focus()
    for key in ("ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(across).not_to_have_value(before, timeout=PATIENCE_MS)
    insert.click()
    expect(page.get_by_text("is outside the body; choose a place in the lung")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("tab", name="Nodules").click()


def check_visitors(browser: Browser, address: str, studio: Studio) -> None:
    """Visitors at once: each gets the seed that was asked for."""
    pages = [browser.new_context().new_page() for _ in range(3)]
    for page in pages:
        page.goto(address)
    for page in pages:
        wait_for(page, 1)
    for seed, page in enumerate(pages, start=11):
        page.get_by_label("Seed", exact=True).fill(str(seed))
    for seed, page in enumerate(pages, start=11):
        expect(page.locator(f"{DRAWN} figcaption")).to_contain_text(f"seed {seed}", timeout=PATIENCE_MS)
        check_values(page, studio, seed)
        page.context.close()


def look_at_series(page: Page, axe: str, name: str, output: Path) -> list[str]:
    """What axe-core finds where nodules are put into a series."""
    page.get_by_role("tab", name="Into a CT series").click()
    expect(canvases(page, SLICES)).to_have_count(1, timeout=PATIENCE_MS)
    check_width(page)
    issues = look(page, axe, name)
    page.screenshot(path=output / f"{name.replace(', ', '-')}.png", full_page=True)
    page.get_by_role("tab", name="Nodules").click()
    return issues


def visit(browser: Browser, address: str, name: str, axe: str, output: Path, studio: Studio) -> list[str]:
    """Every shape of a page; the issues found."""
    issues = []
    for shape, scheme, page in shapes(browser, address):
        wait_for(page, 1)
        check_width(page)
        issues += look(page, axe, f"{name}, {shape}, {scheme}")
        page.screenshot(path=output / f"{name}-{shape}-{scheme}.png", full_page=True)
        if page.get_by_role("tab", name="Into a CT series").count():
            issues += look_at_series(page, axe, f"{name}, series, {shape}, {scheme}", output)
        if (shape, scheme) == ("desktop", "light"):
            check_values(page, studio, int(page.get_by_label("Seed", exact=True).input_value()))
            check_viewer(page)
            check_drawing(page, studio, output, name)
            if page.get_by_role("button", name=re.compile("^Download")).count():  # with Python
                check_download(page, output)
                check_visitors(browser, address, studio)
            if page.get_by_role("tab", name="Into a CT series").count():
                check_insertion(page, output)
    return issues


def visit_all(options: argparse.Namespace, browser: Browser, axe: str) -> list[str]:
    """Every page of the command line; the issues found."""
    models = find_bundle() / "models"
    studio = Studio(Source(str(models / "tiny"), str(models / "model.pt")))
    issues = []
    for number, address in enumerate(options.pages, start=1):
        issues += visit(browser, address.rstrip("/"), f"page{number}", axe, options.output, studio)
    return issues


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", metavar="ADDRESS", help="of a page that shows the bundle's model")
    examine(parser, visit_all)
