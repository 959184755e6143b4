"""Grids of cases for pathloop.feedback: bad events, threads, processes, broken files, exchange."""

import itertools
import multiprocessing
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest

from pathloop.checklist import load_checklist
from pathloop.core import image_hash
from pathloop.feedback import FeedbackStore, agreement, consensus

CHECKLIST = load_checklist("peripheral-blood")
CRITERIA = [criterion.name for criterion in CHECKLIST.criteria]
IMAGES = np.stack([np.full((3, 4, 4), level, np.float32) for level in np.linspace(-1, 1, 12)])


def review(image=0, rater="Ana", failed=(), unsure=(), **more):
    answers = {name: "no" if name in failed else "unsure" if name in unsure else "yes" for name in CRITERIA}
    about = {"image": image_hash(IMAGES[image]), "shown_as": "lymphocyte", "generator": "generator-0"}
    return {"rater": rater, "source": "human", "answers": answers} | about | more


@pytest.fixture
def store(store_url):
    with closing(FeedbackStore(store_url)) as store:
        yield store


@pytest.fixture
def file_store(tmp_path):
    with closing(FeedbackStore(tmp_path / "feedback.db")) as store:
        yield store


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {}}, "answers must be a dictionary"),
        ({"answers": {"cell_sise": "yes"}}, "unknown ['cell_sise']"),
        ({"answers": dict.fromkeys(CRITERIA, "maybe")}, "answers must each be one of"),
        ({"verdict": "good"}, "verdict must be one of"),
        ({"verdict": "implausible"}, "must follow from the answers"),
        ({"verdict": "unsure"}, "must follow from the answers"),
        ({"shown_as": "hepatocyte"}, "shown_as must be one of"),
        ({"shown_as": ""}, "shown_as must be a text"),
        ({"rater": "  "}, "rater must be a text"),
        ({"generator": None}, "generator must be a text"),
        ({"source": "robot"}, "source must be one of"),
        ({"kind": "delete"}, "kind must be one of"),
        ({"kind": "skip"}, "must be None for a skip"),
        ({"kind": "undo", "answers": None}, "supersedes must name the event"),
        ({"kind": "undo", "answers": None, "supersedes": str(uuid4())}, "there is none"),
        ({"image": "cell_17.png"}, "64 digits"),
        ({"seconds": -1.0}, "seconds must be a time"),
        ({"seconds": float("nan")}, "seconds must be a time"),
        ({"colour": "red"}, "unknown ['colour']"),
    ],
)
def test_bad_events_are_refused_and_leave_nothing(file_store, change, message):
    with pytest.raises(ValueError) as error:
        file_store.record(review() | change, CHECKLIST)
    assert message in str(error.value)
    assert len(file_store.events()) == 0


def test_reject_as_a_whole_needs_no_failed_criterion(store):
    store.record(review(unsure=CRITERIA, verdict="implausible"), CHECKLIST)
    assert store.verdicts()["verdict"].tolist() == ["implausible"]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db", "postgresql://host", "postgresql:host", Path("postgresql://host/db")])
def test_other_addresses_are_refused_and_leave_no_file(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="url must be a file path"):
        FeedbackStore(url)
    assert list(tmp_path.iterdir()) == []


def test_url_and_path_name_the_same_file(tmp_path):
    FeedbackStore(tmp_path / "a.db").record(review(), CHECKLIST)
    assert len(FeedbackStore(f"sqlite:///{tmp_path / 'a.db'}").events()) == 1


def test_not_a_database_and_a_newer_one(tmp_path):
    (tmp_path / "text.db").write_text("not a database, but long enough to be taken for one by its size" * 20)
    with pytest.raises(OSError, match="can be opened"):
        FeedbackStore(tmp_path / "text.db")
    FeedbackStore(tmp_path / "new.db")
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(ValueError, match="layout 0099. Update pathloop"):
        FeedbackStore(tmp_path / "new.db")


