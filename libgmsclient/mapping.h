// SPDX-License-Identifier: MIT
#pragma once
/*
 * A mapping: what a handle knows of one allocation, the addresses that are its for good, and, while it is awake, the
 * physical memory behind them. Mappings lie in arrays, in slot order; neighbours whose addresses touch are handled in one
 * driver call.
 *
 * Nothing here talks to the daemon, and nothing here chooses addresses (space.h does).
 */
#include "gmsclient.h"
#include "vmm.h"

struct region;

struct mapping {
        uint64_t id;
        uint64_t slot;
        uint64_t bytes;         /* asked for */
        uint64_t aligned;       /* of memory and of address space */
        uint64_t address;       /* 0 while it has none */
        struct region *region;  /* the reservation that the address is in */
        bool mapped;
        uint8_t access;         /* GMS_ACCESS_* now; NONE while unmapped */
        uint8_t want;           /* what mappings_apply() is to make it */
        char tag[GMS_TAG_SIZE];
};

/* The rest return negative errno with a text. */

/* Maps the memory behind `fd`, which stays the caller's, at the mapping's address. */
int mapping_attach(struct vmm *v, struct mapping *m, int fd, uint32_t access);
/* The same where addresses were vacated. -EEXIST: somebody else has them now. */
int mapping_attach_vacant(struct vmm *v, struct mapping *m, int fd, uint32_t access);
/* Maps a handle that was imported before, and stays the caller's, with no access yet. */
int mapping_place(struct vmm *v, struct mapping *m, vmm_handle handle);

/* Gives every mapped one of them the access it wants: all or, with everything as it was, none. */
int mappings_apply(struct vmm *v, struct mapping *m, size_t n);

/* Unmaps what is mapped; goes on after a failure and returns the first. */
int mappings_unmap(struct vmm *v, struct mapping *m, size_t n);

/* The same to undo a failure, whose text stays. */
void mappings_undo(struct vmm *v, struct mapping *m, size_t n);

size_t mappings_mapped(const struct mapping *m, size_t n);
