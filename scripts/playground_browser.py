"""Use both pages of the playground in Chromium: mouse, keyboard, desktop, phone, two colour schemes, axe-core.

    nodule playground --port 7860 & nodule playground --static FOLDER
    python -m http.server 7861 --bind 127.0.0.1 --directory FOLDER &
    pip install playwright && npm pack axe-core && tar xzf axe-core-*.tgz
    python scripts/playground_browser.py http://127.0.0.1:7860 http://127.0.0.1:7861 --axe package/axe.min.js \\
        --output DIR

Both must draw what the same model draws in Python, to 1 HU, load nothing from elsewhere, fit their width, follow mouse
and keyboard, and have no issue of WCAG 2.2 AA that axe-core finds. DIR gets screenshots.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from nodule_plugin.cli.options import find_bundle
from nodule_plugin.data.window import unit_to_hu
from nodule_plugin.export.model import Source
from nodule_plugin.playground.drawing import START, Order, Studio

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDTHS = {"desktop": 1280, "phone": 390}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PATIENCE_MS = 300_000
"""For a machine that has other work."""


def look(page: Page, axe: str, name: str) -> list[str]:
    """What axe-core finds, one line an issue."""
    page.evaluate(axe)
    found = page.evaluate("tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", RULES)
    print(f"axe, {name}: {len(found['violations'])} issues, {len(found['passes'])} rules passed", flush=True)
    return [
        f"{name}: {issue['impact']}: {issue['id']}: {issue['help']}: {len(issue['nodes'])} x "
        f"{issue['nodes'][0]['html'][:200]}"
        for issue in found["violations"]
    ]


def tool(page: Page, name: str) -> Locator:
    """A control of the viewer."""
    return page.locator(f"[data-tool={name}]")


def wait_for(page: Page, count: int) -> None:
    """Until so many images are drawn, and no more are coming."""
    expect(tool(page, "note")).to_contain_text(f"{count} of {count},", timeout=PATIENCE_MS)
    expect(page.locator("figure canvas")).to_have_count(count)


def greys(page: Page, index: int = 0) -> np.ndarray:
    """What a canvas shows, (pixels,)."""
    script = (
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).filter((_, i) => i % 4 == 0)"
    )
    return np.array(page.locator("figure canvas").nth(index).evaluate(script))


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
    order = Order(START.to_dict(), guidance=3, seed=seed, size=studio.model.image_size)
    (drawing,) = studio.draw(order.one(), order)
    difference = np.abs(hounsfield(page) - np.rint(unit_to_hu(drawing.unit, studio.window_hu)).flatten()).max()
    print(f"largest difference from Python: {difference:g} HU", flush=True)
    assert difference <= 1


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
    canvas = page.locator("figure canvas").first
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


def check_drawing(page: Page, output: Path, name: str) -> None:
    """A finding by keyboard, its whole scale, all guidance scales, and a grid."""
    started = time.monotonic()
    page.get_by_role("slider", name=re.compile("Spiculation")).press("End")
    prompt = page.get_by_label(re.compile("Prompt")).first
    expect(prompt).to_have_value(re.compile("marked spiculation is seen"), timeout=PATIENCE_MS)
    wait_for(page, 1)
    print(f"a change was drawn after {time.monotonic() - started:.1f} s", flush=True)
    page.get_by_role("button", name="Move it over its scale").click()
    wait_for(page, 5)
    captions = page.locator("figcaption").all_inner_texts()
    assert captions[0].startswith("sphericity 1 (linear)"), captions
    assert captions[4].startswith("sphericity 5 (round)"), captions
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=output / f"{name}-sweep.png")
    page.get_by_role("button", name="All guidance scales").click()
    wait_for(page, 8)
    assert "guidance 60, seed 0" in page.locator("figcaption").last.inner_text()
    page.get_by_role("button", name="Grid of seeds").click()
    expect(page.locator("figure canvas")).to_have_count(2, timeout=PATIENCE_MS)
    page.get_by_role("button", name="Stop").click()
    time.sleep(3)
    count = page.locator("figure canvas").count()
    time.sleep(5)
    assert page.locator("figure canvas").count() == count < 8


def check_download(page: Page, output: Path) -> None:
    """What is shown, as one zip."""
    page.get_by_role("button", name=re.compile("^Download")).click()
    page.get_by_role("button", name="Pack the images shown").click()
    link = page.locator("a[download]").first
    expect(link).to_be_visible(timeout=PATIENCE_MS)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(output / "nodules.zip")


def visit(browser: Browser, address: str, name: str, axe: str, output: Path, studio: Studio) -> list[str]:
    """Every shape of a page; the issues found."""
    issues = []
    for shape, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            context: Any = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("pageerror", lambda error: print(f"{name}: {error}", flush=True))
            page.goto(address)
            wait_for(page, 1)
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"the page is {wide} pixels wider than its screen"
            issues += look(page, axe, f"{name}, {shape}, {scheme}")
            page.screenshot(path=output / f"{name}-{shape}-{scheme}.png", full_page=True)
            if (shape, scheme) == ("desktop", "light"):
                check_values(page, studio, 0)
                check_viewer(page)
                check_drawing(page, output, name)
                if page.get_by_role("button", name=re.compile("^Download")).count():
                    check_download(page, output)
            elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
            assert not elsewhere, f"the page loads {elsewhere}"
            context.close()
    return issues


def main() -> None:
    """Parse the command line, look, fail on what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", metavar="ADDRESS", help="of a page that shows the bundle's model")
    parser.add_argument("--axe", type=Path, required=True, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--output", type=Path, required=True, help="folder for screenshots")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    models = find_bundle() / "models"
    studio = Studio(Source(str(models / "tiny"), str(models / "model.pt")))
    axe = options.axe.read_text(encoding="utf-8")
    issues = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM_FLAGS)
        for number, address in enumerate(options.pages, start=1):
            issues += visit(browser, address.rstrip("/"), f"page{number}", axe, options.output, studio)
        browser.close()
    if issues:
        raise SystemExit("\n".join(issues))
    print("no issue")


if __name__ == "__main__":
    main()
