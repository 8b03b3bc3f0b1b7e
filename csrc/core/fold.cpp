#include "core/fold.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "core/sizes.hpp"
#include "core/threads.hpp"

namespace deploy {
namespace {

// Outputs that make a task worth its hand-over to a thread.
constexpr std::size_t task_outputs = 16;

void require(bool holds, const std::string& text) {
    if (!holds) {
        throw std::invalid_argument(text);
    }
}

}  // namespace

template <typename T>
std::vector<double> input_shift(std::span<const T> weight, std::span<const double> means, std::size_t outputs,
                                std::size_t groups, int threads) {
    require(groups > 0 && outputs % groups == 0 && means.size() % groups == 0,
            std::to_string(outputs) + " outputs and " + std::to_string(means.size()) + " inputs do not divide into " +
                std::to_string(groups) + " groups");
    const std::size_t inputs = means.size() / groups;
    const std::size_t block = product({outputs, inputs});
    require(block > 0 && weight.size() % block == 0, "the weight's length " + std::to_string(weight.size()) +
                                                         " contradicts " + std::to_string(outputs) + " outputs and " +
                                                         std::to_string(inputs) + " inputs a group");
    const std::size_t kernel = weight.size() / block;
    std::vector<std::vector<std::size_t>> present(groups);  // inputs of each group that are not silent
    for (std::size_t i = 0; i < means.size(); ++i) {
        if (means[i] != 0) {
            present[i / inputs].push_back(i % inputs);
        }
    }
    std::vector<double> shift(outputs, 0.0);
    const auto one = [&](std::size_t output) {
        const std::size_t group = output / (outputs / groups);
        const T* row = weight.data() + output * inputs * kernel;
        for (const std::size_t input : present[group]) {
            double sum = 0;
            for (std::size_t k = 0; k < kernel; ++k) {
                sum += static_cast<double>(row[input * kernel + k]);
            }
            shift[output] += means[group * inputs + input] * sum;
        }
    };
    parallel_for((outputs + task_outputs - 1) / task_outputs, thread_count(threads), [&](std::size_t task) {
        for (std::size_t o = task * task_outputs; o < std::min(outputs, (task + 1) * task_outputs); ++o) {
            one(o);
        }
    });
    return shift;
}

template <typename T>
void fold_batch_norm(std::span<const T> weight, std::span<const T> bias, const BatchNorm<T>& norm, std::size_t outer,
                     std::span<T> target_weight, std::span<T> target_bias) {
    const std::size_t channels = norm.mean.size();
    const std::size_t block = product({outer, channels});
    require(block > 0 && weight.size() % block == 0, "the weight's length " + std::to_string(weight.size()) +
                                                         " is no multiple of " + std::to_string(channels) +
                                                         " channels");
    for (const std::size_t size : {bias.size(), norm.gamma.size(), norm.beta.size()}) {
        require(size == 0 || size == channels,
                "expected " + std::to_string(channels) + " values a channel, got " + std::to_string(size));
    }
    require(
        norm.variance.size() == channels && target_bias.size() == channels && target_weight.size() == weight.size(),
        "the variance's or a target's length contradicts the batch norm's " + std::to_string(channels) + " channels");
    const std::size_t inner = weight.size() / block;
    for (std::size_t c = 0; c < channels; ++c) {
        const double spread = static_cast<double>(norm.variance[c]) + norm.epsilon;
        require(spread > 0, "channel " + std::to_string(c) + " has a variance + epsilon of " + std::to_string(spread) +
                                ", which is not positive");
        const double gamma = norm.gamma.empty() ? 1.0 : static_cast<double>(norm.gamma[c]);
        const double beta = norm.beta.empty() ? 0.0 : static_cast<double>(norm.beta[c]);
        const double before = bias.empty() ? 0.0 : static_cast<double>(bias[c]);
        const double scale = gamma / std::sqrt(spread);
        target_bias[c] = static_cast<T>((before - static_cast<double>(norm.mean[c])) * scale + beta);
        for (std::size_t o = 0; o < outer; ++o) {
            const std::size_t first = (o * channels + c) * inner;
            for (std::size_t i = first; i < first + inner; ++i) {
                target_weight[i] = static_cast<T>(static_cast<double>(weight[i]) * scale);
            }
        }
    }
}

template std::vector<double> input_shift(std::span<const float>, std::span<const double>, std::size_t, std::size_t,
                                         int);
template std::vector<double> input_shift(std::span<const double>, std::span<const double>, std::size_t, std::size_t,
                                         int);
template void fold_batch_norm(std::span<const float>, std::span<const float>, const BatchNorm<float>&, std::size_t,
                              std::span<float>, std::span<float>);
template void fold_batch_norm(std::span<const double>, std::span<const double>, const BatchNorm<double>&, std::size_t,
                              std::span<double>, std::span<double>);

}  // namespace deploy
