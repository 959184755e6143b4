"""Feedback out and in again: nothing lost, nothing doubled, nothing wrong let in."""

import json
import xml.etree.ElementTree as ElementTree
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from pathloop.checklist import load_checklist
from pathloop.exchange import (
    export_events,
    export_label_studio,
    export_prodigy,
    image_tasks,
    import_events,
    import_label_studio,
    import_prodigy,
    label_studio_config,
)
from pathloop.feedback import FeedbackStore

CHECKLIST = load_checklist()
CRITERIA = CHECKLIST.criteria_names
YES = dict.fromkeys(CRITERIA, "yes")
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 3, 6, 6)).astype(np.float32)
LABELS, CLASSES = np.array([0, 0, 1, 1]), ["lymphocyte", "monocyte"]
TASKS = image_tasks(IMAGES, LABELS, CLASSES, "generator-0")
TOOLS = {"Label Studio": (export_label_studio, import_label_studio), "Prodigy": (export_prodigy, import_prodigy)}


@pytest.fixture
def new_store(tmp_path):
    opened = []

    def new(name):
        opened.append(FeedbackStore(tmp_path / f"{name}.db"))
        return opened[-1]

    yield new
    for store in opened:
        store.close()


@pytest.fixture
def store(new_store):
    store = new_store("source")
    said = {
        "Ana": pd.DataFrame([YES, YES | {"granules": "no", "chromatin": "unsure"}, YES | {"granules": "unsure"}, dict.fromkeys(CRITERIA, "unsure")]).assign(verdict=["plausible", "implausible", "unsure", "implausible"]),
        "Ben": pd.DataFrame([YES] * 4).assign(comment='naïve "µm",\nline', seconds=1 / 3),
    }
    for rater, reviews in said.items():
        store.record_reviews(IMAGES, LABELS, CLASSES, reviews, rater, "human", "generator-0", CHECKLIST)
    skipped = {"kind": "skip", "rater": "Cleo", "source": "human", "image": TASKS[0]["sha256"], "shown_as": "lymphocyte", "generator": "generator-0"}
    store.record(skipped, CHECKLIST)
    store.undo(store.events()["uuid"].iloc[0], "Ana")
    store.record_reviews(IMAGES[:1], LABELS[:1], CLASSES, pd.DataFrame([YES]), "Ana", "human", "generator-0", CHECKLIST)
    return store


def verdicts(store):
    return store.verdicts().reset_index().sort_values(["rater", "image"], ignore_index=True)


@pytest.mark.parametrize("ending", ["csv", "parquet", "PARQUET"])
def test_every_event_there_and_back(store, new_store, tmp_path, ending):
    path = tmp_path / f"events.{ending}"
    assert export_events(store, path) == 11
    copy = new_store("copy")
    assert [import_events(copy, path) for _ in range(2)] == [11, 0]
    pd.testing.assert_frame_equal(copy.events(), store.events())
    assert import_events(store, path) == 0


