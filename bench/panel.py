"""How quick and how safe are the panels, in a real browser driving JupyterLab? `python -m bench.panel --only latency`

Needs Chromium, playwright and JupyterLab. Parts: latency (key to next image drawn and to stored row: kernel idle and busy,
directly and through a proxy that delays by 150 ms there and back, queue of 10,000), grid (48 images at once), storm (1,000 labels at 15
keys a second with a reload, a restart of the kernel and a network cut of 3 s, beside a plain panel of ipywidgets Image and
Buttons), kills (the kernel killed at 20 random moments). Every image carries its number in its first row of pixels, so what
was on screen at each key is read off the screen itself. About five minutes a part on two cores.
"""

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import find_chromium
from lab import FLAGS, Lab, Proxy, focus, image_ready, loaded, open_notebook, run_all, running_lab, write_notebook
from playwright.sync_api import Page, sync_playwright

from pathloop.core import write_json
from pathloop.feedback import FeedbackStore

RESULTS = ROOT / "bench" / "results" / "panel.json"
IMAGES = """
import time
import numpy as np
from pathloop.checklist import load_checklist
from pathloop.core import image_hash, image_hashes
from pathloop.feedback import FeedbackStore
from pathloop.smear import make_smear

def numbered(n):
    "Cells of a smear, each with its number in the first 16 pixels."
    cells = make_smear(8, 64, 1)
    images = np.resize(cells.images, (n, 3, 64, 64))
    bits = (np.arange(n)[:, None] >> np.arange(16)) & 1
    images[:, :, 0, :16] = (2 * bits - 1)[:, None]
    return images, np.resize(cells.labels, n), cells.classes

images, labels, classes = numbered(N)
store = FeedbackStore("feedback.db")
log = open("stored.log", "a", buffering=1)
record = store.record
def timed(row, checklist=None):
    uuid = record(row, checklist)
    log.write(f"{uuid} {time.time()}\\n")
    return uuid
store.record = timed
"""
LABEL = """
from pathloop.panel import LabelPanel
LabelPanel(images, labels, classes, load_checklist(), store, "Ana", "smear", seed=None, quickest=QUICKEST)
"""
GRID = """
from pathloop.grid import GridPanel
GridPanel(images[:480], np.zeros(480, int), classes, load_checklist(), store, "Ben", "smear", seed=None, per_page=48, dwell=0)
"""
PLAIN = """
import io, ipywidgets
from PIL import Image
from IPython.display import display
from pathloop.data import to_uint8
pixels = to_uint8(images[:400])
def png(i):
    file = io.BytesIO()
    Image.fromarray(pixels[i]).save(file, "PNG", compress_level=1)
    return file.getvalue()
at, rows = 0, open("plain.log", "a", buffering=1)
picture, good, bad = ipywidgets.Image(value=png(0), width=400), ipywidgets.Button(description="good"), ipywidgets.Button(description="bad")
def pressed(button):
    global at
    rows.write(f"{at} {button.description}\\n")
    at += 1
    picture.value = png(at)
good.on_click(pressed); bad.on_click(pressed)
display(ipywidgets.VBox([picture, ipywidgets.HBox([good, bad])]))
"""
METER = """
() => {
  const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  window.number = (source) => {
    const canvas = source ?? document.querySelector(".pathloop-panel:not(.is-empty) [data-part=image]");
    if (!canvas || (canvas.tagName === "IMG" ? !canvas.complete : canvas.width < 16)) return -1;
    scratch.drawImage(canvas, 0, 0, 16, 1, 0, 0, 16, 1);
    const { data } = scratch.getImageData(0, 0, 16, 1);
    return Array.from({ length: 16 }, (_, i) => (data[4 * i] > 127 ? 1 << i : 0)).reduce((a, b) => a + b);
  };
  window.drawn = [];
  let waiting = null;
  document.addEventListener("keydown", (event) => {
    if (!"axu".includes(event.key)) return;
    waiting = { at: event.timeStamp, epoch: performance.timeOrigin + event.timeStamp, key: event.key, number: window.number() };
    window.lastKey = waiting;
  }, true);
  document.addEventListener("pathloop:decided", (event) => {
    const { uuid, verdict } = event.detail.events[0];
    const place = `bench:${String(sessionStorage.length).padStart(6, "0")}:${uuid}`;
    if (event.detail.events[0].kind === "review") sessionStorage.setItem(place, JSON.stringify({ uuid, verdict, ...window.lastKey }));
  });
  window.floor = []; // a key that only changes a word in the page: what browser and machine take at least
  const word = document.body.appendChild(Object.assign(document.createElement("span"), { style: "position: fixed; bottom: 0; left: 50%" }));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "q") return;
    word.textContent = String(window.floor.length);
    requestAnimationFrame(() => {
      const after = new MessageChannel();
      after.port1.onmessage = () => window.floor.push(performance.now() - event.timeStamp);
      after.port2.postMessage(0);
    });
  }, true);
  window.acknowledged = window.acknowledged ?? [];
  document.addEventListener("pathloop:saved", (event) => window.acknowledged.push(...event.detail.uuids));
  const frame = () => {
    if (waiting && waiting.number !== window.number()) {
      const { at, epoch } = waiting;
      waiting = null;
      const after = new MessageChannel(); // its message comes when the frame with the new image is painted
      after.port1.onmessage = () => window.drawn.push({ ms: performance.now() - at, epoch });
      after.port2.postMessage(0);
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}
"""
DECISIONS = "() => Object.keys(sessionStorage).filter((key) => key.startsWith('bench:')).map((key) => JSON.parse(sessionStorage[key]))"


