// SPDX-License-Identifier: MIT
/* gmsctl load and verify: model files as people have them, and what may go wrong with them. */
#undef NDEBUG
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "../weights/weights.h"
#include "run.h"

#define MIB (INT64_C(1) << 20)

static const struct weight model[] = {
        { "embed.weight", "BF16", 2, { 1000, 1024 } }, { "layer.0.weight", "F8_E4M3", 2, { 1024, 9001 } },
        { "layer.0.scale", "F32", 1, { 9001 } },       { "layer.1.weight", "BF16", 2, { 3, 5 } },
        { "layer.1.none", "BF16", 2, { 0, 5 } },       { "norm", "F32", 0, { 0 } },
};
#define IDENTITY "xxh3-128:"

static const char *store_of(int device) {
        static char name[64];
        (void)snprintf(name, sizeof(name), "%s/weights", device == 0 ? "host" : run_gpu());
        return name;
}

static void make_model(const char *name) {
        weights_write(run_path(name), model, ARRAY_SIZE(model));
}

/* The model in three files of a directory, in no order, with an index. */
static void make_shards(void) {
        const char *const files[] = { "b.safetensors", "a.safetensors", "b.safetensors",
                                      "c.safetensors", "c.safetensors", "c.safetensors" };
        struct weight b[] = { model[2], model[0] }, c[] = { model[5], model[4], model[3] };
        ck_assert_int_eq(mkdir(run_path("model"), 0700), 0);
        weights_write(run_path("model/a.safetensors"), &model[1], 1);
        weights_write(run_path("model/b.safetensors"), b, 2);
        weights_write(run_path("model/c.safetensors"), c, 3);
        weights_write_index(run_path("model"), model, files, ARRAY_SIZE(model));
}

static json_int_t number(const json_t *object, const char *key) {
        ck_assert_msg(json_is_integer(json_object_get(object, key)), "no number: %s", key);
        return json_integer_value(json_object_get(object, key));
}

static void well(const struct outcome *o) {
        ck_assert_msg(o->code == 0 && *o->err == '\0', "%d: %s", o->code, o->err);
        ck_assert_msg(o->out_size > 0 && strchr(o->out, '\n') == o->out + o->out_size - 1, "not one line: %s", o->out);
}

/* The whole way, one file and several; what is loaded has one identity. */
START_TEST(load_and_verify) {
        const char *store = store_of(_i);
        char identity[GMS_IDENTITY_SIZE];
        make_model("m.safetensors");
        make_shards();
        _cleanup_outcome_ struct outcome loaded = ctl("load", store, run_path("m.safetensors"));
        well(&loaded);
        ck_assert_ptr_nonnull(strstr(loaded.out, "6 tensors of 1 file,"));
        (void)snprintf(identity, sizeof(identity), "%s", run_store(store).identity);
        ck_assert_msg(strncmp(identity, IDENTITY, strlen(IDENTITY)) == 0 && strlen(identity) == 41, "%s", identity);
        ck_assert_ptr_nonnull(strstr(loaded.out, identity));

        _cleanup_outcome_ struct outcome same = ctl("verify", store, run_path("model"), "--threads", "3");
        well(&same);
        ck_assert_ptr_nonnull(strstr(same.out, "every byte"));

        _cleanup_outcome_ struct outcome again =
                ctl("load", store, run_path("model"), "--json", "--tag", "mine", "--threads", "1");
        _cleanup_json_ json_t *document = outcome_json(&again);
        ck_assert_int_eq(number(document, "files"), 3);
        ck_assert_int_eq(number(document, "tensors"), 6);
        ck_assert_int_ge(number(document, "bytes"), number(document, "direct"));
        ck_assert_int_eq(number(document, "bytes"), 1000 * 1024 * 2 + 1024 * 9001 + 9001 * 4 + 3 * 5 * 2 + 4);
        ck_assert_int_eq(number(json_object_get(document, "store"), "generation"), 2);
        ck_assert_str_eq(json_string_value(json_object_get(document, "digest")), identity);
        ck_assert_str_eq(run_store(store).identity, identity);

        _cleanup_outcome_ struct outcome json = ctl("verify", store, run_path("m.safetensors"), "--json");
        _cleanup_json_ json_t *verified = outcome_json(&json);
        ck_assert_str_eq(json_string_value(json_object_get(verified, "digest")), identity);
        ck_assert_int_eq(number(verified, "bytes"), number(document, "bytes"));

        _cleanup_outcome_ struct outcome list = ctl("list", store, "--json");
        ck_assert_ptr_nonnull(strstr(list.out, "\"mine\""));
        _cleanup_outcome_ struct outcome named = ctl("load", store, run_path("model"), "--identity", "llama 9");
        well(&named);
        ck_assert_str_eq(run_store(store).identity, "llama 9");
}
END_TEST

