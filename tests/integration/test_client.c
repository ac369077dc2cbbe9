// SPDX-License-Identifier: MIT
/* The library: whole flows, with every byte verified, and every promise of its header that needs a daemon. */
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "account.h"
#include "client.h"
#include "proxy.h"
#include "raw.h"
#include "vmm.h"

static void in_a_child(void (*body)(int line, void *arg), void *arg) {
        struct child c;
        child_start(&c, body, arg);
        child_end(&c);
}

/* The next generation, by another session of this process. */
static void update(const char *name, unsigned n, uint64_t bytes, const char *tag, const char *key, uint32_t seed) {
        struct gms *g = client(name, GMS_MODE_UPDATE);
        for (unsigned i = 0; i < n; i++)
                ok(gms_allocate(g, bytes, tag, NULL));
        client_fill(g, seed);
        struct gms_metadata e = { .size = sizeof(e), .key = key };
        if (key)
                ok(gms_metadata_put(g, &e, 1));
        ok(gms_commit(g, "next", GMS_COMMIT_LEAVE));
        gms_close(g);
}

static unsigned own_maps(void) {
        struct account a;
        account_take(&a);
        return a.own_maps;
}

/* ---- publish, attach, sleep, wake */

TEST(client, publish_and_attach)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 3, 3 * m.granularity + 5, 1), *a = client_attach("w"),
                                 *b = client_attach("w");
        client_verify(w, 1);
        client_verify(a, 1);
        client_verify(b, 1);
        ck_assert_uint_eq(look("w").bytes, 3 * 4 * m.granularity); /* once, however many look */
        struct gms_state s = client_state(a);
        ck_assert_uint_eq(s.mode, GMS_MODE_RO);
        ck_assert_uint_eq(s.generation, 1);
        ck_assert_uint_eq(s.mapped, 1);
        ck_assert_str_eq(s.identity, "first");
        ck_assert_str_eq(s.store_state, "RO");
}

TEST(client, sleep_and_wake)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 3, 2 * m.granularity, 1), *r = client_attach("w");
        struct gms *both[] = { w, r };
        unsigned maps = own_maps();
        for (int i = 0; i < 3; i++) {
                for (int k = 0; k < 2; k++) {
                        struct gms_allocation before[3];
                        int changed = 7;
                        char byte;
                        for (unsigned slot = 0; slot < 3; slot++)
                                before[slot] = client_find(both[k], slot);
                        ok(gms_unmap_all(both[k]));
                        ck_assert(m.cuda && !m.fake ? true : own_maps() < maps);
                        fails(-EACCES, "not mapped", gms_read(both[k], before[0].id, 0, &byte, 1));
                        ck_assert_uint_eq(client_find(both[k], 0).access, GMS_ACCESS_NONE);
                        ck_assert_uint_eq(client_find(both[k], 0).address, before[0].address);
                        ok(gms_remap_all(both[k], &changed));
                        ck_assert_int_eq(changed, 0);
                        fails(-EBUSY, "unmap", gms_remap_all(both[k], NULL));
                        for (unsigned slot = 0; slot < 3; slot++) {
                                struct gms_allocation after = client_find(both[k], slot);
                                ck_assert_mem_eq(&after, &before[slot], offsetof(struct gms_allocation, tag));
                                ck_assert_str_eq(after.tag, before[slot].tag);
                        }
                        client_verify(both[k], 1);
                }
        }
        ck_assert_uint_eq(own_maps(), maps);
}

/* Asleep without a lock, and woken by a new connection. */
TEST(client, sleep_disconnected)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 3, m.granularity, 1), *r = client_attach("w");
        uint64_t address = client_find(r, 2).address;
        int changed;
        ok(gms_unmap_all(r));
        ok(gms_disconnect(r));
        fails(-ENOTCONN, "connect", gms_remap_all(r, NULL));
        ok(client_connect(r, GMS_MODE_RO, 0, NULL));
        ok(gms_remap_all(r, &changed));
        ck_assert_int_eq(changed, 0);
        client_verify(r, 1);

        /* Meanwhile others were published: the same structure, so it wakes, and is told. */
        ok(gms_unmap_all(r));
        ok(gms_disconnect(r));
        update("w", 3, m.granularity, "part", NULL, 2);
        ok(client_connect(r, GMS_MODE_RO, 0, NULL));
        ok(gms_remap_all(r, &changed));
        ck_assert_int_eq(changed, 1);
        ck_assert_uint_eq(client_find(r, 2).address, address);
        client_verify(r, 2);
        client_verify(w, 1); /* whose generation is the first */
}

TEST(client, commit_and_leave)
{
        _cleanup_gms_ struct gms *w = client_build("w", 2, m.granularity, 1);
        ok(gms_commit(w, NULL, GMS_COMMIT_LEAVE));
        client_verify(w, 1);
        ck_assert_uint_eq(client_find(w, 0).access, GMS_ACCESS_READ);
        fails(-ENOTCONN, "connect", gms_commit(w, NULL, 0));
        wait_for(strcmp(state_of("w"), "COMMITTED") == 0);
}

TEST(client, commit_protects_in_place)
{
        _cleanup_gms_ struct gms *w = client_build("w", 2, m.granularity, 1);
        struct gms_allocation before = client_find(w, 1);
        ck_assert_uint_eq(before.access, GMS_ACCESS_READ_WRITE);
        ok(gms_commit(w, NULL, 0));
        struct gms_allocation after = client_find(w, 1);
        ck_assert_uint_eq(after.access, GMS_ACCESS_READ);
        ck_assert_uint_eq(after.address, before.address);
        fails(-EACCES, "read-only", gms_write(w, after.id, 0, "x", 1));
        client_verify(w, 1);
}

/* ---- refresh */

