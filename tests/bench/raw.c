// SPDX-License-Identifier: MIT
#include "raw.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

bool raw_try_open(struct raw *r, const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        *r = (struct raw){ .fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0) };
        if (r->fd < 0)
                bench_die("socket: %s", strerror(errno));
        if (connect(r->fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
                return true;
        if (errno != ENOENT && errno != ECONNREFUSED)
                bench_die("connect to %s: %s", path, strerror(errno));
        raw_close(r);
        return false;
}

void raw_open(struct raw *r, const char *path) {
        if (!raw_try_open(r, path))
                bench_die("connect to %s: nobody listens", path);
}

void raw_close(struct raw *r) {
        r->fd = close_fd(r->fd);
        free(steal_ptr(&r->last));
}

void raw_send(struct raw *r, Gms__Frame *request) {
        free(steal_ptr(&r->last));
        request->serial = ++r->serial;
        int e = wire_pack(request, 0, &r->last, &r->sent);
        if (e == 0)
                e = channel_send(r->fd, r->last, r->sent, NULL);
        if (e != 0)
                bench_die("a request cannot be sent: %d", e);
}

Gms__Frame *raw_receive(struct raw *r, struct fdset **ret_fds) {
        static uint8_t buf[CHANNEL_FRAME_MAX];
        for (;;) {
                _cleanup_frame_ Gms__Frame *frame = NULL;
                _cleanup_(fdset_freep) struct fdset *fds = NULL;
                int e = channel_recv(r->fd, buf, &r->received, &fds);
                if (e != 0 || wire_unpack(buf, r->received, fds ? fds->n : 0, &frame) != 0)
                        bench_die("no answer from gmsd: %d", e);
                bool resumed = frame->serial == 0 && frame->event && frame->event->kind == GMS__EVENT__KIND__RESUMED;
                if (resumed && channel_send(r->fd, r->last, r->sent, NULL) != 0)
                        bench_die("a request cannot be sent again");
                if (frame->serial == 0)
                        continue;
                if (frame->status != GMS__STATUS__OK)
                        bench_die("gmsd refuses: %s", frame->text);
                if (frame->serial != r->serial || (fds && !ret_fds))
                        bench_die("gmsd answers what was not asked");
                if (ret_fds)
                        *ret_fds = steal_ptr(&fds);
                return steal_ptr(&frame);
        }
}

Gms__Frame *raw_call(struct raw *r, Gms__Frame *request, struct fdset **ret_fds) {
        raw_send(r, request);
        return raw_receive(r, ret_fds);
}

void raw_send_hello(struct raw *r, const char *store, Gms__Mode mode) {
        Gms__Hello hello = GMS__HELLO__INIT;
        hello.protocol_min = WIRE_PROTOCOL_MIN;
        hello.protocol_max = WIRE_PROTOCOL_MAX;
        hello.label = (char *)"bench";
        hello.store = (char *)(store ? store : "");
        hello.mode = mode;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_HELLO;
        f.hello = &hello;
        raw_send(r, &f);
}

void raw_hello(struct raw *r, const char *store, Gms__Mode mode) {
        raw_send_hello(r, store, mode);
        raw_drop(raw_receive(r, NULL));
}

void raw_state(struct raw *r) {
        Gms__State state = GMS__STATE__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_STATE;
        f.state = &state;
        raw_drop(raw_call(r, &f, NULL));
}

void raw_first_device(struct raw *r, char *ret_name, size_t size, uint64_t *ret_owned) {
        Gms__ListDevices list = GMS__LIST_DEVICES__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_LIST_DEVICES;
        f.list_devices = &list;
        _cleanup_frame_ Gms__Frame *answer = raw_call(r, &f, NULL);
        if (answer->body_case != GMS__FRAME__BODY_DEVICES || answer->devices->n_devices == 0)
                bench_die("gmsd shows no device");
        const Gms__Device *d = answer->devices->devices[0];
        if (ret_name)
                (void)snprintf(ret_name, size, "%s", d->name);
        if (ret_owned)
                *ret_owned = d->owned;
}

/* ---- allocations */

/* Hands over a set's descriptors, or closes them. */
static uint32_t keep(struct fdset *fds, int *ret_fds) {
        uint32_t n = fds ? fds->n : 0;
        for (uint32_t i = 0; ret_fds && i < n; i++)
                ret_fds[i] = fdset_steal(fds, i);
        fdset_free(fds);
        return n;
}

void raw_pull(struct raw *r, uint32_t first, uint32_t n, int *ret_fds) {
        while (first < n) {
                Gms__Page page = GMS__PAGE__INIT;
                page.first = first;
                page.count = MIN(n - first, FDSET_MAX);
                page.descriptors = true;
                Gms__Frame f = GMS__FRAME__INIT;
                f.body_case = GMS__FRAME__BODY_PAGE;
                f.page = &page;
                struct fdset *fds = NULL;
                raw_drop(raw_call(r, &f, &fds));
                uint32_t got = keep(fds, ret_fds ? &ret_fds[first] : NULL);
                if (got == 0)
                        bench_die("a page without descriptors");
                first += got;
        }
}

void raw_send_allocate(struct raw *r, uint32_t n, uint64_t size) {
        Gms__Allocate__Item item = GMS__ALLOCATE__ITEM__INIT, *items[] = { &item };
        item.size = size;
        item.count = n;
        Gms__Allocate allocate = GMS__ALLOCATE__INIT;
        allocate.n_items = 1;
        allocate.items = items;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_ALLOCATE;
        f.allocate = &allocate;
        raw_send(r, &f);
}

uint64_t raw_allocate(struct raw *r, uint32_t n, uint64_t size, int *ret_fds) {
        raw_send_allocate(r, n, size);
        struct fdset *fds = NULL;
        _cleanup_frame_ Gms__Frame *answer = raw_receive(r, &fds);
        if (answer->body_case != GMS__FRAME__BODY_ALLOCATED || answer->allocated->count != n)
                bench_die("gmsd allocates what was not asked");
        raw_pull(r, keep(fds, ret_fds), n, ret_fds);
        return answer->allocated->first_id;
}

void raw_publish(struct raw *r) {
        Gms__Commit commit = GMS__COMMIT__INIT;
        commit.leave = true;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_COMMIT;
        f.commit = &commit;
        raw_drop(raw_call(r, &f, NULL));
        raw_close(r);
}
