"""The pool of a folder of pictures, most of them nasty, through real Beam pipelines."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.artifact import Artifact, verify
from schemas.errors import ConfigError, DataError, SailyardError, StageFailed
from schemas.pictures import decode, image_key
from schemas.storage import Folder
from schemas.tables import IMAGES
from stages.base import Resources
from stages.pool import PoolStage, shard_of
from stages.sources.config import ImageFolder

SHARDS = 4
LENIENT = Resources(max_error_rate=1.0)


def picture(rng: np.random.Generator, width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def made(folder: Folder, images: Path, resources: Resources = LENIENT, **fields: Any) -> tuple[Artifact, Any]:
    """The pool of the pictures below `images`, and what the stage said."""
    stage = PoolStage(images=(ImageFolder(path=str(images)),), shards=SHARDS, **fields)
    output = Artifact(folder, {"config": stage.identity(), "outside": stage.outside()}, stage.table(), SHARDS, "images")
    return output, stage.run({}, output, resources, lambda *_, **__: None)


def rows(output: Artifact) -> dict[str, dict[str, Any]]:
    """name -> row, for every name of every row."""
    return {alias: row for table in output.iterate() for row in table.to_pylist() for alias in row["aliases"]}


def shard_bytes(output: Artifact) -> list[bytes]:
    return [output.folder.read(output.shard_name(number)) for number in range(SHARDS)]


@pytest.fixture
def twelve(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        picture(rng).save(folder / f"{number:02}.png")
    picture(np.random.default_rng(0)).save(folder / "again.bmp")
    return folder


@pytest.fixture
def nasty(tmp_path: Path, rng: np.random.Generator) -> Path:
    """One file of each kind that a folder of photographs from everywhere may hold."""
    folder = tmp_path / "nasty"
    (folder / "sub").mkdir(parents=True)
    photo = picture(rng, 64, 48)
    photo.save(folder / "photo.png")
    photo.save(folder / "sub" / "copy.bmp")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(folder / "turned.png", exif=turned)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.quantize().save(folder / "palette.png")
    picture(rng).save(folder / "animated.gif", save_all=True, append_images=[picture(rng)])
    Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.uint16)).save(folder / "deep.png")
    photo.save(os.path.join(os.fsencode(folder), b"caf\xe9.jpg").decode("utf-8", "surrogateescape"))
    picture(rng, 200, 100).save(folder / "bomb.png")
    stream = io.BytesIO()
    photo.save(stream, "JPEG")
    (folder / "truncated.jpg").write_bytes(stream.getvalue()[:-1000])
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"rubbish" * 20)
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "empty.jpg").touch()
    (folder / "empty too.jpg").touch()
    return folder


def test_every_nasty_picture_works_or_keeps_its_place(tmp_path: Path, nasty: Path):
    output, outcome = made(Folder(f"{tmp_path}/images"), nasty, max_pixels=10_000)
    found = rows(output)
    bad = {
        "bomb.png": "200 x 100 has more than 10000 pixels",
        "truncated.jpg": "cannot be decoded",
        "corrupt.png": "cannot be decoded",
        "page.jpg": "not a picture",
        "empty.jpg": "the file is empty",
        "empty too.jpg": "the file is empty",
    }
    good = {"photo.png", "sub/copy.bmp", "turned.png", "cmyk.jpg", "palette.png", "animated.gif", "deep.png", "caf\\xe9.jpg"}
    assert found.keys() == good | bad.keys()
    for name, said in bad.items():
        row = found[name]
        assert row["error"].startswith(f"data: {name}: ") and said in row["error"]
        assert (row["width"], row["height"], row["bytes"], row["format"]) == (0, 0, b"", "")
        assert row["image_key"].startswith("x")
    for name in good:
        pixels_HWC = decode(found[name]["bytes"])
        assert found[name]["error"] is None
        assert found[name]["image_key"] == image_key(pixels_HWC)
        assert pixels_HWC.shape == (found[name]["height"], found[name]["width"], 3)
    assert outcome.summary["unreadable"] == len(bad) == len(outcome.failures)


def test_same_pixels_are_one_row_and_another_turn_is_another(tmp_path: Path, nasty: Path):
    output, outcome = made(Folder(f"{tmp_path}/images"), nasty)
    found = rows(output)
    assert found["photo.png"]["aliases"] == ["photo.png", "sub/copy.bmp"]
    assert found["photo.png"]["bytes"] == (nasty / "photo.png").read_bytes()
    assert found["turned.png"]["image_key"] != found["photo.png"]["image_key"]
    assert (found["turned.png"]["width"], found["turned.png"]["height"]) == (48, 64)
    assert outcome.summary["duplicates"] == 1


def test_more_failures_than_allowed_fail_the_stage_after_all_is_written(tmp_path: Path, nasty: Path):
    folder = Folder(f"{tmp_path}/images")
    with pytest.raises(StageFailed, match="5 of 13 rows failed"):
        made(folder, nasty, Resources(max_error_rate=0.1))
    output, outcome = made(folder, nasty)
    assert len(output.found()) == SHARDS
    assert len(outcome.failures) == 5


def test_rows_lie_in_the_shard_and_order_of_their_keys(tmp_path: Path, twelve: Path):
    output, _ = made(Folder(f"{tmp_path}/images"), twelve)
    for number, table in enumerate(output.iterate()):
        keys = table.column("image_key").to_pylist()
        assert keys == sorted(keys)
        assert {shard_of(key, SHARDS) for key in keys} <= {number}
    assert sum(len(table) for table in output.iterate()) == 12
    output.seal("", "", {}, code="", packages={})
    assert verify(output.folder) == []


def test_every_shard_exists_even_without_rows(tmp_path: Path, rng: np.random.Generator):
    (tmp_path / "one").mkdir()
    picture(rng).save(tmp_path / "one" / "a.png")
    output, _ = made(Folder(f"{tmp_path}/images"), tmp_path / "one")
    assert sorted(len(table) for table in output.iterate()) == [0, 0, 0, 1]


def test_the_bytes_do_not_depend_on_place_or_workers(tmp_path: Path, twelve: Path):
    moved = tmp_path / "elsewhere"
    one, _ = made(Folder(f"{tmp_path}/one"), twelve)
    twelve.rename(moved)
    threads = Resources(beam_options=("--direct_num_workers=2", "--direct_running_mode=multi_threading"))
    two, _ = made(Folder(f"{tmp_path}/two"), moved, threads)
    assert one.fingerprint == two.fingerprint
    assert shard_bytes(one) == shard_bytes(two)


@pytest.mark.slow
def test_the_bytes_are_the_same_from_many_processes(tmp_path: Path, twelve: Path):
    one, _ = made(Folder(f"{tmp_path}/one"), twelve)
    processes = Resources(beam_options=("--direct_num_workers=2", "--direct_running_mode=multi_processing"))
    two, _ = made(Folder(f"{tmp_path}/two"), twelve, processes)
    assert shard_bytes(one) == shard_bytes(two)


def test_after_a_kill_only_what_is_missing_is_made(store: Folder, twelve: Path):
    folder = store.child("images")
    output, _ = made(folder, twelve)
    before = shard_bytes(output)
    lost = sorted(output.found())[1:3]
    for number in lost:
        folder.remove(output.shard_name(number))
    kept = {name: folder.fs.modified(folder.path(name)) for name in folder.names()}
    kept_keys = {key for table in (output.read(n) for n in output.found()) for key in table.column("image_key").to_pylist()}
    for path in twelve.iterdir():  # what lies in a finished shard is not looked at again
        if image_key(decode(path.read_bytes())) in kept_keys:
            size = path.stat().st_size
            path.write_bytes(bytes(size))
    made(folder, twelve)
    assert shard_bytes(output) == before
    assert {name: folder.fs.modified(folder.path(name)) for name in kept} == kept


def test_other_pictures_give_another_identity(tmp_path: Path, twelve: Path, rng: np.random.Generator):
    before = PoolStage(images=(ImageFolder(path=str(twelve)),)).outside()
    picture(rng, 90, 90).save(twelve / "05.png")
    assert PoolStage(images=(ImageFolder(path=str(twelve)),)).outside() != before
    with pytest.raises(ConfigError, match="no such folder"):
        PoolStage(images=(ImageFolder(path=str(twelve / "nowhere")),)).outside()


def test_progress_ends_with_every_shard_and_beam_says_nothing(tmp_path: Path, twelve: Path, capfd: pytest.CaptureFixture[str]):
    told: list[tuple[int, int, str]] = []
    stage = PoolStage(images=(ImageFolder(path=str(twelve)),), shards=SHARDS)
    output = Artifact(Folder(f"{tmp_path}/images"), {}, IMAGES, SHARDS)
    handlers, level = list(logging.getLogger().handlers), logging.getLogger("apache_beam").level
    stage.run({}, output, Resources(), lambda done, total, unit, note="": told.append((done, total, unit)))
    assert told[-1] == (SHARDS, SHARDS, "shards")
    assert capfd.readouterr() == ("", "")
    assert (list(logging.getLogger().handlers), logging.getLogger("apache_beam").level) == (handlers, level)


@pytest.mark.parametrize("mode", ["in_memory", "multi_threading"])
def test_an_error_on_a_worker_is_ours_and_one_line(tmp_path: Path, twelve: Path, mode: str, capfd: pytest.CaptureFixture[str]):
    (twelve / "gone.png").symlink_to(twelve / "nowhere.png")
    options = ("--direct_num_workers=1", f"--direct_running_mode={mode}")
    with pytest.raises(SailyardError, match="'gone.png' cannot be read") as caught:
        made(Folder(f"{tmp_path}/images"), twelve, Resources(beam_options=options))
    assert isinstance(caught.value, DataError)
    assert "while running" not in str(caught.value)
    if mode == "in_memory":  # Beam's threads print theirs past every logger
        assert capfd.readouterr() == ("", "")
