"""The command line of the image task: the released recipes' flags, and which settings they reach."""

from __future__ import annotations

from collections.abc import Mapping

from timm.models import get_pretrained_cfg

from image_task.config import SMALL, Config, DataConfig, own_size
from image_task.models.registry import ALIASES, MODELS, default_cfgs
from image_task.transforms import crop_pct, normalisation
from rmeeto.cli.command import Command
from rmeeto.cli.flags import Flag, Given, Ignored, parse_bool
from rmeeto.cli.trained import of_weights, take


def _read_amp(text: str) -> str:
    return "auto" if parse_bool(text) else "off"


# Vim's names of what --amp says.
AMP_FLAGS = {
    "if_amp": Flag("run", "amp", _read_amp, "--amp auto", switch=True),
    "no_amp": Flag("run", "amp", lambda text: _read_amp(str(not parse_bool(text))), "--amp off", switch=True),
}

_NO_EFFECT = "the released code did not use it either"
_TORCHRUN = "torchrun's environment says it"
_FINITE = "outputs are taken as they are, and a loss that is not finite stops the training"
_NO_TYPE = "there is no --distillation_type; see --distill and --distill_weight"
IGNORED_FLAGS = {
    "opt": Ignored("AdamW is the optimizer", ("adamw",)),
    "momentum": Ignored("AdamW has betas (--betas)"),
    "sched": Ignored("the schedule is a cosine (--schedule)", ("cosine",)),
    "lr_noise": Ignored(_NO_EFFECT),
    "lr_noise_pct": Ignored(_NO_EFFECT),
    "lr_noise_std": Ignored(_NO_EFFECT),
    "decay_epochs": Ignored("the schedule is a cosine"),
    "decay_rate": Ignored("the schedule is a cosine"),
    "cooldown_epochs": Ignored("the cosine ends with the last epoch"),
    "patience_epochs": Ignored("the schedule is a cosine"),
    "drop": Ignored("the models have no dropout", ("0", "0.0")),
    "dist_eval": Ignored("evaluation is always shared by the processes, and exact"),
    "model_ema_force_cpu": Ignored("the average stays where the model is", ("false",)),
    "train_mode": Ignored("drop path is on in training and off in evaluation", ("true",)),
    "start_epoch": Ignored("--resume knows where to go on", ("0",)),
    "resplit": Ignored(_NO_EFFECT),
    **dict.fromkeys(("distributed", "world_size", "local_rank", "gpu", "dist_url"), Ignored(_TORCHRUN)),
    "if_merge": Ignored("--num_prune 0 or --merge_method none is the dense model", ("true",)),
    "finetune": Ignored("--model_pth names the weights", ("",)),
    "distillation_type": Ignored("the teacher is --distill", ("none",)),
    "distillation_alpha": Ignored(_NO_TYPE),
    "distillation_tau": Ignored(_NO_TYPE),
    **dict.fromkeys(("if_continue_inf", "no_continue_inf", "if_nan2num", "no_nan2num"), Ignored(_FINITE)),
    "no_random_cls_token": Ignored("the class token is where the model has it"),
    "no_random_token_rank": Ignored("tokens are scanned in their order"),
}
# Flags of DeiT's and Vim's training scripts that ask for another recipe.
REFUSED_FLAGS = {
    "bce_loss": "the loss is cross entropy, with a teacher's divergence under --distill",
    "unscale_lr": "--lr is the rate per 512 images of batch size x processes",
    "src": "images are cropped at random sizes (--train_interpolation)",
    "ThreeAugment": "--aa names the augmentation",
    "cosub": "the teacher is --distill",
    "attn_only": "all parameters are trained",
    "no_train_mode": "training without drop path is --drop_path 0",
    "if_random_cls_token": "the class token is where the model has it",
    "if_random_token_rank": "tokens shuffled before each merge are --if_shuffle",
}

# A re-training's rate moves weights from scratch, or a new head, nowhere, and one that moves a new head spoils the
# trained weights below it. Chosen on crops of three photographs.
UNTRAINED = {"lr": 8e-3, "epochs": 50, "warmup_epochs": 5, "accumulation": 1, "schedule": "cosine"}
NEW_HEAD = {
    "lr": 2e-4,
    "head_lr_scale": 20.0,
    "epochs": 30,
    "warmup_epochs": 3,
    "accumulation": 1,
    "schedule": "cosine",
}


def _adjust(given: Mapping[str, Given], start: Config) -> list[str]:
    data, notes = given["data"].values, []
    if data.get("data_path") and "data_set" not in data and start.data.digits:
        data["data_set"] = "IMNET"
        notes.append("--data_path without --data_set: IMNET, the default of DeiT's script")
    return notes + _as_trained(given, start)


def _as_trained(given: Mapping[str, Given], start: Config) -> list[str]:
    """Let images be prepared as the weights' training, or timm for its own models, prepares them."""
    name, data = given["model"].values["model"], given["data"].values
    usual_data = DataConfig(data_set=data.get("data_set", start.data.data_set))
    if (found := of_weights(given, start)) is not None:
        size, cfg, whose = found.input_size[-1], found.pretrained_cfg(), "the weights were trained"
        wanted = {"input_size": size if size != own_size(name) else None}
    elif name not in default_cfgs and not usual_data.digits:
        cfg, whose, wanted = get_pretrained_cfg(name).to_dict(), f"timm has it for {name}", {}
        size = cfg["input_size"][-1]
    else:
        return []
    size, usual = data.get("input_size") or size, normalisation(usual_data)
    wanted |= {key: tuple(cfg[key]) for key in ("mean", "std") if tuple(cfg[key]) != usual[key]}
    if cfg["crop_pct"] != crop_pct(usual_data, size) and not usual_data.digits and size > SMALL:
        wanted["eval_crop_ratio"] = cfg["crop_pct"]
    return take(given, start, "data", wanted, whose)


COMMAND = Command(
    prog="python -m image_task.main",
    description="Merge tokens in an image model, evaluate it, re-train it.",
    config=Config,
    models=MODELS,
    aliases=ALIASES,
    timms=True,
    flags=AMP_FLAGS,
    ignored=IGNORED_FLAGS,
    refused=REFUSED_FLAGS,
    adjust=_adjust,
    untrained=UNTRAINED,
    new_head=NEW_HEAD,
)
parse = COMMAND.parse
