"""What an S3 endpoint was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.storage import Folder


@contextmanager
def requests(folder: Folder) -> Iterator[list[int]]:
    """Bytes of each object, or part of one, that the server sends meanwhile."""
    sent: list[int] = []
    events = folder.fs.s3.meta.events
    count = lambda parsed, **_: sent.append(parsed["ContentLength"])  # noqa: E731
    events.register("after-call.s3.GetObject", count)
    yield sent
    events.unregister("after-call.s3.GetObject", count)
