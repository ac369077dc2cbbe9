// SPDX-License-Identifier: MIT
#include "bystander.h"

#include <poll.h>
#include <sys/mman.h>
#include <time.h>

#include "client.h"

#define ALLOCATIONS 2
#define WORST_MS 2000 /* on a machine that does other things as well */

static struct stats {
        _Atomic uint64_t rounds, worst_us;
} *stats;
static struct child child;

static uint64_t now_us(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void check(struct gms *g, uint64_t bytes) {
        for (uint64_t slot = 0; slot < ALLOCATIONS; slot++)
                client_verify_some(g, slot, 7, bytes);
}

static void round_trip(struct gms *g) {
        struct gms_state s = GMS_INIT(struct gms_state);
        struct gms_event e = GMS_INIT(struct gms_event);
        uint64_t before = now_us();
        ok(gms_state(g, &s));
        uint64_t took = now_us() - before;
        if (took > stats->worst_us)
                stats->worst_us = took;
        stats->rounds++;
        must(s.mode == GMS_MODE_RO && s.generation == 1 && s.newest == 1, "a bystander has mode %u and generation %lu of %lu",
             s.mode, s.generation, s.newest);
        must(gms_dispatch(g, &e) == 0, "a bystander got event %u: %s", e.kind, e.text);
}

static void watch(int line, void *arg) {
        (void)arg;
        struct gms *g = client_build(BYSTANDER, ALLOCATIONS, m.granularity, 7);
        ok(gms_commit(g, BYSTANDER, 0));
        check(g, m.granularity);
        say(line, 'r');
        struct pollfd told = { .fd = line, .events = POLLIN };
        while (poll(&told, 1, 1) == 0) {
                round_trip(g);
                check(g, 4096);
        }
        check(g, m.granularity);
        gms_close(g);
}

void bystander_start(void) {
        stats = mmap(NULL, sizeof(*stats), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        ck_assert(stats != MAP_FAILED);
        child_start(&child, watch, NULL);
        child_wait(&child, 'r');
        bystander_reset();
}

void bystander_stop(void) {
        uint64_t rounds, worst;
        if (child.pid == 0)
                return;
        wait_for((worst = bystander_worst_ms(&rounds), rounds > 0));
        say(child.fd, 's');
        child_end(&child);
        ck_assert_msg(worst < WORST_MS, "a bystander waited %lu ms for the answer to a simple question", worst);
        (void)munmap(stats, sizeof(*stats));
}

uint64_t bystander_worst_ms(uint64_t *ret_rounds) {
        if (ret_rounds)
                *ret_rounds = stats->rounds;
        return stats->worst_us / 1000;
}

void bystander_reset(void) {
        stats->rounds = 0;
        stats->worst_us = 0;
}
