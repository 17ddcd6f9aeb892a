"""The recipes of the evidence on Fashion-MNIST (`image_task/exp_sh/fashion/`)."""

from __future__ import annotations

import re
from pathlib import Path

import timm

from image_task.flags import parse
from tests.recipes import RECIPES, ROOT, launch, plan, task_arguments, title

FASHION = [recipe for recipe in RECIPES if recipe.parent.name == "fashion"]
FOLDER = ROOT / "image_task" / "exp_sh" / "fashion"


def configs():
    return [config for recipe in FASHION for config, _ in plan(recipe)]


def test_vim_and_deit_are_of_one_size_and_see_197_tokens():
    vim, deit = (timm.create_model(name) for name in ("vim_nano_patch2_28", "rmeeto_deit_nano_patch2_28"))
    assert vim.num_tokens[0] == deit.num_tokens[0] == 197
    assert (vim.class_index, deit.class_index) == (98, 0)
    assert (vim.embed_dim, vim.depth) == (deit.embed_dim, deit.depth)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (vim, deit)]
    assert max(sizes) / min(sizes) < 1.15 and max(sizes) * 4 < 4e6


def test_nothing_is_chosen_or_trained_on_the_test_images():
    """Only evaluations that end a row read them; whatever trains evaluates on what it has held out."""
    for config in configs():
        assert config.run.eval == ("-test" in config.run.name)
        assert (config.data.holdout == 0) == config.run.eval
        assert config.data.max_eval_batches == 0 or not config.run.eval


def test_rows_of_a_name_are_the_same_run_wherever_they_stand():
    runs = {}
    for config in configs():
        assert runs.setdefault(config.folder, config) == config
    assert len(runs) > 100


def test_a_row_is_tested_as_it_was_trained():
    runs = {config.run.name: config for config in configs()}
    trained = [config for config in runs.values() if re.search("-(brief|trained)-seed", config.run.name)]
    for config in trained:
        if config.optim.elastic_r is None:
            tested = runs[config.run.name.replace("-seed", "-test-seed")]
            assert tested.merge == config.merge and tested.model.model == config.model.model
            assert tested.model.model_pth == f"runs/fashion/{config.run.name}/last.pt"
        kind = config.run.name.partition("-")[0]
        shipped = f"image_task/exp_sh/fashion/{kind}.safetensors"
        dense = shipped if (ROOT / shipped).exists() else f"runs/fashion/{kind}-dense-seed0/last.pt"
        assert config.model.model_pth == dense
        assert config.distill.distill == ("noteacher" not in config.run.name)


def test_a_name_says_what_is_merged():
    for config in configs():
        found = re.search(r"-r(\d+)[-.]", config.run.name)
        if found and "slope" not in config.run.name:
            assert (config.merge.r if config.merge else 0) == int(found[1])
        assert ("prune" in config.run.name) == bool(config.merge and config.merge.prune)


def test_shares_of_the_images_take_as_many_steps():
    for config in configs():
        if found := re.search(r"share(\d+)-brief-seed", config.run.name):
            images = 60_000 - config.data.holdout
            assert images == 55_000 * int(found[1]) / 100
            assert images // 64 >= config.data.max_train_batches
            assert config.data.max_train_batches * config.optim.epochs == 3 * 62


def test_rows_share_what_the_teacher_says_where_they_see_the_same_images():
    caches = {}
    for config in configs():
        same = config.model.model, config.run.seed, config.data.holdout
        if config.distill.teacher_cache:
            caches.setdefault(config.distill.teacher_cache, same)
            assert caches[config.distill.teacher_cache] == same
        elif config.distill.distill:
            assert config.data.holdout != 5000
    assert len(caches) == 2


def test_finished_runs_are_not_run_again_and_others_go_on(tmp_path):
    _, commands = launch(FOLDER / "dense.sh", tmp_path)
    assert ["vim-dense-seed0" in command for command in commands] == [True, False]
    assert all("--resume" in command for command in commands)
    done = tmp_path / "runs" / "fashion" / "vim-dense-seed0"
    done.mkdir(parents=True)
    (done / "result.json").touch()
    _, commands = launch(FOLDER / "dense.sh", tmp_path, SEED="0")
    assert [command[command.index("--name") + 1] for command in commands] == ["deit-dense-seed0"]


def test_other_seeds_start_from_their_own_dense_model(tmp_path):
    _, commands = launch(FOLDER / "order.sh", tmp_path, FREE="1", SEED="2")
    weights = {command[command.index("--model_pth") + 1] for command in commands}
    assert weights == {f"{tmp_path}/runs/fashion/{kind}-dense-seed2/last.pt" for kind in ("vim", "deit")}


def test_steps_are_graphs_where_that_is_wanted(tmp_path):
    def trained(**env: str) -> list[bool]:
        _, commands = launch(FOLDER / "elastic.sh", tmp_path, **env)
        configs = [parse(task_arguments(command))[0] for command in commands]
        return [config.optim.cuda_graph for config in configs if not config.run.eval]

    assert trained() == [False] * 5 and trained(GRAPH="1") == [True] * 5


def test_free_leaves_out_what_trains(tmp_path):
    _, commands = launch(FOLDER / "order.sh", tmp_path, FREE="1")
    assert len(commands) == 14 and all("--eval" in command for command in commands)


def test_rows_at_the_same_time_are_the_same_rows_and_those_that_fail_are_an_error_that_ends_no_other(tmp_path):
    runs = [launch(FOLDER / "blocks.sh", tmp_path, JOBS=jobs) for jobs in ("1", "4")]
    assert [process.returncode for process, _ in runs] == [0, 0]
    (_, one), (_, four) = runs
    assert sorted(one) == sorted(four) and len(one) == 16
    for jobs in ("1", "4"):
        process, commands = launch(FOLDER / "blocks.sh", tmp_path, JOBS=jobs, STAND_IN_FAILS="7")
        assert process.returncode == 7 and "13 of the rows failed" in process.stderr
        assert len(commands) == 13, "all rows; those that train are not tested"


def test_rows_that_are_told_to_leave_end_the_recipe(tmp_path):
    process, commands = launch(FOLDER / "all.sh", tmp_path, STAND_IN_FAILS="75")
    assert (process.returncode, len(commands)) == (75, 1)


def test_all_starts_every_recipe_of_the_folder():
    text = (FOLDER / "all.sh").read_text()
    assert all(re.search(rf"\b{Path(recipe).stem}\b", text) for recipe in FASHION), [title(r) for r in FASHION]
