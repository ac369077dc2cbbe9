// SPDX-License-Identifier: MIT
/* gmsctl as people and scripts use it: the built program against the built daemon, on host memory. */
#undef NDEBUG
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "run.h"

#define STORE "host/test"

static double now_s(void) {
        struct timespec ts;
        (void)clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Two files: "alpha" of 5,000 bytes and "beta" of 100. */
static void publish_two(void) {
        run_make_file("alpha", 5000);
        run_make_file("beta", 100);
        _cleanup_outcome_ struct outcome o =
                ctl("publish", STORE, run_path("alpha"), run_path("beta"), "--identity", "two files");
        ck_assert_msg(o.code == 0, "%s", o.err);
        ck_assert_str_eq(o.err, ""); /* no progress where there is no terminal */
}

static const json_t *find(const json_t *list, const char *key, const char *value) {
        size_t i;
        json_t *entry;
        json_array_foreach(list, i, entry)
                if (strcmp(json_string_value(json_object_get(entry, key)), value) == 0)
                        return entry;
        return NULL;
}

static json_int_t number(const json_t *object, const char *key) {
        const json_t *n = json_object_get(object, key);
        ck_assert_msg(json_is_integer(n), "no number: %s", key);
        return json_integer_value(n);
}

static const char *text(const json_t *object, const char *key) {
        const char *s = json_string_value(json_object_get(object, key));
        ck_assert_msg(s != NULL, "no text: %s", key);
        return s;
}

/* ---- without a daemon */

START_TEST(help) {
        static const char *const commands[] = { "status", "list", "show", "sessions", "clear", "publish", "fetch",
                                                "load", "verify" };
        _cleanup_outcome_ struct outcome all = ctl("--help");

        ck_assert_int_eq(all.code, 0);
        ck_assert_str_eq(all.err, "");
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
                ck_assert_ptr_nonnull(strstr(all.out, commands[i]));
                _cleanup_outcome_ struct outcome one = ctl(commands[i], "--help");
                ck_assert_int_eq(one.code, 0);
                ck_assert_ptr_nonnull(strstr(one.out, commands[i]));
                ck_assert_ptr_nonnull(strstr(one.out, "JSON"));
        }
}
END_TEST

START_TEST(version) {
        _cleanup_outcome_ struct outcome o = ctl("--version");
        ck_assert_int_eq(o.code, 0);
        ck_assert_str_eq(o.out, "gmsctl " GMS_VERSION "\n");
}
END_TEST

START_TEST(usage) {
        static const char *const lines[][6] = {
                { NULL },
                { "frobnicate" },
                { "--frobnicate" },
                { "status", "-x" },
                { "status", "extra" },
                { "status", "--force" },
                { "list", "host/a", "host/b" },
                { "list", "no-slash" },
                { "show" },
                { "show", "host/" },
                { "show", "/name" },
                { "clear" },
                { "clear", STORE, "--wait", "1" },
                { "publish", STORE },
                { "publish", STORE, "-o", "x", "y" },
                { "publish", STORE, "a/same", "b/same" },
                { "load", STORE },
                { "load", STORE, "file", "--threads", "0" },
                { "load", STORE, "file", "--threads", "-1" },
                { "load", STORE, "file", "--threads", "many" },
                { "load", STORE, "file", "--tag" },
                { "verify", STORE },
                { "verify", STORE, "file", "--update" },
                { "publish", STORE, "file", "--identity" },
                { "fetch", STORE },
                { "fetch", STORE, "key", "--wait", "soon" },
                { "fetch", STORE, "key", "--wait", "-1" },
                { "fetch", STORE, "key", "--json" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
                struct spawn s = { .args = lines[i], .out_fd = -1, .err_fd = -1 };
                spawn_start(&s);
                _cleanup_outcome_ struct outcome o = spawn_end(&s);
                outcome_refused(&o, 2);
        }
}
END_TEST

START_TEST(no_daemon) {
        static const char *const lines[][4] = {
                { "status" }, { "list" }, { "show", STORE }, { "sessions" }, { "clear", STORE }, { "fetch", STORE, "key" },
                { "publish", STORE, "/proc/self/exe" },
        };
        struct sockaddr_un address = { .sun_family = AF_UNIX };

        for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
                struct spawn s = { .args = lines[i], .out_fd = -1, .err_fd = -1 };
                spawn_start(&s);
                _cleanup_outcome_ struct outcome o = spawn_end(&s);
                outcome_refused(&o, 1);
                ck_assert_ptr_nonnull(strstr(o.err, "gmsd"));
                ck_assert_ptr_nonnull(strstr(o.err, run_socket));
        }

        /* A socket that a daemon left behind when it was killed. */
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", run_socket);
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        close_fd(fd);
        _cleanup_outcome_ struct outcome o = ctl("status");
        outcome_refused(&o, 1);
}
END_TEST

/* ---- looking */

START_TEST(status_of_nothing) {
        _cleanup_outcome_ struct outcome o = ctl("status", "--json"), human = ctl("status");
        _cleanup_json_ json_t *status = outcome_json(&o);
        const json_t *daemon = json_object_get(status, "daemon");
        const json_t *host = find(json_object_get(status, "devices"), "name", "host");

        ck_assert_int_eq(number(daemon, "pid"), run_gmsd);
        ck_assert_str_ne(text(daemon, "version"), "");
        ck_assert_ptr_nonnull(json_object_get(daemon, "uptime_ms"));
        ck_assert(json_is_boolean(json_object_get(daemon, "durable")));
        ck_assert_ptr_nonnull(host);
        ck_assert_str_eq(text(host, "state"), "ready");
        ck_assert_int_gt(number(host, "total"), 0);
        ck_assert_int_eq(number(host, "owned"), 0);
        ck_assert_uint_eq(json_array_size(json_object_get(status, "stores")), 0);

        ck_assert_int_eq(human.code, 0);
        ck_assert_str_eq(human.err, "");
        ck_assert_ptr_nonnull(strstr(human.out, "host"));
        ck_assert_ptr_nonnull(strstr(human.out, "ready"));
}
END_TEST