TEST(client, refresh_beside_a_writer)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 3, m.granularity, 1), *r = client_attach("w");
        uint64_t address = client_find(r, 2).address;
        int changed = 7;
        ok(gms_refresh(r, &changed));
        ck_assert_int_eq(changed, 0);
        for (uint32_t generation = 2; generation <= 4; generation++) {
                update("w", 3, m.granularity, "part", NULL, generation);
                ck_assert_uint_eq(client_event(r, GMS_EVENT_PUBLISHED).generation, generation);
                client_verify(r, generation - 1); /* until it moves */
                ok(gms_refresh(r, &changed));
                ck_assert_int_eq(changed, 1);
                client_verify(r, generation);
                ck_assert_uint_eq(client_find(r, 2).address, address);
                ck_assert_uint_eq(client_find(r, 2).access, GMS_ACCESS_READ);
                ck_assert_uint_eq(client_state(r).generation, generation);
        }
        ck_assert_uint_eq(look("w").draining, 3 * m.granularity); /* the first, which its writer reads */
        client_verify(w, 1);
        ok(gms_disconnect(w));
        fails(-EKEYREJECTED, "next", client_connect(w, GMS_MODE_RO, 0, "first"));
}

/* Told while asleep, it wakes up in the new generation. */
TEST(client, refresh_asleep)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 3, m.granularity, 1), *r = client_attach("w");
        int changed;
        ok(gms_unmap_all(r));
        update("w", 3, m.granularity, "part", NULL, 2);
        ok(gms_remap_all(r, &changed)); /* it holds the first */
        ck_assert_int_eq(changed, 0);
        client_verify(r, 1);
        ok(gms_unmap_all(r));
        ok(gms_refresh(r, &changed));
        ck_assert_int_eq(changed, 1);
        ok(gms_remap_all(r, &changed));
        ck_assert_int_eq(changed, 1);
        client_verify(r, 2);
}

TEST(client, refresh_demands_its_identity)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 1, m.granularity, 1), *r = client_open("w");
        ok(client_connect(r, GMS_MODE_RO, 0, "first"));
        ok(gms_attach(r));
        update("w", 1, m.granularity, "part", NULL, 2); /* identity "next" */
        fails(-EKEYREJECTED, "next", gms_refresh(r, NULL));
        client_verify(r, 1);
        gms_close(w);
        w = client("other", GMS_MODE_RW);
        fails(-EACCES, "reader", gms_refresh(w, NULL));
}

/* ---- stale */

static const struct {
        unsigned n;
        unsigned granules;
        const char *tag, *key, *said;
} stale[] = {
        { 4, 1, "part", NULL, "3 allocations were known, 4 are there" },
        { 2, 1, "part", NULL, "missing" },
        { 3, 2, "part", NULL, "bytes" },
        { 3, 1, "other", NULL, "'other'" },
        { 3, 1, "part", "k", "metadata differs" },
};

TEST(client, stale_at_remap)
{
        for (size_t i = 0; i < ARRAY_SIZE(stale); i++) {
                _cleanup_gms_ struct gms *w = client_publish("w", 3, m.granularity, 1), *r = client_attach("w");
                ok(gms_unmap_all(r));
                ok(gms_disconnect(r));
                update("w", stale[i].n, stale[i].granules * m.granularity, stale[i].tag, stale[i].key, 2);
                unsigned maps = own_maps();
                ok(client_connect(r, GMS_MODE_RO, 0, NULL)); /* it is no fault to connect */
                fails(-ESTALE, stale[i].said, gms_remap_all(r, NULL));
                fails(-ESTALE, "gms_attach()", gms_remap_all(r, NULL));
                ck_assert_uint_eq(own_maps(), maps);
                ok(gms_attach(r)); /* what the text advises */
                client_verify(r, 2);
                gms_close(steal_ptr(&r));
                gms_close(steal_ptr(&w));
                wait_for(look("w").readers == 0);
                granted(&control, ask(&control, CLEAR, clear, b.store = (char *)store("w")));
        }
}

TEST(client, stale_at_refresh)
{
        for (size_t i = 0; i < ARRAY_SIZE(stale); i++) {
                _cleanup_gms_ struct gms *w = client_publish("w", 3, m.granularity, 1), *r = client_attach("w");
                update("w", stale[i].n, stale[i].granules * m.granularity, stale[i].tag, stale[i].key, 2);
                fails(-ESTALE, stale[i].said, gms_refresh(r, NULL));
                client_verify(r, 1);
                ck_assert_uint_eq(client_state(r).generation, 1);
                gms_close(steal_ptr(&r));
                gms_close(steal_ptr(&w));
                wait_for(look("w").readers == 0);
                granted(&control, ask(&control, CLEAR, clear, b.store = (char *)store("w")));
        }
}

/* New ids, other slots, the same structure: not stale. */
TEST(client, gaps_are_not_structure)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 3, m.granularity, 1), *r = client_attach("w");
        struct gms *g = client("w", GMS_MODE_UPDATE);
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        ok(gms_allocate(g, m.granularity, "gone", &a));
        for (int i = 0; i < 3; i++)
                ok(gms_allocate(g, m.granularity, "part", NULL));
        ok(gms_free(g, a.id));
        fails(-ENOENT, "no allocation", gms_free(g, a.id));
        client_fill(g, 2);
        ok(gms_commit(g, NULL, 0));
        int changed;
        ok(gms_refresh(r, &changed));
        ck_assert_int_eq(changed, 1);
        client_verify(r, 2);
        gms_close(g);
}

/* ---- all or nothing: the line is cut at every reply */

static unsigned mapped(struct gms *g) {
        size_t n;
        ok(gms_allocations(g, NULL, 0, &n));
        unsigned is = 0;
        for (uint64_t slot = 0; slot < n; slot++)
                is += client_find(g, slot).access != GMS_ACCESS_NONE;
        return is;
}

