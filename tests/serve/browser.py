#!/usr/bin/env python3
"""The page of `sd-gen serve` in a real Chromium without a screen, as a person uses it.

    pip install playwright pillow && playwright install chromium      or a chromium of the system's
    tests/serve/browser.py target/release/sd-gen [--screenshots FOLDER]

Where neither can be had it says so and ends with 77, which is no success.
"""

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

SKIPPED = 77
try:
    from PIL import Image, ImageChops
    from playwright.sync_api import Error, sync_playwright
except ImportError as missing:
    print(f"skipped: {missing}; pip install playwright pillow")
    sys.exit(SKIPPED)

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("--screenshots", help="where pictures of the page go")
parser.add_argument("--page", help="this file in the place of the program's own page")
options = parser.parse_args()
folder = tempfile.mkdtemp()
program = os.path.abspath(options.program)
PATIENCE = 120_000

# What the page said while a job was at work: its words, its progress, and the looks at what is forming.
LISTENER = """
window.said = []; window.seen = { previews: 0, most: 0 };
addEventListener("DOMContentLoaded", () => {
  const of = id => document.getElementById(id);
  new MutationObserver(() => window.said.push(of("what").textContent)).observe(of("what"), { childList: true, characterData: true, subtree: true });
  new MutationObserver(() => { if (of("shown").src.startsWith("data:image/jpeg")) window.seen.previews += 1; }).observe(of("shown"), { attributes: true });
  new MutationObserver(() => { window.seen.most = Math.max(window.seen.most, of("progress").value); }).observe(of("progress"), { attributes: true });
});
"""


def start(*more):
    command = [program, "serve", "--listen", "127.0.0.1:0", "--output-dir", "served", "--size", "64x64", "--steps", "12", "-q", *more]
    child = subprocess.Popen(command, cwd=tempfile.mkdtemp(dir=folder), stdout=subprocess.PIPE, text=True)
    return child, child.stdout.readline().strip()


def get(url, path):
    with urllib.request.urlopen(url.rstrip("/") + path) as answer:
        return answer.read()


def until(page, condition, argument=None):
    """Waits in this process: the page's policy lets nobody evaluate a text there later on."""
    began = time.monotonic()
    while not page.evaluate(condition, argument):
        assert time.monotonic() - began < PATIENCE / 1000, condition
        time.sleep(0.03)


def newest(url):
    return json.loads(get(url, "/v1/jobs?limit=1"))["jobs"][0]


def picture(url, job):
    return Image.open(io.BytesIO(get(url, job["images"][0]["url"]))).convert("RGB")


class Person:
    """Somebody with a window of a size."""

    def __init__(self, browser, url, **window):
        self.context = browser.new_context(**window)
        self.page, self.url, self.wrong = self.context.new_page(), url, []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        self.page.add_init_script(LISTENER)
        if options.page:
            with open(options.page) as file:
                text = file.read()
            self.page.route(url, lambda route: route.fulfill(body=text, content_type="text/html"))
        self.open()

    def open(self):
        self.page.goto(self.url)
        until(self.page, "document.body.dataset.ready === 'true'")

    def leave(self):
        assert not self.wrong, self.wrong
        self.context.close()

    def ended(self, how="Done"):
        until(self.page, "document.body.dataset.job === 'ended' || document.getElementById('error').textContent")
        assert not self.page.inner_text("#error"), self.page.inner_text("#error")
        assert self.page.inner_text("#what") == how, (self.page.inner_text("#what"), self.page.inner_text("#error"))
        return newest(self.url)

    def generate(self, how="Done"):
        self.page.evaluate("document.body.dataset.job = ''")
        self.page.click("#go")
        return self.ended(how)

    def gallery(self):
        return self.page.locator("#gallery img").count()

    def show(self, name):
        if options.screenshots:
            os.makedirs(options.screenshots, exist_ok=True)
            self.page.screenshot(path=os.path.join(options.screenshots, f"{name}.png"), full_page=True)

    def fits(self):
        wide, room = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= room, f"the page is {wide} wide in a window of {room}"


def generates(person):
    page = person.page
    page.fill("#prompt", "a red apple")
    page.fill("#seed", "5")
    job = person.generate()
    assert job["settings"]["seed"] == 5 and job["settings"]["prompt"] == ["a red apple"], job["settings"]
    assert page.evaluate("document.getElementById('shown').naturalWidth") == 64
    assert any(text.startswith("Step ") for text in page.evaluate("window.said")), page.evaluate("window.said")
    seen = page.evaluate("window.seen")
    assert seen["previews"] > 0 and seen["most"] == 1, seen
    until(page, "document.querySelectorAll('#gallery img').length === 1 && document.querySelector('#gallery img').naturalWidth === 64")
    # The same settings make the same image.
    assert picture(person.url, person.generate()).tobytes() == picture(person.url, job).tobytes()


def reloads(person):
    before = person.gallery()
    person.open()
    until(person.page, f"document.querySelectorAll('#gallery img').length === {before}")
    assert person.page.input_value("#prompt") == "a red apple"


