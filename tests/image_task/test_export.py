"""Models as folders, as hub repositories, as exported programs and ONNX files."""

import copy
import json
import os
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open
from torch import nn

import rmeeto
from image_task.models import Vim
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.export import to_onnx
from rmeeto.export.program import exported
from rmeeto.hub import CONFIG, WEIGHTS, export, fetch, load
from rmeeto.merge import RULES
from tests.golden_data import assert_near, fill, randn

MERGE = MergeConfig(r=(3, 2), keep_order=False, class_position="exact")


def nano(**kwargs):
    return fill(timm.create_model("vim_nano_patch2_16", depth=5, num_classes=7, **kwargs)).eval()


@pytest.fixture
def x():
    return randn(1, (2, 3, 16, 16))


def same(a, b):
    state = b.state_dict()
    return list(a.state_dict()) == list(state) and all(torch.equal(v, state[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("merge", [None, MERGE, MergeConfig(r=(8, -0.5), metric="delta")])
def test_a_folder_gives_the_model_back(merge, tmp_path, x):
    model = nano(merge=merge, drop_path_rate=0.1)
    again = load(export(model, tmp_path / "model")).eval()
    assert type(again) is Vim and again.merge_config == merge and same(model, again)
    assert torch.equal(again(x), model(x))
    assert tuple(again.pretrained_cfg["mean"]) == model.pretrained_cfg["mean"]
    assert load(export(again, tmp_path / "again")).num_tokens == model.num_tokens  # and again


def test_a_folder_keeps_another_head_and_size(tmp_path):
    model = timm.create_model("videomamba_tiny_patch16_224", img_size=(32, 48), depth=2, embed_dim=16)
    model.reset_classifier(4)
    again = load(export(model, tmp_path / "model"))
    assert again.num_classes == 4 and again(randn(1, (1, 3, 32, 48))).shape == (1, 4)
    assert timm.data.resolve_model_data_config(again)["input_size"] == (3, 32, 48)


@pytest.mark.parametrize("name", ["vim_nano_patch2_16", "rmeeto_deit_nano_patch2_28", "vit_tiny_patch16_224"])
def test_a_folder_keeps_what_was_made_of_the_model_later(name, tmp_path):
    small = {"img_size": 32, "depth": 3} if name.startswith("vit") else {"depth": 3}
    model = timm.create_model(name, **small).eval()
    model.set_input_size(img_size=48)
    model.prune_intermediate_layers([1], prune_head=False)
    again, x = load(export(model, tmp_path / "model")).eval(), randn(1, (2, 3, 48, 48))
    assert torch.equal(again(x), model(x))
    model.head = nn.Sequential(model.head)
    with pytest.raises(UserError, match="changed since timm.create_model made it .head.0.bias"):
        export(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "name", ["rmeeto_deit_tiny_patch16_224", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_a_folder_keeps_a_merged_transformer(name, tmp_path):
    model = timm.create_model(name, img_size=32, depth=2, num_classes=3)
    rmeeto.apply(model, MergeConfig(r=1, metric="K")).eval()
    again = load(export(model, tmp_path / "model")).eval()
    x = randn(1, (2, 3, 32, 32))
    assert again.merge_config == model.merge_config and torch.equal(again(x), model(x))


def test_timm_reads_the_folder_of_our_models(tmp_path, x):
    model = nano(merge=MERGE)
    export(model, tmp_path / "model")
    again = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert again.merge_config == MERGE and torch.equal(again(x), model(x))
    larger = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, img_size=32)
    assert larger(randn(1, (1, 3, 32, 32))).shape == (1, 7)


def test_the_folder_is_ready_for_the_hub(tmp_path):
    export(nano(merge=MERGE), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS]
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["architecture"] == "vim_nano_patch2_16" and config["model_args"]["merge"] == MERGE.to_dict()
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"} and "layers.0.mixer.A_log" in file.keys()


def test_nothing_is_overwritten(tmp_path):
    export(nano(), tmp_path)
    before = (tmp_path / WEIGHTS).stat().st_mtime_ns
    with pytest.raises(UserError, match="has model.safetensors and config.json already; give another folder"):
        export(nano(), tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["taken", "taken/below"])
def test_a_folder_that_cannot_be_written_is_one_error(name, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=f"export: .*{name} cannot be written: .*; give another folder"):
        export(nano(), tmp_path / name)
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_model_without_a_name_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="Vim has no name; make it with timm.create_model"):
        export(Vim(img_size=32, depth=1), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_hub_repository_gives_the_model_back(tmp_path, monkeypatch, x):
    folder, asked = export(nano(merge=MERGE), tmp_path), []

    def download(name, file, revision=None, local_files_only=False):
        asked.append((name, file, revision))
        return str(folder / file)

    monkeypatch.setattr("rmeeto.hub.get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr("rmeeto.hub.hf_hub_download", download)
    assert load("hf_hub:owner/name@v1").merge_config == MERGE
    assert asked == [("owner/name", CONFIG, "v1"), ("owner/name", WEIGHTS, "v1")]


def test_without_a_network_there_is_one_error_that_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"config.json of owner/name could not be fetched: .*\n.*put config.json"):
        load("hf_hub:owner/name")
    with pytest.raises(UserError, match="could not be fetched"):
        fetch("not a name", "weights.pth")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, tmp_path):
    """The download would ask it six times, for half a minute."""

    asked = []

    def silent(url, timeout):
        asked.append(url)
        assert timeout <= 5
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("rmeeto.hub.get_hf_file_metadata", silent)
    with pytest.raises(UserError, match="config.json of owner/name could not be fetched: no route\n"):
        load("hf_hub:owner/name")
    assert len(asked) == 1


def test_without_a_network_the_cache_has_the_file(monkeypatch, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "models--owner--name"
    for file, text in ((f"snapshots/{commit}/weights.pth", "weights"), ("refs/main", commit)):
        (repository / file).parent.mkdir(parents=True)
        (repository / file).write_text(text)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert fetch("owner/name", "weights.pth").read_text() == "weights"


def test_what_the_hub_answers_is_said(monkeypatch, tmp_path):
    """An answer that says no is no silence: the download is tried and its error reported."""

    def refuse(*args, **kwargs):
        answer = SimpleNamespace(headers={}, status_code=404, request=SimpleNamespace(url="u", method="HEAD"))
        raise HfHubHTTPError("404: no such repository", response=answer)

    monkeypatch.setattr("rmeeto.hub.get_hf_file_metadata", refuse)
    monkeypatch.setattr("rmeeto.hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match="could not be fetched: 404: no such repository"):
        fetch("owner/name", "weights.pth")


def test_a_feature_extractor_is_no_whole_model(tmp_path):
    with pytest.raises(UserError, match="is no whole model; make it without features_only"):
        export(timm.create_model("vim_nano_patch2_16", features_only=True), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_keeps_the_channels_and_the_pool(tmp_path):
    model = timm.create_model("rmeeto_deit_tiny_patch16_224", img_size=32, depth=2, in_chans=1).eval()
    model.reset_classifier(3, "avg")
    x = randn(1, (2, 1, 32, 32))
    for again in (load(export(model, tmp_path)), timm.create_model(f"local-dir:{tmp_path}", pretrained=True)):
        assert again.global_pool == "avg" and torch.equal(again.eval()(x), model(x))
        assert again.pretrained_cfg["input_size"] == (1, 32, 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"architecture": ["vim"]}', "names no architecture"),
        ('{"architecture": "vim_huge"}', "names the model 'vim_huge', which is not known here"),
        ('{"architecture": "vim_nano_patch2_16", "model_args": {"width": 3}}', "does not describe a"),
        ('{"architecture": "vim_nano_patch2_16", "model_args": {"merge": {"r": -1}}}', "r=-1"),
        (
            '{"architecture": "vim_nano_patch2_16", "model_args": [1]}',
            r"model_args is \[1\]; expected names",
        ),
        (
            '{"architecture": "vim_nano_patch2_16", "pretrained_cfg": 3}',
            "pretrained_cfg is 3; expected names",
        ),
        ('{"architecture": "vim_nano_patch2_16"}', "does not fit Vim"),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_error(config, message, tmp_path):
    export(nano(), tmp_path)
    (tmp_path / CONFIG).write_text(config)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(UserError, match="there is no .*config.json; expected a folder with"):
        load(tmp_path / "nothing")
    export(nano(), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="there is no .*model.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("backend", "config"),
    [
        ("auto", None),
        ("auto", MergeConfig(r=2, metric="B", class_position="exact")),
        ("torch", MergeConfig(r=2)),
    ],
)
def test_models_compile_into_one_graph(backend, config, monkeypatch):
    monkeypatch.setenv("RMEETO_BACKEND", backend)
    model = Vim(img_size=6, patch_size=2, stride=2, embed_dim=8, depth=3, num_classes=3, merge=config)
    x = randn(1, (2, 3, 6, 6))
    torch.compiler.reset()
    compiled = torch.compile(fill(model).eval(), fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_near(compiled(x), model(x).numpy(), 1e-5)


@pytest.mark.slow
def test_training_compiles_into_one_graph(x):
    model = nano(merge=MergeConfig(r=3)).train()
    model(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    for name, p in model.named_parameters():
        assert_near(p.grad, expected[name].numpy(), 1e-4, name)


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, MergeConfig(r=3), MergeConfig(r=3, metric="delta", class_position="exact")])
def test_an_exported_program_equals_the_model(config, tmp_path, x):
    model = nano(merge=config)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (2, 5):
        y = randn(batch, (batch, 3, 16, 16))
        assert_near(again(y), model(y).detach().numpy(), 1e-5)


ONNX = {
    "dense": {},
    "merged": {"merge": MergeConfig(r=3)},
    "exact": {"merge": MergeConfig(r=3, class_position="exact", metric="C", neighbour=2, odd=True)},
    "unordered": {"merge": MergeConfig(r=3, keep_order=False, distance="l1")},
    "amax": {"merge": MergeConfig(r=3, mode="amax", distance="l2")},
    "mean": {"merge": MergeConfig(r=3, mode="mean", shuffle="odd-even")},
    "window": {"merge": MergeConfig(r=3, window=(1, 2, 2))},
    **{rule: {"merge": MergeConfig(r=3, rule=rule)} for rule in sorted(set(RULES) - {"exact", "window"})},
    "deit": {"name": "rmeeto_deit_tiny_patch16_224", "merge": MergeConfig(r=1, metric="K"), "img_size": 48},
}


@pytest.mark.parametrize(("cached", "scans"), [(0, 4), (16384, 2)])
def test_an_onnx_file_has_the_scans_that_a_cache_holds_and_needs_no_kernel(cached, scans, tmp_path, monkeypatch, x):
    """Also of a model in half precision, and with the batch size fixed."""
    pytest.importorskip("onnxscript")
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    model = nano(merge=MergeConfig(r=3, interval=1)).bfloat16()
    model.layers = model.layers[:2]
    expected = copy.deepcopy(model).float()(x)
    with monkeypatch.context() as without:
        without.setattr("rmeeto.export.operators.CACHED", cached)  # directions one by one, and together
        without.setattr("rmeeto.ops.build.library", lambda: pytest.fail("an export builds nothing"))
        path = to_onnx(model, tmp_path / "model.onnx", x[0:1], batch_size=2)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert (nodes.count("Scan"), nodes.count("SequenceAt"), nodes.count("CumSum")) == (scans, 0, 1)
    assert model.head.weight.dtype == torch.bfloat16
    session = runtime.InferenceSession(path)
    assert session.get_inputs()[0].shape == [2, 3, 16, 16]
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_near(expected, logits, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ONNX)
def test_an_onnx_file_equals_the_model(case, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    arguments = {"name": "vim_nano_patch2_16", "depth": 3, **ONNX[case]}
    model = fill(timm.create_model(arguments.pop("name"), **arguments)).train()
    session = runtime.InferenceSession(to_onnx(model, tmp_path / "model.onnx"))
    assert model.training
    model.eval()
    for batch in (1, 4):
        x = randn(batch, (batch, *model.pretrained_cfg["input_size"]))
        (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_near(model(x), logits, 1e-4)


def test_onnx_needs_an_input(monkeypatch, tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match="Linear does not say its input size; give an input as example=x"):
        to_onnx(nn.Linear(2, 2), tmp_path / "model.onnx")


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_that_is_none_is_one_error(size, tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match=f"to_onnx: batch_size={size}; expected 1 or more, or None for any"):
        to_onnx(nano(), tmp_path / "model.onnx", batch_size=size)


def test_an_export_leaves_every_module_in_its_mode(monkeypatch):
    model = timm.create_model("vim_nano_patch2_16", depth=2).train()
    model.layers[0].eval()
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    exported("to_program", model, None, None)
    assert model.training and model.layers[1].training and not model.layers[0].training


def test_onnx_takes_no_random_order(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    model = nano(merge=MergeConfig(r=3, shuffle="random", shuffle_rate=0.5))
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: pytest.fail("it is known before"))
    with pytest.raises(UserError, match="Vim has shuffle='random', and a graph draws no random order"):
        to_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
def test_what_torch_cannot_write_as_onnx_is_one_error(tmp_path):
    pytest.importorskip("onnxscript")

    class Shuffled(nn.Module):
        def forward(self, x):
            return x[:, torch.randperm(4)]

    with pytest.raises(UserError, match="^to_onnx: Shuffled has what torch cannot write as ONNX: .*randperm"):
        model = Shuffled()
        model.scale = nn.Parameter(torch.ones(1))
        to_onnx(model, tmp_path / "model.onnx", torch.zeros(2, 4))
