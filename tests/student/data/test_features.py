import os
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from schemas import feature_rows, tables
from schemas.artifact import Artifact
from schemas.cache import LOCK, Cache
from schemas.codecs import Basis
from schemas.errors import BrokenArtifact, DataError
from schemas.feature_rows import PIECE
from schemas.features import FeatureSpec
from schemas.storage import Folder
from student.data.features import Column, FeatureReader, Stored, Target
from tests.student.endpoint import requests
from tests.student.stores import SPECS, Store, sealed

KEYS = [f"{number:032x}" for number in range(3)]
GRIDS = [(4, 6), (6, 4), (4, 6)]
CODECS = ["bf16", "bf16-zstd", "int8", "pca3-int8", "points9"]


def spec_of(codec: str) -> FeatureSpec:
    return FeatureSpec(teacher="t", layer="l", channels=5, grid="native", codec=codec)


@pytest.fixture
def basis(rng) -> Basis:
    axes, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    return Basis(rng.standard_normal(5).astype(np.float32), axes[:, :3].astype(np.float32))


@pytest.fixture
def maps(rng) -> list[np.ndarray]:
    return [rng.standard_normal((5, *grid)).astype(np.float32) for grid in GRIDS]


def stored(folder: Folder, spec: FeatureSpec, maps: list[np.ndarray], basis: Basis) -> FeatureReader:
    table = tables.features(spec)
    rows = [tables.feature_row(spec, key, each, basis) for key, each in zip(KEYS, maps, strict=True)]
    return FeatureReader(sealed(folder, "features/t", table, [table.rows(rows[:1]), table.rows(rows[1:])]))


@pytest.mark.parametrize("codec", CODECS)
def test_what_the_device_decodes_is_what_the_codec_says(codec, store, maps, basis):
    """The rows of one form, decoded together by torch, are those that numpy decodes one by one."""
    spec = spec_of(codec)
    reader = stored(store, spec, maps, basis)
    target = Target(Column(spec, basis))
    for (shard, row), key, map_Chw in zip([(0, 0), (1, 0), (1, 1)], KEYS, maps, strict=True):
        each = reader.read(shard, row)
        expected = spec.decode(spec.encode(map_Chw, key, basis), *map_Chw.shape[1:], basis)
        got_nC = target([each, each], each.grid)[1].numpy()
        np.testing.assert_allclose(got_nC, expected.reshape(5, -1).T, atol=1e-6)


def test_a_map_is_resized_as_the_reference_resizes_it(store, maps, basis):
    each = stored(store, spec_of("bf16"), maps, basis).read(0, 0)
    expected = F.interpolate(each.values[None].float(), size=(9, 13), mode="bilinear", align_corners=False)
    assert torch.equal(Target(Column(spec_of("bf16")))([each], (9, 13)), expected.flatten(2).transpose(1, 2))


def test_resizing_components_is_resizing_the_map_that_they_stand_for(store, maps, basis):
    spec = spec_of("pca3-int8")
    each = stored(store, spec, maps, basis).read(0, 0)
    map_1Chw = torch.from_numpy(spec.decode(spec.encode(maps[0], KEYS[0], basis), *GRIDS[0], basis))[None]
    expected = F.interpolate(map_1Chw, size=(9, 13), mode="bilinear", align_corners=False)
    torch.testing.assert_close(Target(Column(spec, basis))([each], (9, 13)), expected.flatten(2).transpose(1, 2))


def test_what_the_components_do_not_see_is_a_constant(rng, basis):
    """Of students that stay among the components, the distance to the whole map and the distance in the components differ by
    the same number, and their gradients not at all."""
    teacher_nC = torch.from_numpy(rng.standard_normal((24, 5)))
    axes_CK, mean_C = torch.from_numpy(basis.axes_CK).double(), torch.from_numpy(basis.mean_C).double()
    components_nK, share = (teacher_nC - mean_C) @ axes_CK, 3 / 5
    unseen, gradients = [], []
    for _ in range(3):
        student_nK = torch.from_numpy(rng.standard_normal((24, 3))).requires_grad_()
        whole = F.mse_loss(student_nK @ axes_CK.T + mean_C, teacher_nC)
        seen = share * F.mse_loss(student_nK, components_nK)
        unseen.append((whole - seen).item())
        gradients.append([torch.autograd.grad(loss, student_nK)[0] for loss in (whole, seen)])
    assert unseen == pytest.approx([unseen[0]] * 3)
    for whole, seen in gradients:
        torch.testing.assert_close(whole, seen, rtol=1e-5, atol=1e-7)
    assert Target(Column(spec_of("pca3-int8"), basis), "components").share == share


