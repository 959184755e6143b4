"""Worklists: who gets what, how often, when work is passed on, and that eight raters at once are given nothing twice."""

import multiprocessing
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import text

from pathloop.assignments import Design, Worklist, make_pairs, make_worklist, work_purpose
from pathloop.checklist import load_checklist
from pathloop.core import image_hash
from pathloop.feedback import FeedbackStore

CHECKLIST = load_checklist()
CLASSES = ["lymphocyte", "monocyte"]


def images(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3, 4, 4)).astype(np.float32)


def worklist(store, n=40, name="list", checks=0, traps=None, **design):
    real = (images(checks, 9), np.arange(checks) % 2, CLASSES) if checks else None
    return make_worklist(store, name, images(n), np.arange(n) % 2, CLASSES, "generator-0", Design(**design), controls=real, traps=traps)


def event(piece, rater, **more):
    about = {"image": piece.image, "shown_as": piece.cell_type, "generator": piece.generator, "assignment": piece.id}
    return {"rater": rater, "source": "human", "answers": dict.fromkeys(CHECKLIST.criteria_names, "yes")} | about | more


@pytest.fixture
def store(store_url):
    with closing(FeedbackStore(store_url)) as store:
        yield store


def lapse(store):
    "Let every lease run out."
    with store.writing() as connection:
        connection.execute(text("UPDATE assignment SET lease_until = 0 WHERE state = 'taken'"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"raters": 0}, "raters must be at least 1"),
        ({"raters": 3, "overlap_raters": 2}, "overlap_raters no fewer"),
        ({"overlap": 1.5}, "overlap must be a share"),
        ({"controls": 0.4, "repeats": 0.2}, "at least half of the work"),
        ({"repeat_gap": 0}, "repeat_gap must be at least 1"),
        ({"lease_minutes": 0}, "lease_minutes positive"),
    ],
)
def test_designs_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        Design(**settings)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.15, 0.125])
def test_rates_are_exact_over_every_twenty(rate):
    design = Design(controls=rate, repeats=0.05)
    purposes = [work_purpose(design, "Ana", place) for place in range(800)]
    assert purposes.count("control") == round(800 * rate) and purposes.count("repeat") == 40
    assert all(abs(purposes[i : i + 20].count("control") - 20 * rate) < 1 for i in range(0, 800, 20))
    assert purposes != [work_purpose(design, "Ben", place) for place in range(800)] or rate == 0


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 1.0])
def test_overlap_is_by_design_and_even_over_types(store, overlap):
    made = worklist(store, 40, overlap=overlap, overlap_raters=3)
    seen = {}
    for rater in ("Ana", "Ben", "Cleo"):
        for piece in made.take(rater, 100):
            seen.setdefault((piece.image, piece.cell_type), set()).add(rater)
    assert len(seen) == 40
    shared = [key for key, raters in seen.items() if len(raters) == 3]
    assert len(shared) == 40 * overlap and all(len(raters) in (1, 3) for raters in seen.values())
    assert sum(kind == "lymphocyte" for _, kind in shared) == 20 * overlap


def test_nobody_gets_the_same_twice_and_a_reload_gets_the_same(store):
    made = worklist(store, 60)
    ana, ben = made.take("Ana", 25), made.take("Ben", 25)
    assert not {piece.image for piece in ana} & {piece.image for piece in ben}
    assert made.take("Ana", 25) == ana and Worklist(store, "list").take("Ana", 5) == ana[:5]
    assert len(made.take("Cleo", 25)) == 10 and made.take("Dan") == []


def test_controls_and_repeats_come_at_their_rates(store):
    traps = (images(5, 8), np.zeros(5, int), CLASSES)
    made = worklist(store, 100, checks=30, traps=traps, controls=0.1, repeats=0.05, repeat_gap=10)
    given = []
    for _ in range(5):
        for piece in made.take("Ana", 20):
            given.append(piece)
            store.record(event(piece, "Ana"), CHECKLIST)
    purposes = [piece.purpose for piece in given]
    assert len(given) == 100 and purposes.count("control") == 10 and purposes.count("repeat") in (4, 5)
    assert [piece.place for piece in given] == list(range(100))
    for piece in given:
        if piece.purpose == "repeat":
            first = next(p for p in given if p.item == piece.item)
            assert first.purpose == "label" and piece.place - first.place > 10
    assert set(store.events()["purpose"]) == {"label", "control", "repeat"}
    assert len(store.verdicts()) == purposes.count("label") and len(store.verdicts(controls=True)) == 100 - purposes.count("repeat")
    assert set(made.controls()["expected"]) == {"plausible", "implausible"} and len(made.controls()) == 35


