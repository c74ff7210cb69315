// The threads of one step: they share out the parts of each phase, and wait for one another between phases.
#pragma once

#include <algorithm>
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

    // Until all threads are here. They spin, for phases are short, up to a third of a millisecond where that helps.
    // Where it does not, as other work has the core that a thread needs, they soon make room instead.
    // The last one puts the counter of parts back: nobody takes from it now.
    void meet() {
        unsigned round = _round.value.load(std::memory_order_relaxed);
        if (_here.value.fetch_add(1, std::memory_order_acq_rel) + 1 == _threads) {
            _here.value.store(0, std::memory_order_relaxed);
            _next.value.store(0, std::memory_order_relaxed);
            _round.value.store(round + 1, std::memory_order_release);
            return;
        }
        int spins = 0, patience = _patience.value.load(std::memory_order_relaxed);
        for (; _round.value.load(std::memory_order_acquire) == int(round); ++spins)
            if (spins < patience) PAUSE();
            else sched_yield();
        patience = spins > patience ? std::max(LEAST, patience / 2) : std::min(MOST, patience + patience / 8);
        _patience.value.store(patience, std::memory_order_relaxed);
    }

  private:
    struct alignas(64) Counter {  // a cache line each
        std::atomic<int> value{0};
    };
    static constexpr int LEAST = 200, MOST = 20000;  // looks, of about 15 ns
    int _threads = 1;
    Counter _next, _here, _round, _patience{MOST};
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
