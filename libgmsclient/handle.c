// SPDX-License-Identifier: MIT
#include "handle.h"

#include <stdio.h>

#define CONNECT_TRIES 4u /* daemons that may die under one connect */

const char *gms_version(void) {
        return GMS_VERSION;
}

/* ---- entering */

int handle_enter(struct gms *g, struct gms **ret_held) {
        if (!g)
                return error_set(-EINVAL, "no handle given; gms_open() makes one");
        /* Before the mutex: another thread of the parent may have held it at fork(), and here it would stay held. */
        if (g->pid != getpid())
                return error_set(-ECHILD,
                                 "the handle was inherited over fork() and works in process %d only; open one here",
                                 (int)g->pid);
        (void)pthread_mutex_lock(&g->mutex);
        *ret_held = g;
        return 0;
}

void handle_leave(struct gms **held) {
        if (*held)
                (void)pthread_mutex_unlock(&(*held)->mutex);
}

static int handle_look_again(struct gms *g);

int handle_enter_session(struct gms *g, struct gms **ret_held) {
        int r = handle_enter(g, ret_held);
        if (r == 0 && g->looks) {
                (void)conn_drain(&g->conn);
                (void)handle_look_again(g);
        }
        if (r == 0 && !conn_is_open(&g->conn))
                r = error_set(-ENOTCONN, "not connected; gms_connect() first");
        return r;
}

int handle_enter_holder(struct gms *g, struct gms **ret_held) {
        int r = handle_enter_session(g, ret_held);
        if (r == 0 && g->mode == GMS_MODE_NONE)
                r = error_set(-EACCES, "this session looks only and has no layout; connect with another mode");
        return r;
}

/* ---- requests */

int handle_call_fds(struct gms *g, Gms__Frame *request, Gms__Frame__BodyCase expected, Gms__Frame **ret_reply,
                    struct fdset **ret_fds) {
        struct error_saved saved;
        int r = conn_call(&g->conn, request, expected, 0, ret_reply, ret_fds);
        /* Whether a store was cleared is not known then, and clearing it twice may take what came in between. */
        if (r != -ECONNRESET || !g->looks || request->body_case == GMS__FRAME__BODY_CLEAR)
                return r;
        error_save(&saved);
        if (handle_look_again(g) == 0)
                return conn_call(&g->conn, request, expected, 0, ret_reply, ret_fds);
        error_restore(&saved);
        return r;
}

int handle_call(struct gms *g, Gms__Frame *request, Gms__Frame__BodyCase expected, Gms__Frame **ret_reply) {
        return handle_call_fds(g, request, expected, ret_reply, NULL);
}

int handle_do(struct gms *g, Gms__Frame *request) {
        _cleanup_frame_ Gms__Frame *reply = NULL;
        return handle_call(g, request, GMS__FRAME__BODY_DONE, &reply);
}

int handle_work(struct gms *g, const Gms__Layout *layout) {
        g->work = (struct work){};
        if (layout) {
                g->work.allocations = layout->allocations;
                g->work.bytes = layout->bytes;
        }
        return layout_id_from(&g->work.id, layout);
}

void handle_describe(const struct mapping *m, struct gms_allocation *ret) {
        *ret = (struct gms_allocation){
                .size = sizeof(*ret),
                .access = m->access,
                .id = m->id,
                .slot = m->slot,
                .bytes = m->bytes,
                .aligned = m->aligned,
                .address = m->address,
        };
        memcpy(ret->tag, m->tag, sizeof(ret->tag));
}

/* ---- opening and closing */

static int default_socket(char **ret_path) {
        const char *path = secure_getenv("GMS_SOCKET");
        const char *dir = geteuid() == 0 ? NULL : secure_getenv("XDG_RUNTIME_DIR");
        if (path && *path)
                return (*ret_path = strdup(path)) ? 0 : -ENOMEM;
        return asprintf(ret_path, "%s/gms/gmsd.sock", dir && *dir ? dir : "/run") < 0 ? -ENOMEM : 0;
}

