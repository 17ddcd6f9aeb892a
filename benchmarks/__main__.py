"""`python -m benchmarks SUITE [options]`; `faults` has options of its own."""

import sys

if sys.argv[1:2] == ["faults"]:
    from benchmarks.faults import main

    sys.exit(main(sys.argv[2:]))

from benchmarks.cli import main

sys.exit(main())
