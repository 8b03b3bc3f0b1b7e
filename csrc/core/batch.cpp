#include "core/batch.hpp"

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace deploy {
namespace {

constexpr std::size_t alignment = 64;
constexpr std::size_t largest_side = std::size_t{1} << 20;

std::string size_text(std::size_t height, std::size_t width) {
    return std::to_string(height) + "x" + std::to_string(width);
}

std::shared_ptr<float> aligned(std::size_t floats) {
    auto* memory = static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{alignment}));
    return {memory, [](float* pointer) { ::operator delete(pointer, std::align_val_t{alignment}); }};
}

// Half to even, as Python's round() does, on which the usual centre crop is built.
std::size_t middle(std::size_t outer, std::size_t inner) {
    return static_cast<std::size_t>(std::nearbyint(static_cast<double>(outer - inner) / 2.0));
}

}  // namespace

void Preprocess::check() const {
    if (shift.empty() || shift.size() != scale.size()) {
        throw std::invalid_argument("mean and std need one value per channel, got " + std::to_string(shift.size()) +
                                    " and " + std::to_string(scale.size()));
    }
    const auto finite = [](float value) { return std::isfinite(value); };
    if (!std::ranges::all_of(shift, finite) ||
        !std::ranges::all_of(scale, [&](float value) { return finite(value) && value != 0; })) {
        throw std::invalid_argument("mean must be finite and std finite and not 0");
    }
    for (const std::size_t side : {height, width}) {
        if (side == 0 || side > largest_side) {
            throw std::invalid_argument("a sample cannot be " + size_text(height, width) + " pixels");
        }
    }
    if (std::max(resize_height, resize_width) > largest_side || (resize_height == 0 && resize_width > 0)) {
        throw std::invalid_argument("images cannot be resized to " + size_text(resize_height, resize_width));
    }
}

void Preprocess::check(const Image& image) const {
    if (image.channels != channels()) {
        throw std::invalid_argument("the image has " + std::to_string(image.channels) + " channels, expected " +
                                    std::to_string(channels()));
    }
    if (image.height == 0 || image.width == 0 || std::max(image.height, image.width) > largest_side ||
        image.pixels.size() != product({image.height, image.width, image.channels})) {
        throw std::invalid_argument("an image cannot be " + size_text(image.height, image.width) + " pixels in " +
                                    std::to_string(image.pixels.size()) + " bytes");
    }
    const auto [tall, wide] = resized(image);
    if (tall < height || wide < width) {
        throw std::invalid_argument("an image of " + size_text(image.height, image.width) + " becomes " +
                                    size_text(tall, wide) + ", too small to cut out " + size_text(height, width));
    }
    if (std::max(tall, wide) > largest_side) {
        throw std::invalid_argument("an image of " + size_text(image.height, image.width) + " would become " +
                                    size_text(tall, wide));
    }
    const bool resizes = tall != image.height || wide != image.width;
    if (resizes && !image.planar && image.channels != 1 && image.channels != 3 && image.channels != 4) {
        throw std::invalid_argument("images to resize have 1, 3 or 4 channels, not " + std::to_string(image.channels));
    }
}

std::pair<std::size_t, std::size_t> Preprocess::resized(const Image& image) const {
    if (resize_height == 0) {
        return {image.height, image.width};
    }
    if (resize_width != 0) {
        return {resize_height, resize_width};
    }
    // The longer side in integers is what torchvision computes: int(size * longer / shorter).
    if (image.height <= image.width) {
        return {resize_height, resize_height * image.width / image.height};
    }
    return {resize_height * image.height / image.width, resize_height};
}

Packer::Packer(const Preprocess& settings) : settings_(settings) {
    for (std::size_t c = 0; c < settings.channels(); ++c) {
        for (int value = 0; value < 256; ++value) {
            table_.push_back((static_cast<float>(value) - settings.shift[c]) / settings.scale[c]);
        }
    }
}

void Packer::pack(const Image& image, std::span<float> sample) {
    const auto [tall, wide] = settings_.resized(image);
    if (tall == image.height && wide == image.width) {
        normalize(image, middle(tall, settings_.height), middle(wide, settings_.width), sample);
        return;
    }
    if (!image.planar) {
        resize(image, 0, sample);
        return;
    }
    const std::size_t plane = image.height * image.width;
    const std::size_t part = settings_.height * settings_.width;
    for (std::size_t c = 0; c < image.channels; ++c) {
        resize({image.pixels.subspan(c * plane, plane), image.height, image.width, 1, false}, c,
               sample.subspan(c * part, part));
    }
}

