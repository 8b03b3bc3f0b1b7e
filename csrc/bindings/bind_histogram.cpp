#include "bindings/numpy.hpp"
//
#include <limits>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "bindings/bind.hpp"
#include "core/histogram.hpp"
#include "core/threads.hpp"

namespace deploy::bindings {
namespace {

// The Python object: calls from several threads take turns. The lock is only ever taken without the GIL, and
// released before the GIL is taken again, so the two cannot wait for each other.
class SharedHistogram {
  public:
    explicit SharedHistogram(Histogram histogram) : histogram_(std::move(histogram)) {}

    Histogram copy() {
        const py::gil_scoped_release release;
        const std::lock_guard lock(mutex_);
        return histogram_;
    }

    template <typename Action>
    void change(const Action& action) {
        const py::gil_scoped_release release;
        locked(action);
    }

    // For callers that hold no GIL.
    template <typename Action>
    auto locked(const Action& action) {
        const std::lock_guard lock(mutex_);
        return action(histogram_);
    }

    // One number or record, without copying the bins.
    template <typename Reader>
    auto read(const Reader& reader) {
        const py::gil_scoped_release release;
        const std::lock_guard lock(mutex_);
        return reader(std::as_const(histogram_));
    }

  private:
    std::mutex mutex_;
    Histogram histogram_;
};

// The values of a float32 or float16 array, as what they are in memory. Valid while the array lives.
struct Values {
    std::span<const float> singles;
    std::span<const std::uint16_t> halves;

    Histogram::Extremes count_into(Histogram& histogram, int threads) const {
        return halves.empty() ? histogram.update(singles, threads) : histogram.update_half(halves, threads);
    }
};

Values values_of(const py::array& array) {
    if (py::isinstance<Array<float>>(array)) {
        return {span_of(py::reinterpret_borrow<Array<float>>(array)), {}};
    }
    const bool half = array.dtype().equal(py::dtype("e"));
    const auto bytes = bytes_of(array, "the array of values");
    if (!half) {
        throw py::type_error("expected an array of float32 or float16, got " +
                             py::cast<std::string>(py::str(array.dtype())));
    }
    // NumPy aligns its arrays to their item size or says so in the flags.
    return {{}, {reinterpret_cast<const std::uint16_t*>(bytes.data()), bytes.size() / 2}};
}

void update(SharedHistogram& self, const py::array& array, int threads) {
    const Values values = values_of(array);
    self.change([&](Histogram& histogram) { values.count_into(histogram, threads); });
}

py::array_t<double> count_many(const py::sequence& jobs, int threads) {
    struct Job {
        SharedHistogram* histogram;
        Values values;
    };
    std::vector<Job> work;
    for (const py::handle item : jobs) {
        const auto pair = py::reinterpret_borrow<py::tuple>(item);
        work.push_back({pair[0].cast<SharedHistogram*>(), values_of(pair[1].cast<py::array>())});
    }
    py::array_t<double> extremes(std::vector<py::ssize_t>{static_cast<py::ssize_t>(work.size()), 2});
    double* const result = extremes.mutable_data();
    {
        const py::gil_scoped_release release;
        // One tensor is one task: they are many, and most are too small to be worth splitting.
        parallel_for(work.size(), thread_count(threads), [&](std::size_t i) {
            const auto [low, high] = work[i].histogram->locked(
                [&](Histogram& histogram) { return work[i].values.count_into(histogram, 1); });
            result[2 * i] = low;
            result[2 * i + 1] = high;
        });
    }
    return extremes;
}

py::dict state(SharedHistogram& self) {
    const Histogram copy = self.copy();
    const Histogram::State& state = copy.state();
    py::dict result;
    result["exponent"] = state.exponent;
    result["negative"] = array_of<std::uint64_t>(state.negative);
    result["positive"] = array_of<std::uint64_t>(state.positive);
    result["minimum"] = state.minimum;
    result["maximum"] = state.maximum;
    result["nan_count"] = state.nan_count;
    result["inf_count"] = state.inf_count;
    return result;
}

py::object entry(const py::dict& record, const char* key) {
    if (!record.contains(key)) {
        throw py::value_error(std::string("the histogram's record lacks '") + key + "'");
    }
    return record[key];
}

// From a list (JSON) or any array of integers (npz).
std::vector<std::uint64_t> read_counts(const py::object& value) {
    const auto counts = py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>(value);
    const auto span = span_of<std::uint64_t>(counts);
    return {span.begin(), span.end()};
}

// JSON has no NaN; pydeploy.files writes null.
double read_extreme(const py::object& value) {
    return value.is_none() ? std::numeric_limits<double>::quiet_NaN() : py::float_(value).cast<double>();
}

std::unique_ptr<SharedHistogram> from_state(const py::dict& record) {
    Histogram::State state;
    state.exponent = py::int_(entry(record, "exponent")).cast<int>();
    state.negative = read_counts(entry(record, "negative"));
    state.positive = read_counts(entry(record, "positive"));
    state.minimum = read_extreme(entry(record, "minimum"));
    state.maximum = read_extreme(entry(record, "maximum"));
    state.nan_count = py::int_(entry(record, "nan_count")).cast<std::uint64_t>();
    state.inf_count = py::int_(entry(record, "inf_count")).cast<std::uint64_t>();
    return std::make_unique<SharedHistogram>(Histogram::from_state(std::move(state)));
}

template <auto Member>
auto reader() {
    return [](SharedHistogram& self) { return self.read([](const Histogram& h) { return (h.*Member)(); }); };
}

template <auto Field>
auto field() {
    return [](SharedHistogram& self) { return self.read([](const Histogram& h) { return h.state().*Field; }); };
}

template <auto Half>
auto counts() {
    return [](SharedHistogram& self) { return array_of<std::uint64_t>(self.copy().state().*Half); };
}

}  // namespace

void bind_histogram(py::module_& module) {
    py::class_<SharedHistogram>(module, "Histogram", plain_type(), py::is_final(),
                                "Streaming counts of magnitudes, negative and positive apart.")
        .def(py::init([](std::size_t bins) { return std::make_unique<SharedHistogram>(Histogram(bins)); }),
             py::arg("bins") = 4096)
        .def("update", &update, py::arg("values").noconvert(), py::arg("threads") = 0)
        .def(
            "merge",
            [](SharedHistogram& self, SharedHistogram& other) {
                const Histogram copy = other.copy();
                self.change([&](Histogram& histogram) { histogram.merge(copy); });
            },
            py::arg("other"))
        .def("state", &state)
        .def_static("from_state", &from_state, py::arg("state"))
        .def_property_readonly("bins", reader<&Histogram::bins>())
        .def_property_readonly("count", reader<&Histogram::count>())
        .def_property_readonly("bin_width", reader<&Histogram::bin_width>())
        .def_property_readonly("negative", counts<&Histogram::State::negative>())
        .def_property_readonly("positive", counts<&Histogram::State::positive>())
        .def_property_readonly("minimum", field<&Histogram::State::minimum>())
        .def_property_readonly("maximum", field<&Histogram::State::maximum>())
        .def_property_readonly("nan_count", field<&Histogram::State::nan_count>())
        .def_property_readonly("inf_count", field<&Histogram::State::inf_count>());
    module.def("count_many", &count_many, py::arg("jobs"), py::arg("threads") = 0,
               "Count each array into its histogram; returns each array's smallest and largest finite value.");
}

}  // namespace deploy::bindings