START_TEST(verify_differs) {
        make_model("m.safetensors");
        _cleanup_outcome_ struct outcome nothing = ctl("verify", "host/weights", run_path("m.safetensors"));
        outcome_refused(&nothing, 1);
        _cleanup_outcome_ struct outcome loaded = ctl("load", "host/weights", run_path("m.safetensors"));
        well(&loaded);

        struct stat st;
        _cleanup_close_ int fd = open(run_path("m.safetensors"), O_RDWR | O_CLOEXEC);
        char byte;
        ck_assert_int_eq(fstat(fd, &st), 0);
        ck_assert_int_eq(pread(fd, &byte, 1, st.st_size - 5), 1); /* the last of layer.1.weight */
        byte ^= 1;
        ck_assert_int_eq(pwrite(fd, &byte, 1, st.st_size - 5), 1);
        _cleanup_outcome_ struct outcome o = ctl("verify", "host/weights", run_path("m.safetensors"));
        outcome_refused(&o, 1);
        ck_assert_msg(strstr(o.err, "tensor 'layer.1.weight' differs at its byte 29: 0x"), "%s", o.err);

        weights_write(run_path("m.safetensors"), model, ARRAY_SIZE(model) - 1);
        _cleanup_outcome_ struct outcome fewer = ctl("verify", "host/weights", run_path("m.safetensors"));
        outcome_refused(&fewer, 1);
        ck_assert_msg(strstr(fewer.err, "'norm' of the store is not in the files"), "%s", fewer.err);
}
END_TEST

/* Whatever goes wrong: what was there stays. */
static void check_stays(const struct outcome *o, const char *store, const char *words) {
        outcome_refused(o, 1);
        ck_assert_msg(strstr(o->err, "nothing was published") && strstr(o->err, words), "'%s' was expected in: %s", words,
                      o->err);
        for (unsigned waited = 0; waited < 1000 && run_store(store).building_bytes > 0; waited++)
                (void)usleep(5000); /* freeing is asynchronous */
        ck_assert_uint_eq(run_store(store).generation, 1);
        ck_assert_uint_eq(run_store(store).building_bytes, 0);
        _cleanup_outcome_ struct outcome same = ctl("verify", store, run_path("m.safetensors"));
        well(&same);
}

static void load_model(const char *store) {
        make_model("m.safetensors");
        _cleanup_outcome_ struct outcome loaded = ctl("load", store, run_path("m.safetensors"));
        well(&loaded);
}

START_TEST(load_wrong_files) {
        static const char one[] = "{\"w\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}";
        const char *store = "host/weights";
        load_model(store);
        weights_write_raw(run_path("cut.safetensors"), one, 8);
        weights_write_raw(run_path("long.safetensors"), one, 10);
        weights_write_raw(run_path("json.safetensors"), "{\"w\":}", 0);
        ck_assert_int_eq(mkdir(run_path("empty"), 0700), 0);
        const struct {
                const char *path, *words;
        } wrong[] = {
                { "none.safetensors", "none.safetensors: No such file" },
                { "empty", "empty: not a regular file" },
                { "cut.safetensors", "cut.safetensors: byte 69: the file ends here" },
                { "long.safetensors", "long.safetensors: byte 70: from here" },
                { "json.safetensors", "json.safetensors: byte 14: " },
                { "gmsd.log", "gmsd.log: byte 0: " },
        };
        for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
                _cleanup_outcome_ struct outcome o = ctl("load", store, run_path("m.safetensors"), run_path(wrong[i].path));
                check_stays(&o, store, wrong[i].words);
        }
        _cleanup_outcome_ struct outcome twice = ctl("load", store, run_path("m.safetensors"), run_path("m.safetensors"));
        check_stays(&twice, store, "tensor 'embed.weight' is in ");
}
END_TEST

/* A file of that much, most of it holes: it takes time to load, and no room. */
static void make_large(const char *name, int64_t bytes) {
        char header[200];
        (void)snprintf(header, sizeof(header), "{\"w\":{\"dtype\":\"U8\",\"shape\":[%lld],\"data_offsets\":[0,%lld]}}",
                       (long long)bytes, (long long)bytes);
        weights_write_raw(run_path(name), header, 0);
        ck_assert_int_eq(truncate(run_path(name), 8 + (off_t)strlen(header) + bytes), 0);
}

START_TEST(load_interrupted) {
        static const int signals[] = { SIGINT, SIGTERM };
        const char *store = store_of(_i);
        load_model(store);
        make_large("large.safetensors", 768 * MIB);
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
                const char *args[] = { "load", store, run_path("large.safetensors"), "--threads", "2", NULL };
                struct spawn s = { .args = args, .out_fd = -1, .err_fd = -1 };
                spawn_start(&s);
                for (unsigned waited = 0; waited < 5000 && run_store(store).building_bytes == 0; waited++)
                        (void)usleep(1000);
                ck_assert_int_eq(kill(s.pid, signals[i]), 0);
                _cleanup_outcome_ struct outcome o = spawn_end(&s);
                check_stays(&o, store, "interrupted");
        }
}
END_TEST