START_TEST(status_of_a_store) {
        publish_two();
        struct gms *reader = run_connect(STORE, GMS_MODE_RO, "reader");
        _cleanup_outcome_ struct outcome o = ctl("status", "--json"), human = ctl("status");
        _cleanup_json_ json_t *status = outcome_json(&o);
        const json_t *store = find(json_object_get(status, "stores"), "name", STORE);

        ck_assert_ptr_nonnull(store);
        ck_assert_str_eq(text(store, "state"), "RO");
        ck_assert_int_eq(number(store, "readers"), 1);
        ck_assert_int_eq(number(store, "writers"), 0);
        ck_assert_int_eq(number(store, "generation"), 1);
        ck_assert_int_eq(number(store, "allocations"), 2);
        ck_assert_int_ge(number(store, "bytes"), 5100);
        ck_assert_str_eq(text(store, "identity"), "two files");
        ck_assert_uint_eq(strlen(text(store, "hash")), 32);
        ck_assert_uint_eq(strspn(text(store, "hash"), "0123456789abcdef"), 32);
        ck_assert_int_eq(number(find(json_object_get(status, "devices"), "name", "host"), "owned"), number(store, "bytes"));

        ck_assert_int_eq(human.code, 0);
        ck_assert_ptr_nonnull(strstr(human.out, STORE));
        ck_assert_ptr_nonnull(strstr(human.out, "two files"));
        gms_close(reader);
}
END_TEST

START_TEST(list_stores) {
        publish_two();
        _cleanup_outcome_ struct outcome o = ctl("list", "--json"), human = ctl("list");
        _cleanup_json_ json_t *list = outcome_json(&o);

        ck_assert_uint_eq(json_array_size(json_object_get(list, "stores")), 1);
        ck_assert_ptr_nonnull(find(json_object_get(list, "stores"), "name", STORE));
        ck_assert_int_eq(human.code, 0);
        ck_assert_ptr_nonnull(strstr(human.out, STORE));
}
END_TEST

START_TEST(list_allocations) {
        publish_two();
        _cleanup_outcome_ struct outcome o = ctl("--json", "list", STORE), human = ctl("list", STORE);
        _cleanup_json_ json_t *list = outcome_json(&o);
        const json_t *allocations = json_object_get(list, "allocations");
        const json_t *total = find(json_object_get(list, "tags"), "tag", "file");

        ck_assert_uint_eq(json_array_size(allocations), 2);
        ck_assert_int_eq(number(json_array_get(allocations, 0), "bytes"), 5000);
        ck_assert_int_eq(number(json_array_get(allocations, 1), "bytes"), 100);
        ck_assert_str_eq(text(json_array_get(allocations, 0), "tag"), "file");
        ck_assert_int_ge(number(json_array_get(allocations, 0), "aligned"), 5000);
        ck_assert_ptr_nonnull(total);
        ck_assert_int_eq(number(total, "allocations"), 2);
        ck_assert_int_eq(number(total, "bytes"), 5100);

        ck_assert_int_eq(human.code, 0);
        ck_assert_ptr_nonnull(strstr(human.out, "4.9 KiB"));
        ck_assert_ptr_nonnull(strstr(human.out, "100 B"));
}
END_TEST

START_TEST(show) {
        publish_two();
        _cleanup_outcome_ struct outcome o = ctl("show", STORE, "--json"), human = ctl("show", STORE);
        _cleanup_json_ json_t *document = outcome_json(&o);
        const json_t *beta = find(json_object_get(document, "metadata"), "key", "beta");

        ck_assert_str_eq(text(json_object_get(document, "store"), "name"), STORE);
        ck_assert_uint_eq(json_array_size(json_object_get(document, "allocations")), 2);
        ck_assert_uint_eq(json_array_size(json_object_get(document, "metadata")), 2);
        ck_assert_ptr_nonnull(beta);
        ck_assert_int_eq(number(beta, "slot"), number(json_array_get(json_object_get(document, "allocations"), 1), "slot"));
        ck_assert_int_eq(number(beta, "offset"), 0);
        ck_assert_str_eq(text(beta, "value"), "{\"bytes\":100}");
        ck_assert_int_eq(number(beta, "value_size"), 13);

        ck_assert_int_eq(human.code, 0);
        ck_assert_ptr_nonnull(strstr(human.out, "alpha"));
        ck_assert_ptr_nonnull(strstr(human.out, "{\"bytes\":5000}"));
}
END_TEST

