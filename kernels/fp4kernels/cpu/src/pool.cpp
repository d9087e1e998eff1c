// A thread pool shared by all kernels of a process. Workers spin for some microseconds after a
// job, so that back-to-back GEMVs need no system call, and then sleep, so that torch's own threads
// are not starved.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#endif

#include "abi.h"

#if defined(__x86_64__)
static void relax() { __builtin_ia32_pause(); }  // its header takes half of the time to compile this
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
    // high half: number of the job; low half: its tasks that no one has taken yet. Whoever takes
    // one keeps the job alive until it is done, so body and context cannot change under it, and a
    // worker that the system has put aside is waited for only if it holds a task.
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> unfinished{0};
    void (*body)(void*, int64_t) = nullptr;
    void* context = nullptr;

    void drain() {
        uint64_t seen = ticket.load(std::memory_order_acquire);
        while (uint32_t(seen)) {
            if (!ticket.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel)) continue;
            body(context, int64_t(uint32_t(seen)) - 1);
            unfinished.fetch_sub(1, std::memory_order_release);
            seen = ticket.load(std::memory_order_acquire);
        }
    }

    void work() {
        for (;;) {
            const auto idle = [&] { return !uint32_t(ticket.load(std::memory_order_acquire)); };
            for (int spins = 0; idle() && spins < SPINS; ++spins) relax();
            if (idle()) {
                std::unique_lock<std::mutex> lock(sleep);
                wake.wait(lock, [&] { return !idle(); });
            }
            drain();
        }
    }

    void run(int64_t tasks, void (*fn)(void*, int64_t), void* with) {
        std::lock_guard<std::mutex> one(caller);
        body = fn, context = with;
        unfinished.store(tasks, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(sleep);
            const uint64_t job = ticket.load(std::memory_order_relaxed) >> 32;
            ticket.store((job + 1) << 32 | uint64_t(tasks), std::memory_order_release);
        }
        wake.notify_all();
        drain();
        while (unfinished.load(std::memory_order_acquire)) relax();
    }
};

Pool* pool = nullptr;  // never destroyed: its threads end with the process

}  // namespace

extern "C" void fp4_pool_start(int64_t threads) {
    static std::once_flag started;
    std::call_once(started, [threads] {
        pool = new Pool;
        for (int64_t i = 1; i < threads; ++i) pool->threads.emplace_back([] { pool->work(); });
    });
}

#if defined(__AMX_TILE__)
// Asks Linux to let this process, all its threads, use tiles: their state makes signal frames larger.
// Returns 0, or the errno of a refusal.
extern "C" int fp4_pool_permit_tiles() {
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) ? errno : 0;
}
#endif

// Binds the calling thread to the first of `cpus`, and the pool's threads to the others in turn.
extern "C" void fp4_pool_pin(const int64_t* cpus, int64_t count) {
#if defined(__linux__)
    const auto bind = [&](pthread_t thread, int64_t i) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(int(cpus[i % count]), &set);
        pthread_setaffinity_np(thread, sizeof set, &set);  // refused: it runs where it may
    };
    bind(pthread_self(), 0);
    for (size_t i = 0; i < pool->threads.size(); ++i) bind(pool->threads[i].native_handle(), int64_t(i) + 1);
#endif
}

extern "C" void fp4_parallel_for(int64_t tasks, void (*body)(void*, int64_t), void* context) {
    if (tasks == 1 || pool->threads.empty()) {
        for (int64_t i = 0; i < tasks; ++i) body(context, i);
    } else {
        pool->run(tasks, body, context);
    }
}