/* Who waits for the lock goes soon, even when the signal falls between two looks at the deadline, which are 500 ms apart. */
START_TEST(load_interrupted_waiting) {
        const char *store = "host/weights";
        load_model(store);
        struct gms *reader = run_connect(store, GMS_MODE_RO, "reader");
        for (useconds_t at = 480; at <= 505; at += 5) {
                const char *args[] = { "load", store, run_path("m.safetensors"), "--wait", "50", NULL };
                struct spawn s = { .args = args, .out_fd = -1, .err_fd = -1 };
                struct timespec before, after;
                spawn_start(&s);
                for (unsigned waited = 0; waited < 5000 && run_store(store).waiters == 0; waited++)
                        (void)usleep(1000);
                (void)usleep(at * 1000);
                (void)clock_gettime(CLOCK_MONOTONIC, &before);
                ck_assert_int_eq(kill(s.pid, SIGINT), 0);
                _cleanup_outcome_ struct outcome o = spawn_end(&s);
                (void)clock_gettime(CLOCK_MONOTONIC, &after);
                check_stays(&o, store, "interrupted");
                ck_assert_int_le(after.tv_sec - before.tv_sec, 5);
        }
        gms_close(reader);
}
END_TEST

/* A writer that is killed leaves no more behind than one that was asked to stop. */
START_TEST(load_killed) {
        const char *store = store_of(_i);
        load_model(store);
        make_large("large.safetensors", 768 * MIB);
        const char *args[] = { "load", store, run_path("large.safetensors"), NULL };
        struct spawn s = { .args = args, .out_fd = -1, .err_fd = -1 };
        spawn_start(&s);
        for (unsigned waited = 0; waited < 5000 && run_store(store).building_bytes == 0; waited++)
                (void)usleep(1000);
        ck_assert_int_eq(kill(s.pid, SIGKILL), 0);
        _cleanup_outcome_ struct outcome o = spawn_end(&s);
        ck_assert_int_eq(o.code, 128 + SIGKILL);
        for (unsigned waited = 0; waited < 1000 && run_store(store).building_bytes > 0; waited++)
                (void)usleep(5000);
        ck_assert_uint_eq(run_store(store).building_bytes, 0);
        _cleanup_outcome_ struct outcome same = ctl("verify", store, run_path("m.safetensors"));
        well(&same);
}
END_TEST

START_TEST(load_too_much) {
        const char *store = store_of(_i);
        load_model(store);
        make_large("huge.safetensors", INT64_C(1) << 42); /* 4 TiB */
        _cleanup_outcome_ struct outcome o = ctl("load", store, run_path("huge.safetensors"));
        check_stays(&o, store, ""); /* the words are the daemon's */
}
END_TEST

START_TEST(load_beside_readers) {
        const char *store = "host/weights";
        load_model(store);
        struct gms *reader = run_connect(store, GMS_MODE_RO, "reader");
        _cleanup_outcome_ struct outcome alone = ctl("load", store, run_path("m.safetensors"), "--wait", "0");
        check_stays(&alone, store, "");
        _cleanup_outcome_ struct outcome beside = ctl("load", store, run_path("m.safetensors"), "--wait", "0", "--update");
        well(&beside);
        ck_assert_uint_eq(run_store(store).generation, 2);
        _cleanup_outcome_ struct outcome published = ctl("publish", store, run_path("m.safetensors"), "--wait", "0", "--update");
        well(&published);
        ck_assert_uint_eq(run_store(store).generation, 3);
        gms_close(reader);
}
END_TEST

START_TEST(load_progress) {
        char shown[65536];
        make_large("large.safetensors", 64 * MIB);
        const char *args[] = { "load", "host/weights", run_path("large.safetensors"), NULL };
        run_on_terminal(args, 100, shown, sizeof(shown));
        ck_assert_msg(strstr(shown, "64.0 MiB") && strstr(shown, "% ") && strstr(shown, "/s"), "%s", shown);
        ck_assert_ptr_null(strchr(shown, '\n'));
}
END_TEST

TCase *load_cases(void) {
        TCase *t = tcase_create("load");
        int devices = run_gpu() ? 2 : 1;
        tcase_add_checked_fixture(t, run_setup_gmsd, run_teardown);
        tcase_set_timeout(t, 60);
        tcase_add_loop_test(t, load_and_verify, 0, devices);
        tcase_add_test(t, verify_differs);
        tcase_add_test(t, load_wrong_files);
        tcase_add_loop_test(t, load_interrupted, 0, devices);
        tcase_add_test(t, load_interrupted_waiting);
        tcase_add_loop_test(t, load_killed, 0, devices);
        tcase_add_loop_test(t, load_too_much, 0, devices);
        tcase_add_test(t, load_beside_readers);
        tcase_add_test(t, load_progress);
        return t;
}
