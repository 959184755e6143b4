"""The panel in a real JupyterLab with a real browser: keys, clicks, undo, reload; judged by what the store holds."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

playwright_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")

from pathloop.feedback import FeedbackStore  # noqa: E402

pytestmark = pytest.mark.browser

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
CELL = """
from pathloop.checklist import load_checklist
from pathloop.feedback import FeedbackStore
from pathloop.panel import LabelPanel
from pathloop.smear import make_smear

cells = make_smear(n_per_class=2, size=64, seed=5)
panel = LabelPanel(
    cells.images, cells.labels, cells.classes, load_checklist("peripheral-blood"), FeedbackStore("feedback.db"),
    rater="Ana", generator="smear", references=make_smear(n_per_class=6, size=64, seed=6), micrometres_per_pixel=0.4,
)
panel
"""


@pytest.fixture(scope="module")
def browser(chromium):
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1360, "height": 900})
    page.set_default_timeout(120_000)  # for machines that are busy with something else
    page.on("dialog", lambda dialog: dialog.accept())
    yield page
    page.close()


@pytest.fixture
def lab(tmp_path):
    root = tmp_path / "notebooks"
    root.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL), nbformat.v4.new_code_cell("1 + 1")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, root / "label.ipynb")
    settings = tmp_path / "CONFIG" / "labconfig"
    settings.mkdir(parents=True)
    off = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}  # its question covers the buttons
    (settings / "page_config.json").write_text(json.dumps(off))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={root}", f"--IdentityProvider.token={token}"]
    options += ["--ServerApp.port_retries=0", "--allow-root", "--LabApp.expose_app_in_browser=True"]
    with open(tmp_path / "server.log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/workspaces/panel/tree/label.ipynb?reset&token={token}", root
    finally:
        os.killpg(server.pid, signal.SIGINT)  # this server's own process group: the server and its kernel
        time.sleep(0.3)
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def open_notebook(page, url):
    page.goto(url)
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    idle = "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    page.wait_for_function(idle)


def image_ready(page):
    """Wait until an image has been on screen for longer than the 200 ms in which the panel ignores decisions."""
    seen = "() => performance.now() - Number(document.querySelector('.pathloop-panel')?.dataset.shown ?? Infinity) > 220"
    page.wait_for_function(seen)


def saved(page, count):
    page.wait_for_function(f"() => document.querySelector('[data-part=\"saved\"]')?.textContent === '{count}'")


def press(page, *keys):
    image_ready(page)
    for key in keys:
        page.keyboard.press(key)


def button_height(page):
    image_ready(page)
    return page.locator(".pathloop-verdicts").bounding_box()["y"]


def focus(page):
    page.locator(".pathloop-panel").focus()


def picture(page, name):
    if os.environ.get("PATHLOOP_SCREENSHOTS"):
        page.screenshot(path=f"{os.environ['PATHLOOP_SCREENSHOTS']}/{name}.png")


def test_label_undo_reload_continue(page, lab):
    url, root = lab
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    open_notebook(page, url)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    image_ready(page)
    cells_before = page.locator(".jp-Notebook .jp-Cell").count()

    focus(page)
    press(page, "a")  # 1 plausible
    press(page, "4", "x")  # 2 implausible: fourth criterion
    image_ready(page)
    page.locator(".pathloop-rows li").nth(1).locator("[data-do=failed]").click()  # 3 by mouse
    picture(page, "marked")
    page.locator(".pathloop-verdicts [data-do=implausible]").click()
    places = {button_height(page)}
    press(page, "u")  # 4 unsure as a whole
    places.add(button_height(page))
    press(page, "Shift+6", "Enter")  # 5 unsure: sixth criterion
    places.add(button_height(page))
    assert len(places) == 1, "the buttons moved under the mouse"
    press(page, "c")
    page.keyboard.type("bax: smudged")  # letters that are notebook commands outside the panel
    page.keyboard.press("Enter")
    press(page, "x")  # 6 implausible as a whole, with a comment
    saved(page, 6)
    press(page, "Backspace")  # taken back ...
    saved(page, 5)
    page.wait_for_function("() => document.querySelector('.pathloop-comment').value === 'bax: smudged'")
    press(page, "a", "a")  # ... and judged again; the second press is a double tap, ignored
    press(page, " ")  # skipped
    image_ready(page)
    page.locator(".pathloop-verdicts [data-do=plausible]").click()  # 7
    press(page, "b", "d", "d")  # notebook commands: must do nothing here
    saved(page, 7)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells_before
    picture(page, "before-reload")

    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1000)
    page.reload()
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    image_ready(page)
    saved(page, 7)
    picture(page, "after-reload")
    focus(page)
    press(page, "a")  # 8
    saved(page, 8)
    press(page, "Backspace", "Backspace")  # two steps back, the second one across the reload
    saved(page, 6)
    press(page, "2", "x")
    press(page, "a")
    saved(page, 8)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells_before
    assert page.locator('[data-part="banner"]').is_hidden()

    assert faults == []
    events = FeedbackStore(root / "feedback.db").events()
    kinds = ["review"] * 6 + ["undo", "review", "skip", "review", "review", "undo", "undo", "review", "review"]
    assert list(events["kind"]) == kinds
    reviews = events[events["kind"] == "review"].reset_index(drop=True)
    verdicts = ["plausible", "implausible", "implausible", "unsure", "unsure", "implausible"]
    verdicts += ["plausible", "plausible", "plausible", "implausible", "plausible"]
    assert list(reviews["verdict"]) == verdicts
    criteria = list(reviews["answers"][0])
    marks = [[criteria.index(name) + 1 for name, answer in answers.items() if answer != "yes"] for answers in reviews["answers"]]
    whole = list(range(1, 8))
    assert marks == [[], [4], [2], whole, [6], whole, [], [], [], [2], []]
    assert reviews["comment"][5] == reviews["comment"][6] == "bax: smudged"
    assert set(events["source"]) == {"human"} and set(events["rater"]) == {"Ana"}
    assert events["session"].nunique() == 2
    assert reviews["seconds"].between(0.2, 300).all() and (reviews["first_seconds"] <= reviews["seconds"]).all()
    table = FeedbackStore(root / "feedback.db").verdicts()
    assert len(table) == 8 and table.index.is_unique


def test_unsaved_judgements_survive_a_failing_disk(page, lab):
    url, root = lab
    open_notebook(page, url)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    image_ready(page)
    focus(page)
    press(page, "a")
    saved(page, 1)
    database = root / "feedback.db"
    database.rename(root / "away.db")
    press(page, "3", "x")
    press(page, "a")
    page.wait_for_selector('[data-part="banner"]:visible')
    assert "moved or deleted" in page.locator('[data-part="banner"]').text_content()
    assert page.locator('[data-part="saved"]').text_content() == "1"
    picture(page, "disk-away")
    (root / "away.db").rename(database)
    saved(page, 3)
    page.wait_for_selector('[data-part="banner"]', state="hidden")
    assert list(FeedbackStore(database).events()["verdict"]) == ["plausible", "implausible", "plausible"]