static int check_store(const char *store) {
        const char *slash = strchr(store, '/');
        if (!slash || slash == store || slash[1] == '\0' || !wire_text_ok(store, WIRE_STORE_MAX))
                return error_set(-EINVAL,
                                 "'%.200s' is no store: DEVICE/NAME is, such as cuda:0/weights or host/weights, of at "
                                 "most %u bytes of UTF-8 without control characters",
                                 store, WIRE_STORE_MAX);
        return 0;
}

static struct gms *handle_free(struct gms *g) {
        space_done(&g->space, g->vmm);
        layout_done(&g->known);
        vmm_free(g->vmm);
        conn_done(&g->conn);
        events_done(&g->events);
        free(g->socket);
        free(g->store);
        free(g);
        return NULL;
}

static void handle_freep(struct gms **g) {
        if (*g)
                *g = handle_free(*g);
}

int gms_open(struct gms **ret_handle, const char *socket, const char *store) {
        if (!ret_handle)
                return error_set(-EINVAL, "gms_open: nowhere to put the handle");
        int r = store ? check_store(store) : 0;
        if (r < 0)
                return r;

        _cleanup_(handle_freep) struct gms *g = calloc(1, sizeof(*g));
        if (!g)
                return error_errno(-ENOMEM, "gms_open");
        g->refs = 1;
        g->pid = getpid();
        g->deadline_ms = 5000;
        g->events = (struct events){ .epoll_fd = -1, .event_fd = -1 };
        space_init(&g->space);
        conn_init(&g->conn, &g->events);

        r = socket ? ((g->socket = strdup(socket)) ? 0 : -ENOMEM) : default_socket(&g->socket);
        if (r == 0 && store && !(g->store = strdup(store)))
                r = -ENOMEM;
        if (r == 0)
                r = events_init(&g->events);
        if (r < 0)
                return error_errno(r, "gms_open");
        r = conn_check_path(g->socket);
        if (r < 0)
                return r;

        (void)pthread_mutex_init(&g->mutex, NULL);
        *ret_handle = steal_ptr(&g);
        return 0;
}

/* What is mapped, and the device's context, stay as they are: the bookkeeping alone goes. */
static void handle_leave_memory(struct gms *g) {
        space_done(&g->space, NULL);
        free(steal_ptr(&g->vmm));
}

/*
 * In a forked child: what is the child's own goes, and nothing is said to the daemon. Host mappings were copied by fork()
 * and are taken down. CUDA's were not, and its driver must not be called in a child of a process that has initialised it:
 * only the memory of the struct goes, which begins with its vmm whatever the kind.
 */
static void handle_abandon(struct gms *g) {
        if (g->vmm && strcmp(g->vmm->device.uuid, "host") != 0)
                handle_leave_memory(g);
        handle_free(g);
}

static void handle_close(struct gms *g) {
        if (g->pid != getpid()) {
                handle_abandon(g);
                return;
        }
        /* First the memory, then the lock: whoever is granted next finds the room. */
        if (__atomic_load_n(&g->keeps_mappings, __ATOMIC_RELAXED))
                handle_leave_memory(g);
        else if (g->vmm)
                (void)mappings_unmap(g->vmm, g->known.at, g->known.n);
        conn_close(&g->conn);
        (void)pthread_mutex_destroy(&g->mutex);
        handle_free(g);
}

struct gms *handle_ref(struct gms *g) {
        (void)__atomic_add_fetch(&g->refs, 1, __ATOMIC_RELAXED);
        return g;
}

struct gms *handle_unref(struct gms *g) {
        if (g && __atomic_sub_fetch(&g->refs, 1, __ATOMIC_ACQ_REL) == 0)
                handle_close(g);
        return NULL;
}

void gms_close(struct gms *g) {
        (void)handle_unref(g);
}

/* ---- connecting */

