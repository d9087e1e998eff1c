"""FP4 formats, kernels and tuned tables that training code imports."""
