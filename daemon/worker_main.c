// SPDX-License-Identifier: MIT
/*
 * The worker's side: one blocking loop, one request at a time, the driver in between. It serves frees even when its
 * device cannot be opened: closing a descriptor needs no driver.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "log.h"
#include "vmm.h"
#include "worker.h"

#define PROBE_MAX 64

struct server_end {
        struct vmm *vmm;
        struct fdset *doomed; /* to be closed once the daemon has closed its own */
        uint8_t buf[CHANNEL_FRAME_MAX];
};

/* 0, or nonzero when the daemon is gone. */
static int reply(Gms__Frame *frame, uint64_t serial, const struct fdset *fds) {
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        frame->serial = serial;
        int r = wire_pack(frame, fds ? fds->n : 0, &bytes, &len);
        if (r != 0)
                return r;
        do
                r = channel_send(WORKER_FD, bytes, len, fds);
        while (r == -EINTR || (r == CHANNEL_E_REFS && usleep(1000) == 0));
        return r;
}

static int reply_error(uint64_t serial, Gms__Status status, const char *text) {
        Gms__Frame f = GMS__FRAME__INIT;
        f.status = status;
        f.text = (char *)text;
        return reply(&f, serial, NULL);
}

static Gms__Status status_of(int r) {
        switch (r) {
        case VMM_E_NO_DRIVER:
        case VMM_E_NO_DEVICE:
                return GMS__STATUS__NO_DEVICE;
        case VMM_E_NO_MEMORY:
        case -ENOMEM:
                return GMS__STATUS__NO_MEMORY;
        case -EMFILE:
        case -ENFILE:
                return GMS__STATUS__LIMIT;
        case -EINVAL:
                return GMS__STATUS__INVALID;
        default:
                return GMS__STATUS__FAULTED;
        }
}

static void fill_device(Gms__Device *to, const struct vmm_device *from) {
        gms__device__init(to);
        to->name = (char *)from->name;
        to->uuid = (char *)from->uuid;
        to->model = (char *)from->model;
        to->total = from->total;
        to->granularity = from->granularity;
}

static int serve_probe(uint64_t serial) {
        struct vmm_device found[PROBE_MAX];
        Gms__Device devices[PROBE_MAX], *pointers[PROBE_MAX];
        char text[256] = "";
        size_t n;
        int r = vmm_probe(found, PROBE_MAX, &n, text, sizeof(text));
        if (r != 0)
                return reply_error(serial, status_of(r), text);

        n = MIN(n, (size_t)PROBE_MAX);
        for (size_t i = 0; i < n; i++) {
                fill_device(&devices[i], &found[i]);
                pointers[i] = &devices[i];
        }
        Gms__WorkDevices body = GMS__WORK_DEVICES__INIT;
        body.n_devices = n;
        body.devices = pointers;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WORK_DEVICES;
        f.work_devices = &body;
        return reply(&f, serial, NULL);
}

static int serve_open(struct server_end *s, uint64_t serial, const Gms__WorkOpen *request) {
        char text[256] = "";
        s->vmm = vmm_free(s->vmm);
        int r = vmm_open(&s->vmm, request->device, text, sizeof(text));
        if (r != 0)
                return reply_error(serial, status_of(r), *text ? text : strerror(r < 0 ? -r : ENODEV));

        Gms__Device device;
        fill_device(&device, &s->vmm->device);
        (void)vmm_room(s->vmm, &device.total, &device.free);
        Gms__WorkReady body = GMS__WORK_READY__INIT;
        body.device = &device;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WORK_READY;
        f.work_ready = &body;
        return reply(&f, serial, NULL);
}

static int reply_created(uint64_t serial, struct fdset **fds, bool last) {
        Gms__WorkCreated body = GMS__WORK_CREATED__INIT;
        body.last = last;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WORK_CREATED;
        f.work_created = &body;
        int r = reply(&f, serial, *fds);
        *fds = fdset_free(*fds);
        return r;
}