/* Opens the device here that the daemon calls by the same UUID, once. */
static int handle_device(struct gms *g, const Gms__Device *device) {
        if (!device || device->granularity == 0 || (device->granularity & (device->granularity - 1)) != 0)
                return error_set(-EPROTO, "the daemon did not say which device the store is on");
        (void)snprintf(g->device.uuid, sizeof(g->device.uuid), "%s", device->uuid);
        g->device.total = device->total;
        g->device.granularity = device->granularity;

        /* What the daemon aligns to is aligned here as well. */
        if (g->vmm && strcmp(g->vmm->device.uuid, g->device.uuid) == 0 &&
            g->vmm->device.granularity <= device->granularity)
                return 0;
        if (g->vmm && (g->known.n > 0 || !list_empty(&g->space.regions) || __atomic_load_n(&g->refs, __ATOMIC_RELAXED) > 1))
                return error_set(-ENODEV,
                                 "%s is on %s now and was on %s, where this handle has addresses or pools; use a new handle",
                                 g->store, g->device.uuid, g->vmm->device.uuid);

        g->vmm = vmm_free(g->vmm);
        bool huge = strcmp(g->device.uuid, "host") == 0 && device->granularity > (uint64_t)sysconf(_SC_PAGESIZE);
        char text[sizeof(g->vmm->text)] = "";
        int r = vmm_open(&g->vmm, huge ? "host,huge" : g->device.uuid, text, sizeof(text));
        if (r != 0)
                return error_vmm_text(text, r, "open the store's device in this process");
        return 0;
}

static int handle_welcome(struct gms *g, const Gms__Welcome *welcome) {
        if (welcome->protocol < WIRE_PROTOCOL_MIN || welcome->protocol > WIRE_PROTOCOL_MAX)
                return error_set(-EPROTONOSUPPORT, "the daemon chose protocol %u; this library speaks %u to %u",
                                 welcome->protocol, WIRE_PROTOCOL_MIN, WIRE_PROTOCOL_MAX);
        g->mode = (uint32_t)welcome->mode;
        g->session = welcome->session;
        g->known.current = false;
        int r = handle_work(g, welcome->layout);
        if (r == 0 && g->mode != GMS_MODE_NONE)
                r = handle_device(g, welcome->device);
        g->grants++;
        handle_set_writer(g, handle_writes(g) ? g->grants : 0);
        return r;
}

static int handle_hello(struct gms *g, const struct gms_connect_options *o) {
        Gms__Deadline deadline = GMS__DEADLINE__INIT;
        deadline.ms = o->deadline_ms;
        Gms__Hello hello = GMS__HELLO__INIT;
        hello.protocol_min = WIRE_PROTOCOL_MIN;
        hello.protocol_max = WIRE_PROTOCOL_MAX;
        hello.label = (char *)o->label;
        hello.store = o->mode == GMS_MODE_NONE ? (char *)"" : g->store;
        hello.mode = (Gms__Mode)o->mode;
        hello.deadline = o->deadline_ms == GMS_FOREVER ? NULL : &deadline;
        hello.identity = g->identity;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_HELLO;
        request.hello = &hello;

        _cleanup_frame_ Gms__Frame *reply = NULL;
        g->conn.interruptible = true;
        int r = conn_call(&g->conn, &request, GMS__FRAME__BODY_WELCOME, o->deadline_ms, &reply, NULL);
        g->conn.interruptible = false;
        return r < 0 ? r : handle_welcome(g, reply->welcome);
}

static int check_options(struct gms *g, struct gms_connect_options *o) {
        if (o->mode > GMS_MODE_ADOPT)
                return error_set(-EINVAL, "connect: %u is no mode; GMS_MODE_NONE to GMS_MODE_ADOPT are", o->mode);
        if (o->mode != GMS_MODE_NONE && !g->store)
                return error_set(-EINVAL, "connect: this handle has no store, so GMS_MODE_NONE is its only mode");
        if (!o->label)
                o->label = program_invocation_short_name;
        if (o->label == program_invocation_short_name && !wire_text_ok(o->label, WIRE_LABEL_MAX))
                o->label = "unnamed";
        if (!wire_text_ok(o->label, WIRE_LABEL_MAX))
                return error_set(-EINVAL, "connect: the label must be at most %u bytes of UTF-8, without control characters",
                                 WIRE_LABEL_MAX);
        if (o->identity && !wire_text_ok(o->identity, WIRE_IDENTITY_MAX))
                return error_set(-EINVAL, "connect: the identity must be at most %u bytes of UTF-8, without control characters",
                                 WIRE_IDENTITY_MAX);
        return 0;
}