/* A writer's own metadata: values that are no text are shown in hexadecimal. */
START_TEST(show_binary_values) {
        static const uint8_t value[40] = { 0xff, 0, 0x1b, '[', '2', 'J' };
        struct gms *writer = run_connect(STORE, GMS_MODE_RW, "writer");
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        struct gms_metadata m = { .size = sizeof(m), .key = "key", .value = value, .value_size = sizeof(value), .offset = 8 };

        ck_assert_int_eq(gms_allocate(writer, 64, "tag", &a), 0);
        m.slot = a.slot;
        ck_assert_int_eq(gms_metadata_put(writer, &m, 1), 0);
        ck_assert_int_eq(gms_commit(writer, NULL, GMS_COMMIT_LEAVE), 0);
        gms_close(writer);

        _cleanup_outcome_ struct outcome o = ctl("show", STORE, "--json"), human = ctl("show", STORE);
        _cleanup_json_ json_t *document = outcome_json(&o);
        const json_t *entry = find(json_object_get(document, "metadata"), "key", "key");
        ck_assert_uint_eq(strlen(text(entry, "value_hex")), 80);
        ck_assert_int_eq(strncmp(text(entry, "value_hex"), "ff001b5b324a00", 14), 0);
        ck_assert_ptr_null(json_object_get(entry, "value"));
        ck_assert_ptr_nonnull(strstr(human.out, "0xff001b5b324a0000"));
        ck_assert_ptr_null(strchr(human.out, 0x1b));

        /* And what such a key names ends with its allocation. */
        _cleanup_outcome_ struct outcome fetched = ctl("fetch", STORE, "key");
        ck_assert_int_eq(fetched.code, 0);
        ck_assert_uint_eq(fetched.out_size, 64 - 8);
}
END_TEST

/* Tensors apart from other metadata, and slabs by their tag when there are many. */
START_TEST(show_tensors) {
        static const int64_t shape[] = { 32, 64 }, strides[] = { 1, 32 };
        struct gms *writer = run_connect(STORE, GMS_MODE_RW, "writer");
        struct gms_metadata m = { .size = sizeof(m), .key = "config", .value = "{}", .value_size = 2 };
        struct gms_tensor t[] = {
                { .name = "model.embed", .dtype = GMS_DTYPE_BF16, .rank = 2, .shape = shape, .offset = 4096, .slot = 3 },
                { .name = "model.head", .dtype = GMS_DTYPE_BF16, .rank = 2, .shape = shape, .offset = 4096, .slot = 3 },
                { .name = "scale", .dtype = GMS_DTYPE_F32, .kind = GMS_TENSOR_BUFFER },
                { .name = "turned", .dtype = GMS_DTYPE_F8_E4M3, .rank = 2, .shape = shape, .strides = strides },
        };
        for (int i = 0; i < 30; i++)
                ck_assert_int_eq(gms_allocate(writer, 8192, "slab", NULL), 0);
        for (size_t i = 0; i < ARRAY_SIZE(t); i++)
                t[i].size = sizeof(t[i]);
        ck_assert_int_eq(gms_metadata_put(writer, &m, 1), 0);
        ck_assert_msg(gms_tensors_put(writer, t, ARRAY_SIZE(t)) == 0, "%s", gms_last_error());
        ck_assert_int_eq(gms_commit(writer, NULL, GMS_COMMIT_LEAVE), 0);
        gms_close(writer);

        _cleanup_outcome_ struct outcome o = ctl("show", STORE, "--json"), human = ctl("show", STORE);
        _cleanup_json_ json_t *document = outcome_json(&o);
        const json_t *tensors = json_object_get(document, "tensors"), *head = find(tensors, "name", "model.head");
        const json_t *scale = find(tensors, "name", "scale"), *turned = find(tensors, "name", "turned");
        ck_assert_uint_eq(json_array_size(tensors), 4);
        ck_assert_uint_eq(json_array_size(json_object_get(document, "metadata")), 1);
        ck_assert_uint_eq(json_array_size(json_object_get(document, "allocations")), 30);
        ck_assert_str_eq(text(head, "dtype"), "BF16");
        ck_assert_str_eq(text(head, "kind"), "parameter");
        ck_assert_int_eq(number(head, "bytes"), 4096);
        ck_assert_int_eq(number(head, "slot"), 3);
        ck_assert_int_eq(number(head, "offset"), 4096);
        ck_assert_int_eq(number(head, "storage_bytes"), 4096);
        ck_assert_int_eq(json_integer_value(json_array_get(json_object_get(head, "shape"), 1)), 64);
        ck_assert_int_eq(json_integer_value(json_array_get(json_object_get(head, "strides"), 0)), 64);
        ck_assert_str_eq(text(scale, "kind"), "buffer");
        ck_assert_uint_eq(json_array_size(json_object_get(scale, "shape")), 0);
        ck_assert_int_eq(json_integer_value(json_array_get(json_object_get(turned, "strides"), 1)), 32);

        ck_assert_int_eq(human.code, 0);
        ck_assert_ptr_nonnull(strstr(human.out, "[32, 64]"));
        ck_assert_ptr_nonnull(strstr(human.out, "[32, 64] strides [1, 32]"));
        ck_assert_ptr_nonnull(strstr(human.out, "F8_E4M3"));
        ck_assert_ptr_nonnull(strstr(human.out, "240.0 KiB")); /* of all slabs */
        ck_assert_ptr_nonnull(strstr(human.out, "config"));
        ck_assert_ptr_null(strstr(human.out, "tensor/"));
}
END_TEST

