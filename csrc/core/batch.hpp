#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/resample.hpp"
#include "core/sizes.hpp"
#include "core/threads.hpp"

namespace deploy {

// Bytes of one image: height x width x channels, or channels x height x width where `planar`.
struct Image {
    std::span<const std::uint8_t> pixels;
    std::size_t height = 0;
    std::size_t width = 0;
    std::size_t channels = 0;
    bool planar = false;
};

// What turns an image into a sample of channels x height x width floats: resize, cut out the middle, then
// (pixel - shift) / scale per channel, in float32 and in this order of operations.
struct Preprocess {
    std::size_t resize_height = 0;  // 0: keep the size
    std::size_t resize_width = 0;   // 0: resize_height is for the shorter side, the other one follows, rounded down
    std::size_t height = 0;
    std::size_t width = 0;
    Interpolation interpolation = Interpolation::bilinear;
    std::vector<float> shift;  // one per channel
    std::vector<float> scale;

    std::size_t channels() const { return shift.size(); }
    std::size_t sample_size() const { return product({channels(), height, width}); }
    void check() const;                    // throws std::invalid_argument for sizes or values that make no sense
    void check(const Image& image) const;  // the same for an image that cannot become a sample

    // Size of `image` after resizing, before cutting: height and width.
    std::pair<std::size_t, std::size_t> resized(const Image& image) const;
};

// Images to samples on one thread; keeps its working memory.
class Packer {
  public:
    explicit Packer(const Preprocess& settings);

    // `sample` has sample_size() floats; the image must have passed Preprocess::check.
    void pack(const Image& image, std::span<float> sample);

  private:
    void resize(const Image& image, std::size_t plane, std::span<float> sample);
    void normalize(const Image& image, std::size_t top, std::size_t left, std::span<float> sample) const;

    const Preprocess& settings_;
    std::vector<float> table_;  // 256 results per channel
    std::vector<std::uint8_t> rows_;
    std::vector<std::uint8_t> row_;
    std::vector<std::int32_t> sums_;
};

// Batches packed by threads of its own into a few buffers that are used again and again. Safe for several threads:
// submissions are taken in their order, by one taker after the other.
class Batcher {
  public:
    // Buffers hold `batch` samples each and are aligned to 64 bytes; `threads` as in thread_count.
    Batcher(Preprocess settings, std::size_t batch, std::size_t buffers, int threads);
    ~Batcher();
    Batcher(const Batcher&) = delete;
    Batcher& operator=(const Batcher&) = delete;

    // Begin to pack 1..batch images; returns at once. `keep` is what their pixels live in: it is held until the batch
    // is taken. Throws std::invalid_argument for images that do not fit, and where every buffer is in use: one belongs
    // to the batch last taken, the others to batches not yet taken.
    void submit(std::vector<Image> images, std::shared_ptr<const void> keep);

    // `count` samples. Their memory is not written to while somebody holds it; the next batches need no new memory
    // where the one before the last is let go of before the next submission.
    struct Batch {
        std::shared_ptr<const float> samples;
        std::size_t count = 0;
        std::shared_ptr<const void> keep;  // as submitted
    };

    // Wait for the oldest batch. Throws std::invalid_argument where nothing was submitted.
    Batch take();

    const Preprocess& settings() const { return settings_; }

  private:
    struct Buffer {
        std::shared_ptr<float> samples;
        std::vector<Image> images;
        std::shared_ptr<const void> keep;
        std::size_t next = 0;  // image that no thread has begun yet
        std::size_t left = 0;  // images that are not finished
        std::exception_ptr failure;
    };

    void work();

    Preprocess settings_;
    std::size_t batch_;
    std::size_t floats_;  // of a buffer
    std::vector<Buffer> buffers_;
    std::vector<std::size_t> pending_;  // buffers in the order of submission
    std::vector<std::size_t> free_;
    std::optional<std::size_t> taken_;  // the buffer of the batch last taken
    bool stop_ = false;
    std::mutex turn_;   // of takers; locked before mutex_
    std::mutex mutex_;  // of all of the above
    std::condition_variable work_;
    std::condition_variable done_;
    std::vector<JoiningThread> threads_;
};

}  // namespace deploy
