"""Files from strangers, made by the thousand: `python -m tests.fuzz --minutes N`.

Each kind of input (`kinds/`, a module each) has honest seeds, a mutator and a check. `runner.py` runs the checks in
child processes with limits; a crash, a hang, a traceback, a connection, a file touched outside the run's folder or a
wrong result without a word is a finding. Inputs that were findings once stay in `seeds/` and are tried again in every
run of the tests. `results/` holds recorded runs, and `coverage.py` is for atheris.
"""
