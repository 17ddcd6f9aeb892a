"""Models as folders: weights and what builds the model again, laid out as timm and the Hugging Face hub have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, logging
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rmeeto.description import check_depth, read_description
from rmeeto.errors import UserError
from rmeeto.json_file import write_whole
from rmeeto.patch import apply
from rmeeto.reader import read_header
from rmeeto.trained_on import CONFIG, WEIGHTS, trained_on
from rmeeto.weights import check_fit, load_weights

PREFIXES = ("hf_hub:", "hf-hub:")  # of a repository's name
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
        UserError: a model without a registered name, timm's feature extractor around one, a merging rule without a
            name, or a folder that holds a model already or cannot be written.
    """
    folder = Path(folder)
    name = getattr(model, "pretrained_cfg", {}).get("architecture")
    if not name:
        raise UserError(f"export: {type(model).__name__} has no name; make it with timm.create_model")
    if not hasattr(model, "num_classes"):
        raise UserError(f"export: {type(model).__name__} is no whole model; make it without features_only")
    description = _description(model, name)
    _shape(model, name, description["model_args"])
    for key, value in description["model_args"].items():
        try:
            json.dumps(value)
        except TypeError:
            raise UserError(
                f"export: the model was made with {key}={value!r}, which a config.json cannot hold; make it without "
                "that, or save its state_dict"
            ) from None
    text = json.dumps(description, indent=2)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        taken = [file for file in (WEIGHTS, CONFIG) if (folder / file).exists()]
        if taken:
            raise UserError(f"export: {folder} has {' and '.join(taken)} already; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / WEIGHTS, lambda file: file.write(save(state, metadata={"format": "pt"})))
        write_whole(folder / CONFIG, lambda file: file.write(f"{text}\n".encode()))
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
        try:
            arguments["merge"] = merge.to_dict()
        except ValueError as error:  # a rule without a name
            raise UserError(f"export: {error}") from None
    # timm takes three numbers: of a clip a frame's, and the arguments say how many.
    channels, *_, height, width = cfg["input_size"]
    described = {
        "input_size": (channels, height, width),
        **{key: cfg[key] for key in (*_INPUT, *_PARTS) if key in cfg},
        "num_classes": model.num_classes,
    }
    labels = {"label_names": list(cfg["label_names"])} if cfg.get("label_names") else {}
    return {
        "architecture": name,
        **labels,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": described,
    }


def _shape(model: nn.Module, name: str, arguments: dict[str, Any]) -> None:
    """Say in the arguments what has been made of the model since: another input size or number of frames, fewer blocks.

    Raises:
        UserError: the arguments make another model all the same.
    """
    made = _made_by(name, arguments)
    if _input_size(model) != _input_size(made):
        arguments["img_size"] = _input_size(model)
    if _frames(model) != _frames(made):
        arguments["num_frames"] = _frames(model)
    if len(_blocks(model)) != len(_blocks(made)):
        arguments["depth"] = len(_blocks(model))
    here, there = (
        {key: value.shape for key, value in one.state_dict().items()} for one in (model, _made_by(name, arguments))
    )
    odd = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if odd:
        raise UserError(
            f"export: the model has been changed since timm.create_model made it ({', '.join(odd[:3])}), so that a "
            "config.json cannot say how to make it again; save its state_dict"
        )


def _made_by(name: str, arguments: dict[str, Any]) -> nn.Module:
    """The model of a description, without its numbers."""
    others = {key: value for key, value in arguments.items() if key != "merge"}
    with torch.device("meta"):
        return timm.create_model(name, **others)


def _input_size(model: nn.Module) -> list[int] | None:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return None if size is None else list(size)


def _frames(model: nn.Module) -> int | None:
    """Of the clips that a model takes."""
    size = getattr(getattr(model, "patch_embed", None), "input_size", ())
    return size[0] if len(size) == 3 else None


def _blocks(model: nn.Module) -> nn.Module:
    return getattr(model, "layers", None) or model.blocks


def load(source: str | Path) -> nn.Module:
    """The model of a folder that `export` wrote, or of a hub repository with the same two files.

    The folder may be anybody's: what its config.json says beyond what export writes is refused, shapes are compared
    with those of the weights before memory is taken, and nothing but the two files is opened or fetched. (timm's own
    way to the same folder, ``timm.create_model("local-dir:folder", pretrained=True)``, promises none of that.)

    Args:
        source: a folder, or ``hf_hub:owner/name`` (with ``@revision`` if need be).

    Raises:
        UserError: files that are missing, cannot be fetched or read, or do not fit together.
    """
    if str(source).startswith(PREFIXES):
        repository = str(source).split(":", 1)[1]
        config_path, weights_path = (fetch(repository, file) for file in (CONFIG, WEIGHTS))
    else:
        config_path, weights_path = Path(source) / CONFIG, Path(source) / WEIGHTS
    name, arguments, cfg, merge = read_description(config_path)
    if not weights_path.is_file():
        raise UserError(f"load: there is no {weights_path}; expected a folder with {CONFIG} and {WEIGHTS}")
    try:
        header = read_header(weights_path)
    except (OSError, ValueError) as error:
        raise UserError(f"load: {weights_path} cannot be read: {error}") from None
    check_depth(arguments, len(header), config_path)
    with torch.device("meta"):  # takes no memory: the shapes are compared before any is taken
        expected = _create(name, cfg, arguments, config_path)
    check_fit(header, expected, weights_path)
    with _Uninitialised():
        model = _create(name, cfg, arguments, config_path)
    try:
        if merge is not None:
            apply(model, merge)
    except (TypeError, ValueError) as error:
        raise UserError(f"load: {config_path} does not describe a {name}: {error}") from None
    load_weights(model, weights_path, adapt=lambda state, model: ())  # all shapes fit, as was just checked
    if (known := trained_on(weights_path)) is not None and known.label_names:
        model.pretrained_cfg = {**model.pretrained_cfg, "label_names": list(known.label_names)}
    return model


class _Uninitialised(TorchFunctionMode):
    """Leaves out the random numbers of weights that are replaced at once: they take longer than all else together."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.uniform_, Tensor.normal_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _create(name: str, cfg: dict[str, Any] | None, arguments: dict[str, Any], path: Path) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False, pretrained_cfg=cfg, **arguments)
    except Exception as error:  # what a constructor raises for numbers that make no sense
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"load: {path} does not describe a {name}: {reason}") from None


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
