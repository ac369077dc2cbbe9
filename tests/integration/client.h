// SPDX-License-Identifier: MIT
#pragma once
/*
 * A client of the public library, in few words, and bytes that can be told apart: those of a seed, a slot and a place.
 *
 * The process of a test becomes a client of the GPU at its first client_*() call; what the driver keeps from then on is
 * taken into the account. So children that are clients are started before.
 */
#include "gmsclient.h"
#include "harness.h"

/* The call works. */
#define ok(call)                                                                                                     \
        do {                                                                                                         \
                int r_ = (call);                                                                                     \
                must(r_ == 0, "%s: %s: %s", #call, strerror(-r_), gms_last_error());                        \
        } while (0)
/* The call fails with this error and a text for people in which `word` occurs (NULL: any). */
#define fails(error, word, call) client_fails(error, call, word, #call, __FILE__, __LINE__)
void client_fails(int error, int r, const char *word, const char *call, const char *file, int line);

void client_warm_up(void);
struct gms *client_open(const char *name);
/* 0 or the error. `deadline_ms` as in gms_connect_options. */
int client_connect(struct gms *g, uint32_t mode, uint64_t deadline_ms, const char *identity);
/* Open and connected; the mode is had, or the test fails. */
struct gms *client(const char *name, uint32_t mode);
/* A writer of n allocations with bytes in them. */
struct gms *client_build(const char *name, unsigned n, uint64_t bytes, uint32_t seed);
/* The same, published; it goes on as a reader. */
struct gms *client_publish(const char *name, unsigned n, uint64_t bytes, uint32_t seed);
/* A reader with everything mapped. */
struct gms *client_attach(const char *name);

void client_fill(struct gms *g, uint32_t seed);
/* Every byte of every allocation. */
void client_verify(struct gms *g, uint32_t seed);
void client_verify_some(struct gms *g, uint64_t slot, uint32_t seed, uint64_t bytes);
struct gms_allocation client_find(struct gms *g, uint64_t slot);
struct gms_state client_state(struct gms *g);
/* The next event of this kind comes in time. */
struct gms_event client_event(struct gms *g, uint32_t kind);

void pattern_fill(void *to, uint32_t seed, uint64_t slot, uint64_t bytes);
bool pattern_is(const void *at, uint32_t seed, uint64_t slot, uint64_t bytes);

static inline void gms_closep(struct gms **g) {
        gms_close(*g);
        *g = NULL;
}
#define _cleanup_gms_ _cleanup_(gms_closep) __attribute__((unused))
