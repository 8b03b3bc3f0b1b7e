#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/entries.hpp"
#include "core/surgery.hpp"

namespace deploy::bindings {
namespace {

// An array and its list of entries. Read by hand, because pybind11's own message would print all arrays.
std::pair<Owned<std::byte>, py::array> read_job(py::handle argument, GatherJob& job, std::size_t number) {
    const auto name = [&] { return "job " + std::to_string(number); };
    const py::tuple pair = items_of(argument, name, 2, "a pair (array, [one index or None for each dimension])");
    const py::object first = pair[0];
    if (!py::isinstance<py::array>(first)) {
        throw py::type_error(name() + " holds no NumPy array in first place, but " + name_of(py::type::of(first)));
    }
    py::array array = plain_array(first, [&] { return name() + ": the array"; });
    Owned<std::byte> owned(array);
    const py::tuple entries = items_of(pair[1], [&] { return name() + ": the list of indices"; });
    for (std::size_t dim = 0; dim < entries.size(); ++dim) {
        const py::object index = entries[dim];
        const auto what = [&] { return name() + ", dim " + std::to_string(dim) + ": the index"; };
        job.entries.push_back(index.is_none() ? Entries{} : Entries{copied<std::int64_t>(index, what)});
    }
    job.source = owned.span();
    job.item_bytes = static_cast<std::size_t>(array.itemsize());
    job.shape = owned.shape();
    return {std::move(owned), std::move(array)};
}

py::list gather(const py::object& arguments, int threads) {
    std::vector<Owned<std::byte>> owners;
    std::vector<GatherJob> jobs;
    std::vector<py::array> results;
    std::vector<std::span<std::byte>> targets;
    for (const py::handle argument : items_of(arguments, "jobs")) {
        auto [owned, array] = read_job(argument, jobs.emplace_back(), jobs.size());
        owners.push_back(std::move(owned));
        results.emplace_back(array.dtype(), gathered_shape(jobs.back(), jobs.size() - 1));
        targets.push_back(writable_bytes(results.back()));
    }
    {
        const py::gil_scoped_release release;
        gather_many(jobs, targets, threads);
    }
    return py::cast(results);
}

std::vector<AxisSlice> read_slices(py::handle object) {
    const auto slices = read<std::int64_t>(object, "slices");
    if (slices.shape().size() != 2 || slices.shape()[1] != 5) {
        throw py::value_error("slices must have the shape (slices, 5): group, axis, offset, repeat, step");
    }
    std::vector<AxisSlice> rows;
    for (std::size_t i = 0; i < slices.span().size(); i += 5) {
        const auto row = slices.span().subspan(i, 5);
        rows.push_back({row[0], row[1], row[2], row[3], row[4]});
    }
    return rows;
}

py::list entries(const py::object& widths, const py::object& kept, const py::object& axis_sizes,
                 const py::object& slices) {
    const auto channel_counts = copied<std::int64_t>(widths, "widths");
    std::vector<std::vector<std::int64_t>> channels;
    for (const py::handle item : items_of(kept, "kept")) {
        channels.push_back(
            copied<std::int64_t>(item, [&] { return "kept channels of group " + std::to_string(channels.size()); }));
    }
    const auto sizes = copied<std::int64_t>(axis_sizes, "axis_sizes");
    const std::vector<AxisSlice> rows = read_slices(slices);
    std::vector<std::vector<std::int64_t>> found;
    {
        const py::gil_scoped_release release;
        const std::vector<std::span<const std::int64_t>> spans(channels.begin(), channels.end());
        found = kept_entries(channel_counts, spans, sizes, rows);
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
    module.def("kept_entries", &entries, py::arg("widths"), py::arg("kept"), py::arg("axis_sizes"), py::arg("slices"),
               "Entries of each axis that survive when group g keeps only the channels kept[g].");
}

}  // namespace deploy::bindings
