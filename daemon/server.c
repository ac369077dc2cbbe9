// SPDX-License-Identifier: MIT
#include "server.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "log.h"
#include "session.h"

#define STORES_MAX 4096u
#define ACCEPT_AT_ONCE 64        /* connections taken before others get their turn */
#define ACCEPT_PAUSE_MS 100      /* when descriptors have run out */
#define SILENCE_MAX_MS 10000u    /* until a connection must have said Hello */
#define STRANGERS_MAX 1024u      /* connections that have not: above this the oldest ends */
#define PROBE_TIMEOUT_MS 30000
#define DEVICES_MAX 128u         /* vmm_probe() finds 64 GPUs of one host */
#define START_PATIENCE_MS 5000u
#define ALIVE_MS 1000u           /* between signs of life */
#define MANAGER_RETRY_MS 10u
#define DUPLICATES_PART 8u       /* of the descriptors, for answers that wait to be read */
#define DESCRIPTORS_SPARE 64u    /* kept back for sockets, pidfds and workers */
#define KEPT_SPARE 4u            /* of the manager's: the listening socket, two journals */

struct process {
        struct list link;
        struct server *server;
        struct event *event;
        uint64_t key;
        int pidfd;
};

uint64_t now_ms(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static struct timeval in_ms(uint64_t ms) {
        return (struct timeval){ .tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000 * 1000) };
}

/* ---- stores */

/* Index of the first store whose name is not below `name`. */
static size_t store_index(const struct server *s, const char *name, bool *ret_found) {
        size_t low = 0, high = s->n_stores;
        *ret_found = false;
        while (low < high) {
                size_t mid = low + (high - low) / 2;
                int c = strcmp(s->stores[mid]->name, name);
                if (c < 0) {
                        low = mid + 1;
                } else {
                        high = mid;
                        *ret_found = *ret_found || c == 0;
                }
        }
        return low;
}

size_t server_store_after(const struct server *s, const char *name) {
        bool found;
        size_t i = store_index(s, name, &found);
        return i + found;
}

struct device *server_find_device(struct server *s, const char *store, size_t len) {
        for (size_t i = 0; i < s->n_devices; i++) {
                const struct device_info *d = allocator_info(s->devices[i].allocator);
                if (strlen(d->name) == len && strncmp(d->name, store, len) == 0)
                        return &s->devices[i];
                size_t prefix = strncmp(store, "cuda:", 5) == 0 ? 5 : 0;
                if (len > prefix && strlen(d->uuid) == len - prefix && strncmp(d->uuid, store + prefix, len - prefix) == 0)
                        return &s->devices[i];
        }
        return NULL;
}

static int store_insert(struct server *s, struct store *store, size_t at) {
        if (s->n_stores == s->room_stores) {
                struct store **more = reallocarray(s->stores, s->room_stores * 2 + 16, sizeof(*more));
                if (!more)
                        return -ENOMEM;
                s->stores = more;
                s->room_stores = s->room_stores * 2 + 16;
        }
        memmove(&s->stores[at + 1], &s->stores[at], (s->n_stores - at) * sizeof(*s->stores));
        s->stores[at] = store;
        s->n_stores++;
        return 0;
}

static int store_make(struct server *s, const char *name, struct device *device, size_t at, struct store **ret_store) {
        uint64_t epoch;
        if (s->n_stores >= STORES_MAX)
                return STORE_NAME_LIMIT;
        if (getrandom(&epoch, sizeof(epoch), 0) != sizeof(epoch))
                return -errno;
        struct store *store;
        int r = store_new(&store, name, device, epoch);
        if (r == 0 && (r = store_insert(s, store, at)) < 0)
                store_free(store);
        if (r < 0)
                return r;
        *ret_store = store;
        event_active(s->reap, 0, 0); /* forgotten again if nobody comes to hold it */
        return 0;
}

int server_find_store(struct server *s, const char *name, bool make, struct store **ret_store, struct device **ret_device) {
        const char *slash = strchr(name, '/');
        if (!slash || slash == name || !slash[1] || strchr(slash, ' ') || !wire_text_ok(name, WIRE_STORE_MAX))
                return STORE_NAME_INVALID;
        struct device *d = server_find_device(s, name, (size_t)(slash - name));
        if (!d)
                return STORE_NAME_NO_DEVICE;
        if (ret_device)
                *ret_device = d;

        char canonical[WIRE_STORE_MAX + sizeof(((struct device_info *)0)->name)];
        bool found;
        (void)snprintf(canonical, sizeof(canonical), "%s%s", allocator_info(d->allocator)->name, slash);
        if (strlen(canonical) > WIRE_STORE_MAX)
                return STORE_NAME_INVALID;
        size_t i = store_index(s, canonical, &found);
        if (found)
                *ret_store = s->stores[i];
        else
                return make ? store_make(s, canonical, d, i, ret_store) : STORE_NAME_UNKNOWN;
        return 0;
}

