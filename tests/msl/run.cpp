// Runs kernels of MSL on a CPU: the host of the page in tests/page, with a fiber for each invocation. Built and called by tests/metal.
//
//     run CASES [COUNT]
//
// runs all cases of the file, or the first so many.
// Exit code 1 where a value differs from what the CPU path made of it, 2 where invocations of a workgroup wait for each other in vain.

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <metal_stdlib>

// Words of the language that a program in C++ has its own use for.
#undef device
#undef constant
#undef thread
#undef threadgroup
#undef kernel

#define KERNEL(number, invocations) void run_##number(const StandIn&);
#include "table.inc"
#undef KERNEL

namespace {

struct Kernel {
    uint number;
    uint invocations;
    void (*run)(const StandIn&);
};

const Kernel kernels[] = {
#define KERNEL(number, invocations) { number, invocations, run_##number },
#include "table.inc"
#undef KERNEL
};

const Kernel& kernel_of(uint number) {
    for (const Kernel& candidate : kernels) {
        if (candidate.number == number) return candidate;
    }
    fprintf(stderr, "no kernel %u\n", number);
    exit(3);
}

// As wide as on Apple's GPUs.
const uint SIMD_WIDTH = 32;
const size_t STACK_BYTES = 128 * 1024;
const size_t SHARED_BYTES = 64 * 1024;
// Between buffers, so that what is written past one is seen.
const size_t GUARD_BYTES = 256;
const unsigned char GUARD = 0xa5;
// As the page allows.
const double ULPS = 300;

enum class State { Ready, AtBarrier, InSimdGroup, Done };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK_BYTES);
    State state;
    const StandIn* stand_in;
    // Exchanges so far: their words lie in turn in one of two places, as a neighbour may come to the next one before all have read the last.
    uint exchanges;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
Fiber* running;
void (*running_kernel)(const StandIn&);
uint32_t simd_words[2][1024];

void body() {
    running_kernel(*running->stand_in);
    running->state = State::Done;
    swapcontext(&running->context, &scheduler);
}

void wait(State state) {
    Fiber* self = running;
    self->state = state;
    swapcontext(&self->context, &scheduler);
}

// The fibers first to last, if all are in this state.
bool all_are(size_t first, size_t last, State state) {
    return std::all_of(fibers.begin() + first, fibers.begin() + last, [&](const Fiber& fiber) { return fiber.state == state; });
}

void make_ready(size_t first, size_t last) {
    for (size_t i = first; i < last; i++) fibers[i].state = State::Ready;
}

// One workgroup, its invocations forwards or backwards: what goes right in one order only needs a barrier that is not there.
bool run_workgroup(const Kernel& kernel, const std::vector<StandIn>& stand_ins, bool backwards) {
    const size_t count = stand_ins.size();
    while (fibers.size() < count) fibers.emplace_back();
    running_kernel = kernel.run;
    for (size_t i = 0; i < count; i++) {
        Fiber& fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, body, 0);
        fiber.state = State::Ready;
        fiber.stand_in = &stand_ins[i];
        fiber.exchanges = 0;
    }
    while (!all_are(0, count, State::Done)) {
        bool any = false;
        for (size_t i = 0; i < count; i++) {
            Fiber& fiber = fibers[backwards ? count - 1 - i : i];
            if (fiber.state != State::Ready) continue;
            any = true;
            running = &fiber;
            swapcontext(&scheduler, &fiber.context);
        }
        for (size_t first = 0; first < count; first += SIMD_WIDTH) {
            const size_t last = std::min(count, first + SIMD_WIDTH);
            if (all_are(first, last, State::InSimdGroup)) make_ready(first, last);
        }
        if (all_are(0, count, State::AtBarrier)) make_ready(0, count);
        if (!any) return false;
    }
    return true;
}

} // namespace

void wait_at_barrier() { wait(State::AtBarrier); }

Words exchange_in_simd_group(uint32_t word) {
    Fiber* self = running;
    const StandIn& stand_in = *self->stand_in;
    uint32_t* words = simd_words[self->exchanges++ % 2];
    words[stand_in.thread_index_in_threadgroup] = word;
    wait(State::InSimdGroup);
    const uint first = stand_in.simdgroup_index_in_threadgroup * SIMD_WIDTH;
    const uint invocations = stand_in.simdgroups_per_threadgroup * SIMD_WIDTH;
    return Words { words + first, std::min(SIMD_WIDTH, invocations - first) };
}

