"""The commands that use a model on files (predict, visualize, finetune, export, record): their words, and a folder of
pictures, clips and a model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

import image_task.export
import image_task.finetune
import image_task.information
import image_task.predict
import image_task.visualize
import rmeeto.record
import video_task.predict
import video_task.visualize
from rmeeto import hub
from tests.fuzz.case import ACCEPT, ANY, Case, Kind, Wrong
from tests.fuzz.kinds import clips, commands, models, pictures
from tests.fuzz.mutate import OUTSIDE, URL, some_bytes, some_json, some_text
from tests.fuzz.programs import ODD, files_of, folder, try_main, unpack

BEGIN = {
    "predict": ["photos", "--model_pth", "m"],
    "visualize": ["photos", "--model_pth", "m", "--max_edge", "64", "--output", "out"],
    "video predict": ["clips", "--model", "videomamba_video_nano_patch4_32"],
    "video visualize": [
        "clips", "--model", "videomamba_video_nano_patch4_32", "--r", "8", "--max_edge", "64", "--output", "out",
        "--animation", "none",
    ],
    "finetune": ["photos", "--model", "vim_nano_patch2_16", "--r", "2", "--output_dir", "out"],
    "information": [
        "--model_pth", "m", "--data_set", "digits", "--num_workers", "0", "--samples", "4", "--steps", "1", "--seeds",
        "0", "--output", "out.json",
    ],
    "export": ["m", "out"],
    "record": ["m"],
}  # fmt: skip
MAINS = {
    "predict": image_task.predict.COMMAND.main, "visualize": image_task.visualize.COMMAND.main,
    "video predict": video_task.predict.COMMAND.main, "video visualize": video_task.visualize.COMMAND.main,
    "finetune": image_task.finetune.main, "information": image_task.information.main,
    "export": image_task.export.main, "record": rmeeto.record.main,
}  # fmt: skip
HONEST = ("predict", "visualize", "video visualize")
OWN = (
    "--json", "--features", "--top", "--class_names", "--max_edge", "--output", "--overwrite", "--stride",
    "--animation", "--model_pth", "--model", "--r", "--input_size", "--device", "--dtype", "--num_frames", "--help",
    "--epochs", "--onnx", "--resume", "--blocks", "--seeds", "--plot",
)  # fmt: skip
VALUES = (
    *commands.VALUES,
    "m",
    "photos",
    "clips",
    "m/config.json",
    "m/model.safetensors",
    "names.txt",
    OUTSIDE,
    URL,
)
NAMES = (
    "a.png",
    "b.jpg",
    "\x1b[31mred.png",
    "-r.png",
    "a b.PNG",
    "n\n.png",
    "\udcff.png",
    "c" * 200 + ".png",
    "d/a.png",
)


@cache
def _files() -> dict[str, bytes]:
    """What honest people have: two pictures, a clip, the names of the classes."""
    shots, moving = pictures.seeds(), clips.seeds()
    clip = next(name for name in moving if name.endswith("mp4"))
    names = "\n".join(f"class {n}" for n in range(1000)).encode()
    return {
        "photos/a.png": shots["png"],
        "photos/b.jpg": shots["jpg"],
        "clips/a.mp4": moving[clip],
        "names.txt": names,
        f"m/{hub.CONFIG}": models.seeds()["merged"],
    }


def seeds() -> Mapping[str, bytes]:
    return {program: folder(_files()) for program in HONEST}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    program, files = rng.choice(list(BEGIN)), dict(_files())
    words = list(BEGIN[program])
    if rng.random() < 0.15:
        return Case(folder(files), program, ACCEPT if program in HONEST else ANY, {"words": words})
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 2))):
            flag = rng.choice(OWN)
            values = [
                rng.choice(VALUES) if rng.random() < 0.7 else some_text(rng, VALUES)
                for _ in range(rng.choice((0, 1, 1, 1, 2)))
            ]
            words += [flag, *values]
        if rng.random() < 0.2:
            rng.shuffle(words)
    else:
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(list(files))
            match rng.randrange(5):
                case 0:
                    files[f"photos/{rng.choice(NAMES)}"] = files.pop(name)
                case 1 if program != "finetune":  # a folder in itself is one of classes, which it trains on
                    files[name] = rng.choice(ODD)
                case 2 if name.endswith(".json"):
                    files[name] = some_json(rng, models.seeds()["merged"], models.KNOWN)
                case 3:
                    files[name] = rng.choice([*filter(lambda found: isinstance(found, bytes), files.values())])
                case _:
                    files[name] = some_bytes(rng, files[name]) if isinstance(files[name], bytes) else b"x"
    return Case(folder(files), program, more={"words": [word.replace("\0", "0") for word in words]})


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    unpack(case.data, Path())
    if not Path("m", hub.WEIGHTS).exists() and Path("m").is_dir():
        Path("m", hub.WEIGHTS).write_bytes(models._folder(2)[1])
    words = case.more.get("words", BEGIN[case.seed])
    if "--help" in words or "-h" in words:
        words = ["--help"]
    there = {str(path) for path in Path().rglob("*")}
    printed = try_main(MAINS[case.seed], words)
    if case.seed == "predict" and case.right == ACCEPT and printed.count("photos/") != 2:
        raise Wrong(f"two pictures, and this answer: {printed}")
    if case.seed == "visualize" and case.right == ACCEPT and len({*map(str, Path().rglob("*"))} - there) != 3:
        raise Wrong("two pictures were drawn, and other files than a folder and two came of it")
    for name, content in files_of(case.data).items():
        if isinstance(content, bytes) and Path(name).is_file() and Path(name).read_bytes() != content:
            if "--overwrite" not in words:
                raise Wrong(f"{name} was changed")
    return "done"


KIND = Kind(seeds, mutate, check, weight=6, batch=10, lines=30, programs=("git",), may_read=True)
