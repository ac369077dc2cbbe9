// SPDX-License-Identifier: MIT
#pragma once
/*
 * What every room uses: ownership by scope, and a list.
 *
 * A variable declared _cleanup_close_, _cleanup_free_ ... is released when its scope ends, whichever way; steal_fd() and
 * steal_ptr() take the thing out of the variable so that it survives. Cleanups keep errno.
 */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((__cleanup__(f)))
#define _printf_(fmt, args) __attribute__((__format__(__printf__, fmt, args)))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

static inline int close_fd(int fd) {
        if (fd >= 0) {
                int saved = errno;
                (void)close(fd);
                errno = saved;
        }
        return -1;
}

static inline void close_fdp(int *fd) {
        *fd = close_fd(*fd);
}

static inline void freep(void *p) {
        int saved = errno;
        free(*(void **)p);
        errno = saved;
}

#define _cleanup_close_ _cleanup_(close_fdp)
#define _cleanup_free_ _cleanup_(freep)

static inline int steal_fd(int *fd) {
        int r = *fd;
        *fd = -1;
        return r;
}

static inline bool steal_flag(bool *flag) {
        bool r = *flag;
        *flag = false;
        return r;
}

#define steal_ptr(pp)                        \
        __extension__({                      \
                __typeof__(*(pp)) p_ = *(pp);\
                *(pp) = NULL;                \
                p_;                          \
        })

/* Rounds up to a multiple of `unit` (any number above 0). False when the result does not fit. */
static inline bool align_up(uint64_t value, uint64_t unit, uint64_t *ret_aligned) {
        uint64_t rest = value % unit;
        return rest == 0 ? (*ret_aligned = value, true) : !__builtin_add_overflow(value, unit - rest, ret_aligned);
}

/*
 * A circular doubly linked list. The head is a link of its own; a link that is in no list points at itself, so that
 * unlinking twice is harmless.
 */
struct list {
        struct list *prev, *next;
};

#define LIST_INIT(name) { &(name), &(name) }

static inline void list_init(struct list *l) {
        l->prev = l->next = l;
}

static inline bool list_empty(const struct list *l) {
        return l->next == l;
}

static inline void list_append(struct list *head, struct list *l) {
        l->prev = head->prev;
        l->next = head;
        head->prev->next = l;
        head->prev = l;
}

static inline void list_unlink(struct list *l) {
        l->prev->next = l->next;
        l->next->prev = l->prev;
        list_init(l);
}

#define list_entry(l, type, member) container_of(l, type, member)
#define list_first(head, type, member) (list_empty(head) ? NULL : list_entry((head)->next, type, member))
#define list_for(it, head, type, member)                                                   \
        for (type *it = list_entry((head)->next, type, member); &it->member != (head);      \
             it = list_entry(it->member.next, type, member))
/* The current entry may be unlinked or freed. */
#define list_for_safe(it, head, type, member)                                              \
        for (type *it = list_entry((head)->next, type, member),                             \
                  *it##_next = list_entry(it->member.next, type, member);                   \
             &it->member != (head);                                                         \
             it = it##_next, it##_next = list_entry(it->member.next, type, member))
