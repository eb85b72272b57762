"""What the student answered, on the pictures: its best, typical and worst masks, and a fair sample of its words."""

from collections.abc import Callable, Sequence
from html import escape

from PIL import Image

from schemas.dialogue import PromptSlot
from schemas.regions import VOID, Rle
from schemas.tables import revive
from stages.report import drawing
from stages.report.evidence import Report
from stages.report.page import figure, lead, plural, said
from stages.report.pictures import answered, shown
from stages.report.reading import Prediction, rows_at, sample
from stages.report.scores import chose_right, overlap_of
from student.metrics.segmentation import Overlap

LEGEND = (
    '<p class="legend"><span><i class="target"></i>what was meant</span><span><i class="prediction"></i>what the student '
    'segmented</span><span><i class="prompt"></i>what the question points at</span>{}</p>'
)
SIDE = 320
COLUMNS = 6
SEGMENTING = {"segmentation": "Referring segmentation", "reference": "Segmentation by reference"}


def sheets(report: Report) -> str:
    """Every sheet of examples, by the trained student where there is one."""
    whose = next((name for name in ("trained", "untrained") if report.predictions.get(name)), None)
    if whose is None:
        return ""
    found = report.predictions[whose]
    others = {row.sample_id: row for row in report.predictions.get("untrained", [])} if whose == "trained" else {}
    artist = _Artist(report)
    masks = [_ranked(artist, title, [row for row in found if row.task == task], others) for task, title in SEGMENTING.items()]
    words = [_captions(artist, found), _choices(artist, found)]
    intro = lead(
        f"Answers of the {whose} student on evaluation pictures. Sheets are ranked by IoU and say so, or are a fixed draw."
    )
    dark = '<span><i class="void"></i>what is not scored</span>' if any(map(_void, found)) else ""
    return intro + LEGEND.format(dark) + "".join([*masks, *words])


def _void(row: Prediction) -> list[Rle]:
    """Of the target that is scored."""
    return [level.rle for own in row.levels[:1] for level in own if level.value == VOID]


class _Artist:
    """Draws a prediction on its picture, with the prompts of its dialogue where the samples are at hand."""

    def __init__(self, report: Report):
        self.images, self.samples = report.images, report.inputs.get("samples")
        self.examples, self.seed = report.examples, report.seed

    def draw(self, row: Prediction) -> Image.Image:
        slots = self._slots(row)
        regions = row.targets + row.masks + [slot.rle for slot in slots]
        drawn = shown(self.images, row.spot, SIDE, (regions[0].width, regions[0].height) if regions else None)
        for slot in slots:
            drawn = drawing.marked(drawn, slot.rle.mask(), str(slot.index))
        return answered(drawn, row.targets, row.masks, _void(row))

    def _slots(self, row: Prediction) -> list[PromptSlot]:
        """The prompts that the question speaks of."""
        if self.samples is None:
            return []
        rows = rows_at(self.samples, row.spot, ["sample_id", "prompts"])
        slots = next((found["prompts"] for found in rows if found["sample_id"] == row.sample_id), [])
        return [slot for slot in revive(list[PromptSlot], slots) if f"<Prompt{slot.index}>" in row.question]

    def some(self, rows: Sequence[Prediction]) -> list[Prediction]:
        """The fixed draw."""
        by_id = {row.sample_id: row for row in rows}
        return [by_id[name] for name in sample(by_id, self.examples, self.seed)]


def _ranked(artist: _Artist, title: str, rows: Sequence[Prediction], others: dict[str, Prediction]) -> str:
    """Best, typical and worst of the expressions that name something, then a draw of those that name nothing."""
    found = {row.sample_id: overlap_of(row) for row in rows}
    aimed = [row for row in rows if found[row.sample_id].target]
    void = [row for row in rows if not found[row.sample_id].target]
    order = sorted(aimed, key=lambda row: (-found[row.sample_id].iou, row.sample_id))
    drawn = artist.some(void)
    groups = _thirds(order, artist.examples)
    groups[f"naming nothing: {plural(len(drawn), 'expression')} drawn from {len(void):,}"] = drawn
    show = lambda row: _masked(artist, row, found[row.sample_id], others.get(row.sample_id))  # noqa: E731
    return "".join(_sheet(f"{title}: {name}", group, show) for name, group in groups.items())


def _thirds(order: Sequence[Prediction], most: int) -> dict[str, Sequence[Prediction]]:
    """The first, the middle and the last of those in `order`, at most `most` of each and none twice."""
    if len(order) < 3:
        return {f"all {len(order)}": order}
    count = _whole_rows(min(most, len(order) // 3))
    middle = (len(order) - count) // 2
    return {
        f"best {count} of {len(order):,}": order[:count],
        f"typical, {count} around the median of {len(order):,}": order[middle : middle + count],
        f"worst {count} of {len(order):,}": order[::-1][:count],
    }


def _whole_rows(count: int) -> int:
    """As many as fill the last row of a sheet, where there is more than one."""
    return count - count % COLUMNS if count > COLUMNS else count


def _sheet(title: str, rows: Sequence[Prediction], show: Callable[[Prediction], str], kind: str = "") -> str:
    if not rows:
        return ""
    return f'<h3>{escape(title)}</h3><div class="sheet {kind}">{"".join(map(show, rows))}</div>'


def _masked(artist: _Artist, row: Prediction, found: Overlap, other: Prediction | None) -> str:
    floor = f' <span class="soft">untrained {overlap_of(other).iou:.2f}</span>' if other else ""
    score = f'<span class="score">IoU {found.iou:.2f}</span>{floor}'
    if not found.target:
        empty = not found.union
        score = f'<span class="score {"good" if empty else "bad"}">{"left empty" if empty else "segmented something"}</span>'
    return figure(artist.draw(row), row.question, f"{score}<p>{said(row.question)}</p>")


def _captions(artist: _Artist, rows: Sequence[Prediction]) -> str:
    def show(row: Prediction) -> str:
        return figure(artist.draw(row), row.question, f"<p>{said(row.question)}</p>{_pair(row)}", "beside")

    chosen = artist.some([row for row in rows if row.task == "caption"])
    return _sheet("Region captions: a fixed draw, not chosen by quality", chosen, show, "wide")


def _choices(artist: _Artist, rows: Sequence[Prediction]) -> str:
    def show(row: Prediction) -> str:
        right = chose_right(row)
        verdict = f'<span class="score {"good" if right else "bad"}">{"right" if right else "wrong"}</span>'
        return figure(artist.draw(row), row.question, f"{verdict}<p>{said(row.question)}</p>{_pair(row)}", "beside")

    chosen = artist.some([row for row in rows if row.task == "choice"])
    return _sheet("Multiple choice: a fixed draw, not chosen by quality", chosen, show, "wide")


def _pair(row: Prediction) -> str:
    lines = (("expected", row.expected), ("written", row.text))
    return "".join(f'<p><span class="label">{name}</span> {said(text)}</p>' for name, text in lines)
