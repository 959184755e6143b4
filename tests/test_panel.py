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
from pathloop.checklist import load_checklist
from pathloop.data import CellImages
from pathloop.feedback import FeedbackStore
from pathloop.panel import _SKELETON, LabelPanel, LabelQueue, answer_message, answers_from_marks

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
    return about | {"image": item.image, "shown_as": item.cell_type, "verdict": verdict, "failed": [], "unsure": []} | more


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
        ({"shown_as": "hepatocyte"}, "image must be one of this queue"),
        ({"image": "0" * 64}, "image must be one of this queue"),
        ({"image": None}, "image must be one of this queue"),
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
    assert all(by_image[entry["image"]][entry["failed"][0]] == "no" for entry in events)
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


def test_the_page_and_the_script_name_the_same_parts():
    folder = Path(pathloop.__file__).parent
    used = set(re.findall(r'part\("(\w+)"\)', (folder / "panel.js").read_text()))
    drawn = set(re.findall(r'data-part="(\w+)"', _SKELETON.template)) | {"scale"}
    assert used == drawn
