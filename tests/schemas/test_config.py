import pytest

from schemas.config import Config, differences, execution, fingerprint, later, override, parse, read_toml
from schemas.errors import ConfigError


class Part(Config):
    size: int = 1
    workers: int = execution(2)


class Whole(Config):
    name: str = "a"
    part: Part = Part()
    parts: dict[str, Part] = {}
    optional: Part | None = None


def test_identity_leaves_execution_out_at_every_depth():
    one = Whole(part=Part(workers=1), parts={"x": Part(workers=5)}, optional=Part(workers=7))
    two = Whole(part=Part(workers=9), parts={"x": Part(workers=6)}, optional=Part(workers=8))
    assert one.identity() == two.identity()
    assert one.identity() == {"name": "a", "part": {"size": 1}, "parts": {"x": {"size": 1}}, "optional": {"size": 1}}


def test_a_field_that_came_later_counts_once_it_is_used():
    class Grown(Config):
        size: int = 1
        kinds: dict[str, str] = later({})
        part: Part | None = later(None)

    assert Grown().identity() == Grown(kinds={}).identity() == {"size": 1}
    assert Grown(kinds={"a": "b"}, part=Part()).identity() == {"size": 1, "kinds": {"a": "b"}, "part": {"size": 1}}


def test_fingerprint_ignores_order_and_nothing_else():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    values = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"a": [1]}, {"a": {}}, {}]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_differences_name_each_leaf():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": "x"}
    assert differences(old, new) == ["a.c: 2 -> 5", "d: 3 -> null", 'e: null -> "x"']


def test_a_table_of_another_kind_takes_the_place_of_the_one_extended(tmp_path):
    (tmp_path / "base.toml").write_text('[source]\nkind = "shapes"\ntrain = 5\n[source.inner]\nkind = "a"\nx = 1\n')
    (tmp_path / "same.toml").write_text('extends = "base.toml"\n[source]\nkind = "shapes"\nsize = 8\ninner.y = 2\n')
    (tmp_path / "other.toml").write_text('extends = "same.toml"\n[source]\nkind = "coco"\nimages = ["a"]\n')
    same, other = (read_toml(tmp_path / name) for name in ("same.toml", "other.toml"))
    assert same == {"source": {"kind": "shapes", "train": 5, "size": 8, "inner": {"kind": "a", "x": 1, "y": 2}}}
    assert other == {"source": {"kind": "coco", "images": ["a"]}}
    assert override(same, ["source.inner.kind=b"])["source"]["inner"] == {"kind": "b"}


def test_toml_extends_and_overrides(tmp_path):
    (tmp_path / "base.toml").write_text('name = "base"\n[part]\nsize = 3\n')
    (tmp_path / "over.toml").write_text('extends = "base.toml"\nname = "over"\n')
    data = override(read_toml(tmp_path / "over.toml"), ["part.size=4", "parts.x.size=5", "name=plain text"])
    assert parse(Whole, data, "f") == Whole(name="plain text", part=Part(size=4), parts={"x": Part(size=5)})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"nmae": "a"}, "unknown key nmae (did you mean name?)"),
        ({"part": {"sise": 1}}, "unknown key part.sise (did you mean size?)"),
        ({"parts": {"x": {"sise": 1}}}, "unknown key parts.x.sise (did you mean size?)"),
        ({"optional": {"sise": 1}}, "unknown key optional.sise (did you mean size?)"),
        ({"part": {"size": "many"}}, "part.size:"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_known_one(data, says):
    with pytest.raises(ConfigError) as caught:
        parse(Whole, data, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert says in str(caught.value)


def test_missing_and_broken_files_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(tmp_path / "bad.toml")
