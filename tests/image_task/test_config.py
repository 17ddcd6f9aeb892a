from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from image_task.config import Config, DataConfig, ModelConfig
from image_task.flags import COMMAND, IGNORED_FLAGS, parse
from rmeeto.engine import DistillConfig, OptimConfig, RunConfig
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.merge.released import RELEASED

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "distill": DistillConfig,
    "run": RunConfig,
}
FIELDS = [(name, field.name) for name, section in SECTIONS.items() for field in dataclasses.fields(section)]

# A released command line of tab2 and its kind, as they stand there.
RETRAIN = (
    "--lr 2e-5 --min-lr 1e-6 --epochs 15 --data-path /data/imagenet --output_dir ./log --model RMeeTo_small "
    "--merge_method ToMe --num_prune 11 --metric X --distance cosine --if_order True --model_pth vim_s.pth "
    "--batch-size 128 --distill True --distill_weight 0.5 --data-set IMNET"
)


def config_of(line: str) -> Config:
    return parse(line.split())[0]


def test_a_released_command_line_means_what_it_meant():
    config, dry_run, notices = parse(RETRAIN.split())
    assert not dry_run and not notices
    assert config.model == ModelConfig(model="vim_small_patch16_224", model_pth="vim_s.pth")
    assert config.merge == MergeConfig(r=11)
    assert config.data == DataConfig(data_set="IMNET", data_path="/data/imagenet")
    assert config.optim == OptimConfig(epochs=15)
    assert config.distill == DistillConfig(distill=True, distill_weight=0.5)
    assert config.run == RunConfig()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--num_prune 5", MergeConfig(r=5)),
        ("--model RMeeTo_tiny --num_prune 5", MergeConfig(r=5, keep_order=False)),
        ("--model RMeeTo_tiny --r 5 --keep_order", MergeConfig(r=5)),
        ("--r 5 --interval 4 --odd --mode amax", MergeConfig(r=5, interval=4, odd=True, mode="amax")),
        ("--r 5 --prune --no_keep_order --neighbour 3", MergeConfig(r=5, prune=True, keep_order=False, neighbour=3)),
        ("--r 5 --shuffle random --shuffle_rate 0.3", MergeConfig(r=5, shuffle="random", shuffle_rate=0.3)),
        ("--num_prune 5 --if_order False", MergeConfig(r=5, keep_order=False)),
        ("--num_prune 0 --if_order True", MergeConfig()),
        ("--num_prune 5 --if_order --compare 11", MergeConfig(r=5, final_tokens=76)),
        ("--r 5 --if_order --final_tokens 80", MergeConfig(r=5, final_tokens=80)),
        ("--num_prune 5,6,7 --if_order", MergeConfig(r=(5, 6, 7))),
        ("--num_prune 8,-1.0 --if_order", MergeConfig(r=(8, -1.0))),
        ("--num_prune 5 --if_order True --if_pruning True", MergeConfig(r=5, prune=True)),
        ("--r 5 --if_order --metric delta --released_flip", MergeConfig(r=5, metric="delta", released_flip=True)),
        ("--num_prune 5 --if_order --distance l1 --merge_mode amax", MergeConfig(r=5, distance="l1", mode="amax")),
        ("--num_prune 5 --if_order --choose 3c", MergeConfig(r=5, neighbour=3)),
        ("--num_prune 5 --if_order --choose max", MergeConfig(r=5)),
        ("--num_prune 5 --if_order --if_merge_odd True --merge_interval 4", MergeConfig(r=5, odd=True, interval=4)),
        (
            "--num_prune 5 --if_order --if_shuffle True --shuffle_rate 0.3",
            MergeConfig(r=5, shuffle="random", shuffle_rate=0.3),
        ),
        ("--num_prune 5 --if_order --if_shuffle odd-even", MergeConfig(r=5, shuffle="odd-even")),
        ("--num_prune 5 --if_order --class_position exact", MergeConfig(r=5, class_position="exact")),
        (
            "--model RMeeTo_tiny_shuffle --num_prune 5 --if_order --shuffle_rate 0.3",
            MergeConfig(r=5, shuffle="random", shuffle_rate=0.3),
        ),
        ("--model RMeeTo_tiny_teacher", None),
        ("--merge_method none", None),
    ],
)  # fmt: skip
def test_merge_flags(line, expected):
    assert config_of(line).merge == expected