/* What is no tensor hides nothing. */
START_TEST(show_strange_tensor) {
        static const int64_t shape[] = { 4 };
        struct gms *writer = run_connect(STORE, GMS_MODE_RW, "writer");
        struct gms_metadata m = { .size = sizeof(m), .key = "tensor/strange", .value = "garbage", .value_size = 7 };
        struct gms_tensor t = { .size = sizeof(t), .name = "good", .dtype = GMS_DTYPE_U8, .rank = 1, .shape = shape };
        ck_assert_int_eq(gms_allocate(writer, 64, "tag", NULL), 0);
        ck_assert_int_eq(gms_tensors_put(writer, &t, 1), 0);
        ck_assert_int_eq(gms_metadata_put(writer, &m, 1), 0);
        ck_assert_int_eq(gms_commit(writer, NULL, GMS_COMMIT_LEAVE), 0);
        gms_close(writer);

        _cleanup_outcome_ struct outcome o = ctl("show", STORE, "--json"), human = ctl("show", STORE);
        ck_assert_int_eq(o.code, 1);
        ck_assert_int_eq(human.code, 1);
        ck_assert_ptr_nonnull(strstr(human.err, "'tensor/strange' is no tensor"));
        ck_assert_ptr_nonnull(strstr(human.out, "tensor/strange"));
        ck_assert_ptr_nonnull(strstr(human.out, "tensor/good"));
        _cleanup_json_ json_t *document = json_loads(o.out, 0, NULL);
        ck_assert_ptr_nonnull(document);
        ck_assert_uint_eq(json_array_size(json_object_get(document, "tensors")), 0);
        ck_assert_uint_eq(json_array_size(json_object_get(document, "metadata")), 2);
        ck_assert_str_eq(text(find(json_object_get(document, "metadata"), "key", "tensor/strange"), "value"), "garbage");
}
END_TEST

START_TEST(show_unpublished) {
        struct gms *writer = run_connect(STORE, GMS_MODE_RW, "writer");
        ck_assert_int_eq(gms_allocate(writer, 4096, NULL, NULL), 0);

        _cleanup_outcome_ struct outcome o = ctl("show", STORE, "--json"), human = ctl("list", STORE);
        _cleanup_json_ json_t *document = outcome_json(&o);
        const json_t *store = json_object_get(document, "store");
        ck_assert_str_eq(text(store, "state"), "RW");
        ck_assert_int_eq(number(store, "generation"), 0);
        ck_assert_str_eq(text(store, "hash"), "");
        ck_assert_int_ge(number(store, "building_bytes"), 4096);
        ck_assert_uint_eq(json_array_size(json_object_get(document, "allocations")), 0);
        ck_assert_int_eq(human.code, 0);
        gms_close(writer);
}
END_TEST

START_TEST(sessions) {
        publish_two();
        struct gms *reader = run_connect(STORE, GMS_MODE_RO, "the reader");
        static const char *const args[] = { "publish", STORE, "/proc/version", "--wait", "30", NULL };
        _cleanup_outcome_ struct outcome waited = { 0 };
        struct spawn waiter = { .args = args, .out_fd = -1, .err_fd = -1 };

        /* /proc says that this file has 0 bytes: an empty one, which is enough here. */
        spawn_start(&waiter);
        for (unsigned i = 0; i < 2000 && run_store(STORE).waiters == 0; i++)
                (void)usleep(5000);

        _cleanup_outcome_ struct outcome o = ctl("sessions", "--json"), human = ctl("sessions");
        _cleanup_json_ json_t *document = outcome_json(&o);
        const json_t *list = json_object_get(document, "sessions"), *holding = find(list, "label", "the reader");
        const json_t *waiting = find(list, "mode", "RW");

        ck_assert_ptr_nonnull(holding);
        ck_assert_int_gt(number(holding, "id"), 0);
        ck_assert_int_eq(number(holding, "pid"), getpid());
        ck_assert_int_eq(number(holding, "uid"), getuid());
        ck_assert_str_eq(text(holding, "mode"), "RO");
        ck_assert_str_eq(text(holding, "store"), STORE);
        ck_assert(json_is_false(json_object_get(holding, "waiting")));
        ck_assert(json_is_true(json_object_get(holding, "holding")));
        ck_assert_int_eq(number(holding, "generation"), 1);
        ck_assert_int_ge(number(holding, "bytes"), 5100);
        ck_assert_ptr_nonnull(json_object_get(holding, "age_ms"));
        ck_assert_ptr_nonnull(waiting);
        ck_assert_int_eq(number(waiting, "pid"), waiter.pid);
        ck_assert_str_eq(text(waiting, "label"), "gmsctl");
        ck_assert(json_is_true(json_object_get(waiting, "waiting")));
        ck_assert_int_eq(human.code, 0);
        ck_assert_ptr_nonnull(strstr(human.out, "waiting"));
        ck_assert_ptr_nonnull(strstr(human.out, "the reader"));

        ck_assert_int_eq(kill(waiter.pid, SIGINT), 0); /* a waiter goes at once */
        waited = spawn_end(&waiter);
        outcome_refused(&waited, 1);
        ck_assert_ptr_nonnull(strstr(waited.err, "interrupted"));
        gms_close(reader);
}
END_TEST

START_TEST(unknown_store) {
        static const char *const lines[][4] = { { "list", "host/none" }, { "show", "host/none" }, { "clear", "host/none" },
                                                { "fetch", "nowhere/x", "key" }, { "show", "nowhere/x" } };
        for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
                struct spawn s = { .args = lines[i], .out_fd = -1, .err_fd = -1 };
                spawn_start(&s);
                _cleanup_outcome_ struct outcome o = spawn_end(&s);
                outcome_refused(&o, 1);
        }
}
END_TEST

/* ---- what others bring does not reach the terminal as it is */

static void check_harmless(const struct outcome *o) {
        ck_assert_msg(o->code == 0, "%s", o->err);
        for (const char *p = o->out; *p; p++)
                ck_assert_msg(*p == '\n' || ((unsigned char)*p >= 0x20 && *p != 0x7f), "byte %#x in: %s", *p, o->out);
}

