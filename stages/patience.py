"""How long shards took of late, and with that when one is slow, when one stalls, and when whoever is at it is given up."""

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from stages.deadline import Pulse

SLOW, STALLED = 3, 10  # times the median: a shard is given to an idle worker too; an alarm is raised
_SOON_S, _UNKNOWN_S = 2.0, 600.0  # nothing is slow before; nor while no shard has shown how long they take
_RECENT = 101  # so many shards show it
_log = logging.getLogger(__name__)


def _recent() -> deque[float]:
    return deque(maxlen=_RECENT)


@dataclass
class Patience:
    """`took` and `silences` are the seconds of the shards last made, and of the longest silence in each."""

    deadline_s: float | None
    took: deque[float] = field(default_factory=_recent)
    silences: deque[float] = field(default_factory=_recent)

    def learn(self, seconds: float, silence: float) -> None:
        self.took.append(seconds)
        self.silences.append(silence)

    def pulse(self) -> Pulse:
        """For whoever takes up a shard now."""
        return Pulse(self.deadline_s, max(self.silences, default=0.0))

    def of(self, times: float) -> float:
        """So many times what a shard took of late; where no one knows, long enough for any."""
        return max(times * median(self.took), _SOON_S) if self.took else _UNKNOWN_S

    def is_over(self, seconds: float) -> bool:
        """Whether a shard was in work for far longer than any of late, for one that was begun when nothing was known yet."""
        return self.deadline_s is None and bool(self.took) and seconds > Pulse(None, max(self.took)).allowed

    @property
    def limit(self) -> str:
        """What someone who was given up took longer than."""
        return "sound work can" if self.deadline_s is None else "deadline_s"

    def tell(self, number: int, who: str, seconds: float) -> None:
        """The alarm for a shard that stalls."""
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
        others = f"{median(self.took):.1f} s" if self.took else "no less so far"
        _log.warning(
            "shard %d stalls: %s has been at it since %s, for %.0f s; others took %s", number, who, since, seconds, others
        )
