"""What the scripts that look at pages in Chromium share: shapes of a screen, axe-core, the command line."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDTHS = {"desktop": 1280, "phone": 390}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def examine(parser: argparse.ArgumentParser, visit: Callable[[argparse.Namespace, Browser, str], list[str]]) -> None:
    """Parse the command line, visit pages, fail on the issues found.

    Args:
        parser: of the script's own options; it gets those that all share.
        visit: ``(options, browser, text of axe-core)`` -> the issues.
    """
    parser.add_argument("--axe", type=Path, required=True, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--output", type=Path, required=True, help="folder for screenshots")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM_FLAGS)
        issues = visit(options, browser, options.axe.read_text(encoding="utf-8"))
        browser.close()
    if issues:
        raise SystemExit("\n".join(issues))
    print("no issue")


def shapes(browser: Browser, address: str) -> Iterator[tuple[str, str, Page]]:
    """A page on a desktop and on a phone, light and dark: ``(shape, colour scheme, page)``.

    Raises:
        AssertionError: if the page loads something that does not lie at ``address``.
    """
    for shape, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            context: Any = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("pageerror", lambda error: print(f"{address}: {error}", flush=True))
            page.goto(address)
            yield shape, scheme, page
            elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
            assert not elsewhere, f"the page loads {elsewhere}"
            context.close()


def look(page: Page, axe: str, name: str, rules: Sequence[str] = RULES) -> list[str]:
    """What axe-core finds, one line an issue."""
    page.evaluate(axe)
    found = page.evaluate("tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", rules)
    print(f"axe, {name}: {len(found['violations'])} issues, {len(found['passes'])} rules passed", flush=True)
    issues = [
        f"{name}: {issue['impact']}: {issue['id']}: {issue['help']}: {len(issue['nodes'])} x "
        f"{issue['nodes'][0]['html'][:200]}"
        for issue in found["violations"]
    ]
    print(*issues, sep="\n", end="", flush=True)
    return issues


def check_width(page: Page) -> None:
    """Nothing is beyond the screen's edge."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than its screen"
