"""Look at an evaluation's page in Chromium: desktop, phone, print, with and without JavaScript, with axe-core.

    pip install playwright && npm pack axe-core && tar xzf axe-core-*.tgz
    python scripts/report_browser.py EVALUATION/report.html --axe package/axe.min.js --output FOLDER

The page must load nothing, fit its width, have no issue of WCAG 2.2 AA that axe-core finds in either colour scheme,
sort its tables by mouse and keyboard, and say in words what its lights say in colour. FOLDER gets
screenshots and a PDF.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDTHS = {"desktop": 1280, "phone": 390}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
ORDER = ["Verdict", "Pictures", "Curves", "Tables", "How this was made"]


def look(page: Page, axe: str, name: str) -> list[str]:
    """What axe-core finds, one line an issue."""
    page.evaluate(axe)
    found = page.evaluate("tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", RULES)
    print(f"axe, {name}: {len(found['violations'])} issues, {len(found['passes'])} rules passed")
    return [
        f"{name}: {issue['impact']}: {issue['id']}: {issue['help']}: {issue['nodes'][0]['html'][:160]}"
        for issue in found["violations"]
    ]


def check_sorting(page: Page) -> None:
    """A heading's button sorts by mouse, the other way round by keyboard, and says so."""
    table = page.locator("table.sortable").first
    heading = table.locator("thead th").last
    button = heading.locator("button")
    cells = table.locator("tbody td:last-child")
    numbers = [float(value) for value in cells.evaluate_all("all => all.map((cell) => cell.dataset.value)")]
    button.click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    assert [float(v) for v in cells.evaluate_all("all => all.map((c) => c.dataset.value)")] == sorted(numbers)
    button.focus()
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-sort", "descending")
    assert [float(v) for v in cells.evaluate_all("all => all.map((c) => c.dataset.value)")] == sorted(numbers)[::-1]
    assert page.locator("th[aria-sort]").count() == 1


def check_page(page: Page) -> None:
    """The order of the page, its lights, and that it is no wider than the screen."""
    headings = [text for text in page.locator("h2").all_inner_texts() if text != "Before you read on"]
    assert headings == ORDER, headings
    assert page.locator(".verdict p").count() == 3
    lights = page.locator(".lights strong").all_inner_texts()
    assert len(lights) == 5
    assert all(": " in text for text in lights), lights
    assert not page.locator("td", has_text="not computed").count()
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than its screen"


def visit(browser: Browser, address: str, axe: str, output: Path) -> list[str]:
    """Every shape of the page; the issues found."""
    issues = []
    for name, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            context: Any = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(address)
            check_page(page)
            issues += look(page, axe, f"{name}, {scheme}")
            page.screenshot(path=output / f"{name}-{scheme}.png", full_page=True)
            if scheme == "light":
                page.screenshot(path=output / f"{name}-top.png")
                check_sorting(page)
            loaded = [url for url in asked if url != address and not url.startswith("data:")]
            assert not loaded, f"the page loads {loaded}"
            if (name, scheme) == ("desktop", "light"):
                page.pdf(
                    path=output / "print.pdf",
                    format="A4",
                    margin=dict.fromkeys(("top", "bottom", "left", "right"), "12mm"),
                )
            context.close()
    without = browser.new_context(java_script_enabled=False).new_page()
    without.goto(address)
    assert without.locator("th button").count() == 0
    assert without.locator("table.sortable tbody tr").count() > 0
    return issues


def main() -> None:
    """Parse the command line, look, fail on what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="report.html of an evaluation")
    parser.add_argument("--axe", type=Path, required=True, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--output", type=Path, required=True, help="folder for screenshots and the PDF")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM_FLAGS)
        issues = visit(
            browser, options.page.resolve().as_uri(), options.axe.read_text(encoding="utf-8"), options.output
        )
        browser.close()
    if issues:
        raise SystemExit("\n".join(issues))
    print("no issue")


if __name__ == "__main__":
    main()
