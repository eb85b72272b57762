"""A cache forgets, but never holds more than it may nor half a thing, whoever shares it and whoever is killed."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from schemas.cache import LOCK, Cache
from schemas.errors import DataError

SIZE = 1000


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10 * SIZE)


def data(number: int) -> bytes:
    return bytes([number % 251]) * SIZE


def there(cache: Cache, number: int) -> bool:
    into = np.zeros(SIZE, np.uint8)
    found = cache.read(str(number), into)
    assert not found or into.tobytes() == data(number)
    return found


def files(cache: Cache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if path.is_file() and path.name != LOCK]


def used(cache: Cache) -> int:
    return sum(path.stat().st_size for path in files(cache))


def age(cache: Cache, seconds: float) -> None:
    """As if nobody had looked for so long."""
    for path in files(cache):
        os.utime(path, (then := path.stat().st_mtime - seconds, then))


def test_what_is_written_is_read(cache: Cache):
    assert not there(cache, 1)
    cache.write("1", data(1))
    assert there(cache, 1)
    assert not there(cache, 2)


def test_what_was_not_read_for_longest_goes_first(cache: Cache):
    for number in range(10):
        cache.write(str(number), data(number))
        age(cache, 1)
    assert there(cache, 0)
    for number in (10, 11):
        cache.write(str(number), data(number))
    assert there(cache, 0)
    assert [number for number in range(12) if there(cache, number)] == [0, *range(3, 12)]


def test_what_is_larger_than_the_cache_is_not_kept(cache: Cache):
    cache.write("0", data(0))
    cache.write("large", bytes(11 * SIZE))
    assert there(cache, 0)
    assert used(cache) == SIZE


def test_a_file_of_another_length_does_not_count(cache: Cache):
    cache.write("0", data(0)[:-1])
    assert not there(cache, 0)


@pytest.mark.parametrize("told", [b"", b"nonsense", b"-1", b"%021d" % 0])
def test_what_is_taken_is_counted_anew_where_nobody_knows(cache: Cache, told: bytes):
    for number in range(10):
        cache.write(str(number), data(number))
    (cache.folder / LOCK).write_bytes(told)
    cache.write("10", data(10))
    assert there(cache, 10)
    assert used(cache) <= cache.most_bytes


def fill(cache: Cache, first: int) -> None:
    for number in range(first, first + 10**9):
        cache.write(str(number), data(number))


def test_many_writers_and_their_deaths_never_pass_the_bound(cache: Cache):
    """Three processes write at once and are killed at any moment, time and again; what they leave is whole or unfinished."""
    cache.write("0", data(0))
    fork, most = multiprocessing.get_context("fork"), 0
    for _ in range(3):
        writers = [fork.Process(target=fill, args=(cache, 1000 * n)) for n in range(3)]
        for writer in writers:
            writer.start()
        most = max(most, *(used_while_it_changes(cache) for _ in range(10)))
        for writer in writers:
            assert writer.pid
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    assert SIZE < most <= cache.most_bytes
    whole = [path for path in files(cache) if not path.name.endswith(".tmp")]
    assert all(len(set(content := path.read_bytes())) == 1 and len(content) == SIZE for path in whole)


def used_while_it_changes(cache: Cache) -> int:
    """What the files come to while nobody may take more room."""
    with cache._locked():
        return sum(size for _, size, _ in cache._files())


def test_what_the_dead_left_goes_when_it_is_old(cache: Cache):
    cache.write("0", data(0))
    left = files(cache)[0].parent / ".left.tmp"
    left.write_bytes(bytes(9 * SIZE))
    (cache.folder / LOCK).write_bytes(b"")
    cache.write("1", data(1))
    assert left.exists(), "its writer may be alive"
    assert used(cache) <= cache.most_bytes
    age(cache, 2 * 3600)
    (cache.folder / LOCK).write_bytes(b"")
    cache.write("2", data(2))
    assert not left.exists()
    assert there(cache, 2)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/cache: the cache cannot be written"):
        Cache(tmp_path / "file" / "cache", 10 * SIZE).write("0", data(0))