static void forget_idle_stores(struct server *s) {
        size_t kept = 0;
        for (size_t i = 0; i < s->n_stores; i++) {
                if (store_idle(s->stores[i]))
                        store_free(s->stores[i]);
                else
                        s->stores[kept++] = s->stores[i];
        }
        s->n_stores = kept;
}

/* ---- changes and their effects */

static void on_manager(evutil_socket_t fd, short what, void *arg);

/* Memory on its way out: the manager lets go of it, then the worker closes the last descriptor. */
struct retired {
        struct list link;
        struct server *server;
        struct device *device;
        struct event *event; /* the manager has let go */
        int barrier;
        size_t n;
        struct retired_item items[];
};

static void retired_finish(struct retired *r) {
        for (size_t i = 0; i < r->n; i++)
                if (r->items[i].fd >= 0)
                        allocator_release_consume(r->device->allocator, r->items[i].fd, r->items[i].bytes);
        list_unlink(&r->link);
        if (r->event)
                event_free(r->event);
        close_fd(r->barrier);
        struct device *device = r->device;
        free(r);
        device_update(device);
}

static void on_let_go(evutil_socket_t fd, short what, void *arg) {
        (void)fd, (void)what;
        retired_finish(arg);
}

static void retired_start(struct retired *r) {
        struct durable *d = &r->server->durable;
        if (fdstore_durable(d->manager)) {
                for (size_t i = 0; i < r->n; i++)
                        durable_drop_allocation(d, r->items[i].id);
                r->barrier = fdstore_barrier(d->manager);
                server_flush_manager(r->server);
        }
        if (r->barrier >= 0)
                r->event = event_new(r->server->base, r->barrier, EV_READ, on_let_go, r);
        if (!r->event || event_add(r->event, NULL) < 0)
                retired_finish(r);
}

void server_retire_consume(struct server *s, struct device *d, struct retired_item *items, size_t n) {
        if (s->restoring && s->durable.damaged) {
                /* As of the damage. What came behind it may have published this: the manager keeps it, and so does its name. */
                for (size_t i = 0; i < n; i++) {
                        if (items[i].fd < 0)
                                continue;
                        allocator_forget(d->allocator, items[i].bytes);
                        close_fd(items[i].fd);
                        s->durable.unaccounted++;
                }
                return;
        }
        struct retired *r = malloc(sizeof(*r) + n * sizeof(*items));
        if (!r) {
                /* No memory to do it in turn: what matters is that nothing leaks. */
                for (size_t i = 0; i < n; i++) {
                        durable_drop_allocation(&s->durable, items[i].id);
                        if (items[i].fd >= 0)
                                allocator_release_consume(d->allocator, items[i].fd, items[i].bytes);
                }
                return;
        }
        *r = (struct retired){ .server = s, .device = d, .barrier = -1, .n = n };
        memcpy(r->items, items, n * sizeof(*items));
        list_append(&s->retired, &r->link);
        if (!s->restoring)
                retired_start(r);
}

void server_retire_pending(struct server *s) {
        list_for_safe(r, &s->retired, struct retired, link)
                if (!r->event)
                        retired_start(r);
}

static void release_layout(struct server *s, struct device *d, struct layout *l) {
        struct retired_item *items = calloc(l->n_allocations ? l->n_allocations : 1, sizeof(*items));
        for (size_t i = 0; i < l->n_allocations; i++) {
                struct allocation *a = &l->allocations[i];
                struct retired_item one = { .id = a->id, .bytes = a->aligned, .fd = steal_fd(&a->fd) };
                if (items)
                        items[i] = one;
                else
                        server_retire_consume(s, d, &one, 1);
        }
        if (items && l->n_allocations > 0)
                server_retire_consume(s, d, items, l->n_allocations);
        free(items);
        s->n_listings -= l->listing.fd >= 0;
        l->listing.fd = close_fd(l->listing.fd);
        layout_free(l);
}

/* Applied, then recorded, then told: a daemon that dies in between has told nobody. */
int server_change(struct server *s, struct store *store, struct change *change) {
        struct effects fx;
        char before[16];
        _cleanup_free_ uint8_t *record = NULL;
        size_t len = 0;
        (void)snprintf(before, sizeof(before), "%s", store_state(store));

        effects_init(&fx);
        int r = durable_pack(&s->durable, store, change, &record, &len);
        if (r == 0)
                r = store_apply(store, change, &fx);
        if (r != 0)
                return r;
        durable_write(&s->durable, s, store, record, len);
        if (strcmp(before, store_state(store)) != 0)
                log_info("%s: %s → %s", store->name, before, store_state(store));

        while (!list_empty(&fx.released))
                release_layout(s, store->device, list_first(&fx.released, struct layout, link));
        while (!list_empty(&fx.news)) {
                struct claim *c = list_first(&fx.news, struct claim, news_link);
                struct session *session = c->owner;
                unsigned news = c->news;
                list_unlink(&c->news_link);
                c->news = 0;
                if (s->restoring)
                        continue; /* a client that was granted its lock asks again when it is told that we resumed */
                session->claim = c;
                session_news(session, news);
        }
        event_active(s->reap, 0, 0); /* the store may be idle now */
        return 0;
}

