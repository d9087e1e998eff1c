// The quantizer as a program of its own, for sanitizers: float32 values from a file, bytes to another.
#include "program.h"
#include "quantize.cpp"

int main(int, char** names) {
    FILE* file = std::fopen(names[1], "rb");
    const auto sizes = take<int64_t>(file);
    const auto x = take<float>(file);
    std::vector<uint8_t> codes(x.size() * BITS / 8), scales(x.size() / BLOCK);
    float tensor_scale = 0;
    const QuantizeArgs args{x.data(), codes.data(), scales.data(), &tensor_scale, nullptr, sizes[0], sizes[1], 0};
    quantize(&args, in_order);
    codes.insert(codes.end(), scales.begin(), scales.end());
    give(names[2], codes);
}
