import json
import os

import numpy as np
import pyarrow as pa
import pytest

from schemas import tables
from schemas.artifact import RECORD, Artifact, Record, damaged, read_footer, verify
from schemas.errors import BrokenArtifact
from schemas.features import FeatureSpec
from schemas.regions import Rle, Segment
from schemas.storage import Folder
from schemas.tables import SEGMENTS, without

SPEC = FeatureSpec(teacher="t", layer="l", channels=2, grid=(2, 2))
SEGMENT = Segment(1, "cup", True, False, 1.0, "instances", Rle.of(np.eye(5, dtype=bool)))
ROWS = {
    "images": [
        {"image_key": k, "width": 1, "height": 2, "format": "PNG", "bytes": b"x" * 99, "sha256": k, "aliases": [k]}
        for k in "ab"
    ],
    "features": [{"image_key": "a", "feature": bytes(16)}, {"image_key": "b", "error": "data: bad"}],
    "segments": [{"image_key": "a", "segments": [SEGMENT]}, {"image_key": "b", "segments": []}],
}
TABLES = {"images": tables.IMAGES, "features": tables.features(SPEC), "segments": tables.SEGMENTS}
IDENTITY = {"stage": "Test", "config": {"size": 1}}


def make(folder: Folder, kind: str = "segments", *, shards: int = 3, seal: bool = True, identity: dict = IDENTITY) -> Artifact:
    artifact = Artifact(folder.child(kind), identity, TABLES[kind], shards)
    for number in range(shards):
        artifact.write(number, TABLES[kind].rows(ROWS[kind]))
    if seal:
        artifact.seal("then", "now", {}, code="c", packages={})
    return artifact


@pytest.mark.parametrize("kind", TABLES)
def test_written_sealed_and_read_back(store: Folder, kind: str):
    made = make(store, kind)
    artifact = Artifact.sealed(store.child(kind))
    assert artifact.fingerprint == made.fingerprint
    assert artifact.shards == 3
    assert artifact.read(1).equals(TABLES[kind].rows(ROWS[kind]))
    assert verify(artifact.folder) == []


@pytest.mark.parametrize("kind", TABLES)
def test_the_same_rows_give_the_same_bytes(tmp_path, kind: str):
    one, two = (make(Folder(str(tmp_path / place)), kind) for place in "ab")
    for number in range(3):
        assert one.folder.read(one.shard_name(number)) == two.folder.read(two.shard_name(number))


def test_failed_rows_are_counted(store: Folder):
    record = make(store, "features").record()
    assert record is not None
    assert (record.rows, record.failed) == (6, 3)


def test_what_was_left_out_is_counted_in_the_footers_and_in_the_record(store: Folder):
    artifact = Artifact(store.child("segments"), {"stage": "S"}, SEGMENTS, 2)
    rows = SEGMENTS.rows([{"image_key": "a", "segments": []}])
    artifact.write(0, without(rows, {"small": 3, "crowds": 0}))
    artifact.write(1, without(rows, {"small": 4, "crowds": 1}))
    assert artifact.found()[0].left_out == {"small": 3}
    assert artifact.read(0).equals(rows)
    assert artifact.seal("then", "now", {}, code="", packages={}).left_out == {"small": 7, "crowds": 1}


def test_a_missing_shard_cannot_be_sealed(store: Folder):
    artifact = make(store, seal=False)
    artifact.folder.remove(artifact.shard_name(1))
    assert sorted(artifact.found()) == [0, 2]
    with pytest.raises(BrokenArtifact, match="1 of 3 shards are missing"):
        artifact.seal("then", "now", {}, code="c", packages={})


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("keep", [0, 1, 200, -1])
def test_a_torn_shard_does_not_count(store: Folder, kind: str, keep: int):
    artifact = make(store, kind, seal=False)
    name = artifact.shard_name(2)
    artifact.folder.write(name, artifact.folder.read(name)[:keep])
    assert sorted(artifact.found()) == [0, 1]


def test_a_shard_under_another_number_does_not_count(store: Folder):
    artifact = make(store, seal=False)
    artifact.folder.write(artifact.shard_name(2), artifact.folder.read(artifact.shard_name(0)))
    assert sorted(artifact.found()) == [0, 1]