def test_a_second_event_for_a_finished_assignment_is_refused(store):
    piece = worklist(store).take("Ana", 1)[0]
    first = store.record(event(piece, "Ana"), CHECKLIST)
    with pytest.raises(ValueError, match=f"was finished by event {first}. Undo that one first"):
        store.record(event(piece, "Ana"), CHECKLIST)
    second = store.record(event(piece, "Ana", supersedes=first), CHECKLIST)
    store.undo(second, "Ana")
    assert store.verdicts()["verdict"].tolist() == ["plausible"]
    store.record(event(piece, "Ana"), CHECKLIST)
    assert len(store.verdicts()) == 1 and len(store.events()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rater": "Ben"}, "it is 'Ana''s"),
        ({"assignment": "no such"}, "there is none"),
        ({"image": image_hash(images(1, 77)[0])}, "image must be the one assigned.*Was the image changed"),
        ({"shown_as": "basophil"}, "image must be the one assigned"),
    ],
)
def test_work_that_is_not_what_was_assigned(store, change, message):
    piece = worklist(store).take("Ana", 1)[0]
    with pytest.raises(ValueError, match=message):
        store.record(event(piece, "Ana") | change, CHECKLIST)
    assert len(store.events()) == 0
    store.record(event(piece, "Ana"), CHECKLIST)


def test_a_skip_leaves_the_work_open(store):
    made = worklist(store)
    piece = made.take("Ana", 1)[0]
    store.record(event(piece, "Ana", kind="skip", answers=None))
    assert made.take("Ana", 1) == [piece] and made.progress().loc["Ana", ["taken", "done"]].tolist() == [1, 0]


def test_work_left_lying_passes_on_and_a_late_answer_counts(store):
    made = worklist(store, 4)
    ana = made.take("Ana", 4)
    store.record(event(ana[0], "Ana"), CHECKLIST)
    assert made.take("Ben") == []
    lapse(store)
    ben = made.take("Ben")
    assert {piece.image for piece in ben} == {piece.image for piece in ana[1:]}
    store.record(event(ana[1], "Ana"), CHECKLIST)
    assert made.progress().loc["Ana", ["done", "passed on", "late"]].tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="was finished"):
        store.record(event(ana[1], "Ana"), CHECKLIST)
    late = store.events()["uuid"].iloc[-1]
    store.undo(late, "Ana")
    assert made.progress().loc["Ana", "passed on"] == 3


def test_work_comes_back_to_whom_it_was_taken_from(store):
    made = worklist(store, 4)
    ana = made.take("Ana")
    lapse(store)
    ben = made.take("Ben")
    store.record(event(ben[0], "Ben"), CHECKLIST)
    assert made.take("Ana") == []
    lapse(store)
    again = made.take("Ana")
    assert {piece.id for piece in again} < {piece.id for piece in ana} and len(again) == 3
    for piece in again:
        store.record(event(piece, "Ana"), CHECKLIST)
    assert made.take("Ben") == [] and store.events()["image"].is_unique


def test_what_is_given_back_is_free_at_once(store):
    made = worklist(store, 40, checks=10, controls=0.2)
    ana = made.take("Ana", 30)
    labels = [piece for piece in ana if piece.purpose == "label"]
    store.record(event(labels[0], "Ana"), CHECKLIST)
    assert made.give_back("Ana") == len(labels) - 1
    assert made.progress().loc["Ana", "taken"] == 0
    everything = made.take("Ben", 200)
    assert {piece.image for piece in labels[1:]} <= {piece.image for piece in everything}
    assert made.give_back("Ben") == 39
    assert {piece.image for piece in made.take("Ana", 200) if piece.purpose == "label"} | {labels[0].image} == {image_hash(i) for i in images(40)}


def test_making_a_worklist_again(store):
    made = worklist(store, raters=2)
    assert worklist(store, raters=2).take("Ana", 1) == made.take("Ana", 1)
    with pytest.raises(ValueError, match="Choose another name"):
        worklist(store, raters=1)
    with pytest.raises(ValueError, match="name must be a worklist of"):
        Worklist(store, "other")
    with pytest.raises(ValueError, match="are the same"):
        make_worklist(store, "x", images(3), np.zeros(3, int), CLASSES, "g", Design(), controls=(images(3), np.zeros(3, int), CLASSES))
    with pytest.raises(ValueError, match="controls must be given"):
        worklist(store, name="y", controls=0.1)


