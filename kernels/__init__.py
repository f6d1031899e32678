"""Kernels: one per file, each beside its plain reference and its byte and flop count.

`dispatch` is the entry; it imports Triton only where there is a CUDA device.
"""
