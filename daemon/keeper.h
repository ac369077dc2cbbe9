// SPDX-License-Identifier: MIT
#pragma once
/*
 * What a service manager keeps for one service: descriptors by name, and the socket on which the service asks for that
 * (sd_notify). The contract is systemd's, as far as a service can see it. Processes are not known here: what a message
 * says of the service itself is given back, for keeper_main.c to act on.
 *
 * Names: 1 to 255 printable characters without ":"; several descriptors may have one name. All names together must fit
 * the one string LISTEN_FDNAMES, which the kernel limits to 128 KiB: 4,000 names of 31 characters, 16,000 of 7. A
 * descriptor over that limit, or over `max`, is not kept, and a line says so.
 *
 * A descriptor of an open file that is kept under that name already is dropped, where kcmp() can tell (container runtimes
 * may refuse it) and as long as one name has few. systemd looks through all of its store, which costs it linear time.
 *
 * Closing the last descriptor of device memory takes the driver's time, 50 ms for a whole GPU; it is taken here. The
 * service waits for it only if it asks for a barrier.
 */
#include <sys/types.h>

#include "base.h"

#define KEEPER_E_NOTHING 1 /* no message is waiting */

#define KEEPER_HEADS 65536u /* of the hash table */

enum {
        KEEPER_READY = 1 << 0,
        KEEPER_STOPPING = 1 << 1,
        KEEPER_FED = 1 << 2,      /* the watchdog */
        KEEPER_HANGS = 1 << 3,    /* by its own account */
        KEEPER_INTERVAL = 1 << 4, /* watchdog_us is set */
        KEEPER_STATUS = 1 << 5,   /* status is set */
};

struct keeper_message {
        unsigned says; /* KEEPER_… */
        uint64_t watchdog_us;
        char status[256];
};

struct kept {
        char *name; /* NULL: this number is not of a kept descriptor */
        int next;   /* with the same hash; 0: none */
        bool polled;
};

struct keeper {
        int socket;
        int epoll;          /* the caller's; a kept descriptor's data.fd is its number */
        char address[16];   /* of the socket, for NOTIFY_SOCKET */
        struct kept *kept;  /* by number */
        int room;
        int heads[KEEPER_HEADS]; /* by the name's hash; 0: none, since standard descriptors are never kept */
        size_t n, max;
        size_t name_bytes;  /* each with its ":" */
        bool stranger_seen;
};

int keeper_init(struct keeper *k, int epoll, size_t max);
void keeper_done(struct keeper *k);

/* Takes one message off the socket and carries out what it says of descriptors. Only messages of `service` count. 0, or
 * KEEPER_E_NOTHING. */
int keeper_receive(struct keeper *k, pid_t service, struct keeper_message *ret_message);

/* Epoll has reported this number: drops the descriptor if its other end is gone. */
void keeper_check(struct keeper *k, int fd);

/* In the child, before exec: kept descriptors become 3, 4, …; names in that order, "a:b:c", to be freed. */
int keeper_hand_over(struct keeper *k, char **ret_names);
