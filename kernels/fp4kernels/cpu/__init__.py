"""C++ kernels for CPUs: built by the host's compiler, loaded by ctypes."""
