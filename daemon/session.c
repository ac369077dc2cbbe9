// SPDX-License-Identifier: MIT
#include "session.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "dispatch.h"
#include "log.h"

#define STALL_RETRY_MS 10

/* ---- waiting for the socket */

/*
 * Reads only when nothing is being answered and nothing is queued; always hears the peer hang up. The death of a peer that had
 * not read everything is an error, which libevent reports as readable and writable, never as closed: who wants neither
 * waits for an edge of writable, which comes once at first and then only with that error.
 */
static void session_watch(struct session *s) {
        bool reads = (s->state == SESSION_STRANGER || s->state == SESSION_OPEN) && !s->busy && channel_idle(&s->channel);
        bool writes = !channel_idle(&s->channel) && !s->stalled;
        short events = EV_PERSIST | EV_CLOSED | (reads ? EV_READ : writes ? EV_WRITE : EV_WRITE | EV_ET);

        if (s->state == SESSION_DEAD || events == s->events)
                return;
        (void)event_del(s->event);
        s->events = events;
        event_callback_fn callback = event_get_callback(s->event);
        if (event_assign(s->event, s->server->base, s->channel.fd, events, callback, s) < 0 || event_add(s->event, NULL) < 0)
                session_end(s);
}

void session_park(struct session *s) {
        s->ticket = fdstore_ticket(s->server->durable.manager);
        list_append(&s->server->parked, &s->parked);
        server_flush_manager(s->server);
}

void session_unpark(struct session *s) {
        list_unlink(&s->parked);
        if (s->job)
                dispatch_allocated_consume(s, steal_ptr(&s->job));
        else
                dispatch_hello_kept(s);
}

static void session_set_timer(struct session *s, uint64_t ms) {
        struct timeval tv = { .tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000 * 1000) };
        (void)evtimer_add(s->timer, &tv);
}

static void send_owed(struct session *s);

static void session_flush(struct session *s) {
        unsigned held = s->channel.held;
        int r = channel_flush(&s->channel);
        s->server->duplicates -= held - s->channel.held;
        s->stalled = r == CHANNEL_E_REFS;
        if (s->stalled)
                session_set_timer(s, STALL_RETRY_MS);
        if (r == CHANNEL_E_EOF || r < 0 || (r == 0 && s->state == SESSION_CLOSING)) {
                session_end(s);
                return;
        }
        if (r == 0)
                send_owed(s);
        session_watch(s);
}

static void session_on_frame(struct session *s) {
        static uint8_t buf[CHANNEL_FRAME_MAX]; /* one thread, and nothing of it is kept */
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        _cleanup_frame_ Gms__Frame *frame = NULL;
        size_t len;

        int r = channel_recv(s->channel.fd, buf, &len, &fds);
        if (r == CHANNEL_E_AGAIN || r == -EINTR)
                return;
        if (r == CHANNEL_E_EOF) {
                session_end(s);
                return;
        }
        unsigned n_fds = fds ? fds->n : 0;
        if (r != 0 || wire_unpack(buf, len, n_fds, &frame) != 0) {
                s->serial = 0;
                session_refuse_and_close(s, GMS__STATUS__MALFORMED, "%s",
                                         r != 0 ? "the frame is over 64 KiB, or its descriptors were lost; the connection ends"
                                                : "the frame is not one of this protocol, or carries another number of "
                                                  "descriptors than it says; the connection ends");
                return;
        }
        dispatch(s, frame, n_fds);
        session_watch(s); /* while the answer is not there yet, nothing more is read */
}

static bool peer_gone(int fd) {
        struct pollfd p = { .fd = fd };
        return poll(&p, 1, 0) == 1 && (p.revents & (POLLERR | POLLHUP));
}

static void on_socket(evutil_socket_t fd, short what, void *arg) {
        struct session *s = arg;
        if (what & EV_READ)
                session_on_frame(s);
        else if ((what & EV_CLOSED) || peer_gone(fd))
                session_end(s);
        else if (!channel_idle(&s->channel) && !s->stalled)
                session_flush(s);
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
        struct session *s = arg;
        (void)fd, (void)what;
        if (s->state == SESSION_WAITING)
                dispatch_timed_out(s);
        else if (s->stalled)
                session_flush(s);
}

/* ---- life */