def test_the_student_is_read_at_the_places_that_are_stored(store, rng, maps, basis):
    spec = spec_of("points9")
    each = stored(store, spec, maps, basis).read(0, 0)
    student_1hwK = torch.from_numpy(rng.standard_normal((1, *GRIDS[0], 2)))
    read_1nK = Target(Column(spec)).places(student_1hwK, [each])
    assert torch.equal(read_1nK[0], student_1hwK.flatten(1, 2)[0, each.places_n])
    with pytest.raises(DataError, match="features of t: places of a grid of 4 x 6, the student's is 6 x 4"):
        Target(Column(spec)).places(student_1hwK.transpose(1, 2), [each])


def test_components_without_their_basis_are_refused():
    with pytest.raises(DataError, match="features of t: pca3-int8 without its basis"):
        Target(Column(spec_of("pca3-int8")))


def test_an_empty_shard_has_no_features(tmp_path):
    table = tables.features(SPECS["sam2"])
    reader = FeatureReader(sealed(Folder(str(tmp_path)), "features/sam2", table, [table.rows([])]))
    assert reader.keys(0).to_pylist() == []


def test_a_table_without_features_is_refused(small_store: Store):
    with pytest.raises(DataError, match="no teacher features"):
        FeatureReader(small_store.images)


def test_a_row_is_memory_of_its_own(store, maps, basis):
    reader = stored(store, spec_of("bf16"), maps, basis)
    first = reader.read(0, 0)
    first.values.zero_()
    assert reader.read(0, 0).values.any()


def test_rows_of_many_small_maps_are_found(store, rng):
    """Their keys and checksums come to more than one piece of the file."""
    spec = FeatureSpec(teacher="t", layer="l", channels=1, grid=(1, 1))
    table, keys = tables.features(spec), [f"{number:032x}" for number in range(1500)]
    rows = [tables.feature_row(spec, key, rng.standard_normal((1, 1, 1), np.float32)) for key in keys]
    reader = FeatureReader(sealed(store, "features/t", table, [table.rows(rows)]))
    assert reader.keys(0).to_pylist() == keys
    for number in (0, 1, 777, 1499):
        assert reader.read(0, number).values.view(torch.uint8).numpy().tobytes() == rows[number]["feature"]


def test_failed_rows_are_not_there(store, maps, basis):
    spec = spec_of("bf16")
    table = tables.features(spec)
    failed = [{"image_key": key, "error": "data: broken"} for key in KEYS]
    made = tables.feature_row(spec, KEYS[1], maps[1])
    shards = [table.rows(failed), table.rows([failed[0], made, failed[2]])]
    reader = FeatureReader(sealed(store, "features/t", table, shards))
    there = [[reader.is_present(shard, row) for row in range(3)] for shard in range(2)]
    assert there == [[False] * 3, [False, True, False]]
    assert np.array_equal(reader.read(1, 1).values.float(), spec.decode(made["feature"], *GRIDS[1]))
    with pytest.raises(BrokenArtifact, match=f"features/t: shard 0, row 2 .picture {KEYS[2]}.: holds no feature"):
        reader.read(0, 2)


