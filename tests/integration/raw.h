// SPDX-License-Identifier: MIT
#pragma once
/*
 * A client without manners: speaks the protocol frame by frame, right or wrong.
 *
 *      _cleanup_raw_ struct raw r;
 *      raw_join(&r, "w", GMS__MODE__RW);
 *      refused(&r, ask(&r, COMMIT, commit, b.identity = (char *)"\n"), INVALID, "identity");
 */
#include "channel.h"
#include "harness.h"
#include "wire.h"

#define FOREVER UINT64_MAX

enum {
        RAW_ENDED = -1,  /* the daemon ended the connection */
        RAW_SILENT = -2, /* nothing came in time */
};

struct raw {
        int fd;
        uint64_t serial;     /* of the last request */
        Gms__Frame *reply;   /* the last answer, and its descriptors */
        struct fdset *fds;
        unsigned events[8];  /* how many of each kind have come */
        uint64_t published;  /* generation that the last PUBLISHED named */
        uint64_t first_id, first_slot; /* of the last allocation */
};

void raw_connect(struct raw *r);
/* Whether somebody listens there. */
bool raw_try(struct raw *r, const char *socket);
void raw_close(struct raw *r);
#define _cleanup_raw_ _cleanup_(raw_close)
#define RAW { .fd = -1 }

/* A status, or RAW_ENDED, RAW_SILENT. Events that come before the answer are counted. */
int raw_answer(struct raw *r, uint64_t timeout_ms);
/* Takes events that have come; nothing else may have. */
void raw_events(struct raw *r);
/* Whether nothing but events has come. */
bool raw_waits(struct raw *r);
/* Sends under the next serial, or the frame's own if it has one. */
void raw_post(struct raw *r, Gms__Frame *f);
int raw_request(struct raw *r, Gms__Frame *f);
/* Any bytes, with any descriptors. 0, or an errno. */
int raw_send(struct raw *r, const void *bytes, size_t len, const int *fds, unsigned n_fds);

/* ask(r, COMMIT, commit, b.leave = true): sends the request and returns the answer's status. */
#define frame_(CASE, field, ...)                                                                                     \
        __typeof__(*((Gms__Frame *)0)->field) b;                                                                     \
        gms__##field##__init(&b);                                                                                    \
        __VA_ARGS__;                                                                                                 \
        Gms__Frame f_ = GMS__FRAME__INIT;                                                                            \
        f_.body_case = GMS__FRAME__BODY_##CASE;                                                                      \
        f_.field = &b
#define ask(r, CASE, field, ...)                                                                                     \
        __extension__({                                                                                              \
                frame_(CASE, field, __VA_ARGS__);                                                                    \
                raw_request(r, &f_);                                                                                 \
        })
#define ask_again(r, serial_, CASE, field, ...)                                                                      \
        __extension__({                                                                                              \
                frame_(CASE, field, __VA_ARGS__);                                                                    \
                f_.serial = (serial_);                                                                               \
                raw_request(r, &f_);                                                                                 \
        })
#define post(r, CASE, field, ...)                                                                                    \
        __extension__({                                                                                              \
                frame_(CASE, field, __VA_ARGS__);                                                                    \
                raw_post(r, &f_);                                                                                    \
        })

/* The answer is OK; or is refused with this status and a text for people in which `word` occurs. */
#define granted(r, status) raw_check(r, status, GMS__STATUS__OK, NULL, __FILE__, __LINE__)
#define refused(r, status, STATUS, word) raw_check(r, status, GMS__STATUS__##STATUS, word, __FILE__, __LINE__)
void raw_check(struct raw *r, int status, int wanted, const char *word, const char *file, int line);
/* The daemon has ended the connection, or does so in time. */
#define ended(r) ck_assert_int_eq(raw_answer(r, PATIENCE_MS), RAW_ENDED)

/* ---- sessions; `name` is that of a store of the machine's device */

/* Hello on a new connection. `deadline_ms` may be FOREVER, `identity` NULL. */
int raw_hello(struct raw *r, const char *name, Gms__Mode mode, uint64_t deadline_ms, const char *identity);
void raw_hello_post(struct raw *r, const char *name, Gms__Mode mode, uint64_t deadline_ms);
/* The lock is had, or the test fails. */
void raw_join(struct raw *r, const char *name, Gms__Mode mode);
/* The lock is asked for, and the daemon has heard it: there are `waiters` then. */
void raw_queue(struct raw *r, const char *name, Gms__Mode mode, uint64_t deadline_ms, unsigned waiters);
/* The mode that was granted. */
#define granted_mode(r, status, MODE)                                                                                \
        do {                                                                                                         \
                granted(r, status);                                                                                  \
                ck_assert_int_eq((r)->reply->welcome->mode, GMS__MODE__##MODE);                                      \
        } while (0)

int raw_allocate(struct raw *r, uint64_t size, uint32_t count, uint64_t deadline_ms);
int raw_put(struct raw *r, const char *key, uint64_t slot, uint64_t offset);
int raw_page(struct raw *r, uint64_t first, uint32_t count, bool descriptors);
int raw_commit(struct raw *r, const char *identity, bool leave);
/* Publishes n allocations of a granule each in a new session, which goes on as a reader. */
void raw_publish(struct raw *r, const char *name, unsigned n, const char *identity);

/* ---- what the daemon says of a store; asked on the machine's own connection */

extern struct raw control;

struct store_view {
        char state[16]; /* "" when there is none */
        char identity[64];
        uint8_t hash[16];
        uint64_t readers, writers, waiters, bytes, building, draining, draining_layouts, generation, allocations;
        bool sealed;
};
struct store_view look(const char *name);
uint64_t waiters(const char *name);
const char *state_of(const char *name);
/* The state of device `i`: its name is "" when there is none. */
struct device_view {
        char name[32], state[16], text[256];
        uint64_t total, free, owned, granularity, waiting;
};
struct device_view look_device(unsigned i);
