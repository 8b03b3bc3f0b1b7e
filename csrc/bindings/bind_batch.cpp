#include "bindings/numpy.hpp"
//
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "bindings/bind.hpp"
#include "core/batch.hpp"

namespace deploy::bindings {
namespace {

Image image_of(const py::handle& object, bool planar) {
    if (!py::isinstance<Array<std::uint8_t>>(object) || py::reinterpret_borrow<py::array>(object).ndim() != 3) {
        throw py::type_error("an image must be a contiguous uint8 array of three dimensions");
    }
    const auto array = py::reinterpret_borrow<Array<std::uint8_t>>(object);
    const auto shape = shape_of(array);
    if (planar) {
        return {span_of(array), shape[1], shape[2], shape[0], true};
    }
    return {span_of(array), shape[0], shape[1], shape[2], false};
}

Interpolation interpolation_of(const std::string& name) {
    if (name == "bilinear") {
        return Interpolation::bilinear;
    }
    if (name == "bicubic") {
        return Interpolation::bicubic;
    }
    throw py::value_error("interpolation is bilinear or bicubic, not " + name);
}

// The images' arrays are held until their batch has been taken; the threads only read their memory.
class PyBatcher {
  public:
    PyBatcher(std::pair<std::size_t, std::size_t> size, std::pair<std::size_t, std::size_t> resize,
              const std::string& interpolation, std::vector<float> shift, std::vector<float> scale, bool planar,
              std::size_t batch, std::size_t buffers, int threads)
        : planar_(planar),
          batcher_(
              std::make_unique<Batcher>(Preprocess{resize.first, resize.second, size.first, size.second,
                                                   interpolation_of(interpolation), std::move(shift), std::move(scale)},
                                        batch, buffers, threads)) {}

    // The threads end before the images that they read are let go of.
    ~PyBatcher() { batcher_.reset(); }
    PyBatcher(const PyBatcher&) = delete;
    PyBatcher& operator=(const PyBatcher&) = delete;

    void submit(const py::sequence& images) {
        std::vector<Image> spans;
        std::vector<py::object> arrays;
        for (const py::handle image : images) {
            spans.push_back(image_of(image, planar_));
            arrays.push_back(py::reinterpret_borrow<py::object>(image));
        }
        batcher_->submit(std::move(spans));
        held_.push_back(std::move(arrays));
    }

    py::array take() {
        std::span<const float> samples;
        try {
            const py::gil_scoped_release release;
            samples = batcher_->take();
        } catch (...) {
            if (!held_.empty()) {
                held_.pop_front();
            }
            throw;
        }
        held_.pop_front();
        const Preprocess& settings = batcher_->settings();
        const auto count = static_cast<py::ssize_t>(samples.size() / settings.sample_size());
        const std::vector<py::ssize_t> shape{count, static_cast<py::ssize_t>(settings.channels()),
                                             static_cast<py::ssize_t>(settings.height),
                                             static_cast<py::ssize_t>(settings.width)};
        auto* const keep = new std::shared_ptr<const void>(batcher_->memory());
        const py::capsule owner(keep, [](void* memory) { delete static_cast<std::shared_ptr<const void>*>(memory); });
        return py::array_t<float>(shape, samples.data(), owner);
    }

  private:
    bool planar_;
    std::deque<std::vector<py::object>> held_;
    std::unique_ptr<Batcher> batcher_;
};

}  // namespace

void bind_batch(py::module_& module) {
    py::class_<PyBatcher>(module, "Batcher", plain_type(), py::is_final(),
                          "Images to float batches, packed by threads into buffers that are used again.")
        .def(py::init<std::pair<std::size_t, std::size_t>, std::pair<std::size_t, std::size_t>, const std::string&,
                      std::vector<float>, std::vector<float>, bool, std::size_t, std::size_t, int>(),
             py::arg("size"), py::arg("resize"), py::arg("interpolation"), py::arg("shift"), py::arg("scale"),
             py::arg("planar") = false, py::arg("batch") = 1, py::arg("buffers") = 3, py::arg("threads") = 0)
        .def("submit", &PyBatcher::submit, py::arg("images"))
        .def("take", &PyBatcher::take);
}

}  // namespace deploy::bindings
