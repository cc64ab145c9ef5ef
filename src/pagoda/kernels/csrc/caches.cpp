#include "caches.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>

namespace pagoda {

namespace {

constexpr int64_t kLeast = 4 << 10, kMost = 64 << 20;  // what else is said is not believed

std::string first_line(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

// Numbers in a list such as "0-3,8": 5.
int64_t count_of(const std::string& list) {
  int64_t count = 0;
  for (const char* at = list.c_str(); *at >= '0' && *at <= '9';) {
    char* end = nullptr;
    const long first = std::strtol(at, &end, 10), last = *end == '-' ? std::strtol(end + 1, &end, 10) : first;
    count += last - first + 1;
    at = *end == ',' ? end + 1 : end;
  }
  return count;
}

int64_t bytes_of(const std::string& size) {  // "32K"
  char* end = nullptr;
  const int64_t number = std::strtoll(size.c_str(), &end, 10);
  return *end == 'K' ? number << 10 : *end == 'M' ? number << 20 : number;
}

Caches smaller(Caches a, Caches b) { return {std::min(a.first, b.first), std::min(a.second, b.second)}; }

// Of the first and the last CPU that may be used: where cores are of two kinds, one is of each.
Caches of_this_machine() {
  cpu_set_t set;
  int first = 0, last = 0;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) {
    while (!CPU_ISSET(first, &set)) ++first;
    for (int cpu = first; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) last = cpu;
  }
  const std::string root = "/sys/devices/system/cpu";
  return smaller(read_caches(root, first), read_caches(root, last));
}

std::atomic<int64_t> first_bytes{0}, second_bytes{0};  // 0: not read yet

}  // namespace

Caches read_caches(const std::string& root, int cpu) {
  Caches found;
  const std::string own = root + "/cpu" + std::to_string(cpu);
  const int64_t siblings = std::max<int64_t>(1, count_of(first_line(own + "/topology/thread_siblings_list")));
  for (int index = 0; index < 8; ++index) {
    const std::string cache = own + "/cache/index" + std::to_string(index);
    const std::string level = first_line(cache + "/level"), type = first_line(cache + "/type");
    if (type != "Data" && type != "Unified") continue;
    const int64_t cores = std::max<int64_t>(1, count_of(first_line(cache + "/shared_cpu_list")) / siblings);
    const int64_t bytes = bytes_of(first_line(cache + "/size")) / cores;
    if (bytes < kLeast || bytes > kMost) continue;
    if (level == "1") found.first = bytes;
    if (level == "2") found.second = bytes;
  }
  return found;
}

Caches caches() {
  const Caches known{first_bytes.load(std::memory_order_relaxed), second_bytes.load(std::memory_order_relaxed)};
  if (known.first > 0 && known.second > 0) return known;
  const Caches read = of_this_machine();
  assume_caches(read);
  return read;
}

void assume_caches(Caches sizes) {
  first_bytes.store(sizes.first, std::memory_order_relaxed);
  second_bytes.store(sizes.second, std::memory_order_relaxed);
}

}  // namespace pagoda
