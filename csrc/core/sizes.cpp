#include "core/sizes.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace deploy {

std::size_t product(std::span<const std::size_t> sizes) {
    if (std::ranges::find(sizes, std::size_t{0}) != sizes.end()) {
        return 0;
    }
    std::size_t result = 1;
    for (const std::size_t size : sizes) {
        if (size > std::numeric_limits<std::size_t>::max() / result) {
            std::string text;
            for (const std::size_t factor : sizes) {
                text += (text.empty() ? "" : " x ") + std::to_string(factor);
            }
            throw std::invalid_argument("the sizes " + text + " are too large: no memory holds so many items");
        }
        result *= size;
    }
    return result;
}

std::size_t product(std::initializer_list<std::size_t> sizes) {
    return product(std::span<const std::size_t>(sizes.begin(), sizes.size()));
}

}  // namespace deploy
