#include "bindings/numpy.hpp"
//
#include <limits>
#include <memory>
#include <mutex>
#include <utility>
#include <variant>
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

// float32, or float16 as its bits.
using Values = std::variant<Owned<float>, Owned<std::uint16_t>>;

template <typename What>
Values read_values(py::handle object, const What& what) {
    const py::array array = plain_array(object, what);
    if (is_array_of<float>(array)) {
        return Owned<float>(array);
    }
    if (array.dtype().equal(py::dtype("e"))) {
        return Owned<std::uint16_t>(array);
    }
    throw refusal(object, what, "float32 or float16");
}

struct Counting {
    Histogram& histogram;
    int threads;

    Histogram::Extremes operator()(const Owned<float>& values) const {
        return histogram.update(values.span(), threads);
    }
    Histogram::Extremes operator()(const Owned<std::uint16_t>& halves) const {
        return histogram.update_half(halves.span(), threads);
    }
};

void update(SharedHistogram& self, const py::object& object, int threads) {
    const Values values = read_values(object, "values");
    self.change([&](Histogram& histogram) { std::visit(Counting{histogram, threads}, values); });
}

// A histogram and the values to count into it, both held.
struct Job {
    py::object owner;
    SharedHistogram* histogram;
    Values values;
};

Job read_job(py::handle object, std::size_t number) {
    const auto name = [&] { return "job " + std::to_string(number); };
    const py::tuple pair = items_of(object, name, 2, "a pair (Histogram, array)");
    const py::object histogram = pair[0];
    if (!py::isinstance<SharedHistogram>(histogram)) {
        throw py::type_error(name() + " holds no Histogram in first place, but " + name_of(py::type::of(histogram)));
    }
    return {histogram, histogram.cast<SharedHistogram*>(),
            read_values(pair[1], [&] { return name() + ": the array"; })};
}

py::array_t<double> count_many(const py::object& jobs, int threads) {
    std::vector<Job> work;
    for (const py::handle item : items_of(jobs, "jobs")) {
        work.push_back(read_job(item, work.size()));
    }
    py::array_t<double> extremes(std::vector<std::size_t>{work.size(), 2});
    const std::span<double> result = writable(extremes);
    {
        const py::gil_scoped_release release;
        // One tensor is one task: they are many, and most are too small to be worth splitting.
        parallel_for(work.size(), thread_count(threads), [&](std::size_t i) {
            const auto [low, high] = work[i].histogram->locked(
                [&](Histogram& histogram) { return std::visit(Counting{histogram, 1}, work[i].values); });
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
std::vector<std::uint64_t> read_counts(const py::dict& record, const char* key) {
    const auto array = py::array::ensure(entry(record, key));
    const bool integers = array && (array.dtype().kind() == 'i' || array.dtype().kind() == 'u' || array.size() == 0);
    if (!integers || array.ndim() != 1) {
        throw py::value_error(std::string("the histogram's '") + key + "' must be a list of whole numbers");
    }
    return copied<std::uint64_t>(py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>(array), key);
}

template <typename Integer>
Integer read_whole(const py::dict& record, const char* key) {
    return number_of<Integer>(entry(record, key), [&] { return std::string("the histogram's '") + key + "'"; });
}

// JSON has no NaN; pydeploy.files writes null.
double read_extreme(const py::dict& record, const char* key) {
    const py::object value = entry(record, key);
    return value.is_none() ? std::numeric_limits<double>::quiet_NaN()
                           : number_of<double>(value, [&] { return std::string("the histogram's '") + key + "'"; });
}

std::unique_ptr<SharedHistogram> from_state(const py::dict& record) {
    Histogram::State state;
    state.exponent = read_whole<int>(record, "exponent");
    state.negative = read_counts(record, "negative");
    state.positive = read_counts(record, "positive");
    state.minimum = read_extreme(record, "minimum");
    state.maximum = read_extreme(record, "maximum");
    state.nan_count = read_whole<std::uint64_t>(record, "nan_count");
    state.inf_count = read_whole<std::uint64_t>(record, "inf_count");
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
        .def("update", &update, py::arg("values"), py::arg("threads") = 0)
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
