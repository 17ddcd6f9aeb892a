"""`python -m benchmarks SUITE [options]`; `faults` has options of its own."""

import sys

from rmeeto.cli.interrupt import answer_interrupts

answer_interrupts()  # before torch is imported
if sys.argv[1:2] == ["faults"]:
    from benchmarks.faults import main

    sys.exit(main(sys.argv[2:]))

from benchmarks.cli import main  # noqa: E402

sys.exit(main())
