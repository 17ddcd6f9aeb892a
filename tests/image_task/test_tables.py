"""What the recipes of the paper's tables run."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import re
from pathlib import Path

import pytest
import timm
import torch

from image_task.config import Config
from image_task.main import run
from tests.recipes import RECIPES, ROOT, TABLES, has_quirks, plan, title

PUBLISHED = [1, 2, 4, 5, 6, 7, 8, 9, 11, 15, 16, 17, 18, 19, 21]
R = (5, 10, 15, 20)
RATES = (0.1, 0.3, 0.5, 0.7)


def sweep(model: str, settings: list[str], *epochs: int) -> set[tuple[str, str, int]]:
    """Rows of a table: (model, merge setting, epochs), 0 epochs for training-free."""
    return {(model, setting, count) for setting in settings for count in epochs}


def both_sizes(settings: list[str], *epochs: int) -> set[tuple[str, str, int]]:
    """The same for Vim-Ti at r = 5 and Vim-S at r = 11; {} stands for r."""
    sizes = (("vim_tiny", 5), ("vim_small", 11))
    return {row for name, r in sizes for row in sweep(name, [s.format(r) for s in settings], *epochs)}


MAIN = {"tiny": ("r5", 30), "small": ("r11", 15), "base": ("r11", 15)}
SHUFFLED = [f"r{{}}-shuffle{rate}" for rate in RATES]
PRUNED = sweep("vim_small", [f"r11-prune-shuffle{rate}" for rate in RATES], 0, 3)
# Every row of every table that the paper's section on recipes asks for; tab8 has a data ratio as well.
ROWS = {
    "tab1": sweep("vim_small", [f"r{r}" for r in R], 0, 3) | sweep("vim_small", [f"r{r}-prune" for r in R], 0),
    "tab2": {row for f in ("vim", "videomamba") for s, (r, n) in MAIN.items() for row in sweep(f"{f}_{s}", [r], 0, n)}
    | sweep("vim_tiny", ["r5-final76"], 0),
    "tab4": {
        row
        for family in ("vim", "rmeeto_deit")
        for size, (r, _) in MAIN.items()
        for row in sweep(f"{family}_{size}", [r, f"{r}-noorder"], 3)
    },
    "tab5": both_sizes(SHUFFLED, 0, 3) | PRUNED,
    "tab6": both_sizes(["r{}", "r{}-metricB", "r{}-metricC", "r{}-metricdelta"], 0, 3),
    "tab7": both_sizes(["r{}", "r{}-l1", "r{}-l2"], 0, 3),
    "tab8": sweep("vim_small", ["r11"], 30),
    "tab9": sweep("vim_small", ["r11"], 1, 3, 5, 7, 15),
    "tab11": {
        row
        for size in MAIN
        for row in sweep(f"vim_{size}", ["dense", *(f"r{r}" for r in range(1, 12))], 0)
    },
    "tab15": both_sizes([f"r{{}}-neighbour{k}" for k in (3, 5, 7, 14)], 3),
    "tab16": both_sizes([f"r{{}}-every{n}" for n in (4, 6, 8)], 3),
    "tab17": both_sizes(["r{}-mean", "r{}-amax", "r{}-amin"], 0),
    "tab18": sweep("vim_small", [f"r{r}{prune}-odd" for r in R for prune in ("", "-prune")], 0),
    "tab19": sweep("vim_small", [f"r{r}-odd" for r in R], 3),
    "tab21": {row for s, (r, n) in MAIN.items() for row in sweep(f"vim_{s}", [f"{r}-odd"], 0, n)},
}  # fmt: skip
# The tables in which the released code's last merge or its flip makes a difference, and how many commands it changes.
QUIRKS = {"tab1": 12, "tab2": 1, "tab4": 2, "tab6": 14, "tab7": 6, "tab11": 36, "tab15": 4, "tab16": 6, "tab17": 3,
          "tab18": 8, "tab19": 4, "tab21": 6}  # fmt: skip


def configs_of(recipe: Path, *variables: str) -> list[Config]:
    return [config for config, _ in plan(recipe, *variables)]


def table_of(name: str, released: bool = False) -> list[Config]:
    recipes = [recipe for recipe in RECIPES if recipe.parent.name == name]
    if released:
        return [c for recipe in recipes if has_quirks(recipe) for c in configs_of(recipe, "RELEASED")]
    return [config for recipe in recipes for config in configs_of(recipe)]


def row_of(config: Config) -> tuple[str, str, int]:
    model = config.model.model.removesuffix("_patch16_224")
    return model, config.setting, 0 if config.run.eval else config.optim.epochs


def test_every_image_table_has_recipes():
    tables = {int(recipe.parent.name.removeprefix("tab")) for recipe in TABLES}
    assert sorted(tables) == PUBLISHED
    assert sorted(ROWS) == sorted(f"tab{number}" for number in PUBLISHED)


@pytest.mark.parametrize("table", ROWS)
def test_a_table_is_what_the_paper_lists(table):
    rows = [row_of(config) for config in table_of(table)]
    assert set(rows) == ROWS[table]
    assert len(rows) == len(set(rows)) * (3 if table == "tab8" else 1)


def test_table_8_takes_shares_of_the_training_set():
    settings = [(config.data.data_set, config.data.data_ratio) for config in table_of("tab8")]
    assert settings == [("SUBIMNET", 0.1), ("SUBIMNET", 0.05), ("SUBIMNET", 0.01)]


@pytest.mark.parametrize("recipe", TABLES, ids=title)
def test_what_all_tables_share(recipe):
    for config, notices in plan(recipe):
        assert notices == (["--if_order has no effect: --r 0 merges nothing"] if config.setting == "dense" else [])
        assert config.data.data_set in ("IMNET", "SUBIMNET") and config.data.batch_size == 128
        assert config.data.data_path == "data/imagenet"
        assert config.model.model_pth.startswith("weights/") and config.model.weights == "auto"
        if config.run.eval:
            continue
        optim = config.optim
        assert (optim.lr, optim.min_lr, optim.weight_decay) == (2e-5, 1e-6, 0.05)
        assert (optim.accumulation, optim.schedule, optim.warmup_epochs) == (2, "released", 0)
        assert config.distill.distill and config.distill.distill_weight == 0.5
        assert config.model.drop_path == 0.1 and config.model.teacher_pth is None
        ema = recipe.stem == "vim_base"
        assert (optim.model_ema, optim.model_ema_decay) == (ema, 0.99996)


@pytest.mark.parametrize("recipe", RECIPES, ids=title)
def test_models_take_the_settings(recipe):
    """As a dry run checks them; a model is built once a name, since building takes the time."""
    for config in [*configs_of(recipe), *(configs_of(recipe, "RELEASED") if has_quirks(recipe) else [])]:
        model = dense(config.model.model)
        model.merge_config = config.merge
        counts = model.num_tokens
        assert (counts[-1] < counts[0]) == (config.setting != "dense")
        assert counts[-1] >= 2


@functools.cache
def dense(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize("released", [False, True], ids=["paper", "released"])
@pytest.mark.parametrize("table", ["digits", *ROWS])
def test_no_two_commands_of_a_table_share_a_run_folder(table, released):
    folders = [config.folder for config in table_of(table, released)]
    assert len(set(folders)) == len(folders)
    own = {"digits": ("digits", "rules")}.get(table, (table,))
    assert all(folder.parent in [Path("runs") / name for name in own] for folder in folders)


@pytest.mark.parametrize("table", QUIRKS)
def test_released_quirks_change_what_they_say_into_folders_of_their_own(table):
    plain, released = table_of(table), table_of(table, released=True)
    changed = [config for config in released if config not in plain]
    assert len(changed) == QUIRKS[table]
    assert not {config.folder for config in changed} & {config.folder for config in plain}
    for config in changed:
        assert config.merge.final_tokens == 76 or config.merge.released_flip
        assert config.merge.released_flip == (table == "tab6" and config.merge.needs_ssm)


def test_the_released_last_merge_is_only_left_out_where_it_changes_nothing():
    for table in ROWS:
        released = [dataclasses.replace(c.merge, released_flip=False) for c in table_of(table, released=True)]
        for config in table_of(table):
            quirky = dataclasses.replace(config.merge, final_tokens=76)
            model = dense(config.model.model)
            counts = []
            for merge in (config.merge, quirky):
                model.merge_config = merge
                counts.append(model.num_tokens)
            exempt = not config.model.model.startswith("vim_") or config.merge.shuffle
            assert counts[0] == counts[1] or exempt or quirky in released, row_of(config)


@pytest.fixture(scope="module")
def collect():
    """exp_sh/collect.py as a module."""
    spec = importlib.util.spec_from_file_location("collect", ROOT / "exp_sh" / "collect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_has_a_row_that_its_runs_belong_to(collect):
    lines = (ROOT / "exp_sh" / "README.md").read_text().splitlines()
    rows = {recipe: [line for line in lines if f"({title(recipe)}.sh)" in line or f"/{title(recipe)}.sh)" in line]
            for recipe in RECIPES}  # fmt: skip
    assert all(len(found) == 1 for found in rows.values()), {title(r): n for r, n in rows.items() if len(n) != 1}
    patterns = {recipe: collect.CELL.search(rows[recipe][0])["patterns"] for recipe in TABLES}
    for recipe in TABLES:
        for config in [*configs_of(recipe), *(configs_of(recipe, "RELEASED") if has_quirks(recipe) else [])]:
            name = f"{config.folder.parent.name}/{config.folder.name}"
            assert [r for r in TABLES if collect.belongs(name, patterns[r])] == [recipe], name


def published() -> dict[str, tuple[str, int, int]]:
    """PRETRAINED.md's table: file name of each model, its tensors and parameters."""
    row = re.compile(r"\| [^|]+ `(\w+)` \| `([\w.-]+)` \|[^|]+\|[^|]+\| (\d+) \| ([\d,]+) \|")
    found = row.findall((ROOT / "PRETRAINED.md").read_text())
    return {name: (file, int(tensors), int(count.replace(",", ""))) for name, file, tensors, count in found}


