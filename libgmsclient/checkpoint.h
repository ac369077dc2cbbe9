// SPDX-License-Identifier: MIT
#pragma once
/*
 * A checkpoint: safetensors files that belong together, and the transfer of their tensors to a store, or their comparison with
 * one. checkpoint.c knows the files, transfer.c the work.
 *
 * The work is cut into units: runs of neighbouring leaves (digest.h) of one file that fit a stage. They are dealt: the first
 * of each file, then the second of each, so that files on several disks are read at once; threads take them by a counter.
 * Nothing else is shared until one fails. Each reads its unit into a stage, hashes the leaves while they are in the
 * processor's cache, queues the copies to the tensors' places and goes on with its other stage.
 */
#include <pthread.h>

#include "digest.h"
#include "error.h"
#include "reader.h"
#include "safetensors.h"

/*
 * Page-locking a stage costs time, for which no thread can do anything else: on an H200's machine 0.15 ms a MiB and 0.3 ms for
 * its stream. Copies below 3 MiB do not fill the link. Of 1, 2, 3, 7 and 15 leaves a unit, 3 were the fastest there.
 */
#define CHECKPOINT_STAGE (UINT64_C(4) << 20)
#define CHECKPOINT_UNIT (CHECKPOINT_STAGE - 2 * READER_ALIGN) /* what fits a stage wherever it begins in the file */
_Static_assert(CHECKPOINT_UNIT >= DIGEST_LEAF, "a unit has at least one leaf");

struct checkpoint_file {
        struct reader reader;
        struct safetensors header;
};

struct checkpoint_tensor {
        const struct safetensors_tensor *is;
        const struct checkpoint_file *file;
        size_t leaf;      /* its first in checkpoint.leaves */
        uint64_t address; /* where its bytes are in the store */
        uint64_t slot, offset;
};

struct checkpoint_unit {
        const struct checkpoint_tensor *tensor; /* that the first byte belongs to */
        uint64_t begin, end;                    /* in its file */
        size_t turn;                            /* its number there */
};

enum checkpoint_purpose { CHECKPOINT_IDLE, CHECKPOINT_LOADS, CHECKPOINT_VERIFIES };

struct gms_checkpoint {
        pid_t pid;
        struct checkpoint_file *files;
        size_t n_files;
        struct checkpoint_tensor *tensors; /* file by file, as they lie there */
        struct checkpoint_tensor **by_name;
        size_t n_tensors;
        struct checkpoint_unit *units;
        size_t n_units;
        XXH128_canonical_t *leaves;
        size_t n_leaves;
        uint64_t total; /* bytes of all tensors */

        /* the transfer */
        enum checkpoint_purpose purpose;
        struct gms *gms;
        struct vmm *vmm; /* the handle's; threads use it for stages only */
        struct gms_pool *pool; /* while what is loaded is not in the layout yet */
        size_t next;      /* unit; atomic, as are those below */
        unsigned working; /* threads */
        uint64_t done, direct;
        bool cancelled;
        size_t failed;    /* the first unit that failed, SIZE_MAX so far; those before it are still worked on */
        pthread_mutex_t mutex; /* what failed there: */
        int error;
        struct error_saved text;
};

/* Gives back what tensors were placed in, as far as the session still can. Keeps the thread's last text. */
void checkpoint_unplace(struct gms_checkpoint *c);

static inline uint64_t checkpoint_bytes(const struct checkpoint_tensor *t) {
        return t->is->end - t->is->begin;
}
