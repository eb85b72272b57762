"""What one flipped bit, one dead writer or one power cut may leave of an artifact, and who says so."""

import fcntl
import os
from pathlib import Path

import pytest

from schemas.artifact import RECORD, Artifact, Record, verify
from schemas.errors import BrokenArtifact
from schemas.storage import ABANDONED_AFTER_SECONDS, Folder
from schemas.tables import SEGMENTS


@pytest.fixture
def sealed(tmp_path: Path) -> Artifact:
    artifact = Artifact(Folder(str(tmp_path / "made")), {"stage": "Test"}, SEGMENTS, 2, "made")
    for number in range(2):
        artifact.write(number, SEGMENTS.rows([{"image_key": f"k{number}", "segments": []}]))
    artifact.seal("then", "now", {}, code="c", packages={}, summary={"loss": 0.1, "by": {1: 2}})
    return artifact


def flips(data: bytes, start: int = 0, step: int = 1) -> list[bytes]:
    """`data` with one bit of each byte from `start` on, or of every `step`-th, another."""
    return [data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :] for at in range(start, len(data), step)]


def test_no_bit_of_a_record_flips_unseen(sealed):
    good = sealed.folder.read(RECORD)
    assert Record.parse(good, "here").json().encode() == good
    for bad in flips(good):
        with pytest.raises(BrokenArtifact):
            Record.parse(bad, "here")


def test_a_broken_record_hides_no_broken_shard(sealed):
    name = sealed.shard_name(1)
    for each in (RECORD, name):
        sealed.folder.write(each, flips(sealed.folder.read(each))[40])
    record, shard = verify(sealed.folder)
    assert record.startswith(f"{sealed.folder.path(RECORD)}: the record cannot be read")
    assert shard.startswith(f"{sealed.where}/{name}:")


def test_a_flipped_bit_in_a_footer_stops_nobody(sealed):
    name = sealed.shard_name(0)
    good = sealed.folder.read(name)
    for bad in flips(good, good.rindex(b'{"sailyard":'), 3):
        sealed.folder.write(name, bad, durable=False)
        assert set(sealed.found()) in ({0, 1}, {1})
        assert verify(sealed.folder), bad


def test_a_sweep_spares_the_file_of_a_living_writer_however_old(tmp_path):
    folder = Folder(str(tmp_path))
    with folder.staged("a.txt") as path:
        path.write_bytes(b"slow")
        os.utime(path, (0, 0))
        assert (folder.abandoned(), folder.sweep()) == ([], 0)
    assert folder.read("a.txt") == b"slow"


def test_what_a_dead_writer_left_is_named_until_it_is_swept(sealed):
    left = Path(sealed.folder.path(".shard-00000.parquet.dead.tmp"))
    left.write_bytes(b"half")
    assert verify(sealed.folder) == []
    old = left.stat().st_mtime - ABANDONED_AFTER_SECONDS - 1
    os.utime(left, (old, old))
    (fault,) = verify(sealed.folder)
    assert left.name in fault and "writer" in fault
    assert sealed.folder.sweep() == 1
    assert verify(sealed.folder) == []


def test_where_a_disk_knows_no_locks_age_alone_decides(tmp_path, monkeypatch):
    def flock(handle: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = Folder(str(tmp_path))
    folder.write("a.txt", b"whole")
    for name, age in ((".b.1.tmp", 0), (".b.2.tmp", ABANDONED_AFTER_SECONDS + 1)):
        (tmp_path / name).touch()
        moment = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (moment, moment))
    assert folder.sweep() == 1
    assert sorted(os.listdir(tmp_path)) == [".b.1.tmp", "a.txt"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_power_cut_takes_no_folder_that_was_made_for_a_file(tmp_path, monkeypatch, durable):
    fsync, settled = os.fsync, set()
    monkeypatch.setattr(os, "fsync", lambda handle: (settled.add(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle)))
    Folder(str(tmp_path / "run" / "train")).write("step/state", b"1", durable=durable)
    above, within = {str(tmp_path), f"{tmp_path}/run"}, {f"{tmp_path}/run/train", f"{tmp_path}/run/train/step"}
    assert above <= settled
    assert (within <= settled) == durable
