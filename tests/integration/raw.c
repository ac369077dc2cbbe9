// SPDX-License-Identifier: MIT
#include "raw.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

struct raw control = RAW;

/* ---- frames */

bool raw_try(struct raw *r, const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        *r = (struct raw){ .fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0) };
        ck_assert_int_ge(r->fd, 0);
        if (connect(r->fd, (struct sockaddr *)&address, sizeof(address)) == 0)
                return true;
        r->fd = close_fd(r->fd);
        return false;
}

void raw_connect(struct raw *r) {
        ck_assert_msg(raw_try(r, m.socket), "%s: %s", m.socket, strerror(errno));
}

static void raw_forget(struct raw *r) {
        wire_free(&r->reply);
        r->fds = fdset_free(r->fds);
}

void raw_close(struct raw *r) {
        raw_forget(r);
        if (r->fd >= 0)
                (void)shutdown(r->fd, SHUT_RDWR); /* a child may hold a copy */
        r->fd = close_fd(r->fd);
}

int raw_send(struct raw *r, const void *bytes, size_t len, const int *fds, unsigned n_fds) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(300 * sizeof(int))];
        } cmsg;
        struct iovec iov = { .iov_base = (void *)bytes, .iov_len = len };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ck_assert_uint_le(n_fds, 300);
        if (n_fds > 0) {
                msg.msg_control = &cmsg;
                msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
                struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
                memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
        }
        return sendmsg(r->fd, &msg, MSG_NOSIGNAL) < 0 ? errno : 0;
}

void raw_post(struct raw *r, Gms__Frame *f) {
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        if (f->serial == 0)
                f->serial = ++r->serial;
        ck_assert_int_eq(wire_pack(f, 0, &bytes, &len), 0);
        (void)raw_send(r, bytes, len, NULL, 0); /* an end shows where the answer is awaited */
}

static void take_event(struct raw *r, const Gms__Event *e) {
        ck_assert_uint_lt((unsigned)e->kind, ARRAY_SIZE(r->events));
        r->events[e->kind]++;
        if (e->kind == GMS__EVENT__KIND__PUBLISHED) {
                ck_assert_ptr_nonnull(e->layout);
                r->published = e->layout->generation;
        }
}

/* One frame; RAW_SILENT, RAW_ENDED, 0: an event, 1: an answer. */
static int raw_next(struct raw *r, uint64_t deadline) {
        static uint8_t buf[CHANNEL_FRAME_MAX];
        _cleanup_frame_ Gms__Frame *f = NULL;
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        size_t len;
        uint64_t now = now_ms();
        struct pollfd readable = { .fd = r->fd, .events = POLLIN };
        if (poll(&readable, 1, now < deadline ? (int)(deadline - now) : 0) != 1)
                return RAW_SILENT;
        int e = channel_recv(r->fd, buf, &len, &fds);
        if (e == CHANNEL_E_EOF)
                return RAW_ENDED;
        ck_assert_int_eq(e, 0);
        ck_assert_int_eq(wire_unpack(buf, len, fds ? fds->n : 0, &f), 0);
        if (f->body_case == GMS__FRAME__BODY_EVENT) {
                ck_assert_uint_eq(f->serial, 0);
                ck_assert_ptr_null(fds);
                take_event(r, f->event);
                return 0;
        }
        raw_forget(r);
        r->reply = steal_ptr(&f);
        r->fds = steal_ptr(&fds);
        return 1;
}

int raw_answer(struct raw *r, uint64_t timeout_ms) {
        uint64_t deadline = now_ms() + timeout_ms;
        int n;
        while ((n = raw_next(r, deadline)) == 0)
                ;
        return n < 0 ? n : (int)r->reply->status;
}

bool raw_waits(struct raw *r) {
        int n;
        while ((n = raw_next(r, 0)) == 0)
                ;
        return n == RAW_SILENT;
}

void raw_events(struct raw *r) {
        ck_assert(raw_waits(r));
}

int raw_request(struct raw *r, Gms__Frame *f) {
        raw_post(r, f);
        int status = raw_answer(r, PATIENCE_MS);
        if (status >= 0)
                ck_assert_uint_eq(r->reply->serial, f->serial);
        return status;
}

/* ---- judging answers */

static const char *status_name(int status) {
        if (status == RAW_ENDED)
                return "the connection ended";
        if (status == RAW_SILENT)
                return "nothing came";
        const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(&gms__status__descriptor, status);
        return v ? v->name : "an unknown status";
}

void raw_check(struct raw *r, int status, int wanted, const char *word, const char *file, int line) {
        const char *text = status >= 0 ? r->reply->text : "";
        if (status != wanted)
                _ck_assert_failed(file, line, "Answer", "wanted %s, got %s: %s", status_name(wanted), status_name(status), text);
        if (wanted == GMS__STATUS__OK)
                return;
        /* What was wrong, for people: a sentence that fits a line of a terminal's log. */
        if (r->reply->body_case != GMS__FRAME__BODY__NOT_SET || r->fds)
                _ck_assert_failed(file, line, "Answer", "a refusal with a body");
        if (strlen(text) < 20 || !wire_text_ok(text, 1000))
                _ck_assert_failed(file, line, "Text", "no useful text: \"%s\"", text);
        if (word && !strcasestr(text, word))
                _ck_assert_failed(file, line, "Text", "no \"%s\" in \"%s\"", word, text);
}

/* ---- requests */

