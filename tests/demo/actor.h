// SPDX-License-Identifier: MIT
#pragma once
/*
 * An actor is a process of its own with one handle on one store: a writer or a reader, as an engine would be. It does
 * what the stage orders over a socket and answers what came of it. Everything it knows of gmsd is libgmsclient.
 */
#include <stdint.h>

enum verb {
        CONNECT,    /* mode */
        BUILD,      /* version: allocate, with metadata */
        FILL,       /* version, first, n: write the bytes of n pieces */
        COMMIT,     /* text: the identity; gives the lock back */
        ATTACH,
        VERIFY,     /* version: every byte of every piece */
        SLEEP,      /* give all physical memory back, keep the addresses */
        WAKE,
        AWAIT,      /* wait for the event that a newer generation is published */
        REFRESH,
        DISCONNECT,
        LOOK,       /* answer with what is known, and nothing else */
        VERB_MAX
};

struct order {
        enum verb verb;
        uint32_t mode;
        uint32_t version;
        uint32_t first, n;
        char text[128];
};

struct answer {
        int result; /* the library's: 0 or a negative errno */
        int changed;
        double ms; /* what the call took */
        uint64_t generation, allocations, bytes;
        uint64_t addresses; /* a digest of slots and addresses: equal if every piece is where it was */
        uint64_t address;   /* of the first piece */
        uint64_t inode;     /* host: which memory object is behind the first piece */
        uint64_t rss, pss;  /* host: what of the pieces this process has mapped; the same, shared out among its users */
        int mapped;
        char text[600]; /* why it failed, or what the event said */
};

/* The structure that a version has. Version 3 has a piece of another size. */
#define PIECES 8u
uint64_t piece_bytes(uint32_t version, uint32_t piece);
uint64_t version_bytes(uint32_t version);

/* Serves orders from `fd` until its other end is closed. Returns the exit code. */
int actor_main(int fd, const char *name, const char *socket, const char *store);
