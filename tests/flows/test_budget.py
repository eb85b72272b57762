"""Codecs chosen by certificates, on a small real pool; and a column that is added to an old pool."""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.budget import as_json, as_table, draw_up, needed, parse_bytes
from flows.config import Project
from flows.distill import start
from flows.graph import artifacts, steps_of
from schemas.config import override, parse, read_toml
from schemas.errors import ConfigError, DataError, StageFailed, StaleArtifact
from schemas.storage import Folder
from stages.certificate import FILE as CERTIFICATE
from stages.certificate import read_certificate, worst_cosine
from stages.passport import FILE
from student.training import checkpoint
from tests.flows.conftest import MICRO, QUICKSTART

SETS = [
    'certificate.ladder=["bf16", "int8", "pca8-int8", "points100"]',
    "certificate.pictures=2",
    "certificate.basis_pictures=4",
    'features.mask2former.codec="pca2-int8"',
    "features.mask2former.basis_pictures=4",
]


def project_of(config: Path, *sets: str) -> Project:
    return parse(Project, override(read_toml(config), [*SETS, *sets]), str(config))


@pytest.fixture(scope="module")
def config(prefect_server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose certificates are made, what they are made from, and the passports; no features are."""
    folder = tmp_path_factory.mktemp("budget")
    config = folder / "micro.toml"
    config.write_text(MICRO.format(quickstart=QUICKSTART, workspace=folder / "runs"))
    project = project_of(config)
    start(project, [*needed(project), "passport"], None)
    return config


def files(config: Path) -> dict[str, int]:
    root = config.parent / "runs"
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_a_budget_needs_no_features(config):
    assert not [name for name in files(config) if name.startswith("features/")]


def test_the_choice_fits_and_loses_least(config):
    roomy = draw_up(project_of(config), 10**9)
    best = {offer.column: offer for offer in roomy.chosen}
    for offer in roomy.offers:
        assert (best[offer.column].loss, best[offer.column].bytes) <= (offer.loss, offer.bytes)
    assert as_json(roomy)["chosen"] == {"sam2": "bf16", "mask2former": "bf16"}
    # 8 pictures of 128 x 128: 8 x 8 cells of 32 channels for one teacher, 32 x 32 of 32 for the other
    assert as_json(roomy)["total_bytes"] == 8 * (8 * 8 + 32 * 32) * 32 * 2


def test_a_tight_budget_goes_down_the_ladder_where_it_costs_least(config):
    tight = as_json(draw_up(project_of(config), 8 * 32 * 32 * 32 + 8 * 8 * 8 * 32 * 2 + 8 * 32 * 4))
    assert tight["chosen"] == {"sam2": "bf16", "mask2former": "int8"}
    assert tight["total_bytes"] <= tight["max_bytes"]


def test_what_fits_nothing_is_refused_with_what_it_would_take(config):
    with pytest.raises(DataError, match=r"no choice of codecs fits 1000 B: the smallest take .* for 8 pictures"):
        draw_up(project_of(config), 1000)


def test_the_table_can_be_pasted_into_the_config(config):
    table = as_table(draw_up(project_of(config), 10**9))
    assert '[features.mask2former]\ncodec = "bf16"' in table


def rows_of(config: Path, column: str) -> dict[str, dict[str, float]]:
    found = artifacts(steps_of(project_of(config)), Folder(str(config.parent / "runs")))
    return {row["codec"]: row for row in read_certificate(found[f"certificate/{column}"])["codecs"]}


def test_what_training_refuses_is_marked_and_never_chosen(config):
    rows, tight = rows_of(config, "mask2former"), 8 * 8 * 8 * 32 * 2 + 8 * (32 * 32 * 8 + 4 * 8)
    cheap = as_json(draw_up(project_of(config, "train.min_gradient_cosine=-1"), tight))["chosen"]["mask2former"]
    assert worst_cosine(rows[cheap]) < worst_cosine(rows["int8"])
    least = (worst_cosine(rows[cheap]) + worst_cosine(rows["int8"])) / 2
    refused = project_of(config, f"train.min_gradient_cosine={least}")
    with pytest.raises(DataError, match=r"no choice of codecs fits .*: the smallest take .*lower train.min_gradient_cosine"):
        draw_up(refused, tight)
    drawn = draw_up(refused, 10**9)
    said = {offer["codec"]: offer["taken"] for offer in as_json(drawn)["offers"] if offer["column"] == "mask2former"}
    assert said == {codec: worst_cosine(row) >= least for codec, row in rows.items()}
    lines = [line.split() for line in as_table(drawn).splitlines() if " mask2former " in line]
    assert {line[2] for line in lines if line[0] == "x"} == {codec for codec, may in said.items() if not may}
    assert f"x: training refuses less than {least}" in as_table(drawn)


def copied(config: Path, folder: Path) -> str:
    """A copy of the workspace, to be spoilt, as an override."""
    shutil.copytree(config.parent / "runs", folder / "runs")
    return f'workspace="{folder / "runs"}"'


def test_where_training_takes_no_codec_of_a_column_that_is_said(config, tmp_path):
    own = copied(config, tmp_path)
    file = tmp_path / "runs" / "certificate" / "sam2" / CERTIFICATE
    said = json.loads(file.read_text())
    for row in said["codecs"]:
        row["late_gradient_cosine"] = {"int8": 0.75}.get(row["codec"], 0.5)
    file.write_text(json.dumps(said))
    with pytest.raises(
        DataError, match=r"features.sam2: training takes none of its codecs: the best, int8, .*0.7500, less than 0.99"
    ):
        draw_up(project_of(config, own), 10**9)


def test_no_codec_is_chosen_where_rows_are_not_the_teacher_s_maps(config, tmp_path):
    own = copied(config, tmp_path)
    file = tmp_path / "runs" / "certificate" / "sam2" / CERTIFICATE
    said = json.loads(file.read_text())
    next(row for row in said["codecs"] if row["codec"] == "bf16")["relative_error"] = 0.3
    file.write_text(json.dumps(said))
    with pytest.raises(StageFailed, match=r"features.sam2: as bf16 its rows are off the teacher's maps by 30.0%"):
        draw_up(project_of(config, own), 10**9)


def test_components_are_certified_with_the_basis_that_the_column_has(config):
    """Those of another codec are not: there is no such basis yet, and who chooses them is told."""
    project = project_of(config, "train.min_gradient_cosine=-1")
    found = artifacts(steps_of(project), Folder(project.workspace))
    bases = read_certificate(found["certificate/mask2former"])["bases"]
    assert bases == {"pca2-int8": found["basis/mask2former"].reference()}
    drawn = draw_up(project, 10**9)
    (again,) = [offer for offer in drawn.offers if offer.column == "mask2former" and offer.again]
    assert 'codec = "pca8-int8"  # then --rebuild certificate/mask2former' in as_table(replace(drawn, chosen=[again]))


def test_training_is_not_begun_on_a_column_whose_certificate_is_low(config, tmp_path):
    cosine = worst_cosine(rows_of(config, "mask2former")["pca2-int8"])
    least = (cosine + 1) / 2
    project = project_of(config, copied(config, tmp_path), f"train.min_gradient_cosine={least}")
    with pytest.raises(StageFailed, match=f"features.mask2former: pca2-int8 turns .*: cosine {cosine:.4f}, less than {least}"):
        start(project, ["features", "train"], None)
    assert (tmp_path / "runs" / "features" / "mask2former" / "record.json").exists()
    assert checkpoint.steps(Folder(project.workspace).child("train")) == []


def test_a_column_added_to_an_old_pool_writes_its_own_bytes_and_no_others(config):
    before = files(config)
    added = ['features.coarse.teacher="sam2"', "features.coarse.grid=[4, 4]", 'features.coarse.codec="int8"']
    start(project_of(config, *added), ["features/coarse"], None)
    after = files(config)
    assert {name: after[name] for name in before} == before
    new = after.keys() - before.keys()
    assert new
    assert all(name.startswith("features/coarse/") for name in new)
    assert sum((config.parent / "runs" / name).stat().st_size for name in new if "shard" in name) < 8 * 4 * 4 * 32 + 16384


def test_the_certificate_is_a_table_on_the_prefect_pages(config):
    with get_client(sync_client=True) as client:
        (shown, *_) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["micro-step-certificate-mask2former-codecs"]))
        )
    assert {row["codec"] for row in json.loads(shown.data)} == {"pca2-int8", "bf16", "int8", "pca8-int8", "points100"}


def test_and_a_plot_which_stands_alone(config):
    """A dot for each codec."""
    with get_client(sync_client=True) as client:
        (shown, *_) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["micro-step-certificate-mask2former-plot"]))
        )
    kind, _, data = str(shown.data).partition(";base64,")
    assert (shown.type, kind) == ("image", "data:image/svg+xml")
    drawn = ElementTree.fromstring(base64.b64decode(data))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert len([part for part in drawn.iter() if part.get("class") == "dot"]) == 5
    assert "int8" in {part.text for part in drawn.iter()}


def test_a_teacher_whose_features_have_moved_is_stopped_before_it_mixes_them(config):
    """The passport says other numbers than the teacher gives today, as after an upgrade that moved them."""
    passport = config.parent / "runs" / "passport" / "sam2" / FILE
    said = json.loads(passport.read_text())
    said["probes"][0]["mean"].reverse()
    passport.write_text(json.dumps(said, separators=(",", ":")))
    added = ['features.late.teacher="sam2"', "features.late.grid=[2, 2]"]
    with pytest.raises(StaleArtifact, match="moved"):
        start(project_of(config, *added), ["features/late"], None)


def test_a_passport_is_not_made_anew_over_features_that_it_did_not_see(config):
    added = ['features.coarse.teacher="sam2"', "features.coarse.grid=[4, 4]", 'features.coarse.codec="int8"']
    with pytest.raises(ConfigError, match=r"--rebuild passport/sam2: it would vouch for features/coarse.*Add --rebuild"):
        start(project_of(config, *added), ["passport/sam2"], ["passport/sam2"])


def test_a_codec_of_the_ladder_needs_no_other_certificate(config):
    before, after = (
        artifacts(steps_of(project_of(config, *sets)), Folder(str(config.parent / "runs")))["certificate/sam2"].fingerprint
        for sets in ([], ['features.sam2.codec="int8"', "features.sam2.seed=5", "loss.distillation.sam2.weight=0.25"])
    )
    assert before == after


def test_a_column_on_another_grid_is_certified_without_points(config):
    fixed = project_of(config, "features.sam2.grid=[4, 4]", "certificate.pictures=1")
    (step,) = [step for step in steps_of(fixed) if step.name == "certificate/sam2"]
    assert step.stage._codecs() == ["bf16", "int8", "pca8-int8"]


@pytest.mark.parametrize(
    ("text", "count"), [("500GB", 500 * 10**9), ("4 MiB", 4 << 20), ("1e12", 10**12), ("1.5tb", 1500 * 10**9), ("7", 7)]
)
def test_numbers_of_bytes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-3GB", "1.2.3GB"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ConfigError, match="is no number of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("sets", "fault"),
    [
        (['features.sam2.codec="points9"', "features.sam2.grid=[8, 8]"], "points9 are places of the student's grid"),
        (['features.eyes.teacher="sam2"'], "features.eyes has grid = .student., but no loss.distillation.eyes"),
        (['features.eyes.grid="native"'], "features.eyes.teacher names 'eyes', there is only"),
        (['features.sam2.codec="pca64-int8"'], "more than the teacher has channels"),
        (['features.sam2.codec="jpeg"'], "features.sam2.codec"),
    ],
)
def test_columns_that_mean_nothing_are_refused(config, sets, fault):
    with pytest.raises(ConfigError, match=fault):
        project_of(config, *sets)