@pytest.mark.parametrize("kind", TABLES)
def test_verify_names_flipped_bits_missing_and_unknown_files(store: Folder, kind: str):
    artifact = make(store, kind)
    names = [artifact.shard_name(number) for number in range(3)]
    data = bytearray(artifact.folder.read(names[0]))
    data[len(data) // 3] ^= 1
    artifact.folder.write(names[0], bytes(data))
    artifact.folder.remove(names[1])
    artifact.folder.write("stray.txt", b"?")
    faults = verify(artifact.folder)
    assert len(faults) == 3
    assert names[0] in faults[0] and "digest" in faults[0]
    assert names[1] in faults[1] and "missing" in faults[1]
    assert "stray.txt" in faults[2]


def test_every_bit_of_a_shard_is_under_its_digest(tmp_path):
    artifact = make(Folder(str(tmp_path)), "features", shards=1)
    name = artifact.shard_name(0)
    good = artifact.folder.read(name)
    for at in range(0, len(good), 7):
        artifact.folder.write(name, good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        assert verify(artifact.folder), f"a flip at byte {at} of {len(good)} went unseen"


def test_shards_of_another_identity_do_not_count(store: Folder):
    make(store)
    changed = Artifact(store.child("segments"), {"stage": "Test", "config": {"size": 2}}, tables.SEGMENTS, 3)
    assert changed.found() == {}


@pytest.mark.parametrize("kind", TABLES)
def test_a_half_made_artifact_names_shards_that_would_count_and_are_damaged(store: Folder, kind: str):
    artifact = make(store, kind, seal=False)
    names = [artifact.shard_name(number) for number in range(3)]
    artifact.folder.remove(names[2])
    assert damaged(artifact.folder) == []
    data = bytearray(artifact.folder.read(names[1]))
    data[len(data) // 3] ^= 1
    artifact.folder.write(names[1], bytes(data))
    artifact.folder.write(names[2], b"torn")
    (fault,) = damaged(artifact.folder)
    assert names[1] in fault and "digest" in fault


def test_sealing_removes_shards_of_an_older_and_longer_layout(store: Folder):
    make(store, shards=5, seal=False)
    artifact = make(store, shards=2)
    assert set(artifact.folder.names()) == {"shard-00000.parquet", "shard-00001.parquet", RECORD}


def test_a_footer_names_no_host_time_or_path(tmp_path):
    artifact = make(Folder(str(tmp_path)))
    name = artifact.shard_name(0)
    footer = read_footer(artifact.folder, name, artifact.folder.size(name))
    assert footer is not None
    counts = {"rows", "failed", "left_out", "bytes"}
    assert set(footer) == counts | {"sailyard", "shard", "fingerprint", "identity", "digest", "name"}
    assert str(tmp_path).encode() not in artifact.folder.read(name)
    assert str(tmp_path) not in json.dumps(footer)


def test_plain_files_are_listed_with_digests(store: Folder):
    artifact = Artifact(store.child("files"), IDENTITY)
    artifact.folder.write("a/b.txt", b"hello")
    artifact.folder.write("c.txt", b"world")
    record = artifact.seal("then", "now", {}, code="c", packages={})
    assert [part.name for part in record.parts] == ["a/b.txt", "c.txt"]
    assert verify(artifact.folder) == []
    artifact.folder.write("c.txt", b"wor1d")
    assert len(verify(artifact.folder)) == 1


def test_what_a_record_lists_is_on_the_disk_before_it(tmp_path, monkeypatch):
    def settle(handle: int) -> None:
        if not (tmp_path / RECORD).exists():
            settled.add(os.fstat(handle).st_ino)
        fsync(handle)

    settled, fsync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", settle)
    artifact = Artifact(Folder(str(tmp_path)), IDENTITY)
    for name in ("a/b/c.txt", "d.txt"):
        artifact.folder.write(name, b"hello", durable=False)
    assert settled == set()
    artifact.seal("then", "now", {}, code="c", packages={})
    assert {(tmp_path / name).stat().st_ino for name in ("a/b/c.txt", "a/b", "a", "d.txt", "")} < settled
    assert verify(artifact.folder) == []


def test_a_record_that_is_no_json_is_broken(store: Folder):
    store.write("x/record.json", b"{")
    with pytest.raises(BrokenArtifact, match="cannot be read"):
        Artifact.sealed(store.child("x"))
    with pytest.raises(BrokenArtifact, match="no complete artifact"):
        Artifact.sealed(store.child("y"))
    assert isinstance(Record.parse(make(store).folder.read(RECORD), "here"), Record)


def test_rows_must_fit_the_schema(tmp_path):
    artifact = Artifact(Folder(str(tmp_path)), IDENTITY, tables.SEGMENTS, 1)
    with pytest.raises((ValueError, KeyError, pa.ArrowInvalid)):
        artifact.write(0, pa.table({"image_key": ["a"]}))