def quantiles(values: list[float]) -> dict[str, float]:
    "n, median, 95th percentile with its 95 % interval (order statistics, by bootstrap), and maximum."
    values = np.asarray(values, float)
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.quantile(draws, 0.95, axis=1), [0.025, 0.975])
    return {"n": len(values), "p50": round(float(np.median(values)), 1), "p95": round(float(np.quantile(values, 0.95)), 1),
            "p95_low": round(float(low), 1), "p95_high": round(float(high), 1), "max": round(float(values.max()), 1)}


def prepare(lab: Lab, name: str, panel: str, n: int, quickest: float = 0.2) -> None:
    "A notebook with a panel on n numbered images."
    write_notebook(lab.root / f"{name}.ipynb", IMAGES.replace("(N)", f"({n})"), panel.replace("QUICKEST", str(quickest)), "import threading")


def opened(browser, lab: Lab, name: str, port: int | None = None) -> Page:
    "The notebook, run, with the meter in it and the panel's keys live."
    page = browser.new_page(viewport={"width": 1360, "height": 950})
    page.set_default_timeout(90_000)
    page.on("dialog", lambda dialog: dialog.accept())
    open_notebook(page, lab.url(f"{name}.ipynb", port))
    run_all(page)
    page.evaluate(METER)
    return page


BUSY = """
import pathlib
pathlib.Path("busy.ended").unlink(missing_ok=True)
pathlib.Path("busy.started").touch()
try:
    while True: pass
finally:
    pathlib.Path("busy.ended").touch()
"""
KERNEL = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"


def latencies(page: Page, lab: Lab, keys: int, busy: bool) -> dict[str, dict[str, float]]:
    "Key to next image drawn, and key to stored row, at a reader's fastest pace."
    image_ready(page)
    focus(page)
    if busy:
        page.evaluate("(code) => { " + KERNEL + ".requestExecute({ code }); }", BUSY)
        page.wait_for_timeout(500)
    page.evaluate("() => { window.drawn.length = 0; }")
    begin = time.time()
    for key in range(keys):
        image_ready(page)
        page.keyboard.press("a")
        if key % 3 == 0:
            page.wait_for_timeout(80)
            page.keyboard.press("q")
    image_ready(page)
    page.wait_for_timeout(1500)
    if busy:
        assert (lab.root / "busy.started").exists() and not (lab.root / "busy.ended").exists(), "the kernel was not busy all the time"
        page.evaluate(f"() => {KERNEL}.interrupt()")
    stored = dict(line.split() for line in (lab.root / "stored.log").read_text().splitlines())
    mine = [row for row in page.evaluate(DECISIONS) if row["epoch"] / 1000 > begin]
    late = [row["uuid"] for row in mine if row["uuid"] not in stored]
    assert not late, f"{len(late)} labels were not stored within 1.5 s"
    return {"drawn_ms": quantiles([row["ms"] for row in page.evaluate("() => window.drawn")]), "floor_ms": quantiles(page.evaluate("() => window.floor.splice(0)")),
            "stored_ms": quantiles([1000 * float(stored[row["uuid"]]) - row["epoch"] for row in mine])}


