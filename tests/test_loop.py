"""The study: the whole loop at small size, stopping and resuming, human feedback, and refusing to mix settings."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pathloop.core import file_hash, read_json, write_json
from pathloop.data import CellImages, to_uint8
from pathloop.diffusion import sample_pool
from pathloop.export import export_study
from pathloop.finetune import FinetuneConfig, best_part, finetune
from pathloop.guide import STRIDE, DistillConfig, distil
from pathloop.loop import (
    LED_AWAY,
    TINY,
    VERDICT_WEIGHTS,
    NeedsFeedback,
    Study,
    StudyConfig,
    _distil_steps,
    _looks,
    _weights,
    open_cells,
    read_config,
    save_cells,
    shipped_generator,
    study_arms,
    write_config,
)
from pathloop.pathologist import Judge
from pathloop.reward import RewardModel
from pathloop.smear import make_smear

pytestmark = pytest.mark.timeout(1500) # A whole study, on a slow processor
COMMAND = [sys.executable, "-c", "from pathloop.cli import main; main()"]
QUIET = {**os.environ, "PATHLOOP_QUIET": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study.create(tmp_path_factory.mktemp("study") / "tiny", StudyConfig(**TINY), say=lambda line: None)
    return study.run()


@pytest.mark.slow
def test_every_step_left_a_card_with_its_inputs(finished: Study) -> None:
    names = set(finished.status()["name"])
    assert {"real", "judges", "generators/untouched", "pools/round-1", "feedback/round-1", "rewards/round-1", "reports/round-1"} <= names
    card = finished.card("rewards/round-1")
    assert card["inputs"]["feedback/round-1"] == file_hash(finished.folder / "feedback/round-1/card.json")
    assert card["versions"]["torch"] and card["seconds"] > 0
    assert not list(finished.folder.glob("**/*.pkl")) and not list(finished.folder.glob("**/.*-*"))


@pytest.mark.slow
def test_arms_share_seeds_and_controls_are_there(finished: Study) -> None:
    pools = {name: finished.pool(name) for name in finished.compared}
    first = pools["untouched"]
    assert {"untouched, guided", "real-only", "best of 2, guided"} <= set(pools)
    for name, pool in pools.items():
        np.testing.assert_array_equal(pool.seeds % STRIDE, first.seeds)
        np.testing.assert_array_equal(pool.labels, first.labels)
        assert name == "untouched" or np.abs(pool.images - first.images).max() > 0, name
    assert not set(first.seeds) & set(finished.pool("round-1").seeds), "reported on images that were learned from"


@pytest.mark.slow
def test_selection_keeps_what_the_reward_likes_of_the_guided_images(finished: Study) -> None:
    guided, picked, score = finished.pool("untouched, guided"), finished.pool("best of 2, guided"), finished.reward_model.score
    first = picked.seeds < STRIDE
    assert 0 < first.sum() < len(first)
    np.testing.assert_array_equal(picked.images[first], guided.images[first])
    assert (score(picked.images, picked.labels) >= score(guided.images, guided.labels) - 1e-4).all()
    assert finished.card("pools/best of 2, guided")["inputs"].keys() == {"generators/untouched", "rewards/round-1"}
    assert not [name for name in study_arms("kto", best_of=1) if name.startswith("best of")] and study_arms()["best of 4, guided"].best_of == 4


@pytest.mark.slow
def test_feedback_is_marked_as_simulated(finished: Study) -> None:
    events = finished.store.events()
    assert set(events["source"]) == {"simulated"} and len(events) == TINY["labels"]
    assert set(events["image"]) <= set(finished.pool().classes and [e for e in events["image"]])
    verdicts = pd.read_csv(finished.folder / "feedback/round-1/verdicts.csv")
    assert verdicts["verdict"].isin(["plausible", "implausible", "unsure"]).all()


@pytest.mark.slow
def test_weights_are_probabilities_of_plausible_with_their_identity(finished: Study) -> None:
    table = pd.read_csv(finished.folder / "rewards/round-1/weights.csv")
    assert len(table) == len(finished.pool()) and table["p_plausible"].between(0, 1).all()
    model, pool = finished.reward_model, finished.pool()
    np.testing.assert_allclose(table["p_plausible"], model.score(pool.images, pool.labels), atol=1e-4)


@pytest.mark.slow
def test_judged_images_weigh_by_their_verdict_and_others_by_the_reward(finished: Study) -> None:
    table = pd.read_csv(finished.folder / "rewards/round-1/weights.csv").set_index("image")
    said = pd.read_csv(finished.folder / "feedback/round-1/verdicts.csv").set_index("image")["verdict"]
    assert 0 < len(said) < len(table) and said.nunique() > 1
    np.testing.assert_array_equal(table.loc[said.index, "weight"], said.map(VERDICT_WEIGHTS))
    unasked = table.drop(said.index)
    np.testing.assert_array_equal(unasked["weight"], unasked["p_plausible"])
    np.testing.assert_array_equal(_weights(finished, 1), table["weight"])


@pytest.mark.slow
def test_the_reward_alone_weighs_when_asked_and_that_is_another_study(finished: Study, tmp_path: Path) -> None:
    folder = tmp_path / "by-reward"
    shutil.copytree(finished.folder, folder)
    write_config(folder / "study.toml", replace(finished.config, weigh_judged="reward"))
    study = Study(folder, say=lambda line: None)
    with pytest.raises(ValueError, match="rewards/round-1 was made otherwise: settings 'weigh_judged' is 'reward', was None"):
        study.reward()
    shutil.rmtree(folder / "rewards/round-1")
    study.reward()
    table = pd.read_csv(folder / "rewards/round-1/weights.csv")
    np.testing.assert_array_equal(table["weight"], table["p_plausible"])
    write_config(folder / "study.toml", finished.config)
    with pytest.raises(ValueError, match="settings 'weigh_judged' is None, was 'reward'"):
        Study(folder, say=lambda line: None).reward()


@pytest.mark.slow
def test_weights_made_before_verdicts_weighed_are_read_as_they_are(finished: Study) -> None:
    path = finished.folder / "rewards/round-1/weights.csv"
    original = path.read_text()
    try:
        table = pd.read_csv(path)
        table.drop(columns="weight").to_csv(path, index=False)
        np.testing.assert_array_equal(_weights(finished, 1), table["p_plausible"])
    finally:
        path.write_text(original)


@pytest.mark.slow
def test_weights_may_be_sorted_or_replaced_but_not_be_missing(finished: Study) -> None:
    path = finished.folder / "rewards/round-1/weights.csv"
    original, before = path.read_text(), _weights(finished, 1)
    try:
        table = pd.read_csv(path)
        table.sort_values("weight").to_csv(path, index=False)
        np.testing.assert_array_equal(_weights(finished, 1), before)
        table.iloc[3:].to_csv(path, index=False)
        with pytest.raises(ValueError, match=f"lacks 3 of {len(table)}, {table['image'][0][:12]}"):
            _weights(finished, 1)
        table.assign(weight=1.5).to_csv(path, index=False)
        with pytest.raises(ValueError, match="a weight from 0 to 1"):
            _weights(finished, 1)
    finally:
        path.write_text(original)


@pytest.mark.slow
def test_report_is_one_file_that_needs_no_network(finished: Study) -> None:
    page = (finished.folder / "reports" / "report.html").read_text()
    assert len(page) < 4_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']+["']""", page), "it points outside itself"
    for word in ("untouched, guided", "real-only", "reward-weighted", "real against real"):
        assert word in page.lower()
    report = json.loads((finished.folder / "reports/round-1/report.json").read_text())
    assert report["table"]["data"]
    pairs = pd.DataFrame(report["comparisons"]["data"], columns=report["comparisons"]["columns"])
    assert pairs["paired"].all() and "best of 2, guided" in {*pairs["arm"], *pairs["against"]}


