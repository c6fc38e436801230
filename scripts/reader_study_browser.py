"""Run a whole reader study through its real pages in Chromium, with everything that can go wrong on the way.

    pip install playwright && npm pack axe-core && tar xzf axe-core-*.tgz
    python scripts/reader_study_browser.py STUDY --key KEY --links LINKS --axe package/axe.min.js --output FOLDER

Three scripted readers work at once: one with the keyboard only, one on a phone in Japanese, one with the mouse. One
stops half-way and comes back with a new browser; a form is sent twice; two tabs answer the same image; a connection is
lost; the server is killed (SIGKILL) and started again. In the end every answer that was confirmed must be in the
database, once. axe-core looks at every kind of page. The scripted readers judge an image by how rough it is; nobody
told them more.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tqdm import tqdm

from nodule_plugin.reader_study.answers import AnswerStore
from nodule_plugin.reader_study.page import write_analysis
from nodule_plugin.reader_study.questions import ITEMS, ORIGIN, read_answer
from nodule_plugin.reader_study.seal import open_key
from nodule_plugin.reader_study.study import Study, load_study

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
CHROMIUM_FLAGS += ["--disable-background-networking", "--disable-component-update"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SERIOUS = ("serious", "critical")
# Questions that the image, which stays at the top of a phone, hides when they have the focus (WCAG 2.4.11).
OBSCURED = """[...document.querySelectorAll("#questions fieldset")].filter((group) => {
  scrollTo(0, document.body.scrollHeight);
  group.querySelector("input").focus();
  const viewer = document.querySelector(".viewer").getBoundingClientRect();
  return group.querySelector("input").getBoundingClientRect().bottom <= viewer.bottom + 1;
}).map((group) => group.id)"""


class Server:
    """The study's server as a process of its own."""

    def __init__(self, study: Path) -> None:
        self.study, self.port = study, 0
        self.start()

    def start(self) -> None:
        """Start it, on the port that it had before."""
        command = [
            sys.executable,
            "-m",
            "nodule_plugin.reader_study",
            "serve",
            str(self.study),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url = line.split(" at ")[1].strip()
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class Reader:
    """A scripted reader.

    Attributes:
        name: of the study's reader.
        path: personal link.
        way: "keyboard", "touch" or "mouse".
        confirmed: step -> the answer as its form was sent, once the server had confirmed it.
    """

    name: str
    path: str
    way: str
    page: Page
    confirmed: dict[int, dict[str, str]] = field(default_factory=dict)

    def judge(self, step: int) -> dict[str, str]:
        """What this reader thinks of the image on the page: the rougher, the more real."""
        address = self.page.locator("#image").get_attribute("src")
        picture = self.page.context.request.get(f"{self.page.url.split('/r/')[0]}{address}").body()
        grey = np.asarray(Image.open(io.BytesIO(picture)), float)
        inner = grey[1:-1, 1:-1]
        rough = np.abs(4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]).mean()
        rng = random.Random(f"{self.name} {step}")
        strict = {"keyboard": 0.0, "touch": 0.4, "mouse": -0.4}[self.way]
        feeling = np.log2(rough / 4) + 3 - strict + rng.gauss(0, 0.6)
        bright = grey[24:40, 24:40].mean() / 51 if min(grey.shape) >= 64 else 3.0
        answer = {"realism": feeling, "malignancy": bright + 1, "sphericity": 3, "texture": bright, "margin": 3}
        answer |= {"spiculation": 1 + rough / 4, "lobulation": 2}
        form = {item: str(int(np.clip(round(answer[item] + rng.gauss(0, 0.5)), 1, 5))) for item in ITEMS}
        if rng.random() < 0.02:
            form["margin"] = "none"
        sure = int(np.clip(round(abs(feeling - 3) * 2), 1, 5))
        return form | {ORIGIN: "real" if feeling > 3 else "generated", "confidence": str(sure), "comment": ""}

    def fill(self, form: dict[str, str], page: Page | None = None) -> None:
        """Fill the form in, in this reader's way."""
        page = page or self.page
        if self.way == "keyboard":
            page.locator("input[name=realism]").first.focus()
            for name in (*ITEMS, ORIGIN, "confidence"):
                digit = {"none": "0", "real": "1", "generated": "2"}.get(form[name], form[name])
                page.keyboard.press(digit)
            return
        for name in (*ITEMS, ORIGIN, "confidence"):
            option = page.locator(f"label:has(input[name={name}][value='{form[name]}'])")
            option.tap() if self.way == "touch" else option.click()

    def send(self, page: Page | None = None) -> None:
        """Send the form, in this reader's way."""
        page = page or self.page
        if self.way == "keyboard":
            page.locator("#save").focus()
            page.keyboard.press("Enter")
        elif self.way == "touch":
            page.locator("#save").tap()
        else:
            page.locator("#save").click()

    def answer(self) -> int:
        """Answer the image on the page and wait until the server has confirmed.

        Returns:
            The step's number.
        """
        step = step_of(self.page)
        form = self.judge(step)
        self.fill(form)
        self.send()
        self.confirm(step, form)
        return step

    def confirm(self, step: int, form: dict[str, str]) -> None:
        """Wait for the next page, which only a confirmed answer leads to."""
        self.page.wait_for_url(re.compile(rf"/r/[^/]+(/(?!{step}$)\d+)?(\?.*)?$"))
        self.confirmed[step] = form