def measure_latency(browser, keys: int) -> dict:
    "All four conditions."
    found: dict = {"queue": 10_000, "image": "64 x 64"}
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab:
        prepare(lab, "label", LABEL, 10_000)
        proxy = Proxy(lab.port, 0.075)
        for name, port in (("local", None), ("150 ms", proxy.port)):
            page = opened(browser, lab, "label", port)
            for busy in (False, True):
                found[f"{name}, kernel {'busy' if busy else 'idle'}"] = latencies(page, lab, keys, busy)
                print(name, "busy" if busy else "idle", found[f"{name}, kernel {'busy' if busy else 'idle'}"], flush=True)
            page.evaluate(f"() => {KERNEL}.shutdown()")
            page.close()
        proxy.close()
    return found


def measure_grid(browser) -> dict:
    "Milliseconds from the view's appearance to the first page of 48 painted, and from Enter to the next page painted."
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab:
        return _grid_times(browser, lab)


def _grid_times(browser, lab: Lab) -> dict:
    prepare(lab, "grid", GRID, 480)
    shown = "() => document.querySelector('.pathloop-panel')?.dataset.shown !== undefined"
    first, turned = [], []
    for _ in range(10):
        page = browser.new_page(viewport={"width": 1360, "height": 950})
        page.set_default_timeout(90_000)
        open_notebook(page, lab.url("grid.ipynb"))
        page.evaluate("""() => new MutationObserver(() => {
          if (!window.appeared && document.querySelector('.pathloop-panel')) window.appeared = performance.now();
        }).observe(document.body, { childList: true, subtree: true })""")
        run_all(page)
        page.wait_for_function(shown)
        first.append(page.evaluate("() => Number(document.querySelector('.pathloop-panel').dataset.shown) - window.appeared"))
        page.evaluate("() => document.addEventListener('keydown', (event) => { window.entered = event.timeStamp; }, true)")
        focus(page)
        page.wait_for_timeout(700)
        for _ in range(3):
            page.keyboard.press("Enter")
            page.wait_for_function(shown)
            turned.append(page.evaluate("() => Number(document.querySelector('.pathloop-panel').dataset.shown) - window.entered"))
            page.wait_for_timeout(500)
        page.keyboard.press("Backspace")
        page.evaluate(f"() => {KERNEL}.shutdown()")
        page.close()
        (lab.root / "feedback.db").unlink(missing_ok=True)
        for name in ("feedback.db-wal", "feedback.db-shm"):
            (lab.root / name).unlink(missing_ok=True)
    found = {"first_page_ms": quantiles(first), "next_page_ms": quantiles(turned)}
    print("grid", found, flush=True)
    return found