int session_new_consume(struct session **ret_session, struct server *server, int fd) {
        struct session *s = calloc(1, sizeof(*s));
        if (!s) {
                close_fd(fd);
                return -ENOMEM;
        }
        list_init(&s->link);
        list_init(&s->parked);
        s->server = server;
        s->since = now_ms();
        channel_init_consume(&s->channel, fd);
        int r = process_identify(fd, &s->peer);
        if (r == 0) {
                s->event = event_new(server->base, fd, EV_CLOSED | EV_PERSIST, on_socket, s);
                s->timer = evtimer_new(server->base, on_timer, s);
                if (!s->event || !s->timer)
                        r = -ENOMEM;
        }
        if (r < 0) {
                session_free(s);
                return r;
        }
        session_watch(s);
        *ret_session = s;
        return 0;
}

struct session *session_free(struct session *s) {
        if (!s)
                return NULL;
        list_unlink(&s->link);
        if (s->event)
                event_free(s->event);
        if (s->timer)
                event_free(s->timer);
        s->server->duplicates -= s->channel.held;
        channel_done(&s->channel);
        free(s->label);
        free(s->identity);
        free(s->wanted);
        free(s->kept);
        free(s);
        return NULL;
}

void session_wait(struct session *s, uint64_t ms) {
        s->state = SESSION_WAITING;
        if (ms != UINT64_MAX)
                session_set_timer(s, ms);
        session_watch(s);
}

void session_opened(struct session *s) {
        (void)evtimer_del(s->timer);
        s->state = SESSION_OPEN;
}

void session_let_go(struct session *s) {
        if (s->job && !list_empty(&s->parked)) {
                dispatch_retire_job_consume(s, steal_ptr(&s->job));
        } else if (s->job) {
                allocator_cancel(s->device->allocator, steal_ptr(&s->job));
                device_update(s->device);
        }
        list_unlink(&s->parked);
        if (s->claim) {
                struct change leave = { .type = CHANGE_LEAVE, .claim = steal_ptr(&s->claim) };
                (void)server_change(s->server, s->store, &leave);
        }
        if (s->kept_by_manager)
                durable_drop_session(&s->server->durable, s->id);
        s->kept_by_manager = false;
        s->store = NULL;
}

int session_restore_consume(struct session **ret_session, struct server *server, const struct client *c, int fd) {
        struct session *s;
        int r = session_new_consume(&s, server, fd);
        if (r < 0)
                return r;
        s->label = strdup(c->label);
        s->identity = c->identity ? strdup(c->identity) : NULL;
        if (!s->label || (c->identity && !s->identity)) {
                session_free(s);
                return -ENOMEM;
        }
        s->id = c->id;
        s->peer = (struct process_identity){ .pid = (pid_t)c->pid, .uid = (uid_t)c->uid, .key = c->process };
        s->since = c->since;
        s->asked = (Gms__Mode)c->asked;
        s->store = c->store;
        s->device = c->store->device;
        s->claim = c->claim;
        s->claim->owner = s;
        s->hello_serial = s->serial = c->hello;
        s->kept_serial = c->answered;
        s->kept_first_id = c->first_id;
        s->kept_first_slot = c->first_slot;
        s->kept_by_manager = s->resumed = true;
        s->deadline = c->deadline;
        list_append(&server->sessions, &s->link);
        server->n_sessions++;
        if (server_watch_process(server, s->channel.fd, s->peer.key, s->peer.pid) == SERVER_PROCESS_GONE) {
                struct change exited = { .type = CHANGE_EXITED, .exited = { .process = s->peer.key } };
                (void)server_change(server, s->store, &exited);
                s->peer.key = 0;
        }
        if (s->claim->lock.held || s->claim->gone) {
                s->state = SESSION_OPEN;
                session_watch(s);
        } else {
                uint64_t now = now_ms();
                session_wait(s, !s->deadline ? UINT64_MAX : s->deadline > now ? s->deadline - now : 0);
        }
        *ret_session = s;
        return 0;
}

struct client session_client(const struct session *s) {
        return (struct client){
                .id = s->id,
                .label = s->label,
                .identity = s->identity,
                .asked = s->asked,
                .pid = (uint64_t)s->peer.pid,
                .uid = s->peer.uid,
                .process = s->peer.key,
                .since = s->since,
                .deadline = s->deadline,
                .hello = s->hello_serial,
                .store = s->store,
                .claim = s->claim,
                .answered = s->kept_refusal ? 0 : s->kept_serial, /* what changed nothing may be asked again */
                .first_id = s->kept_first_id,
                .first_slot = s->kept_first_slot,
        };
}

