"""The authors' own checkpoints: pickled arrays or a file of torch, under detectron2's names."""

import collections
import json
import pickle
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.errors import ConfigError, DataError
from teachers.build import build_segmenter, build_teacher
from teachers.config import Mask2FormerConfig
from teachers.mask2former import detectron, network
from teachers.mask2former.config import ResNet
from teachers.mask2former.pickled import read_pickled
from tests.sample import sample_of
from tests.teachers.test_published import read_detectron

SWIN = Mask2FormerConfig(seed=3)
RESNET = Mask2FormerConfig(seed=3, sizes=SWIN.sizes.model_copy(update={"backbone": ResNet(width=8, blocks=(1, 2, 1, 1))}))
BOTH = pytest.mark.parametrize("source", [SWIN, RESNET], ids=["swin", "resnet"])

# Our names -> the authors', written down on their own: what `names.from_original` must undo.
TO_ORIGINAL = [
    (r"^model\.pixel_level_module\.encoder\.swin\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (r"^model\.pixel_level_module\.encoder\.swin\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"^model\.pixel_level_module\.encoder\.swin\.encoder\.layers", "backbone.layers"),
    (r"attention\.relative_position_bias\.relative_position_bias_table", "attn.relative_position_bias_table"),
    (r"attention\.o_proj", "attn.proj"),
    (r"attention\.(q|k|v)_proj", r"attn.\1"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage1", "backbone.norm0"),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage2", "backbone.norm1"),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage3", "backbone.norm2"),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage4", "backbone.norm3"),
    (r"^model\.pixel_level_module\.encoder\.embedder\.embedder", "backbone.stem.conv1"),
    (r"^model\.pixel_level_module\.encoder\.encoder\.stages\.0\.layers", "backbone.res2"),
    (r"^model\.pixel_level_module\.encoder\.encoder\.stages\.1\.layers", "backbone.res3"),
    (r"^model\.pixel_level_module\.encoder\.encoder\.stages\.2\.layers", "backbone.res4"),
    (r"^model\.pixel_level_module\.encoder\.encoder\.stages\.3\.layers", "backbone.res5"),
    (r"(res\d\.\d+)\.layer\.0", r"\1.conv1"),
    (r"(res\d\.\d+)\.layer\.1", r"\1.conv2"),
    (r"(res\d\.\d+)\.layer\.2", r"\1.conv3"),
    (r"\.convolution\.weight", ".weight"),
    (r"\.normalization\.", ".norm."),
    (r"^model\.pixel_level_module\.decoder\.(level_embed|encoder)", r"sem_seg_head.pixel_decoder.transformer.\1"),
    (r"^model\.pixel_level_module\.decoder", "sem_seg_head.pixel_decoder"),
    (r"input_projections", "input_proj"),
    (r"mask_projection", "mask_features"),
    (r"(adapter_1|layer_1)\.0\.", r"\1."),
    (r"(adapter_1|layer_1)\.1\.", r"\1.norm."),
    (r"(transformer\.encoder\.layers\.\d)\.self_attn_layer_norm", r"\1.norm1"),
    (r"(transformer\.encoder\.layers\.\d)\.final_layer_norm", r"\1.norm2"),
    (r"(layers\.\d)\.fc(1|2)", r"\1.linear\2"),
    (r"^class_predictor", "sem_seg_head.predictor.class_embed"),
    (r"^model\.transformer_module\.queries_embedder", "sem_seg_head.predictor.query_embed"),
    (r"^model\.transformer_module\.queries_features", "sem_seg_head.predictor.query_feat"),
    (r"^model\.transformer_module\.level_embed", "sem_seg_head.predictor.level_embed"),
    (r"^model\.transformer_module\.decoder\.layernorm", "sem_seg_head.predictor.decoder_norm"),
    (r"^.*mask_predictor\.mask_embedder\.(\d)\.0", r"sem_seg_head.predictor.mask_embed.layers.\1"),
    (r"^model\.transformer_module\.decoder\.layers", "sem_seg_head.predictor.L"),
    (r"L\.(\d)\.self_attn_layer_norm", r"transformer_self_attention_layers.\1.norm"),
    (r"L\.(\d)\.self_attn", r"transformer_self_attention_layers.\1.self_attn"),
    (r"L\.(\d)\.cross_attn_layer_norm", r"transformer_cross_attention_layers.\1.norm"),
    (r"L\.(\d)\.cross_attn", r"transformer_cross_attention_layers.\1.multihead_attn"),
    (r"L\.(\d)\.final_layer_norm", r"transformer_ffn_layers.\1.norm"),
    (r"L\.(\d)\.linear", r"transformer_ffn_layers.\1.linear"),
]