void server_flush_manager(struct server *s) {
        struct fdstore *manager = s->durable.manager;
        fdstore_flush(manager);
        if (s->durable.next)
                event_active(s->reap, 0, 0);
        for (;;) {
                struct session *session = list_first(&s->parked, struct session, parked);
                if (!session || !fdstore_sent(manager, session->ticket))
                        break;
                session_unpark(session);
        }
        if (!fdstore_wants_write(manager))
                return;
        /* Too many descriptors in flight: polling would not tell when there are fewer. */
        struct timeval tv = in_ms(MANAGER_RETRY_MS);
        if (!s->manager)
                s->manager = event_new(s->base, fdstore_fd(manager), EV_WRITE, on_manager, s);
        if (fdstore_stalled(manager))
                (void)evtimer_add(s->manager_later, &tv);
        else if (s->manager)
                (void)event_add(s->manager, NULL);
}

static void on_manager(evutil_socket_t fd, short what, void *arg) {
        (void)fd, (void)what;
        server_flush_manager(arg);
}

/* ---- processes of sessions */

static void process_free(struct process *p) {
        list_unlink(&p->link);
        p->server->n_processes--;
        event_free(p->event);
        close_fd(p->pidfd);
        free(p);
}

static void process_exited(struct server *s, uint64_t key) {
        for (size_t i = 0; i < s->n_stores; i++) {
                if (!store_knows_process(s->stores[i], key))
                        continue;
                struct change exited = { .type = CHANGE_EXITED, .exited = { .process = key } };
                (void)server_change(s, s->stores[i], &exited);
        }
        for (size_t i = 0; i < s->n_devices; i++) {
                allocator_kick(s->devices[i].allocator, now_ms());
                device_update(&s->devices[i]);
        }
}

static void on_process_exit(evutil_socket_t fd, short what, void *arg) {
        struct process *p = arg;
        struct server *s = p->server;
        uint64_t key = p->key;
        (void)fd, (void)what;
        process_free(p);
        process_exited(s, key);
}

int server_watch_process(struct server *s, int socket, uint64_t key, pid_t pid) {
        list_for(known, &s->processes, struct process, link)
                if (known->key == key)
                        return 0;

        struct process_identity identity = { .pid = pid, .key = key };
        _cleanup_close_ int pidfd = -1;
        int r = key == 0 ? -ESRCH : process_open(socket, &identity, &pidfd);
        if (r < 0)
                return r == -ESRCH ? SERVER_PROCESS_GONE : r;
        struct process *p = calloc(1, sizeof(*p));
        struct event *event = p ? event_new(s->base, pidfd, EV_READ, on_process_exit, p) : NULL;
        if (!event || event_add(event, NULL) < 0) {
                if (event)
                        event_free(event);
                free(p);
                return -ENOMEM;
        }
        *p = (struct process){ .server = s, .event = event, .key = key, .pidfd = steal_fd(&pidfd) };
        list_append(&s->processes, &p->link);
        s->n_processes++;
        return 0;
}

/*
 * The writers of sealed layouts whose sessions are over: watched already, but after a restart, or for want of a descriptor. A
 * pidfd's key has no pid to begin with: such a fence stays until the store is cleared.
 */
static void watch_fences(struct server *s) {
        for (size_t i = 0; i < s->n_stores; i++) {
                uint64_t key = s->stores[i]->fence;
                if (key != 0 && process_pid(key) != 0 &&
                    server_watch_process(s, -1, key, process_pid(key)) == SERVER_PROCESS_GONE)
                        process_exited(s, key);
        }
}

/* ---- devices */

static void device_deliver(struct device *d) {
        struct job *job;
        while ((job = allocator_finished(d->allocator)))
                session_allocated(job->owner, job);
}

static bool device_distinct(const struct server *s, const struct device *d);

static void on_device_io(evutil_socket_t fd, short what, void *arg) {
        struct device *d = arg;
        (void)fd, (void)what;
        bool known = *allocator_info(d->allocator)->uuid; /* it has served, or has memory of an earlier daemon */
        allocator_dispatch(d->allocator, now_ms());
        /* One that comes up later: at the start it is a reason not to serve. */
        if (d->server->serving && !known && !device_distinct(d->server, d))
                allocator_disable(d->allocator, "it is another name of a GPU that is served already");
        device_update(d);
}

static void on_device_timer(evutil_socket_t fd, short what, void *arg) {
        struct device *d = arg;
        (void)fd, (void)what;
        allocator_tick(d->allocator, now_ms());
        device_update(d);
}

static void server_begin_serving(struct server *s);

