"""Command lines as the released recipes write them, and the flags of the DeiT script that they come from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from image_task.config import DataConfig
from image_task.flags import parse
from image_task.main import build_model, check, main
from image_task.models import ALIASES
from rmeeto.engine import OptimConfig
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]
COMMON = "--lr 2e-5 --min-lr 1e-6 --data-path D --output_dir O --merge_method ToMe --batch-size 128 --model_pth P"
TINY = f"{COMMON} --model RMeeTo_tiny --num_prune 5"
SMALL = f"{COMMON} --model RMeeTo_small --num_prune 11"
BASE = f"{COMMON} --model RMeeTo_base --num_prune 11"
TRAIN = "--distill True --epoch 3"
VIDEO_SIZES = ("tiny", "small", "middle", "base")
UNORDERED = "without --if_order the merged tokens lose their order"

# (table, the line, the merge settings that it means, epochs or 0 for --eval)
LINES = [
    ("tab1", f"{SMALL} --metric X --distance cosine --if_order --num_prune 15 --eval", MergeConfig(r=15), 0),
    ("tab1", f"{SMALL} --metric X --if_order --if_pruning --eval", MergeConfig(r=11, prune=True), 0),
    ("tab1", f"{SMALL} --metric X --if_order {TRAIN}", MergeConfig(r=11), 3),
    ("tab2", f"{TINY} --metric X --distance cosine --if_order --epochs 30 --distill True", MergeConfig(r=5), 30),
    ("tab2", f"{BASE} --metric X --if_order --epochs 15 --distill True --model_ema", MergeConfig(r=11), 15),
    ("tab4", f"{TINY} --metric X --if_order {TRAIN}", MergeConfig(r=5), 3),
    ("tab4", f"{TINY} --metric X {TRAIN}", MergeConfig(r=5, keep_order=False), 3),
    ("tab5", f"{TINY} --model RMeeTo_tiny_shuffle --if_order --shuffle_rate 0.3 --eval",
     MergeConfig(r=5, shuffle="random", shuffle_rate=0.3), 0),
    ("tab5", f"{SMALL} --if_shuffle --shuffle_rate 0.7 --if_order --if_pruning {TRAIN}",
     MergeConfig(r=11, shuffle="random", shuffle_rate=0.7, prune=True), 3),
    ("tab6", f"{TINY} --metric B --if_order --eval", MergeConfig(r=5, metric="B"), 0),
    ("tab6", f"{TINY} --metric delta --if_order {TRAIN}", MergeConfig(r=5, metric="delta"), 3),
    ("tab7", f"{TINY} --metric X --distance l1 --if_order {TRAIN}", MergeConfig(r=5, distance="l1"), 3),
    ("tab8", f"{SMALL} --if_order --data-set SUBIMNET --data_ratio 0.1 --distill True --epochs 30",
     MergeConfig(r=11), 30),
    ("tab9", f"{SMALL} --if_order --distill True --epoch 7", MergeConfig(r=11), 7),
    ("tab11", f"{TINY} --num_prune 0 --if_order --eval", MergeConfig(), 0),
    ("tab11", f"{TINY} --num_prune 0 --if_order --compare 11 --eval", MergeConfig(final_tokens=76), 0),
    ("tab15", f"{SMALL} --choose 14c --if_order {TRAIN}", MergeConfig(r=11, neighbour=14), 3),
    ("tab16", f"{TINY} --merge_interval 4 --if_order {TRAIN}", MergeConfig(r=5, interval=4), 3),
    ("tab16", f"{TINY} --merge_interval 4 --if_order --compare 11 {TRAIN}",
     MergeConfig(r=5, interval=4, final_tokens=76), 3),
    ("tab17", f"{SMALL} --merge_mode amax --if_order --eval", MergeConfig(r=11, mode="amax"), 0),
    ("tab18", f"{SMALL} --if_merge_odd --if_order --if_pruning --eval", MergeConfig(r=11, odd=True, prune=True), 0),
    ("tab19", f"{SMALL} --if_merge_odd --if_order {TRAIN}", MergeConfig(r=11, odd=True), 3),
    ("tab21", f"{BASE} --if_merge_odd --if_order --distill True --epochs 15", MergeConfig(r=11, odd=True), 15),
]  # fmt: skip
IDS = [f"{table}-{number}" for number, (table, *_) in enumerate(LINES)]


@pytest.mark.parametrize(("table", "line", "merge", "epochs"), LINES, ids=IDS)
def test_a_released_line_means_what_it_says(table, line, merge, epochs, capsys):
    config, dry_run, _ = parse(line.split())
    assert not dry_run
    assert config.merge == merge
    assert (0 if config.run.eval else config.optim.epochs) == epochs
    assert config.run.eval or config.optim == OptimConfig(epochs=epochs, model_ema="--model_ema" in line)
    assert config.distill.distill == ("--distill" in line)
    subset = {"data_set": "SUBIMNET", "data_ratio": 0.1} if table == "tab8" else {"data_set": "IMNET"}
    assert config.data == DataConfig(data_path="D", **subset)
    assert config.model.model == f"vim_{line.split('RMeeTo_')[1].split()[0]}_patch16_224"
    assert (config.model.model_pth, config.run.output_dir) == ("P", "O")

    assert main([*line.split(), "--dry_run"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(json.dumps(config.to_dict()))
    assert (UNORDERED in captured.err) == (table == "tab4" and not merge.keep_order)


OTHERS = [
    ("RMeeTo_deit_tiny", "rmeeto_deit_tiny", MergeConfig(r=5)),
    ("RMeeTo_deit_small", "rmeeto_deit_small", MergeConfig(r=5)),
    ("RMeeTo_deit_base", "rmeeto_deit_base", MergeConfig(r=5)),
    ("RMeeTo_deit_small_teacher", "rmeeto_deit_small", None),
    *((f"RMeeTo_video_{size}", f"videomamba_{size}", MergeConfig(r=5)) for size in VIDEO_SIZES),
    *((f"RMeeTo_video_{size}_teacher", f"videomamba_{size}", None) for size in VIDEO_SIZES),
]


@pytest.mark.parametrize(("released", "ours", "merge"), OTHERS, ids=[name for name, *_ in OTHERS])
def test_every_other_released_model_name_is_known(released, ours, merge, capsys):
    line = COMMON if merge else COMMON.replace("--merge_method ToMe ", "")
    merging = "--num_prune 5 --merge_interval 2 --metric X --distance cosine --if_order True" if merge else ""
    line = f"{line} --model {released} {merging} --data-set IMNET {TRAIN}"
    assert main([*line.split(), "--dry_run"]) == 0
    captured = capsys.readouterr()
    config, _, notices = parse(line.split())
    assert json.loads(captured.out) == json.loads(json.dumps(config.to_dict()))
    assert (config.model.model, config.merge) == (f"{ours}_patch16_224", merge)
    assert notices == ([ALIASES[released].note] if released == "RMeeTo_video_middle" else [])
    if merge:
        unordered, _, notices = parse(line.replace("--if_order True", "").split())
        assert not unordered.merge.keep_order and any(UNORDERED in notice for notice in notices)


def test_every_image_table_has_a_line():
    tables = {path.name for path in (ROOT / "image_task" / "exp_sh").glob("tab*")}
    assert {table for table, *_ in LINES} == tables


def test_a_released_line_given_to_the_file(tmp_path):
    """Recipes start `python -m image_task.main` (tests/test_recipes.py); the released ones `python main.py`."""
    line = f"{SMALL} --metric X --choose 3c --merge_mode mean --if_merge_odd --sched cosine {TRAIN} --dry_run"
    command = [PYTHON, str(ROOT / "image_task" / "main.py"), *line.split()]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    merge = json.loads(process.stdout)["merge"]
    assert (merge["neighbour"], merge["mode"], merge["odd"], merge["keep_order"]) == (3, "mean", True, False)
    notes = process.stderr.splitlines()
    assert [note.split()[1] for note in notes] == ["--sched", "--data_path", "without"]
    assert not list(tmp_path.iterdir())


def test_the_last_merge_is_the_released_one_only_with_compare():
    plain, quirky = (parse(f"{TINY} --if_order {more}".split())[0].merge for more in ("", "--compare 11"))
    assert (plain.final_tokens, quirky.final_tokens) == (None, 76)


def test_images_without_a_data_set_are_imagenet():
    config, _, notices = parse(["--data-path", "D"])
    assert config.data.data_set == "IMNET"
    assert notices == ["--data_path without --data_set: IMNET, the default of DeiT's script"]
    assert parse(["--data-path", "D", "--data-set", "CIFAR"])[0].data.data_set == "CIFAR"
    assert parse([])[0].data.data_set == "digits"


# Flags of DeiT's and Vim's scripts without effect here: what they would change is fixed, or said otherwise.
IGNORED = (
    """