def test_a_sealed_list_tells_nothing_until_it_is_closed(store):
    made = make_worklist(store, "blind", images(6), np.zeros(6, int), CLASSES, ["real"] * 3 + ["g"] * 3, Design(sealed=True))
    pieces = made.take("Ana")
    assert {piece.generator for piece in pieces} == {"sealed"}
    for rating, piece in enumerate(pieces, start=1):
        store.record(event(piece, "Ana", kind="reading", answers={"rating": rating}))
    for read in (made.items, made.controls, made.readings):
        with pytest.raises(ValueError, match="must be closed"):
            read()
    made.close()
    made.close()
    with pytest.raises(ValueError, match="it is closed"):
        made.take("Ana")
    readings = made.readings()
    assert readings["rating"].tolist() == [1, 2, 3, 4, 5, 6] and readings["real"].sum() == 3
    assert (readings["correct"] == (readings["real"] == (readings["rating"] >= 4))).all()


def test_pairs(store):
    made = make_pairs(store, "pairs", images(5), images(5, 1), np.zeros(5, int), CLASSES, ("old", "new"))
    pieces = made.take("Ana")
    assert {(piece.generator, piece.other_generator) for piece in pieces} == {("old", "new")}
    answer = {"other": pieces[0].other, "other_generator": "new", "preferred": "other", "side": "left"}
    store.record(event(pieces[0], "Ana", kind="preference", answers=answer))
    assert made.progress().loc["Ana", "done"] == 1
    with pytest.raises(ValueError, match="compared with itself"):
        make_pairs(store, "same", images(5), images(5), np.zeros(5, int), CLASSES, ("old", "new"))


def test_events_of_one_list_only(store):
    first, second = worklist(store, 3, "first"), worklist(store, 3, "second", seed=1)
    for made in (first, second, second):
        store.record(event(made.take("Ana", 1)[0], "Ana"), CHECKLIST)
    assert (len(first.events()), len(second.events()), len(store.events())) == (1, 2, 3)


def _work(url, rater, said):
    with closing(FeedbackStore(url)) as store:
        made = Worklist(store, "list")
        while pieces := made.take(rater, 5):
            for piece in pieces:
                store.record(event(piece, rater), CHECKLIST)
                said.put(piece.image)
    said.put(None)


@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_eight_programs_at_once_are_given_nothing_twice(store_url, overlap):
    with closing(FeedbackStore(store_url)) as store:
        worklist(store, 160, overlap=overlap)
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    programs = [context.Process(target=_work, args=(store_url, f"rater {i}", said)) for i in range(8)]
    for program in programs:
        program.start()
    judged, left = [], 8
    while left:
        image = said.get()
        judged, left = ([*judged, image], left) if image else (judged, left - 1)
    for program in programs:
        program.join(60)
    expected = 160 + int(160 * overlap)
    with closing(FeedbackStore(store_url)) as store:
        events = store.events()
        assert len(judged) == len(events) == expected and events["uuid"].is_unique
        assert not events.duplicated(["rater", "image"]).any() and events["image"].nunique() == 160
        assert Worklist(store, "list").progress()["done"].sum() == expected


def test_work_that_is_finished_while_it_passes_on_is_not_done_twice(store):
    made = worklist(store, 3)
    ana = made.take("Ana")
    lapse(store)
    with closing(FeedbackStore(store.url if store.path is None else store.path)) as other:
        work = threading.Thread(target=lambda: [other.record(event(piece, "Ana"), CHECKLIST) for piece in ana])
        work.start()
        taken = made.take("Ben")
        work.join()
    states = made.progress()
    finished = states.loc["Ana", "done"] + (states.loc["Ben", "taken"] if "Ben" in states.index else 0)
    assert finished == 3 and states.loc["Ana", "late"] == len(taken)


def test_the_picture_shows_who_has_what(store):
    made = worklist(store, 4)
    pieces = made.take("Ana", 2)
    store.record(event(pieces[0], "Ana"), CHECKLIST)
    axis = made.figure().axes[0]
    shown = axis.images[0].get_array()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Ana", "nobody yet"]
    assert shown.shape == (2, 4, 3) and len({tuple(colour) for colour in shown.reshape(-1, 3)}) == 4  # done, taken, free, nothing


def test_the_design_is_kept_in_the_store(store):
    made = worklist(store, 3, raters=2)
    assert Worklist(store, "list").design == made.design == replace(Design(), raters=2)
