// SPDX-License-Identifier: MIT
#include "journal.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#define PAGE 4096u
#define FILE_MAGIC UINT64_C(0x31304c4e4a534d47) /* "GMSJNL01" */
#define RECORD_MAGIC 0x4a524543u
#define RECORD_MAX (UINT32_MAX - PAGE) /* a store's image, with four generations of 64 MiB of metadata, and more */

struct journal_page {
        uint64_t magic;
        uint64_t alive; /* written by the daemon, read by the next one */
};

/* In front of each record, in the byte order of the machine: a journal never leaves it. */
struct record_head {
        uint32_t magic;
        uint32_t len;
        uint64_t number;
        uint64_t checksum; /* XXH3-64 of number, len and the bytes */
};

static uint64_t checksum(const struct record_head *h, const uint8_t *bytes) {
        XXH3_state_t state;
        XXH3_64bits_reset(&state);
        XXH3_64bits_update(&state, &h->number, sizeof(h->number));
        XXH3_64bits_update(&state, &h->len, sizeof(h->len));
        XXH3_64bits_update(&state, bytes, h->len);
        return XXH3_64bits_digest(&state);
}

static int journal_make(struct journal **ret_journal, int *fd) {
        struct journal *j = calloc(1, sizeof(*j));
        if (!j)
                return -ENOMEM;
        j->page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
        if (j->page == MAP_FAILED) {
                free(j);
                return -errno;
        }
        j->fd = steal_fd(fd);
        j->end = PAGE;
        *ret_journal = j;
        return 0;
}

int journal_new(struct journal **ret_journal) {
        _cleanup_close_ int fd = memfd_create("gmsd-journal", MFD_CLOEXEC);
        if (fd < 0)
                return -errno;
        if (ftruncate(fd, PAGE) < 0)
                return -errno;
        int r = journal_make(ret_journal, &fd);
        if (r == 0)
                (*ret_journal)->page->magic = FILE_MAGIC;
        return r;
}

int journal_open_consume(struct journal **ret_journal, int fd_in) {
        _cleanup_close_ int fd = fd_in;
        struct stat st;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) || st.st_size < (off_t)PAGE)
                return JOURNAL_E_FOREIGN;
        struct journal *j = NULL;
        int r = journal_make(&j, &fd);
        if (r < 0)
                return r;
        assert(j);
        if (j->page->magic != FILE_MAGIC) {
                journal_free(j);
                return JOURNAL_E_FOREIGN;
        }
        *ret_journal = j;
        return 0;
}

struct journal *journal_free(struct journal *j) {
        if (!j)
                return NULL;
        (void)munmap(j->page, PAGE);
        close_fd(j->fd);
        free(j);
        return NULL;
}

/* A record that was cut off while it was written fails its checksum, and reads as the end. */
int journal_append(struct journal *j, const uint8_t *bytes, size_t len) {
        if (len > RECORD_MAX)
                return -EMSGSIZE;
        struct record_head h = { .magic = RECORD_MAGIC, .len = (uint32_t)len, .number = j->number + 1 };
        h.checksum = checksum(&h, bytes);
        struct iovec iov[] = {
                { .iov_base = &h, .iov_len = sizeof(h) },
                { .iov_base = (void *)bytes, .iov_len = len },
        };
        ssize_t n = pwritev(j->fd, iov, ARRAY_SIZE(iov), (off_t)j->end);
        if (n != (ssize_t)(sizeof(h) + len)) {
                int r = n < 0 ? -errno : -ENOSPC;
                (void)!ftruncate(j->fd, (off_t)j->end);
                return r;
        }
        j->end += sizeof(h) + len;
        j->number++;
        return 0;
}

static int read_all(int fd, void *bytes, size_t len, uint64_t at) {
        while (len > 0) {
                ssize_t n = pread(fd, bytes, len, (off_t)at);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? -errno : JOURNAL_E_END;
                bytes = (uint8_t *)bytes + n;
                at += (uint64_t)n;
                len -= (size_t)n;
        }
        return 0;
}

/* The record at `at`, if there is a good one. 0, JOURNAL_E_TAIL (no good one), negative errno. */
static int read_at(const struct journal *j, uint64_t at, uint64_t size, struct record_head *h, uint8_t **ret_bytes) {
        int r = at + sizeof(*h) <= size ? read_all(j->fd, h, sizeof(*h), at) : JOURNAL_E_TAIL;
        if (r != 0)
                return r < 0 ? r : JOURNAL_E_TAIL;
        if (h->magic != RECORD_MAGIC || h->len > size - at - sizeof(*h))
                return JOURNAL_E_TAIL;
        _cleanup_free_ uint8_t *bytes = malloc(h->len ? h->len : 1);
        if (!bytes)
                return -ENOMEM;
        r = read_all(j->fd, bytes, h->len, at + sizeof(*h));
        if (r != 0)
                return r < 0 ? r : JOURNAL_E_TAIL;
        if (checksum(h, bytes) != h->checksum)
                return JOURNAL_E_TAIL;
        *ret_bytes = steal_ptr(&bytes);
        return 0;
}

/* Whether a good record stands anywhere behind `at`. */
static bool readable_behind(const struct journal *j, uint64_t at, uint64_t size) {
        static const uint32_t magic = RECORD_MAGIC;
        const uint8_t *file = mmap(NULL, size, PROT_READ, MAP_SHARED, j->fd, 0);
        if (file == MAP_FAILED)
                return true; /* not known: the cautious answer */
        bool found = false;
        for (const uint8_t *p = file + at; !found && ++p < file + size;) {
                struct record_head h;
                _cleanup_free_ uint8_t *bytes = NULL;
                p = memmem(p, (size_t)(file + size - p), &magic, sizeof(magic));
                if (!p)
                        break;
                found = read_at(j, (uint64_t)(p - file), size, &h, &bytes) == 0 && h.number > j->number;
        }
        (void)munmap((void *)file, size);
        return found;
}

int journal_read(struct journal *j, uint64_t *at, uint8_t **ret_bytes, size_t *ret_len) {
        struct stat st;
        struct record_head h;
        if (fstat(j->fd, &st) < 0)
                return -errno;
        uint64_t size = (uint64_t)st.st_size;
        if (*at == 0) {
                *at = PAGE;
                j->number = 0;
        }
        if (*at >= size)
                return JOURNAL_E_END;

        _cleanup_free_ uint8_t *bytes = NULL;
        int r = read_at(j, *at, size, &h, &bytes);
        if (r == 0 && h.number != j->number + 1)
                r = JOURNAL_E_TAIL;
        if (r == JOURNAL_E_TAIL)
                return readable_behind(j, *at, size) ? JOURNAL_E_MIDDLE : JOURNAL_E_TAIL;
        if (r < 0)
                return r;
        *at += sizeof(h) + h.len;
        j->number = h.number;
        j->end = *at;
        *ret_len = h.len;
        *ret_bytes = steal_ptr(&bytes);
        return 0;
}

void journal_alive(struct journal *j, uint64_t now) {
        j->page->alive = now;
}

uint64_t journal_last_alive(const struct journal *j) {
        return j->page->alive;
}
