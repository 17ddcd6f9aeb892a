"""`python -m benchmarks SUITE [options]`."""

import sys

from benchmarks.cli import main

sys.exit(main())