void device_update(struct device *d) {
        int fd = allocator_fd(d->allocator);
        short events = EV_PERSIST | EV_READ | (allocator_wants_write(d->allocator) ? EV_WRITE : 0);
        if (fd != d->io_fd || events != d->io_events) {
                (void)event_del(d->io);
                d->io_fd = fd;
                d->io_events = events;
                if (fd >= 0 &&
                    (event_assign(d->io, d->server->base, fd, events, on_device_io, d) < 0 || event_add(d->io, NULL) < 0))
                        log_error("cannot watch the worker of %s", allocator_info(d->allocator)->name);
        }

        uint64_t wake = allocator_wake(d->allocator), now = now_ms();
        struct timeval tv = in_ms(wake > now ? wake - now : 0);
        if (wake == ALLOCATOR_NEVER)
                (void)evtimer_del(d->timer);
        else
                (void)evtimer_add(d->timer, &tv);

        device_deliver(d);
        server_begin_serving(d->server);
}

static int device_init(struct device *d, struct server *s, const char *spec, uint64_t capacity) {
        *d = (struct device){ .server = s, .io_fd = -1 };
        d->io = event_new(s->base, -1, EV_PERSIST, on_device_io, d);
        d->timer = evtimer_new(s->base, on_device_timer, d);
        if (!d->io || !d->timer)
                return -ENOMEM;
        return allocator_new(&d->allocator, spec, capacity, now_ms());
}

static void device_done(struct device *d) {
        allocator_free(d->allocator);
        if (d->io)
                event_free(d->io);
        if (d->timer)
                event_free(d->timer);
}

/* What the configuration says of a device. */
static uint64_t configured_capacity(const struct config *c, const char *spec) {
        for (size_t i = 0; i < c->n_devices; i++)
                if (strcmp(c->devices[i].spec, spec) == 0)
                        return c->devices[i].capacity;
        return 0;
}

static bool device_known(const struct server *s, const char *spec) {
        for (size_t i = 0; i < s->n_devices; i++) {
                const char *known = allocator_info(s->devices[i].allocator)->spec;
                if (strcmp(known, spec) == 0 || (strcmp(spec, "cuda") == 0 && strncmp(known, "cuda:GPU-", 9) == 0))
                        return true;
        }
        return false;
}

int server_add_device(struct server *s, const char *spec, const struct device_info *known) {
        if (s->n_devices == DEVICES_MAX)
                return -E2BIG;
        int r = device_init(&s->devices[s->n_devices++], s, spec, configured_capacity(s->config, spec));
        if (r == 0 && known)
                allocator_remember(s->devices[s->n_devices - 1].allocator, known);
        return r;
}

int server_adopt_store(struct server *s, struct store *store, struct device *device) {
        bool found;
        size_t at = store_index(s, store->name, &found);
        int r = found ? -EEXIST : store_insert(s, store, at);
        if (r == 0)
                store->device = device;
        return r;
}

/* Asks a worker of its own which devices the driver shows. Waits: nobody is served yet. */
static int probe(Gms__Frame **ret_answer) {
        struct worker *w;
        int r = worker_spawn(&w, "cuda");
        if (r < 0)
                return r;

        Gms__WorkProbe body = GMS__WORK_PROBE__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WORK_PROBE;
        f.work_probe = &body;
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        _cleanup_free_ uint8_t *buf = malloc(CHANNEL_FRAME_MAX);
        struct pollfd readable = { .fd = w->channel.fd, .events = POLLIN };
        r = buf ? worker_send_consume(w, &f, NULL) : -ENOMEM;
        if (r == 0)
                r = poll(&readable, 1, PROBE_TIMEOUT_MS) == 1 ? worker_receive(w, buf, ret_answer, &fds) : -ETIMEDOUT;
        pid_t pid = w->pid;
        worker_free(w);
        (void)waitpid(pid, NULL, 0);
        return r > 0 ? -EPROTO : r;
}

/* One device for each GPU. */
static int add_gpus(struct server *s, bool optional) {
        _cleanup_frame_ Gms__Frame *answer = NULL;
        int r = probe(&answer);
        if (r < 0) {
                log_error("cuda: cannot ask the driver for its devices: %s", strerror(-r));
                return optional ? 0 : r;
        }
        if (answer->body_case != GMS__FRAME__BODY_WORK_DEVICES) {
                log_line(optional ? 6 : 3, "cuda: %s%s", answer->text,
                         optional ? "; serving host memory only" : "; name another --device, or install the driver");
                return optional ? 0 : -ENODEV;
        }
        for (size_t i = 0; r == 0 && i < answer->work_devices->n_devices; i++) {
                char spec[64];
                (void)snprintf(spec, sizeof(spec), "cuda:%.48s", answer->work_devices->devices[i]->uuid);
                r = server_add_device(s, spec, NULL);
        }
        return r;
}

/* Those of the configuration that are not there yet. Asking the driver which there are takes its time: not while serving. */
static int add_configured(struct server *s) {
        const struct config *c = s->config;
        int r = 0;
        for (size_t i = 0; r == 0 && i < c->n_devices; i++) {
                const struct config_device *d = &c->devices[i];
                if (device_known(s, d->spec))
                        continue;
                if (strcmp(d->spec, "cuda") != 0)
                        r = server_add_device(s, d->spec, NULL);
                else if (!s->serving)
                        r = add_gpus(s, d->optional);
                else if (!d->optional)
                        log_warning("device cuda: finding all GPUs needs a restart; name them one by one to add them now");
        }
        return r;
}

