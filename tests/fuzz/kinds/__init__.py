"""The kinds of input by name; each module says what it tries."""

from tests.fuzz.kinds import (
    answers,
    checkpoints,
    clips,
    commands,
    faults,
    indexes,
    libraries,
    lists,
    models,
    pictures,
    recipes,
    resumes,
    runs,
    safetensors,
    settings,
    shards,
    tools,
)

KINDS = {
    "checkpoints": checkpoints.KIND,
    "safetensors": safetensors.KIND,
    "models": models.KIND,
    "settings": settings.KIND,
    "runs": runs.KIND,
    "resumes": resumes.KIND,
    "lists": lists.KIND,
    "shards": shards.KIND,
    "indexes": indexes.KIND,
    "answers": answers.KIND,
    "pictures": pictures.KIND,
    "clips": clips.KIND,
    "libraries": libraries.KIND,
    "commands": commands.KIND,
    "recipes": recipes.KIND,
    "tools": tools.KIND,
}
FAULTS = {"faults": faults.KIND}  # what the runner has to find; only on request