def step_of(page: Page) -> int:
    """The number in a step's address."""
    return int(page.url.split("?")[0].rsplit("/", 1)[1])


class Run:
    """The run: readers, server, and what was seen on the way."""

    def __init__(self, options: argparse.Namespace, browser: Browser, server: Server) -> None:
        self.options, self.browser, self.server = options, browser, server
        self.issues: list[str] = []
        self.axe = Path(options.axe).read_text(encoding="utf-8")
        links = list(csv.DictReader(Path(options.links).read_text(encoding="utf-8-sig").splitlines()))
        self.readers = [
            Reader(link["reader"], link["path"], way, self.open(way).new_page())
            for link, way in zip(links, ("keyboard", "touch", "mouse"))
        ]
        assert len(self.readers) == 3, "the study needs three readers"

    def open(self, way: str) -> BrowserContext:
        """A new browser for a reader."""
        desktop = {"viewport": DESKTOP, "locale": "en-US"}
        phone = {"viewport": PHONE, "locale": "ja-JP", "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
        settings: dict[str, Any] = phone if way == "touch" else desktop
        context = self.browser.new_context(**settings)
        context.set_default_timeout(20000)
        return context

    def shoot(self, page: Page, name: str, full: bool = False) -> None:
        """Keep a screenshot."""
        page.screenshot(path=Path(self.options.output) / f"{name}.png", full_page=full)

    def look(self, page: Page, name: str) -> None:
        """Let axe-core look at a page."""
        page.evaluate(self.axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for issue in found["violations"]:
            told = f"{name}: {issue['impact']}: {issue['id']}: {issue['help']} ({len(issue['nodes'])})"
            print(f"  axe: {told}: {issue['nodes'][0]['html'][:120]}")
            if issue["impact"] in SERIOUS:
                self.issues.append(told)
        print(f"  axe: {name}: {len(found['violations'])} violations, {len(found['passes'])} rules passed")

    def run(self, steps: int) -> None:
        """All readers, image by image, with a mishap here and there."""
        first, second, third = self.readers
        for reader in self.readers:
            reader.page.goto(self.server.url + reader.path)
        self.look(first.page, "overview")
        self.shoot(first.page, "overview-desktop")
        for reader in self.readers:
            reader.page.locator("a.primary").click()
            reader.page.wait_for_url(re.compile(r"/\d+$"))
        self.pictures()
        for step in tqdm(range(1, steps + 1), desc="images", mininterval=10):
            for reader in self.readers:
                assert step_of(reader.page) == step, f"{reader.name} is at {reader.page.url}, not at {step}"
                if step == 8 and reader is first:
                    self.double_submit(first)
                elif step == 12 and reader is third:
                    self.lost_connection(third)
                elif step == 16 and reader is first:
                    self.two_tabs(first)
                elif step == 20 and reader is third:
                    self.change_of_mind(third)
                elif step == 24 and reader is first:
                    self.power_cut(first)
                elif step == steps // 2 and reader is second:
                    self.another_day(second)
                else:
                    reader.answer()
        for reader in self.readers:
            expect(reader.page.locator("main")).to_contain_text(re.compile("Thank you|ありがとう"))
        self.look(third.page, "overview when done")
        self.strangers()

    def pictures(self) -> None:
        """Windows, zoom, an incomplete form; screenshots of the first page in every shape."""
        first, second, third = self.readers
        self.look(first.page, "step, desktop")
        self.look(second.page, "step, phone, Japanese")
        frame = first.page.locator("#frame")
        frame.focus()
        for key, expected in (("w", "-600"), ("w", "40"), ("w", "-300")):
            first.page.keyboard.press(key)
            expect(first.page.locator("#level")).to_have_value(expected)
        first.page.keyboard.press("i")
        expect(first.page.locator("#invert")).to_have_attribute("aria-pressed", "true")
        first.page.keyboard.press("i")
        for _ in range(3):
            first.page.keyboard.press("+")
        wide = first.page.evaluate("frame.scrollWidth / frame.clientWidth")
        assert wide > 1.8, f"the image did not grow: {wide}"
        first.page.keyboard.press("0")
        third.page.locator("#save").click()
        expect(third.page.locator("#errors")).to_be_focused()
        self.look(third.page, "form with missing answers")
        self.shoot(third.page, "missing-desktop")
        self.shoot(second.page, "step-phone-ja")
        hidden = second.page.evaluate(OBSCURED)
        assert not hidden, f"the image hides what has the focus: {hidden}"
        third.page.goto(third.page.url)

    def double_submit(self, reader: Reader) -> None:
        """The same form arrives three times, at once and once more later."""
        step = step_of(reader.page)
        form = reader.judge(step)
        reader.fill(form)
        reader.page.evaluate("scrollTo(0, 0)")
        self.shoot(reader.page, "step-desktop")
        address = reader.page.url
        sent = reader.page.evaluate("Object.fromEntries(new FormData(document.getElementById('questions')))")
        reader.page.evaluate("send(); sending = false; send()")
        reader.confirm(step, form)
        again = reader.page.context.request.post(address, form=sent)
        assert again.ok, again.status
        print(f"step {step}: one form sent three times")

    def lost_connection(self, reader: Reader) -> None:
        """The network goes away while the form is sent, and comes back."""
        step = step_of(reader.page)
        form = reader.judge(step)
        reader.fill(form)
        reader.page.context.set_offline(True)
        reader.send()
        expect(reader.page.locator("#state")).to_contain_text("No connection")
        self.shoot(reader.page, "offline-desktop")
        checked = reader.page.evaluate("document.querySelectorAll('#questions input:checked').length")
        assert checked == len(ITEMS) + 2, f"only {checked} answers are still on the page"
        reader.page.context.set_offline(False)
        reader.confirm(step, form)
        print(f"step {step}: connection lost and found again")

    def two_tabs(self, reader: Reader) -> None:
        """Two tabs hold the same image; the second to be sent must not win unasked."""
        step = step_of(reader.page)
        form = reader.judge(step)
        other = reader.page.context.new_page()
        other.goto(reader.page.url)
        reader.fill(form)
        reader.send()
        reader.confirm(step, form)
        changed = {**form, "realism": "1" if form["realism"] != "1" else "2"}
        reader.fill(changed, other)
        reader.send(other)
        expect(other.locator("#errors")).to_contain_text("meanwhile this image was answered elsewhere")
        self.look(other, "conflict of two tabs")
        self.shoot(other, "conflict-desktop")
        assert self.stored(reader.name, step) == read_answer(form)[0], "an answer was changed unasked"
        reader.send(other)
        expect(other.locator(".message").first).to_contain_text("your answer was changed (Realism:")
        self.shoot(other, "changed-desktop")
        reader.confirmed[step] = changed
        other.close()
        print(f"step {step}: two tabs, one conflict, one change that was asked for")

    def change_of_mind(self, reader: Reader) -> None:
        """Back to an earlier image, another answer; and back without a change."""
        step = step_of(reader.page)
        reader.page.locator("a", has_text="Previous image").click()
        before = reader.confirmed[step - 1]
        changed = {**before, "margin": "4" if before["margin"] != "4" else "5"}
        reader.fill(changed)
        reader.send()
        expect(reader.page.locator(".message").first).to_contain_text("your answer was changed (Margin:")
        reader.confirmed[step - 1] = changed
        reader.answer()
        print(f"step {step}: went back and changed an answer")

    def power_cut(self, reader: Reader) -> None:
        """The server dies; what a reader sends meanwhile arrives when it is back."""
        step = step_of(reader.page)
        form = reader.judge(step)
        reader.fill(form)
        self.server.kill()
        reader.send()
        expect(reader.page.locator("#state")).to_contain_text("No connection")
        for other in self.readers:
            for number, sent in other.confirmed.items():
                assert self.stored(other.name, number) == read_answer(sent)[0], f"lost: {other.name} {number}"
        self.server.start()
        reader.confirm(step, form)
        print(f"step {step}: server killed with SIGKILL and started again")

    def another_day(self, reader: Reader) -> None:
        """The reader leaves in the middle of an image; a new browser goes on where the answers end."""
        step = step_of(reader.page)
        reader.fill(reader.judge(step))
        reader.page.context.close()
        reader.page = self.open(reader.way).new_page()
        reader.page.goto(self.server.url + reader.path)
        self.shoot(reader.page, "resume-phone-ja")
        reader.page.locator("a.primary").tap()
        reader.page.wait_for_url(re.compile(r"/\d+$"))
        assert step_of(reader.page) == step, f"resumed at {step_of(reader.page)}, not at {step}"
        reader.answer()
        print(f"step {step}: came back on another day")

    def strangers(self) -> None:
        """Nothing for wrong links, other readers' answers, or the key."""
        page = self.open("mouse").new_page()
        wrong = self.readers[0].path[:-1] + ("A" if self.readers[0].path[-1] != "A" else "B")
        key = Path(self.options.key)
        for path in (
            "/",
            wrong,
            f"{wrong}/1",
            f"{wrong}/1/image",
            f"/{key.name}",
            f"/static/../../{key.name}",
            "/docs",
        ):
            answer = page.goto(self.server.url + path)
            assert answer is not None
            assert answer.status == 404, f"{path}: {answer.status}"
        self.look(page, "page for strangers")
        secret = json.loads(key.read_text(encoding="utf-8"))
        telling = [secret["nonce"], *secret["arms"][1:]]
        for reader in self.readers:
            for number in reader.confirmed:
                body = page.context.request.get(f"{self.server.url}{reader.path}/{number}").text()
                assert not any(word in body for word in telling), "a page tells what the key knows"
        print("strangers get nothing; the key is in no page")

    def stored(self, reader: str, step: int) -> dict[str, Any]:
        """What the database holds last of a reader's step."""
        study = load_study(self.options.study)
        store = AnswerStore(study.answers_file, study.content["id"], create=False)
        return store.of_reader(reader)[study.sequences[reader][step - 1].image][-1].answer


def check(study: Study, run: Run) -> None:
    """Every confirmed answer is in the database, once; nothing else is."""
    store = AnswerStore(study.answers_file, study.content["id"], create=False)
    rows = store.verify(open_key(run.options.key, study).answers_key).rows
    steps = len(study.sequences[study.readers[0]])
    for reader in run.readers:
        assert set(reader.confirmed) == set(range(1, steps + 1))
        for step, form in reader.confirmed.items():
            assert run.stored(reader.name, step) == read_answer(form)[0], f"{reader.name}, step {step}"
    assert rows == 3 * steps + 2, f"{rows} rows, {3 * steps} answers and 2 changes were confirmed"
    print(f"{3 * steps} answers and 2 changes confirmed, {rows} rows stored, chain intact: nothing lost")


@contextmanager
def running(study: Path) -> Iterator[Server]:
    """A server that ends with the block."""
    server = Server(study)
    try:
        yield server
    finally:
        server.kill()


def main() -> None:
    """Run the study and write screenshots and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a fresh study with three readers")
    parser.add_argument("--key", required=True)
    parser.add_argument("--links", required=True)
    parser.add_argument("--axe", required=True, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--output", type=Path, required=True, help="folder for screenshots and the report")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    study = load_study(options.study)
    with running(options.study) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM_FLAGS)
        run = Run(options, browser, server)
        run.run(len(study.sequences[study.readers[0]]))
        check(study, run)
        report = write_analysis(options.study, options.key, options.output / "results")
        page = run.open("mouse").new_page()
        page.goto(report.absolute().as_uri())
        run.look(page, "report")
        run.shoot(page, "report-desktop")
        run.shoot(page, "report-whole", full=True)
        browser.close()
    if run.issues:
        raise SystemExit("axe-core found serious issues:\n" + "\n".join(run.issues))
    print("axe-core: no serious issue")


if __name__ == "__main__":
    main()