--opt adamw | --momentum 0.9 | --sched cosine | --lr-noise 0.1 0.2 | --lr-noise-pct 0.67 | --lr-noise-std 1.0
--decay-epochs 30 | --cooldown-epochs 10 | --patience-epochs 10 | --decay-rate 0.1 | --drop 0.0 | --resplit
--model-ema-force-cpu | --train-mode | --start_epoch 0 | --dist-eval | --distributed | --world_size 8
--dist_url env:// | --local-rank 0 | --gpu 0 | --if_merge True | --finetune= | --distillation-type none
--distillation-alpha 0.5 | --distillation-tau 1.0 | --if_continue_inf | --no_continue_inf | --if_nan2num
--no_nan2num | --no_random_cls_token | --no_random_token_rank
""".replace("\n", " | ")
    .strip(" |")
    .split(" | ")
)

# The others of DeiT's script: the settings that they reach.
REACHING = {
    "--batch-size 64": ("data", "batch_size", 64),
    "--epochs 300": ("optim", "epochs", 300),
    "--input-size 192": ("data", "input_size", 192),
    "--drop-path 0.2": ("model", "drop_path", 0.2),
    "--model-ema": ("optim", "model_ema", True),
    "--no-model-ema": ("optim", "model_ema", False),
    "--model-ema-decay 0.9": ("optim", "model_ema_decay", 0.9),
    "--opt-eps 1e-7": ("optim", "eps", 1e-7),
    "--opt-betas 0.8 0.9": ("optim", "betas", (0.8, 0.9)),
    "--clip-grad 1.0": ("optim", "clip_grad", 1.0),
    "--weight-decay 0.1": ("optim", "weight_decay", 0.1),
    "--warmup-epochs 5": ("optim", "warmup_epochs", 5),
    "--warmup-lr 1e-5": ("optim", "warmup_lr", 1e-5),
    "--color-jitter 0.4": ("data", "color_jitter", 0.4),
    "--aa none": ("data", "aa", "none"),
    "--smoothing 0.2": ("data", "smoothing", 0.2),
    "--train-interpolation bilinear": ("data", "train_interpolation", "bilinear"),
    "--repeated-aug": ("data", "repeated_aug", True),
    "--no-repeated-aug": ("data", "repeated_aug", False),
    "--reprob 0": ("data", "reprob", 0),
    "--remode const": ("data", "remode", "const"),
    "--recount 2": ("data", "recount", 2),
    "--mixup 0.5": ("data", "mixup", 0.5),
    "--cutmix 0.5": ("data", "cutmix", 0.5),
    "--cutmix-minmax 0.2 0.8": ("data", "cutmix_minmax", (0.2, 0.8)),
    "--mixup-prob 0.5": ("data", "mixup_prob", 0.5),
    "--mixup-switch-prob 0.1": ("data", "mixup_switch_prob", 0.1),
    "--mixup-mode elem": ("data", "mixup_mode", "elem"),
    "--data-set INAT": ("data", "data_set", "INAT"),
    "--output_dir X": ("run", "output_dir", "X"),
    "--device cuda": ("run", "device", "cuda"),
    "--seed 3": ("run", "seed", 3),
    "--eval": ("run", "eval", True),
    "--eval-crop-ratio 1.0": ("data", "eval_crop_ratio", 1.0),
    "--num_workers 25": ("data", "num_workers", 25),
    "--pin-mem": ("data", "pin_mem", True),
    "--no-pin-mem": ("data", "pin_mem", False),
    "--teacher-model RMeeTo_tiny_teacher": ("model", "teacher", "vim_tiny_patch16_224"),
    "--teacher-path T": ("model", "teacher_pth", "T"),
    "--inat-category genus": ("data", "inat_category", "genus"),
    "--if_amp": ("run", "amp", "auto"),
    "--no_amp": ("run", "amp", "off"),
}

# What they need, so that they are not refused as flags without effect.
COMPANY = {
    "--warmup-lr": "--warmup-epochs 1",
    "--model-ema-decay": "--model-ema",
    "--teacher-model": "--distill --teacher-path T",
    "--teacher-path": "--distill",
    "--inat-category": "--data-set INAT",
    **dict.fromkeys(
        ("--aa", "--color-jitter", "--train-interpolation", "--eval-crop-ratio"),
        "--model RMeeTo_small --data-set IMNET",
    ),
}

# Those that ask for another recipe than this one.
REFUSED = (
    """
