#include "parallel.h"

#include <thread>
#include <vector>

void run_on_threads(void (*run)(void*), void* data, int64_t threads, OpenMPParallel openmp) {
    if (threads <= 1) return run(data);
    if (openmp) return openmp(run, data, unsigned(threads), 0);
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(run, data);
    run(data);
    for (std::thread& other : others) other.join();
}
