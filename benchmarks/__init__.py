"""What the project measures of itself: `python benchmarks/run.py --help`."""