#define PARTS 600 /* three pages */

static void publish_parts(int line, void *arg) {
        struct gms *g = client("w", GMS_MODE_UPDATE);
        uint64_t bytes[PARTS];
        (void)line;
        for (unsigned i = 0; i < PARTS; i++)
                bytes[i] = 512;
        ok(gms_allocate_many(g, PARTS, bytes, NULL, NULL));
        client_fill(g, *(uint32_t *)arg);
        ok(gms_commit(g, NULL, GMS_COMMIT_LEAVE));
        gms_close(g);
}

TEST(client, cut_at_every_reply)
{
        uint32_t seed = 1;
        struct proxy p;
        in_a_child(publish_parts, &seed);
        proxy_start(&p);
        client_warm_up();
        for (uint32_t cut = 1; cut <= 4; cut++) { /* an attach has a Hello and three pages */
                struct gms *g = NULL;
                unsigned maps = own_maps();
                ok(gms_open(&g, p.path, store("w")));
                p.line->cut_after = cut;
                ok(client_connect(g, GMS_MODE_RO, PATIENCE_MS, NULL)); /* a Hello is said again */
                if (cut > 1) {
                        fails(-ECONNRESET, "gone", gms_attach(g));
                        ck_assert_uint_eq(mapped(g), 0);
                        ck_assert_uint_eq(own_maps(), maps);
                        fails(-ENOTCONN, "connect", gms_attach(g));
                        ok(client_connect(g, GMS_MODE_RO, PATIENCE_MS, NULL));
                }
                ok(gms_attach(g));
                client_verify_some(g, PARTS - 1, 1, 512);

                if (cut <= 3) {
                        ok(gms_unmap_all(g));
                        p.line->cut_after = cut;
                        fails(-ECONNRESET, "gone", gms_remap_all(g, NULL));
                        ck_assert_uint_eq(mapped(g), 0);
                        ck_assert_uint_eq(own_maps(), maps);
                        ok(client_connect(g, GMS_MODE_RO, PATIENCE_MS, NULL));
                        ok(gms_remap_all(g, NULL));
                        client_verify_some(g, PARTS - 1, 1, 512);
                }
                gms_close(g);
        }
        proxy_stop(&p);
}

/* A refresh has Refresh, three pages, and Settle: before the last one it is the old that stays, whole. */
TEST(client, refresh_cut_at_every_reply)
{
        uint32_t seed = 1;
        struct proxy p;
        in_a_child(publish_parts, &seed);
        proxy_start(&p);
        client_warm_up();
        for (uint32_t cut = 1; cut <= 5; cut++) {
                struct gms *g = NULL;
                ok(gms_open(&g, p.path, store("w")));
                ok(client_connect(g, GMS_MODE_RO, PATIENCE_MS, NULL));
                ok(gms_attach(g));
                seed++;
                publish_parts(-1, &seed);
                p.line->cut_after = cut;
                int r = gms_refresh(g, NULL);
                if (cut < 5)
                        fails(-ECONNRESET, "gone", r);
                ck_assert_uint_eq(mapped(g), PARTS);
                client_verify(g, cut < 5 ? seed - 1 : seed);
                p.line->cut_after = 0;
                gms_close(g);
        }
        proxy_stop(&p);
}

/* A writer that loses the line in an allocation has allocated nothing. */
TEST(client, allocation_cut_at_every_reply)
{
        struct proxy p;
        uint64_t bytes[PARTS];
        for (unsigned i = 0; i < PARTS; i++)
                bytes[i] = 512;
        proxy_start(&p);
        client_warm_up();
        for (uint32_t cut = 1; cut <= 3; cut++) {
                struct gms *g = NULL;
                unsigned maps = own_maps();
                size_t n;
                ok(gms_open(&g, p.path, store("w")));
                ok(client_connect(g, GMS_MODE_RW, PATIENCE_MS, NULL));
                p.line->cut_after = cut;
                fails(-ECONNRESET, "gone", gms_allocate_many(g, PARTS, bytes, NULL, NULL));
                ok(gms_allocations(g, NULL, 0, &n));
                ck_assert_uint_eq(n, 0);
                ck_assert_uint_eq(own_maps(), maps);
                wait_for(strcmp(state_of("w"), "") == 0);
                ok(client_connect(g, GMS_MODE_RW, PATIENCE_MS, NULL));
                ok(gms_allocate_many(g, PARTS, bytes, NULL, NULL));
                gms_close(g);
                wait_for(strcmp(state_of("w"), "") == 0);
        }
        proxy_stop(&p);
}

/* ---- how often it asks */

TEST(client, round_trips)
{
        enum { N = 2048 };
        struct proxy p;
        static uint64_t bytes[N];
        struct gms *w = NULL, *r = NULL;
        for (unsigned i = 0; i < N; i++)
                bytes[i] = m.granularity;
        proxy_start(&p);
        client_warm_up();
        ok(gms_open(&w, p.path, store("w")));
        ok(client_connect(w, GMS_MODE_RW, PATIENCE_MS, NULL));
        uint32_t before = p.line->requests;
        ok(gms_allocate_many(w, N, bytes, NULL, NULL));
        ck_assert_uint_le(p.line->requests - before, 1 + (N - 253 + 252) / 253);
        char byte = 'x';
        ok(gms_write(w, client_find(w, N - 1).id, m.granularity - 1, &byte, 1));
        ok(gms_commit(w, NULL, 0));
        gms_close(w);

        ok(gms_open(&r, p.path, store("w")));
        before = p.line->requests;
        ok(client_connect(r, GMS_MODE_RO, PATIENCE_MS, NULL));
        ok(gms_attach(r));
        ck_assert_uint_le(p.line->requests - before, N / 253 + 3);
        ck_assert_uint_eq(mapped(r), N);
        ok(gms_read(r, client_find(r, N - 1).id, m.granularity - 1, &byte, 1));
        ck_assert_int_eq(byte, 'x');
        ok(gms_unmap_all(r));
        before = p.line->requests;
        ok(gms_remap_all(r, NULL));
        ck_assert_uint_le(p.line->requests - before, N / 253 + 3);
        gms_close(r);
        proxy_stop(&p);
}