@pytest.mark.slow
def test_a_study_can_be_given_away(finished: Study, tmp_path: Path) -> None:
    audit = export_study(finished, tmp_path / "shared")
    table = pd.read_csv(tmp_path / "shared" / "images" / "metadata.csv")
    pool = finished.pool("reward-weighted")
    assert len(table) == (~audit.flagged).sum()
    assert set(table["seed"]) <= set(pool.seeds.tolist())
    assert {"p_plausible", "p_granules"} <= set(table)
    assert set(table["generator"]) == {pool.generator_id}
    assert "attack with the generator: AUC" in audit.tests.index


@pytest.mark.slow
def test_running_again_changes_nothing(finished: Study) -> None:
    before = {path: file_hash(path) for path in finished.folder.glob("**/card.json")}
    Study(finished.folder, say=lambda line: None).run()
    assert before == {path: file_hash(path) for path in finished.folder.glob("**/card.json")}


@pytest.mark.slow
def test_changed_settings_are_refused(finished: Study) -> None:
    with pytest.raises(ValueError, match="labels is 96, asked 64"):
        Study.create(finished.folder, StudyConfig(**TINY | {"labels": 64}))
    original = (finished.folder / "study.toml").read_text()
    try:
        write_config(finished.folder / "study.toml", StudyConfig(**TINY | {"finetune_steps": 13}))
        with pytest.raises(ValueError, match="'steps' is 13, was 12"):
            Study(finished.folder, say=lambda line: None).finetune()
    finally:
        (finished.folder / "study.toml").write_text(original)