void session_end(struct session *s) {
        if (s->state == SESSION_DEAD)
                return;
        s->state = SESSION_DEAD;
        (void)event_del(s->event);
        (void)event_del(s->timer);
        /* Not close(): whoever else holds this socket must see the end too. */
        (void)shutdown(s->channel.fd, SHUT_RDWR);
        session_let_go(s);
        server_session_dead(s->server, s);
}

const char *session_name(const struct session *s) {
        static char name[160];
        (void)snprintf(name, sizeof(name), "session %llu (%.64s, pid %d)", (unsigned long long)s->id,
                       s->label ? s->label : "?", s->peer.pid);
        return name;
}

/* ---- answers */

/* Sends or queues; ends the session when that is not possible. Takes all. */
static void session_post(struct session *s, uint8_t *bytes, size_t len, struct fdset *fds) {
        unsigned held = s->channel.held;
        int r = channel_post_consume(&s->channel, bytes, len, fds, server_duplicates_left(s->server));
        s->server->duplicates += s->channel.held - held;
        if (r == -EMFILE)
                log_info("%s: does not read its answers, and their descriptors are in everybody's way; ending it",
                         session_name(s));
        else if (r < 0)
                log_warning("%s: cannot answer: %s; ending it", session_name(s), strerror(-r));
        if (r != 0 || (s->state == SESSION_CLOSING && channel_idle(&s->channel)))
                session_end(s);
        else
                session_watch(s);
}

static void session_keep(struct session *s, const uint8_t *bytes, size_t len, const Gms__Frame *frame, unsigned n_fds) {
        uint8_t *copy = malloc(len);
        free(steal_ptr(&s->kept));
        s->kept_serial = s->serial;
        if (!copy)
                return; /* a repetition will be refused, which is honest */
        memcpy(copy, bytes, len);
        s->kept = copy;
        s->kept_len = len;
        s->kept_fds = n_fds;
        s->kept_refusal = frame->status != GMS__STATUS__OK;
        bool allocated = frame->body_case == GMS__FRAME__BODY_ALLOCATED;
        s->kept_first_id = allocated ? frame->allocated->first_id
                           : frame->body_case == GMS__FRAME__BODY_LAYOUT ? frame->layout->generation
                                                                         : 0;
        s->kept_first_slot = allocated ? frame->allocated->first_slot : 0;
}

void session_reply(struct session *s, Gms__Frame *frame, struct fdset *fds) {
        uint8_t *bytes;
        size_t len;
        unsigned n_fds = fds ? fds->n : 0;

        if (s->state == SESSION_DEAD) {
                fdset_free(fds);
                return;
        }
        frame->serial = s->serial;
        int r = wire_pack(frame, n_fds, &bytes, &len);
        if (r != 0) {
                fdset_free(fds);
                log_error("%s: an answer cannot be packed; ending it", session_name(s));
                session_end(s);
                return;
        }
        if (s->changes)
                session_keep(s, bytes, len, frame, n_fds);
        s->changes = false;
        s->busy = false;
        session_post(s, bytes, len, fds);
}

void session_done(struct session *s) {
        Gms__Done body = GMS__DONE__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_DONE;
        f.done = &body;
        session_reply(s, &f, NULL);
}

static void reply_refusal(struct session *s, Gms__Status status, const char *text) {
        Gms__Frame f = GMS__FRAME__INIT;
        f.status = status;
        f.text = (char *)text;
        session_reply(s, &f, NULL);
}

void session_refuse(struct session *s, Gms__Status status, const char *format, ...) {
        char text[1024];
        va_list args;
        va_start(args, format);
        (void)vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        reply_refusal(s, status, text);
}

void session_refuse_and_close(struct session *s, Gms__Status status, const char *format, ...) {
        char text[1024];
        va_list args;
        if (s->state == SESSION_DEAD)
                return;
        va_start(args, format);
        (void)vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        if (status == GMS__STATUS__MALFORMED)
                log_info("%s, uid %u: malformed frame: %s", session_name(s), s->peer.uid, text);
        /* It waits for nothing and holds nothing while the refusal is on its way. */
        s->state = SESSION_CLOSING;
        session_let_go(s);
        reply_refusal(s, status, text);
}