static int add_devices(struct server *s) {
        int r = 0;
        s->devices = calloc(DEVICES_MAX, sizeof(*s->devices));
        if (!s->devices)
                return -ENOMEM;
        /* Those that an earlier daemon left come first: their memory is there, whatever the driver says now. */
        if (s->durable.restored)
                r = durable_restore_devices(&s->durable, s);
        if (r == 0)
                r = add_configured(s);
        if (r < 0 && r != -ENODEV)
                log_error("cannot start the workers: %s", strerror(-r));
        for (size_t i = 0; r == 0 && i < s->n_devices; i++)
                device_update(&s->devices[i]);
        return r;
}

/* Two names of one GPU would be two accounts of its memory. */
static bool device_distinct(const struct server *s, const struct device *d) {
        const struct device_info *a = allocator_info(d->allocator);
        for (size_t i = 0; i < s->n_devices; i++) {
                const struct device_info *b = allocator_info(s->devices[i].allocator);
                if (&s->devices[i] == d || !*a->uuid || strcmp(a->uuid, b->uuid) != 0)
                        continue;
                log_error("devices %s and %s are the same GPU, %s; name it once", b->spec, a->spec, a->uuid);
                return false;
        }
        return true;
}

static bool devices_distinct(const struct server *s) {
        bool distinct = true;
        for (size_t i = 0; i < s->n_devices; i++)
                distinct = distinct && device_distinct(s, &s->devices[i]);
        return distinct;
}

/* A sign of life: for the manager's watchdog, and for the next daemon, which wants to know for how long there was none. */
static void on_alive(evutil_socket_t fd, short what, void *arg) {
        struct server *s = arg;
        struct timeval tv = in_ms(s->alive_every);
        (void)fd, (void)what;
        if (durable_records(&s->durable))
                journal_alive(s->durable.journal, now_ms());
        fdstore_say(s->durable.manager, "WATCHDOG=1"); /* also unasked: so we notice a manager that has gone */
        watch_fences(s);
        server_flush_manager(s);
        (void)evtimer_add(s->alive, &tv);
}

/* One that has died meanwhile ends when it is told, and what that brings about may end others too. */
static void tell_resumed(struct server *s) {
        struct list untold = LIST_INIT(untold);
        struct session *session;
        while ((session = list_first(&s->sessions, struct session, link))) {
                list_unlink(&session->link);
                list_append(&untold, &session->link);
        }
        while ((session = list_first(&untold, struct session, link))) {
                list_unlink(&session->link);
                list_append(&s->sessions, &session->link);
                session_resumed(session);
        }
}

/* Serves from the moment that every worker has answered, well or badly; gives up if none of them can be of use. */
static void server_begin_serving(struct server *s) {
        size_t ready = 0;
        if (s->serving || s->status != 0)
                return;
        for (size_t i = 0; i < s->n_devices; i++) {
                if (!s->devices[i].allocator || (!s->durable.restored && !allocator_answered(s->devices[i].allocator)))
                        return;
                ready += s->durable.restored || allocator_ready(s->devices[i].allocator);
        }
        if (ready == 0 || !devices_distinct(s) || durable_restore(&s->durable, s) < 0) {
                if (ready == 0)
                        log_error("none of the devices can be served; the lines above say why");
                s->status = 1;
                (void)event_base_loopbreak(s->base);
                return;
        }
        s->serving = true;
        (void)event_add(s->listening, NULL);
        log_notice("gmsd " GMS_VERSION " is ready: %zu devices, socket %s", ready, s->config->socket);
        if (!durable_records(&s->durable))
                log_notice("no service manager keeps descriptors: the memory dies with this process");
        if (s->durable.restored)
                log_notice("resumed: %zu stores, %zu sessions; restart %" PRIu64, s->n_stores, s->n_sessions,
                           s->durable.restarts);
        tell_resumed(s);
        on_alive(-1, 0, s);
        fdstore_say(s->durable.manager, "READY=1\nSTATUS=serving");
        server_flush_manager(s);
}

/* ---- sessions */

uint64_t server_descriptors_left(const struct server *s, bool kept_too) {
        uint64_t memory = 0, own = DESCRIPTORS_SPARE + s->n_sessions + s->n_strangers + s->n_processes + s->n_listings;
        own += s->descriptor_limit / DUPLICATES_PART;
        for (size_t i = 0; i < s->n_devices; i++)
                memory += allocator_descriptors(s->devices[i].allocator);
        uint64_t kept = KEPT_SPARE + s->n_sessions + s->durable.unaccounted + memory;
        uint64_t left = s->descriptor_limit > own + memory ? s->descriptor_limit - own - memory : 0;
        uint64_t room = fdstore_max(s->durable.manager);
        return kept_too ? MIN(left, room > kept ? room - kept : 0) : left;
}