def submits_by_keys(person):
    person.page.evaluate("document.body.dataset.job = ''")
    person.page.focus("#prompt")
    person.page.keyboard.press("Control+Enter")
    person.ended()


def cancels(person):
    page = person.page
    for cancel in (lambda: page.click("#cancel"), lambda: page.keyboard.press("Escape")):
        page.fill("#steps", "120")
        page.fill("#images", "8")
        page.evaluate("document.body.dataset.job = ''")
        page.click("#go")
        until(page, "document.getElementById('what').textContent.startsWith('Step ')")
        cancel()
        job = person.ended("Cancelled")
        assert job["state"] == "cancelled", job["state"]
        assert page.is_disabled("#cancel")
    page.fill("#steps", "")
    page.fill("#images", "1")
    # Who comes back while a job is at work sees it.
    page.fill("#steps", "120")
    page.fill("#images", "8")
    page.click("#go")
    until(page, "document.getElementById('what').textContent.startsWith('Step ')")
    person.open()
    until(page, "document.getElementById('what').textContent.startsWith('Step ')")
    page.click("#cancel")
    person.ended("Cancelled")
    page.fill("#steps", "")
    page.fill("#images", "1")


def inpaints(person):
    page = person.page
    # Every pixel is another, so that what was changed is seen.
    source = Image.new("RGB", (64, 64))
    source.putdata([((x * 37 + y * 11) % 256, (x * 5 + y * 91) % 256, (x * y * 7) % 256) for y in range(64) for x in range(64)])
    path = os.path.join(folder, "source.png")
    source.save(path)
    page.click("#image-part > summary")
    page.set_input_files("#file", path)
    page.wait_for_selector("#editor:not([hidden])")
    page.locator("#brush").fill("40")
    box = page.locator("#mask").bounding_box()
    at = lambda x, y: (box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    page.mouse.move(*at(0.15, 0.2))
    page.mouse.down()
    page.mouse.move(*at(0.15, 0.8), steps=8)
    page.mouse.up()
    page.fill("#strength", "1")
    person.show("inpaint")
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/v1/jobs")) as sent:
        job = person.generate()
    body = sent.value.post_data_json
    mask = Image.open(io.BytesIO(base64.b64decode(body["mask"].split(",")[1]))).convert("L")
    white = sum(1 for level in mask.getdata() if level > 127)
    assert mask.size == (64, 64) and 100 < white < 2000, (mask.size, white)
    assert mask.getpixel((9, 32)) == 255 and mask.getpixel((50, 32)) == 0
    made = picture(person.url, job)
    change = ImageChops.difference(made, source).convert("L").point(lambda level: 255 if level else 0)
    left, right = change.crop((0, 0, 20, 64)), change.crop((32, 0, 64, 64))
    assert right.getbbox() is None, f"what is outside of the mask was changed: {right.getbbox()}"
    assert sum(1 for level in left.getdata() if level) > 300, "what is inside of the mask was not changed"
    # What was erased is kept.
    page.click("#erase")
    page.mouse.move(*at(0.15, 0.15))
    page.mouse.down()
    page.mouse.move(*at(0.15, 0.85), steps=8)
    page.mouse.up()
    erased = page.evaluate("[...document.getElementById('mask').getContext('2d').getImageData(9, 32, 1, 1).data][3]")
    assert erased == 0, erased
    page.click("#erase")
    page.click("#clear")
    assert "mask" not in page.evaluate("withImage({}).then(made => Object.keys(made))")


def outpaints(person):
    page = person.page
    handle = page.locator(".handle[data-side=right]")
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    dragged = page.inner_text("#grown")
    assert "right=" in dragged, dragged
    # By keys it is exact.
    handle.focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#grown") == "Grows: right=64 pixels", page.inner_text("#grown")
    person.show("outpaint")
    made = picture(person.url, person.generate())
    assert made.size == (128, 64), made.size
    page.click("#no-image")
    assert page.is_hidden("#editor")


def reads_what_is_dropped(person):
    page = person.page
    job = next(job for job in json.loads(get(person.url, "/v1/jobs"))["jobs"] if job["state"] == "done" and "init-image" not in job["settings"])
    png = base64.b64encode(get(person.url, job["images"][0]["url"])).decode()
    drop = """([data, where]) => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), moved = new DataTransfer();
        moved.items.add(new File([bytes], "made.png", { type: "image/png" }));
        const at = document.querySelector(where);
        at.dispatchEvent(new DragEvent("dragover", { dataTransfer: moved, bubbles: true, cancelable: true }));
        at.dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true }));
    }"""
    page.fill("#prompt", "")
    page.fill("#seed", "")
    page.evaluate(drop, [png, "header"])
    until(page, "document.getElementById('prompt').value === 'a red apple'")
    assert page.input_value("#seed") == "5" and page.input_value("#steps") == "12", page.inner_text("#error")
    again = person.generate()
    assert picture(person.url, again).tobytes() == picture(person.url, job).tobytes(), "what was dropped is made again"
    page.evaluate(drop, [png, "#drop"])
    page.wait_for_selector("#editor:not([hidden])")
    page.click("#no-image")


def looks_closer(person):
    page = person.page
    page.fill("#prompt", "something else")
    page.locator("#gallery button").first.click()
    page.wait_for_selector("#one[open]")
    until(page, "document.getElementById('large').naturalWidth === 64")
    assert "Seed: 5" in page.inner_text("#about"), page.inner_text("#about")
    person.show("closer")
    before = page.inner_text("#about")
    page.keyboard.press("ArrowRight")
    until(page, "about => document.getElementById('about').textContent !== about", before)
    page.keyboard.press("ArrowLeft")
    until(page, "about => document.getElementById('about').textContent === about", before)
    with page.expect_download() as saved:
        page.click("#save")
    assert saved.value.suggested_filename.endswith(".png"), saved.value.suggested_filename
    page.click("#again")
    assert page.is_hidden("#one") and page.input_value("#prompt") == "a red apple" and page.input_value("#seed") == "5"
    page.locator("#gallery button").first.click()
    page.keyboard.press("Escape")
    page.wait_for_selector("#one", state="hidden")


def says_what_is_wrong(person):
    page = person.page
    page.evaluate("document.getElementById('more-part').open = true")
    page.fill("#more", "{nonsense")
    page.click("#go")
    until(page, "document.getElementById('error').textContent.includes('not JSON')")
    page.fill("#more", '{"stepz": 1, "eta": "many"}')
    person.wrong.clear()
    page.click("#go")
    until(page, "document.getElementById('error').textContent.includes('stepz')")
    assert "eta" in page.inner_text("#error"), page.inner_text("#error")
    # The browser tells of a status of 422 itself.
    person.wrong[:] = [said for said in person.wrong if "422" not in said]
    page.fill("#more", "")
    page.click("#go")
    person.ended()
    assert page.inner_text("#error") == ""


def is_light_and_dark(browser, url):
    grounds = []
    for scheme in ("light", "dark"):
        person = Person(browser, url, viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        person.fits()
        grounds.append(person.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        until(person.page, "[...document.querySelectorAll('#gallery img')].every(i => i.naturalWidth)")
        person.show(scheme)
        person.page.click("#theme")
        assert person.page.evaluate("getComputedStyle(document.body).backgroundColor") != grounds[-1]
        person.open()
        assert person.page.evaluate("getComputedStyle(document.body).backgroundColor") != grounds[-1], "the choice is forgotten"
        person.leave()
    assert grounds[0] != grounds[1], grounds


def is_good_on_a_phone(browser, url):
    person = Person(browser, url, viewport={"width": 360, "height": 740}, device_scale_factor=2, is_mobile=True, has_touch=True)
    page = person.page
    person.fits()
    page.fill("#prompt", "a pear")
    page.locator("#go").scroll_into_view_if_needed()
    person.page.evaluate("document.body.dataset.job = ''")
    page.tap("#go")
    person.ended()
    page.tap("#image-part > summary")
    page.set_input_files("#file", os.path.join(folder, "source.png"))
    page.wait_for_selector("#editor:not([hidden])")
    person.fits()
    person.show("phone")
    page.locator("#gallery button").first.tap()
    page.wait_for_selector("#one[open]")
    person.fits()
    # Whatever is pressed has room for a finger.
    small = page.evaluate("""[...document.querySelectorAll('button, input, select, summary')].filter(e => e.offsetParent && e.type !== 'range')
        .map(e => [e.id || e.className || e.tagName, Math.round(e.getBoundingClientRect().height)]).filter(e => e[1] < 20)""")
    assert not small, small
    person.show("phone-closer")
    person.leave()


def asks_for_the_key(browser):
    child, url = start("--api-key", "open sesame")
    try:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#ask[open]")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask[open]")
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        until(page, "document.body.dataset.ready === 'true'")
        page.fill("#prompt", "a red apple")
        page.click("#go")
        until(page, "document.body.dataset.job === 'ended'")
        until(page, "document.querySelector('#gallery img') && document.querySelector('#gallery img').naturalWidth === 64")
        context.close()
    finally:
        child.terminate()
        child.wait()


with sync_playwright() as playwright:
    try:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("chromium-browser"), args=["--no-sandbox"])
    except Error as error:
        print(f"skipped: there is no Chromium: {str(error).splitlines()[0]}; playwright install chromium")
        sys.exit(SKIPPED)
    server, address = start()
    try:
        somebody = Person(browser, address, viewport={"width": 1280, "height": 900}, accept_downloads=True)
        somebody.fits()
        for test in (generates, reloads, submits_by_keys, cancels, inpaints, outpaints, reads_what_is_dropped, looks_closer, says_what_is_wrong):
            test(somebody)
            assert not somebody.wrong, (test.__name__, somebody.wrong)
            print(f"{test.__name__}: ok", flush=True)
        somebody.leave()
        for test in (is_light_and_dark, is_good_on_a_phone):
            test(browser, address)
            print(f"{test.__name__}: ok", flush=True)
        asks_for_the_key(browser)
        print("asks_for_the_key: ok")
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
