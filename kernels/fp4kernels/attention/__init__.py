"""FP4 attention: prefill of whole sequences, and decoding over an FP4 KV cache.

The package's own name is taken, in `fp4kernels`, by the function: import from its modules.
"""
