#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/surgery.hpp"

namespace deploy::bindings {
namespace {

GatherJob read_job(const py::array& array, const py::tuple& entries, std::size_t number) {
    const std::string name = "job " + std::to_string(number);
    GatherJob job;
    job.source = bytes_of(array, name + ": the array");
    job.item_bytes = static_cast<std::size_t>(array.itemsize());
    job.shape = shape_of(array);
    for (std::size_t dim = 0; dim < entries.size(); ++dim) {
        const py::object index = entries[dim];
        const std::string what = name + ", dim " + std::to_string(dim) + ": the index";
        job.entries.push_back(index.is_none() ? Entries{} : Entries{list_of<std::int64_t>(index, what)});
    }
    return job;
}

// The array and its list of entries. Read by hand, because pybind11's own message would print all arrays.
std::pair<py::array, py::tuple> read_pair(py::handle argument, std::size_t number) {
    const std::string name = "job " + std::to_string(number);
    if (!py::isinstance<py::sequence>(argument) || py::len(argument) != 2) {
        throw py::type_error(name + " must be a pair (array, [one index or None for each dimension])");
    }
    const auto pair = py::reinterpret_borrow<py::sequence>(argument);
    const py::object array = pair[0];
    const py::object entries = pair[1];
    if (!py::isinstance<py::array>(array)) {
        throw py::type_error(name + " holds no NumPy array in first place, but " +
                             py::cast<std::string>(py::str(py::type::of(array))));
    }
    // A tuple of its own: another thread may change a list while the GIL is released.
    return {py::reinterpret_borrow<py::array>(array), py::tuple(entries)};
}

py::list gather(const py::sequence& arguments, int threads) {
    std::vector<std::pair<py::array, py::tuple>> owners;  // keeps alive what the spans point to
    std::vector<GatherJob> jobs;
    std::vector<py::array> results;
    std::vector<std::span<std::byte>> targets;
    for (const py::handle argument : arguments) {
        owners.push_back(read_pair(argument, jobs.size()));
        jobs.push_back(read_job(owners.back().first, owners.back().second, jobs.size()));
        results.emplace_back(owners.back().first.dtype(), gathered_shape(jobs.back(), jobs.size() - 1));
        targets.push_back(writable_bytes_of(results.back()));
    }
    {
        const py::gil_scoped_release release;
        gather_many(jobs, targets, threads);
    }
    return py::cast(results);
}

}  // namespace

void bind_surgery(py::module_& module) {
    module.def("gather_many", &gather, py::arg("jobs"), py::arg("threads") = 0,
               "Each array cut to the given entries along all its dimensions (None = the whole dimension).");
}

}  // namespace deploy::bindings