/* What could move a terminal gets into no label, tag or identity; letters that a terminal may not have are escaped for it. */
START_TEST(control_characters) {
        static const char *const refused[] = { "\x1b[31m", "\xc2\x9b[31m", "\xe2\x80\xae", "\xff" };
        static const char label[] = "evil \\ gr\xc3\xb6\xc3\x9f" "e";
        static const char *const commands[][4] = {
                { "sessions" }, { "status" }, { "list" }, { "list", STORE }, { "show", STORE },
        };
        struct gms *writer = run_connect(STORE, GMS_MODE_RW, label);

        for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
                ck_assert_int_eq(gms_allocate(writer, 4096, refused[i], NULL), -EINVAL);
                ck_assert_int_eq(gms_commit(writer, refused[i], 0), -EINVAL);
        }
        ck_assert_int_eq(gms_allocate(writer, 4096, label, NULL), 0);
        ck_assert_int_eq(gms_commit(writer, label, 0), 0);

        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                for (unsigned utf8 = 0; utf8 < 2; utf8++) {
                        struct spawn s = { .args = commands[i], .out_fd = -1, .err_fd = -1, .locale = utf8 ? NULL : "C" };
                        spawn_start(&s);
                        _cleanup_outcome_ struct outcome o = spawn_end(&s);
                        check_harmless(&o);
                        ck_assert_ptr_nonnull(strstr(o.out, "evil \\\\ gr"));
                        if (i == 0) /* elsewhere it may be cut to its column */
                                ck_assert_ptr_nonnull(
                                        strstr(o.out, utf8 ? "gr\xc3\xb6\xc3\x9f" "e" : "gr\\xc3\\xb6\\xc3\\x9f" "e"));
                }

        _cleanup_outcome_ struct outcome o = ctl("sessions", "--json");
        _cleanup_json_ json_t *document = outcome_json(&o);
        check_harmless(&o);
        ck_assert_ptr_nonnull(find(json_object_get(document, "sessions"), "mode", "RO"));
        gms_close(writer);
}
END_TEST

/* A value may hold anything; what the command line brings is repeated in messages. */
START_TEST(control_characters_repeated) {
        static const char value[] = "{\"a\":1}\n\x1b[2J";
        struct gms *writer = run_connect(STORE, GMS_MODE_RW, "writer");
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        struct gms_metadata m = { .size = sizeof(m), .key = "key", .value = value, .value_size = sizeof(value) - 1 };

        ck_assert_int_eq(gms_allocate(writer, 64, "tag", &a), 0);
        m.slot = a.slot;
        ck_assert_int_eq(gms_metadata_put(writer, &m, 1), 0);
        ck_assert_int_eq(gms_commit(writer, NULL, GMS_COMMIT_LEAVE), 0);
        gms_close(writer);
        _cleanup_outcome_ struct outcome human = ctl("show", STORE), o = ctl("show", STORE, "--json");
        _cleanup_json_ json_t *document = outcome_json(&o);
        check_harmless(&human);
        check_harmless(&o);
        ck_assert_str_eq(text(find(json_object_get(document, "metadata"), "key", "key"), "value"), value);

        const char *const lines[][6] = {
                { "publish", STORE, "/none\x1b[31m\n" },
                { "publish", STORE, "/proc/version", "--identity", "\x1b[31m\n" },
                { "fetch", STORE, "key\x1b[31m\n" },
                { "fetch", "host/\x1b[31m\n", "key" },
                { "show", "host/\x1b[31m\n" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
                struct spawn s = { .args = lines[i], .out_fd = -1, .err_fd = -1 };
                spawn_start(&s);
                _cleanup_outcome_ struct outcome refused = spawn_end(&s);
                outcome_refused(&refused, 1);
                ck_assert_ptr_null(strchr(refused.err, 0x1b));
        }
}
END_TEST

/* ---- clearing */

START_TEST(clear) {
        publish_two();
        _cleanup_outcome_ struct outcome o = ctl("clear", STORE);
        ck_assert_msg(o.code == 0, "%s", o.err);
        ck_assert_uint_eq(run_store(STORE).bytes, 0);

        publish_two();
        _cleanup_outcome_ struct outcome json = ctl("clear", STORE, "--json");
        _cleanup_json_ json_t *document = outcome_json(&json);
        ck_assert_str_eq(text(document, "store"), STORE);
        ck_assert(json_is_true(json_object_get(document, "cleared")));
}
END_TEST

START_TEST(clear_held) {
        publish_two();
        struct gms *reader = run_connect(STORE, GMS_MODE_RO, "reader");
        _cleanup_outcome_ struct outcome refused = ctl("clear", STORE);
        outcome_refused(&refused, 1);
        ck_assert_uint_eq(run_store(STORE).generation, 1);

        _cleanup_outcome_ struct outcome forced = ctl("clear", STORE, "--force");
        ck_assert_msg(forced.code == 0, "%s", forced.err);
        ck_assert_uint_eq(run_store(STORE).readers, 0);
        struct gms_event event = GMS_INIT(struct gms_event);
        struct pollfd p = { .fd = gms_get_fd(reader), .events = POLLIN };
        ck_assert_int_eq(poll(&p, 1, 5000), 1);
        ck_assert_int_eq(gms_dispatch(reader, &event), 1);
        ck_assert_uint_eq(event.kind, GMS_EVENT_REVOKED);
        gms_close(reader);
}
END_TEST

/* ---- publishing and fetching */

static void check_round_trip(const char *store) {
        static const struct {
                const char *name;
                size_t size;
        } files[] = {
                { "a.empty", 0 }, { "b.one", 1 }, { "c.4095", 4095 }, { "d.4096", 4096 }, { "e.4097", 4097 },
                { "f.large", (10u << 20) + 3 },
        };
        for (size_t i = 0; i < ARRAY_SIZE(files); i++)
                run_make_file(files[i].name, files[i].size);
        const char *args[] = { "publish", store, "--json", "--identity", "v1", NULL, NULL, NULL, NULL, NULL, NULL, NULL };
        char paths[ARRAY_SIZE(files)][512];
        for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
                snprintf(paths[i], sizeof(paths[i]), "%s/%s", run_dir, files[i].name);
                args[5 + i] = paths[i];
        }
        struct spawn s = { .args = args, .out_fd = -1, .err_fd = -1 };
        spawn_start(&s);
        _cleanup_outcome_ struct outcome published = spawn_end(&s);
        _cleanup_json_ json_t *document = outcome_json(&published);
        ck_assert_uint_eq(json_array_size(json_object_get(document, "files")), ARRAY_SIZE(files));
        ck_assert_int_eq(number(json_object_get(document, "store"), "generation"), 1);
        ck_assert_str_eq(text(json_object_get(document, "store"), "identity"), "v1");
        ck_assert_str_eq(text(json_object_get(document, "store"), "state"), "COMMITTED");

        for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
                size_t size;
                _cleanup_free_ void *bytes = run_read_file(paths[i], &size);
                ck_assert_uint_eq(size, files[i].size);
                ck_assert_int_eq(number(json_array_get(json_object_get(document, "files"), i), "bytes"), (json_int_t)size);

                _cleanup_outcome_ struct outcome to_stdout = ctl("fetch", store, files[i].name);
                ck_assert_msg(to_stdout.code == 0, "%s", to_stdout.err);
                ck_assert_uint_eq(to_stdout.out_size, size);
                ck_assert_int_eq(memcmp(to_stdout.out, bytes, size), 0);

                _cleanup_outcome_ struct outcome to_file = ctl("fetch", store, files[i].name, "-o", run_path("out"));
                ck_assert_msg(to_file.code == 0, "%s", to_file.err);
                ck_assert(run_file_is("out", bytes, size));

                _cleanup_outcome_ struct outcome json =
                        ctl("fetch", store, files[i].name, "-o", run_path("out"), "--json");
                _cleanup_json_ json_t *fetched = outcome_json(&json);
                ck_assert_int_eq(number(fetched, "bytes"), (json_int_t)size);
                ck_assert(run_file_is("out", bytes, size));
        }
}

