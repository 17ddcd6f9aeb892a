"""Make a model folder, an ONNX file or a package of a run on clips.

    python -m video_task.export runs/clips/retrained runs/clips/model --onnx

The model merges as in the run; its description says what the run was trained on: frames, size, names of the classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as `python video_task/export.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

from rmeeto.cli.export import Export
from video_task.main import TASK

COMMAND = Export("python -m video_task.export", (__doc__ or "").partition("\n")[0], TASK)
main, load_run = COMMAND.main, COMMAND.load_run

if __name__ == "__main__":
    sys.exit(main())
