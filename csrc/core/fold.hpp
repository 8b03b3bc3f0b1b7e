#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace deploy {

// What constant inputs add to each output of a layer (algorithm: beta absorption of Ye et al., ICLR 2018):
// shift[o] = sum over i of means[g(o)*inputs + i] * sum over k of weight[o, i, k], summed in double.
// weight is (outputs, inputs, kernel), inputs counted per convolution group; an input whose mean is 0 is skipped, so
// that only removed channels cost time. Throws std::invalid_argument for lengths that contradict each other.
template <typename T>
std::vector<double> input_shift(std::span<const T> weight, std::span<const double> means, std::size_t outputs,
                                std::size_t groups, int threads);

// Statistics and affine part of a batch norm over `mean.size()` channels; empty gamma = 1, empty beta = 0.
template <typename T>
struct BatchNorm {
    std::span<const T> gamma;
    std::span<const T> beta;
    std::span<const T> mean;
    std::span<const T> variance;
    double epsilon = 0;
};

// Fold a batch norm into the layer before it: weight and target_weight are (outer, channels, inner); for a convolution
// or linear layer outer = 1, for a transposed convolution outer = its inputs. An empty bias counts as 0.
// Computed in double, rounded once. Throws std::invalid_argument for lengths that contradict each other and for a
// variance + epsilon that is not positive.
template <typename T>
void fold_batch_norm(std::span<const T> weight, std::span<const T> bias, const BatchNorm<T>& norm, std::size_t outer,
                     std::span<T> target_weight, std::span<T> target_bias);

}  // namespace deploy
