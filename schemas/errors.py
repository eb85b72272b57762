"""Every error Sailyard raises on purpose. Each says what is wrong, where, and what to do, in one line.

SailyardError             exit code 1
├── ConfigError           a config or a command line that means nothing (exit code 2)
├── DataError             an input that cannot be used: a file, a record, a row
├── StaleArtifact         made from another config than the one asked for
├── BrokenArtifact        bytes, rows or digests that are not what the record says
├── StageFailed           more rows failed than `max_error_rate` allows, or a shard could not be made
├── NonFinite             a loss, gradient or feature that is not a number
├── Preempted             asked to leave, and left with everything saved (exit code 143, as of SIGTERM)
└── MissingLibrary        an optional package that this choice needs
"""


class SailyardError(Exception):
    """`what` is wrong, `where` (path, shard, row, field), and the `remedy`; the message joins the three."""

    exit_code = 1

    def __init__(self, what: str, where: str = "", remedy: str = ""):
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}. {self.remedy}" if self.remedy else line


class ConfigError(SailyardError):
    exit_code = 2


class DataError(SailyardError):
    pass


class StaleArtifact(SailyardError):
    pass


class BrokenArtifact(SailyardError):
    pass


class StageFailed(SailyardError):
    pass


class NonFinite(SailyardError):
    pass


class Preempted(SailyardError):
    exit_code = 143


class MissingLibrary(SailyardError):
    pass
