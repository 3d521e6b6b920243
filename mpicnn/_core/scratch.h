// Memory that a thread's calls work in, kept from one call to the next.
//
// Taken from the heap for each call, it would leave holes between the arrays that outlive the call,
// and a process would grow by a multiple of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

using i64 = std::int64_t;

// Room for `elements` floats and, for every part that is taken, a cache line. One lives at a time in
// a thread.
class Scratch {
 public:
  Scratch(i64 elements, int parts) : next_(room(size_t(elements + parts * line) * sizeof(float))) {}

  // The next part, of so many floats; it begins at a cache line.
  float *take(i64 elements) {
    float *part = next_;
    next_ += (elements + line - 1) / line * line;
    return part;
  }

 private:
  static constexpr i64 line = 16;

  struct Memory {
    void *start = nullptr;
    size_t size = 0;
    ~Memory() { drop(); }

#ifdef __linux__
    void drop() {
      if (start) munmap(start, size);
      start = nullptr;
    }
    void make(size_t bytes) {
      void *found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (found == MAP_FAILED) throw std::bad_alloc();
      start = found;
      size = bytes;
    }
#else
    static constexpr std::align_val_t aligned{line * sizeof(float)};
    void drop() {
      if (start) ::operator delete[](start, aligned);
      start = nullptr;
    }
    void make(size_t bytes) {
      start = ::operator new[](bytes, aligned);
      size = bytes;
    }
#endif
  };

  static float *room(size_t bytes) {
    static thread_local Memory memory;
    if (!memory.start || memory.size < bytes) {
      memory.drop();
      memory.make(bytes);
    }
    return static_cast<float *>(memory.start);
  }

  float *next_;
};