/* ---- addresses */

struct place {
        uint64_t address;
        _Atomic uint64_t seen[2];
        int who;
};
#define PLACE UINT64_C(0x7e9000000000) /* nobody is there, the sanitizers included */

static void attach_at(int line, void *arg) {
        struct place *place = arg;
        struct gms *g = client("w", GMS_MODE_RO);
        ok(gms_reserve(g, PLACE, 16 * m.granularity, &place->address));
        ck_assert_uint_eq(place->address, PLACE);
        ok(gms_attach(g));
        client_verify(g, 1);
        place->seen[0] = client_find(g, 0).address;
        place->seen[1] = client_find(g, 2).address;
        say(line, 'a');
        (void)hear(line);
        ok(gms_unmap_all(g));
        ok(gms_remap_all(g, NULL));
        ck_assert_uint_eq(client_find(g, 2).address, place->seen[1]);
        client_verify(g, 1);
        gms_close(g);
}

static void publish_three(int line, void *arg) {
        (void)line, (void)arg;
        gms_close(client_publish("w", 3, 2 * m.granularity, 1));
}

/* Two processes that agree on addresses, at the same time. */
TEST(client, fixed_addresses)
{
        struct child c[2];
        struct place *places = mmap(NULL, 2 * sizeof(*places), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        in_a_child(publish_three, NULL);
        for (int i = 0; i < 2; i++) {
                child_start(&c[i], attach_at, &places[i]);
                child_wait(&c[i], 'a');
        }
        ck_assert_uint_eq(places[0].seen[0], PLACE);
        ck_assert_uint_eq(places[0].seen[1], PLACE + 4 * m.granularity);
        ck_assert_uint_eq(places[1].seen[0], PLACE);
        ck_assert_uint_eq(places[1].seen[1], PLACE + 4 * m.granularity);
        for (int i = 0; i < 2; i++) {
                say(c[i].fd, 'g');
                child_end(&c[i]);
        }
        (void)munmap(places, 2 * sizeof(*places));
}

TEST(client, reserve)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW), *none = client_open("w");
        uint64_t at;
        fails(-ENODEV, "device", gms_reserve(none, 0, m.granularity, &at));
        fails(-EINVAL, "granularity", gms_reserve(g, 0, 0, &at));
        fails(-EINVAL, "granularity", gms_reserve(g, PLACE + 1, m.granularity, &at));
        fails(-EINVAL, "granularity", gms_reserve(g, PLACE, m.granularity + 1, &at));
        ok(gms_reserve(g, PLACE, 4 * m.granularity, &at));
        ck_assert_uint_eq(at, PLACE);
        fails(-EEXIST, "in use", gms_reserve(g, PLACE, m.granularity, &at));
        fails(-EEXIST, "in use", gms_reserve(g, PLACE + 3 * m.granularity, 4 * m.granularity, &at));
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        ok(gms_allocate(g, 3 * m.granularity, NULL, &a));
        ck_assert_uint_eq(a.address, PLACE);
        ok(gms_allocate(g, 3 * m.granularity, NULL, &a)); /* does not fit: elsewhere */
        ck_assert(a.address < PLACE || a.address >= PLACE + 4 * m.granularity);
        client_fill(g, 1);
        client_verify(g, 1);
}

/* ---- export */

TEST(client, export)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 2, m.granularity, 1);
        struct vmm *v;
        char text[256];
        uint64_t address;
        int fd;
        fails(-ENOENT, "no allocation", gms_export(w, 12345, &fd));
        ok(gms_export(w, client_find(w, 1).id, &fd));
        ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
        gms_close(steal_ptr(&w));
        granted(&control, ask(&control, CLEAR, clear, b.store = (char *)store("w"), b.force = true));
        wait_for(look_device(0).owned == 2 * m.granularity); /* the daemon has none of it */

        /* The descriptor alone is the memory, for whoever can map it. */
        ck_assert_int_eq(vmm_open(&v, m.device, text, sizeof(text)), 0);
        ck_assert_int_eq(vmm_reserve(v, 0, m.granularity, &address), 0);
        ck_assert_int_eq(vmm_attach(v, fd, address, m.granularity, VMM_ACCESS_READ, &address), 0);
        (void)close(fd);
        _cleanup_free_ char *bytes = malloc(m.granularity);
        ck_assert_int_eq(vmm_copy_out(v, address, bytes, m.granularity), 0);
        ck_assert(pattern_is(bytes, 1, 1, m.granularity));
        ck_assert_int_eq(vmm_unmap(v, address, m.granularity), 0);
        vmm_unreserve(v, address, m.granularity);
        vmm_free(v);
}

/* ---- access */

