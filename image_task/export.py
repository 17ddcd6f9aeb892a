"""Make a model folder, an ONNX file or a package of a run.

    python -m image_task.export runs/photos/retrained runs/photos/model --onnx

The model merges as in the run; its description says what the run was trained on, so that timm prepares pictures the
same way and the classes have names.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as `python image_task/export.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

from image_task.main import TASK
from rmeeto.cli.export import Export

COMMAND = Export("python -m image_task.export", (__doc__ or "").partition("\n")[0], TASK)
main, load_run = COMMAND.main, COMMAND.load_run

if __name__ == "__main__":
    sys.exit(main())
