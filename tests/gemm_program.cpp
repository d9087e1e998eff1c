// A GEMM, KERNEL, as a program of its own, for sanitizers, and for a CPU that is not here: operands from a
// file, the product to another.
#include KERNEL
#include "program.h"

int main(int, char** names) {
    FILE* file = std::fopen(names[1], "rb");
    const auto sizes = take<int64_t>(file);
    const auto tensor_scales = take<float>(file);
    const auto x_codes = take<uint8_t>(file), x_scales = take<uint8_t>(file);
    const auto w_codes = take<uint8_t>(file), w_scales = take<uint8_t>(file);
    std::vector<float> out(sizes[0] * sizes[1]);
    const GemmArgs args{{x_codes.data(), x_scales.data(), &tensor_scales[0]},
                        {w_codes.data(), w_scales.data(), &tensor_scales[1]},
                        out.data(), sizes[0], sizes[1], sizes[2], 0, KC, MC};
    gemm(&args, in_order, 1);
    give(names[2], out);
}
