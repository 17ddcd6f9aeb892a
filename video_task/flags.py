"""The command line of the video task: the released recipes' flags, and which settings they reach."""

from __future__ import annotations

from collections.abc import Mapping

from rmeeto.cli.command import Command
from rmeeto.cli.flags import Flag, Given, Ignored, parse_bool
from rmeeto.cli.trained import of_weights, take
from video_task.config import VideoConfig
from video_task.models.registry import ALIASES, MODELS, default_cfgs


def _read_bf16(text: str) -> str:
    return "bf16" if parse_bool(text) else "auto"


FLAGS = {"bf16": Flag("run", "amp", _read_bf16, "--amp bf16", switch=True)}

_TORCHRUN = "torchrun's environment says it"
_CHECKPOINTS = "last.pt and best.pt are always kept (--checkpoint_every adds to last.pt within an epoch)"
_RESUME = "--resume goes on with the run folder"
_HEAD = "the head reads the class token"
_LONG = "it belongs to data sets of long videos, which are not there"
_WEIGHTS = "the weights are found in their file"
IGNORED_FLAGS = {
    "opt": Ignored("AdamW is the optimizer", ("adamw",)),
    "momentum": Ignored("AdamW has betas (--betas)"),
    "weight_decay_end": Ignored("weight decay is constant", ("none", "")),
    "warmup_steps": Ignored("--warmup_epochs says it", ("-1",)),
    **dict.fromkeys(("drop", "fc_drop_rate", "attn_drop_rate"), Ignored("the models have no dropout", ("0", "0.0"))),
    "init_scale": Ignored("a new head starts small, as timm's do"),
    **dict.fromkeys(("use_mean_pooling", "use_cls"), Ignored(_HEAD)),
    **dict.fromkeys(("model_key", "model_prefix", "orig_t_size"), Ignored(_WEIGHTS)),
    "model_ema_force_cpu": Ignored("the average stays where the model is", ("false",)),
    "model_ema_eval": Ignored("the average is always evaluated beside the model"),
    "imagenet_default_mean_and_std": Ignored("clips are normalised so", ("true",)),
    "crop_pct": Ignored("--short_side_size says what is cropped"),
    "num_segments": Ignored("a clip is one segment; see --test_num_segment", ("1",)),
    "resplit": Ignored("the released code did not use it either"),
    **dict.fromkeys(("use_decord", "no_use_decord"), Ignored("--decoder names the decoder")),
    "filter_missing": Ignored("a video that is missing is named and counted"),
    **dict.fromkeys(("trimmed", "time_stride"), Ignored(_LONG)),
    "disable_eval_during_finetuning": Ignored("every epoch is validated", ("false",)),
    "dist_eval": Ignored("evaluation is always shared by the processes, and exact"),
    "log_dir": Ignored("the log is in the run folder (--output_dir, --name)"),
    **dict.fromkeys(("save_ckpt", "no_save_ckpt", "save_ckpt_freq"), Ignored(_CHECKPOINTS)),
    **dict.fromkeys(("auto_resume", "no_auto_resume"), Ignored(_RESUME)),
    "start_epoch": Ignored(_RESUME, ("0",)),
    "enable_deepspeed": Ignored("processes train with DDP"),
    **dict.fromkeys(("world_size", "local_rank", "dist_on_itp", "dist_url"), Ignored(_TORCHRUN)),
    "if_merge": Ignored("--num_prune 0 or --merge_method none is the dense model", ("true",)),
}


# The image task's rates; a step has by default a quarter of what they are for, as there. Not yet measured on clips.
UNTRAINED = {"lr": 8e-3, "epochs": 50, "warmup_epochs": 5, "layer_decay": 1.0}
NEW_HEAD = {"lr": 2e-4, "head_lr_scale": 20.0, "epochs": 30, "warmup_epochs": 3}


def _adjust(given: Mapping[str, Given], start: VideoConfig) -> list[str]:
    notes, data = _as_trained(given, start), given["data"].values
    trains = not given["run"].values.get("eval", start.run.eval)
    fresh = "num_sample" not in data and "config" not in given["command"].values
    if trains and fresh and not data.get("augment", start.data.augment) and start.data.num_sample > 1:
        data["num_sample"] = 1
        notes.append("--num_sample 1: without --augment all views of a clip are the same")
    return notes


def _as_trained(given: Mapping[str, Given], start: VideoConfig) -> list[str]:
    """Let clips be of the frames and pixels that the weights' training had."""
    found = of_weights(given, start)
    if found is None or len(found.input_size) != 4:  # of an image model, say
        return []
    cfg = default_cfgs[given["model"].values["model"]]
    frames, size = found.input_size[1], found.input_size[-1]
    wanted = {"num_frames": frames, "input_size": size if size != cfg["input_size"][-1] else None}
    if found.crop_pct < 1 and "input_size" not in given["data"].values:
        wanted["short_side_size"] = round(size / found.crop_pct)
    return take(given, start, "data", wanted, "the weights were trained")


COMMAND = Command(
    prog="python -m video_task.main",
    description="Merge tokens in a video model, test it, re-train it.",
    config=VideoConfig,
    models=MODELS,
    aliases=ALIASES,
    flags=FLAGS,
    ignored=IGNORED_FLAGS,
    adjust=_adjust,
    untrained=UNTRAINED,
    new_head=NEW_HEAD,
)
parse = COMMAND.parse
