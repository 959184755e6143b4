"""The panel without a browser: what its message handler does, from several threads, with bad input and failing disks."""

import re
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest

import pathloop
from pathloop.adjudicate import AdjudicatePanel, AdjudicateQueue
from pathloop.assignments import Design, make_pairs, make_worklist
from pathloop.blind import BlindPanel, BlindQueue, seal_reading
from pathloop.checklist import load_checklist
from pathloop.compare import ComparePanel, CompareQueue, preference_pairs
from pathloop.data import CellImages, to_uint8
from pathloop.feedback import FeedbackStore
from pathloop.grid import GridPanel, GridQueue
from pathloop.panel import LABEL_KEYS, LabelPanel, LabelQueue, answer_message, answers_from_marks, change_keys

CHECKLIST = load_checklist("peripheral-blood")
CRITERIA = [criterion.name for criterion in CHECKLIST.criteria]
CLASSES = ["lymphocyte", "monocyte"]
IMAGES = np.random.default_rng(0).uniform(-1, 1, (10, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(10) % 2


@pytest.fixture
def store(tmp_path):
    return FeedbackStore(tmp_path / "feedback.db")


def make_queue(store, rater="Ana", n=10, generator="generator-0", **more):
    return LabelQueue(IMAGES[:n], LABELS[:n], CLASSES, CHECKLIST, store, rater, generator, **more)


_numbers = count()


def event(item, verdict="plausible", **more):
    about = {"uuid": str(uuid4()), "kind": "review", "session": "browser", "client_seq": next(_numbers)}
    return about | {"key": item.key, "verdict": verdict, "failed": [], "unsure": []} | more


def send(queue, *events):
    return answer_message(queue, {"kind": "events", "events": list(events)})[0]


@pytest.mark.parametrize(
    ("verdict", "failed", "unsure", "answers"),
    [
        ("plausible", [], [], "yyyyyyy"),
        ("implausible", [3], [], "yyynyyy"),
        ("implausible", [0, 6], [2], "nyuyyyn"),
        ("implausible", [], [], "uuuuuuu"),
        ("implausible", [], [1], "uuuuuuu"),
        ("unsure", [], [], "uuuuuuu"),
        ("unsure", [], [5], "yyyyyuy"),
        ("plausible", [1], [], None),
        ("plausible", [], [1], None),
        ("unsure", [1], [], None),
        ("implausible", [1], [1], None),
        ("maybe", [], [], None),
    ],
)
def test_answers_from_marks(verdict, failed, unsure, answers):
    marks = {"failed": [CRITERIA[i] for i in failed], "unsure": [CRITERIA[i] for i in unsure]}
    if answers is None:
        with pytest.raises(ValueError, match="must"):
            answers_from_marks(CRITERIA, verdict, **marks)
    else:
        assert "".join(answer[0] for answer in answers_from_marks(CRITERIA, verdict, **marks).values()) == answers


def test_undo_any_number_of_steps_and_resume(store):
    queue = make_queue(store)
    order = [queue.items[place] for place in queue.remaining()]
    for _ in range(5):
        queue.judge("plausible")
    for _ in range(4):
        queue.undo()
    assert queue.current == order[1]
    queue.skip("blurred")
    assert queue.current == order[2]
    queue.undo()
    assert queue.current == order[1]
    queue.judge("implausible", failed=["chromatin"], comment="smudged")
    resumed = make_queue(store)
    assert [resumed.items[place] for place in resumed.remaining()] == order[2:]
    resumed.undo()
    assert resumed.current == order[1]
    assert len(store.verdicts()) == 1 and len(store.events()) == 13


def test_skipped_come_last_and_then_in_the_order_of_skipping(store):
    queue = make_queue(store, n=4, seed=None)
    queue.skip()
    queue.skip()
    assert queue.remaining() == [2, 3, 0, 1]
    queue.skip()
    queue.judge("plausible")
    assert queue.remaining() == [0, 1, 2]
    assert queue.progress() == {"total": 4, "judged": 1, "left": 3, "skipped": 3, "per_minute": None}


def test_all_judged(store):
    queue = make_queue(store, n=1)
    queue.judge("unsure", seconds=3.0)
    assert queue.current is None and queue.progress()["per_minute"] == 20
    for action in (lambda: queue.judge("plausible"), queue.skip):
        with pytest.raises(ValueError, match="all 1 are judged"):
            action()
    queue.undo()
    with pytest.raises(ValueError, match="has done nothing"):
        queue.undo()
    assert "All" not in LabelPanel(IMAGES[:0], LABELS[:0], CLASSES, CHECKLIST, store, "Ana", "generator-0").snapshot()._repr_html_()


def test_only_the_same_rater_generator_and_type_count_as_judged(store):
    make_queue(store).judge("plausible")
    assert len(make_queue(store).remaining()) == 9
    assert len(make_queue(store, rater="Ben").remaining()) == 10
    assert len(make_queue(store, generator="generator-1").remaining()) == 10
    swapped = LabelQueue(IMAGES, 1 - LABELS, CLASSES, CHECKLIST, store, "Ana", "generator-0")
    assert len(swapped.remaining()) == 10


def test_simulated_reviews_of_the_same_name_are_not_mine(store):
    reviews = pd.DataFrame([dict.fromkeys(CRITERIA, "yes")] * 10)
    store.record_reviews(IMAGES, LABELS, CLASSES, reviews, "Ana", "simulated", "generator-0", CHECKLIST)
    assert len(make_queue(store).remaining()) == 10


def test_identical_images_are_asked_once_and_generators_may_differ(store):
    images = np.concatenate([IMAGES[:2], IMAGES[:1]])
    queue = LabelQueue(images, np.zeros(3, int), CLASSES, CHECKLIST, store, "Ana", ["real", "generator-0", "real"], seed=None)
    assert [item.generator for item in queue.items] == ["real", "generator-0"]
    queue.judge("plausible")
    assert store.events()["generator"].tolist() == ["real"]


def test_the_order_is_shuffled_the_same_way_each_time(store):
    orders = [[item.image for item in make_queue(store, seed=seed).items] for seed in (0, 0, 1, None)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rater": " "}, "rater must be a name"),
        ({"classes": ["lymphocyte", "hepatocyte"]}, r"lacks \['hepatocyte'\]"),
        ({"labels": LABELS + 1}, "labels must lie"),
        ({"labels": LABELS[:3]}, "labels must have shape"),
        ({"images": IMAGES[0]}, "images must have shape"),
        ({"generator": ["real"]}, "generator must be one id or one per image"),
        ({"micrometres_per_pixel": 0}, "micrometres_per_pixel must be positive"),
    ],
)
def test_bad_arguments(store, change, message):
    given = {"images": IMAGES, "labels": LABELS, "classes": CLASSES, "checklist": CHECKLIST, "store": store, "rater": "Ana", "generator": "real"}
    with pytest.raises(ValueError, match=message):
        LabelPanel(**(given | change))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"failed": ["chromatine"]}, "different ones of"),
        ({"verdict": "good"}, "verdict must be one of"),
        ({"verdict": None}, "verdict must be one of"),
        ({"failed": ["chromatin"]}, "must not come with"),
        ({"key": "0" * 32}, "key must be that of an image of this queue"),
        ({"key": None}, "key must be that of an image of this queue"),
        ({"kind": "reading"}, "kind must be one of"),
        ({"kind": "erase"}, "kind must be one of"),
        ({"kind": "undo", "supersedes": str(uuid4())}, "there is none"),
        ({"seconds": -3}, "seconds must be"),
    ],
)
def test_bad_events_are_refused_with_a_reason_and_the_good_ones_kept(store, change, why):
    queue = make_queue(store)
    bad, good = event(queue.items[0], **change), event(queue.items[1])
    reply = send(queue, bad, good)
    assert [entry["uuid"] for entry in reply["refused"]] == [bad["uuid"]] and why in reply["refused"][0]["why"]
    assert reply["saved_ids"] == [good["uuid"]] and reply["saved"] == 1 and reply["trouble"] == ""
    assert store.events()["uuid"].tolist() == [good["uuid"]]