@pytest.mark.parametrize(
    ("line", "section", "field", "value"),
    [
        ("--epoch 3", "optim", "epochs", 3),
        ("--accumulation_steps 2", "optim", "accumulation", 2),
        ("--data-set SUBIMNET --data_ratio 0.1", "data", "data_ratio", 0.1),
        ("--model_ema --model_ema_decay 0.9", "optim", "model_ema_decay", 0.9),
        ("--drop-path 0.0", "model", "drop_path", 0.0),
        ("--clip-grad 1.5", "optim", "clip_grad", 1.5),
        ("--no-repeated-aug", "data", "repeated_aug", False),
        ("--cutmix-minmax 0.2 0.8", "data", "cutmix_minmax", (0.2, 0.8)),
        ("--opt-betas 0.8 0.9 --opt-eps 1e-7", "optim", "betas", (0.8, 0.9)),
        ("--eval", "run", "eval", True),
        ("--resume True", "run", "resume", True),
        ("--input-size 32", "data", "input_size", 32),
        ("--nb-classes 10", "model", "nb_classes", 10),
    ],
)
def test_other_flags_of_the_released_recipes(line, section, field, value):
    assert getattr(getattr(config_of(line), section), field) == value


OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.01, str: lambda v: v + "x"}
CHOICES = {
    "reduce": "bf16",
    "elastic_r": (2, 5),
    "model": "vim_tiny_patch16_224",
    "teacher": "vim_tiny_patch16_224",
    "min_lr": 1e-5,
    "schedule": "cosine",
    "device": "cpu",
    "amp": "off",
    "train_interpolation": "random",
    "draft": "all",
    "decoder": "nvjpeg",
    "remode": "rand",
    "mixup_mode": "elem",
    "data_set": "INAT",
    "weights": "ema",
    "pretrained": "auto",
    "data_changed": "ok",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.1, 0.2, 0.3),
}
# What else a flag needs, so that it is not refused as one without effect.
COMPANY = {
    "teacher": "--distill --teacher_pth t.pth",
    "teacher_pth": "--distill",
    "distill": "--model_pth m.pth",
    "distill_weight": "--distill --model_pth m.pth",
    "teacher_cache": "--distill --model_pth m.pth",
    "teacher_top": "--distill --model_pth m.pth --teacher_cache c",
    "data_ratio": "--data_set SUBIMNET",
    "inat_category": "--data_set INAT",
    "class_map": "--data_set IMNET",
    "draft": "--data_set IMNET",
    "decoder": "--data_set IMNET --aa none",
    "local_shards": "--data_set tar --repeated_aug False",
    "download": "--data_set FASHION",
    "warmup_lr": "--warmup_epochs 1",
    "weights": "--model_pth m.pth",
    "data_changed": "--resume",
    "elastic_r": "--r 5",
    "delete_head": "--model_pth m.pth",
    "class_names": "--model_pth m.pth",
}


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_field_has_a_flag_that_reaches_it(section, field):
    default = getattr(SECTIONS[section](), field)
    value = CHOICES.get(field)
    if value is None:
        whole = dict.fromkeys(("nb_classes", "processes", "input_size"), int)
        kinds = {**whole, "clip_grad": float, "cutmix_minmax": tuple}
        kind = kinds.get(field, str) if default is None else type(default)
        value = (0.25, 0.5) if kind is tuple else OTHER[kind](kind() if default is None else default)
    words = [str(word) for word in value] if isinstance(value, tuple) else [str(value)]
    words = [",".join(words)] if field == "elastic_r" else words
    config, _, _ = parse([f"--{field}", *words, *COMPANY.get(field, "").split()])
    assert value != default
    if not config.run.smoke:
        assert getattr(getattr(config, section), field) == value


def test_help_says_what_torchrun_does_to_r():
    assert "write --num_prune there" in " ".join(COMMAND.parser().format_help().split())


def test_every_merge_option_has_a_flag_of_its_own_name_and_every_released_one_its_own():
    options = COMMAND.parser()._option_string_actions
    assert {f"--{field.name}" for field in dataclasses.fields(MergeConfig)} <= options.keys()
    for name, released in RELEASED.items():
        assert options[f"--{name}"].dest == f"merge.{released.field}"
    assert all(options[f"--{field.name}"].help for field in dataclasses.fields(MergeConfig))


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_field_is_read_by_the_code(section, field):
    folders = (*(ROOT / "rmeeto" / room for room in ("engine", "data", "cli")), ROOT / "image_task")
    files = [file for folder in folders for file in folder.glob("*.py")]
    # Checks in __post_init__ say self.<field>: reading means <something else>.<field>.
    read = re.compile(rf"(?<!\bself)\.{field}\b(?!\s*=[^=])")
    assert any(read.search(file.read_text()) for file in files), f"{section}.{field} is read by nobody"


def test_ignored_flags_are_no_others():
    taken = set(COMMAND.parser()._option_string_actions)
    assert len(taken) == len(set(taken))
    for name in IGNORED_FLAGS:
        action = COMMAND.parser()._option_string_actions[f"--{name}"]
        assert action.dest == f"ignored.{name}"