static void raw_hello_frame(struct raw *r, const char *name, Gms__Mode mode, uint64_t deadline_ms, const char *identity) {
        Gms__Deadline deadline = GMS__DEADLINE__INIT;
        deadline.ms = deadline_ms;
        post(r, HELLO, hello, b.protocol_min = WIRE_PROTOCOL_MIN, b.protocol_max = WIRE_PROTOCOL_MAX, b.mode = mode,
             b.label = (char *)"raw", b.store = (char *)(name ? store(name) : ""),
             b.deadline = deadline_ms == FOREVER ? NULL : &deadline, b.identity = (char *)(identity ? identity : ""));
}

int raw_hello(struct raw *r, const char *name, Gms__Mode mode, uint64_t deadline_ms, const char *identity) {
        raw_connect(r);
        raw_hello_frame(r, name, mode, deadline_ms, identity);
        return raw_answer(r, deadline_ms >= PATIENCE_MS ? PATIENCE_MS : deadline_ms + PATIENCE_MS);
}

void raw_hello_post(struct raw *r, const char *name, Gms__Mode mode, uint64_t deadline_ms) {
        raw_connect(r);
        raw_hello_frame(r, name, mode, deadline_ms, NULL);
}

void raw_join(struct raw *r, const char *name, Gms__Mode mode) {
        granted(r, raw_hello(r, name, mode, PATIENCE_MS, NULL));
}

void raw_queue(struct raw *r, const char *name, Gms__Mode mode, uint64_t deadline_ms, unsigned n) {
        raw_hello_post(r, name, mode, deadline_ms);
        wait_for(waiters(name) == n);
        ck_assert(raw_waits(r));
}

int raw_allocate(struct raw *r, uint64_t size, uint32_t count, uint64_t deadline_ms) {
        Gms__Deadline deadline = GMS__DEADLINE__INIT;
        deadline.ms = deadline_ms;
        Gms__Allocate__Item item = GMS__ALLOCATE__ITEM__INIT, *items[] = { &item };
        item.size = size;
        item.count = count;
        int status = ask(r, ALLOCATE, allocate, b.n_items = 1, b.items = items, b.deadline = &deadline);
        if (status == GMS__STATUS__OK) {
                r->first_id = r->reply->allocated->first_id;
                r->first_slot = r->reply->allocated->first_slot;
        }
        return status;
}

int raw_put(struct raw *r, const char *key, uint64_t slot, uint64_t offset) {
        Gms__MetaEntry e = GMS__META_ENTRY__INIT, *entries[] = { &e };
        e.key = (char *)key;
        e.slot = slot;
        e.offset = offset;
        e.value = (ProtobufCBinaryData){ .len = 5, .data = (uint8_t *)"value" };
        return ask(r, META_PUT, meta_put, b.n_entries = 1, b.entries = entries);
}

int raw_page(struct raw *r, uint64_t first, uint32_t count, bool descriptors) {
        return ask(r, PAGE, page, b.first = first, b.count = count, b.descriptors = descriptors);
}

int raw_commit(struct raw *r, const char *identity, bool leave) {
        return ask(r, COMMIT, commit, b.identity = (char *)(identity ? identity : ""), b.leave = leave);
}

void raw_publish(struct raw *r, const char *name, unsigned n, const char *identity) {
        raw_join(r, name, GMS__MODE__RW);
        if (n > 0)
                granted(r, raw_allocate(r, m.granularity, n, PATIENCE_MS));
        granted(r, raw_commit(r, identity, false));
}

/* ---- looking */

struct store_view look(const char *name) {
        struct store_view v = {};
        if (ask(&control, LIST_STORES, list_stores, b.store = (char *)store(name)) != GMS__STATUS__OK)
                return v;
        ck_assert_uint_eq(control.reply->stores->n_stores, 1);
        const Gms__Store *s = control.reply->stores->stores[0];
        const Gms__Layout *l = s->layout;
        (void)snprintf(v.state, sizeof(v.state), "%s", s->state);
        v.readers = s->readers;
        v.writers = s->writers;
        v.waiters = s->waiters;
        v.bytes = s->bytes;
        v.building = s->building_bytes;
        v.draining = s->draining_bytes;
        v.draining_layouts = s->draining_layouts;
        if (l) {
                (void)snprintf(v.identity, sizeof(v.identity), "%s", l->identity);
                if (l->hash.len == sizeof(v.hash))
                        memcpy(v.hash, l->hash.data, sizeof(v.hash));
                v.generation = l->generation;
                v.allocations = l->allocations;
                v.sealed = l->sealed;
        }
        return v;
}

uint64_t waiters(const char *name) {
        return look(name).waiters;
}

const char *state_of(const char *name) {
        static struct store_view v;
        v = look(name);
        return v.state;
}

struct device_view look_device(unsigned i) {
        struct device_view v = {};
        granted(&control, ask(&control, LIST_DEVICES, list_devices));
        if (i >= control.reply->devices->n_devices)
                return v;
        const Gms__Device *d = control.reply->devices->devices[i];
        (void)snprintf(v.name, sizeof(v.name), "%s", d->name);
        (void)snprintf(v.state, sizeof(v.state), "%s", d->state);
        (void)snprintf(v.text, sizeof(v.text), "%s", d->text);
        v.total = d->total;
        v.free = d->free;
        v.owned = d->owned;
        v.granularity = d->granularity;
        v.waiting = d->waiting;
        return v;
}