--bce-loss | --unscale-lr | --src | --ThreeAugment | --cosub | --attn-only | --no-train-mode | --if_random_cls_token
--if_random_token_rank | --distillation-type hard | --finetune x.pth | --opt sgd | --sched step | --drop 0.1
--start_epoch 5 | --if_merge False
""".replace("\n", " | ")
    .strip(" |")
    .split(" | ")
)


@pytest.mark.parametrize("flag", IGNORED)
def test_a_flag_without_effect_is_accepted_and_named_once(flag):
    line = f"{SMALL} --data-set IMNET --if_order {TRAIN}"
    config, _, notices = parse([*line.split(), *flag.split()])
    assert config == parse(line.split())[0]
    name = flag.split()[0].split("=")[0].replace("-", "_").replace("__", "--", 1)
    assert len(notices) == 1 and notices[0].startswith(f"{name} is ignored: ")


@pytest.mark.parametrize("flag", REACHING)
def test_a_flag_with_an_effect_reaches_its_setting(flag):
    section, field, value = REACHING[flag]
    config, _, notices = parse([*flag.split(), *COMPANY.get(flag.split()[0], "").split()])
    assert getattr(getattr(config, section), field) == value
    assert not notices


@pytest.mark.parametrize("flag", REFUSED)
def test_a_flag_that_asks_for_another_recipe_is_an_error(flag):
    with pytest.raises(UserError, match="is not supported .*; leave the flag out") as caught:
        parse([*SMALL.split(), *flag.split()])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--model rmeeto_deit_tiny_patch16_224 --num_prune 5 --metric B",
            "metric='B'; a Transformer has X, Q",
        ),
        ("--model rmeeto_deit_tiny_patch16_224 --num_prune 5 --if_merge_odd", "Deit: odd=True has no effect"),
        (
            "--model rmeeto_deit_tiny_patch16_224 --num_prune 5 --merge_interval 4",
            "Deit: interval=4 has no effect",
        ),
        ("--model vim_tiny_patch16_224 --num_prune 5 --metric Q", "metric='Q'"),
        ("--model vim_tiny_patch16_224 --num_prune 5 --choose 90c", "destinations"),
    ],
)
def test_an_option_without_effect_for_a_model_is_an_error_that_names_it(line, message):
    with pytest.raises(UserError, match=message):
        check(parse([*line.split(), "--if_order"])[0])


def test_averaged_weights_are_taken_on_request(tmp_path):
    plain, averaged = (build_model(parse(["--seed", seed])[0], None).state_dict() for seed in "12")
    torch.save({"model": plain, "model_ema": averaged}, tmp_path / "both.pth")
    for name, expected in (("auto", plain), ("plain", plain), ("ema", averaged)):
        config, _, _ = parse(["--model_pth", str(tmp_path / "both.pth"), "--weights", name])
        state = build_model(config, None).state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