/* A create that must fail is expensive, and memory made for half a request is in everybody's way: look first. */
static bool has_room(struct vmm *v, const Gms__WorkCreate *request) {
        uint64_t wanted = 0, total, free;
        for (size_t i = 0; i < request->n_runs; i++)
                wanted += request->runs[i]->size * request->runs[i]->count;
        return vmm_room(v, &total, &free) != 0 || free >= wanted;
}

static int serve_create(struct server_end *s, uint64_t serial, const Gms__WorkCreate *request) {
        if (!s->vmm)
                return reply_error(serial, GMS__STATUS__FAULTED, "the device is not open");
        if (!has_room(s->vmm, request))
                return reply_error(serial, GMS__STATUS__NO_MEMORY, "the device has no room");

        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        for (size_t i = 0; i < request->n_runs; i++) {
                for (uint32_t k = 0; k < request->runs[i]->count; k++) {
                        int fd, r = 0;
                        if (fds && fds->n == FDSET_MAX)
                                r = reply_created(serial, &fds, false);
                        if (r != 0 || (!fds && (r = fdset_new(&fds, FDSET_MAX, true)) != 0))
                                return r;
                        r = vmm_create(s->vmm, request->runs[i]->size, &fd);
                        if (r != 0)
                                return reply_error(serial, status_of(r),
                                                   *s->vmm->text ? s->vmm->text : strerror(r < 0 ? -r : ENOMEM));
                        fdset_add(fds, fd);
                }
        }
        return reply_created(serial, &fds, true);
}

/* The last close is what frees, and what takes long: the daemon says when its own copies are gone. */
static int serve_free(struct server_end *s, uint64_t serial, struct fdset **fds) {
        if (*fds) {
                fdset_free(s->doomed);
                s->doomed = steal_ptr(fds);
                return 0;
        }
        Gms__WorkFreed body = GMS__WORK_FREED__INIT;
        body.count = s->doomed ? s->doomed->n : 0;
        s->doomed = fdset_free(s->doomed);
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WORK_FREED;
        f.work_freed = &body;
        return reply(&f, serial, NULL);
}

static int serve_query(struct server_end *s, uint64_t serial) {
        Gms__WorkRoom body = GMS__WORK_ROOM__INIT;
        if (!s->vmm || vmm_room(s->vmm, &body.total, &body.free) != 0)
                return reply_error(serial, GMS__STATUS__INTERNAL, "the device does not tell its free memory");
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WORK_ROOM;
        f.work_room = &body;
        return reply(&f, serial, NULL);
}

static int serve(struct server_end *s, const Gms__Frame *f, struct fdset **fds) {
        switch (f->body_case) {
        case GMS__FRAME__BODY_WORK_PROBE:
                return serve_probe(f->serial);
        case GMS__FRAME__BODY_WORK_OPEN:
                return serve_open(s, f->serial, f->work_open);
        case GMS__FRAME__BODY_WORK_CREATE:
                return serve_create(s, f->serial, f->work_create);
        case GMS__FRAME__BODY_WORK_FREE:
                return serve_free(s, f->serial, fds);
        case GMS__FRAME__BODY_WORK_QUERY:
                return serve_query(s, f->serial);
        default:
                return reply_error(f->serial, GMS__STATUS__INVALID, "not a worker's request");
        }
}

int worker_main(void) {
        /* The daemon's death ends the worker, also one that is stuck in its driver. */
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)prctl(PR_SET_NAME, "gmsd-worker");
        /* Ctrl-C goes to the whole group: the daemon decides when its workers end. */
        (void)signal(SIGINT, SIG_IGN);

        _cleanup_free_ struct server_end *s = calloc(1, sizeof(*s));
        if (!s)
                return 1;
        for (;;) {
                _cleanup_(fdset_freep) struct fdset *fds = NULL;
                _cleanup_frame_ Gms__Frame *frame = NULL;
                size_t len;
                int r = channel_recv(WORKER_FD, s->buf, &len, &fds);
                if (r == -EINTR)
                        continue;
                if (r != 0)
                        break;
                if (wire_unpack(s->buf, len, fds ? fds->n : 0, &frame) != 0)
                        break;
                if (serve(s, frame, &fds) != 0)
                        break;
        }
        s->vmm = vmm_free(s->vmm);
        return 0;
}