def test_durable_settings(file_store):
    with file_store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_threads_lose_nothing_and_double_nothing(store):
    events = [review(i % 12, rater=f"rater {i % 3}", uuid=str(uuid4()), session="s", client_seq=i) for i in range(60)]
    errors = []

    def work(part):
        try:
            for event in part:
                store.record(event, CHECKLIST)
        except Exception as error:
            errors.append(error)

    parts = [events[:40], events[20:], events[::2], events[1::2]]  # every event is sent twice or more
    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    stored = store.events()
    assert stored["client_seq"].tolist() == list(range(60))
    assert stored["uuid"].tolist() == [event["uuid"] for event in events]


def _write_many(url, rater):
    store = FeedbackStore(url)
    for i in range(10):
        store.record(review(i, rater=rater), CHECKLIST)


def test_processes_share_a_store(store_url):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(store_url, name)) for name in ("Ana", "Ben")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert FeedbackStore(store_url).events()["rater"].value_counts().to_dict() == {"Ana": 10, "Ben": 10}


def test_order_is_the_clients_not_that_of_the_rows(store):
    late = review(failed=["chromatin"], session="browser", client_seq=7)
    early = review(session="browser", client_seq=3)
    store.record(late, CHECKLIST)
    store.record(early, CHECKLIST)
    assert store.events()["client_seq"].tolist() == [3, 7]
    assert store.verdicts()["verdict"].tolist() == ["implausible"]


def test_of_two_open_sessions_the_later_word_counts(store):
    times = iter(f"2026-01-05T10:00:{second:02d}+00:00" for second in range(60))

    def say(session, client_seq, failed=()):
        return store.record(review(failed=failed, session=session, client_seq=client_seq, at=next(times)), CHECKLIST)

    said = [say("a", 0), say("b", 0, ["granules"]), say("a", 1), say("b", 2, ["granules"]), say("b", 1), say("a", 2)]
    assert [said.index(uuid) for uuid in store.events()["uuid"]] == [0, 1, 2, 4, 3, 5]
    assert store.verdicts()["verdict"].tolist() == ["plausible"]


def test_a_sequence_number_is_used_once(store):
    store.record(review(0, session="browser", client_seq=1), CHECKLIST)
    with pytest.raises(ValueError, match="must not contradict"):
        store.record(review(1, session="browser", client_seq=1), CHECKLIST)


def test_undo_returns_to_the_word_before(store):
    first = store.record(review(), CHECKLIST)
    second = store.record(review(failed=["granules"]), CHECKLIST)
    assert store.verdicts()["verdict"].tolist() == ["implausible"]
    store.undo(second, "Ana")
    assert store.verdicts()["verdict"].tolist() == ["plausible"]
    undo = store.undo(first, "Ana")
    assert len(store.verdicts()) == 0 and len(store.events()) == 4
    for bad, message in [(undo, "it is a undo"), ("no such", "must name a stored event")]:
        with pytest.raises(ValueError, match=message):
            store.undo(bad, "Ana")
    with pytest.raises(ValueError, match="by 'Ana'"):
        store.undo(first, "Ben")


def test_a_file_that_cannot_be_written_says_so(file_store):
    file_store.record(review(), CHECKLIST)
    with file_store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    event = review(1, uuid=str(uuid4()))
    with pytest.raises(OSError, match="could not be saved.*readonly"):
        file_store.record(event, CHECKLIST)
    with file_store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=OFF")
    file_store.record(event, CHECKLIST)
    assert len(file_store.events()) == 2


def test_a_file_moved_away_is_noticed(file_store, tmp_path):
    file_store.record(review(), CHECKLIST)
    file_store.path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(OSError, match="moved or deleted"):
        file_store.record(review(1), CHECKLIST)
    (tmp_path / "elsewhere.db").rename(file_store.path)
    file_store.record(review(1), CHECKLIST)
    assert len(file_store.events()) == 2


