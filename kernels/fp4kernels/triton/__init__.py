"""Triton kernels. Only the modules that hold kernels import triton, and only when one is built."""
