// SPDX-License-Identifier: MIT
#include "actor.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "base.h"
#include "gmsclient.h"
#include "pattern.h"

#define MIB (UINT64_C(1) << 20)
#define CHUNK (16 * MIB)
#define EVENT_MS 5000

struct actor {
        const char *name;
        struct gms *g;
        struct gms_allocation pieces[PIECES];
        size_t n_pieces;
        bool host; /* memory that this process can read and write directly */
};

uint64_t piece_bytes(uint32_t version, uint32_t piece) {
        if (piece + 1 < PIECES)
                return 32 * MIB;
        return version < 3 ? 32 * MIB - 13 : 36 * MIB; /* real content does not end at a page */
}

uint64_t version_bytes(uint32_t version) {
        uint64_t bytes = 0;
        for (uint32_t i = 0; i < PIECES; i++)
                bytes += piece_bytes(version, i);
        return bytes;
}

static double now_ms(void) {
        struct timespec ts;
        (void)clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* ---- what the orders do: each returns the library's result */

static int order_connect(struct actor *a, const struct order *o) {
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        options.mode = o->mode;
        options.deadline_ms = 5000;
        options.label = a->name;
        return gms_connect(a->g, &options);
}

static int learn_pieces(struct actor *a) {
        for (size_t i = 0; i < PIECES; i++)
                a->pieces[i] = (struct gms_allocation)GMS_INIT(struct gms_allocation);
        return gms_allocations(a->g, a->pieces, PIECES, &a->n_pieces);
}

static int order_build(struct actor *a, const struct order *o) {
        uint64_t bytes[PIECES];
        const char *tags[PIECES];
        struct gms_metadata entries[PIECES];
        char keys[PIECES][16];

        for (uint32_t i = 0; i < PIECES; i++) {
                bytes[i] = piece_bytes(o->version, i);
                tags[i] = "weights";
                a->pieces[i] = (struct gms_allocation)GMS_INIT(struct gms_allocation);
        }
        int r = gms_allocate_many(a->g, PIECES, bytes, tags, a->pieces);
        if (r < 0)
                return r;
        a->n_pieces = PIECES;
        for (uint32_t i = 0; i < PIECES; i++) {
                snprintf(keys[i], sizeof(keys[i]), "layer.%u", i);
                entries[i] = (struct gms_metadata)GMS_INIT(struct gms_metadata);
                entries[i].key = keys[i];
                entries[i].slot = a->pieces[i].slot;
                entries[i].value = "u64";
                entries[i].value_size = 3;
        }
        return gms_metadata_put(a->g, entries, PIECES);
}

/* On host through the mapping itself, as an engine would; on a GPU by copies. */
static int fill_piece(struct actor *a, const struct gms_allocation *p, uint32_t version, void *buffer) {
        if (a->host) {
                pattern_fill((void *)(uintptr_t)p->address, version, p->slot, 0, p->bytes);
                return 0;
        }
        for (uint64_t at = 0; at < p->bytes; at += CHUNK) {
                uint64_t n = MIN(p->bytes - at, CHUNK);
                pattern_fill(buffer, version, p->slot, at, n);
                int r = gms_write(a->g, p->id, at, buffer, n);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int verify_piece(struct actor *a, const struct gms_allocation *p, uint32_t version, void *buffer,
                        uint64_t *ret_wrong) {
        if (a->host) {
                *ret_wrong = pattern_verify((const void *)(uintptr_t)p->address, version, p->slot, 0, p->bytes);
                return 0;
        }
        *ret_wrong = PATTERN_OK;
        for (uint64_t at = 0; at < p->bytes && *ret_wrong == PATTERN_OK; at += CHUNK) {
                uint64_t n = MIN(p->bytes - at, CHUNK);
                int r = gms_read(a->g, p->id, at, buffer, n);
                if (r < 0)
                        return r;
                *ret_wrong = pattern_verify(buffer, version, p->slot, at, n);
        }
        return 0;
}

static int order_fill(struct actor *a, const struct order *o) {
        _cleanup_free_ void *buffer = malloc(CHUNK);
        int r = buffer ? 0 : -ENOMEM;
        for (uint32_t i = o->first; r == 0 && i < o->first + o->n && i < a->n_pieces; i++)
                r = fill_piece(a, &a->pieces[i], o->version, buffer);
        return r;
}

/* The pieces are found as an engine finds them: by key. */
static int order_verify(struct actor *a, const struct order *o, struct answer *ret) {
        _cleanup_free_ void *buffer = malloc(CHUNK);
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);

        if (!buffer)
                return -ENOMEM;
        int r = gms_metadata_list(a->g, "layer.", &list);
        if (r == 0 && list.n != PIECES)
                r = -EBADMSG, snprintf(ret->text, sizeof(ret->text), "%u keys, not %u", list.n, PIECES);
        for (uint32_t i = 0; r == 0 && i < list.n; i++) {
                struct gms_allocation p = GMS_INIT(struct gms_allocation);
                uint64_t wrong = PATTERN_OK;
                r = gms_find(a->g, list.entries[i].slot, &p);
                if (r == 0 && p.bytes != piece_bytes(o->version, i))
                        wrong = p.bytes;
                else if (r == 0)
                        r = verify_piece(a, &p, o->version, buffer, &wrong);
                if (r == 0 && wrong != PATTERN_OK) {
                        r = -EBADMSG;
                        snprintf(ret->text, sizeof(ret->text), "%s is not version %u's at byte %" PRIu64, list.entries[i].key,
                                 o->version, wrong);
                }
        }
        gms_metadata_free(&list);
        return r;
}

static int order_await(struct actor *a, struct answer *ret) {
        double end = now_ms() + EVENT_MS;

        for (;;) {
                struct gms_event event = GMS_INIT(struct gms_event);
                int r = gms_dispatch(a->g, &event);
                if (r < 0)
                        return r;
                if (r > 0 && event.kind == GMS_EVENT_PUBLISHED) {
                        ret->generation = event.generation;
                        snprintf(ret->text, sizeof(ret->text), "%s", event.text);
                        return 0;
                }
                struct pollfd p = { .fd = gms_get_fd(a->g), .events = POLLIN };
                if (r == 0 && (now_ms() > end || poll(&p, 1, (int)(end - now_ms()) + 1) <= 0))
                        return -ETIMEDOUT;
        }
}

static int obey(struct actor *a, const struct order *o, struct answer *ret) {
        switch (o->verb) {
        case CONNECT:
                return order_connect(a, o);
        case BUILD:
                return order_build(a, o);
        case FILL:
                return order_fill(a, o);
        case COMMIT:
                return gms_commit(a->g, o->text, GMS_COMMIT_LEAVE);
        case ATTACH:
                return gms_attach(a->g);
        case VERIFY:
                return order_verify(a, o, ret);
        case SLEEP:
                return gms_unmap_all(a->g);
        case WAKE:
                return gms_remap_all(a->g, &ret->changed);
        case AWAIT:
                return order_await(a, ret);
        case REFRESH:
                return gms_refresh(a->g, &ret->changed);
        case DISCONNECT:
                return gms_disconnect(a->g);
        case LOOK:
                return 0;
        case VERB_MAX:
                break;
        }
        return -ENOSYS;
}

/* ---- what an answer tells besides */

/* How much of the pieces is in this process's page tables: Rss, and Pss, where each page counts 1/users. */
static void measure_mapped(const struct actor *a, struct answer *ret) {
        _cleanup_free_ char *line = NULL;
        size_t room = 0;
        bool ours = false;
        FILE *f = fopen("/proc/self/smaps", "re");

        while (f && getline(&line, &room, f) > 0) {
                uint64_t start, end, kib;
                if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2) {
                        ours = false;
                        for (size_t i = 0; i < a->n_pieces; i++)
                                ours |= start >= a->pieces[i].address && start < a->pieces[i].address + a->pieces[i].aligned;
                } else if (ours && sscanf(line, "Rss: %" SCNu64, &kib) == 1) {
                        ret->rss += kib * 1024;
                } else if (ours && sscanf(line, "Pss: %" SCNu64, &kib) == 1) {
                        ret->pss += kib * 1024;
                }
        }
        if (f)
                (void)fclose(f);
}

static void describe_memory(const struct actor *a, struct answer *ret) {
        _cleanup_close_ int fd = -1;
        struct stat st;

        measure_mapped(a, ret);
        if (a->n_pieces > 0 && gms_export(a->g, a->pieces[0].id, &fd) == 0 && fstat(fd, &st) == 0)
                ret->inode = st.st_ino;
}

static void describe(struct actor *a, struct answer *ret) {
        struct gms_state state = GMS_INIT(struct gms_state);

        if (gms_state(a->g, &state) == 0) {
                ret->generation = state.generation;
                ret->allocations = state.allocations;
                ret->bytes = state.bytes;
                ret->mapped = (int)state.mapped;
                a->host = strcmp(state.device, "host") == 0;
        }
        if (learn_pieces(a) < 0)
                return;
        ret->address = a->n_pieces > 0 ? a->pieces[0].address : 0;
        for (size_t i = 0; i < a->n_pieces; i++)
                ret->addresses = ret->addresses * 1000003 + a->pieces[i].address + a->pieces[i].slot;
        if (a->host)
                describe_memory(a, ret);
}

int actor_main(int fd, const char *name, const char *socket, const char *store) {
        struct actor a = { .name = name };
        struct order order;

        if (gms_open(&a.g, socket, store) < 0)
                return EXIT_FAILURE;
        while (recv(fd, &order, sizeof(order), 0) == (ssize_t)sizeof(order)) {
                struct answer answer = { 0 };
                double start = now_ms();
                answer.result = obey(&a, &order, &answer);
                answer.ms = now_ms() - start;
                if (answer.result < 0 && answer.text[0] == '\0')
                        snprintf(answer.text, sizeof(answer.text), "%s", gms_last_error());
                if (order.verb == CONNECT || order.verb == ATTACH || order.verb == WAKE || order.verb == REFRESH ||
                    order.verb == LOOK)
                        describe(&a, &answer);
                if (send(fd, &answer, sizeof(answer), MSG_NOSIGNAL) < 0)
                        break;
        }
        gms_close(a.g);
        return EXIT_SUCCESS;
}
