// Run the threads of a block as fibers of one host thread, one at a time.
//
// A fiber takes threads one after another; it is parked with its thread where that waits, and
// another fiber goes on. Kernels without barriers therefore run as one plain loop. A warp runs as
// far as it can before the next one starts, and odd blocks run everything backwards: whichever way
// a missing barrier hurts, some block shows it.
#pragma once
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <ucontext.h>

namespace standin {

constexpr unsigned kThreads = 1024;
constexpr size_t kStack = 128 << 10;
constexpr unsigned kDynamicShared = 227 << 10;

constexpr int kVotes = -1;

enum State : unsigned char { kRunning, kBarrier, kWarp, kDone };

struct Fiber {
    ucontext_t start;
    jmp_buf here;
    bool started;
    unsigned thread;
    char* stack;
};

struct Thread {
    State state;
    Fiber* fiber;
    int line;                    // of the barrier or exchange where it waits
    unsigned mask;               // lanes that the exchange names
    int source;                  // the lane whose value it wants; kVotes: one bit of each
    unsigned long long offer, result;
};

static Thread threads[kThreads];
static Fiber* fibers[kThreads];
static unsigned fiber_count, idle_count, thread_count;
static unsigned warp_first, warp_size, taken;  // of the warp whose threads start now
static Fiber* idle[kThreads];
static Fiber* running;
static jmp_buf scheduler;
static bool backward;
static void (*body)();
static char* message;
static size_t message_size;
static bool failed;
alignas(16) static unsigned char dynamic_shared[kDynamicShared];
extern "C" __attribute__((weak, visibility("hidden"))) char __start_standin_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) char __stop_standin_shared[];

// Give up the launch: the first error is reported, what runs is left where it is.
[[noreturn]] static inline void fail(const char* what, int line) {
    snprintf(message, message_size, "%s (line %d; block %u %u %u, thread %u %u %u)", what, line,
             blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    failed = true;
    _longjmp(scheduler, 1);
}

static inline void enter(unsigned t) {
    threads[t].state = kRunning;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

static void work() {
    for (;;) {
        while (taken < warp_size) {
            unsigned t = warp_first + (backward ? warp_size - 1 - taken : taken);
            ++taken;
            running->thread = t;
            threads[t].fiber = running;
            enter(t);
            body();
            threads[t].state = kDone;
        }
        idle[idle_count++] = running;
        if (!_setjmp(running->here)) _longjmp(scheduler, 1);
    }
}

// Run a fiber until it waits or has nothing left to do.
static void resume(Fiber* fiber) {
    running = fiber;
    if (_setjmp(scheduler)) return;
    if (fiber->started) _longjmp(fiber->here, 1);
    fiber->started = true;
    setcontext(&fiber->start);
}

static Fiber* spare() {
    if (idle_count) return idle[--idle_count];
    Fiber* fiber = static_cast<Fiber*>(calloc(1, sizeof(Fiber)));
    fiber->stack = static_cast<char*>(malloc(kStack));
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = fiber->stack;
    fiber->start.uc_stack.ss_size = kStack;
    makecontext(&fiber->start, work, 0);
    return fibers[fiber_count++] = fiber;
}

static void drop_fibers() {
    for (unsigned i = 0; i < fiber_count; ++i) {
        free(fibers[i]->stack);
        free(fibers[i]);
    }
    fiber_count = idle_count = 0;
}

static inline void wait(State state, int line, unsigned mask) {
    Fiber* fiber = running;
    Thread& own = threads[fiber->thread];
    own.state = state;
    own.line = line;
    own.mask = mask;
    if (!_setjmp(fiber->here)) _longjmp(scheduler, 1);
    enter(fiber->thread);
}

// Let the lanes of `go`, of the present warp, run on until they wait or end.
static bool release(unsigned go) {
    for (unsigned i = 0; i < warp_size; ++i) {
        unsigned lane = backward ? warp_size - 1 - i : i;
        if (go >> lane & 1) resume(threads[warp_first + lane].fiber);
        if (failed) return false;
    }
    return true;
}

static bool complain(const char* what, unsigned t) {
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    if (!_setjmp(scheduler)) fail(what, threads[t].line);
    return false;
}

// Give the lanes that `mask` names what they asked for.
static bool exchange_among(unsigned mask, unsigned t) {
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        Thread& own = threads[warp_first + lane];
        if (own.source == kVotes) {
            own.result = 0;
            for (unsigned k = 0; k < 32; ++k)
                if (mask >> k & 1) own.result |= (threads[warp_first + k].offer & 1) << k;
        } else {
            if (!(mask >> own.source & 1))
                return complain("a lane reads from one that the mask does not name", t);
            own.result = threads[warp_first + own.source].offer;
        }
    }
    return true;
}

// Carry out the present warp's exchanges; collect the lanes that may go on in `go`.
static bool exchanges(unsigned* go) {
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        unsigned t = warp_first + lane, mask = threads[t].mask;
        if (threads[t].state != kWarp || (*go >> lane & 1)) continue;
        if (!(mask >> lane & 1)) return complain("a lane is not in its own mask", t);
        for (unsigned k = 0; k < 32; ++k) {
            if (!(mask >> k & 1)) continue;
            if (k >= warp_size)
                return complain("the mask names lanes that the block has not", t);
            const Thread& other = threads[warp_first + k];
            if (other.state != kWarp || other.line != threads[t].line || other.mask != mask)
                return complain("a lane that the mask names does not take part", t);
        }
        if (!exchange_among(mask, t)) return false;
        *go |= mask;
    }
    return true;
}

