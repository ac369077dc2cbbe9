// SPDX-License-Identifier: MIT
#pragma once
/*
 * A file that is read in large ranges by many threads at once, once: what the page cache has comes from there, what it has not
 * comes from the disk past it (O_DIRECT), so that a model does not push out what others keep there.
 *
 * Where the kernel cannot say what is cached (RWF_NOWAIT: tmpfs, NFS), all is read the ordinary way; so is what O_DIRECT
 * refuses, such as the end of a file on some file systems. Descriptors are opened once; reading is thread-safe.
 */
#include <sys/stat.h>

#include "base.h"

#define READER_ALIGN 4096u /* of places in the file and in memory, for O_DIRECT */

struct reader {
        char *path;
        int fd;
        int direct_fd; /* -1: only the ordinary way */
        uint64_t size;
        struct stat stat; /* when it was opened */
};

/* All of these return 0 or a negative errno, with a text that names the file. */

/* -ENOENT and what else open() says; -EBADMSG no regular file. A reader that failed to open, or is all 0, may be closed. */
int reader_open(struct reader *r, const char *path);
void reader_close(struct reader *r);

/* Reads just so, wherever it comes from. -EBADMSG: the file ends before that; -EIO. */
int reader_read(const struct reader *r, void *to, uint64_t offset, size_t n);

/*
 * Reads it if all of it is in the page cache, as far as anybody can tell: 1. Else 0, nothing is known of `to`, and the kernel
 * begins to fetch what it lacks: ask for a byte before asking for much. -EBADMSG, -EIO.
 */
int reader_try(const struct reader *r, void *to, uint64_t offset, size_t n);

/*
 * Reads from the disk. `to` lies at a multiple of READER_ALIGN as `offset` does, or behind one by as much, and the bytes around
 * it up to such multiples are the reader's, too. *ret_direct: how many came past the page cache. -EBADMSG, -EIO.
 */
int reader_direct(const struct reader *r, void *to, uint64_t offset, size_t n, uint64_t *ret_direct);

/* Whether the file is still what was opened: -EBADMSG. */
int reader_check(const struct reader *r);