START_TEST(round_trip) {
        check_round_trip(STORE);
}
END_TEST

START_TEST(round_trip_gpu) {
        char store[64];
        snprintf(store, sizeof(store), "%s/test", run_gpu());
        check_round_trip(store);

        _cleanup_outcome_ struct outcome o = ctl("status", "--json");
        _cleanup_json_ json_t *document = outcome_json(&o);
        const json_t *gpu = find(json_object_get(document, "devices"), "name", run_gpu());
        ck_assert_ptr_nonnull(gpu);
        ck_assert_int_eq(strncmp(text(gpu, "uuid"), "GPU-", 4), 0);
        ck_assert_str_ne(text(gpu, "model"), "");
        ck_assert_int_gt(number(gpu, "owned"), 10 << 20);
        ck_assert_int_ge(number(gpu, "total"), number(gpu, "free"));
}
END_TEST

START_TEST(publish_replaces) {
        publish_two();
        run_make_file("gamma", 10);
        _cleanup_outcome_ struct outcome o = ctl("publish", STORE, run_path("gamma"));
        ck_assert_msg(o.code == 0, "%s", o.err);
        ck_assert_uint_eq(run_store(STORE).generation, 2);
        ck_assert_uint_eq(run_store(STORE).allocations, 1);
        ck_assert_str_eq(run_store(STORE).identity, "");
        _cleanup_outcome_ struct outcome gone = ctl("fetch", STORE, "alpha");
        outcome_refused(&gone, 1);
}
END_TEST

/* Whatever goes wrong while publishing: what was there stays. */
static void check_two_stay(const struct outcome *o) {
        outcome_refused(o, 1);
        ck_assert_msg(strstr(o->err, "nothing was published") != NULL, "%s", o->err);
        struct gms_store store = run_store(STORE);
        ck_assert_uint_eq(store.generation, 1);
        ck_assert_uint_eq(store.building_bytes, 0);
        ck_assert_str_eq(store.identity, "two files");
        _cleanup_outcome_ struct outcome alpha = ctl("fetch", STORE, "alpha", "-o", run_path("alpha.out"));
        size_t size;
        _cleanup_free_ void *bytes = run_read_file(run_path("alpha"), &size);
        ck_assert_int_eq(alpha.code, 0);
        ck_assert(run_file_is("alpha.out", bytes, size));
}

START_TEST(publish_unreadable) {
        publish_two();
        ck_assert_int_eq(mkfifo(run_path("fifo"), 0600), 0);
        const char *bad[] = { run_path("missing"), "/", run_path("fifo"), "/dev/null" };
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_outcome_ struct outcome o = ctl("publish", STORE, run_path("alpha"), bad[i]);
                check_two_stay(&o);
        }
}
END_TEST

/* sysfs files have a size of a page, and end earlier: as if they had shrunk while they are read. */
START_TEST(publish_shrinking) {
        static const char shrinks[] = "/sys/kernel/mm/transparent_hugepage/enabled";
        struct stat st;
        if (stat(shrinks, &st) < 0 || st.st_size < 4096) {
                printf("skipped: no %s\n", shrinks);
                return;
        }
        publish_two();
        _cleanup_outcome_ struct outcome o = ctl("publish", STORE, run_path("beta"), shrinks);
        check_two_stay(&o);
}
END_TEST