unsigned server_duplicates_left(const struct server *s) {
        uint64_t most = s->descriptor_limit / DUPLICATES_PART;
        return most > s->duplicates ? (unsigned)MIN(most - s->duplicates, (uint64_t)UINT32_MAX) : 0;
}

void server_session_known(struct server *s, struct session *session) {
        session->id = ++s->last_session;
        list_unlink(&session->link);
        s->n_strangers--;
        list_append(&s->sessions, &session->link);
        s->n_sessions++;
}

void server_session_dead(struct server *s, struct session *session) {
        if (session->id != 0)
                s->n_sessions--;
        else
                s->n_strangers--;
        list_unlink(&session->link);
        list_append(&s->dead, &session->link);
        event_active(s->reap, 0, 0);
}

static void on_reap(evutil_socket_t fd, short what, void *arg) {
        struct server *s = arg;
        (void)fd, (void)what;
        bool freed = !list_empty(&s->dead);
        list_for_safe(session, &s->dead, struct session, link)
                session_free(session);
        forget_idle_stores(s);
        /* Here, where no change is under way. */
        if (steal_flag(&s->compact))
                durable_compact(&s->durable, s);
        durable_sent(&s->durable, s);
        /* The descriptors that accepting waits for. */
        if (freed && evtimer_pending(s->resume_accept, NULL))
                event_active(s->resume_accept, 0, 0);
}

static void watch_silence(struct server *s) {
        struct session *oldest = list_first(&s->strangers, struct session, link);
        if (!oldest || evtimer_pending(s->silence, NULL))
                return;
        uint64_t age = now_ms() - oldest->since;
        struct timeval tv = in_ms(age < SILENCE_MAX_MS ? SILENCE_MAX_MS - age : 0);
        (void)evtimer_add(s->silence, &tv);
}

static void on_silence(evutil_socket_t fd, short what, void *arg) {
        struct server *s = arg;
        (void)fd, (void)what;
        for (;;) {
                struct session *oldest = list_first(&s->strangers, struct session, link);
                if (!oldest || now_ms() - oldest->since < SILENCE_MAX_MS)
                        break;
                session_refuse_and_close(oldest, GMS__STATUS__TIMED_OUT, "no hello came within %u s; the connection ends",
                                         SILENCE_MAX_MS / 1000);
                session_end(oldest); /* also if it does not take the refusal */
        }
        watch_silence(s);
}

static void on_accept(evutil_socket_t fd, short what, void *arg) {
        struct server *s = arg;
        (void)what;
        uint64_t most = MAX(16u, MIN((uint64_t)STRANGERS_MAX, s->descriptor_limit / 8));
        for (int i = 0; i < ACCEPT_AT_ONCE; i++) {
                int c = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (c < 0) {
                        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                                /* They stay in the backlog; trying at once would spin. */
                                struct timeval tv = in_ms(ACCEPT_PAUSE_MS);
                                if (!s->accept_paused)
                                        log_warning("accepting pauses: %s", strerror(errno));
                                s->accept_paused = true;
                                (void)event_del(s->listening);
                                (void)evtimer_add(s->resume_accept, &tv);
                        }
                        break;
                }
                s->accept_paused = false;
                struct session *session;
                if (session_new_consume(&session, s, c) < 0)
                        continue;
                list_append(&s->strangers, &session->link);
                if (++s->n_strangers > most) {
                        struct session *oldest = list_first(&s->strangers, struct session, link);
                        session_refuse_and_close(oldest, GMS__STATUS__LIMIT,
                                                 "no hello came, and %" PRIu64 " connections wait to say one; connect again and "
                                                 "say hello at once",
                                                 most);
                        session_end(oldest);
                }
        }
        watch_silence(s);
}

static void on_resume_accept(evutil_socket_t fd, short what, void *arg) {
        struct server *s = arg;
        (void)fd, (void)what;
        (void)evtimer_del(s->resume_accept);
        (void)event_add(s->listening, NULL);
}

/* ---- listening */

/* Only its own directory: /run/gms, $XDG_RUNTIME_DIR/gms. */
static int make_directory(const char *socket, int *ret_dir) {
        _cleanup_free_ char *dir = strdup(socket);
        if (!dir)
                return -ENOMEM;
        char *slash = strrchr(dir, '/');
        if (slash)
                slash[slash == dir] = 0;
        const char *path = slash ? dir : ".";
        if (mkdir(path, 0755) < 0 && errno != EEXIST) {
                log_error("socket %s: cannot make the directory %s: %s; choose another path with --socket", socket, path,
                          strerror(errno));
                return -errno;
        }
        *ret_dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (*ret_dir < 0) {
                log_error("socket %s: %s: %s", socket, path, strerror(errno));
                return -errno;
        }
        return 0;
}