@pytest.mark.slow
def test_ctrl_c_loses_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    Study.create(tmp_path / "s", StudyConfig(**TINY | {"generator": "", "size": 16, "pretrain_steps": 1_000_000, "pretrain_batch": 16}), say=lambda line: None)
    arguments = [*COMMAND, "run", str(tmp_path / "s"), "--until", "pretrain"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL) # As at a terminal; a script's background jobs are born deaf to Ctrl-C
    first = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=QUIET, preexec_fn=heard)
    checkpoint = tmp_path / "s" / "work" / "pretrain.safetensors"
    deadline = time.monotonic() + 500
    while not checkpoint.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130 and "Nothing is lost" in output
    assert checkpoint.exists() and not (tmp_path / "s/generators/untouched").exists()
    made = file_hash(tmp_path / "s/real/card.json")
    again = subprocess.run([*COMMAND, "run", str(tmp_path / "s"), "--until", "judges"], capture_output=True, text=True, env=QUIET)
    assert again.returncode == 0 and file_hash(tmp_path / "s/real/card.json") == made


@pytest.mark.slow
def test_a_person_can_be_the_pathologist(tmp_path: Path) -> None:
    "The study waits for people, takes what their panel stored, and goes on."
    config = StudyConfig(**TINY | {"feedback": "human", "labels": 48, "reward_steps": 10})
    study = Study.create(tmp_path / "s", config, say=lambda line: None)
    with pytest.raises(NeedsFeedback, match="0 of 48 images are judged"):
        study.run(until="reward")
    queue, own = study.label_panel("dr-one").queue, 0
    while (item := queue.current) is not None:  # real cells and repeats are mixed in, and the rater is not told
        fails = own % 2 == 1 and item.generator != "real"
        queue.judge("implausible" if fails else "plausible", ["chromatin"] if fails else [])
        own += item.generator != "real"
    study.run(until="reward")
    assert set(study.store.events()["source"]) == {"human"}
    verdicts = study.card("feedback/round-1")["results"]["verdicts"]
    assert set(verdicts) == {"plausible", "implausible"} and sum(verdicts.values()) == 48
    assert len(study.store.events()) > 48, "attention checks and repeats were asked too"
    second = study.label_panel("dr-two").queue
    while second.current is not None:
        second.judge("implausible", ["nucleus_shape"])
    settle = study.label_panel("head", view="adjudicate").queue
    assert settle.items and "The reward model:" in settle.votes(settle.items[0]), "who settles sees what the model makes of it"


