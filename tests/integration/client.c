// SPDX-License-Identifier: MIT
#include "client.h"

#include <poll.h>
#include <string.h>

#include "account.h"

void client_fails(int error, int r, const char *word, const char *call, const char *file, int line) {
        const char *text = gms_last_error();
        if (r != error)
                _ck_assert_failed(file, line, call, "%s: wanted %s, got %d (%s): %s", call, strerror(-error), r, strerror(-r),
                                  r < 0 ? text : "");
        if (strlen(text) < 20 || (word && !strcasestr(text, word)))
                _ck_assert_failed(file, line, call, "%s: no \"%s\" in the text \"%s\"", call, word ? word : "sentence", text);
}

/* ---- handles */

static struct gms *open_handle(const char *name) {
        struct gms *g = NULL;
        ok(gms_open(&g, m.socket, name ? store(name) : NULL));
        return g;
}

int client_connect(struct gms *g, uint32_t mode, uint64_t deadline_ms, const char *identity) {
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = mode;
        o.deadline_ms = deadline_ms;
        o.identity = identity;
        o.label = "client";
        return gms_connect(g, &o);
}

/* Everything that makes the driver keep something for this process, once. */
void client_warm_up(void) {
        static pid_t warm;
        struct account before, after;
        if (!m.cuda || warm == getpid())
                return;
        bool accounted = account_open(&before);
        if (accounted) /* what a death has left is given back first */
                wait_for((account_take(&before), before.owned == before.bytes));
        warm = getpid();
        struct gms *g = open_handle("warm-up");
        ok(client_connect(g, GMS_MODE_RW, PATIENCE_MS, NULL));
        ok(gms_allocate(g, 1, NULL, NULL));
        client_fill(g, 0);
        client_verify(g, 0);
        gms_close(g);
        if (!accounted)
                return;
        wait_for((account_take(&after), after.bytes == before.bytes && after.owned == before.owned));
        account_adjust(&before, &after);
}

struct gms *client_open(const char *name) {
        client_warm_up();
        return open_handle(name);
}

struct gms *client(const char *name, uint32_t mode) {
        struct gms *g = client_open(name);
        ok(client_connect(g, mode, PATIENCE_MS, NULL));
        return g;
}

struct gms *client_build(const char *name, unsigned n, uint64_t bytes, uint32_t seed) {
        struct gms *g = client(name, GMS_MODE_RW);
        for (unsigned i = 0; i < n; i++)
                ok(gms_allocate(g, bytes, "part", NULL));
        client_fill(g, seed);
        return g;
}

struct gms *client_publish(const char *name, unsigned n, uint64_t bytes, uint32_t seed) {
        struct gms *g = client_build(name, n, bytes, seed);
        ok(gms_commit(g, "first", 0));
        return g;
}

struct gms *client_attach(const char *name) {
        struct gms *g = client(name, GMS_MODE_RO);
        ok(gms_attach(g));
        return g;
}

/* ---- bytes */

static uint64_t word_of(uint32_t seed, uint64_t slot, uint64_t i) {
        uint64_t x = ((uint64_t)seed << 48) + (slot << 32) + i + 1;
        x = (x ^ (x >> 31)) * UINT64_C(0x9e3779b97f4a7c15);
        return x ^ (x >> 29);
}

void pattern_fill(void *to, uint32_t seed, uint64_t slot, uint64_t bytes) {
        for (uint64_t i = 0; i < bytes; i += 8) {
                uint64_t w = word_of(seed, slot, i);
                memcpy((char *)to + i, &w, MIN(8u, bytes - i));
        }
}

bool pattern_is(const void *at, uint32_t seed, uint64_t slot, uint64_t bytes) {
        for (uint64_t i = 0; i < bytes; i += 8) {
                uint64_t w = word_of(seed, slot, i);
                if (memcmp((const char *)at + i, &w, MIN(8u, bytes - i)) != 0)
                        return false;
        }
        return true;
}

struct gms_allocation client_find(struct gms *g, uint64_t slot) {
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        ok(gms_find(g, slot, &a));
        return a;
}

/* Of all allocations; the caller frees it. */
static struct gms_allocation *all(struct gms *g, size_t *ret_n) {
        ok(gms_allocations(g, NULL, 0, ret_n));
        struct gms_allocation *a = calloc(*ret_n + 1, sizeof(*a));
        must(a, "out of memory");
        for (size_t i = 0; i < *ret_n; i++)
                a[i].size = sizeof(*a);
        ok(gms_allocations(g, a, *ret_n, ret_n));
        return a;
}

void client_fill(struct gms *g, uint32_t seed) {
        size_t n;
        _cleanup_free_ struct gms_allocation *a = all(g, &n);
        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *bytes = malloc(a[i].bytes);
                pattern_fill(bytes, seed, a[i].slot, a[i].bytes);
                ok(gms_write(g, a[i].id, 0, bytes, a[i].bytes));
        }
}

static void verify(struct gms *g, const struct gms_allocation *a, uint32_t seed, uint64_t n) {
        _cleanup_free_ char *bytes = malloc(n);
        ok(gms_read(g, a->id, 0, bytes, n));
        must(pattern_is(bytes, seed, a->slot, n), "slot %lu has other bytes than those of seed %u", a->slot, seed);
}

void client_verify(struct gms *g, uint32_t seed) {
        size_t n;
        _cleanup_free_ struct gms_allocation *a = all(g, &n);
        for (size_t i = 0; i < n; i++)
                verify(g, &a[i], seed, a[i].bytes);
}

void client_verify_some(struct gms *g, uint64_t slot, uint32_t seed, uint64_t bytes) {
        struct gms_allocation a = client_find(g, slot);
        verify(g, &a, seed, MIN(bytes, a.bytes));
}

/* ---- state and events */

struct gms_state client_state(struct gms *g) {
        struct gms_state s = GMS_INIT(struct gms_state);
        ok(gms_state(g, &s));
        return s;
}

struct gms_event client_event(struct gms *g, uint32_t kind) {
        struct gms_event e = GMS_INIT(struct gms_event);
        struct pollfd p = { .fd = gms_get_fd(g), .events = POLLIN };
        int r;
        while ((r = gms_dispatch(g, &e)) == 0)
                ck_assert_msg(poll(&p, 1, PATIENCE_MS) == 1, "event %u did not come", kind);
        ck_assert_int_eq(r, 1);
        ck_assert_msg(e.kind == kind, "event %u came instead of %u: %s", e.kind, kind, e.text);
        ck_assert_uint_ge(strlen(e.text), 20);
        return e;
}
