// SPDX-License-Identifier: MIT
/*
 * A real server in this process, its real host worker, real sockets: any bytes as what four clients do. Whatever they do,
 * what they are told makes sense, and when they are gone nothing is left: no session, no store, no byte, no descriptor.
 *
 * An input is steps; the first byte of a step says who (two bits) and what (three bits):
 *   HELLO    one byte: the mode, which of two stores, a deadline, an identity
 *   REQUEST  one byte: the kind, and whether the serial of the last one is used again; then sample_chosen()
 *   RAW      one byte: how many; then so many bytes as a frame
 *   FDS      one byte: the kind, with a descriptor that no client may send
 *   CLOSE, READ (what came), WAIT (for the worker), TURN (the server has its turn)
 */
#undef NDEBUG
#include <dirent.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fuzz.h"
#include "log.h"
#include "sample.h"
#include "session.h"

#define CLIENTS 4
#define STEPS_MAX 200
#define PATIENCE 10000 /* times 1 ms until what must end has ended */

enum step { HELLO, REQUEST, RAW, FDS, CLOSE, READ, WAIT, TURN };

static struct server *server;
static struct config config;
static char dir[] = "/tmp/gms-fuzz-XXXXXX", path[64];
static struct {
        int fd;
        uint64_t serial;
} clients[CLIENTS];
static int fds_at_rest;

/* The log's lines are not wanted here, but nothing that a client sends may break them. */
void log_line(int level, const char *format, ...) {
        char line[2048];
        va_list args;
        va_start(args, format);
        (void)vsnprintf(line, sizeof(line), format, args);
        va_end(args);
        for (const char *p = line; *p; p++)
                assert((unsigned char)*p >= 0x20 && *p != 0x7f);
        assert(level >= 3); /* nothing worse than an error */
        if (getenv("V"))
                (void)fprintf(stderr, "<%d>%s\n", level, line);
}

/* Those that are open, said if wanted. Pipes are not counted: the fuzzer has some to its symbolizer. */
static int count_fds(bool say) {
        DIR *d = opendir("/proc/self/fd");
        struct dirent *e;
        int n = 0;
        assert(d);
        while ((e = readdir(d))) {
                char what[128] = "";
                if (readlinkat(dirfd(d), e->d_name, what, sizeof(what) - 1) < 0 || strncmp(what, "pipe:", 5) == 0)
                        continue;
                n++;
                if (say)
                        (void)fprintf(stderr, "open: %s %s\n", e->d_name, what);
        }
        (void)closedir(d);
        return n;
}

/* ---- the server's turn */

static void turn(void) {
        (void)event_base_loop(server->base, EVLOOP_NONBLOCK);
        (void)event_base_loop(server->base, EVLOOP_NONBLOCK);
}

/* Gives the worker a moment to answer. */
static void turn_with_worker(void) {
        struct pollfd p = { .fd = allocator_fd(server->devices[0].allocator), .events = POLLIN };
        turn();
        (void)poll(&p, 1, 1);
        turn();
}

static bool allocating(void) {
        list_for(s, &server->sessions, struct session, link)
                if (s->job)
                        return true;
        return false;
}

static bool at_rest(void) {
        const struct allocator *a = server->devices[0].allocator;
        return server->n_sessions + server->n_strangers + server->n_stores == 0 && list_empty(&server->dead) &&
               allocator_owned(a) == 0 && allocator_descriptors(a) == 0 && allocator_waiting(a) == 0;
}

/* ---- clients */

static int client_fd(unsigned i) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        if (clients[i].fd >= 0)
                return clients[i].fd;
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        clients[i].fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        assert(clients[i].fd >= 0);
        assert(connect(clients[i].fd, (struct sockaddr *)&address, sizeof(address)) == 0);
        clients[i].serial = 0;
        return clients[i].fd;
}

/* What the daemon says is a frame of the protocol, whose parts agree. */
static void check_answer(const Gms__Frame *f, unsigned n_fds) {
        bool event = f->body_case == GMS__FRAME__BODY_EVENT;
        assert(!event || f->serial == 0);
        assert(!f->text || wire_text_ok(f->text, 4096));
        if (f->status != GMS__STATUS__OK)
                assert(f->body_case == GMS__FRAME__BODY__NOT_SET && f->text && *f->text);
        else
                assert(event || (f->body_case >= GMS__FRAME__BODY_DONE && f->body_case < GMS__FRAME__BODY_EVENT));
        assert(n_fds == 0 || f->body_case == GMS__FRAME__BODY_ALLOCATED || f->body_case == GMS__FRAME__BODY_ALLOCATIONS);
}

static void client_read(unsigned i) {
        static uint8_t buf[CHANNEL_FRAME_MAX];
        while (clients[i].fd >= 0) {
                _cleanup_(fdset_freep) struct fdset *fds = NULL;
                _cleanup_frame_ Gms__Frame *frame = NULL;
                size_t len;
                int r = channel_recv(clients[i].fd, buf, &len, &fds);
                if (r != 0) {
                        assert(r == CHANNEL_E_AGAIN || r == CHANNEL_E_EOF);
                        if (r == CHANNEL_E_AGAIN)
                                return;
                        clients[i].fd = close_fd(clients[i].fd);
                        continue;
                }
                unsigned n = fds ? fds->n : 0;
                assert(wire_unpack(buf, len, n, &frame) == 0);
                check_answer(frame, n);
        }
}