@pytest.mark.slow
def test_two_rounds_share_the_labels_and_a_guarded_end_leaves_out_the_second(tmp_path: Path) -> None:
    said: list[str] = []
    config = StudyConfig(**TINY | {"method": "kto", "rounds": 2, "labels": 97, "finetune_steps": 3, "reward_steps": 20})
    study = Study.create(tmp_path / "s", config, say=said.append)
    study.run(until="pretrain")
    for step in (study.sample, study.review, study.reward, study.finetune):
        step()
    assert study.round_now == 2 and len(study.asked(1)) == 49 and not (study.folder / "generators/kto").exists()
    shutil.copytree(study.folder, tmp_path / "ended")
    study.run(until="finetune")
    assert len(study.asked(2)) == 48 and not set(study.pool("round-1").seeds) & set(study.pool("round-2").seeds)
    assert study.pool("round-2").generator_id == study.generator("kto-round-1").id != study.generator("kto").id
    assert study.card("rewards/round-2")["results"]["report"]["counts"]["judged"] == 97
    (row,) = study.drift().to_dict("records") # The first reward on the second round's images, before it learned from them
    pool, index, first = study.pool("round-2"), study.asked(2), RewardModel.load(study.folder / "rewards/round-1/model")
    words = pd.read_csv(study.folder / "feedback/round-2/verdicts.csv")["verdict"]
    assert row["round"] == "round 2" and row["n"] == words.isin(["plausible", "implausible"]).sum()
    sure = words.isin(["plausible", "implausible"]).to_numpy()
    assert row["mean score"] == pytest.approx(first.score(pool.images[index][sure], pool.labels[index][sure]).mean(), abs=1e-4)
    assert any("no longer fits" in line for line in said) == bool(row["request"])
    assert set(study.card("rewards/round-2")["inputs"]) == {"feedback/round-1", "feedback/round-2", "rewards/round-1", "real"}
    assert study.card("generators/real-only")["settings"]["steps"] == 6
    assert [look["step"] for look in study.card("generators/kto")["results"]["guard"]] == [0, 1, 2, 3]

    card = read_json(tmp_path / "ended/generators/kto-round-1/card.json")
    card["results"]["stopped"] = "the judge accepts 9.0 points fewer"
    write_json(tmp_path / "ended/generators/kto-round-1/card.json", card)
    ended = Study(tmp_path / "ended", say=said.append).run(until="finetune")
    assert ended.generator("kto").id == ended.generator("kto-round-1").id and not (ended.folder / "pools/round-2").exists()
    assert any("round 2 is left out: an earlier round was ended, because the judge accepts 9.0 points fewer" in line for line in said)


def test_each_method_finetunes_in_its_own_way_unless_told_otherwise() -> None:
    curated, gentle = StudyConfig(method="curated").finetuning(), StudyConfig(method="kto").finetuning()
    assert (curated.steps, curated.learning_rate, curated.batch_size, curated.average) == (400, 5e-4, 64, 0.99)
    assert (gentle.steps, gentle.learning_rate, gentle.batch_size, gentle.average) == (200, 5e-5, 32, 0.98)
    told = StudyConfig(method="curated", finetune_steps=7, learning_rate=1e-5, beta=0.2, seed=3).finetuning()
    assert (told.steps, told.learning_rate, told.beta, told.seed, told.batch_size) == (7, 1e-5, 0.2, 3, 64)
    assert (_distil_steps(curated), _distil_steps(told)) == (160, 7)
    assert StudyConfig(method="draft").finetuning().steps == 40 and StudyConfig(method="feedback-guidance").finetuning().learning_rate == 2e-4
    for name in ("finetune_steps", "learning_rate"):
        with pytest.raises(ValueError, match=f"{name} must be above 0, or 0 for the method's own; got -1"):
            StudyConfig(**{name: -1})
    finer = StudyConfig(method="nft", mix=0.5, kl=0.1, lora_rank=4)
    assert finer.told == {"mix": 0.5, "kl": 0.1, "lora_rank": 4} and (finer.finetuning().mix, finer.finetuning().kl, finer.finetuning().lora_rank) == (0.5, 0.1, 4)
    assert StudyConfig(method="feedback-guidance").finetuning().normalise and not StudyConfig().told
    with pytest.raises(ValueError, match="strength must be from 1e-06 to 1e\\+09; got 0"):
        StudyConfig(strength=0.0)


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A curated study before its finetuning."
    folder = tmp_path_factory.mktemp("curated") / "s"
    config = StudyConfig(**TINY | {"method": "curated", "finetune_steps": 3, "reward_steps": 20, "real_share": 0.25})
    Study.create(folder, config, say=lambda line: None).run(until="reward")
    return folder