bool session_repeat(struct session *s) {
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        if (!s->kept)
                return false;
        if (s->kept_fds > 0) {
                if (!s->claim || !s->claim->view || fdset_new(&fds, s->kept_fds, false) < 0)
                        return false;
                for (uint32_t i = 0; i < s->kept_fds; i++) {
                        struct allocation *a = layout_find_id(s->claim->view, s->kept_first_id + i);
                        if (!a)
                                return false;
                        fdset_add(fds, a->fd);
                }
        }
        uint8_t *copy = malloc(s->kept_len);
        if (!copy)
                return false;
        memcpy(copy, s->kept, s->kept_len);
        s->busy = false;
        session_post(s, copy, s->kept_len, steal_ptr(&fds));
        return true;
}

/* ---- events */

static void session_send_event(struct session *s, Gms__Event__Kind kind) {
        static const char *const texts[] = {
                [GMS__EVENT__KIND__LOCK_WANTED] = "somebody waits for what this session holds",
                [GMS__EVENT__KIND__PUBLISHED] = "a newer generation is published; refresh to move to it",
                [GMS__EVENT__KIND__LOCK_REVOKED] = "an administrator cleared the store by force; connect again",
                [GMS__EVENT__KIND__RESUMED] = "gmsd was started again; nothing was lost",
        };
        Gms__Layout layout;
        Gms__Event body = GMS__EVENT__INIT;
        body.kind = kind;
        body.text = (char *)texts[kind];
        if (kind == GMS__EVENT__KIND__PUBLISHED && s->store && s->store->published) {
                dispatch_fill_layout(&layout, s->store, s->store->published);
                body.layout = &layout;
        }
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_EVENT;
        f.event = &body;

        uint8_t *bytes;
        size_t len;
        if (wire_pack(&f, 0, &bytes, &len) == 0)
                session_post(s, bytes, len, NULL);
}

/* An event waits while answers are queued, and then goes once, however often it came. */
static void send_owed(struct session *s) {
        for (unsigned kind = 0; s->owed >> kind && channel_idle(&s->channel) && s->state == SESSION_OPEN; kind++) {
                if (!(s->owed & 1u << kind))
                        continue;
                s->owed &= ~(1u << kind);
                session_send_event(s, (Gms__Event__Kind)kind);
        }
}

/*
 * What a client had sent and nobody had read goes: it is told of the restart, and sends again what is not answered. Read beside
 * that, a request could be refused once and its copy carried out by a later daemon, when nobody waits for it any more.
 */
static void session_drain(struct session *s) {
        static uint8_t buf[CHANNEL_FRAME_MAX];
        size_t len;
        int r;
        do {
                _cleanup_(fdset_freep) struct fdset *fds = NULL;
                r = channel_recv(s->channel.fd, buf, &len, &fds);
        } while (r == 0 || r == -EINTR);
}

/* Also to those that wait: they may have to send their Hello again. */
void session_resumed(struct session *s) {
        session_drain(s);
        session_send_event(s, GMS__EVENT__KIND__RESUMED);
        if (s->state == SESSION_WAITING && s->claim->lock.held)
                dispatch_granted(s); /* by the end of one that was not kept */
        /* What the daemon before had no time to tell. */
        if (s->state == SESSION_OPEN && s->claim)
                session_news(s, store_standing_news(s->store, s->claim));
}

void session_news(struct session *s, unsigned news) {
        if ((news & NEWS_GRANTED) && s->state != SESSION_DEAD)
                dispatch_granted(s);
        if (news & NEWS_WANTED)
                s->owed |= 1u << GMS__EVENT__KIND__LOCK_WANTED;
        if (news & NEWS_PUBLISHED)
                s->owed |= 1u << GMS__EVENT__KIND__PUBLISHED;
        if (news & NEWS_REVOKED)
                s->owed |= 1u << GMS__EVENT__KIND__LOCK_REVOKED;
        if (s->owed && s->state == SESSION_OPEN)
                send_owed(s);
}

void session_allocated(struct session *s, struct job *job) {
        assert(s->job == job);
        dispatch_allocated_job(s, job);
}