namespace {

struct Entry {
    uint group, binding, buffer, offset, size;
};

struct Dispatch {
    uint kernel, workgroups;
    std::vector<Entry> entries;
};

// What a kernel may have left in the parts of the processor that the host uses.
struct FlushDenormals {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

bool dispatch(const Dispatch& what, std::vector<std::vector<char>>& memory) {
    const Kernel& kernel = kernel_of(what.kernel);
    Buffers buffers = {};
    for (const Entry& entry : what.entries) {
        buffers.bound.at(entry.group).at(entry.binding) = { memory[entry.buffer].data() + GUARD_BYTES + entry.offset, entry.size };
    }
    static std::vector<char> shared(SHARED_BYTES + 16);
    char* shared_memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 15) / 16 * 16);
    const uint simd_groups = (kernel.invocations + SIMD_WIDTH - 1) / SIMD_WIDTH;
    FlushDenormals flush;
    for (uint workgroup = 0; workgroup < what.workgroups; workgroup++) {
        // NaN: what is read was written.
        memset(shared.data(), 0xff, shared.size());
        std::vector<StandIn> stand_ins;
        for (uint lane = 0; lane < kernel.invocations; lane++) {
            stand_ins.push_back(StandIn {
                buffers,
                shared_memory,
                metal::uint3(workgroup, 0, 0),
                metal::uint3(workgroup * kernel.invocations + lane, 0, 0),
                metal::uint3(what.workgroups, 1, 1),
                lane,
                lane / SIMD_WIDTH,
                lane % SIMD_WIDTH,
                simd_groups,
                SIMD_WIDTH,
            });
        }
        if (!run_workgroup(kernel, stand_ins, workgroup % 2 == 1)) {
            printf("kernel %u, workgroup %u: invocations wait for others that do not come\n", what.kernel, workgroup);
            return false;
        }
    }
    return true;
}

// The file of cases, in the order of tests/kernels/translate.rs.
struct Reader {
    std::vector<uint32_t> words;
    size_t at = 0;

    uint next() {
        if (at >= words.size()) {
            fprintf(stderr, "the cases end too soon\n");
            exit(3);
        }
        return words[at++];
    }
    std::vector<uint32_t> list() {
        std::vector<uint32_t> list(next());
        for (uint32_t& word : list) word = next();
        return list;
    }
    std::string text() {
        const uint bytes = next();
        std::string text(bytes, ' ');
        for (uint i = 0; i < (bytes + 3) / 4; i++) {
            const uint32_t word = next();
            memcpy(&text[4 * i], &word, std::min(4u, bytes - 4 * i));
        }
        return text;
    }
};

float number_of(uint32_t word) {
    float number;
    memcpy(&number, &word, 4);
    return number;
}

// Distance in units in the last place of a number of this size; what is not a number is infinitely far.
double distance(uint32_t got, uint32_t expected, float size) {
    if (got == expected) return 0;
    const double unit = ldexp(1, std::max(std::ilogb(std::max(std::fabs(size), 1.1754944e-38f)), -126) - 23);
    const double ulps = std::fabs(double(number_of(got)) - double(number_of(expected))) / unit;
    return ulps >= 0 ? ulps : INFINITY;
}

