// How the programs of the tests read arrays, each behind the number of its elements, and write one.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

inline void in_order(int64_t tasks, void (*body)(void*, int64_t), void* context) {
    for (int64_t i = 0; i < tasks; ++i) body(context, i);
}

template <class T>
std::vector<T> take(FILE* file) {
    int64_t count = 0;
    if (std::fread(&count, sizeof count, 1, file) != 1) std::abort();
    std::vector<T> values(count);
    if (std::fread(values.data(), sizeof(T), count, file) != size_t(count)) std::abort();
    return values;
}

template <class T>
void give(const char* name, const std::vector<T>& values) {
    FILE* file = std::fopen(name, "wb");
    std::fwrite(values.data(), sizeof(T), values.size(), file);
    std::fclose(file);
}
