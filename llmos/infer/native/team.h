// The threads of one step: they share out the parts of each phase, and wait for one another between phases.
#pragma once

#include <atomic>
#include <sched.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() asm volatile("yield")
#else
#define PAUSE() (void)0
#endif

class Team {
  public:
    // Inside of a parallel region, by one thread: only there it is known how many came.
    void count(int threads) { _threads = threads; }

    int threads() const { return _threads; }
    std::atomic<int>& next() { return _next.value; }

    // Until all threads are here. They spin, for phases are short; after a third of a millisecond they make room, as
    // there may be fewer cores than threads. Sooner, other work would get a whole slice of time at every short wait.
    // The last one puts the counter of parts back: nobody takes from it now.
    void meet() {
        unsigned round = _round.value.load(std::memory_order_relaxed);
        if (_here.value.fetch_add(1, std::memory_order_acq_rel) + 1 == _threads) {
            _here.value.store(0, std::memory_order_relaxed);
            _next.value.store(0, std::memory_order_relaxed);
            _round.value.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; _round.value.load(std::memory_order_acquire) == int(round); ++spins)
            if (spins < 20000) PAUSE();
            else sched_yield();
    }

  private:
    struct alignas(64) Counter {  // a cache line each
        std::atomic<int> value{0};
    };
    int _threads = 1;
    Counter _next, _here, _round;
};

// One thread of a team. All members call `each` in the same order; who is free takes the next part.
class Member {
  public:
    Member(Team& team, int index) : index(index), _team(team) {}

    const int index;
    int threads() const { return _team.threads(); }

    template <class Work> void each(int parts, Work&& work) {
        std::atomic<int>& next = _team.next();
        for (int i = next.fetch_add(1, std::memory_order_relaxed); i < parts;
             i = next.fetch_add(1, std::memory_order_relaxed))
            work(i);
        _team.meet();
    }

  private:
    Team& _team;
};
