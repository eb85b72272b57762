"""RefCOCO's pickles, read as data. A pickle is a program; here it may build lists, dicts, strings and numbers, and nothing
else: whatever it wants to import is refused by name, so nothing of it is ever executed."""

import io
import pickle
from typing import Any

from schemas.errors import DataError

MAX_BYTES = 1 << 30  # the largest of the published files has under 100 MB
_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise DataError(f"the pickle wants to import {module_name}.{global_name}, plain data needs no import")


def read_pickle(data: bytes, where: str) -> Any:
    """The plain data of a pickle of any protocol; strings of Python 2 are taken for UTF-8, else for Latin-1."""
    remedy = "Use the published refs file."
    if len(data) > MAX_BYTES:
        raise DataError(f"the pickle has {len(data)} bytes, more than {MAX_BYTES}", where, remedy)
    try:
        return _load(data)
    except DataError as error:
        raise DataError(error.what, where, "Do not trust this file. " + remedy) from None
    except _DAMAGE as error:
        raise DataError(f"the pickle cannot be read: {error or type(error).__name__}", where, remedy) from None


def _load(data: bytes) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except UnicodeDecodeError:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