@pytest.mark.parametrize("statement", ["UPDATE event SET rater = 'x'", "DELETE FROM event", "INSERT OR REPLACE INTO event SELECT * FROM event", "TRUNCATE event"])
def test_no_program_changes_an_event(store, statement):
    if statement.startswith("TRUNCATE" if store.path else "INSERT OR"):
        pytest.skip("this database has no such statement")
    store.record(review(), CHECKLIST)
    before = store.events()
    with closing(store._engine.raw_connection()) as connection, pytest.raises(Exception, match="never changed"):
        connection.cursor().execute(statement)
    pd.testing.assert_frame_equal(store.events(), before)


def _reviews(failures):
    return pd.DataFrame([{name: "no" if name == failed else "yes" for name in CRITERIA} for failed in failures])


def test_record_reviews_writes_only_what_is_new(store):
    who = {"rater": "simulated-1", "source": "simulated", "generator": "generator-0", "checklist": CHECKLIST}
    images, labels = IMAGES[:3], np.zeros(3, int)
    assert store.record_reviews(images, labels, ["lymphocyte"], _reviews(["", "chromatin", ""]), **who) == 3
    assert store.record_reviews(images, labels, ["lymphocyte"], _reviews(["", "chromatin", ""]), **who) == 0
    assert store.record_reviews(images, labels, ["lymphocyte"], _reviews(["", "", ""]), **who) == 1
    assert store.record_reviews(images, labels, ["lymphocyte"], _reviews(["", "chromatin", ""]), **who) == 1
    assert store.verdicts()["verdict"].tolist().count("implausible") == 1
    assert list(store.verdicts().columns[:7]) == CRITERIA
    assert set(store.verdicts(generator="generator-1").index) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 0, 1])}, "labels must lie from 0 to 0"),
        ({"reviews": _reviews(["", ""])}, "reviews must have one row per image"),
        ({"reviews": _reviews(["", "", ""]).drop(columns="chromatin")}, "reviews must have a column for each criterion"),
        ({"classes": ["hepatocyte"]}, "shown_as must be one of"),
        ({"source": "robot"}, "source must be one of"),
        ({"images": IMAGES[:3] * 2}, "images must lie in"),
    ],
)
def test_record_reviews_is_all_or_nothing(file_store, change, message):
    given = {"images": IMAGES[:3], "labels": np.zeros(3, int), "classes": ["lymphocyte"], "reviews": _reviews(["", "", ""])}
    given |= {"rater": "simulated-1", "source": "simulated", "generator": "generator-0", "checklist": CHECKLIST}
    with pytest.raises(ValueError, match=message):
        file_store.record_reviews(**(given | change))
    assert len(file_store.events()) == 0


def test_sources_never_mix_unasked(store):
    store.record(review(), CHECKLIST)
    store.record(review(rater="simulated-1", source="simulated"), CHECKLIST)
    with pytest.raises(ValueError, match="'human': 1, 'simulated': 1"):
        store.verdicts()
    assert [len(store.verdicts(source=source)) for source in ("human", "simulated", "both")] == [1, 1, 2]
    with pytest.raises(ValueError, match="source must be one of"):
        store.verdicts(source="robot")


def test_an_empty_store_gives_empty_tables(store):
    assert len(store.events()) == len(store.verdicts()) == len(consensus(store.verdicts())) == 0
    assert agreement(store.verdicts())["images"].tolist() == [0]


@pytest.mark.parametrize("votes", list(itertools.combinations_with_replacement(["plausible", "implausible", "unsure"], 3)))
def test_consensus_of_three(file_store, votes):
    for rater, vote in zip("ABC", votes, strict=True):
        marks = {"plausible": {}, "implausible": {"failed": ["chromatin"]}, "unsure": {"unsure": ["chromatin"]}}[vote]
        file_store.record(review(rater=rater, **marks), CHECKLIST)
    row = consensus(file_store.verdicts()).iloc[0]
    good, bad = votes.count("plausible"), votes.count("implausible")
    assert row["verdict"] == ("plausible" if good > bad else "implausible" if bad > good else "unsure")
    assert row["chromatin"] == ("yes" if good > bad else "no" if bad > good else "unsure")
    assert (row["raters"], row["plausible"], row["implausible"], row["unsure"], row["tie"]) == (3, good, bad, 3 - good - bad, good == bad > 0)


