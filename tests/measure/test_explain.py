"""What a sheet of a picture shows of the merges."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from image_task.models import Vim
from rmeeto.errors import UserError
from rmeeto.measure import explain
from rmeeto.merge import MergeConfig


@pytest.mark.parametrize(("depth", "merges"), [(3, [1]), (5, [1, 2]), (7, [1, 2, 3]), (9, [2, 3, 4])])
def test_a_sheet_shows_no_merge_twice(monkeypatch, depth, merges):
    model = Vim(16, 4, 4, embed_dim=16, depth=depth, num_classes=3, merge=MergeConfig(r=2)).eval()
    captions: list[str] = []
    monkeypatch.setattr(explain, "compose", lambda panels, *_, **__: captions.extend(panel.caption for panel in panels))
    answer = explain.Answer("a", "vim", [("cat", 1.0)])
    explain.picture_sheet(model, torch.rand(1, 3, 16, 16), np.zeros((64, 64, 3)), answer)
    shown = [int(found[1]) for caption in captions if (found := re.match(r"after merge (\d+) of", caption))]
    assert shown == merges


@pytest.mark.parametrize("merge", [{"r": 5, "interval": 50}, {"final_tokens": 300}, {"shuffle": "odd-even"}])
def test_where_no_token_goes_there_is_nothing_to_draw(merge):
    model = Vim(16, 4, 4, embed_dim=16, depth=3, num_classes=3, merge=MergeConfig(**merge)).eval()
    answer = explain.Answer("a", "vim", [("cat", 1.0)])
    with pytest.raises(UserError, match="no block of this model merges any of its 17 tokens, so there"):
        explain.picture_sheet(model, torch.rand(1, 3, 16, 16), np.zeros((64, 64, 3)), answer)