// Interleaved channels, of which the first is the sample's channel `first`.
void Packer::resize(const Image& image, std::size_t first, std::span<float> sample) {
    const auto [tall, wide] = settings_.resized(image);
    const std::size_t height = settings_.height;
    const std::size_t width = settings_.width;
    const std::size_t channels = image.channels;
    const std::size_t stride = width * channels;
    // Only what remains after cutting is computed.
    const Taps across = taps(image.width, wide, middle(wide, width), width, settings_.interpolation);
    const Taps down = taps(image.height, tall, middle(tall, height), height, settings_.interpolation);
    const std::size_t begin = down.windows.front().begin;
    const std::size_t end = down.windows.back().begin + down.windows.back().size;
    rows_.resize((end - begin) * stride);
    for (std::size_t y = begin; y < end; ++y) {
        resample_row(image.pixels.subspan(y * image.width * channels, image.width * channels), channels, across,
                     std::span(rows_).subspan((y - begin) * stride, stride));
    }
    sums_.resize(stride);
    row_.resize(stride);
    std::vector<const std::uint8_t*> sources;
    for (std::size_t y = 0; y < height; ++y) {
        const Taps::Window& window = down.windows[y];
        sources.clear();
        for (std::size_t k = 0; k < window.size; ++k) {
            sources.push_back(rows_.data() + (window.begin + k - begin) * stride);
        }
        blend_rows(sources, down.of(window), sums_, row_);
        for (std::size_t c = 0; c < channels; ++c) {
            const float* const table = table_.data() + (first + c) * 256;
            float* const result = sample.data() + (c * height + y) * width;
            for (std::size_t x = 0; x < width; ++x) {
                result[x] = table[row_[x * channels + c]];
            }
        }
    }
}

void Packer::normalize(const Image& image, std::size_t top, std::size_t left, std::span<float> sample) const {
    const std::size_t channels = image.channels;
    const std::size_t pixel = image.planar ? 1 : channels;
    const std::size_t plane = image.planar ? image.height * image.width : 1;
    float* result = sample.data();
    for (std::size_t c = 0; c < channels; ++c) {
        const float* const table = table_.data() + c * 256;
        for (std::size_t y = 0; y < settings_.height; ++y) {
            const std::uint8_t* source = image.pixels.data() + c * plane + ((top + y) * image.width + left) * pixel;
            for (std::size_t x = 0; x < settings_.width; ++x) {
                *result++ = table[source[x * pixel]];
            }
        }
    }
}

Batcher::Batcher(Preprocess settings, std::size_t batch, std::size_t buffers, int threads)
    : settings_(std::move(settings)), batch_(batch) {
    settings_.check();
    if (batch == 0 || buffers < 2) {
        throw std::invalid_argument("a batcher needs batches of 1 sample or more and 2 buffers or more, not " +
                                    std::to_string(batch) + " and " + std::to_string(buffers));
    }
    product({buffers, batch, settings_.sample_size(), sizeof(float)});  // can be counted
    floats_ = batch * settings_.sample_size();
    buffers_.resize(buffers);
    pending_.reserve(buffers);
    free_.reserve(buffers);
    for (std::size_t i = 0; i < buffers; ++i) {
        buffers_[i].samples = aligned(floats_);
        free_.push_back(i);
    }
    threads_ = start_threads(static_cast<std::size_t>(thread_count(threads)), [this] { work(); });
}

Batcher::~Batcher() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    work_.notify_all();
}

void Batcher::submit(std::vector<Image> images, std::shared_ptr<const void> keep) {
    if (images.empty() || images.size() > batch_) {
        throw std::invalid_argument("a batch has 1.." + std::to_string(batch_) + " images, not " +
                                    std::to_string(images.size()));
    }
    for (const Image& image : images) {
        settings_.check(image);
    }
    {
        const std::lock_guard lock(mutex_);
        if (free_.empty()) {
            throw std::invalid_argument("all " + std::to_string(buffers_.size()) + " buffers are in use; take() first");
        }
        Buffer& buffer = buffers_[free_.front()];
        if (buffer.samples.use_count() > 1) {  // somebody still reads what it held
            buffer.samples = aligned(floats_);
        }
        buffer.left = images.size();
        buffer.next = 0;
        buffer.images = std::move(images);
        buffer.keep = std::move(keep);
        pending_.push_back(free_.front());
        free_.erase(free_.begin());
    }
    work_.notify_all();
}

Batcher::Batch Batcher::take() {
    const std::lock_guard turn(turn_);
    std::unique_lock lock(mutex_);
    if (pending_.empty()) {
        throw std::invalid_argument("no batch was submitted");
    }
    const std::size_t index = pending_.front();
    Buffer& buffer = buffers_[index];
    done_.wait(lock, [&] { return buffer.left == 0; });
    pending_.erase(pending_.begin());
    if (taken_) {
        free_.push_back(*taken_);
    }
    taken_ = index;
    const std::exception_ptr failure = std::exchange(buffer.failure, nullptr);
    Batch batch{buffer.samples, buffer.images.size(), std::move(buffer.keep)};
    lock.unlock();
    if (failure) {
        std::rethrow_exception(failure);
    }
    return batch;
}

void Batcher::work() {
    std::optional<Packer> packer;
    std::unique_lock lock(mutex_);
    while (true) {
        // Oldest batch first, as that is what take() waits for.
        const auto found =
            std::ranges::find_if(pending_, [&](std::size_t i) { return buffers_[i].next < buffers_[i].images.size(); });
        if (stop_) {
            return;
        }
        if (found == pending_.end()) {
            work_.wait(lock);
            continue;
        }
        Buffer& buffer = buffers_[*found];
        const std::size_t at = buffer.next++;
        lock.unlock();
        std::exception_ptr failure;
        try {
            if (!packer) {
                packer.emplace(settings_);
            }
            const std::size_t size = settings_.sample_size();
            packer->pack(buffer.images[at], {buffer.samples.get() + at * size, size});
        } catch (...) {
            failure = std::current_exception();
        }
        lock.lock();
        buffer.failure = failure ? failure : buffer.failure;
        if (--buffer.left == 0) {
            done_.notify_all();
        }
    }
}

}  // namespace deploy