def verify(lab: Lab, decisions: list[dict], acknowledged: set[str]) -> dict[str, int]:
    "What the store holds against what was on screen."
    namespace: dict = {}
    exec(IMAGES.split("store = ")[0].replace("(N)", "(4000)"), namespace)
    numbers = {image: i for i, image in enumerate(namespace["image_hashes"](namespace["images"]))}
    events = FeedbackStore(lab.root / "feedback.db").events()
    reviews = events[events["kind"] == "review"].set_index("uuid")
    meant = {"a": "plausible", "x": "implausible", "u": "unsure"}
    stored = [row for row in decisions if row["uuid"] in reviews.index]
    wrong = [row for row in stored if numbers[reviews.loc[row["uuid"], "image"]] != row["number"] or reviews.loc[row["uuid"], "verdict"] != meant[row["key"]]]
    return {"decisions": len(decisions), "rows": len(reviews), "lost": len(decisions) - len(stored), "doubled": int(reviews["image"].duplicated().sum()),
            "on the wrong image": len(wrong), "acknowledged but not stored": len(acknowledged - set(reviews.index))}


LIVE = """() => { // what somebody does whose keys went dead: close JupyterLab's dialog about the connection, click the panel
  document.querySelector(".jp-Dialog-button")?.click();
  document.querySelector(".pathloop-panel:not([data-old])")?.focus({ preventScroll: true });
}"""


class Storm:
    "Somebody who presses a key 15 times a second, whatever happens."

    def __init__(self, page: Page, per_second: float, seed: int) -> None:
        self.page, self.step, self.random, self.pressed, self.next = page, 1 / per_second, random.Random(seed), 0, time.perf_counter()

    def press(self, seconds: float) -> None:
        "Keys for so long."
        self.next = max(self.next, time.perf_counter())
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(max(0.0, self.next - time.perf_counter()))
            self.next += self.step
            if self.pressed % 8 == 0:
                self.page.evaluate(LIVE)
            self.page.keyboard.press(self.random.choice("axu"))
            self.pressed += 1

    def decided(self) -> int:
        "Labels so far."
        return self.page.evaluate("() => Object.keys(sessionStorage).filter((key) => key.startsWith('bench:')).length")


def measure_storm(browser, labels: int, seed: int = 0) -> dict:
    "1,000 labels at 15 keys a second with a reload, a restart and a cut; then the plain panel."
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab:
        prepare(lab, "storm", LABEL, 4000, quickest=0)
        proxy = Proxy(lab.port, 0.0)
        page = opened(browser, lab, "storm", proxy.port)
        image_ready(page)
        page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        focus(page)
        storm = Storm(page, 15, seed)
        begin = time.time()
        storm.press(12)
        proxy.cut(3)
        storm.press(14)
        print("after the cut", storm.decided(), flush=True)
        acknowledged = set(page.evaluate("() => window.acknowledged"))
        page.reload()
        loaded(page)
        page.evaluate(METER)
        image_ready(page)
        focus(page)
        storm.press(10)
        print("after the reload", storm.decided(), flush=True)
        page.evaluate(f"() => {{ {KERNEL}.restart(); }}")
        storm.press(4) # into a dead panel
        print("after the restart", storm.decided(), flush=True)
        page.evaluate("() => { document.querySelector('.pathloop-panel').dataset.old = 'yes'; }")
        run_all(page)
        page.wait_for_function("() => document.querySelector('.pathloop-panel:not([data-old])')?.dataset.shown")
        while storm.decided() < labels:
            storm.press(1)
        seconds = time.time() - begin
        page.wait_for_function("() => document.querySelector('[data-part=unsaved]').textContent === ''")
        acknowledged |= set(page.evaluate("() => window.acknowledged"))
        found = {"keys": storm.pressed, "seconds": round(seconds), **verify(lab, page.evaluate(DECISIONS), acknowledged)}
        page.evaluate(f"() => {KERNEL}.shutdown()")
        page.close()
        proxy.close()
        print("storm", found, flush=True)
        return {"panel": found, "plain Image and Buttons, nothing happening": measure_plain(browser, lab)}


