"""Model folders from strangers: each is refused in a line, quickly, without memory, other files or the network."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import image_task.models  # noqa: F401  (registers them)
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.hub import CONFIG, WEIGHTS, export, load
from tests.limits import run_limited

NAME = "vim_nano_patch2_16"
# What config.json says otherwise than export wrote it -> part of the reason.
ARGUMENTS = {
    "pretrained": (True, "pretrained', which export does not write"),
    "cache_dir": ("/tmp/elsewhere", "cache_dir', which export does not write"),
    "checkpoint_path": ("/etc/passwd", "checkpoint_path', which export does not write"),
    "pretrained_cfg": ({"url": "http://127.0.0.1/x"}, "pretrained_cfg', which export does not write"),
    "pretrained_cfg_overlay": ({"url": "http://127.0.0.1/x"}, "which export does not write"),
    "features_only": (True, "which export does not write"),
    "scriptable": (True, "which export does not write"),
    "weight_init": ("jax", "which export does not write"),
    "x\x1b]0;title\x07": (1, "which export does not write"),
    "img_size": (20_000, r"mis-shaped: pos_embed .* for \(1, 100000001, 32\)"),
    "img_size of text": ("big", "img_size='big'; expected"),
    "img_size of three": ([16, 16, 16], r"img_size=\[16, 16, 16\]; expected"),
    "num_classes": (-1, "num_classes=-1; expected"),
    "embed_dim": (10**6, "mis-shaped: "),
    "embed_dim beyond all": (10**12, "within bounds"),
    "depth": (10**7, "within bounds"),
    "depth of a million": (10**6, "depth=1000000, but there are weights of .* tensors only"),
    "depth of none": (0, "unexpected: |does not describe"),
    "patch_size": (0, "does not describe a vim_nano_patch2_16"),
    "patch_size that is true": (True, "patch_size=True; expected"),
    "merge": ({"r": -1}, "does not describe a vim_nano_patch2_16"),
    "merge of text": ("ToMe", "merge is 'ToMe'; expected its fields"),
    "merge of a rule": ({"r": 2, "rule": "os.system"}, "code of a module"),
}
CFG = {
    "url": ("http://127.0.0.1/x", "pretrained_cfg has 'url', which export does not write"),
    "hf_hub_id": ("owner/name", "'hf_hub_id', which export does not write"),
    "file": ("/etc/passwd", "'file', which export does not write"),
    "custom_load": (True, "'custom_load', which export does not write"),
    "state_dict": ({}, "'state_dict', which export does not write"),
    "input_size": ([], r"input_size=\[\]; expected"),
    "input_size beyond all": ([3, 10**9, 10**9], "within bounds"),
    "mean": ([0.5] * 10**5, "within bounds"),
    "crop_pct": ("all", "crop_pct='all'; expected"),
    "crop_pct that is tiny": (0.0, "crop_pct=0.0; expected a share"),
    "crop_pct that is large": (1.5, "crop_pct=1.5; expected a share"),
    "input_size that is empty": ([3, 0, 16], r"input_size=\[3, 0, 16\]; expected sides"),
    "mean of two": ([0.5, 0.5], "mean=.*expected a number a channel"),
    "std of nothing": ([], "std=.*expected a number above 0"),
    "std that is zero": ([0.0, 0.0, 0.0], "std=.*expected a number above 0"),
    "interpolation that nobody knows": ("X", "interpolation='X'; expected one of nearest"),
}
TOP = {
    "an architecture of timm": ({"architecture": "resnet50"}, "which is not known here"),
    "an architecture of a path": ({"architecture": "hf-hub:owner/name"}, "which is not known here"),
    "an architecture of a folder": ({"architecture": "local-dir:/tmp"}, "which is not known here"),
    "another architecture of ours": ({"architecture": "vim_base_patch16_224"}, "does not fit Vim"),
    "a transformer": (
        {"architecture": "vit_giant_patch14_224", "model_args": {}},
        "does not fit VisionTransformer",
    ),
}


def write(folder: Path, start: Path, name: str) -> None:
    """The folder `start` with a config.json changed as the tables say."""
    shutil.copytree(start, folder)
    config = json.loads((start / CONFIG).read_text())
    if name in TOP:
        config.update(TOP[name][0])
    else:
        part, table = ("model_args", ARGUMENTS) if name in ARGUMENTS else ("pretrained_cfg", CFG)
        key = re.split(r" (?:of|beyond|that) ", name)[0]
        config[part][key] = table[name][0]
    (folder / CONFIG).write_text(json.dumps(config))


def deep(folder: Path) -> None:
    (folder / CONFIG).write_text("[" * 10**6)


def pipe(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def pipe_of_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def weights_that_are_not_there(folder: Path) -> None:
    """A header and a description of 40 GB that agree, in a file of some bytes."""
    config = json.loads((folder / CONFIG).read_text())
    config["model_args"]["embed_dim"] = 2**15
    (folder / CONFIG).write_text(json.dumps(config))
    with torch.device("meta"):
        model = timm.create_model(NAME, embed_dim=2**15)
    header, at = {}, 0
    for key, value in model.state_dict().items():
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


def whole_numbers(folder: Path) -> None:
    state = timm.create_model(NAME).state_dict()
    save_file({key: value.long() for key, value in state.items()}, folder / WEIGHTS)


FILES = {
    deep: "nested too deeply",
    pipe: "no regular file",
    pipe_of_weights: "there is no .*model.safetensors",
    weights_that_are_not_there: "bytes, of which it holds 0",
    whole_numbers: "another kind of number",
}
LOAD = """
import json, os, sys, time
import image_task.models
from rmeeto.errors import UserError
from rmeeto.hub import load
good, *folders = json.load(open(sys.argv[1]))
load(good)  # imports what loading needs
"\\x1b".encode("unicode_escape")
seen = []
def note(event, args):
    if event.startswith(("socket.", "subprocess.")) or (event == "open" and not isinstance(args[0], int)):
        seen.append((event, str(args[0])))