START_TEST(publish_interrupted) {
        static const int signals[] = { SIGINT, SIGTERM };
        publish_two();
        run_make_file("large", 0);
        ck_assert_int_eq(truncate(run_path("large"), 768l << 20), 0); /* sparse: takes no room, but time to copy */
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
                const char *args[] = { "publish", STORE, run_path("large"), NULL };
                struct spawn s = { .args = args, .out_fd = -1, .err_fd = -1 };
                spawn_start(&s);
                for (unsigned waited = 0; waited < 5000 && run_store(STORE).building_bytes == 0; waited++)
                        (void)usleep(1000);
                ck_assert_int_eq(kill(s.pid, signals[i]), 0);
                _cleanup_outcome_ struct outcome o = spawn_end(&s);
                for (unsigned waited = 0; waited < 1000 && run_store(STORE).building_bytes > 0; waited++)
                        (void)usleep(5000); /* freeing is asynchronous */
                check_two_stay(&o);
                ck_assert_ptr_nonnull(strstr(o.err, "interrupted"));
        }
}
END_TEST

START_TEST(publish_held) {
        publish_two();
        struct gms *reader = run_connect(STORE, GMS_MODE_RO, "reader");
        _cleanup_outcome_ struct outcome o = ctl("publish", STORE, run_path("alpha"), "--wait", "0");
        check_two_stay(&o);
        _cleanup_outcome_ struct outcome later = ctl("publish", STORE, run_path("alpha"), "--wait", "0.2");
        check_two_stay(&later);
        gms_close(reader);
}
END_TEST

START_TEST(publish_too_much) {
        publish_two();
        run_make_file("huge", 0);
        if (truncate(run_path("huge"), 1l << 43) < 0) { /* 8 TiB, sparse */
                printf("skipped: /tmp cannot hold a sparse file of 8 TiB\n");
                return;
        }
        _cleanup_outcome_ struct outcome o = ctl("publish", STORE, run_path("huge"));
        check_two_stay(&o);
}
END_TEST

START_TEST(fetch_nothing) {
        double start = now_s();
        _cleanup_outcome_ struct outcome o = ctl("fetch", STORE, "key", "-o", run_path("out"));
        outcome_refused(&o, 1);
        ck_assert(now_s() - start < 2);
        ck_assert_int_ne(access(run_path("out"), F_OK), 0);

        publish_two();
        _cleanup_outcome_ struct outcome key = ctl("fetch", STORE, "no-such-key", "-o", run_path("out"));
        outcome_refused(&key, 1);
        ck_assert_ptr_nonnull(strstr(key.err, "no-such-key"));
        ck_assert_int_ne(access(run_path("out"), F_OK), 0);
}
END_TEST

START_TEST(fetch_waits) {
        static const char *const args[] = { "fetch", STORE, "alpha", "--wait", "30", NULL };
        struct spawn s = { .args = args, .out_fd = -1, .err_fd = -1 };
        spawn_start(&s);
        for (unsigned i = 0; i < 2000 && run_store(STORE).waiters == 0; i++)
                (void)usleep(5000);
        publish_two();
        _cleanup_outcome_ struct outcome o = spawn_end(&s);
        ck_assert_msg(o.code == 0, "%s", o.err);
        ck_assert_uint_eq(o.out_size, 5000);

        double start = now_s();
        _cleanup_outcome_ struct outcome late = ctl("fetch", "host/other", "alpha", "--wait", "0.3");
        outcome_refused(&late, 1);
        ck_assert(now_s() - start >= 0.3);
}
END_TEST

START_TEST(fetch_to_nowhere) {
        publish_two();
        unsigned files = run_count_files();
        const char *bad[] = { run_path("no/such/dir"), run_path("alpha/below"), run_dir, "/proc/gmsctl", "/dev/full" };
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                _cleanup_outcome_ struct outcome o = ctl("fetch", STORE, "alpha", "-o", bad[i]);
                outcome_refused(&o, 1);
        }
        ck_assert_uint_eq(run_count_files(), files);
        struct stat st;
        ck_assert_int_eq(stat("/dev/full", &st), 0);
        ck_assert(S_ISCHR(st.st_mode));

        if (geteuid() != 0) { /* root may write anywhere */
                ck_assert_int_eq(mkdir(run_path("closed"), 0500), 0);
                _cleanup_outcome_ struct outcome o = ctl("fetch", STORE, "alpha", "-o", run_path("closed/x"));
                outcome_refused(&o, 1);
        }
}
END_TEST

/* Half of it can be written: neither half a file nor a temporary one is left, and an older one stays. */
START_TEST(fetch_half) {
        publish_two();
        run_make_file("older", 77);
        size_t size;
        _cleanup_free_ void *older = run_read_file(run_path("older"), &size);
        unsigned files = run_count_files();
        const char *targets[] = { run_path("newer"), run_path("older") };

        for (size_t i = 0; i < ARRAY_SIZE(targets); i++) {
                const char *args[] = { "fetch", STORE, "alpha", "-o", targets[i], NULL };
                struct spawn s = { .args = args, .out_fd = -1, .err_fd = -1, .file_limit = 2500 };
                spawn_start(&s);
                _cleanup_outcome_ struct outcome o = spawn_end(&s);
                outcome_refused(&o, 1);
        }
        ck_assert_uint_eq(run_count_files(), files);
        ck_assert(run_file_is("older", older, size));
}
END_TEST

