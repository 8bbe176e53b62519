// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "shplb/error.h"

/// numpy <-> span, in one place: nothing is ever converted or copied silently.
namespace shplb::bindings {

namespace py = pybind11;

inline std::string ShapeText(const py::array& array) {
  std::string text = "shape (";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i > 0 ? ", " : "") + ToText(static_cast<std::int64_t>(array.shape(i)));
  }
  return text + (array.ndim() == 1 ? ",)" : ")");
}

inline std::string DtypeText(const py::array& array) {
  return py::str(array.dtype()).cast<std::string>();
}

/// Throws for an array argument; all text is made here, off the path of good calls.
template <class T>
[[noreturn]] void RefuseArray(const char* argument, const std::string& got, py::ssize_t ndim) {
  const std::string dtype = py::str(py::dtype::of<T>()).cast<std::string>();
  throw InvalidArgument(argument, got,
                        "a C-contiguous numpy array of " + dtype + " with " +
                            ToText(static_cast<std::int64_t>(ndim)) + " axes");
}

/// `object` as an aligned, C-contiguous numpy array of exactly this dtype and rank.
template <class T>
py::array RequireArray(const py::object& object, const char* argument, py::ssize_t ndim) {
  if (!py::isinstance<py::array>(object)) {
    RefuseArray<T>(argument, py::str(py::type::of(object).attr("__name__")).cast<std::string>(),
                   ndim);
  }
  auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype wanted = py::dtype::of<T>();
  if (!array.dtype().is(wanted) && !array.dtype().equal(wanted)) {
    RefuseArray<T>(argument, DtypeText(array), ndim);
  }
  if (array.ndim() != ndim) RefuseArray<T>(argument, ShapeText(array), ndim);
  constexpr int kLayout =
      py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array.flags() & kLayout) != kLayout) {
    RefuseArray<T>(argument, "a strided or unaligned view", ndim);
  }
  return array;
}

/// View of a checked array; valid while the array lives.
template <class T>
std::span<const T> SpanOf(const py::array& array) {
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

inline void RequireShape(const py::array& array, const char* argument,
                         std::initializer_list<py::ssize_t> shape) {
  if (std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim())) return;
  std::string expected = "shape (";
  for (const py::ssize_t extent : shape) {
    expected += (expected.back() == '(' ? "" : ", ") + ToText(static_cast<std::int64_t>(extent));
  }
  expected += shape.size() == 1 ? ",)" : ")";
  throw InvalidArgument(argument, ShapeText(array), expected);
}

/// Bytes of a writable uint8 array; valid while the array lives.
inline std::span<std::byte> WritableBytes(const py::object& object, const char* argument) {
  auto array = RequireArray<std::uint8_t>(object, argument, 1);
  if (!array.writeable()) throw InvalidArgument(argument, "a read-only array", "a writable one");
  return {static_cast<std::byte*>(array.mutable_data()), static_cast<std::size_t>(array.size())};
}

/// Read-only view of memory that `owner` keeps alive and never changes.
template <class T>
py::array ViewOf(const std::vector<T>& values, std::vector<py::ssize_t> shape,
                 const py::object& owner) {
  py::array array(py::dtype::of<T>(), std::move(shape), values.data(), owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

/// Read-only array that owns the vector's memory.
template <class T>
py::array Own(std::vector<T> values, std::vector<py::ssize_t> shape) {
  auto* owner = new std::vector<T>(std::move(values));
  const py::capsule base(owner, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  py::array array(py::dtype::of<T>(), std::move(shape), owner->data(), base);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

}  // namespace shplb::bindings
