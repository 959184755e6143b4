"""The app: what it runs, what it refuses, and the page that it serves, in a real browser."""

import functools
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from pathloop.adjudicate import AdjudicatePanel
from pathloop.app import VIEWS, label, open_panel, serve, start_form, study_cell
from pathloop.assignments import Design
from pathloop.blind import BlindPanel
from pathloop.checklist import load_checklist
from pathloop.compare import ComparePanel
from pathloop.feedback import FeedbackStore
from pathloop.grid import GridPanel
from pathloop.panel import LabelPanel
from pathloop.smear import make_smear

CELLS, OTHERS, REAL = (make_smear(n_per_class=8, size=16, seed=seed) for seed in (1, 2, 3))
CHECKLIST = load_checklist("peripheral-blood")
KINDS = {"label": LabelPanel, "grid": GridPanel, "compare": ComparePanel, "blind": BlindPanel, "adjudicate": AdjudicatePanel}


@pytest.fixture
def store(tmp_path):
    return FeedbackStore(tmp_path / "feedback.db")


def opened(store, view="label", rater="Ana", **more):
    return open_panel(view, rater, store, CHECKLIST, CELLS, "generator-1", **({"real": REAL, "other": {"generator-0": OTHERS}} | more))


def test_every_view_opens(store):
    for view in VIEWS:
        panel = opened(store, view)
        assert isinstance(panel, KINDS[view])
        panel.close()


def test_checks_are_real_cells_that_are_not_shown_as_references(store):
    queue = opened(store, design=Design(controls=0.2)).queue
    while queue.current:
        queue.judge("plausible")
    controls = queue.supply.worklist.controls()
    shown = {REAL.of_class(name).hashes[i] for name in REAL.classes for i in range(6)}
    assert len(controls) and set(controls["image"]) <= set(REAL.hashes) - shown
    assert queue.supply.worklist.progress().loc["Ana", "control done"] > 0
    assert set(store.verdicts().index) == set(CELLS.hashes)


def test_a_rater_who_comes_back_goes_on(store):
    queue = opened(store, design=Design()).queue
    for _ in range(5):
        queue.judge("plausible")
    assert opened(store, design=Design()).queue.progress()["judged"] == 5
    other = opened(store, rater="Ben", design=Design()).queue
    assert other.progress()["judged"] == 0 and not {item.image for item in other.items} & {item.image for item in queue.items}


def test_without_real_cells_there_are_no_checks(store):
    panel = opened(store, real=None)
    assert panel.references is None and panel.queue.supply.worklist.design.controls == 0
    with pytest.raises(ValueError, match="view 'blind' needs real images"):
        opened(store, "blind", real=None)


def test_other_images_make_another_worklist(store):
    names = [open_panel("label", "Ana", store, CHECKLIST, cells, "generator-1").queue.supply.worklist.name for cells in (CELLS, OTHERS, CELLS)]
    assert names[0] == names[2] != names[1]


def test_the_form_tells_errors_and_can_be_tried_again(store):
    form = start_form(lambda rater, view: opened(store, view, rater), rater=" ", view="grid")
    name, choice, button, _ = form.children
    assert choice.value == "grid"
    button.click()
    assert "rater must be a name" in form.children[-1].value and not button.disabled
    name.value = "Ana"
    button.click()
    assert isinstance(form.children[0], GridPanel)
    with pytest.raises(ValueError, match="view must be one of"):
        start_form(lambda rater, view: opened(store, view, rater), view="film")


def test_what_the_app_runs_for_a_study(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder with a study.toml"):
        label(tmp_path)
    (tmp_path / "study.toml").touch()
    with pytest.raises(ValueError, match="view must be one of"):
        study_cell(tmp_path, view="film")
    cell = study_cell(tmp_path, "O'Neill", "grid")
    compile(cell, "cell", "exec")
    assert repr("O'Neill") in cell and "'grid'" in cell


def test_a_port_in_use(tmp_path):
    import socket

    pytest.importorskip("voila")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="port must be free"):
            serve("1", port=taken.getsockname()[1], browser=False)


CELL = """
from pathloop.app import open_panel, start_form
from pathloop.checklist import load_checklist
from pathloop.feedback import FeedbackStore
from pathloop.smear import make_smear

cells, real = make_smear(8, 64, 1), make_smear(8, 64, 2)
store = FeedbackStore({database!r})
start_form(lambda rater, view: open_panel(view, rater, store, load_checklist(), cells, "generator-1", real))
"""


@pytest.mark.browser
def test_the_app_in_a_browser(tmp_path, chromium):
    pytest.importorskip("voila")
    api = pytest.importorskip("playwright.sync_api")
    from lab import FLAGS, focus, picture, press, saved

    database = tmp_path / "feedback.db"
    code = f"from pathloop.app import serve; serve({CELL.format(database=str(database))!r}, browser=False, say=lambda text: print(text, flush=True))"
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # as at a terminal; a script's background jobs are born deaf to Ctrl-C
    with (tmp_path / "log").open("w") as log:
        app = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=heard)
    try:
        url = app.stdout.readline().split()[1]
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url.split("?")[0]) as answer:  # without the token
            assert "/login" in answer.geturl()
        with api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
            page = browser.new_page(viewport={"width": 1360, "height": 950})
            page.set_default_timeout(60_000)
            for count in (3, 5):  # comes back and goes on
                page.goto(url)
                page.locator("input[type=text]").first.fill("Ana")
                page.get_by_role("button", name="Start").click()
                page.wait_for_selector(".pathloop-panel")
                focus(page)
                while int(page.locator("[data-part=saved]").text_content()) < count:
                    done = int(page.locator("[data-part=saved]").text_content())
                    press(page, "a")
                    saved(page, done + 1)
                picture(page, f"app-{count}")
            browser.close()
        assert len(FeedbackStore(database).events()) == 5
    finally:
        app.send_signal(signal.SIGINT)
        for _ in range(100):
            if app.poll() is not None:
                break
            time.sleep(0.2)
        else:
            app.kill()
    assert app.returncode == 0 and "Ended." in app.stdout.read()
