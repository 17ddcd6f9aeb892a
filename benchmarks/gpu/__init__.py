"""Parity and speed on one CUDA GPU: see `benchmarks/gpu.sh`. Not yet measured."""
