// SPDX-License-Identifier: MIT
#include "pages.h"

#include <string.h>

#include "error.h"
#include "gmsclient.h"

static int broken(const char *what) {
        return error_set(-EPROTO, "the daemon sent a page of allocations that makes no sense: %s", what);
}

static int page_check(struct pages *p, const Gms__Allocations *page, uint64_t asked) {
        if (page->n_allocations > asked || (page->n_allocations == 0 && p->next < page->total))
                return broken("not as many as asked for");
        if ((p->fds ? p->fds->n : 0) != (p->descriptors ? page->n_allocations : 0))
                return broken("not one descriptor for each");
        if (p->started && (page->total != p->total || page->generation != p->seen || page->layout != p->layout))
                return p->store ? error_set(-EAGAIN, "the layout of %s was replaced while it was read; try again", p->store)
                                : broken("the layout changed under the session");
        for (size_t i = 0; i < page->n_allocations; i++) {
                const Gms__Allocation *a = page->allocations[i];
                if ((p->started || i > 0) && a->slot <= p->last_slot)
                        return broken("slots do not ascend");
                if (a->size == 0 || a->aligned_size < a->size || strlen(a->tag) >= GMS_TAG_SIZE)
                        return broken("a size or a tag is out of bounds");
                p->last_slot = a->slot;
        }
        p->total = page->total;
        p->seen = page->generation;
        p->layout = page->layout;
        p->started = true;
        return 0;
}

static int page_get(struct pages *p) {
        wire_free(&p->frame);
        p->fds = fdset_free(p->fds);
        p->i = 0;

        Gms__Page page = GMS__PAGE__INIT;
        page.first = p->next;
        page.count = (uint32_t)MIN(p->end - p->next, (uint64_t)FDSET_MAX);
        page.descriptors = p->descriptors;
        page.generation = p->generation;
        page.store = (char *)(p->store ? p->store : "");
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_PAGE;
        request.page = &page;

        int r = conn_call(p->conn, &request, GMS__FRAME__BODY_ALLOCATIONS, 0, &p->frame, &p->fds);
        if (r == 0)
                r = page_check(p, p->frame->allocations, page.count);
        if (r < 0) {
                wire_free(&p->frame);
                p->fds = fdset_free(p->fds);
        }
        return r;
}

int pages_next(struct pages *p, const Gms__Allocation **ret_allocation, int *ret_fd) {
        if (p->next >= p->end || (p->started && p->next >= p->total))
                return 0;
        if (!p->frame || p->i == p->frame->allocations->n_allocations) {
                int r = page_get(p);
                if (r < 0)
                        return r;
                if (p->frame->allocations->n_allocations == 0)
                        return 0;
        }
        *ret_allocation = p->frame->allocations->allocations[p->i];
        if (ret_fd)
                *ret_fd = p->descriptors ? p->fds->fds[p->i] : -1;
        p->i++;
        p->next++;
        return 1;
}

int pages_steal(struct pages *p) {
        assert(p->descriptors && p->i > 0);
        return fdset_steal(p->fds, (unsigned)p->i - 1);
}

void pages_done(struct pages *p) {
        wire_free(&p->frame);
        p->fds = fdset_free(p->fds);
}
