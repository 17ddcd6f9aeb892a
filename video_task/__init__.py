"""The video task: VideoMamba on clips, merged, re-trained and tested on several views.

The mirror image of `image_task`: `main.py` and `throughput.py`, and beside them what only video needs: reading,
sampling and augmenting clips (`data`), the models' form for clips (`models`), the recipe's optimizer (`optim.py`)
and the test on several views (`views.py`).
"""
