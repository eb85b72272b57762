import pyarrow as pa

from schemas.annotations import Reference, Tag
from schemas.regions import Rle, Segment
from schemas.tables import ALL, ANNOTATIONS, SAMPLES, arrow_type, plain, revive

SEGMENT = Segment(3, "cup", True, False, 0.5, "instances", Rle(2, 2, "04"), "a cup")


def test_dataclasses_survive_the_table():
    reference = Reference("what is <a>", "<b>", [Tag("<a>", 1), Tag("<b>", 2)], "train", "vres")
    row = {"image_key": "k", "width": 2, "height": 2, "objects": [SEGMENT], "references": [reference]}
    table = ANNOTATIONS.rows([row | {"expressions": [], "captions": [], "choices": [], "faults": ["x"]}])
    (back,) = table.to_pylist()
    assert revive(list[Segment], back["objects"]) == [SEGMENT]
    assert revive(list[Reference], back["references"]) == [reference]
    assert back["error"] is None


def test_types_are_read_off_the_classes():
    assert arrow_type(list[str]) == pa.list_(pa.string())
    assert arrow_type(Rle) == pa.struct([("height", pa.int64()), ("width", pa.int64()), ("counts", pa.string())])
    assert plain([SEGMENT])[0]["rle"] == {"height": 2, "width": 2, "counts": "04"}


def test_every_table_of_pictures_has_a_place_for_an_error():
    assert all(table.has_errors for table in ALL if table.name not in {"samples", "predictions"})
    assert SAMPLES.schema.field("masks").type == pa.list_(arrow_type(Rle))