TEST(client, protect)
{
        _cleanup_gms_ struct gms *w = client_build("w", 2, m.granularity, 1), *r = NULL;
        uint64_t id = client_find(w, 0).id;
        char byte = 0;
        ok(gms_protect(w, id, GMS_ACCESS_READ));
        fails(-EACCES, "read-only", gms_write(w, id, 0, &byte, 1));
        ok(gms_protect(w, id, GMS_ACCESS_READ_WRITE));
        client_fill(w, 1);
        fails(-ENOENT, "no allocation", gms_protect(w, 12345, GMS_ACCESS_READ));
        fails(-EINVAL, "no access", gms_protect(w, id, 9));
        ok(gms_commit(w, NULL, 0));

        r = client_attach("w");
        fails(-EACCES, "reads only", gms_protect(r, id, GMS_ACCESS_READ_WRITE));
        fails(-EACCES, "reads only", gms_protect(r, GMS_ALL, GMS_ACCESS_READ_WRITE));
        fails(-EACCES, "reads only", gms_protect(w, id, GMS_ACCESS_READ_WRITE)); /* it was the writer */
        ok(gms_protect(r, GMS_ALL, GMS_ACCESS_NONE));
        fails(-EACCES, "without access", gms_read(r, id, 0, &byte, 1));
        ok(gms_protect(r, GMS_ALL, GMS_ACCESS_READ));
        client_verify(r, 1);
        ok(gms_disconnect(r));
        ok(gms_protect(r, id, GMS_ACCESS_NONE));
        fails(-ENOTCONN, "lowered only", gms_protect(r, id, GMS_ACCESS_READ));
        ok(client_connect(r, GMS_MODE_RO, 0, NULL));
        ok(gms_protect(r, id, GMS_ACCESS_READ));
        client_verify(r, 1);
        ok(gms_unmap_all(r));
        fails(-ENOENT, "not mapped", gms_protect(r, id, GMS_ACCESS_READ));
}

static volatile char *target;

static void on_fault(int signal, siginfo_t *info, void *context) {
        (void)signal, (void)context;
        _exit(info->si_addr == (void *)target ? 42 : 43);
}

static void write_to_it(int line, void *arg) {
        struct sigaction fault = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
        struct gms *g = client_attach("w");
        (void)line, (void)arg;
        client_verify(g, 1);
        target = (char *)(uintptr_t)client_find(g, 1).address;
        (void)sigaction(SIGSEGV, &fault, NULL);
        *target = 1;
}

/* The page tables hold a reader back. */
TEST(client, readers_cannot_write, .needs = NEEDS_HOST)
{
        struct child c;
        _cleanup_gms_ struct gms *w = client_publish("w", 2, m.granularity, 1);
        child_start(&c, write_to_it, NULL);
        ck_assert_int_eq(process_end(c.pid), 42);
        c.fd = close_fd(c.fd);
        client_verify(w, 1);
}

TEST(client, reads_and_writes)
{
        _cleanup_gms_ struct gms *w = client_build("w", 2, m.granularity + 100, 1);
        struct gms_allocation a = client_find(w, 1);
        char byte, bytes[200];
        ok(gms_read(w, a.id, a.bytes, &byte, 0));
        ok(gms_read(w, a.id, a.bytes - 1, &byte, 1));
        fails(-ERANGE, "which has", gms_read(w, a.id, a.bytes, &byte, 1));
        fails(-ERANGE, "which has", gms_read(w, a.id, a.bytes - 1, bytes, 2));
        fails(-ERANGE, "which has", gms_read(w, a.id, UINT64_MAX, bytes, 2));
        fails(-ERANGE, "which has", gms_read(w, a.id, 1, bytes, UINT64_MAX));
        fails(-ERANGE, "which has", gms_write(w, a.id, a.bytes - 1, bytes, 2));
        fails(-ENOENT, "no allocation", gms_read(w, 12345, 0, bytes, 1));
        fails(-ENOENT, "no allocation", gms_write(w, 12345, 0, bytes, 1));
        memset(bytes, 7, sizeof(bytes));
        ok(gms_write(w, a.id, 777, bytes, sizeof(bytes)));
        memset(bytes, 0, sizeof(bytes));
        ok(gms_read(w, a.id, 800, bytes, 100));
        for (unsigned i = 0; i < 100; i++)
                ck_assert_int_eq(bytes[i], 7);
}

/* ---- fork */

static void use_inherited(int line, void *arg) {
        struct gms **handles = arg, *w = handles[0], *r = handles[1];
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        struct gms_state s = GMS_INIT(struct gms_state);
        struct gms_event e = GMS_INIT(struct gms_event);
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        char byte;
        int fd;
        (void)line;
#define REFUSED(call) fails(-ECHILD, "fork", call)
        REFUSED(gms_connect(r, &o));
        REFUSED(gms_disconnect(r));
        REFUSED(gms_allocate(w, 1, NULL, NULL));
        REFUSED(gms_free(w, 1));
        REFUSED(gms_attach(r));
        REFUSED(gms_find(r, 0, &a));
        REFUSED(gms_reserve(r, 0, m.granularity, NULL));
        REFUSED(gms_unmap_all(r));
        REFUSED(gms_remap_all(r, NULL));
        REFUSED(gms_refresh(r, NULL));
        REFUSED(gms_protect(r, GMS_ALL, GMS_ACCESS_NONE));
        REFUSED(gms_read(r, 1, 0, &byte, 1));
        REFUSED(gms_write(w, 1, 0, &byte, 1));
        REFUSED(gms_export(r, 1, &fd));
        REFUSED(gms_seal(w));
        REFUSED(gms_discard(w));
        REFUSED(gms_commit(w, NULL, 0));
        REFUSED(gms_state(r, &s));
        REFUSED(gms_get_fd(r));
        REFUSED(gms_dispatch(r, &e));
        gms_close(w);
        gms_close(r);
}

TEST(client, fork)
{
        _cleanup_gms_ struct gms *p = client_publish("r", 2, m.granularity, 1), *r = client_attach("r"),
                                 *w = client_build("w", 2, m.granularity, 2);
        struct gms *handles[] = { w, r };
        in_a_child(use_inherited, handles);
        client_verify(r, 1);
        client_verify(w, 2);
        ok(gms_commit(w, NULL, 0));
        ok(gms_unmap_all(r));
        ok(gms_remap_all(r, NULL));
        client_verify(r, 1);
        client_verify(p, 1);
}

/* A child that holds the parent's socket does not keep the lock when the parent leaves. */
static void hold_inherited(int line, void *arg) {
        (void)arg;
        say(line, 'h');
        (void)hear(line);
}