def original_state(model: network.PanopticNetwork) -> dict[str, Tensor]:
    """The tensors as the authors would publish them, with what belongs to training and to Swin's windows."""
    state: dict[str, Tensor] = {"criterion.empty_weight": torch.ones(9)}
    for name, tensor in model.state_dict().items():
        if re.search(network.UNUSED, name):
            continue
        for pattern, replacement in TO_ORIGINAL:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    for name in [name for name in state if re.search(r"attn\.q\.|self_attn\.q_proj\.", name)]:
        parts = [state.pop(re.sub(r"\.q(\.|_proj\.)", rf".{part}\1", name)) for part in "qkv"]
        whole = re.sub(r"self_attn\.q_proj\.", "self_attn.in_proj_", name).replace("attn.q.", "attn.qkv.")
        state[whole] = torch.cat(parts)
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.int64)
    return state


def trained(source: Mask2FormerConfig) -> network.PanopticNetwork:
    """The random network, its norms as if they had seen data."""
    model = network.load(source)
    draw = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        drawn = torch.rand(buffer.shape, generator=draw)
        if name.endswith("running_mean"):
            buffer.copy_(drawn - 0.5)  # all above zero would leave nothing above the rectifiers of a deep network
        elif name.endswith("running_var"):
            buffer.copy_(drawn + 0.5)
    return model


def arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def write(content: Any, path: Path, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def published(source: Mask2FormerConfig, path: Path) -> Mask2FormerConfig:
    return source.model_copy(update={"weights": "somebody/model", "folder": str(path)})


def assert_same_network(config: Mask2FormerConfig, model: network.PanopticNetwork, image: np.ndarray) -> None:
    """Every tensor, and what comes out."""
    loaded = network.load(config)
    own = {name: tensor for name, tensor in model.state_dict().items() if not re.search(network.UNUSED, name)}
    different = [name for name, tensor in own.items() if not torch.equal(tensor, loaded.state_dict()[name])]
    assert not different
    expected = model.model.pixel_level_module(network.preprocess(image, config)).decoder_last_hidden_state[0]
    np.testing.assert_array_equal(build_teacher(config).features([image], [None])[0], expected.numpy())


@BOTH
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickled_checkpoint_gives_the_same_network(source, pictures, tmp_path, protocol):
    model = trained(source)
    content = {"model": arrays(original_state(model)), "__author__": "third_party", "matching_heuristics": True}
    path = write(content, tmp_path / "model_final_94dc52.pkl", protocol)
    assert_same_network(published(source, path), model, pictures[1])


@BOTH
def test_a_torch_checkpoint_gives_the_same_network(source, pictures, tmp_path):
    model, path = trained(source), tmp_path / "model_final.pth"
    torch.save({"model": original_state(model), "optimizer": {"state": {}}, "iteration": 7}, path)
    assert_same_network(published(source, path), model, pictures[0])


def test_the_names_and_the_container_of_the_first_release_are_read(pictures, tmp_path):
    model = trained(SWIN)
    state = arrays(original_state(model))
    older = collections.OrderedDict()
    for name, array in state.items():
        older[name.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")] = array
    older._metadata = collections.OrderedDict({"sem_seg_head": {"version": 2}})
    assert_same_network(published(SWIN, write({"model": older}, tmp_path / "model.pkl", 2)), model, pictures[0])


def test_a_pickle_of_numpy_1_is_read(tmp_path):
    """It names numpy.core, which numpy 2 keeps only as a shadow that warns."""
    older = pickle.dumps({"model": {"a": np.arange(6.0).reshape(2, 3)}}, protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in older
    (tmp_path / "model.pkl").write_bytes(older)
    assert torch.equal(read_pickled(tmp_path / "model.pkl")["a"], torch.arange(6.0, dtype=torch.float64).reshape(2, 3))


def test_a_checkpoint_that_does_not_fit_names_its_tensors(tmp_path):
    state = original_state(trained(SWIN))
    del state["sem_seg_head.predictor.query_embed.weight"]
    state["backbone.layers.0.blocks.7.attn.qkv.bias"] = torch.zeros(6)
    state["backbone.patch_embed.norm.bias"] = torch.zeros(3)
    path = write({"model": arrays(state)}, tmp_path / "model.pkl")
    with pytest.raises(DataError) as caught:
        network.load(published(SWIN, path))
    assert "missing: model.transformer_module.queries_embedder.weight;" in str(caught.value)
    assert "swin.encoder.layers.0.blocks.7.attention.k_proj.bias" in str(caught.value)
    assert "of another shape: model.pixel_level_module.encoder.swin.embeddings.norm.bias" in str(caught.value)


def test_an_original_checkpoint_needs_sizes(tmp_path):
    path = write({"model": {}}, tmp_path / "model.pkl")
    with pytest.raises(ConfigError, match="does not say its architecture"):
        network.load(Mask2FormerConfig(weights="somebody/model", folder=str(path)))


def test_an_original_checkpoint_of_coco_names_its_labels(pictures, tmp_path):
    source = SWIN.model_copy(update={"sizes": SWIN.sizes.model_copy(update={"labels": 133}), "things": 80})
    path = write({"model": arrays(original_state(trained(source)))}, tmp_path / "model.pkl")
    segmenter = build_segmenter(published(source, path).model_copy(update={"task": "instance", "max_instances": 300}))
    found = {one.category for one in segmenter.segments(pictures[0])}
    assert found <= set(network.labels.coco(80).values()) and len(found) > 20


@pytest.mark.sample
def test_labels_are_those_of_coco():
    published = json.loads((sample_of("coco") / "panoptic.json").read_text())
    categories = [category["name"] for category in published["categories"]]
    assert list(network.labels.coco(133).values()) == categories
    assert list(network.labels.coco(80).values()) == categories[:80]


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


class Called:
    """Asks for any importable name, and calls it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "in the place of the file": Evil,
    "in the place of an array": lambda target: {"model": {"a": Evil(target)}},
    "in an array of objects": lambda target: {"model": {"a": np.array([Evil(target)], dtype=object)}},
    "beside the model": lambda target: {"model": {}, "__author__": Evil(target)},
    "by eval": lambda target: Called(eval, f"__import__('pathlib').Path({str(target)!r}).touch()"),
    "by getattr": lambda target: Called(getattr, target, "touch"),
    "by a loader of numpy": lambda target: Called(np.save, str(target), np.zeros(1)),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_in_a_pickle_is_not_run(tmp_path, kind, protocol):
    target = tmp_path / "touched.npy"
    path = write(HOSTILE[kind](target), tmp_path / "model.pkl", protocol)
    with pytest.raises(DataError, match="not a pickle of plain arrays: it asks for ") as caught:
        network.load(published(SWIN, path))
    assert not target.exists()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_same_pickles_do_run_where_they_may(tmp_path):
    """Otherwise the test above would show nothing."""
    for kind in ("in the place of an array", "by eval", "by a loader of numpy"):
        target = tmp_path / f"{kind}.npy"
        pickle.loads(pickle.dumps(HOSTILE[kind](target)))
        assert target.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"weights": {}},
        [1, 2],
        {"model": {"a": 1}},
        {"model": [1]},
        {"model": {"a": np.array([None])}},
        {"model": {"a": np.array("x")}},
    ],
    ids=["other key", "list", "no array", "no dict", "objects", "text"],
)
def test_a_pickle_of_another_form_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="'model'"):
        read_pickled(write(content, tmp_path / "model.pkl"))


def test_bytes_written_in_another_encoding_are_refused(tmp_path):
    import _codecs

    path = write(Called(_codecs.encode, "a", "rot13"), tmp_path / "model.pkl", 2)
    with pytest.raises(DataError, match="bytes written as rot13"):
        read_pickled(path)


def test_a_damaged_pickle_is_one_clear_error(rng, tmp_path):
    whole = pickle.dumps({"model": {"a": np.arange(4.0), "b": np.ones((2, 2), dtype=np.float32)}}, protocol=2)
    path, refused = tmp_path / "model.pkl", 0
    for trial in range(400):
        damaged = bytearray(whole[: rng.integers(len(whole))] if trial % 4 == 0 else whole)
        for place in rng.integers(0, max(1, len(damaged)), 2 if damaged else 0):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_pickled(path)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 200


def plain_resnet(state: dict[str, Tensor], x: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    """detectron2's ResNet, by the names of its checkpoint: frozen norms, the stride in the 3x3 convolution."""

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        y = F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)
        mean, var, scale, shift = (state[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return (y - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    x = F.max_pool2d(F.relu(conv(x, "backbone.stem.conv1", 2, 3)), kernel_size=3, stride=2, padding=1)
    levels = []
    for stage, count in enumerate(blocks):
        for block in range(count):
            name, stride = f"backbone.res{stage + 2}.{block}", 2 if stage and not block else 1
            y = F.relu(conv(x, f"{name}.conv1"))
            y = conv(F.relu(conv(y, f"{name}.conv2", stride, 1)), f"{name}.conv3")
            x = F.relu(y + (conv(x, f"{name}.shortcut", stride) if not block else x))
        levels.append(x)
    return levels


def test_the_resnet_of_transformers_is_that_of_detectron2():
    model, x = trained(RESNET), torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    levels = plain_resnet(original_state(model), x, RESNET.sizes.backbone.blocks)
    found = model.model.pixel_level_module.encoder(x).feature_maps
    assert [tuple(level.shape[1:]) for level in found] == [(32, 16, 24), (64, 8, 12), (128, 4, 6), (256, 2, 3)]
    for level, expected in zip(found, levels, strict=True):
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)


class Node(types.SimpleNamespace):
    """A table of detectron2's configuration, made as it is asked for."""

    def __getattr__(self, name: str) -> "Node":
        setattr(self, name, Node())
        return vars(self)[name]


@pytest.mark.sample
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("facebook/mask2former-swin-tiny-coco-panoptic", "maskformer2_swin_tiny_bs16_50ep.yaml"),
        ("facebook/mask2former-swin-large-coco-panoptic", "maskformer2_swin_large_IN21k_384_bs16_100ep.yaml"),
        ("mask2former/coco/panoptic/maskformer2_R50_bs16_50ep", "maskformer2_R50_bs16_50ep.yaml"),
    ],
)
def test_the_original_network_is_described_as_its_authors_do(teacher_configs, name, file):
    config, model = Mask2FormerConfig(weights=name), Node()
    detectron.describe(model, config.sizes, config.channels)
    content = read_detectron(teacher_configs / file)["MODEL"]
    # What the authors leave to detectron2's defaults.
    content["RESNETS"] |= {"WIDTH_PER_GROUP": 64, "RES2_OUT_CHANNELS": 256}
    for table, values in vars(model).items():
        assert vars(values) == {key: content[table][key] for key in vars(values)}


def test_a_resnet_that_detectron2_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="no ResNet of"):
        detectron.describe(Node(), RESNET.sizes, 32)