def test_other_files_are_refused(store, tmp_path):
    for name in ("events.xlsx", "events"):
        with pytest.raises(ValueError, match="must end in .csv or .parquet"):
            export_events(store, tmp_path / name)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="must be a Parquet file"):
        import_events(store, tmp_path / "bad.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="must be a file of export_csv"):
        import_events(store, tmp_path / "other.parquet")


def test_a_bad_parquet_row_imports_nothing(store, new_store, tmp_path):
    export_events(store, tmp_path / "a.parquet")
    table = pd.read_parquet(tmp_path / "a.parquet")
    table.loc[3, "source"] = "robot"
    table.to_parquet(tmp_path / "bad.parquet")
    copy = new_store("copy")
    with pytest.raises(ValueError, match="line 5.*source must be one of"):
        import_events(copy, tmp_path / "bad.parquet")
    assert len(copy.events()) == 0


@pytest.mark.parametrize("tool", TOOLS)
def test_there_and_back_through_another_tool(store, new_store, tmp_path, tool):
    write, read = TOOLS[tool]
    path, copy = tmp_path / "file.json", new_store("copy")
    assert write(path, TASKS, CHECKLIST, store.events()) == 8
    assert read(store, path, CHECKLIST) == 0
    assert [read(copy, path, CHECKLIST) for _ in range(2)] == [8, 0]
    pd.testing.assert_frame_equal(verdicts(copy), verdicts(store), check_like=True)
    assert set(copy.events()["comment"].dropna()) == {'naïve "µm",\nline'}
    write(tmp_path / "again.json", TASKS, CHECKLIST, copy.events())
    assert [read(other, tmp_path / "again.json", CHECKLIST) for other in (store, copy)] == [0, 0]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_changed_answer_comes_in_as_a_newer_word(store, new_store, tmp_path, tool):
    write, read = TOOLS[tool]
    path, copy = tmp_path / "file.json", new_store("copy")
    write(path, TASKS[:1], CHECKLIST, store.events(rater="Ben"))
    assert read(copy, path, CHECKLIST) == 1
    if tool == "Prodigy":
        line = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(line | {"accept": ["chromatin"], "_timestamp": line["_timestamp"] + 60}), encoding="utf-8")
    else:
        tasks = json.loads(path.read_text(encoding="utf-8"))
        changed = next(part for part in tasks[0]["annotations"][0]["result"] if part["from_name"] == "chromatin")
        changed["value"]["choices"] = ["no"]
        tasks[0]["annotations"][0]["updated_at"] = "2099-01-01T00:00:00.000000Z"
        path.write_text(json.dumps(tasks), encoding="utf-8")
    assert [read(copy, path, CHECKLIST) for _ in range(2)] == [1, 0]
    assert len(copy.events()) == 2 and copy.verdicts()["chromatin"].tolist() == ["no"]


def label_studio_task(annotation, **data):
    return [{"id": 7, "data": TASKS[0] | data, "annotations": [{"id": 70, "created_at": "2026-01-05T10:00:00.5Z", "lead_time": 4.2, "was_cancelled": False} | annotation]}]


def choice(name, value):
    return {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": [value]}}


def test_an_export_of_label_studio_itself(store, tmp_path):
    "As its documentation shows one: accounts as numbers, skipped tasks, extra keys."
    path = tmp_path / "export.json"
    result = [choice(name, "yes") for name in CRITERIA]
    tasks = label_studio_task({"completed_by": 10, "result": result, "ground_truth": False}) + label_studio_task({"id": 71, "completed_by": {"id": 3, "email": "ben@lab.org"}, "was_cancelled": True, "result": []})
    path.write_text(json.dumps(tasks), encoding="utf-8")
    assert [import_label_studio(store, path, CHECKLIST, raters={10: "Dora"}) for _ in range(2)] == [2, 0]
    new = store.events().set_index("rater")
    assert new.loc["Dora", ["verdict", "seconds"]].tolist() == ["plausible", 4.2] and new.loc["Dora", "at"] == pd.Timestamp("2026-01-05T10:00:00.5Z")
    assert new.loc["ben@lab.org", "kind"] == "skip"
    assert import_label_studio(store, path, CHECKLIST) == 1  # another name for account 10 is another rater


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (label_studio_task({"result": [choice("cell_sise", "yes")]}), "task 7, annotation 70: answers must name exactly.*cell_sise"),
        (label_studio_task({"result": [choice("granules", "perhaps")]}), "task 7, annotation 70: answers must each be one of"),
        (label_studio_task({"result": []}, sha256="0123"), "64 digits"),
        (label_studio_task({"result": []}, sha256=""), "task 7 lacks \\['sha256'\\]"),
        (label_studio_task({"result": []}, cell_type="hepatocyte"), "shown_as must be one of"),
        ([{"image": "x"}], "a list of tasks with 'data'"),
        (["text"], "JSON objects, one for each task; number 2"),
    ],
)
def test_what_label_studio_files_may_not_hold(store, tmp_path, task, message):
    path, before = tmp_path / "bad.json", len(store.events())
    good = label_studio_task({"result": [choice(name, "yes") for name in CRITERIA]})
    path.write_text(json.dumps(good + task), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        import_label_studio(store, path, CHECKLIST)
    assert len(store.events()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accept": ["granuls"]}, "line 1: answers must name exactly.*granuls"),
        ({"meta": {}}, "line 1 lacks"),
        ({"accept": ["granules", "granules?"], "answer": "perhaps", "meta": {"sha256": "x", "cell_type": "monocyte", "generator": "g"}}, "64 digits"),
    ],
)
def test_what_prodigy_files_may_not_hold(store, tmp_path, change, message):
    path, before = tmp_path / "bad.jsonl", len(store.events())
    export_prodigy(path, TASKS[:1], CHECKLIST)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"answer": "accept", "accept": []} | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        import_prodigy(store, path, CHECKLIST)
    assert len(store.events()) == before


