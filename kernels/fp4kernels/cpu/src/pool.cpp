// A thread pool shared by all kernels of a process. Workers spin for some microseconds after a
// job, so that back-to-back GEMVs need no system call, and then sleep, so that torch's own threads
// are not starved.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "abi.h"

#if defined(__x86_64__)
#include <immintrin.h>
static void relax() { _mm_pause(); }
#else
static void relax() { std::this_thread::yield(); }
#endif

namespace {

constexpr int SPINS = 2000;  // some 30 to 80 microseconds

struct Pool {
    std::mutex caller;  // one job at a time; a second caller waits
    std::mutex sleep;
    std::condition_variable wake;
    std::vector<std::thread> threads;
    std::atomic<uint64_t> epoch{0};
    std::atomic<int64_t> next{0}, running{0};
    int64_t tasks = 0;
    void (*body)(void*, int64_t) = nullptr;
    void* context = nullptr;

    void drain() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(context, i);
    }

    void work(uint64_t seen) {
        for (;;) {
            int spins = 0;
            while (epoch.load(std::memory_order_acquire) == seen && ++spins < SPINS) relax();
            if (epoch.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(sleep);
                wake.wait(lock, [&] { return epoch.load(std::memory_order_acquire) != seen; });
            }
            seen = epoch.load(std::memory_order_acquire);
            drain();
            running.fetch_sub(1, std::memory_order_release);
        }
    }

    void run(int64_t count, void (*fn)(void*, int64_t), void* with) {
        std::lock_guard<std::mutex> one(caller);
        tasks = count, body = fn, context = with;
        next.store(0, std::memory_order_relaxed);
        running.store(static_cast<int64_t>(threads.size()), std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(sleep);
            epoch.fetch_add(1, std::memory_order_release);
        }
        wake.notify_all();
        drain();
        while (running.load(std::memory_order_acquire)) relax();
    }
};

Pool* pool = nullptr;  // never destroyed: its threads end with the process

}  // namespace

extern "C" void fp4_pool_start(int64_t threads) {
    if (pool) return;
    pool = new Pool;
    for (int64_t i = 1; i < threads; ++i) {
        pool->threads.emplace_back([] { pool->work(0); });
        pool->threads.back().detach();
    }
}

extern "C" void fp4_parallel_for(int64_t tasks, void (*body)(void*, int64_t), void* context) {
    if (tasks == 1 || pool->threads.empty()) {
        for (int64_t i = 0; i < tasks; ++i) body(context, i);
    } else {
        pool->run(tasks, body, context);
    }
}