@pytest.mark.slow
def test_a_curated_study_learns_from_the_real_images_that_the_reward_likes(rewarded: Path, tmp_path: Path) -> None:
    study = Study(shutil.copytree(rewarded, tmp_path / "s"), say=lambda line: None).run(until="finetune")
    train, reward = study.real("train"), RewardModel.load(study.folder / "rewards/round-1/model")
    liked = best_part(train, reward.score(train.images, train.labels), 0.25)
    assert len(liked) < 0.3 * len(train)
    card = study.card("generators/curated")
    of_tuning = ("steps", "learning_rate", "beta", "seed", "batch_size", "average")
    settings = FinetuneConfig.from_dict({name: card["settings"][name] for name in of_tuning})

    def by_hand(real: CellImages) -> str:
        start, how = study.generator(), DistillConfig(steps=3)
        tuned = finetune(start, study.pool(), np.ones(len(study.pool())), real, "real-only", settings)
        lesson = sample_pool(tuned, 8, 4_000_000, steps=8, guide=start, **LED_AWAY)
        return distil(tuned, lesson, real, guide=start, settings=how, **LED_AWAY).id

    assert study.generator("curated").id == by_hand(liked) != study.generator("real-only").id == by_hand(train)
    assert {"real_share": 0.25, "guide_scale": 3.0, "distil_steps": 3, "lesson_per_class": 8, "sampler_steps": 8}.items() <= card["settings"].items()
    assert [look["step"] for look in card["results"]["guard"]] == [0, 1, 2, 3, 4, 5, 6] and not list((study.folder / "work").glob("*"))
    assert not study_arms("curated")["curated"].guided and "curated, guided" not in study_arms("curated") and "kto, guided" in study_arms("kto")


def otherwise(rewarded: Path, folder: Path, say: list[str], **settings: object) -> Study:
    "The same study, finetuned in another way."
    study = Study(shutil.copytree(rewarded, folder), say=say.append)
    write_config(study.folder / "study.toml", replace(study.config, **settings))
    return Study(study.folder, say=say.append)


