import os
import pickle

import pytest

from schemas.errors import ConfigError, DataError
from schemas.storage import Folder


def test_files_come_and_go(store: Folder):
    assert store.names() == {}
    store.write("a.txt", b"one")
    store.write("deep/er/b.txt", b"three")
    assert store.read("a.txt") == b"one"
    assert store.size("deep/er/b.txt") == 5
    assert store.names() == {"a.txt": 3}
    assert store.folders() == ["deep"]
    assert store.tree() == {"a.txt": 3, "deep/er/b.txt": 5}
    store.write("a.txt", b"four")
    assert store.read("a.txt") == b"four"
    store.remove("deep")
    store.remove("none")
    assert store.tree() == {"a.txt": 4}
    with pytest.raises(FileNotFoundError):
        store.read("none")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "a\0b"])
def test_a_name_that_climbs_out_is_refused(store: Folder, name: str):
    with pytest.raises(DataError, match="climbs out"):
        store.write(name, b"x")


def test_a_write_that_dies_leaves_the_old_file(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("a.txt", b"old")
    with pytest.raises(RuntimeError), folder.staged("a.txt") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert folder.read("a.txt") == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_of_the_killed_are_invisible_and_swept_when_old(tmp_path):
    folder = Folder(str(tmp_path))
    for name, age in ((".a.txt.1.tmp", 10_000), (".b.txt.2.tmp", 0)):
        (tmp_path / name).write_bytes(b"half")
        moment = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (moment, moment))
    assert folder.names() == folder.tree() == {}
    assert folder.sweep() == 1
    assert os.listdir(tmp_path) == [".b.txt.2.tmp"]


def test_temporary_files_are_not_listed_anywhere(store: Folder):
    store.write("whole", b"1")
    store.write(".whole.1.tmp", b"2")
    assert list(store.names()) == list(store.tree()) == ["whole"]


def test_an_unknown_protocol_is_one_clear_line():
    with pytest.raises(ConfigError, match="nonsense://x"):
        Folder("nonsense://x").names()


def test_a_relative_folder_stays_where_it_is_when_sent_elsewhere(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    sent = pickle.dumps(Folder("runs"))
    monkeypatch.chdir(there)
    pickle.loads(sent).child("train").write("state", b"whole")
    assert (here / "runs" / "train" / "state").read_bytes() == b"whole"
    assert pickle.loads(pickle.dumps(Folder("memory://a"))) == Folder("memory://a")