// Let the lanes of `go` run, and the warp after them until all wait at a barrier or have ended.
static bool run_warp(unsigned go) {
    while (go) {
        if (!release(go)) return false;
        go = 0;
        if (!exchanges(&go)) return false;
    }
    return true;
}

// Check that all threads wait at one barrier, or that all have ended.
static bool at_barrier(bool* ended) {
    unsigned first = thread_count;
    for (unsigned t = thread_count; t-- > 0;)
        if (threads[t].state == kBarrier) first = t;
    *ended = first == thread_count;
    for (unsigned t = 0; t < thread_count && !*ended; ++t) {
        if (threads[t].state != kBarrier)
            return complain("not all threads reach the barrier", first);
        if (threads[t].line != threads[first].line)
            return complain("threads wait at different barriers", t);
    }
    return true;
}

static void select_warp(unsigned i) {
    unsigned warps = (thread_count + 31) / 32;
    warp_first = (backward ? warps - 1 - i : i) * 32;
    warp_size = thread_count - warp_first < 32 ? thread_count - warp_first : 32;
    taken = warp_size;
}

static bool run_block() {
    unsigned warps = (thread_count + 31) / 32, go;
    for (unsigned i = 0; i < warps; ++i) {
        select_warp(i);
        for (taken = 0; taken < warp_size;) {
            resume(spare());
            if (failed) return false;
        }
        if (!exchanges(&(go = 0)) || !run_warp(go)) return false;
    }
    for (;;) {
        bool ended;
        if (!at_barrier(&ended)) return false;
        if (ended) return true;
        for (unsigned i = 0; i < warps; ++i) {
            select_warp(i);
            unsigned all = warp_size == 32 ? ~0u : (1u << warp_size) - 1;
            if (!run_warp(all)) return false;
        }
    }
}

static void run_grid(dim3 grid, dim3 block, size_t shared, void (*kernel)(), char* text,
                     size_t text_size) {
    gridDim = grid;
    blockDim = block;
    body = kernel;
    message = text;
    message_size = text_size;
    failed = false;
    thread_count = block.x * block.y * block.z;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = {x, y, z};
                backward = (x + y + z) & 1;
                memset(dynamic_shared, 0xFF, shared);
                if (__start_standin_shared)
                    memset(__start_standin_shared, 0xFF,
                           __stop_standin_shared - __start_standin_shared);
                if (!run_block()) return drop_fibers();
            }
}

static inline int lane() { return int(running->thread % 32); }

template <class T> static inline T exchange(T value, int source, unsigned mask, int line) {
    static_assert(sizeof(T) <= 8);
    Thread& own = threads[running->thread];
    own.source = source;
    memcpy(&own.offer, &value, sizeof value);
    wait(kWarp, line, mask);
    memcpy(&value, &own.result, sizeof value);
    return value;
}

template <class T>
static inline T up(unsigned mask, T v, unsigned delta, int width, int line) {
    int source = lane() - int(delta);
    return exchange(v, source < lane() / width * width ? lane() : source, mask, line);
}
template <class T>
static inline T down(unsigned mask, T v, unsigned delta, int width, int line) {
    int source = lane() + int(delta);
    return exchange(v, source >= (lane() / width + 1) * width ? lane() : source, mask, line);
}
template <class T> static inline T cross(unsigned mask, T v, int bits, int width, int line) {
    int source = lane() ^ bits;
    return exchange(v, source >= (lane() / width + 1) * width ? lane() : source, mask, line);
}
template <class T> static inline T from(unsigned mask, T v, int source, int width, int line) {
    return exchange(v, lane() / width * width + source % width, mask, line);
}
static inline unsigned ballot(unsigned mask, bool vote, int line) {
    return unsigned(exchange((unsigned long long)vote, kVotes, mask, line));
}

}  // namespace standin

#define STANDIN_WIDTH(m, v, k, width, ...) (m), (v), (k), (width), __LINE__
#define __shfl_sync(...) standin::from(STANDIN_WIDTH(__VA_ARGS__, 32, 0))
#define __shfl_up_sync(...) standin::up(STANDIN_WIDTH(__VA_ARGS__, 32, 0))
#define __shfl_down_sync(...) standin::down(STANDIN_WIDTH(__VA_ARGS__, 32, 0))
#define __shfl_xor_sync(...) standin::cross(STANDIN_WIDTH(__VA_ARGS__, 32, 0))
#define __ballot_sync(mask, vote) standin::ballot((mask), (vote), __LINE__)
#define __any_sync(mask, vote) (__ballot_sync(mask, vote) != 0)
#define __all_sync(mask, vote) (__ballot_sync(mask, vote) == unsigned(mask))
#define __syncthreads() standin::wait(standin::kBarrier, __LINE__, 0)
#define STANDIN_MASK(mask, ...) mask
#define __syncwarp(...) \
    (void)standin::ballot(STANDIN_MASK(__VA_ARGS__ __VA_OPT__(,) 0xffffffffu), true, __LINE__)