/* Permissions of a file that is replaced stay; a link to it stays a link; a pipe is written to. */
START_TEST(fetch_to_what_is_there) {
        struct stat st;
        publish_two();
        run_make_file("file", 3);
        ck_assert_int_eq(chmod(run_path("file"), 0640), 0);
        ck_assert_int_eq(symlink("file", run_path("link")), 0);
        _cleanup_outcome_ struct outcome o = ctl("fetch", STORE, "beta", "-o", run_path("link"));
        ck_assert_msg(o.code == 0, "%s", o.err);
        ck_assert_int_eq(lstat(run_path("link"), &st), 0);
        ck_assert(S_ISLNK(st.st_mode));
        ck_assert_int_eq(lstat(run_path("file"), &st), 0);
        ck_assert_int_eq(st.st_size, 100);
        ck_assert_int_eq(st.st_mode & 07777, 0640);
}
END_TEST

START_TEST(fetch_to_closed_pipe) {
        static const char *const args[] = { "fetch", STORE, "alpha", NULL };
        int ends[2];
        publish_two();
        ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
        close_fd(ends[0]);
        struct spawn s = { .args = args, .out_fd = ends[1], .err_fd = -1 };
        spawn_start(&s);
        close_fd(ends[1]);
        _cleanup_outcome_ struct outcome o = spawn_end(&s);
        outcome_refused(&o, 1);
}
END_TEST

START_TEST(full_stdout) {
        static const char *const lines[][4] = { { "status" }, { "sessions", "--json" }, { "fetch", STORE, "alpha" } };
        publish_two();
        for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
                int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
                ck_assert_int_ge(full, 0);
                struct spawn s = { .args = lines[i], .out_fd = full, .err_fd = -1 };
                spawn_start(&s);
                close_fd(full);
                _cleanup_outcome_ struct outcome o = spawn_end(&s);
                outcome_refused(&o, 1);
        }
}
END_TEST

START_TEST(progress) {
        char shown[65536];
        run_make_file("file", 20u << 20);
        const char *publish[] = { "publish", STORE, run_path("file"), NULL };
        const char *fetch[] = { "fetch", STORE, "file", "-o", run_path("out"), NULL };

        run_on_terminal(publish, 100, shown, sizeof(shown));
        ck_assert_ptr_nonnull(strstr(shown, "% "));
        ck_assert_ptr_nonnull(strstr(shown, "20.0 MiB"));
        ck_assert_ptr_nonnull(strstr(shown, "/s"));
        const char *cleared = "\r\033[K";
        ck_assert_str_eq(shown + strlen(shown) - strlen(cleared), cleared); /* gone at the end */
        ck_assert_ptr_null(strchr(shown, '\n'));

        run_on_terminal(fetch, 20, shown, sizeof(shown)); /* no line wraps */
        for (const char *line = shown; (line = strstr(line, cleared)); line++)
                ck_assert_uint_lt(strcspn(line + strlen(cleared), "\r"), 20);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("gmsctl");
        TCase *alone = tcase_create("alone"), *look = tcase_create("look"), *copy = tcase_create("copy");
        TCase *gpu = tcase_create("gpu");

        tcase_add_checked_fixture(alone, run_setup, run_teardown);
        tcase_add_test(alone, help);
        tcase_add_test(alone, version);
        tcase_add_test(alone, usage);
        tcase_add_test(alone, no_daemon);

        tcase_add_checked_fixture(look, run_setup_gmsd, run_teardown);
        tcase_set_timeout(look, 30);
        tcase_add_test(look, status_of_nothing);
        tcase_add_test(look, status_of_a_store);
        tcase_add_test(look, list_stores);
        tcase_add_test(look, list_allocations);
        tcase_add_test(look, show);
        tcase_add_test(look, show_binary_values);
        tcase_add_test(look, show_tensors);
        tcase_add_test(look, show_strange_tensor);
        tcase_add_test(look, show_unpublished);
        tcase_add_test(look, sessions);
        tcase_add_test(look, unknown_store);
        tcase_add_test(look, control_characters);
        tcase_add_test(look, control_characters_repeated);
        tcase_add_test(look, clear);
        tcase_add_test(look, clear_held);

        tcase_add_checked_fixture(copy, run_setup_gmsd, run_teardown);
        tcase_set_timeout(copy, 60);
        tcase_add_test(copy, round_trip);
        tcase_add_test(copy, publish_replaces);
        tcase_add_test(copy, publish_unreadable);
        tcase_add_test(copy, publish_shrinking);
        tcase_add_test(copy, publish_interrupted);
        tcase_add_test(copy, publish_held);
        tcase_add_test(copy, publish_too_much);
        tcase_add_test(copy, fetch_nothing);
        tcase_add_test(copy, fetch_waits);
        tcase_add_test(copy, fetch_to_nowhere);
        tcase_add_test(copy, fetch_half);
        tcase_add_test(copy, fetch_to_what_is_there);
        tcase_add_test(copy, fetch_to_closed_pipe);
        tcase_add_test(copy, full_stdout);
        tcase_add_test(copy, progress);

        tcase_add_checked_fixture(gpu, run_setup_gmsd, run_teardown);
        tcase_set_timeout(gpu, 120);
        tcase_add_test(gpu, round_trip_gpu);

        suite_add_tcase(suite, load_cases());
        suite_add_tcase(suite, alone);
        suite_add_tcase(suite, look);
        suite_add_tcase(suite, copy);
        if (run_gpu())
                suite_add_tcase(suite, gpu);
        else
                printf("skipped: no GPU in $GMS_TEST_DEVICE for gpu\n");
        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_NORMAL);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
