#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/entries.hpp"
#include "core/surgery.hpp"

namespace deploy::bindings {
namespace {

GatherJob read_job(const py::array& array, const py::tuple& entries, std::size_t number) {
    GatherJob job;
    job.source = bytes_of(array, [&] { return "job " + std::to_string(number) + ": the array"; });
    job.item_bytes = static_cast<std::size_t>(array.itemsize());
    job.shape = shape_of(array);
    for (std::size_t dim = 0; dim < entries.size(); ++dim) {
        const py::object index = entries[dim];
        const auto what = [&] {
            return "job " + std::to_string(number) + ", dim " + std::to_string(dim) + ": the index";
        };
        job.entries.push_back(index.is_none() ? Entries{} : Entries{list_of<std::int64_t>(index, what)});
    }
    return job;
}

// The array and its list of entries. Read by hand, because pybind11's own message would print all arrays.
std::pair<py::array, py::tuple> read_pair(py::handle argument, std::size_t number) {
    if (!py::isinstance<py::sequence>(argument) || py::len(argument) != 2) {
        throw py::type_error("job " + std::to_string(number) +
                             " must be a pair (array, [one index or None for each dimension])");
    }
    const auto pair = py::reinterpret_borrow<py::sequence>(argument);
    const py::object array = pair[0];
    const py::object entries = pair[1];
    if (!py::isinstance<py::array>(array)) {
        throw py::type_error("job " + std::to_string(number) + " holds no NumPy array in first place, but " +
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

py::list entries(const Array<std::int64_t>& widths, const py::sequence& kept, const Array<std::int64_t>& axis_sizes,
                 const Array<std::int64_t>& slices) {
    if (slices.ndim() != 2 || slices.shape(1) != 5) {
        throw py::value_error("slices must have the shape (slices, 5): group, axis, offset, repeat, step");
    }
    std::vector<py::object> owners;  // keeps alive what the spans point to
    std::vector<std::span<const std::int64_t>> channels;
    for (const py::handle item : kept) {
        owners.push_back(py::reinterpret_borrow<py::object>(item));
        channels.push_back(
            list_of<std::int64_t>(item, [&] { return "kept channels of group " + std::to_string(channels.size()); }));
    }
    std::vector<AxisSlice> rows;
    for (py::ssize_t i = 0; i < slices.shape(0); ++i) {
        const std::int64_t* row = slices.data(i, 0);
        rows.push_back({row[0], row[1], row[2], row[3], row[4]});
    }
    std::vector<std::vector<std::int64_t>> found;
    {
        const py::gil_scoped_release release;
        found = kept_entries(span_of(widths), channels, span_of(axis_sizes), rows);
    }
    py::list result;
    for (const std::vector<std::int64_t>& axis : found) {
        result.append(array_of<std::int64_t>(axis));
    }
    return result;
}

}  // namespace

void bind_surgery(py::module_& module) {
    module.def("gather_many", &gather, py::arg("jobs"), py::arg("threads") = 0,
               "Each array cut to the given entries along all its dimensions (None = the whole dimension).");
    module.def("kept_entries", &entries, py::arg("widths").noconvert(), py::arg("kept"),
               py::arg("axis_sizes").noconvert(), py::arg("slices").noconvert(),
               "Entries of each axis that survive when group g keeps only the channels kept[g].");
}

}  // namespace deploy::bindings
