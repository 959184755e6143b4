"""The panels in a real JupyterLab with a real browser: keys, clicks, undo, reload, restart; judged by what the store holds."""

import pytest

playwright_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")

from lab import (  # noqa: E402
    FLAGS,
    focus,
    image_ready,
    loaded,
    open_notebook,
    picture,
    press,
    run_all,
    running_lab,
    saved,
    write_notebook,
)

from pathloop.feedback import FeedbackStore  # noqa: E402

pytestmark = pytest.mark.browser

START = """
import numpy as np
from pathloop.assignments import Design, make_pairs
from pathloop.checklist import load_checklist
from pathloop.feedback import FeedbackStore
from pathloop.panel import LabelPanel, LabelQueue
from pathloop.smear import make_smear

cells, others = make_smear(n_per_class=2, size=64, seed=5), make_smear(n_per_class=2, size=64, seed=4)
real = make_smear(n_per_class=6, size=64, seed=6)
checklist, store = load_checklist("peripheral-blood"), FeedbackStore("DATABASE")
given = (cells.images, cells.labels, cells.classes, checklist, store)
both = np.concatenate([cells.images, others.images])
"""
LABEL = 'LabelPanel(*given, rater="Ana", generator="smear", references=real, micrometres_per_pixel=0.4)'


@pytest.fixture(scope="module")
def browser(chromium):
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1360, "height": 900})
    page.set_default_timeout(60_000)  # for machines that are busy with something else
    page.on("dialog", lambda dialog: dialog.accept())
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    if not page.is_closed():
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        page.close()
    assert faults == []


@pytest.fixture
def notebook(page, lab, request):
    "Open a notebook with these cells, run it, and say where its store is."

    def opened(*cells):
        name = request.node.name
        write_notebook(lab.root / f"{name}.ipynb", START.replace("DATABASE", f"{name}.db"), *cells)
        open_notebook(page, lab.url(f"{name}.ipynb"))
        run_all(page)
        return lab.root / f"{name}.db"

    return opened


def cell_count(page):
    return page.locator(".jp-Notebook .jp-Cell").count()


def button_height(page):
    image_ready(page)
    return page.locator(".pathloop-verdicts").bounding_box()["y"]


def restart(page):
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")


def test_label_undo_reload_continue(page, notebook):
    database = notebook(LABEL, "1 + 1")
    image_ready(page)
    cells_before = cell_count(page)
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
    press(page, " ", "2")  # skipped, for the second reason
    image_ready(page)
    page.locator(".pathloop-verdicts [data-do=plausible]").click()  # 7
    press(page, "b", "d", "d")  # notebook commands: must do nothing here
    saved(page, 7)
    assert cell_count(page) == cells_before

    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1000)
    page.reload()
    loaded(page)
    image_ready(page)
    saved(page, 7)
    focus(page)
    press(page, "a")  # 8
    saved(page, 8)
    press(page, "Backspace", "Backspace")  # two steps back, the second one across the reload
    saved(page, 6)
    press(page, "2", "x")
    press(page, "a")
    saved(page, 8)
    assert cell_count(page) == cells_before
    assert page.locator('[data-part="banner"]').is_hidden()

    events = FeedbackStore(database).events()
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
    assert events.loc[events["kind"] == "skip", "comment"].tolist() == ["not one whole cell"]
    assert set(events["source"]) == {"human"} and set(events["rater"]) == {"Ana"}
    assert events["session"].nunique() == 2
    assert reviews["seconds"].between(0.2, 300).all() and (reviews["first_seconds"] <= reviews["seconds"]).all()
    table = FeedbackStore(database).verdicts()
    assert len(table) == 8 and table.index.is_unique


def test_unsaved_judgements_survive_a_failing_disk(page, notebook):
    database = notebook(LABEL)
    image_ready(page)
    focus(page)
    press(page, "a")
    saved(page, 1)
    away = database.with_suffix(".away")
    database.rename(away)
    press(page, "3", "x")
    press(page, "a")
    page.wait_for_selector('[data-part="banner"]:visible')
    assert "moved or deleted" in page.locator('[data-part="banner"]').text_content()
    assert page.locator('[data-part="saved"]').text_content() == "1"
    picture(page, "disk-away")
    away.rename(database)
    saved(page, 3)
    page.wait_for_selector('[data-part="banner"]', state="hidden")
    assert list(FeedbackStore(database).events()["verdict"]) == ["plausible", "implausible", "plausible"]


def test_a_read_only_store_is_told_and_nothing_counts_as_saved(page, notebook):
    database = notebook(LABEL, 'with store._engine.connect() as connection:\n    connection.exec_driver_sql("PRAGMA query_only=ON")')
    image_ready(page)
    focus(page)
    press(page, "a")
    press(page, "x")
    page.wait_for_selector('[data-part="banner"]:visible')
    assert "Not saved" in page.locator('[data-part="banner"]').text_content()
    assert page.locator('[data-part="saved"]').text_content() == "0" and "2 on the way" in page.locator('[data-part="unsaved"]').text_content()
    assert len(FeedbackStore(database).events()) == 0