/* A socket at this path that nobody listens on is left from a daemon that died. 0 when the path is free now. */
static int clear_path(const char *path, const struct sockaddr_un *address) {
        struct stat st;
        if (lstat(path, &st) < 0)
                return errno == ENOENT ? 0 : -errno;
        if (!S_ISSOCK(st.st_mode)) {
                log_error("socket %s: something that is no socket is there; remove it, or choose another path", path);
                return -EEXIST;
        }
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN) {
                log_error("socket %s: another gmsd serves it; stop that one, or choose another path with --socket", path);
                return -EADDRINUSE;
        }
        if (errno != ECONNREFUSED) {
                log_error("socket %s: %s", path, strerror(errno));
                return -errno;
        }
        log_notice("socket %s: replacing that of a daemon that has died", path);
        return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
}

/* A socket that was passed to us: by the manager, or by the daemon before. */
static int take_listening(struct server *s) {
        static const struct {
                const char *name;
                bool own;
        } passed[] = { { "listen", false }, { "gmsd.socket", false }, { "socket", true } };
        for (size_t i = 0; i < ARRAY_SIZE(passed); i++) {
                _cleanup_close_ int fd = kept_steal(&s->durable.kept, passed[i].name);
                struct stat st;
                if (fd < 0 || sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) <= 0)
                        continue;
                if (passed[i].own && (sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, s->config->socket, 0) <= 0 ||
                                      lstat(s->config->socket, &st) < 0 || !S_ISSOCK(st.st_mode))) {
                        fdstore_remove(s->durable.manager, passed[i].name); /* nobody can find it */
                        continue;
                }
                if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
                        return -errno;
                s->listen_fd = steal_fd(&fd);
                s->listen_own = passed[i].own;
        }
        return 0;
}

static int server_bind(struct server *s) {
        const char *path = s->config->socket;
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int dir = -1, fd = -1;

        int r = make_directory(path, &dir);
        if (r < 0)
                return r;
        /* Two daemons that start at once take turns, so that neither removes the other's new socket. */
        for (unsigned waited = 0; flock(dir, LOCK_EX | LOCK_NB) < 0; waited += 10) {
                if (errno != EWOULDBLOCK || waited >= START_PATIENCE_MS) {
                        log_error("socket %s: somebody has its directory locked: %s; another gmsd that starts?", path,
                                  strerror(errno));
                        return -errno;
                }
                (void)usleep(10000);
        }
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        r = clear_path(path, &address);
        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        mode_t old = umask(0777 & ~s->config->socket_mode);
        r = bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
        (void)umask(old);
        if (r == 0 && listen(fd, 4096) < 0)
                r = -errno;
        if (r < 0) {
                log_error("socket %s: %s; choose a path that this user may write, with --socket", path, strerror(-r));
                return r;
        }
        s->listen_fd = steal_fd(&fd);
        s->listen_own = true;
        return fdstore_put(s->durable.manager, "socket", s->listen_fd);
}

static int server_listen(struct server *s) {
        int r = take_listening(s);
        if (r == 0 && s->listen_fd < 0)
                r = server_bind(s);
        if (r < 0)
                return r;
        s->listening = event_new(s->base, s->listen_fd, EV_READ | EV_PERSIST, on_accept, s);
        return s->listening ? 0 : -ENOMEM;
}

/* ---- the daemon's own life */

static void on_end(evutil_socket_t sig, short what, void *arg) {
        struct server *s = arg;
        (void)what;
        log_notice("ending on signal %d", (int)sig);
        fdstore_say(s->durable.manager, "STOPPING=1");
        (void)event_base_loopbreak(s->base);
}

/*
 * Reads the configuration again: new devices are served, caps and the socket's mode are changed. What cannot change under
 * those who use it (a device that is gone from it, another socket) waits for a restart, and is said.
 */
static void on_reload(evutil_socket_t sig, short what, void *arg) {
        struct server *s = arg;
        struct config new;
        (void)sig, (void)what;
        if (config_parse(&new, s->config->argc, s->config->argv) != 0) {
                log_error("the configuration is not good; going on with the old one");
                config_done(&new);
                return;
        }
        if (strcmp(new.socket, s->config->socket) != 0)
                log_warning("another socket needs a restart; still on %s", s->config->socket);
        free(new.socket);
        new.socket = steal_ptr(&s->config->socket);
        config_done(s->config);
        *s->config = new;

        if (s->listen_own && chmod(s->config->socket, s->config->socket_mode) < 0)
                log_warning("socket %s: cannot change its mode: %s", s->config->socket, strerror(errno));
        if (add_configured(s) < 0)
                log_error("not every device of the new configuration can be served");
        for (size_t i = 0; i < s->n_devices; i++) {
                struct device *d = &s->devices[i];
                const char *spec = allocator_info(d->allocator)->spec;
                allocator_set_capacity(d->allocator, configured_capacity(s->config, spec), now_ms());
                device_update(d);
        }
        log_notice("the configuration was read again: %zu devices", s->n_devices);
}

static void on_child(evutil_socket_t sig, short what, void *arg) {
        (void)sig, (void)what, (void)arg;
        while (waitpid(-1, NULL, WNOHANG) > 0)
                ; /* a worker: its socket tells the allocator */
}

