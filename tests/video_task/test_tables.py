"""What the recipes of the paper's video tables run."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
import timm
import torch

pytest.importorskip("av")

from rmeeto.merge import MergeConfig  # noqa: E402
from tests.recipes import ROOT, launch, task_arguments, title  # noqa: E402
from video_task.config import VideoConfig  # noqa: E402
from video_task.flags import parse  # noqa: E402
from video_task.main import meta_model, run  # noqa: E402

RECIPES = sorted((ROOT / "video_task" / "exp_sh").glob("tab*/*.sh"))
EPOCHS = {"tiny": 30, "small": 15, "middle": 15}


def configs_of(recipe: Path, folder: Path, **variables: str) -> list[VideoConfig]:
    process, commands = launch(recipe, folder, DRY_RUN="1", **variables)
    assert process.returncode == 0, process.stderr
    assert not (folder / "runs").exists(), "a dry run touches nothing"
    configs = []
    for command in commands:
        assert command[1:3] == ["-m", "video_task.main"]
        config, dry_run, notices = parse(task_arguments(command))
        assert dry_run and (not notices or variables)
        configs.append(config)
    return configs


def size_of(recipe: Path) -> str:
    return recipe.stem.removeprefix("videomamba_")


def test_every_published_video_table_has_its_recipes():
    assert {title(recipe) for recipe in RECIPES} == {
        f"{table}/videomamba_{size}" for table in ("tab13", "tab14") for size in EPOCHS
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=title)
def test_recipe_is_short_and_says_what_it_is(recipe):
    lines = recipe.read_text().splitlines()
    assert len(lines) <= 25 and lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    for part in ("# Cost:", "# Paper:", "# Needs:"):
        assert any(line.startswith(part) for line in lines), part
    subprocess.run(["bash", "-n", str(recipe)], check=True)
    index = (ROOT / "exp_sh" / "README.md").read_text()
    assert len(re.findall(rf"\(\.\./video_task/exp_sh/{title(recipe)}\.sh\)", index)) == 1


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.parent.name == "tab13"], ids=title)
def test_table_13_is_the_papers_setting(recipe, tmp_path):
    test, training = configs_of(recipe, tmp_path)
    for config in (test, training):
        assert config.model.model == f"videomamba_video_{size_of(recipe)}_patch16_224"
        assert config.merge == MergeConfig(r=88)
        assert meta_model(config).num_tokens[0] == 8 * 196 + 1
        assert (config.data.data_set, config.data.num_frames) == ("Kinetics_sparse", 8)
        assert (config.data.test_num_segment, config.data.test_num_crop) == (4, 3)
    assert test.run.eval and not training.run.eval, "re-training must train"
    optim, data = training.optim, training.data
    assert (optim.epochs, optim.warmup_epochs, optim.accumulation) == (EPOCHS[size_of(recipe)], 5, 2)
    assert (optim.lr, optim.min_lr, optim.weight_decay, optim.layer_decay) == (2e-5, 1e-6, 0.1, 0.75)
    assert (optim.betas, optim.schedule) == ((0.9, 0.999), "iteration")
    assert (data.batch_size, data.num_sample, data.aa) == (32, 2, "rand-m5-n2-mstd0.25-inc1")
    assert not training.distill.distill, "the published video recipe has no teacher"


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.parent.name == "tab14"], ids=title)
def test_table_14_is_the_papers_setting(recipe, tmp_path):
    configs = configs_of(recipe, tmp_path)
    assert [config.merge for config in configs] == [MergeConfig(r=r) for r in range(0, 89, 8)]
    assert all(config.run.eval for config in configs)
    assert {config.model.model for config in configs} == {f"videomamba_video_{size_of(recipe)}_patch16_224"}
    assert {(c.data.test_num_segment, c.data.test_num_crop) for c in configs} == {(4, 3)}


def test_no_two_commands_share_a_run_folder(tmp_path):
    folders = [config.folder for recipe in RECIPES for config in configs_of(recipe, tmp_path)]
    assert len(set(folders)) == len(folders) == 3 * (2 + 12)
    assert all(folder.is_relative_to(tmp_path / "runs") for folder in folders)


def test_paths_from_the_user_are_relative_to_where_the_user_is(tmp_path):
    (recipe,) = [r for r in RECIPES if title(r) == "tab13/videomamba_tiny"]
    given = configs_of(recipe, tmp_path, DATA="kinetics", WEIGHTS="w")[0]
    assert given.data.data_path == str(tmp_path / "kinetics")
    assert given.model.model_pth == str(tmp_path / "w" / "videomamba_t16_k400_f8_res224.pth")
    assert configs_of(recipe, tmp_path)[0].data.data_path == "data/k400"


def smoked(config: VideoConfig, folder: Path, **data: int) -> dict:
    """The smoke run of a command, with fewer views where the test says so."""
    where = dataclasses.replace(config.run, output_dir=str(folder), device="cpu")
    return run(dataclasses.replace(config, run=where, data=dataclasses.replace(config.data, **data)))


@pytest.mark.parametrize("table", ["tab13", "tab14"])
def test_a_command_of_each_table_smokes(table, tmp_path):
    (recipe,) = [r for r in RECIPES if title(r) == f"{table}/videomamba_tiny"]
    config = configs_of(recipe, tmp_path, SMOKE="1")[-1]
    assert config.run.smoke and config.merge.r == 88
    result = smoked(config, tmp_path, test_num_segment=1, test_num_crop=1, num_sample=1)
    assert result["count"] == 2  # as many videos as have views in a batch of two


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=title)
def test_every_command_smokes(recipe, tmp_path):
    for config in configs_of(recipe, tmp_path, SMOKE="1"):
        assert smoked(config, tmp_path)["count"] == 1


def test_the_models_of_the_recipes_are_those_of_the_tables():
    with torch.device("meta"):
        widths = [timm.create_model(f"videomamba_{size}") for size in EPOCHS]
    assert [(model.embed_dim, model.depth) for model in widths] == [(192, 24), (384, 24), (576, 32)]