def test_answers_without_a_time_get_that_of_their_arrival(store, tmp_path):
    path = tmp_path / "export.json"
    task = label_studio_task({"result": [choice(name, "yes") for name in CRITERIA] + [{"type": "relation"}, {"from_name": "comment", "value": {"text": []}}]})
    del task[0]["annotations"][0]["created_at"]
    path.write_text(json.dumps(task), encoding="utf-8")
    assert [import_label_studio(store, path, CHECKLIST) for _ in range(2)] == [1, 0]
    assert abs(store.events()["at"].max() - pd.Timestamp.now("UTC")) < pd.Timedelta(minutes=2)


def test_a_file_that_is_not_json(store, tmp_path):
    (tmp_path / "x.json").write_text("[{", encoding="utf-8")
    for _, read in TOOLS.values():
        with pytest.raises(ValueError, match="must be a JSON or JSONL file"):
            read(store, tmp_path / "x.json", CHECKLIST)


def test_bare_tasks_hold_the_pixels_or_an_address(tmp_path):
    import base64
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(TASKS[0]["image"].split(",")[1]))))
    assert np.array_equal(pixels, np.round((IMAGES[0].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))
    assert image_tasks(IMAGES, LABELS, CLASSES, "g", lambda name: f"/images/{name}.png")[0]["image"] == f"/images/{TASKS[0]['sha256']}.png"
    assert export_label_studio(tmp_path / "t.json", TASKS, CHECKLIST) == 0 and export_prodigy(tmp_path / "t.jsonl", TASKS, CHECKLIST) == 4
    assert {task["data"]["expected_granules"] for task in json.loads((tmp_path / "t.json").read_text())} == {CHECKLIST.for_type(kind)[5].expected for kind in CLASSES}


def test_the_interface_is_xml_that_names_every_criterion():
    root = ElementTree.fromstring(label_studio_config(CHECKLIST))
    assert [tag.get("name") for tag in root.iter("Choices")] == [*CRITERIA, "whole"]
    assert all(tag.get("toName") == "image" for tag in root.iter("Choices"))


def test_label_studios_own_check(store, tmp_path):
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(label_studio_config(CHECKLIST))
    interface.validate()
    export_label_studio(tmp_path / "t.json", TASKS, CHECKLIST, store.events())
    for task in json.loads((tmp_path / "t.json").read_text(encoding="utf-8")):
        assert interface.validate_task({"data": task["data"]}) and task["annotations"]
        assert all(interface.validate_annotation(annotation) for annotation in task["annotations"])


def test_on_postgresql_too(store, postgresql, tmp_path):
    with closing(FeedbackStore(postgresql.new_database())) as copy:
        for ending in ("csv", "parquet"):
            export_events(store, tmp_path / f"e.{ending}")
        assert [import_events(copy, tmp_path / name) for name in ("e.csv", "e.parquet")] == [11, 0]
        pd.testing.assert_frame_equal(copy.events(), store.events())
        for name, (write, read) in TOOLS.items():
            write(tmp_path / name, TASKS, CHECKLIST, copy.events())
            assert read(copy, tmp_path / name, CHECKLIST) == 0
