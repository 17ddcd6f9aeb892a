"""Models as folders: weights and what builds the model again, laid out as timm and the Hugging Face hub have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download, logging
from safetensors.torch import save_file
from timm.models import is_model
from torch import nn

from image_task.models.registry import MODELS
from image_task.models.weights import load_weights
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.patch import apply

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_HUB = ("hf_hub:", "hf-hub:")
# Of the registry's entry, what describes the model's input and parts: not where its first weights came from.
_INPUT = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "mean", "std")
_PARTS = ("first_conv", "classifier")
# Of the arguments it was made with, rates of training and what is written from the model itself.
_LEFT_OUT = ("drop_path_rate", "drop_rate", "merge", "merge_para", "pretrained_model_args")


def export(model: nn.Module, folder: str | Path) -> Path:
    """Write a model as ``model.safetensors`` and ``config.json`` (ready for the hub's upload).

    Args:
        model: made by ``timm.create_model``, from this project or a `VisionTransformer` of timm; its merge settings
            are kept. `load` reads the folder back, and so does ``timm.create_model("local-dir:folder",
            pretrained=True)`` for this project's models.
        folder: made if need be; holds neither file yet.

    Returns:
        The folder.

    Raises:
        UserError: a model without a registered name, or a folder that holds a model already.
    """
    folder = Path(folder)
    name = getattr(model, "pretrained_cfg", {}).get("architecture")
    if not name:
        raise UserError(f"export: {type(model).__name__} has no name; make it with timm.create_model")
    taken = [file for file in (WEIGHTS, CONFIG) if (folder / file).exists()]
    if taken:
        raise UserError(f"export: {folder} has {' and '.join(taken)} already; give another folder")
    arguments = {
        key: value for key, value in getattr(model, "_model_args", {}).items() if key not in _LEFT_OUT
    }
    arguments["num_classes"] = model.num_classes
    merge = getattr(model, "merge_config", None)
    if merge is not None:
        arguments["merge"] = merge.to_dict()
    description = {
        key: model.pretrained_cfg[key] for key in (*_INPUT, *_PARTS) if key in model.pretrained_cfg
    }
    config = {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": {**description, "num_classes": model.num_classes},
    }
    text = json.dumps(config, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(text + "\n")
    return folder


def load(source: str | Path) -> nn.Module:
    """The model of a folder that `export` wrote, or of a hub repository with the same two files.

    Args:
        source: a folder, or ``hf_hub:owner/name`` (with ``@revision`` if need be).

    Raises:
        UserError: files that are missing, cannot be fetched or read, or do not fit together.
    """
    if str(source).startswith(_HUB):
        repository = str(source).split(":", 1)[1]
        config_path, weights_path = (fetch(repository, file) for file in (CONFIG, WEIGHTS))
    else:
        config_path, weights_path = Path(source) / CONFIG, Path(source) / WEIGHTS
    config = _read_config(config_path)
    name, arguments = config["architecture"], dict(config.get("model_args", {}))
    merge = arguments.pop("merge", None)
    try:
        merge = None if merge is None else MergeConfig(**merge)
        if name in MODELS:
            arguments["merge"] = merge
        model = timm.create_model(name, pretrained_cfg=config.get("pretrained_cfg"), **arguments)
        if merge is not None and name not in MODELS:
            apply(model, merge)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"load: {config_path} does not describe a {name}: {error}") from None
    load_weights(model, weights_path)
    return model


def fetch(repository: str, file: str, advice: str = "") -> Path:
    """A file of a hub repository (``owner/name`` or ``owner/name@revision``), from the cache or the network.

    Args:
        advice: how to go on without a network, where putting the file anywhere and giving its path is not it.

    Raises:
        UserError: it cannot be fetched; the message says how to go on without a network.
    """
    name, _, revision = repository.partition("@")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # retries are not the user's concern; their end is
    try:
        return Path(hf_hub_download(name, file, revision=revision or None))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        advice = advice or (
            f"without a network, put {file} (of huggingface.co/{name}) into a folder and give that folder or file"
        )
        raise UserError(f"hub: {file} of {name} could not be fetched: {reason}\n{advice}") from None
    finally:
        logging.set_verbosity(verbosity)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"load: there is no {path}; expected a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"load: {path} is not JSON: {error}") from None
    if not isinstance(config, dict) or "architecture" not in config:
        raise UserError(f"load: {path} names no architecture; expected a model's config as export writes it")
    if not is_model(config["architecture"]):
        raise UserError(f"load: {path} names the model {config['architecture']!r}, which is not known here")
    return config