sys.addaudithook(note)
for folder in [good, *folders]:
    del seen[:]
    start = time.process_time()
    try:
        load(folder)
        outcome = "loaded"
    except UserError as error:
        outcome = str(error)
    seconds = time.process_time() - start
    print(json.dumps([outcome, seconds, [what for what in seen if not what[1].startswith(folder + "/")]]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What loading says to each folder, how long it took, and what else it opened."""
    root = tmp_path_factory.mktemp("folders")
    torch.manual_seed(0)
    good = export(timm.create_model(NAME), root / "good")
    folders = {"good": good}
    for index, name in enumerate((*ARGUMENTS, *CFG, *TOP)):
        folders[name] = root / str(index)
        write(folders[name], good, name)
    for make in FILES:
        folders[make] = root / make.__name__
        shutil.copytree(good, folders[make])
        make(folders[make])
    (root / "folders").write_text(json.dumps([str(folder) for folder in folders.values()]))
    lines = run_limited(LOAD, root / "folders").splitlines()
    return dict(zip(folders, map(json.loads, lines), strict=True))


def test_an_honest_folder_loads_and_opens_its_own_files_alone(outcomes):
    outcome, _, opened = outcomes["good"]
    assert outcome == "loaded" and opened == []


@pytest.mark.parametrize("name", [*ARGUMENTS, *CFG, *TOP, *FILES])
def test_a_folder_that_means_harm_is_refused_and_opens_nothing_else(outcomes, name):
    outcome, seconds, opened = outcomes[name]
    reason = FILES[name] if callable(name) else {**ARGUMENTS, **CFG, **TOP}[name][1]
    assert re.search(reason, outcome), outcome
    assert opened == [] and seconds < 5
    assert all(line.isprintable() for line in outcome.split("\n")) and len(outcome) < 1000


def test_a_folder_is_loaded_without_a_socket(tmp_path, monkeypatch):
    """Also where timm would look for weights: the name has some on the hub."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was made")

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    export(model, tmp_path / "model")
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    again = load(tmp_path / "model")
    assert torch.equal(again.head.weight, model.head.weight)


def test_a_rule_of_a_folder_imports_no_module_of_its_choosing(tmp_path, monkeypatch):
    (tmp_path / "chosen.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = export(timm.create_model(NAME, merge=MergeConfig(r=2)), tmp_path / "model")
    description = json.loads((folder / CONFIG).read_text())
    description["model_args"]["merge"]["rule"] = "chosen:rule"
    (folder / CONFIG).write_text(json.dumps(description))
    with pytest.raises(UserError, match="merges by the rule 'chosen:rule', which is code of a module; if you trust it"):
        load(folder)


def test_a_rule_that_no_file_can_name_is_one_error(tmp_path):
    model = timm.create_model(NAME, merge=MergeConfig(r=4, rule=lambda metric, r, tokens: None))
    with pytest.raises(UserError, match="export: MergeConfig: rule=.* has no name to be written by"):
        export(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
