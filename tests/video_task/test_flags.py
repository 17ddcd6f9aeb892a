"""The video command line: the released flags, what they reach, and what has no effect."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from rmeeto.engine import DistillConfig
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from video_task.config import VideoConfig, VideoDataConfig, VideoModelConfig, VideoRunConfig
from video_task.flags import COMMAND, IGNORED_FLAGS, parse
from video_task.main import meta_model
from video_task.optim import VideoOptimConfig

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "model": VideoModelConfig,
    "data": VideoDataConfig,
    "optim": VideoOptimConfig,
    "distill": DistillConfig,
    "run": VideoRunConfig,
}
FIELDS = [(name, field.name) for name, section in SECTIONS.items() for field in dataclasses.fields(section)]

# What the released recipes of tables 13 and 14 say, in the flags of the scripts that they come from.
RETRAIN = (
    "--model videomamba_R_MeeTo_small --num_prune 88 --data_path data/k400 --prefix data/k400/videos "
    "--data_set Kinetics_sparse --split , --nb_classes 400 --log_dir log --output_dir log --batch_size 32 "
    "--num_sample 2 --input_size 224 --short_side_size 224 --save_ckpt_freq 100 --num_frames 8 --num_workers 12 "
    "--warmup_epochs 5 --tubelet_size 1 --epochs 15 --lr 2e-5 --drop_path 0.1 --aa rand-m5-n2-mstd0.25-inc1 "
    "--opt adamw --opt_betas 0.9 0.999 --weight_decay 0.1 --test_num_segment 4 --test_num_crop 3 --dist_eval "
    "--test_best --bf16 --update_freq 2 --finetune weights.pth --layer_decay 0.75"
)


def config_of(line: str) -> VideoConfig:
    return parse(line.split())[0]


def test_a_released_command_line_means_what_it_meant():
    config, dry_run, notices = parse(RETRAIN.split())
    assert not dry_run
    ignored = {notice.split()[0] for notice in notices}
    assert ignored == {"--opt", "--dist_eval", "--log_dir", "--save_ckpt_freq"}
    assert config.model == VideoModelConfig(
        model="videomamba_video_small_patch16_224", nb_classes=400, model_pth="weights.pth", tubelet_size=1
    )
    assert config.merge == MergeConfig(r=88), "ordered, as the released model was whatever the flags said"
    assert config.data == VideoDataConfig(
        data_path="data/k400",
        prefix="data/k400/videos",
        split=",",
        input_size=224,
        short_side_size=224,
        num_workers=12,
    )
    assert config.optim == VideoOptimConfig(epochs=15, accumulation=2)
    assert config.run == VideoRunConfig(output_dir="log", amp="bf16", test_best=True)
    assert meta_model(config).num_tokens[-1] == 601


def test_the_defaults_are_the_papers_video_recipe():
    optim, data = VideoOptimConfig(), VideoDataConfig()
    assert (optim.lr, optim.min_lr, optim.warmup_lr, optim.warmup_epochs) == (2e-5, 1e-6, 1e-6, 5)
    assert (optim.schedule, optim.weight_decay, optim.betas, optim.layer_decay) == (
        "iteration",
        0.1,
        (0.9, 0.999),
        0.75,
    )
    assert (data.num_frames, data.num_sample, data.batch_size, data.aa) == (
        8,
        2,
        32,
        "rand-m5-n2-mstd0.25-inc1",
    )
    assert (data.test_num_segment, data.test_num_crop) == (4, 3)
    assert not DistillConfig().distill


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--num_prune 88", MergeConfig(r=88)),
        ("--num_prune 88 --if_order False", MergeConfig(r=88, keep_order=False)),
        (
            "--num_prune 88 --if_order True --metric B --distance l1",
            MergeConfig(r=88, metric="B", distance="l1"),
        ),
        ("--num_prune 88 --if_prune True --if_merge_odd True", MergeConfig(r=88, prune=True, odd=True)),
        ("--num_prune 88 --merge_interval 4 --merge_mode amax", MergeConfig(r=88, interval=4, mode="amax")),
        ("--num_prune 88 --choose 3c", MergeConfig(r=88, neighbour=3)),
        ("--num_prune 40 --window 2,3,3", MergeConfig(r=40, window=(2, 3, 3))),
        ("--num_prune 0", MergeConfig()),
        ("--merge_method none", None),
        ("", MergeConfig()),
    ],
)
def test_every_merge_option_reaches_the_model(line, expected):
    config = config_of(f"{line} --model videomamba_R_MeeTo_tiny")
    assert config.merge == expected
    assert meta_model(config).merge_config == expected


OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.01, str: lambda v: v + "x"}
VALUES = {
    "reduce": "bf16",
    "processes": 2,
    "elastic_r": (2, 5),
    "model": "videomamba_video_tiny_patch16_224",
    "teacher": "videomamba_video_tiny_patch16_224",
    "weights": "ema",
    "min_lr": 1e-5,
    "schedule": "cosine",
    "device": "cpu",
    "amp": "off",
    "train_interpolation": "bilinear",
    "remode": "rand",
    "mixup_mode": "elem",
    "data_set": "HMDB51",
    "split": ",",
    "sampling": "dense",
    "flip": False,
    "nb_classes": 7,
    "tubelet_size": 2,
    "checkpoint_num": 3,
    "input_size": 112,
    "short_side_size": 256,
    "clip_grad": 1.0,
    "cutmix_minmax": (0.25, 0.5),
    "betas": (0.25, 0.5),
    "data_changed": "ok",
}
# What else a flag needs, so that it is not refused as one without effect.
COMPANY = {
    "weights": "--model_pth m.pth",
    "teacher": "--distill --teacher_pth t.pth",
    "teacher_pth": "--distill",
    "distill": "--model_pth m.pth",
    "distill_weight": "--distill --model_pth m.pth",
    "teacher_cache": "--distill --model_pth m.pth",
    "teacher_top": "--distill --model_pth m.pth --teacher_cache c",
    "head_map": "--model_pth m.pth",
    "delete_head": "--model_pth m.pth",
    "class_names": "--model_pth m.pth",
    "fold": "--data_set UCF101",
    "data_changed": "--resume",
    "elastic_r": "--r 5",
}


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_field_has_a_flag_that_reaches_it(section, field):
    default = getattr(SECTIONS[section](), field)
    value = VALUES.get(field)
    if value is None:
        value = OTHER[str if default is None else type(default)]("" if default is None else default)
    words = [str(word) for word in value] if isinstance(value, tuple) else [str(value)]
    words = [",".join(words)] if field == "elastic_r" else words
    config = config_of(" ".join([f"--{field}", *words, COMPANY.get(field, "")]))
    assert value != default
    if not config.run.smoke:
        assert getattr(getattr(config, section), field) == value


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_field_is_read_by_the_code(section, field):
    folders = ("rmeeto/engine", "rmeeto/data", "rmeeto/cli", "video_task", "video_task/data")
    files = [file for folder in folders for file in (ROOT / folder).glob("*.py")]
    read = re.compile(rf"(?<!\bself)\.{field}\b(?!\s*=[^=])")
    named = "self.sampling or" if field == "sampling" else None  # behind the property `dense`
    assert any(read.search(file.read_text()) or (named and named in file.read_text()) for file in files)


def test_ignored_flags_are_no_others():
    options = COMMAND.parser()._option_string_actions
    assert all(options[f"--{name}"].dest == f"ignored.{name}" for name in IGNORED_FLAGS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--model vim_tiny_patch16_224",
            "unknown --model 'vim_tiny_patch16_224'; did you mean videomamba_video_tiny",
        ),
        ("--num_prune 4 --window 2,3", "--window (2, 3); expected frames, rows and columns"),
        ("--num_prune 4 --window 2,3,x", "got '2,3,x'; expected a number or numbers with commas"),
        ("--num_prune 4 --window 2,3,3 --if_order False", "needs ordered tokens"),
        ("--head_map map.json", "--head_map has no effect: there is no --model_pth"),
        ("--delete_head --head_map m.json --model_pth x", "expected none with --delete_head True"),
        ("--fold 2", "--fold has no effect: it belongs to --data_set UCF101 and HMDB51"),
        ("--layer_decay 0", "--layer_decay 0.0; expected a number in (0, 1]"),
        ("--tubelet_size 0", "--tubelet_size 0"),
        ("--checkpoint_num -1", "--checkpoint_num -1"),
        ("--drop 0.1", "--drop 0.1 is not supported"),
        ("--flip maybe", "got 'maybe'; expected True or False or none"),
        ("--distill", "needs a trained teacher; give --model_pth"),
        ("--batch_size 3 --num_sample 1", "is odd, but mixup pairs the clips"),
    ],
)
def test_mistakes_are_one_clear_error(line, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse(line.split())
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("line", "notice"),
    [
        ("--eval --lr 1e-3 --num_sample 1", "--num_sample, --lr have no effect: --eval only evaluates"),
        ("--eval --test_best --use_checkpoint", "--use_checkpoint, --test_best have no effect: --eval only"),
        ("--checkpoint_num 3", "--checkpoint_num has no effect: --use_checkpoint is off"),
        ("--sampling_rate 8", "--sampling_rate has no effect: sparse sampling has no rate"),
        ("--data_set folder --split ;", "--split has no effect: --data_set folder has no lists"),
        (
            "--smoke --data_path x --head_map y",
            "--head_map, --data_path have no effect: --smoke has its own",
        ),
        ("--num_prune 0 --metric B", "--metric has no effect: --r 0 merges nothing"),
        ("--augment False --flip True", "--flip has no effect: --augment is off"),
        ("--augment False", "--num_sample 1: without --augment all views of a clip are the same"),
    ],
)
def test_flags_without_effect_are_named(line, notice):
    notices = parse(line.split())[2]
    assert any(notice in line for line in notices), notices


def test_settings_survive_json(tmp_path):
    config = config_of(RETRAIN + " --window 2,3,3 --cutmix_minmax 0.1 0.5 --flip False")
    plain = json.loads(json.dumps(config.to_dict()))
    assert VideoConfig.from_dict(plain) == config
    (tmp_path / "config.json").write_text(json.dumps(plain))
    assert config_of(f"--config {tmp_path}/config.json") == config
    assert config.folder == Path("log/videomamba_video_small_patch16_224-r88-window2_3_3")


def test_smoke_needs_nothing_and_is_small():
    config = config_of(RETRAIN + " --smoke")
    assert config == config_of(RETRAIN).smoke()
    assert (config.data.batch_size, config.data.max_train_batches, config.data.max_eval_batches) == (2, 2, 1)
    assert config.model.model_pth is None and config.model.nb_classes is None and config.optim.epochs == 1
    assert config.merge == MergeConfig(r=88) and config.data.num_frames == 8


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--data_path D", "dense"),
        ("--data_path D --data_set SSV2 --model_pth videomamba_t16_k400_f8_res224.pth --eval", "dense-SSV2-eval"),
        ("--data_path D --num_frames 16 --input_size 112 --model_pth runs/mine/best.pt", "dense-16f-112px"),
        ("--data_path D --data_set folder --model_pth runs/mine/best.pt --eval", "dense-folder-mine-eval"),
        ("--data_path D --model_pth w/videomamba_t16_k400_f8_res224.pth --eval --r 8", "r8-eval"),
        ("--smoke --eval", "dense-eval-smoke"),
    ],
)
def test_the_run_folder_names_data_size_and_weights_that_the_model_is_not_for(line, name):
    folder = config_of(f"--model videomamba_video_tiny_patch16_224 {line}").folder
    assert folder == Path(f"log/videomamba_video_tiny_patch16_224-{name}")
