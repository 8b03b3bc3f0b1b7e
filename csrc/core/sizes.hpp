#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>

namespace deploy {

// The product of sizes. Throws std::invalid_argument where it is more than can be counted, and so no memory holds it.
std::size_t product(std::span<const std::size_t> sizes);
std::size_t product(std::initializer_list<std::size_t> sizes);

}  // namespace deploy
