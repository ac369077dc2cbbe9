// SPDX-License-Identifier: MIT
#include "listing.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "wire.h"

#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

struct head {
        uint64_t slot, offset;
        uint32_t key_size, value_size;
};

size_t listing_size(size_t key_size, size_t value_size) {
        return (sizeof(struct head) + key_size + 1 + value_size + 7) & ~(size_t)7;
}

size_t listing_pack(uint8_t *at, const struct listing_entry *e) {
        struct head head = { e->slot, e->offset, e->key_size, e->value_size };
        size_t size = listing_size(e->key_size, e->value_size), used = sizeof(head) + e->key_size + 1;
        memcpy(at, &head, sizeof(head));
        memcpy(at + sizeof(head), e->key, e->key_size + 1);
        if (e->value_size > 0)
                memcpy(at + used, e->value, e->value_size);
        used += e->value_size;
        memset(at + used, 0, size - used);
        return size;
}

int listing_seal(const uint8_t *bytes, size_t size, int *ret_fd) {
        _cleanup_close_ int fd = memfd_create("gms-listing", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd < 0)
                return -errno;
        for (size_t done = 0; done < size;) {
                ssize_t n = write(fd, bytes + done, size - done);
                if (n < 0 && errno != EINTR)
                        return -errno;
                done += n > 0 ? (size_t)n : 0;
        }
        if (fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) < 0)
                return -errno;
        *ret_fd = steal_fd(&fd);
        return 0;
}

int listing_map(struct listing *ret_listing, int fd, uint64_t size) {
        struct stat st;
        int seals = fcntl(fd, F_GET_SEALS); /* fails on what is no memfd */
        if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0)
                return LISTING_E_MALFORMED;
        if (size == 0 || size > LISTING_MAX || (uint64_t)st.st_size < size)
                return LISTING_E_MALFORMED;
        void *at = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
        if (at == MAP_FAILED)
                return -errno;
        *ret_listing = (struct listing){ .bytes = at, .size = size };
        return 0;
}

void listing_unmap(struct listing *l) {
        if (l->bytes)
                (void)munmap((void *)l->bytes, l->size);
        *l = (struct listing){};
}

int listing_next(struct listing *l, struct listing_entry *ret, bool *ret_more) {
        struct head head;
        size_t left = l->size - l->next;
        *ret_more = left > 0;
        if (left == 0)
                return 0;
        if (left < sizeof(head))
                return LISTING_E_MALFORMED;
        memcpy(&head, l->bytes + l->next, sizeof(head));
        if (head.key_size > WIRE_KEY_MAX || head.value_size > WIRE_VALUE_MAX)
                return LISTING_E_MALFORMED;
        size_t size = listing_size(head.key_size, head.value_size);
        const char *key = (const char *)l->bytes + l->next + sizeof(head);
        if (size > left || strnlen(key, head.key_size + 1) != head.key_size)
                return LISTING_E_MALFORMED;

        *ret = (struct listing_entry){
                .slot = head.slot,
                .offset = head.offset,
                .key_size = head.key_size,
                .value_size = head.value_size,
                .key = key,
                .value = key + head.key_size + 1,
        };
        l->next += size;
        return 0;
}