def measure_plain(browser, lab: Lab, clicks: int = 150, per_second: float = 15) -> dict:
    "The panel that ipywidgets' own documentation leads to, clicked as fast, with nothing else happening."
    prepare(lab, "plain", PLAIN, 4000)
    page = opened(browser, lab, "plain")
    page.wait_for_function("() => document.querySelector('img.widget-image, .widget-image img, .jupyter-widgets.widget-image')?.complete")
    page.evaluate("""() => { window.seen = []; document.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button.jupyter-button")) window.seen.push(window.number(document.querySelector("img.widget-image")));
    }, true); }""")
    box = page.locator("button.jupyter-button").first.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 10)
    start = time.perf_counter()
    for i in range(clicks):
        time.sleep(max(0.0, start + i / per_second - time.perf_counter()))
        page.mouse.down()
        page.mouse.up()
    page.wait_for_timeout(3000)
    seen = page.evaluate("() => window.seen")
    rows = [int(line.split()[0]) for line in (lab.root / "plain.log").read_text().splitlines()]
    page.close()
    wrong = sum(a != b for a, b in zip(seen, rows, strict=False))
    found = {"clicks": len(seen), "rows": len(rows), "on the wrong image": wrong}
    print("plain", found, flush=True)
    return found


def measure_kills(browser, kills: int, seed: int = 0) -> dict:
    "The kernel killed at random moments while keys are pressed; it comes back, and the cells are run again."
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab:
        prepare(lab, "kills", LABEL, 4000, quickest=0)
        page = opened(browser, lab, "kills")
        image_ready(page)
        focus(page)
        storm = Storm(page, 10, seed)
        for kill in range(kills):
            storm.press(chance.uniform(0.5, 2.5))
            [kernel] = lab.kernels()
            os.kill(kernel, signal.SIGKILL)
            storm.press(chance.uniform(0.1, 1.0))
            while lab.kernels() in ([], [kernel]):  # JupyterLab starts another by itself, and says so in a dialog, unless it was quicker than the keys
                page.wait_for_timeout(100)
            page.wait_for_function(f"() => {{ document.querySelector('.jp-Dialog-button')?.click(); return {KERNEL}.status === 'idle' && !document.querySelector('.jp-Dialog'); }}")
            page.evaluate("() => { document.querySelector('.pathloop-panel').dataset.old = 'yes'; }")
            run_all(page)
            page.wait_for_function("() => document.querySelector('.pathloop-panel:not([data-old])')?.dataset.shown")
            page.wait_for_function("() => document.querySelector('.pathloop-panel:not([data-old]) [data-part=unsaved]').textContent === ''")
            focus(page, ".pathloop-panel:not([data-old])")
            print("kill", kill + 1, "labels", storm.decided(), flush=True)
        storm.press(1)
        page.wait_for_function("() => document.querySelector('.pathloop-panel:not([data-old]) [data-part=unsaved]').textContent === ''")
        found = {"kills": kills, "keys": storm.pressed, "acknowledged": len(page.evaluate("() => window.acknowledged")),
                 **verify(lab, page.evaluate(DECISIONS), set(page.evaluate("() => window.acknowledged")))}
        page.close()
    print("kills", found, flush=True)
    return found


def main() -> None:
    "Measure, print, and keep the result."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["latency", "grid", "storm", "kills"], action="append")
    parser.add_argument("--keys", type=int, default=150, help="of each condition of latency")
    parser.add_argument("--labels", type=int, default=1000, help="of the storm")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    parts = {"latency": lambda browser: measure_latency(browser, arguments.keys), "grid": measure_grid, "storm": lambda browser: measure_storm(browser, arguments.labels),
             "kills": lambda browser: measure_kills(browser, arguments.kills)}
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    packages = {name: version(name) for name in ("jupyterlab", "jupyter_server", "ipykernel", "ipywidgets", "anywidget", "playwright")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS, headless=True)
        packages["chromium"] = browser.version
        for part in arguments.only or list(parts):
            made = {"date": datetime.now(UTC).date().isoformat(), "command": f"python -m bench.panel --only {part}", "device": f"{os.cpu_count()} cores, {platform.machine()}", "packages": packages}
            before = os.getloadavg()[0]
            results[part] = made | {"result": parts[part](browser), "load average": [round(before, 1), round(os.getloadavg()[0], 1)]}
            write_json(arguments.out, results)
        browser.close()


if __name__ == "__main__":
    main()
