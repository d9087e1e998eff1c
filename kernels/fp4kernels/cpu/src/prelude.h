// What takes compilers longest to read in a kernel, compiled once for many of them: see build.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