@pytest.mark.parametrize("cell", ["time.sleep(9)", "end = time.time() + 9\nwhile time.time() < end: pass"], ids=["waiting", "computing"])
def test_labels_are_stored_while_a_cell_runs(page, notebook, cell):
    database = notebook(LABEL, "import pathlib, time")
    done = database.with_suffix(".done")
    image_ready(page)
    focus(page)
    press(page, "a")
    saved(page, 1)
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    page.evaluate("(code) => { " + kernel + ".requestExecute({ code }); }", f"{cell}\npathlib.Path({str(done)!r}).touch()")
    page.wait_for_timeout(500)
    focus(page)
    for count in range(2, 7):
        press(page, "a")
        saved(page, count)
    assert not done.exists(), "the cell ended before the labels were stored"
    assert len(FeedbackStore(database).events()) == 6


def test_restart_of_the_kernel_and_running_again_resumes(page, notebook):
    database = notebook(LABEL)
    image_ready(page)
    focus(page)
    press(page, "a")
    saved(page, 1)
    restart(page)
    press(page, "4", "x")  # into a dead panel: kept, and told
    press(page, "u")
    page.wait_for_selector('[data-part="banner"]:visible')
    assert "kernel does not answer" in page.locator('[data-part="banner"]').text_content()
    assert page.locator('[data-part="saved"]').text_content() == "1"
    picture(page, "kernel-away")
    run_all(page)
    saved(page, 3)
    image_ready(page)
    assert page.locator(".pathloop-panel").count() == 1 and page.locator('[data-part="judged"]').text_content() == "3"
    focus(page)
    press(page, "a")
    saved(page, 4)
    assert list(FeedbackStore(database).events()["verdict"]) == ["plausible", "implausible", "unsure", "plausible"]
    assert len(FeedbackStore(database).verdicts()) == 4


def test_two_panels_on_one_page_do_not_mix(page, notebook):
    database = notebook(LABEL, LABEL.replace("Ana", "Ben"))
    page.wait_for_function("() => [...document.querySelectorAll('.pathloop-panel')].filter((panel) => performance.now() - Number(panel.dataset.shown ?? Infinity) > 220).length === 2")
    first, second = page.locator(".pathloop-panel").nth(0), page.locator(".pathloop-panel").nth(1)
    first.focus()
    page.keyboard.press("a")
    second.focus()
    page.keyboard.press("x")
    first.focus()
    page.wait_for_timeout(300)
    page.keyboard.press("u")
    page.wait_for_function("() => [...document.querySelectorAll('[data-part=saved]')].map((node) => node.textContent).join() === '2,1'")
    events = FeedbackStore(database).events()
    assert {rater: events.loc[events["rater"] == rater, "verdict"].tolist() for rater in ("Ana", "Ben")} == {"Ana": ["plausible", "unsure"], "Ben": ["implausible"]}


def test_the_same_work_opened_twice_goes_on_in_one_place(page, notebook):
    database = notebook(LABEL, LABEL)
    page.wait_for_function("() => document.querySelectorAll('.pathloop-panel').length === 2 && document.querySelectorAll('.pathloop-panel.is-empty').length === 1")
    focus(page, ".pathloop-panel:not(.is-empty)")
    image_ready(page, ".pathloop-panel:not(.is-empty)")
    page.keyboard.press("a")
    saved(page, 1, ".pathloop-panel:not(.is-empty)")
    assert "open in another place" in page.locator(".pathloop-panel.is-empty").text_content()
    assert len(FeedbackStore(database).events()) == 1


def test_grid(page, notebook):
    database = notebook('from pathloop.grid import GridPanel\nmore = make_smear(20, 64, 3, ["basophil", "monocyte"])\n'
                        'GridPanel(more.images, more.labels, more.classes, checklist, store, "Ana", "smear", references=real, per_page=12, dwell=0.3)')
    image_ready(page)
    focus(page)
    press(page, "Enter")  # too soon: a page needs its dwell
    page.wait_for_timeout(400)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("u")
    page.locator(".pathloop-tile").nth(4).click()
    picture(page, "grid")
    page.keyboard.press("Enter")
    saved(page, 12)
    page.wait_for_timeout(600)
    page.keyboard.press("Enter")
    saved(page, 20)
    page.keyboard.press("Backspace")
    saved(page, 12)
    page.keyboard.press("Backspace")
    saved(page, 0)
    assert page.locator(".pathloop-tile.is-rejected").count() == 2 and page.locator(".pathloop-tile.is-doubted").count() == 1
    page.wait_for_timeout(600)
    page.keyboard.press("Enter")
    saved(page, 12)
    verdicts = FeedbackStore(database).verdicts()
    assert verdicts["verdict"].value_counts().to_dict() == {"plausible": 9, "implausible": 2, "unsure": 1} and verdicts["cell_type"].nunique() == 1


