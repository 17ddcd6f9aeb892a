"""Models as folders: weights and what builds the model again, laid out as timm and the Hugging Face hub have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, logging
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import is_model
from torch import nn

from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.patch import apply
from rmeeto.weights import load_weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_HUB = ("hf_hub:", "hf-hub:")
_PATIENCE = 5.0  # seconds in which the hub has to answer
# Of the registry's entry, what describes the model's input and parts: not where its first weights came from.
_INPUT = ("fixed_input_size", "interpolation", "crop_pct", "mean", "std")
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
        UserError: a model without a registered name, timm's feature extractor around one, or a folder that holds a
            model already or cannot be written.
    """
    folder = Path(folder)
    name = getattr(model, "pretrained_cfg", {}).get("architecture")
    if not name:
        raise UserError(f"export: {type(model).__name__} has no name; make it with timm.create_model")
    if not hasattr(model, "num_classes"):
        raise UserError(f"export: {type(model).__name__} is no whole model; make it without features_only")
    text = json.dumps(_description(model, name), indent=2)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        taken = [file for file in (WEIGHTS, CONFIG) if (folder / file).exists()]
        if taken:
            raise UserError(f"export: {folder} has {' and '.join(taken)} already; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(text + "\n")
    except (OSError, SafetensorError) as error:
        raise UserError(f"export: {folder} cannot be written: {error}; give another folder") from None
    return folder


def _description(model: nn.Module, name: str) -> dict[str, Any]:
    cfg = model.pretrained_cfg
    made = getattr(model, "_model_args", {})
    arguments = {key: value for key, value in made.items() if key not in _LEFT_OUT}
    arguments["num_classes"] = model.num_classes
    if hasattr(model, "global_pool"):
        arguments["global_pool"] = model.global_pool
    merge = getattr(model, "merge_config", None)
    if merge is not None:
        arguments["merge"] = merge.to_dict()
    # timm takes three numbers: of a clip a frame's, and the arguments say how many.
    channels, *_, height, width = cfg["input_size"]
    described = {
        "input_size": (channels, height, width),
        **{key: cfg[key] for key in (*_INPUT, *_PARTS) if key in cfg},
        "num_classes": model.num_classes,
    }
    return {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": described,
    }


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
    name, arguments = config["architecture"], config.get("model_args") or {}
    merge = arguments.pop("merge", None)
    try:
        model = timm.create_model(name, pretrained_cfg=config.get("pretrained_cfg"), **arguments)
        if merge is not None:
            apply(model, MergeConfig(**merge))
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
    silence = None
    try:
        silence = _silence(name, file, revision or None)
        return Path(hf_hub_download(name, file, revision=revision or None, local_files_only=bool(silence)))
    except (OSError, ValueError) as error:
        reason = (silence or str(error)).strip().splitlines()[0]
        advice = advice or (
            f"without a network, put {file} (of huggingface.co/{name}) into a folder and give that folder or file"
        )
        raise UserError(f"hub: {file} of {name} could not be fetched: {reason}", advice) from None
    finally:
        logging.set_verbosity(verbosity)


def _silence(name: str, file: str, revision: str | None) -> str | None:
    """Why the hub does not answer, or None where it does: a download would ask again for half a minute."""
    try:
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=_PATIENCE)
    except HfHubHTTPError:
        return None  # it answers; the download says what is wrong
    except Exception as error:  # of whichever HTTP library huggingface_hub stands on
        return str(error) or type(error).__name__
    return None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"load: there is no {path}; expected a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"load: {path} is not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise UserError(f"load: {path} names no architecture; expected a model's config as export writes it")
    if not is_model(config["architecture"]):
        raise UserError(
            f"load: {path} names the model {config['architecture']!r}, which is not known here; image_task.models and "
            "video_task.models register theirs when they are imported"
        )
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(key) or {}, dict):
            raise UserError(
                f"load: {path} has {key}={config[key]!r}; expected names and values, as export writes them"
            )
    return config