TEST(client, fork_does_not_keep_the_lock)
{
        struct child c;
        struct gms *w = client("w", GMS_MODE_RW);
        child_start(&c, hold_inherited, NULL);
        child_wait(&c, 'h');
        gms_close(w);
        wait_for(strcmp(state_of("w"), "") == 0);
        say(c.fd, 'g');
        child_end(&c);
}

/* ---- threads */

#define THREADS 6
#define TURNS 60

static void *hammer_one(void *arg) {
        struct gms *g = arg;
        for (unsigned i = 0; i < TURNS; i++) {
                struct gms_event e = GMS_INIT(struct gms_event);
                struct gms_state s = GMS_INIT(struct gms_state);
                char bytes[64];
                ok(gms_state(g, &s));
                int r = gms_read(g, client_find(g, i % 3).id, 0, bytes, sizeof(bytes));
                must(r == 0 ? pattern_is(bytes, 1, i % 3, sizeof(bytes)) : r == -EACCES, "%d: %s", r, gms_last_error());
                must(gms_dispatch(g, &e) == 0, "event %u", e.kind);
                switch (i % 3) {
                case 0:
                        ok(gms_unmap_all(g));
                        break;
                case 1:
                        r = gms_remap_all(g, NULL);
                        must(r == 0 || r == -EBUSY, "%d: %s", r, gms_last_error());
                        break;
                default:
                        ok(gms_attach(g));
                }
        }
        return NULL;
}

TEST(client, threads_on_one_handle)
{
        pthread_t threads[THREADS];
        _cleanup_gms_ struct gms *w = client_publish("w", 3, m.granularity, 1), *r = client_attach("w");
        for (unsigned i = 0; i < THREADS; i++)
                ck_assert_int_eq(pthread_create(&threads[i], NULL, hammer_one, r), 0);
        for (unsigned i = 0; i < THREADS; i++)
                ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
        ok(gms_attach(r));
        client_verify(r, 1);
}

static void *hammer_own(void *arg) {
        char name[16];
        uint32_t seed = (uint32_t)(uintptr_t)arg;
        (void)snprintf(name, sizeof(name), "w%u", seed);
        for (unsigned i = 0; i < TURNS / 6; i++) {
                struct gms *w = client_publish(name, 2, m.granularity, seed), *r = client_attach(name);
                client_verify(r, seed);
                ok(gms_disconnect(w));
                fails(-EBUSY, name, client_connect(w, GMS_MODE_RW, 0, NULL));
                gms_close(w);
                gms_close(r);
        }
        return NULL;
}

TEST(client, threads_on_many_handles)
{
        pthread_t threads[THREADS];
        client_warm_up();
        for (uintptr_t i = 0; i < THREADS; i++)
                ck_assert_int_eq(pthread_create(&threads[i], NULL, hammer_own, (void *)(i + 1)), 0);
        for (unsigned i = 0; i < THREADS; i++)
                ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
}

/* ---- connecting */

TEST(client, connect_errors)
{
        struct gms *g = NULL, *none = NULL;
        ok(gms_open(&g, path_of("nobody"), NULL));
        fails(-ENOENT, "is gmsd running", client_connect(g, GMS_MODE_NONE, 0, NULL));
        gms_close(g);
        fails(-EINVAL, "DEVICE/NAME", gms_open(&g, m.socket, "w"));
        ok(gms_open(&g, m.socket, "nowhere/w"));
        fails(-ENODEV, "nowhere/w", client_connect(g, GMS_MODE_RW, 0, NULL));
        gms_close(g);

        _cleanup_gms_ struct gms *w = client("w", GMS_MODE_RW);
        g = client_open("w");
        fails(-EBUSY, "RW", client_connect(g, GMS_MODE_RW, 0, NULL));
        uint64_t before = now_ms();
        fails(-ETIMEDOUT, "deadline", client_connect(g, GMS_MODE_RW, 100, NULL));
        ck_assert_uint_ge(now_ms() - before, 50);
        fails(-EINVAL, "mode", client_connect(g, 6, 0, NULL));
        fails(-EISCONN, "disconnect", client_connect(w, GMS_MODE_RW, 0, NULL));
        fails(-ENOTCONN, "connect", gms_attach(g));
        fails(-ENOTCONN, "connect", gms_disconnect(g));
        ok(gms_open(&none, m.socket, NULL));
        fails(-EINVAL, "store", client_connect(none, GMS_MODE_RW, 0, NULL));
        ok(client_connect(none, GMS_MODE_NONE, 0, NULL));
        fails(-EACCES, "looks only", gms_attach(none));
        gms_close(none);
        gms_close(g);
}

static void on_signal(int signal) {
        (void)signal;
}

/* A wait that a signal ends. */
static void interrupted(int line, void *arg) {
        struct sigaction on = { .sa_handler = on_signal };
        (void)arg;
        (void)sigaction(SIGUSR1, &on, NULL);
        struct gms *g = client_open("w");
        say(line, 'o');
        fails(-EINTR, "signal", client_connect(g, GMS_MODE_RW, GMS_FOREVER, NULL));
        gms_close(g);
}

TEST(client, connect_interrupted)
{
        struct child c;
        _cleanup_raw_ struct raw w = RAW;
        raw_join(&w, "w", GMS__MODE__RW);
        child_start(&c, interrupted, NULL);
        child_wait(&c, 'o');
        wait_for(waiters("w") == 1);
        ck_assert_int_eq(kill(c.pid, SIGUSR1), 0);
        child_end(&c);
        wait_for(waiters("w") == 0);
}

static void as_nobody(int line, void *arg) {
        struct gms *g;
        (void)line, (void)arg;
        ck_assert_int_eq(setresuid(65534, 65534, 65534), 0);
        ok(gms_open(&g, m.socket, NULL));
        fails(-EACCES, "ask for access", client_connect(g, GMS_MODE_NONE, 0, NULL));
        gms_close(g);
}