def test_agreement_matches_hand_computed_alpha():
    """Two raters, ten images, two disagreements: alpha = 1 - D_o / D_e = 1 - (4 / 20) / (2 * 8 * 12 / (20 * 19))."""
    ana = ["yes"] * 6 + ["no"] * 4
    ben = ["yes"] * 5 + ["no"] + ["no"] * 3 + ["yes"]
    rows = [
        {"image": f"{i}", "granules": answer, "verdict": "plausible" if answer == "yes" else "implausible", "cell_type": "t", "rater": rater}
        for rater, answers in (("Ana", ana), ("Ben", ben))
        for i, answer in enumerate(answers)
    ]
    result = agreement(pd.DataFrame(rows).set_index("image"))
    yes = ana.count("yes") + ben.count("yes")
    expected = 1 - (4 / 20) / (2 * yes * (20 - yes) / (20 * 19))
    assert result.loc["granules", "alpha"] == pytest.approx(expected)
    assert result.loc["granules", "same"] == pytest.approx(0.8)
    assert result.loc["verdict", ["images", "raters"]].tolist() == [10, 2]
    assert result.loc["granules", "low"] < expected < result.loc["granules", "high"]


def test_agreement_is_undefined_without_variation_and_ignores_unsure(file_store):
    for rater in ("Ana", "Ben"):
        for i in range(4):
            file_store.record(review(i, rater, unsure=["granules"] if rater == "Ben" else []), CHECKLIST)
    result = agreement(file_store.verdicts())
    assert np.isnan(result.loc["chromatin", "alpha"]) and result.loc["chromatin", "same"] == 1
    assert result.loc["granules", "images"] == 0


def test_csv_round_trip(store, tmp_path):
    awkward = 'a "quoted", comma\nand a line; naïve µm'
    first = store.record(review(failed=["granules"], comment=awkward, seconds=1 / 3), CHECKLIST)
    store.undo(first, "Ana")
    store.record(review(1, kind="skip", answers=None), CHECKLIST)
    store.record(review(2, rater="None"), CHECKLIST)
    assert store.export_csv(tmp_path / "a.csv") == 4
    copy = FeedbackStore(tmp_path / "copy.db")
    assert [copy.import_csv(tmp_path / "a.csv") for _ in range(2)] == [4, 0]
    pd.testing.assert_frame_equal(copy.events(), store.events())
    copy.export_csv(tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("verdict", "plausible", "line 3.*must follow"),
        ("at", "yesterday", "line 3"),
        ("at", "2026-01-01 10:00", "line 3"),
        ("client_seq", "first", "line 3"),
        ("answers", "{", "line 3"),
        ("source", "", "line 3.*source"),
    ],
)
def test_a_bad_csv_row_imports_nothing(file_store, tmp_path, column, value, message):
    for i in range(3):
        file_store.record(review(i, failed=["granules"]), CHECKLIST)
    file_store.export_csv(tmp_path / "a.csv")
    table = pd.read_csv(tmp_path / "a.csv", dtype=str)
    table.loc[1, column] = value
    table.to_csv(tmp_path / "bad.csv", index=False)
    copy = FeedbackStore(tmp_path / "copy.db")
    with pytest.raises(ValueError, match=message):
        copy.import_csv(tmp_path / "bad.csv")
    assert len(copy.events()) == 0


def test_a_csv_of_something_else(store, tmp_path):
    pd.DataFrame({"image": ["x"]}).to_csv(tmp_path / "other.csv")
    with pytest.raises(ValueError, match="must be a file of export_csv"):
        store.import_csv(tmp_path / "other.csv")


def test_a_csv_that_contradicts_the_store(store, tmp_path):
    store.record(review(comment="mine"), CHECKLIST)
    store.export_csv(tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text().replace("mine", "theirs")
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match="another content"):
        store.import_csv(tmp_path / "a.csv")