def test_compare(page, notebook):
    database = notebook('from pathloop.compare import ComparePanel\n'
                        'pairs = make_pairs(store, "pairs", cells.images, others.images, cells.labels, cells.classes, ("old", "new"))\n'
                        'panel = ComparePanel(pairs, both, "Ana", references=real)\npanel',
                        '(panel.queue.side(panel.queue.items[0]), panel.queue.side(panel.queue.items[1]))')
    image_ready(page)
    focus(page)
    press(page, "ArrowLeft")
    press(page, "ArrowRight")
    press(page, "ArrowDown")
    press(page, "b")
    saved(page, 4)
    press(page, "Backspace")
    saved(page, 3)
    press(page, "ArrowDown")
    saved(page, 4)
    picture(page, "compare")
    events = FeedbackStore(database).events()
    said = [(answers["preferred"], answers["side"]) for answers in events["answers"] if answers]
    assert [preferred == "this" for preferred, _ in said[:2]] == [said[0][1] == "left", said[1][1] == "right"]
    assert [preferred for preferred, _ in said[2:]] == ["tie", "neither", "tie"] and list(events["kind"][4:]) == ["undo", "preference"]


def test_blind(page, notebook):
    database = notebook('from pathloop.blind import BlindPanel, seal_reading\n'
                        'BlindPanel(seal_reading(store, "blind", cells, {"generator-7": others}, readers=1, repeats=0.1), both, "Ana")')
    image_ready(page)
    focus(page)
    for rating in "16342":
        press(page, rating)
    saved(page, 5)
    text = page.locator(".pathloop-panel").inner_text()
    assert not [word for word in ("generator", "neutrophil", "lymphocyte", "basophil") if word in text]
    events = FeedbackStore(database).events()
    assert [answers["rating"] for answers in events["answers"]] == [1, 6, 3, 4, 2] and set(events["generator"]) == {"sealed"}


EXPLAINED = """
import pandas as pd
from pathloop.explain import RewardExplainer
from pathloop.reward import fit_reward
answers = ["yes", "no"] * (len(cells) // 2)
said = pd.DataFrame({"chromatin": answers, "verdict": ["plausible" if answer == "yes" else "implausible" for answer in answers]})
few = cells.subset(range(len(said)))
model = fit_reward(few.images, few.labels, said, cells, members=1, steps=5, min_per_verdict=2, pool_classes=True)
AdjudicatePanel(cells.images, checklist, store, "Ana", explain=RewardExplainer(model, few.images, few.labels, said["verdict"]))
"""


def test_adjudicate(page, notebook):
    database = notebook('from pathloop.adjudicate import AdjudicatePanel\nfor rater in ("Xaver", "Yvonne"):\n    queue = LabelQueue(*given, rater, "smear")\n'
                        '    for _ in range(3):\n        queue.judge("plausible" if rater == "Xaver" else "implausible", comment="said by " + rater[0])',
                        EXPLAINED)
    image_ready(page)
    focus(page)
    assert page.locator('[data-part="votes"]').is_hidden()
    press(page, "a")
    page.wait_for_selector('[data-part="votes"]:visible')
    assert "Xaver" not in page.locator(".pathloop-panel").inner_text()
    maps = page.locator(".pathloop-explain img")
    assert maps.count() == 2 + 1 and all(maps.nth(i).evaluate("image => image.naturalWidth") == 96 for i in range(3)) # Maps, and the other judged image of its type
    assert "It was fitted on this image" in page.locator(".pathloop-explain").inner_text()
    picture(page, "explained")
    page.wait_for_timeout(300)
    page.keyboard.press("4")
    page.keyboard.press("x")  # convinced
    saved(page, 1)
    press(page, "x")
    page.wait_for_timeout(300)
    page.keyboard.press("Enter")  # stays
    saved(page, 2)
    press(page, "Backspace")  # both stages
    saved(page, 1)
    verdicts = FeedbackStore(database).verdicts()
    assert verdicts.loc[verdicts["rater"] == "Ana", "verdict"].tolist() == ["implausible"]
    events = FeedbackStore(database).events("Ana")
    assert events["verdict"].fillna("").tolist() == ["plausible", "implausible", "implausible", "implausible", "", ""]


def test_notebook_7(browser, tmp_path):
    "The same panel in the classic interface: keys are the panel's, not the notebook's."
    pytest.importorskip("notebook")
    with running_lab(tmp_path, application="notebook") as lab:
        write_notebook(lab.root / "label.ipynb", START.replace("DATABASE", "label.db"), LABEL)
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.goto(f"http://127.0.0.1:{lab.port}/notebooks/label.ipynb?token={lab.token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell .cm-content")
        page.wait_for_function("() => document.querySelector('.jp-NotebookKernelStatus, .jp-Notebook-ExecutionIndicator')")
        page.wait_for_timeout(5000)
        page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
        for _ in range(2):
            page.keyboard.press("Shift+Enter")
            page.wait_for_timeout(500)
        image_ready(page)
        focus(page)
        cells = cell_count(page)
        press(page, "a")
        press(page, "x")
        press(page, "b", "u")
        saved(page, 3)
        assert cell_count(page) == cells
        assert list(FeedbackStore(lab.root / "label.db").events()["verdict"]) == ["plausible", "implausible", "unsure"]
        page.close()
