// SPDX-License-Identifier: MIT
#include "reader.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include "error.h"

int reader_open(struct reader *r, const char *path) {
        char again[64], probe;
        *r = (struct reader){ .path = strdup(path), .fd = -1, .direct_fd = -1 };
        if (!r->path)
                return error_errno(-ENOMEM, path);
        r->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not be waited for */
        if (r->fd < 0 || fstat(r->fd, &r->stat) < 0)
                return error_errno(-errno, path);
        if (!S_ISREG(r->stat.st_mode))
                return error_set(-EBADMSG, "%.300s: not a regular file", path);
        r->size = (uint64_t)r->stat.st_size;

        struct iovec v = { &probe, 1 };
        if (preadv2(r->fd, &v, 1, 0, RWF_NOWAIT) < 0 && errno != EAGAIN)
                return 0;
        /* By what is open, so that it is the same file whatever became of the path. */
        (void)snprintf(again, sizeof(again), "/proc/self/fd/%d", r->fd);
        r->direct_fd = open(again, O_RDONLY | O_CLOEXEC | O_DIRECT);
        return r->direct_fd < 0 && (errno == EMFILE || errno == ENFILE) ? error_errno(-errno, path) : 0;
}

void reader_close(struct reader *r) {
        if (!r->path)
                return;
        r->fd = close_fd(r->fd);
        r->direct_fd = close_fd(r->direct_fd);
        free(r->path);
        *r = (struct reader){ .fd = -1, .direct_fd = -1 };
}

int reader_read(const struct reader *r, void *to, uint64_t offset, size_t n) {
        for (size_t done = 0; done < n;) {
                ssize_t got = pread(r->fd, (char *)to + done, n - done, (off_t)(offset + done));
                if (got < 0 && errno == EINTR)
                        continue;
                if (got < 0)
                        return error_set(-EIO, "%.300s: reading at byte %" PRIu64 ": %s", r->path, offset + done,
                                         strerror(errno));
                if (got == 0)
                        return error_set(-EBADMSG, "%.300s: it ends at byte %" PRIu64 " now, and had %" PRIu64
                                         ": it was changed while it was read", r->path, offset + done, r->size);
                done += (size_t)got;
        }
        return 0;
}

int reader_try(const struct reader *r, void *to, uint64_t offset, size_t n) {
        if (r->direct_fd < 0) {
                int e = reader_read(r, to, offset, n);
                return e < 0 ? e : 1;
        }
        for (size_t done = 0; done < n;) {
                struct iovec v = { (char *)to + done, n - done };
                ssize_t got = preadv2(r->fd, &v, 1, (off_t)(offset + done), RWF_NOWAIT);
                if (got <= 0 && !(got < 0 && errno == EINTR))
                        return 0;
                done += got > 0 ? (size_t)got : 0;
        }
        return 1;
}

int reader_direct(const struct reader *r, void *to, uint64_t offset, size_t n, uint64_t *ret_direct) {
        uint64_t begin = offset / READER_ALIGN * READER_ALIGN, end, before = offset - begin;
        size_t done = 0; /* from `begin` */
        assert(((uintptr_t)to - before) % READER_ALIGN == 0);
        *ret_direct = 0;
        if (r->direct_fd >= 0 && align_up(offset + n, READER_ALIGN, &end)) {
                ssize_t got = 1;
                for (; got > 0 && done < before + n; done += got > 0 ? (size_t)got : 0)
                        do
                                got = pread(r->direct_fd, (char *)to - before + done, (size_t)(end - begin) - done,
                                            (off_t)(begin + done));
                        while (got < 0 && errno == EINTR);
                done = MIN(done, before + n);
                *ret_direct = done > before ? done - before : 0;
        }
        /* What is missing: the file's end, or an error that the ordinary way has too, and says. */
        return reader_read(r, (char *)to + *ret_direct, offset + *ret_direct, n - (size_t)*ret_direct);
}

int reader_check(const struct reader *r) {
        struct stat now;
        if (fstat(r->fd, &now) < 0)
                return error_errno(-errno, r->path);
        if (now.st_size != r->stat.st_size || now.st_mtim.tv_sec != r->stat.st_mtim.tv_sec ||
            now.st_mtim.tv_nsec != r->stat.st_mtim.tv_nsec)
                return error_set(-EBADMSG, "%.300s: it was changed while it was read", r->path);
        return 0;
}