def test_ignored_flags_are_named_once_and_change_nothing():
    config, _, notices = parse("--opt adamw --momentum 0.9 --decay-rate 0.1 --dist-eval --if_order".split())
    assert config == config_of("--if_order")
    assert [notice.split()[0] for notice in notices[:4]] == [
        "--opt",
        "--momentum",
        "--decay_rate",
        "--dist_eval",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lr two", "--lr: got 'two'; expected a number"),
        ("--epoch 0", "--epoch 0; expected 1 to"),
        ("--num_prun 3", "unknown flag --num_prun; did you mean --num_prune"),
        ("--num_prune five", "got 'five'; expected a number"),
        ("--num_prune -1", "--num_prune -1"),
        ("--metric Z", "--metric Z; expected one of"),
        ("--choose best", "choose='best'; expected 'max' or a rank"),
        ("--compare x", "compare='x'; expected an integer"),
        ("--model vim_tinny_patch16_224", "did you mean vim_tiny_patch16_224"),
        ("--model vit_tiny_patch16_224x", "did you mean vit_tiny_patch16_224"),
        ("--cutmix_minmax 5 3", "--cutmix_minmax (5.0, 3.0); expected a number in [0, 1]"),
        ("--cutmix_minmax 0.5 0.5", "--cutmix_minmax (0.5, 0.5); expected two shares"),
        ("--seed 9999999999999999999999", "--seed 9999999999999999999999; expected 0 to 2147483647"),
        ("--data_ratio 2 --data-set SUBIMNET", "--data_ratio 2.0; expected a number in (0, 1]"),
        ("--batch-size 0", "--batch_size 0"),
        ("--min-lr 1", "--min_lr 1.0; expected a rate between 0 and --lr 0.008"),
        ("--shuffle_rate 0.3", "--shuffle_rate 0.3 has no effect with --shuffle None"),
        ("--if_shuffle", "needs a shuffle_rate"),
        ("--distill_weight 0.3", "--distill_weight has no effect: --distill is off"),
        ("--distill", "needs a trained teacher; give --model_pth"),
        ("--teacher vim_tiny_patch16_224 --distill --model_pth x", "expected --teacher_pth ... with it"),
        ("--data_ratio 0.1", "--data_ratio has no effect: it belongs to --data_set SUBIMNET"),
        ("--inat-category genus", "--inat_category has no effect"),
        ("--merge_method none --num_prune 5", "--num_prune has no effect: --merge_method none"),
        ("--model RMeeTo_tiny_teacher --metric B", "--metric has no effect: a teacher is the dense model"),
        ("--released_flip --num_prune 3", "--released_flip has no effect: it is for --metric B"),
        ("--opt sgd", "--opt sgd is not supported"),
        ("--weights ema", "--weights has no effect: there is no --model_pth"),
        ("--weights best --model_pth x", "--weights best; expected one of auto, plain, ema"),
        ("--data-set digits --data-path x", "--data_path has no effect: the digits are embedded"),
        ("--config nowhere.json", "nowhere.json cannot be read as JSON"),
        ("--resume log/last.pt", "got 'log/last.pt'; expected True or False"),
    ],
)
def test_mistakes_are_one_clear_error(line, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse(line.split())
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("line", "notice"),
    [
        ("--eval --lr 1e-3 --epochs 3", "--lr, --epochs have no effect: --eval only evaluates"),
        ("--num_prune 0 --metric B --if_order", "--metric, --if_order have no effect: --r 0 merges nothing"),
        ("--num_prune 5 --if_pruning --merge_mode mean", "--merge_mode has no effect: --prune True drops"),
        ("--mixup 0 --cutmix 0 --mixup_prob 0.5", "--mixup_prob has no effect: neither --mixup nor --cutmix"),
        ("--model_ema_decay 0.9", "--model_ema_decay has no effect: --model_ema is off"),
        ("--model RMeeTo_tiny --num_prune 5", "without --if_order the merged tokens lose their order"),
        ("--eval_crop_ratio 0.9", "--eval_crop_ratio has no effect: the digits are not cropped"),
        (
            "--aa none --color_jitter 0 --train_interpolation random",
            "--color_jitter, --aa, --train_interpolation have no effect: the digits have an augmentation of",
        ),
        (
            "--smoke --data_set IMNET --aa none",
            "--aa has no effect: the digits have an augmentation of their",
        ),
        (
            "--data_set CIFAR --eval --eval_crop_ratio 0.9",
            "--eval_crop_ratio has no effect: images of up to 32",
        ),
        (
            "--data_set IMNET --model RMeeTo_tiny --input_size 32 --aa none --train_interpolation random",
            "--train_interpolation has no effect: images of up to 32 pixels are cropped from padded ones",
        ),
        ("--smoke --model_pth x.pth", "--model_pth has no effect: --smoke has its own"),
    ],
)
def test_flags_without_effect_are_named(line, notice):
    notices = parse(line.split())[2]
    assert any(notice in line for line in notices), notices