def test_resending_is_harmless_even_after_an_undo(store):
    queue = make_queue(store)
    first = event(queue.items[0])
    undo = event(queue.items[0], kind="undo", supersedes=first["uuid"])
    for batch in ([first], [first], [first, undo], [first], [first, undo]):
        assert send(queue, *batch)["saved_ids"] == [entry["uuid"] for entry in batch]
    assert len(store.events()) == 2 and len(store.verdicts()) == 0 and len(queue.remaining()) == 10
    again = make_queue(store)
    assert send(again, first, undo)["saved"] == 0 and len(store.events()) == 2


def test_two_threads_and_a_reload_between(store):
    queue = make_queue(store)
    events = [event(item, "implausible", failed=[CRITERIA[i % 7]]) for i, item in enumerate(queue.items)]
    replies = []
    batches = [[events[i] for i in range(10)], [events[i] for i in reversed(range(10))], events[::2], events[1::2]]
    threads = [threading.Thread(target=lambda batch=batch: replies.append(send(queue, *batch))) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(not reply["trouble"] and not reply["refused"] for reply in replies)
    stored = store.events()
    assert len(stored) == 10 and set(stored["uuid"]) == {entry["uuid"] for entry in events}
    by_image = dict(zip(stored["image"], stored["answers"], strict=True))
    image_of = {item.key: item.image for item in queue.items}
    assert all(by_image[image_of[entry["key"]]][entry["failed"][0]] == "no" for entry in events)
    hello = answer_message(queue, {"kind": "hello", "events": []})[0]
    assert hello["queue"] == [] and len(hello["history"]) == 10


def test_a_failing_disk_is_told_and_nothing_is_lost(store):
    queue = make_queue(store)
    events = [event(queue.items[i]) for i in range(3)]
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    reply = send(queue, *events)
    assert reply["saved_ids"] == [] and reply["refused"] == [] and "readonly" in reply["trouble"]
    assert len(queue.remaining()) == 10
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=OFF")
    reply = send(queue, *events)
    assert reply["saved"] == 3 and reply["trouble"] == "" and len(store.events()) == 3


def test_hello_gives_what_undo_needs(store):
    queue = make_queue(store)
    queue.judge("implausible", failed=["granules"], unsure=["chromatin"], comment="pale")
    queue.judge("implausible")
    queue.skip()
    reply, files = answer_message(make_queue(store), {"kind": "hello", "events": []})
    assert reply["kind"] == "state" and files == [] and len(reply["queue"]) == 8
    first, second = reply["history"]
    assert (first["failed"], first["unsure"], first["comment"]) == (["granules"], ["chromatin"], "pale")
    assert (second["failed"], second["unsure"]) == ([], [])


def test_the_browser_gets_png_files_and_never_the_origin(store):
    sent = []
    real = CellImages(IMAGES, LABELS, CLASSES)
    panel = LabelPanel(IMAGES, LABELS, CLASSES, CHECKLIST, store, "Ana", "secret-generator", references=real)
    panel.send = lambda content, buffers=None: sent.append((content, buffers))
    for message in [{"kind": "hello"}, {"kind": "images", "items": [0, 3, 99]}, {"kind": "references", "cell_type": "monocyte"}, {"kind": "references", "cell_type": "x"}]:
        panel._handle_custom_msg(message, [])
    assert [len(files or []) for _, files in sent] == [0, 2, 5, 0]
    assert all(png.startswith(b"\x89PNG") for _, files in sent for png in files or [])
    assert "secret-generator" not in str([content for content, _ in sent]) + str(panel.get_state())
    panel.close()


def test_an_unforeseen_error_is_told(store):
    sent = []
    panel = LabelPanel(IMAGES, LABELS, CLASSES, CHECKLIST, store, "Ana", "generator-0")
    panel.send = lambda content, buffers=None: sent.append(content)
    panel._handle_custom_msg({"kind": "images"}, [])
    assert sent[0]["kind"] == "trouble" and "KeyError" in sent[0]["text"]
    panel.close()


def test_snapshot_is_whole_and_escaped(store):
    panel = LabelPanel(IMAGES, LABELS, CLASSES, CHECKLIST, store, "<b>Ana</b>", "generator-0", micrometres_per_pixel=0.4)
    text = panel.snapshot(failed=["chromatin"])._repr_html_()
    assert "<b>Ana</b>" not in text and "$" not in text and "<script" not in text
    assert text.count("<li ") == 7 and "5 µm" in text and "data:image/png" in text
    with pytest.raises(ValueError, match="different ones of"):
        panel.snapshot(failed=["chromatine"])
    panel.close()


def test_torch_is_never_imported():
    code = "import sys, pathloop.panel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SCRIPTS = {"label": "", "grid": "", "compare": "", "blind": "", "adjudicate": "label"}


def panels(store):
    "One of each kind of panel, on small images."
    pairs = make_pairs(store, "pairs", IMAGES[:5], IMAGES[5:], LABELS[:5], CLASSES, ("secret-0", "secret-1"), Design(raters=2, overlap_raters=2))
    real, fake = (CellImages(IMAGES[rows], LABELS[rows], CLASSES) for rows in (slice(0, 5), slice(5, 10)))
    blind = seal_reading(store, "blind", real, {"secret-0": fake}, readers=2)
    for rater, verdict in (("Xaver", "plausible"), ("Yvonne", "implausible")):
        LabelQueue(IMAGES, LABELS, CLASSES, CHECKLIST, store, rater, "secret-0").judge(verdict)
    given = (IMAGES, LABELS, CLASSES, CHECKLIST, store, "Ana", "secret-0")
    return {
        "label": LabelPanel(*given, references=real), "grid": GridPanel(*given, references=real, per_page=12),
        "compare": ComparePanel(pairs, IMAGES, "Ana", references=real), "blind": BlindPanel(blind, IMAGES, "Ana"),
        "adjudicate": AdjudicatePanel(IMAGES, CHECKLIST, store, "Ana", references=real),
    }


def test_the_page_and_the_script_name_the_same_parts(store):
    folder = Path(pathloop.__file__).parent
    common = folder / "panel.js"
    for name, panel in panels(store).items():
        text = "".join((folder / f"panel_{part}.js").read_text() for part in (name, SCRIPTS[name]) if part)
        used = set(re.findall(r'(?:parts\.|write\(")(\w+)', text + common.read_text()))
        optional = set(re.findall(r'parts\.(\w+)(?=\?\.| &&|\) )', common.read_text()))
        drawn = set(re.findall(r'data-part="(\w+)"', panel.skeleton))
        known = set(re.findall(r'data-part="(\w+)"', "".join(other.skeleton for other in panels(store).values())))
        assert used <= known, f"{name}: {used - known} exists nowhere"
        own = set(re.findall(r'(?:parts\.|write\(")(\w+)', text))
        assert own - {"marked", "live"} <= drawn | optional, f"{name}: {own - drawn} is not drawn"
        assert set(re.findall(r'data-do="(\w+)"', panel.skeleton)) <= set(panel.key_table) | {"dismiss", "reason", "rate"}, name


def test_no_panel_tells_the_browser_where_images_come_from(store):
    hidden = ["secret", "real\"", "control", "repeat", "assignment", *[item.image for item in LabelQueue(IMAGES, LABELS, CLASSES, CHECKLIST, store, "x", "y").items]]
    for name, panel in panels(store).items():
        sent = []
        panel.send = lambda content, buffers=None, sent=sent: sent.append(content)
        for message in ({"kind": "hello"}, {"kind": "images", "items": list(range(len(panel.queue.items)))}, {"kind": "warm"}, {"kind": "beat"}):
            panel._handle_custom_msg(message, [])
        assert [content["kind"] for content in sent] == ["state", "images", "saved", "saved"]
        told = str(sent) + str({key: value for key, value in panel.get_state().items() if key not in ("_esm", "_css", "skeleton", "rows")})
        assert not [word for word in hidden if word in told], name
        if name == "blind":
            assert not [kind for kind in CLASSES if kind in told + panel.skeleton]
        if name == "adjudicate":
            assert "Xaver" not in told and "Yvonne" not in told
        panel.close()


def test_snapshots_of_all_panels_are_whole(store):
    for name, panel in panels(store).items():
        text = panel.snapshot().text
        assert "data:image/png" in text and "<canvas" not in text and "<script" not in text, name
        panel.close()


def test_only_answers_of_its_own_kind(store):
    for name, panel in panels(store).items():
        item = panel.queue.current
        bad = {"uuid": str(uuid4()), "kind": panel.queue.kind, "key": item.key, "session": "browser", "client_seq": 0}
        reply = send(panel.queue, bad)
        assert reply["refused"] and "must be" in reply["refused"][0]["why"], name
        panel.close()


# ---- worklists ----


def shared_work(store, **design):
    real = np.random.default_rng(1).uniform(-1, 1, (6, 3, 8, 8)).astype(np.float32)
    work = make_worklist(store, "round", IMAGES, LABELS, CLASSES, "generator-0", Design(**design), controls=(real, np.zeros(6, int), CLASSES))
    return work, np.concatenate([IMAGES, real])


def test_a_worklist_is_worked_off_with_checks_and_repeats_in_it(store):
    work, images = shared_work(store, controls=0.2, repeats=0.1, repeat_gap=3, seed=3)
    queue = LabelQueue.from_worklist(work, images, CHECKLIST, "Ana", sitting=4)
    assert len(queue.items) == 4 and 10 <= queue.progress()["total"] <= 14
    judged = 0
    while queue.current:
        queue.judge("plausible", seconds=2.0)
        judged += 1
    done = work.progress().loc["Ana"]
    assert done["label done"] == 10 and done["control done"] >= 2 and judged == done["done"] == queue.progress()["judged"]
    assert len(store.verdicts()) == 10 and queue.progress()["left"] == 0
    purposes = store.events()["purpose"].value_counts()
    assert purposes["control"] == done["control done"]
    again = LabelQueue.from_worklist(work, images, CHECKLIST, "Ana", sitting=4)
    assert again.current is None and len(again.history) == judged
    again.undo()
    assert again.current is not None and len(LabelQueue.from_worklist(work, images, CHECKLIST, "Ana").remaining()) == 1


def test_the_browser_hears_of_more_work_in_time(store):
    work, images = shared_work(store)
    queue = LabelQueue.from_worklist(work, images, CHECKLIST, "Ana", sitting=4)
    queued = answer_message(queue, {"kind": "hello", "events": []})[0]["queue"]
    for _ in range(20):
        if not queued:
            break
        reply = send(queue, event(queue.items[queued.pop(0)]))
        assert not reply["refused"] and reply["total"] == 10
        queued += reply["more"]
    assert work.progress().loc["Ana", "done"] == 10


def test_two_raters_never_get_the_same_piece_unless_asked(store):
    work, images = shared_work(store)
    queues = [LabelQueue.from_worklist(work, images, CHECKLIST, rater, sitting=2) for rater in ("Ana", "Ben")]
    threads = [threading.Thread(target=lambda queue=queue: [queue.judge("plausible") for _ in range(99) if queue.current]) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.events()) == 10 and store.events()["image"].is_unique


def test_a_changed_or_missing_image_is_told(store):
    work, images = shared_work(store)
    changed = images.copy()
    changed[3] *= 0.5
    with pytest.raises(ValueError, match="images must hold every image of worklist 'round', unchanged; 1 are missing"):
        LabelQueue.from_worklist(work, changed, CHECKLIST, "Ana")


def test_a_second_answer_to_a_finished_assignment_is_refused(store):
    work, images = shared_work(store)
    queue = LabelQueue.from_worklist(work, images, CHECKLIST, "Ana")
    first = event(queue.items[0])
    assert send(queue, first)["saved_ids"] == [first["uuid"]]
    second = send(queue, event(queue.items[0], "implausible"))
    assert "assignment must be open" in second["refused"][0]["why"] and len(store.events()) == 1


def test_work_that_is_closed_meanwhile_keeps_what_was_said(store):
    work, images = shared_work(store)
    queue = LabelQueue.from_worklist(work, images, CHECKLIST, "Ana", sitting=4)
    queue.judge("plausible")
    work.close()
    for _ in range(3):
        queue.judge("plausible")
    assert queue.current is None and len(store.events()) == 4
    with pytest.raises(ValueError, match="must be open to take work"):
        LabelQueue.from_worklist(work, images, CHECKLIST, "Ben")


# ---- grid, pairs, blind reading, adjudication ----


def test_a_page_is_one_message_and_is_undone_image_by_image(store):
    queue = GridQueue(IMAGES, LABELS, CLASSES, CHECKLIST, store, "Ana", "generator-0")
    state = answer_message(queue, {"kind": "hello", "events": []})[0]
    groups = dict(state["groups"])
    assert all(CHECKLIST.classes[groups[place]] == queue.items[place].cell_type for place in state["queue"])
    page = [place for place in state["queue"] if groups[place] == groups[state["queue"][0]]]
    events = [event(queue.items[place], "implausible" if i == 1 else "plausible") for i, place in enumerate(page)]
    assert send(queue, *events)["saved"] == 5
    verdicts = store.verdicts()
    assert set(verdicts["view"]) == {"grid"} and verdicts.loc[queue.items[page[1]].image, "verdict"] == "implausible"
    undo = [event(queue.items[place], kind="undo", supersedes=entry["uuid"]) for place, entry in zip(page, events, strict=True)]
    assert send(queue, *undo)["saved"] == 0 and len(store.verdicts()) == 0


@pytest.mark.parametrize(("change", "message"), [({"per_page": 11}, "per_page must be 12 to 48"), ({"dwell": -1}, "dwell must be a time")])
def test_grid_arguments(store, change, message):
    with pytest.raises(ValueError, match=message):
        GridPanel(IMAGES, LABELS, CLASSES, CHECKLIST, store, "Ana", "generator-0", **change)


@pytest.mark.parametrize("said", ["left", "right", "tie", "neither"])
def test_a_preference_names_the_right_image_whatever_its_side(store, said):
    first, second = IMAGES[:5], IMAGES[5:]
    pairs = make_pairs(store, "pairs", first, second, LABELS[:5], CLASSES, ("old", "new"))
    queue = CompareQueue(pairs, IMAGES, "Ana")
    shown = []
    while queue.current:
        place = queue.remaining()[0]
        shown.append((queue.items[place], queue.describe(place)[1]))
        queue.answer(preferred=said)
    for (item, images), answers in zip(shown, store.events()["answers"], strict=True):
        on_side = {"left": images[0], "right": images[1]}
        assert (on_side[answers["side"]] == item.pixels).all() and answers["other"] == item.other and answers["other_generator"] == "new"
        expected = said if said in ("tie", "neither") else "this" if (on_side[said] == item.pixels).all() else "other"
        assert answers["preferred"] == expected
    again = CompareQueue(pairs, IMAGES, "Ana")
    again.undo()
    assert again.current == shown[-1][0]


def test_pairs_to_learn_from_are_the_last_word_of_each_rater(store):
    pairs = make_pairs(store, "pairs", IMAGES[:5], IMAGES[5:], LABELS[:5], CLASSES, ("old", "new"), Design(raters=2, overlap_raters=2))
    row = {pixels.tobytes(): i for i, pixels in enumerate(to_uint8(IMAGES))}
    expected = []
    for rater in ("Ana", "Ben"):
        queue = CompareQueue(pairs, IMAGES, rater)
        for said in ("left", "right", "tie", "neither"):
            left, right = (row[image.tobytes()] for image in queue.describe(queue.remaining()[0])[1])
            queue.answer(preferred=said)
            expected += {"left": [[left, right]], "right": [[right, left]]}.get(said, [])
    found = preference_pairs(store.events(), IMAGES)
    assert sorted(found.tolist()) == sorted(expected) and len(found) == 4
    for _ in range(3):
        queue.undo()
    assert sorted(preference_pairs(store.events(), IMAGES).tolist()) == sorted(expected[:3])
    queue.answer(preferred="tie") # Of the pair whose "right" was undone
    assert len(preference_pairs(store.events(), IMAGES)) == 3
    assert preference_pairs(store.events(), IMAGES[:5]).shape == (0, 2)


def test_the_side_of_a_pair_is_drawn(store):
    for i in range(6):  # 30 pairs: all on one side once in 500 million times
        queue = CompareQueue(make_pairs(store, f"pairs {i}", IMAGES[:5], IMAGES[5:], LABELS[:5], CLASSES, ("old", "new")), IMAGES, "Ana")
        while queue.current:
            queue.answer(preferred="tie")
    assert {answers["side"] for answers in store.events()["answers"]} == {"left", "right"}


def test_single_images_are_no_pairs(store):
    work, images = shared_work(store)
    panel = ComparePanel(work, images, "Ana")
    sent = []
    panel.send = lambda content, buffers=None: sent.append(content)
    panel._handle_custom_msg({"kind": "images", "items": [0]}, [])
    assert "worklist must be one of pairs" in sent[0]["text"]
    panel.close()


def test_blind_reading_is_sealed_until_closed(store):
    real, fake = CellImages(IMAGES[:5], LABELS[:5], CLASSES), CellImages(IMAGES[5:], LABELS[5:], CLASSES)
    work = seal_reading(store, "blind", real, {"generator-0": fake}, readers=2, repeats=0.2)
    for reader in ("Ana", "Ben"):
        queue = BlindQueue(work, IMAGES, reader)
        while queue.current:
            queue.answer(rating=6 if queue.current.image in real.hashes else 2)
        queue.undo()
        queue.answer(rating=6 if queue.current.image in real.hashes else 2)
    assert set(store.events()["generator"]) == {"sealed"}
    with pytest.raises(ValueError, match="must be closed"):
        work.readings()
    work.close()
    readings = work.readings()
    assert readings["correct"].all() and (readings["occurrence"] == 1).sum() == 20


@pytest.mark.parametrize(
    ("synthetic", "message"),
    [({}, "at least"), ({"real": CellImages(IMAGES[5:], LABELS[5:], CLASSES)}, "none named 'real'"),
     ({"g": CellImages(IMAGES[5:, :, :4], LABELS[5:], CLASSES)}, "of the same size"), ({"g": CellImages(IMAGES[4:], LABELS[4:], CLASSES)}, "1 of 11 are doubled")],
)
def test_sets_that_give_themselves_away(store, synthetic, message):
    with pytest.raises(ValueError, match=message):
        seal_reading(store, "blind", CellImages(IMAGES[:5], LABELS[:5], CLASSES), synthetic, readers=1)


def test_blind_reading_wants_a_sealed_worklist(store):
    work, images = shared_work(store)
    with pytest.raises(ValueError, match="must be sealed"):
        BlindPanel(work, images, "Ana")


def disagree(store, **verdicts):
    for rater, said in verdicts.items():
        queue = make_queue(store, rater, n=4, seed=None)
        for letter in said:
            queue.judge({"p": "plausible", "i": "implausible", "u": "unsure"}[letter], comment=f"{rater} says {letter}")


def test_adjudication_takes_what_differs_and_hides_who_said_it(store):
    disagree(store, Xaver="pppu", Yvonne="pipp")
    queue = AdjudicateQueue(IMAGES, CHECKLIST, store, "Ana")
    assert [item.image for item in queue.items] == [item.image for i, item in enumerate(make_queue(store, "new", n=4, seed=None).items) if i in (1, 3)]
    told = queue.describe(0)[0]["votes"]
    assert "plausible" in told and "implausible" in told and "Xaver" not in told.replace("Xaver says", "")
    seen = []
    explained = AdjudicateQueue(IMAGES, CHECKLIST, store, "Ana", explain=lambda pixels, cell_type: seen.append((pixels.shape, cell_type)) or "<p>model</p>")
    assert explained.describe(0)[0]["votes"] == told + "<p>model</p>" and seen == [(queue.items[0].pixels.shape, queue.items[0].cell_type)]
    assert len(AdjudicateQueue(IMAGES, CHECKLIST, store, "Xaver").items) == 0
    with pytest.raises(ValueError, match="images must hold every image that raters disagree on"):
        AdjudicateQueue(IMAGES[5:], CHECKLIST, store, "Ana")


def test_adjudication_has_two_stages_and_undoes_both(store):
    disagree(store, Xaver="pppp", Yvonne="pipi")
    queue = AdjudicateQueue(IMAGES, CHECKLIST, store, "Ana")
    item = queue.items[0]
    first = event(item, "plausible")
    reply = send(queue, first)
    assert reply["saved"] == 0 and queue.current == item
    second = event(item, "implausible", failed=[CRITERIA[3]], supersedes=first["uuid"])
    assert send(queue, second)["saved"] == 1 and queue.current == queue.items[1]
    verdicts = store.verdicts()
    mine = verdicts[verdicts["rater"] == "Ana"]
    assert mine["verdict"].tolist() == ["implausible"] and mine["view"].tolist() == ["adjudication"]
    history = answer_message(queue, {"kind": "hello", "events": []})[0]["history"]
    assert len({entry["group"] for entry in history}) == 1 and len(history) == 2
    undo = [event(item, kind="undo", supersedes=entry["uuid"]) for entry in (second, first)]
    assert send(queue, *undo)["saved"] == 0 and "Ana" not in set(store.verdicts()["rater"])
    queue.adjudicate("unsure", "plausible")
    queue.adjudicate("plausible", "plausible")
    assert queue.current is None and len(AdjudicateQueue(IMAGES, CHECKLIST, store, "Ben").items) == 0


# ---- keys ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"jump": "j"}, "keys must name actions"), ({"plausible": "x"}, "keys must be different"), ({"plausible": "3"}, "neither digits"), ({"plausible": ""}, "keys must be different"), ({"undo": "ArrowUp"}, "nor arrows")],
)
def test_bad_keys(changes, message):
    with pytest.raises(ValueError, match=message):
        change_keys(LABEL_KEYS, changes)


def test_keys_can_be_changed_and_are_shown(store):
    panel = LabelPanel(IMAGES, LABELS, CLASSES, CHECKLIST, store, "Ana", "generator-0", keys={"plausible": "g"})
    assert panel.options["keys"]["g"] == "plausible" and "a" not in panel.options["keys"] and "<kbd>g</kbd>" in panel.skeleton
    panel.close()
