// Runs of bytes between a file and memory, many in one call: a system call each, none of Python between them.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cerrno>

#include <unistd.h>

#include "bind.hpp"

namespace nb = nanobind;

namespace pagoda {

namespace {

// 0, or why the run is not whole: the system's error, ENODATA where the file ends before it.
int move_run(int file, bool writes, char* memory, int64_t at, int64_t left) {
  while (left > 0) {
    const ssize_t done = writes ? pwrite(file, memory, left, at) : pread(file, memory, left, at);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return done < 0 ? errno : ENODATA;
    memory += done, at += done, left -= done;
  }
  return 0;
}

}  // namespace

void bind_files(nb::module_& m) {
  m.def("move_runs", [](int file, bool writes, uintptr_t places, uintptr_t sizes, uintptr_t memory, int64_t count) {
    std::vector<std::pair<int64_t, int>> failed;
    nb::gil_scoped_release release;
    for (int64_t run = 0; run < count; ++run)
      if (const int error = move_run(file, writes, at<char>(at<int64_t>(memory)[run]), at<int64_t>(places)[run], at<int64_t>(sizes)[run]))
        failed.emplace_back(run, error);
    return failed;
  }, "places, sizes, memory: addresses of int64[count]; returns (run, errno) of those that failed.");
}

}  // namespace pagoda