/* Sends; who does not read may find no room, and who was sent away nobody. */
static void client_send(unsigned i, Gms__Frame *frame, int with_fd) {
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        if (with_fd >= 0) {
                assert(fdset_new(&fds, 1, false) == 0);
                fdset_add(fds, with_fd);
        }
        if (wire_pack(frame, with_fd >= 0, &bytes, &len) == 0)
                (void)channel_send(client_fd(i), bytes, len, fds);
}

static void client_hello(unsigned i, uint8_t b) {
        static const char *const stores[] = { "host/a", "host/b" };
        Gms__Deadline now = GMS__DEADLINE__INIT;
        Gms__Hello hello = GMS__HELLO__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        hello.protocol_min = WIRE_PROTOCOL_MIN;
        hello.protocol_max = WIRE_PROTOCOL_MAX;
        hello.label = (char *)"fuzz";
        hello.mode = (Gms__Mode)((b & 7) % 6);
        hello.store = (char *)(hello.mode == GMS__MODE__NONE ? "" : stores[b >> 3 & 1]);
        hello.deadline = b & 0x10 ? &now : NULL;
        hello.identity = (char *)(b & 0x20 ? "v1" : "");
        f.body_case = GMS__FRAME__BODY_HELLO;
        f.hello = &hello;
        (void)client_fd(i);
        f.serial = ++clients[i].serial;
        client_send(i, &f, -1);
}

static void client_request(unsigned i, uint8_t b, struct source *in, int with_fd) {
        _cleanup_frame_ Gms__Frame *f = sample_chosen((b & 0x7f) % sample_kinds(), in);
        (void)client_fd(i);
        f->serial = clients[i].serial += !(b & 0x80);
        client_send(i, f, with_fd);
}

static void client_raw(unsigned i, struct source *in) {
        size_t n = source_byte(in), left = (size_t)(in->end - in->next);
        n = n < left ? n : left;
        (void)channel_send(client_fd(i), in->next, n, NULL);
        in->next += n;
}

static void take_step(struct source *in) {
        uint8_t b = source_byte(in);
        unsigned who = b & 3;
        switch ((enum step)(b >> 2 & 7)) {
        case HELLO:
                client_hello(who, source_byte(in));
                break;
        case REQUEST:
                client_request(who, source_byte(in), in, -1);
                break;
        case RAW:
                client_raw(who, in);
                break;
        case FDS:
                client_request(who, source_byte(in), in, client_fd((who + 1) % CLIENTS));
                break;
        case CLOSE:
                clients[who].fd = close_fd(clients[who].fd);
                break;
        case READ:
                client_read(who);
                break;
        case WAIT:
                for (int i = 0; i < 50 && allocating(); i++)
                        turn_with_worker();
                break;
        case TURN:
                break;
        }
        turn();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct source in = { data, data + size };
        for (int i = 0; i < STEPS_MAX && in.next < in.end; i++)
                take_step(&in);
        for (unsigned i = 0; i < CLIENTS; i++)
                client_read(i);
        for (unsigned i = 0; i < CLIENTS; i++)
                clients[i].fd = close_fd(clients[i].fd);
        for (int i = 0; i < PATIENCE && server->n_sessions + server->n_strangers > 0; i++)
                turn_with_worker();
        assert(server->n_sessions + server->n_strangers == 0);
        /* What was published or sealed outlives them all, and goes when an administrator says so. */
        for (size_t i = 0; i < server->n_stores; i++) {
                struct change clear = { .type = CHANGE_CLEAR };
                assert(server_change(server, server->stores[i], &clear) == 0);
        }
        for (int i = 0; i < PATIENCE && !at_rest(); i++)
                turn_with_worker();
        if (!at_rest())
                (void)fprintf(stderr, "left: %zu sessions, %zu strangers, %zu stores, %llu bytes, %llu descriptors\n",
                              server->n_sessions, server->n_strangers, server->n_stores,
                              (unsigned long long)allocator_owned(server->devices[0].allocator),
                              (unsigned long long)allocator_descriptors(server->devices[0].allocator));
        assert(at_rest());
        assert(count_fds(false) == fds_at_rest || count_fds(true) == fds_at_rest);
        return 0;
}

/* ---- begin and end */

static void end(void) {
        server = server_free(server);
        config_done(&config);
        (void)rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
        /* The server starts its workers from its own image. */
        if (*argc > 1 && strcmp((*argv)[1], "--worker") == 0)
                _exit(worker_main());

        static const uint8_t warm_up[] = { HELLO << 2, 3, WAIT << 2, READ << 2 };
        (void)unsetenv("NOTIFY_SOCKET");
        assert(mkdtemp(dir));
        (void)snprintf(path, sizeof(path), "%s/socket", dir);
        config.socket = strdup(path);
        config.socket_mode = 0600;
        assert(config.socket && config_add_device(&config, "host:64M", false) == 0);
        assert(server_new(&server, &config) == 0);
        (void)atexit(end);
        while (!server->serving)
                turn_with_worker();
        for (unsigned i = 0; i < CLIENTS; i++)
                clients[i].fd = -1;

        /* What is opened once and kept is open after the first session: the watch on this process. */
        struct source in = { warm_up, warm_up + sizeof(warm_up) };
        while (in.next < in.end)
                take_step(&in);
        clients[0].fd = close_fd(clients[0].fd);
        while (!at_rest())
                turn_with_worker();
        fds_at_rest = count_fds(false);
        return 0;
}