bool run_case(Reader& reader) {
    const std::string name = reader.text();
    const bool exact = reader.next() != 0;
    std::vector<std::vector<char>> memory;
    std::vector<size_t> sizes;
    for (uint left = reader.next(); left > 0; left--) {
        const size_t bytes = reader.next();
        std::vector<uint32_t> words = reader.list();
        if (words.empty()) words.assign((bytes + 3) / 4, reader.next());
        std::vector<char> buffer(bytes + 2 * GUARD_BYTES, char(GUARD));
        memcpy(buffer.data() + GUARD_BYTES, words.data(), bytes);
        memory.push_back(std::move(buffer));
        sizes.push_back(bytes);
    }
    std::vector<std::vector<Dispatch>> turns(reader.next());
    for (std::vector<Dispatch>& turn : turns) {
        turn.resize(reader.next());
        for (Dispatch& dispatch : turn) {
            dispatch.kernel = reader.next();
            dispatch.workgroups = reader.next();
            const uint groups = reader.next();
            for (uint group = 0; group < groups; group++) {
                for (uint left = reader.next(); left > 0; left--) {
                    Entry entry = { group, reader.next(), 0, 0, 0 };
                    entry.buffer = reader.next();
                    entry.offset = reader.next();
                    entry.size = reader.next();
                    dispatch.entries.push_back(entry);
                }
            }
        }
    }
    const uint steps = reader.next();
    std::vector<double> ulps_of_rates;
    bool ran = true;
    for (uint step = 0; step < steps; step++) {
        const std::vector<uint32_t> gradients = reader.list();
        const std::vector<uint32_t> rates = reader.list();
        ulps_of_rates.resize(rates.size());
        memcpy(memory[1].data() + GUARD_BYTES, gradients.data(), 4 * gradients.size());
        // A step; where a regime takes looks, a step and a look in turn.
        for (const Dispatch& what : turns[step % turns.size()]) ran = ran && dispatch(what, memory);
        for (size_t group = 0; group < rates.size(); group++) {
            uint32_t got;
            memcpy(&got, memory[2].data() + GUARD_BYTES + 4 * group, 4);
            ulps_of_rates[group] = std::max(ulps_of_rates[group], distance(got, rates[group], number_of(rates[group])));
        }
    }
    std::vector<std::pair<std::string, uint>> groups;
    for (uint left = reader.next(); left > 0; left--) {
        const std::string group = reader.text();
        groups.emplace_back(group, reader.next());
    }
    const std::vector<uint32_t> expected = reader.list();
    std::vector<uint32_t> got(expected.size());
    memcpy(got.data(), memory[0].data() + GUARD_BYTES, 4 * got.size());
    size_t at = 0, values = 0;
    double worst = 0, worst_rate = 0;
    bool good = ran;
    for (size_t group = 0; group < groups.size(); group++) {
        const auto& [title, length] = groups[group];
        float largest = 0;
        for (size_t i = at; i < at + length; i++) largest = std::max(largest, std::fabs(number_of(expected[i])));
        double ulps = 0;
        for (size_t i = at; i < at + length; i++) {
            // Words of 16-bit numbers are right or wrong.
            const double apart = exact ? (got[i] == expected[i] ? 0 : INFINITY) : distance(got[i], expected[i], largest);
            ulps = std::max(ulps, apart);
        }
        at += length;
        values += length + steps;
        if (!(ulps <= ULPS && ulps_of_rates[group] <= ULPS)) {
            printf("  %s: parameters %g ulps off, rates %g\n", title.c_str(), ulps, ulps_of_rates[group]);
            good = false;
        }
        worst = std::max(worst, ulps);
        worst_rate = std::max(worst_rate, ulps_of_rates[group]);
    }
    for (size_t buffer = 0; buffer < memory.size(); buffer++) {
        const char* start = memory[buffer].data();
        for (size_t i = 0; i < GUARD_BYTES; i++) {
            if (start[i] != char(GUARD) || start[GUARD_BYTES + sizes[buffer] + i] != char(GUARD)) {
                printf("  something was written past buffer %zu\n", buffer);
                good = false;
                break;
            }
        }
    }
    printf("%s: %zu values of %u steps, parameters within %.1f ulps, rates within %.1f%s\n", name.c_str(), values, steps, worst, worst_rate,
        good ? "" : ", FAILS");
    fflush(stdout);
    if (!ran) exit(2);
    return good;
}

} // namespace

int main(int count, char** arguments) {
    FILE* file = count == 2 || count == 3 ? fopen(arguments[1], "rb") : nullptr;
    if (file == nullptr) {
        fprintf(stderr, "usage: run CASES [COUNT]\n");
        return 3;
    }
    Reader reader;
    uint32_t word;
    while (fread(&word, 4, 1, file) == 1) reader.words.push_back(word);
    fclose(file);
    bool good = true;
    uint cases = reader.next();
    if (count == 3) cases = std::min(cases, uint(atoi(arguments[2])));
    for (uint left = cases; left > 0; left--) good &= run_case(reader);
    printf("%u cases, %zu kernels: %s\n", cases, sizeof kernels / sizeof *kernels, good ? "all agree with the CPU path" : "FAILS");
    return good ? 0 : 1;
}
