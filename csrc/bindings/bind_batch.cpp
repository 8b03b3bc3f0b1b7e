#include "bindings/numpy.hpp"
//
#include <unistd.h>

#include <memory>
#include <utility>
#include <vector>

#include "bindings/bind.hpp"
#include "core/batch.hpp"

namespace deploy::bindings {
namespace {

Image image_of(const Owned<std::uint8_t>& array, bool planar) {
    const std::vector<std::size_t>& shape = array.shape();
    if (planar) {
        return {array.span(), shape[1], shape[2], shape[0], true};
    }
    return {array.span(), shape[0], shape[1], shape[2], false};
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

// Locks of the batcher are only waited for without the GIL.
class PyBatcher {
  public:
    PyBatcher(std::pair<std::size_t, std::size_t> size, std::pair<std::size_t, std::size_t> resize,
              const std::string& interpolation, const py::object& shift, const py::object& scale, bool planar,
              std::size_t batch, std::size_t buffers, int threads)
        : planar_(planar),
          batcher_(std::make_unique<Batcher>(
              Preprocess{resize.first, resize.second, size.first, size.second, interpolation_of(interpolation),
                         numbers_of<float>(shift, "shift"), numbers_of<float>(scale, "scale")},
              batch, buffers, threads)) {}

    // A forked process has none of the threads, and waiting for them would never end.
    ~PyBatcher() {
        if (process_ != getpid()) {
            static_cast<void>(batcher_.release());
        }
    }
    PyBatcher(const PyBatcher&) = delete;
    PyBatcher& operator=(const PyBatcher&) = delete;

    void submit(const py::object& images) {
        check_process();
        std::vector<Owned<std::uint8_t>> owners;
        std::vector<Image> spans;
        for (const py::handle image : items_of(images, "images")) {
            owners.push_back(read<std::uint8_t>(image, "an image", 3));
            spans.push_back(image_of(owners.back(), planar_));
        }
        auto keep = kept_alive(std::move(owners));
        const py::gil_scoped_release release;
        batcher_->submit(std::move(spans), std::move(keep));
    }

    py::array take() {
        check_process();
        Batcher::Batch batch;
        {
            const py::gil_scoped_release release;
            batch = batcher_->take();
        }
        const Preprocess& settings = batcher_->settings();
        const std::vector<std::size_t> shape{batch.count, settings.channels(), settings.height, settings.width};
        auto memory = std::make_unique<Samples>(std::move(batch.samples));
        const float* const samples = memory->get();
        const py::capsule owner(memory.get(), [](void* held) { delete static_cast<Samples*>(held); });
        static_cast<void>(memory.release());
        return py::array_t<float>(shape, samples, owner);
    }

  private:
    using Samples = std::shared_ptr<const float>;

    void check_process() const {
        if (process_ != getpid()) {
            throw std::runtime_error("this Batcher belongs to the process that made it; make one in every process");
        }
    }

    pid_t process_ = getpid();
    bool planar_;
    std::unique_ptr<Batcher> batcher_;
};

}  // namespace

void bind_batch(py::module_& module) {
    py::class_<PyBatcher>(module, "Batcher", plain_type(), py::is_final(),
                          "Images to float batches, packed by threads into buffers that are used again.")
        .def(py::init<std::pair<std::size_t, std::size_t>, std::pair<std::size_t, std::size_t>, const std::string&,
                      const py::object&, const py::object&, bool, std::size_t, std::size_t, int>(),
             py::arg("size"), py::arg("resize"), py::arg("interpolation"), py::arg("shift"), py::arg("scale"),
             py::arg("planar") = false, py::arg("batch") = 1, py::arg("buffers") = 3, py::arg("threads") = 0)
        .def("submit", &PyBatcher::submit, py::arg("images"))
        .def("take", &PyBatcher::take);
}

}  // namespace deploy::bindings