TEST(client, connect_by_somebody_else, .needs = NEEDS_ROOT)
{
        in_a_child(as_nobody, NULL);
}

/* ---- events */

TEST(client, events)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 1, m.granularity, 1), *r = client_attach("w"), *rw = client_open("w");
        struct pollfd quiet[] = { { .fd = gms_get_fd(w), .events = POLLIN }, { .fd = gms_get_fd(r), .events = POLLIN } };
        struct gms_event e = GMS_INIT(struct gms_event);
        ck_assert_int_eq(poll(quiet, 2, 0), 0);
        ck_assert_int_eq(gms_dispatch(r, &e), 0);

        fails(-ETIMEDOUT, "deadline", client_connect(rw, GMS_MODE_RW, 50, NULL));
        client_event(r, GMS_EVENT_LOCK_WANTED);
        client_event(w, GMS_EVENT_LOCK_WANTED);
        update("w", 1, m.granularity, "part", NULL, 2);
        update("w", 1, m.granularity, "part", NULL, 3);
        (void)client_state(r); /* events that come with an answer wait for dispatch */
        ck_assert_uint_eq(client_event(r, GMS_EVENT_PUBLISHED).generation, 3);
        ck_assert_int_eq(gms_dispatch(r, &e), 0);

        ok(gms_clear(r, store("w"), GMS_CLEAR_FORCE));
        client_event(r, GMS_EVENT_REVOKED);
        fails(-EKEYREVOKED, "connect again", gms_refresh(r, NULL));
        ok(gms_unmap_all(r));
        fails(-EKEYREVOKED, "connect again", gms_attach(r));
        ok(gms_disconnect(r));
        ok(client_connect(r, GMS_MODE_RW, PATIENCE_MS, NULL));
}

TEST(client, clear)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 1, m.granularity, 1), *g = client_open(NULL);
        ok(client_connect(g, GMS_MODE_NONE, 0, NULL));
        fails(-EBUSY, "readers", gms_clear(g, store("w"), 0));
        fails(-ENOENT, "no store", gms_clear(g, store("nothing"), 0));
        gms_close(steal_ptr(&w));
        wait_for(look("w").readers == 0);
        ok(gms_clear(g, store("w"), 0));
}

/* ---- the daemon's death */

TEST(client, daemon_dies)
{
        _cleanup_gms_ struct gms *w = client_build("w", 2, m.granularity, 2), *p = client_publish("r", 2, m.granularity, 1),
                                 *r = client_attach("r");
        struct gms_event e = GMS_INIT(struct gms_event);
        machine_stop(SIGKILL);
        fails(-ECONNRESET, "gone", gms_allocate(w, 1, NULL, NULL));
        fails(-ENOTCONN, "connect", gms_allocate(w, 1, NULL, NULL));
        client_event(r, GMS_EVENT_CLOSED); /* without a call of its own */
        fails(-ENOTCONN, "connect", gms_refresh(r, NULL));
        ck_assert_int_eq(gms_dispatch(r, &e), 0);
        client_verify(r, 1); /* mappings stay */
        client_verify(w, 2);
        client_verify(p, 1);
        ok(gms_unmap_all(r));
        fails(-ECONNREFUSED, "start it again", client_connect(r, GMS_MODE_RO, 0, NULL));

        /* The next one knows nothing of it, and says so. */
        pid_t next = gmsd_start(&(struct gmsd_run){});
        gmsd_wait(m.socket);
        fails(-EBUSY, "nothing is published", client_connect(r, GMS_MODE_RO, 0, NULL));
        ok(client_connect(r, GMS_MODE_RW, 0, NULL));
        gms_close(steal_ptr(&w));
        gms_close(steal_ptr(&p));
        gms_close(steal_ptr(&r));
        ck_assert_int_eq(kill(next, SIGTERM), 0);
        ck_assert_int_eq(process_end(next), 0);
}

/* ---- metadata in bulk */

TEST(client, metadata)
{
        enum { N = 3000 };
        static char keys[N][32];
        static struct gms_metadata entries[N];
        static const char *names[N];
        _cleanup_gms_ struct gms *w = client_build("w", 3, m.granularity, 1), *r = NULL;
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
        for (unsigned i = 0; i < N; i++) {
                (void)snprintf(keys[i], sizeof(keys[i]), "layer.%04u", i);
                names[i] = keys[i];
                entries[i] = (struct gms_metadata){
                        .size = sizeof(entries[i]), .key = keys[i], .value = keys[i], .value_size = 10, .slot = i % 3, .offset = i,
                };
        }
        ok(gms_metadata_put(w, entries, N));
        ok(gms_metadata_delete(w, names, 1));
        fails(-ENOENT, "item", gms_metadata_delete(w, names, 1));
        ok(gms_commit(w, NULL, 0));
        r = client("w", GMS_MODE_RO);
        ok(gms_metadata_list(r, "layer.", &list));
        ck_assert_uint_eq(list.n, N - 1);
        for (unsigned i = 0; i < list.n; i++) {
                ck_assert_str_eq(list.entries[i].key, keys[i + 1]);
                ck_assert_uint_eq(list.entries[i].offset, i + 1);
                ck_assert_mem_eq(list.entries[i].value, keys[i + 1], 10);
        }
        gms_metadata_free(&list);
        ok(gms_metadata_get(r, names + 1, N - 1, &list));
        ck_assert_uint_eq(list.n, N - 1);
        gms_metadata_free(&list);
        fails(-ENOENT, "layer.0000", gms_metadata_get(r, names, N, &list));
        fails(-EACCES, "RO", gms_metadata_put(r, entries, 1));
        ok(gms_query_metadata(r, store("w"), &list));
        ck_assert_uint_eq(list.n, N - 1);
        gms_metadata_free(&list);
}