def test_pretrained_weights_are_listed_with_what_the_models_hold():
    table = published()
    needed = {(c.model.model, Path(c.model.model_pth).name) for recipe in TABLES for c in configs_of(recipe)}
    assert needed <= {(name, file) for name, (file, _, _) in table.items()}
    golden = json.loads((ROOT / "tests" / "golden" / "state_dict_keys.json").read_text())
    for name, (_, tensors, parameters) in table.items():
        state = dense(name).state_dict()
        assert (len(state), sum(value.numel() for value in state.values())) == (tensors, parameters), name
        key = name.replace("rmeeto_", "").replace("videomamba", "videomamba_image").removesuffix("_patch16_224")
        if key in golden:
            assert (len(golden[key]["keys"]), golden[key]["total_parameters"]) == (tensors, parameters)
    assert len([name for name in table if "tiny" in name or "small" in name]) == 6


def smoked(config: Config, folder: Path) -> dict:
    where = dataclasses.replace(config.run, output_dir=str(folder), device="cpu")
    return run(dataclasses.replace(config, run=where))


def cost(config: Config) -> tuple[bool, int]:
    size = config.model.model.removesuffix("_patch16_224").rpartition("_")[2]
    return not config.run.eval, ["tiny", "small", "base"].index(size)


@pytest.mark.parametrize("table", ROWS)
def test_a_command_of_each_table_smokes(table, tmp_path):
    commands = [c for recipe in TABLES if recipe.parent.name == table for c in configs_of(recipe, "SMOKE")]
    assert smoked(min(commands, key=cost), tmp_path)["count"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=title)
def test_every_command_smokes(recipe, tmp_path):
    for config in configs_of(recipe, "SMOKE"):
        assert smoked(config, tmp_path)["count"] == 4