static int handle_connect_once(struct gms *g, const struct gms_connect_options *o) {
        uint64_t patience;
        if (__builtin_add_overflow(o->deadline_ms, CONN_PATIENCE_HELLO_MS, &patience))
                patience = CONN_FOREVER;
        int r = conn_open(&g->conn, g->socket, patience);
        if (r == 0)
                r = handle_hello(g, o);
        if (r < 0) {
                conn_close(&g->conn);
                events_clear(&g->events);
        }
        return r;
}

/*
 * A daemon that goes before it has answered the first words has given nothing: the next one is asked, if one listens. The
 * time that has passed counts.
 */
static int handle_connect(struct gms *g, const struct gms_connect_options *options) {
        struct gms_connect_options o = *options;
        uint64_t began = conn_now_ms();
        int r = handle_connect_once(g, &o);
        for (unsigned tries = 1; r == -ECONNRESET && tries < CONNECT_TRIES; tries++) {
                uint64_t passed = conn_now_ms() - began;
                if (options->deadline_ms > 0 && options->deadline_ms != GMS_FOREVER)
                        o.deadline_ms = options->deadline_ms > passed ? options->deadline_ms - passed : 1;
                r = handle_connect_once(g, &o);
        }
        return r;
}

/* Connects again where the connection has gone. */
static int handle_look_again(struct gms *g) {
        if (conn_is_open(&g->conn))
                return 0;
        struct gms_connect_options o = { .mode = GMS_MODE_NONE, .label = g->label };
        int r = handle_connect(g, &o);
        g->looks = r == 0;
        return r;
}

int gms_connect(struct gms *g, const struct gms_connect_options *options) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r == 0)
                r = sized_check(options, "struct gms_connect_options");
        if (r < 0)
                return r;

        struct gms_connect_options o;
        sized_load(&o, sizeof(o), options);
        r = check_options(g, &o);
        if (r < 0)
                return r;
        (void)conn_drain(&g->conn); /* a daemon that has gone unnoticed is no connection */
        if (conn_is_open(&g->conn))
                return error_set(-EISCONN, "connect: connected already; gms_disconnect() first");

        events_clear(&g->events);
        (void)snprintf(g->identity, sizeof(g->identity), "%s", o.identity ? o.identity : "");
        r = handle_connect(g, &o);
        g->looks = r == 0 && o.mode == GMS_MODE_NONE;
        (void)snprintf(g->label, sizeof(g->label), "%s", o.label);
        return r;
}

int gms_disconnect(struct gms *g) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_session(g, &held);
        if (r < 0)
                return r;
        conn_close(&g->conn);
        events_clear(&g->events);
        handle_set_writer(g, 0);
        g->looks = false;
        g->known.current = false;
        return 0;
}

/* ---- events */

int gms_get_fd(struct gms *g) {
        if (!g || g->pid != getpid())
                return error_set(g ? -ECHILD : -EINVAL, "gms_get_fd: %s",
                                 g ? "the handle was inherited over fork()" : "no handle");
        return g->events.epoll_fd;
}

int gms_dispatch(struct gms *g, struct gms_event *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r == 0)
                r = sized_check(ret, "struct gms_event");
        if (r < 0)
                return r;

        (void)conn_drain(&g->conn); /* a failure is an event: CLOSED */
        struct gms_event event;
        if (!events_pop(&g->events, &event))
                return 0;
        sized_store(ret, ret->size, &event, sizeof(event));
        return 1;
}