@pytest.mark.parametrize(
    "line",
    [
        "--data_set IMNET --model RMeeTo_tiny --eval_crop_ratio 0.9 --aa none --train_interpolation random",
        "--data_set CIFAR --train_interpolation bilinear",
    ],
)
def test_flags_with_effect_are_not(line):
    assert parse(line.split())[2] == []


def test_settings_survive_json():
    config = config_of(RETRAIN + " --num_prune 5,6 --cutmix-minmax 0.1 0.5")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Config.from_dict(json.loads(json.dumps(Config().to_dict()))) == Config()


def test_a_runs_config_starts_another_run(tmp_path):
    config = config_of(RETRAIN + " --resume")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    again, _, notices = parse(["--config", str(path)])
    assert again == dataclasses.replace(config, run=dataclasses.replace(config.run, resume=False))
    assert not notices
    other = config_of(f"--config {path} --num_prune 8 --lr 1e-4 --eval")
    assert (other.merge, other.optim.lr, other.run.eval) == (MergeConfig(r=8), 1e-4, True)
    assert other.model == config.model

    named = dataclasses.replace(config, run=dataclasses.replace(config.run, name="mine"))
    path.write_text(json.dumps(named.to_dict()))
    assert config_of(f"--config {path} --eval").folder == Path("log/vim_small_patch16_224-r11-vim_s-eval")
    assert config_of(f"--config {path} --resume") == named

    dense = dataclasses.replace(config, merge=None)
    path.write_text(json.dumps(dense.to_dict()))
    assert config_of(f"--config {path}").merge is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list; expected a dict"),
        ('{"modle": {}}', "unknown section modle"),
        ('{"optim": {"lrr": 1}}', "unknown field optim.lrr"),
        ('{"optim": {"lr": "fast"}}', "optim.lr is 'fast'; expected a number"),
        ('{"optim": {"lr": true}}', "optim.lr is True; expected a number"),
        ('{"optim": {"betas": ["a", "b"]}}', r"optim.betas is \['a', 'b'\]; expected 2 numbers"),
        ('{"optim": {"betas": [0.9]}}', r"optim.betas is \[0.9\]; expected 2"),
        ('{"model": 3}', "model is 3; expected its fields"),
        ('{"merge": [1]}', r"merge is \[1\]; expected its fields"),
        ('{"merge": {"r": [[1]]}}', r"merge.r is \[\[1\]\]; expected a whole number"),
        ('{"data": {"cutmix_minmax": [1]}}', r"data.cutmix_minmax is \[1\]"),
        ('{"merge": {"r": -3}}', "r=-3"),
    ],
)
def test_a_config_file_with_mistakes_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        parse(["--config", str(tmp_path / "config.json")])


def test_a_config_file_imports_no_module_of_its_choosing(tmp_path, monkeypatch):
    (tmp_path / "chosen.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"merge": {"r": 5, "rule": "chosen:rule"}}))
    with pytest.raises(UserError, match="code of a module; if you trust it, say so: --rule chosen:rule"):
        parse(["--config", str(path)])
    (tmp_path / "chosen.py").write_text("def rule(metric, r, tokens): ...")
    assert config_of(f"--config {path} --rule chosen:rule").merge.rule == "chosen:rule"


def test_smoke_needs_nothing_and_is_small():
    config = config_of(RETRAIN + " --smoke --accumulation 2")
    assert config == config_of(RETRAIN + " --accumulation 2").smoke()
    assert config.data.data_set == "digits" and config.data.num_workers == 0
    assert (config.data.batch_size, config.data.max_train_batches, config.data.max_eval_batches) == (2, 2, 2)
    assert config.optim.epochs == 1 and config.optim.accumulation == 2
    assert config.model.model_pth is None and config.model.model == "vim_small_patch16_224"
    assert config.distill.distill and config.merge == MergeConfig(r=11)
    assert config.folder.name == "vim_small_patch16_224-r11-smoke"


@pytest.mark.parametrize(
    "wrong",
    [
        {"reprob": 1.5},
        {"smoothing": -0.1},
        {"eval_crop_ratio": 0.0},
        {"recount": 0},
        {"num_workers": -1},
        {"remode": "noise"},
        {"input_size": 0},
    ],
)
def test_data_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"DataConfig: {next(iter(wrong))}="):
        DataConfig(**wrong)