def test_a_store_may_have_more_shards_than_a_reader_maps_at_once(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(feature_rows, "MAPPED_AT_ONCE", 8)
    spec = FeatureSpec(teacher="t", layer="l", channels=2, grid=(2, 2))
    rows = [tables.feature_row(spec, KEYS[0], rng.standard_normal((2, 2, 2))) for _ in range(40)]
    table = tables.features(spec)
    reader = FeatureReader(sealed(Folder(str(tmp_path)), "features/t", table, [table.rows([row]) for row in rows]))
    assert len(open_files(tmp_path)) == 0
    for _ in range(2):
        for shard, row in enumerate(rows):
            assert reader.read(shard, 0).values.view(torch.uint8).numpy().tobytes() == row["feature"]
    assert 0 < len(open_files(tmp_path)) <= 8


def open_files(below: Path) -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [path for link in links if os.path.lexists(link) and (path := os.readlink(link)).startswith(str(below))]


def spoiled(folder: Folder, name: str, old: bytes) -> None:
    """One bit of `old` in the file is turned."""
    data = bytearray(folder.read(name))
    data[data.index(old) + len(old) // 2] ^= 1
    folder.write(name, bytes(data))


def test_a_spoiled_row_is_named(store, maps, basis):
    spec = spec_of("int8")
    stored(store, spec, maps, basis)
    spoiled(store, "features/t/shard-00001.arrow", spec.encode(maps[2], KEYS[2]))
    reader = FeatureReader(Artifact.sealed(store.child("features/t")))
    assert reader.read(1, 0).grid == GRIDS[1]
    with pytest.raises(BrokenArtifact, match=f"shard 1, row 1 .picture {KEYS[2]}.: its bytes do not give its checksum"):
        reader.read(1, 1)


def test_a_cut_shard_and_a_lost_one_are_named(store, maps, basis):
    reader = stored(store, spec_of("bf16"), maps, basis)
    artifact = Artifact.sealed(store.child("features/t"))
    whole = artifact.folder.read(artifact.shard_name(1))
    artifact.folder.write(artifact.shard_name(1), whole[: len(whole) // 2])
    with pytest.raises(BrokenArtifact, match="features/t: shard 1 cannot be read"):
        FeatureReader(artifact)
    artifact.folder.remove(artifact.shard_name(1))
    with pytest.raises(BrokenArtifact, match="features/t: shard 1 cannot be read: it is not there"):
        FeatureReader(artifact)
    with pytest.raises(BrokenArtifact, match="shard 1 cannot be read: it is not there"):
        reader.read(1, 0)


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_also_of_rows_seen_before(tmp_path, maps, basis):
    store = Folder(str(tmp_path))
    reader = stored(store, spec_of("bf16"), maps, basis)
    artifact = Artifact.sealed(store.child("features/t"))
    reader.read(1, 1)
    os.truncate(artifact.folder.path(artifact.shard_name(1)), 600)
    with pytest.raises(BrokenArtifact, match="shard 1, row 1 .*: its file ends before it"):
        reader.read(1, 1)
    os.truncate(artifact.folder.path(artifact.shard_name(0)), 0)
    with pytest.raises(BrokenArtifact, match="shard 0, row 0 .*: its file ends before it"):
        reader.read(0, 0)


@pytest.fixture
def remote(s3_bucket, rng) -> Folder:
    """Two shards of eight rows of 128 KiB."""
    folder = Folder(f"{s3_bucket}/{uuid.uuid4().hex}")
    keys = [[f"{shard:016x}{row:016x}" for row in range(8)] for shard in range(2)]
    table = tables.features(WIDE)
    maps = iter(rng.standard_normal((16, 16, 64, 64), np.float32))
    rows = [table.rows([tables.feature_row(WIDE, key, next(maps)) for key in shard]) for shard in keys]
    sealed(folder, "features/wide", table, rows)
    return folder.child("features/wide")


WIDE = FeatureSpec(teacher="wide", layer="l", channels=16, grid=(64, 64))
ROW_BYTES = 16 * 64 * 64 * 2
PLACES = [(shard, row) for shard in range(2) for row in range(8)]


def all_rows(reader: FeatureReader) -> list[torch.Tensor]:
    return [reader.read(*place).values for place in PLACES]


def test_a_remote_row_is_one_request_of_its_bytes(remote):
    with requests(remote) as sent:
        reader = FeatureReader(Artifact.sealed(remote))
    assert sum(sent) < 2 * 3 * PIECE, "opening a shard takes its ends"
    with requests(remote) as sent:
        found = reader.read(1, 5)
    assert sent == [ROW_BYTES]
    rows = Artifact.sealed(remote).read(1)["feature"]
    assert found.values.view(torch.uint8).numpy().tobytes() == rows[5].as_py()


def test_the_second_epoch_comes_from_the_cache(remote, tmp_path):
    artifact = Artifact.sealed(remote)
    reader = FeatureReader(artifact, Cache(tmp_path / "cache", 20 * ROW_BYTES))
    first = all_rows(reader)
    with requests(remote) as sent:
        again = all_rows(reader)
        other = all_rows(FeatureReader(artifact, Cache(tmp_path / "cache", 20 * ROW_BYTES)))
    assert ROW_BYTES not in sent
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, other, strict=True))


def test_a_cache_that_is_too_small_stays_small(remote, tmp_path):
    reader = FeatureReader(Artifact.sealed(remote), Cache(tmp_path / "cache", 5 * ROW_BYTES))
    first, again = all_rows(reader), all_rows(reader)
    assert all(map(torch.equal, first, again))
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != LOCK]
    assert 4 * ROW_BYTES <= sum(path.stat().st_size for path in kept) <= 5 * ROW_BYTES


def test_what_is_spoiled_in_the_cache_is_fetched_again(remote, tmp_path):
    reader = FeatureReader(Artifact.sealed(remote), Cache(tmp_path / "cache", 20 * ROW_BYTES))
    first = reader.read(0, 0).values
    (path,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != LOCK]
    path.write_bytes(bytes(ROW_BYTES))
    with requests(remote) as sent:
        assert torch.equal(reader.read(0, 0).values, first)
        assert torch.equal(reader.read(0, 0).values, first)
    assert sent == [ROW_BYTES]


def test_moving_takes_every_part_along():
    each = Stored((1, 2), torch.zeros(3, 2), torch.ones(3), torch.arange(2)).to("meta")
    assert {part.device.type for part in (each.values, each.scale_K, each.places_n)} == {"meta"}
