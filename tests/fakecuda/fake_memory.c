// SPDX-License-Identifier: MIT
#include "fake_memory.h"

#include <sys/file.h>
#include <sys/stat.h>

#define LINES 65536

struct line {
        uint64_t offset;
        _Atomic uint64_t size; /* written last, cleared first: 0 is a free line, whenever a process was killed */
};

struct ledger {
        uint64_t end;   /* of all ranges given out so far */
        uint32_t lines; /* that were ever used */
        struct line line[LINES];
};

struct fake_memory {
        char path[4096]; /* of the arena */
        int arena_fd;    /* to ask for locks; holds none */
        int ledger_fd;   /* to lock the ledger */
        struct ledger *ledger;
        struct stat arena;
};

static int open_part(unsigned index, const char *part, char path[static 4096]) {
        (void)snprintf(path, 4096, "%s/gpu%u.%s", fake_dir(), index, part);
        return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
}

struct fake_memory *fake_memory_open(unsigned index) {
        char path[4096];
        struct fake_memory *m = calloc(1, sizeof(*m));
        if (!m)
                return NULL;
        m->arena_fd = open_part(index, "memory", m->path);
        m->ledger_fd = open_part(index, "ledger", path);
        if (m->arena_fd < 0 || m->ledger_fd < 0 || fstat(m->arena_fd, &m->arena) < 0 ||
            ftruncate(m->ledger_fd, sizeof(struct ledger)) < 0)
                goto failed;
        m->ledger = mmap(NULL, sizeof(struct ledger), PROT_READ | PROT_WRITE, MAP_SHARED, m->ledger_fd, 0);
        if (m->ledger != MAP_FAILED)
                return m;
failed:
        close_fd(m->arena_fd);
        close_fd(m->ledger_fd);
        free(m);
        return NULL;
}

/* The lock goes with its holder: a killed process cannot leave the ledger locked. */
static void lock_ledger(struct fake_memory *m) {
        while (flock(m->ledger_fd, LOCK_EX) < 0 && errno == EINTR)
                ;
}

static void unlock_ledger(struct fake_memory *m) {
        (void)flock(m->ledger_fd, LOCK_UN);
}

static struct flock range_lock(uint64_t offset, uint64_t size) {
        return (struct flock){
                .l_type = F_WRLCK,
                .l_whence = SEEK_SET,
                .l_start = (off_t)offset,
                .l_len = (off_t)size,
        };
}

/* Strikes out what nobody holds any more. */
static void purge(struct fake_memory *m) {
        for (uint32_t i = 0; i < m->ledger->lines; i++) {
                struct line *line = &m->ledger->line[i];
                if (line->size == 0)
                        continue;
                struct flock lock = range_lock(line->offset, line->size);
                if (fcntl(m->arena_fd, F_OFD_GETLK, &lock) < 0 || lock.l_type != F_UNLCK)
                        continue;
                (void)fallocate(m->arena_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)line->offset,
                                (off_t)line->size);
                line->size = 0;
        }
}

static uint64_t given_out(struct fake_memory *m, unsigned *ret_allocations) {
        uint64_t sum = 0;
        unsigned n = 0;
        for (uint32_t i = 0; i < m->ledger->lines; i++) {
                sum += m->ledger->line[i].size;
                n += m->ledger->line[i].size != 0;
        }
        *ret_allocations = n;
        return sum;
}

static bool has_room(struct fake_memory *m, uint64_t size) {
        unsigned n;
        uint64_t capacity = fake_capacity();
        return size <= capacity && given_out(m, &n) <= capacity - size;
}

static struct line *free_line(struct fake_memory *m) {
        for (uint32_t i = 0; i < m->ledger->lines; i++)
                if (m->ledger->line[i].size == 0)
                        return &m->ledger->line[i];
        return m->ledger->lines < LINES ? &m->ledger->line[m->ledger->lines++] : NULL;
}

static int create_locked(struct fake_memory *m, uint64_t size, int *ret_fd, uint64_t *ret_offset) {
        if (!has_room(m, size))
                purge(m);
        struct line *line = has_room(m, size) ? free_line(m) : NULL;
        if (!line)
                return -ENOMEM;

        _cleanup_close_ int fd = open(m->path, O_RDWR | O_CLOEXEC);
        uint64_t offset = m->ledger->end;
        struct flock lock = range_lock(offset, size);
        if (fd < 0 || ftruncate(fd, (off_t)(offset + size)) < 0 || fcntl(fd, F_OFD_SETLK, &lock) < 0 ||
            lseek(fd, line - m->ledger->line, SEEK_SET) < 0)
                return -errno;
        m->ledger->end = offset + size;
        line->offset = offset;
        line->size = size;
        *ret_fd = steal_fd(&fd);
        *ret_offset = offset;
        return 0;
}

int fake_memory_create(struct fake_memory *m, uint64_t size, int *ret_fd, uint64_t *ret_offset) {
        lock_ledger(m);
        int r = create_locked(m, size, ret_fd, ret_offset);
        unlock_ledger(m);
        return r;
}

bool fake_memory_find(struct fake_memory *m, int fd, uint64_t *ret_offset, uint64_t *ret_size) {
        struct stat st;
        if (fstat(fd, &st) < 0 || st.st_dev != m->arena.st_dev || st.st_ino != m->arena.st_ino)
                return false;
        off_t line = lseek(fd, 0, SEEK_CUR);
        if (line < 0 || line >= LINES || m->ledger->line[line].size == 0)
                return false;
        *ret_offset = m->ledger->line[line].offset;
        *ret_size = m->ledger->line[line].size;
        return true;
}

uint64_t fake_memory_room(struct fake_memory *m, unsigned *ret_allocations) {
        lock_ledger(m);
        purge(m);
        uint64_t used = given_out(m, ret_allocations);
        unlock_ledger(m);
        return fake_capacity() > used ? fake_capacity() - used : 0;
}
