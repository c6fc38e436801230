"""Look at an evaluation's page in Chromium: desktop, phone, print, with and without JavaScript, with axe-core.

    pip install playwright && npm pack axe-core && tar xzf axe-core-*.tgz
    python scripts/report_browser.py EVALUATION/report.html --axe package/axe.min.js --output FOLDER

The page must load nothing, fit its width, have no issue of WCAG 2.2 AA that axe-core finds in either colour scheme,
sort its tables by mouse and keyboard, and say in words what its lights say in colour. FOLDER gets
screenshots and a PDF.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from browser import RULES, check_width, examine, look, shapes
from playwright.sync_api import Browser, Page, expect

ORDER = ["Verdict", "Pictures", "Curves", "Tables", "How this was made"]


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
    check_width(page)


def visit(options: argparse.Namespace, browser: Browser, axe: str) -> list[str]:
    """Every shape of the page; the issues found."""
    address, output = options.page.resolve().as_uri(), options.output
    issues = []
    for shape, scheme, page in shapes(browser, address):
        check_page(page)
        issues += look(page, axe, f"{shape}, {scheme}", [*RULES, "best-practice"])
        page.screenshot(path=output / f"{shape}-{scheme}.png", full_page=True)
        if scheme == "light":
            page.screenshot(path=output / f"{shape}-top.png")
            check_sorting(page)
        if (shape, scheme) == ("desktop", "light"):
            margin: Any = dict.fromkeys(("top", "bottom", "left", "right"), "12mm")
            page.pdf(path=output / "print.pdf", format="A4", margin=margin)
    without = browser.new_context(java_script_enabled=False).new_page()
    without.goto(address)
    assert without.locator("th button").count() == 0
    assert without.locator("table.sortable tbody tr").count() > 0
    return issues


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="report.html of an evaluation")
    examine(parser, visit)
