// Tasks over the threads that torch already has.
//
// The library links no OpenMP of its own: a second runtime in the process would bring a second pool of spinning
// threads. Python hands over the entry point of the runtime that torch loaded; without one, plain threads do.
#pragma once

#include <cstdint>

// GOMP_parallel(function, data, threads, flags), as libgomp and LLVM's libomp export it.
typedef void (*OpenMPParallel)(void (*)(void*), void*, unsigned, unsigned);

// Calls run(data) on each of several threads, and waits for all.
void run_on_threads(void (*run)(void*), void* data, int64_t threads, OpenMPParallel openmp);

// Runs task(i) for i in [0, count), in any order; `make_task()` is called once on each thread, to set up its scratch.
template <typename MakeTask>
void parallel(int64_t count, int64_t threads, int64_t openmp, const MakeTask& make_task) {
    struct Shared {
        const MakeTask* make_task;
        int64_t count, next;
        int64_t take() { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); }
    } shared{&make_task, count, 0};
    const auto run = [](void* pointer) {
        Shared& shared = *static_cast<Shared*>(pointer);
        int64_t i = shared.take();
        if (i >= shared.count) return;
        auto task = (*shared.make_task)();
        for (; i < shared.count; i = shared.take()) task(i);
    };
    run_on_threads(run, &shared, threads < count ? threads : count, OpenMPParallel(openmp));
}