/* ---- looking */

TEST(client, queries)
{
        _cleanup_gms_ struct gms *w = client_publish("w", 2, m.granularity, 1), *g = client_open(NULL);
        struct gms_daemon d = GMS_INIT(struct gms_daemon);
        struct gms_device *devices;
        struct gms_store *stores;
        struct gms_session *sessions;
        struct gms_allocation *layout;
        size_t n;
        fails(-ENOTCONN, "connect", gms_query_daemon(g, &d));
        ok(client_connect(g, GMS_MODE_NONE, 0, NULL));
        ok(gms_query_daemon(g, &d));
        ck_assert_uint_eq(d.pid, (uint64_t)m.gmsd);
        ck_assert_uint_eq(d.sessions, 4); /* with the bystander's and the test's own */
        ck_assert_uint_eq(d.allocations, 4);
        ck_assert_uint_eq(d.bytes, 4 * m.granularity);
        ok(gms_query_devices(g, &devices, &n));
        ck_assert_uint_eq(n, 1);
        ck_assert_str_eq(devices[0].name, m.device);
        ck_assert_str_eq(devices[0].state, "ready");
        ck_assert_uint_eq(devices[0].owned, 4 * m.granularity);
        ck_assert_uint_ge(devices[0].total - devices[0].owned, devices[0].free);
        gms_array_free(devices);
        ok(gms_query_stores(g, NULL, &stores, &n));
        ck_assert_uint_eq(n, 2);
        ck_assert_str_eq(stores[1].name, store("w"));
        ck_assert_str_eq(stores[1].state, "RO");
        ck_assert_uint_eq(stores[1].generation, 1);
        gms_array_free(stores);
        fails(-ENOENT, "no store", gms_query_stores(g, store("nothing"), &stores, &n));
        ok(gms_query_sessions(g, &sessions, &n));
        ck_assert_uint_eq(n, 4);
        ck_assert_str_eq(sessions[2].label, "client");
        ck_assert_uint_eq(sessions[2].bytes, 2 * m.granularity);
        gms_array_free(sessions);
        ok(gms_query_layout(g, store("w"), &layout, &n));
        ck_assert_uint_eq(n, 2);
        ck_assert_str_eq(layout[1].tag, "part");
        gms_array_free(layout);
        ck_assert_uint_eq(client_state(w).waiters, 0);
}

/* ---- memory */

TEST(client, no_memory, .needs = NEEDS_SMALL, .memory = "64M")
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        uint64_t mib = 1 << 20, many[] = { 10 * mib, 10 * mib, 60 * mib };
        fails(-EFBIG, NULL, gms_allocate(g, 65 * mib, NULL, NULL));
        fails(-EFBIG, NULL, gms_allocate(g, UINT64_MAX - 4096, NULL, NULL));
        fails(-EINVAL, "size 0", gms_allocate(g, 0, NULL, NULL));
        ok(gms_allocate(g, 40 * mib, NULL, NULL));
        ok(gms_set_deadline(g, 0));
        fails(-ENOMEM, "free", gms_allocate(g, 40 * mib, NULL, NULL));
        ok(gms_set_deadline(g, 100));
        uint64_t before = now_ms();
        fails(-ENOMEM, "free", gms_allocate(g, 40 * mib, NULL, NULL));
        ck_assert_uint_ge(now_ms() - before, 50);
        fails(-EFBIG, NULL, gms_allocate_many(g, 3, many, NULL, NULL));
        size_t n;
        ok(gms_allocations(g, NULL, 0, &n));
        ck_assert_uint_eq(n, 1);
        client_fill(g, 1);
        client_verify(g, 1);
}

/* ---- several GPUs */

struct view {
        const char *visible, *name;
        int error;
};

static void look_at(int line, void *arg) {
        const struct view *v = arg;
        struct gms *g;
        (void)line;
        ck_assert_int_eq(setenv("CUDA_VISIBLE_DEVICES", v->visible, 1), 0);
        ok(gms_open(&g, m.socket, v->name));
        if (v->error != 0) {
                fails(v->error, "GPU-fa4ecda1", client_connect(g, GMS_MODE_RO, 0, NULL));
                gms_close(g);
                return;
        }
        ok(client_connect(g, GMS_MODE_RO, 0, NULL));
        ok(gms_attach(g));
        client_verify(g, v->name[5] == '1' ? 2 : 1);
        gms_close(g);
}

static void publish_on(int line, void *arg) {
        struct gms *g;
        (void)line;
        ok(gms_open(&g, m.socket, arg));
        ok(client_connect(g, GMS_MODE_RW, 0, NULL));
        ok(gms_allocate(g, m.granularity, NULL, NULL));
        client_fill(g, ((char *)arg)[5] == '1' ? 2 : 1);
        ok(gms_commit(g, NULL, GMS_COMMIT_LEAVE));
        gms_close(g);
}

/* Ordinals are each process's own; the UUID says which GPU it is. */
TEST(client, gpus_by_uuid, .needs = NEEDS_FAKE, .devices = "2", .also = "cuda:1")
{
        static const struct view views[] = {
                { "0,1", "cuda:0/w", 0 }, { "0,1", "cuda:1/w", 0 }, { "1,0", "cuda:0/w", 0 }, { "1,0", "cuda:1/w", 0 },
                { "1", "cuda:1/w", 0 },   { "0", "cuda:1/w", -ENODEV }, { "GPU-fa4ecda1", "cuda:1/w", 0 },
        };
        in_a_child(publish_on, (void *)"cuda:0/w");
        in_a_child(publish_on, (void *)"cuda:1/w");
        for (size_t i = 0; i < ARRAY_SIZE(views); i++)
                in_a_child(look_at, (void *)&views[i]);
}
