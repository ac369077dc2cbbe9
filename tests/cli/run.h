// SPDX-License-Identifier: MIT
#pragma once
/* Runs the real binaries: gmsd on a private socket in a temporary directory, and gmsctl with what it prints caught. */
#include <check.h>
#include <jansson.h>
#include <sys/types.h>

#include "base.h"
#include "gmsclient.h"

struct outcome {
        int code; /* exit code; 128 + n when killed by signal n */
        char *out, *err;
        size_t out_size;
};

/* The fixture: one a test. Teardown checks that gmsd ends well and no descriptor of the test is left open. */
extern char run_dir[64], run_socket[96];
extern pid_t run_gmsd;
const char *run_gpu(void); /* $GMS_TEST_DEVICE: gmsd serves it beside host. NULL: none */
void run_setup(void);      /* a directory, no daemon */
void run_setup_gmsd(void);
void run_teardown(void);

/* gmsctl --socket SOCKET ARG... */
#define ctl(...) run_ctl((const char *const[]){ __VA_ARGS__, NULL })
struct outcome run_ctl(const char *const *args);
void outcome_done(struct outcome *o);

/* The same, with more said about the process. Descriptors not named are caught. */
struct spawn {
        const char *const *args;
        int out_fd, err_fd;  /* -1: caught */
        const char *locale;  /* NULL: C.UTF-8 */
        size_t file_limit;   /* bytes a written file may have; 0: any */
        pid_t pid;
        int caught_out, caught_err;
};
void spawn_start(struct spawn *s);
struct outcome spawn_end(struct spawn *s);

/* What a terminal is shown meanwhile; `columns` wide. */
void run_on_terminal(const char *const *args, unsigned short columns, char *shown, size_t room);

/* The document it printed; fails the test if that is none, or if the exit code is not 0. */
json_t *outcome_json(const struct outcome *o);

/* Exit code `code`, nothing on stdout, and one line on stderr that begins with "gmsctl: ". */
void outcome_refused(const struct outcome *o, int code);

/* A file in the directory, filled with bytes that depend on its name; its path is run_path(name). */
const char *run_path(const char *name);
void run_make_file(const char *name, size_t size);
bool run_file_is(const char *name, const void *bytes, size_t size); /* its content */
void *run_read_file(const char *path, size_t *ret_size);
unsigned run_count_files(void); /* in the directory, hidden ones too */

/* A session of the test itself on a store. */
struct gms *run_connect(const char *store, uint32_t mode, const char *label);
struct gms_store run_store(const char *store);

/* test_load.c: model files; on the GPU as well where there is one. */
TCase *load_cases(void);

#define _cleanup_outcome_ _cleanup_(outcome_done)
#define _cleanup_json_ _cleanup_(json_decrefp)
#define _cleanup_gms_ _cleanup_(gms_closep)
static inline void gms_closep(struct gms **g) {
        gms_close(*g);
}
