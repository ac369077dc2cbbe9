// SPDX-License-Identifier: MIT
#pragma once
/*
 * The stage: a temporary directory, gmsd on a socket in it and gms-keeper above it, the actors, and a handle that looks on. Whatever happens, it
 * leaves no process and no file behind. Checks are made here, so that each says what it saw.
 */
#include <stdbool.h>
#include <sys/types.h>

#include "actor.h"
#include "base.h"
#include "gmsclient.h"

#define STAGE_ACTORS 8u

struct process {
        pid_t pid; /* 0: none */
        int fd;    /* orders and answers */
        char name[16];
};

struct stage {
        const char *device_spec; /* as for gmsd --device */
        char gmsd[1024], keeper_path[1040];
        char dir[64], socket[96], log[96], store[64];
        struct gms *look;
        pid_t group; /* of every process started here: its leader is gms-keeper */
        pid_t keeper;
        struct process actors[STAGE_ACTORS];
        unsigned failed;
        bool host;
};

/* Set by SIGINT, SIGTERM and SIGHUP: every wait then ends as a failure. */
bool stage_interrupted(void);

/* False, and said why, when it cannot be set up. stage_close() in any case. */
bool stage_open(struct stage *s, const char *device_spec, const char *gmsd);
void stage_close(struct stage *s);

/* "ok" or "FAILED", and what was checked. Returns `ok`. */
bool stage_check(struct stage *s, bool ok, const char *format, ...) _printf_(3, 4);

/* A text of the library, below the check it belongs to, in lines that fit. Empty: a failure. */
bool stage_quote(struct stage *s, const char *text);

struct process *actor_start(struct stage *s, const char *name);
void actor_kill(struct stage *s, struct process *p); /* SIGKILL, and gone */
void actor_end(struct stage *s, struct process *p);  /* leaves of its own accord; checks its exit code */

/* Sends without waiting; waits for the answer; both. No answer is a result of -EPIPE. */
void actor_tell(struct process *p, const struct order *o);
struct answer actor_hear(struct process *p);
struct answer actor_ask(struct process *p, const struct order *o);

/* SIGKILL for gmsd; waits until the next one serves. Checks that it is another process. */
bool stage_kill_daemon(struct stage *s);

/* The store and its device as the daemon shows them. */
struct gms_store stage_store(struct stage *s);
struct gms_device stage_device(struct stage *s);

/*
 * Waits until the store holds `bytes`, of which `draining` belong to older generations, and the device owns no more. Up to
 * 5 s, since freeing is asynchronous. *ret_owned is what the device owns then.
 */
bool stage_settles(struct stage *s, uint64_t bytes, uint64_t draining, uint64_t *ret_owned);
