"""The offline proof: what compilers make of the kernels for GPUs that are not here."""