static int add_events(struct server *s) {
        struct {
                int signal;
                event_callback_fn callback;
        } signals[] = { { SIGTERM, on_end }, { SIGINT, on_end }, { SIGCHLD, on_child }, { SIGHUP, on_reload } };
        struct event_config *ec = event_config_new();
        if (!ec)
                return -ENOMEM;
        (void)event_config_require_features(ec, EV_FEATURE_EARLY_CLOSE);
        /* A deadline counts from when it was asked for, not from when this turn of the loop began. */
        (void)event_config_set_flag(ec, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_NO_CACHE_TIME);
        s->base = event_base_new_with_config(ec);
        event_config_free(ec);
        if (!s->base)
                return -ENOMEM;

        for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
                s->signals[i] = evsignal_new(s->base, signals[i].signal, signals[i].callback, s);
                if (!s->signals[i] || event_add(s->signals[i], NULL) < 0)
                        return -ENOMEM;
        }
        s->reap = event_new(s->base, -1, 0, on_reap, s);
        s->resume_accept = evtimer_new(s->base, on_resume_accept, s);
        s->silence = evtimer_new(s->base, on_silence, s);
        s->alive = evtimer_new(s->base, on_alive, s);
        s->manager_later = evtimer_new(s->base, on_manager, s);
        uint64_t watchdog = 0;
        s->alive_every = ALIVE_MS;
        if (sd_watchdog_enabled(0, &watchdog) > 0)
                s->alive_every = MAX(1u, MIN(s->alive_every, watchdog / 2000));
        return s->reap && s->resume_accept && s->silence && s->alive && s->manager_later ? 0 : -ENOMEM;
}

/* A daemon that could not take up what the one before left must not end it: the next may do better. */
static void leave_as_it_is(const struct server *s) {
        if (s->durable.restored && !s->serving)
                _exit(1);
}

int server_new(struct server **ret_server, struct config *config) {
        struct server *s = calloc(1, sizeof(*s));
        struct rlimit limit;
        if (!s)
                return -ENOMEM;
        s->config = config;
        s->listen_fd = -1;
        s->started = now_ms();
        s->descriptor_limit = getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 1024;
        list_init(&s->sessions);
        list_init(&s->strangers);
        list_init(&s->dead);
        list_init(&s->processes);
        list_init(&s->parked);
        list_init(&s->retired);
        (void)signal(SIGPIPE, SIG_IGN);

        /* First of all: a journal that is not for us must be left as it is. */
        int r = durable_init(&s->durable);
        if (r < 0) {
                durable_done(&s->durable);
                free(s);
                return r;
        }
        r = add_events(s);
        if (r < 0)
                log_error("cannot make the event loop: %s", strerror(-r));
        if (r == 0)
                r = server_listen(s);
        if (r == 0)
                r = add_devices(s);
        if (r < 0) {
                leave_as_it_is(s);
                server_free(s);
                return r;
        }
        *ret_server = s;
        return 0;
}

static void remove_socket(struct server *s) {
        if (s->listen_fd < 0)
                return;
        if (s->listen_own) {
                (void)unlink(s->config->socket);
                fdstore_remove(s->durable.manager, "socket");
        }
        s->listen_fd = close_fd(s->listen_fd);
}

static void sessions_end(struct list *sessions) {
        while (!list_empty(sessions))
                session_end(list_first(sessions, struct session, link));
}

struct server *server_free(struct server *s) {
        if (!s)
                return NULL;
        remove_socket(s);
        s->status = 1; /* not to serve any more */
        sessions_end(&s->strangers);
        sessions_end(&s->sessions);
        list_for_safe(session, &s->dead, struct session, link)
                session_free(session);
        for (size_t i = 0; i < s->n_stores; i++) {
                struct change clear = { .type = CHANGE_CLEAR };
                (void)server_change(s, s->stores[i], &clear);
        }
        if (s->base)
                forget_idle_stores(s);
        list_for_safe(p, &s->processes, struct process, link)
                process_free(p);
        list_for_safe(r, &s->retired, struct retired, link)
                retired_finish(r);
        for (size_t i = 0; i < s->n_devices; i++)
                device_done(&s->devices[i]);
        durable_done(&s->durable);
        struct event *events[] = { s->listening, s->resume_accept, s->reap, s->silence, s->manager, s->manager_later, s->alive };
        for (size_t i = 0; i < ARRAY_SIZE(events); i++)
                if (events[i])
                        event_free(events[i]);
        for (size_t i = 0; i < ARRAY_SIZE(s->signals); i++)
                if (s->signals[i])
                        event_free(s->signals[i]);
        if (s->base)
                event_base_free(s->base);
        free(s->devices);
        free(s->stores);
        free(s);
        return NULL;
}

int server_run(struct server *s) {
        if (event_base_dispatch(s->base) < 0)
                s->status = 1;
        leave_as_it_is(s);
        if (s->status == 0 && durable_records(&s->durable)) {
                /* Stopped or restarted, the manager decides: nothing that it keeps is let go of, and nobody is told. */
                remove_socket(s);
                server_flush_manager(s);
                _exit(0);
        }
        return s->status;
}