@pytest.mark.slow
def test_feedback_guidance_is_guarded_too(rewarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = otherwise(rewarded, tmp_path / "good", [], method="feedback-guidance").run(until="finetune")
    assert [look["step"] for look in study.card("generators/feedback-guidance")["results"]["guard"]] == [0, 1, 2, 3] and not list((study.folder / "work").glob("*"))
    assert _looks(study)["step"].tolist() == [0, 1, 2, 3]
    path = study.folder / "generators/feedback-guidance/card.json"
    card = read_json(path)
    write_json(path, card | {"results": {"id": card["results"]["id"]}})  # As it was made before it was guarded
    assert _looks(study).empty
    looks = []

    def falling(judge: Judge, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        looks.append(len(images))
        return np.full(len(images), len(looks) <= 2)  # The choice of guidance, and the start

    monkeypatch.setattr(Judge, "plausible", falling)
    said: list[str] = []
    fallen = otherwise(rewarded, tmp_path / "fallen", said, method="feedback-guidance").run(until="finetune")
    assert fallen.generator("feedback-guidance").id == fallen.generator().id and any("ended by the guard: the judge accepts 100.0 points fewer" in line for line in said)


@pytest.mark.slow
def test_dpo_learns_from_what_people_compared_and_adapters_can_be_trained(rewarded: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    said: list[str] = []
    study, plain = (otherwise(rewarded, tmp_path / name, said, method="dpo", lora_rank=2) for name in ("compared", "plain"))
    queue = study.label_panel("Ana", "compare").queue
    for _ in range(5):
        queue.answer(preferred="left")
    queue.answer(preferred="tie")
    assert {item.cell_type for item in queue.items} <= set(study.real().classes) and len(queue.items) == study.config.labels // 2
    for one in (study, plain):
        one.run(until="finetune")
    results = study.card("generators/dpo")["results"]
    assert results["pairs"] == 5 and "pairs" not in plain.card("generators/dpo")["results"] and any("learning from 5 pairs that people compared" in line for line in said)
    assert study.card("generators/dpo")["settings"]["lora_rank"] == 2 and study.generator("dpo").id != plain.generator("dpo").id


@pytest.mark.slow
def test_the_guard_ends_a_curated_study_while_it_is_led_away(rewarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(shutil.copytree(rewarded, tmp_path / "s"), say=lambda line: None)
    looks = []

    def falling(judge: Judge, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        looks.append(len(images))
        return np.full(len(images), len(looks) <= 5)  # The start, three looks of the training, one of the distillation

    monkeypatch.setattr(Judge, "plausible", falling)
    study.run(until="finetune")
    results = study.card("generators/curated")["results"]
    assert "the judge accepts 100.0 points fewer" in results["stopped"]
    assert [look["step"] for look in results["guard"]] == [0, 1, 2, 3, 4, 5] and [look["judge"] for look in results["guard"]] == [1, 1, 1, 1, 1, 0]

    train, reward, start = study.real("train"), RewardModel.load(study.folder / "rewards/round-1/model"), study.generator()
    liked = best_part(train, reward.score(train.images, train.labels), 0.25)
    tuned = finetune(start, study.pool(), np.ones(len(study.pool())), liked, "real-only", replace(study.config.finetuning(), steps=3))
    lesson, after = sample_pool(tuned, 8, 4_000_000, steps=8, guide=start, **LED_AWAY), {}
    distil(tuned, lesson, liked, guide=start, settings=DistillConfig(steps=3, watch_every=1), **LED_AWAY,
           watches=[lambda step, unet: after.update({step: {k: v.clone() for k, v in unet.state_dict().items()}}) or {}])
    kept = study.generator("curated").unet.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in after[1].items()) and not all(torch.equal(value, kept[name]) for name, value in after[2].items())


@pytest.mark.slow
def test_own_images_with_a_class_too_small(tmp_path: Path) -> None:
    "A folder per class: the small class is left out, and said so, before anything long begins."
    cells = make_smear(26, 16, seed=5, classes=["lymphocyte", "eosinophil", "basophil"])
    for i, (pixels, label) in enumerate(zip(to_uint8(cells.images), cells.labels, strict=True)):
        name = cells.classes[label]
        if name == "basophil" and i % 26:
            continue
        (tmp_path / "cells" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "cells" / name / f"{i}.png")
    said: list[str] = []
    study = Study.create(tmp_path / "s", StudyConfig(images=str(tmp_path / "cells"), size=16), say=said.append)
    study.run(until="prepare")
    assert any("left out: 'basophil' has only 1 different image" in line for line in said)
    assert "  256 labels are asked for, but only 128 images will be painted to be judged: all of them will be. Raise pool_per_class for more" in said
    assert study.real("train").classes == ["eosinophil", "lymphocyte"]



def test_settings_round_trip_and_faults(tmp_path: Path) -> None:
    config = StudyConfig(images='odd "name"', guidances=(1.25, 3.0), normalise=True)
    write_config(tmp_path / "study.toml", config)
    assert read_config(tmp_path / "study.toml") == config
    (tmp_path / "study.toml").write_text("size = ")
    with pytest.raises(ValueError, match="must be a TOML file"):
        read_config(tmp_path / "study.toml")
    with pytest.raises(ValueError, match="labels must be at least 1; got 0"):
        StudyConfig(labels=0)
    with pytest.raises(ValueError, match="rounds must be at least 1; got 0"):
        StudyConfig(rounds=0)
    with pytest.raises(ValueError, match="labels must be at least one a round, of which there are 3; got 2"):
        StudyConfig(rounds=3, labels=2)
    with pytest.raises(ValueError, match="weigh_judged must be 'verdict' or 'reward'; got 'both'"):
        StudyConfig(weigh_judged="both")
    with pytest.raises(ValueError, match="real_share must be above 0 and at most 1; got 0"):
        StudyConfig(real_share=0)
    with pytest.raises(ValueError, match="method must be one of .*'feedback-guidance'.*; got 'real-only'"):
        StudyConfig(method="real-only")


def test_no_study_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold a study\.toml"):
        Study(tmp_path)
    study = Study.create(tmp_path / "s", StudyConfig(), say=lambda line: None)
    with pytest.raises(FileNotFoundError, match="run the steps in order"):
        study.pool()
    with pytest.raises(ValueError, match="until must be one of"):
        study.run("everything")


def test_cells_round_trip(tmp_path: Path) -> None:
    cells = make_smear(2, 16, seed=1)
    save_cells(cells, tmp_path / "cells.npz")
    again = open_cells(tmp_path / "cells.npz")
    assert again.hashes == cells.hashes and again.classes == cells.classes and list(again.attributes) == list(cells.attributes)


def test_shipped_generator_opens_and_paints_its_types() -> None:
    from pathloop.diffusion import Generator

    folder = shipped_generator("smear-32")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8_000_000
    generator = Generator.from_pretrained(folder, "cpu")
    assert generator.classes == make_smear(1, 16).classes and generator.config.size == 32
    with pytest.raises(FileNotFoundError, match="smear-32"):
        shipped_generator("nothing")
