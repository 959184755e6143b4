"Checklists: what is packaged, what is refused and in which words, verdicts and fingerprints."

import itertools
import pickle
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from pathloop.checklist import (
    ANSWERS,
    AS_IN_REFERENCES,
    Checklist,
    Criterion,
    checklist_faults,
    generic_checklist,
    load_checklist,
    packaged_checklists,
    start_checklist,
    verdict_of,
)

CRITERIA = ["cell_size", "nucleus_shape", "nc_ratio", "chromatin", "cytoplasm_colour", "granules", "inclusions"]
TYPES = {
    "segmented neutrophil",
    "band neutrophil",
    "neutrophil",
    "eosinophil",
    "basophil",
    "lymphocyte",
    "monocyte",
    "promyelocyte",
    "myelocyte",
    "metamyelocyte",
    "erythroblast",
    "platelet",
    "red cell",
}


@pytest.fixture
def raw() -> dict:
    return yaml.safe_load(files("pathloop").joinpath("checklists/peripheral-blood.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def faults_of(tmp_path: Path) -> Callable[..., list[str]]:
    "The faults that loading a changed file reports."

    def load(content: object, **options: list[str]) -> list[str]:
        path = tmp_path / "list.yaml"
        path.write_text(
            content if isinstance(content, str) else yaml.safe_dump(content, allow_unicode=True), encoding="utf-8"
        )
        with pytest.raises(ValueError) as caught:
            load_checklist(path, **options)
        return str(caught.value).splitlines()[1:]

    return load


def test_the_packaged_checklist_covers_types_and_criteria() -> None:
    assert "peripheral-blood" in packaged_checklists()
    checklist = load_checklist()
    assert checklist.criteria_names == CRITERIA and set(checklist.classes) == TYPES
    for name in checklist.classes:
        criteria = checklist.for_type(name)
        assert [criterion.name for criterion in criteria] == CRITERIA
        assert all(c.question.endswith("?") and c.expected and c.reference for c in criteria)
    assert checklist.to_frame().shape == (13, 7) and list(checklist.to_frame("monocyte").columns) == [
        "question",
        "expected",
        "reference",
    ]


def test_findings_name_what_makes_the_type() -> None:
    table = load_checklist().to_frame()
    assert (
        "filament" in table.loc["segmented neutrophil", "nucleus_shape"]
        and "band" in table.loc["band neutrophil", "nucleus_shape"]
    )
    assert "orange" in table.loc["eosinophil", "granules"] and "over the nucleus" in table.loc["basophil", "granules"]
    assert "Grey-blue" in table.loc["monocyte", "cytoplasm_colour"] and "High" in table.loc["lymphocyte", "nc_ratio"]


@pytest.mark.parametrize("answers", list(itertools.product(ANSWERS, repeat=3)))
def test_verdict_of_every_combination(answers: tuple[str, ...]) -> None:
    verdict = verdict_of(dict(zip("abc", answers, strict=True)))
    assert (verdict == "plausible") == (set(answers) == {"yes"})
    assert (verdict == "implausible") == ("no" in answers)


@pytest.mark.parametrize("answers", [{}, {"a": "Yes"}, {"a": None}, {"a": True}, {"a": "yes", "b": "maybe"}])
def test_verdict_refuses_other_answers(answers: dict) -> None:
    with pytest.raises(ValueError, match="answers must"):
        verdict_of(answers)


@pytest.mark.parametrize(
    ("asked", "meant"), [("Eosinophil", "eosinophil"), ("neutrofil", "neutrophil"), ("erytroblast", "erythroblast")]
)
def test_unknown_type_is_refused_with_a_close_match(asked: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean.*{meant}"):
        load_checklist().for_type(asked)
    with pytest.raises(ValueError, match="it has"):
        load_checklist().for_type("xyz")


def test_hash_follows_content_alone(raw: dict, tmp_path: Path) -> None:
    packaged = load_checklist()
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8")
    assert load_checklist(path) == packaged and load_checklist(path).hash == packaged.hash and len(packaged.hash) == 64
    raw["cell_types"]["monocyte"]["findings"]["granules"] += "."
    path.write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8")
    assert load_checklist(path).hash != packaged.hash
    assert replace(packaged, version="1.0.1").hash != packaged.hash


def test_frozen_and_picklable() -> None:
    checklist = load_checklist()
    with pytest.raises(FrozenInstanceError):
        checklist.version = "2.0.0"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        checklist.for_type("monocyte")[0].expected = ""  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(checklist)).hash == checklist.hash


def test_a_returned_list_is_a_copy() -> None:
    checklist = load_checklist()
    checklist.for_type("monocyte").clear()
    assert len(checklist.for_type("monocyte")) == 7


def test_all_faults_at_once(raw: dict, faults_of: Callable[..., list[str]]) -> None:
    raw["verson"] = raw.pop("version")
    raw["schema"] = 2
    del raw["cell_types"]["monocyte"]["findings"]["chromatin"]
    raw["cell_types"]["basophil"]["findings"]["granuls"] = "many"
    raw["cell_types"]["platelet"]["references"] = ["nobody"]
    raw["cell_types"]["eosinophil"]["findings"]["granules"] = ""
    faults = faults_of(raw, required_types=["blast"])
    for part in (
        "verson: unknown key, did you mean 'version'",
        "'version' is missing",
        "schema: must be 1",
        "monocyte.findings: 'chromatin' is missing",
        "granuls: unknown key, did you mean 'granules'",
        "'nobody' is not among",
        "eosinophil.findings.granules: must be text",
        "'blast' is asked for",
    ):
        assert sum(part in fault for fault in faults) == 1, part
    assert len(faults) == 8


def test_each_fault_has_its_line(tmp_path: Path) -> None:
    text = files("pathloop").joinpath("checklists/bone-marrow.yaml").read_text(encoding="utf-8").splitlines()
    at = {part: next(i for i, line in enumerate(text, start=1) if part in line) for part in ('version: "', "  basophil:", "  megakaryocyte:")}
    text[at['version: "'] - 1] = "version: 1.0"
    text[at["  basophil:"] + 2] += " # then twice"
    text.insert(at["  basophil:"] + 3, "      cell_size: again")
    text[at["  megakaryocyte:"] + 3] = '      cell_size: ""'
    (tmp_path / "x.yaml").write_text("\n".join(text), encoding="utf-8")
    found = [(fault.line, fault.where) for fault in checklist_faults(tmp_path / "x.yaml")]
    assert found == [(at['version: "'], "version"), (at["  basophil:"] + 4, "cell_types.basophil.findings"), (at["  megakaryocyte:"] + 4, "cell_types.megakaryocyte.findings.cell_size")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  granules: Are", "  rater: Are", "criteria.rater: the name of a criterion must be small letters.*none of verdict"),
        ("  granules: Are", "  Granules?: Are", "criteria.Granules\\?: the name of a criterion must be small letters"),
        ("  platelet:", "  7:", "cell_types.7: the name of a type must be text"),
        ("criteria:", "criteria: [", "line [0-9]+: file: must be valid YAML"),
    ],
)
def test_names_that_would_do_harm_later(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = files("pathloop").joinpath("checklists/peripheral-blood.yaml").read_text(encoding="utf-8")
    (tmp_path / "x.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    assert re.search(message, "\n".join(map(str, checklist_faults(tmp_path / "x.yaml"))))
    with pytest.raises(ValueError, match=message):
        load_checklist(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", ["peripheral-blood", "bone-marrow"])
def test_packaged_checklists_are_whole(name: str) -> None:
    assert checklist_faults(name) == []
    checklist = load_checklist(name)
    assert checklist.name == name and checklist.criteria_names == CRITERIA
    raw = yaml.safe_load(files("pathloop").joinpath(f"checklists/{name}.yaml").read_text(encoding="utf-8"))
    cited = {key for entry in raw["cell_types"].values() for key in entry["references"]}
    assert cited == set(raw["references"]) and all(entry["references"] for entry in raw["cell_types"].values())
    assert all(c.question.endswith("?") and c.expected and c.reference for kind in checklist.classes for c in checklist.for_type(kind))
    assert len({tuple(c.expected for c in criteria) for criteria in checklist.cell_types.values()}) == len(checklist.classes)


def test_types_of_both_tissues_read_alike() -> None:
    blood, marrow = load_checklist(), load_checklist("bone-marrow")
    assert {"blast", "plasma cell", "proerythroblast", "megakaryocyte"} <= set(marrow.classes) and len(marrow.classes) == 17
    for kind in ("myelocyte", "metamyelocyte", "band neutrophil", "segmented neutrophil", "basophil"):
        assert [c.expected for c in blood.for_type(kind)] == [c.expected for c in marrow.for_type(kind)]


def test_start_check_fill_load(tmp_path: Path) -> None:
    path = start_checklist(tmp_path / "mine.yaml", ["monocyte", "hairy cell"])
    left = checklist_faults(path)
    assert [fault.where for fault in left] == [f"cell_types.hairy cell.findings.{name}" for name in CRITERIA]
    lines = path.read_text(encoding="utf-8").splitlines()
    for fault in left:
        lines[fault.line - 1] = lines[fault.line - 1].replace("''", "as in hairy cells")
    path.write_text("\n".join(lines), encoding="utf-8")
    mine = load_checklist(path)
    assert mine.name == "mine" and mine.classes == ["monocyte", "hairy cell"]
    assert mine.for_type("monocyte") == load_checklist().for_type("monocyte")
    with pytest.raises(FileExistsError):
        start_checklist(path, ["monocyte"])
    with pytest.raises(ValueError, match="cell_types must be different names"):
        start_checklist(tmp_path / "other.yaml", [])
    with pytest.raises(ValueError, match="packaged checklist"):
        start_checklist(tmp_path / "other.yaml", ["x"], base="marrow")
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize("version", [1.0, 1, "1.0", "v1.0.0", "", None])
def test_wrong_version(raw: dict, faults_of: Callable[..., list[str]], version: object) -> None:
    raw["version"] = version
    assert [fault.split(": ", 1)[1] for fault in faults_of(raw)] == [f'version: must be text such as "1.0.0", in quotes; got {version!r}']


@pytest.mark.parametrize("content", ["", "[1, 2]", "text", "schema: 1"])
def test_not_a_checklist_at_all(content: str, faults_of: Callable[..., list[str]]) -> None:
    assert faults_of(content)


@pytest.mark.parametrize("key", ["criteria", "cell_types", "references"])
@pytest.mark.parametrize("value", [None, {}, [], "text"])
def test_empty_or_wrong_parts(raw: dict, faults_of: Callable[..., list[str]], key: str, value: object) -> None:
    raw[key] = value
    assert any(f": {key}: must be a mapping" in fault for fault in faults_of(raw))


@pytest.mark.parametrize(
    "entry",
    [None, "text", {"findings": None, "references": []}, {"findings": {}, "references": "bain"}, {"findings": {}}],
)
def test_broken_type_entries(raw: dict, faults_of: Callable[..., list[str]], entry: object) -> None:
    raw["cell_types"]["monocyte"] = entry
    assert all("cell_types.monocyte" in fault for fault in faults_of(raw))


def test_bad_yaml_and_repeated_keys(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    for content, word in (
        ("a: [1", "valid YAML"),
        ("name: a\nname: b", "line 2: file: key 'name' is given twice, first in line 1"),
        ("!!python/object:os.system {}", "valid YAML"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=word):
            load_checklist(path)
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ValueError, match="valid YAML"):
        load_checklist(path)


@pytest.mark.parametrize("name", ["peripheral_blood", "nowhere.yaml", "", "."])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match="packaged checklist"):
        load_checklist(name)


def test_generic_checklist() -> None:
    made = generic_checklist(["blast", "eosinophil"])
    assert made.classes == ["blast", "eosinophil"] and made.criteria_names == CRITERIA
    assert {criterion.expected for criterion in made.for_type("eosinophil")} == {AS_IN_REFERENCES}
    assert made.hash != generic_checklist(["eosinophil", "blast"]).hash or made.classes != ["eosinophil", "blast"]
    kept = generic_checklist(["blast", "eosinophil"], base=load_checklist())
    assert kept.for_type("eosinophil") == load_checklist().for_type("eosinophil")
    for classes in ([], [""], ["a", "a"], [1]):
        with pytest.raises(ValueError, match="classes must be different names"):
            generic_checklist(classes)  # type: ignore[arg-type]


def test_table_view_escapes_what_a_file_says() -> None:
    nasty = Criterion("x", "?", "<script>alert(1)</script>")
    shown = Checklist("<b>", "1.0.0", (Criterion("x", "?"),), {"<i>": (nasty,)})._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "<i>" not in shown
