// SPDX-License-Identifier: MIT
#pragma once
/*
 * What the commands of gmsctl share. A command is one file that defines one `struct command`; gmsctl.c finds it in a
 * table, reads the options, checks them and runs it. Commands use libgmsclient's public API and nothing below it.
 *
 * A command returns its exit code and says on stderr, in one line, why it is not 0.
 */
#include <jansson.h>
#include <signal.h>

#include "base.h"
#include "gmsclient.h"

enum {
        CTL_OK = 0,
        CTL_FAILED = 1, /* refused or failed */
        CTL_USAGE = 2
};

/* Options that only some commands take. */
enum {
        OPTION_FORCE = 1,
        OPTION_IDENTITY = 2,
        OPTION_OUTPUT = 4,
        OPTION_WAIT = 8,
        OPTION_UPDATE = 16,
        OPTION_TAG = 32,
        OPTION_THREADS = 64
};

/* What the command line asked for. */
struct ctl {
        const char *socket;   /* NULL: the library's default */
        const char *identity; /* NULL: none */
        const char *output;   /* NULL: stdout */
        const char *tag;      /* NULL: the library's default */
        uint64_t wait_ms;     /* with OPTION_WAIT in `given` */
        unsigned threads;     /* 0: as many as suit the machine */
        unsigned given;       /* OPTION_* */
        bool json;
        int argc; /* what follows the command */
        char **argv;
};

struct command {
        const char *name;
        const char *synopsis; /* what follows the name in the usage line */
        const char *summary;  /* one line of the list of commands */
        const char *help;
        int argc_min, argc_max;
        unsigned options; /* OPTION_* it takes */
        int (*run)(const struct ctl *ctl);
};

extern const struct command command_status, command_list, command_show, command_sessions, command_clear, command_publish,
        command_fetch, command_load, command_verify;

/* ---- gmsctl.c: failing, connecting */

/* One escaped line "gmsctl: ..." on stderr. Returns CTL_FAILED; ctl_usage() returns CTL_USAGE. */
int ctl_fail(const char *format, ...) _printf_(1, 2);
int ctl_usage(const char *format, ...) _printf_(1, 2);

/* Why a library call failed with `r`. */
const char *ctl_why(int r);

/* Connects without a lock, to look. */
int ctl_look(const struct ctl *ctl, struct gms **ret_handle);

/*
 * Connects to the store that the command line names, for at most as long as --wait says, else `wait_ms`. What gms_connect()
 * returned: the caller has more to say of it.
 */
int ctl_connect(const struct ctl *ctl, uint32_t mode, uint64_t wait_ms, struct gms **ret_handle);

/* The same to write: RW, or UPDATE with --update. The process that holds the lock may be about to leave. */
int ctl_connect_writer(const struct ctl *ctl, struct gms **ret_handle);

/* DEVICE/NAME? Says so if not. */
int ctl_check_store(const char *store);

/* Set by SIGINT, SIGTERM and SIGHUP once ctl_catch_signals() was called; calls that wait then return -EINTR. */
extern volatile sig_atomic_t ctl_interrupted;
void ctl_catch_signals(void);

/* ---- text.c: bytes, times and hashes for people */

struct text {
        char s[40];
};

struct text text_size(uint64_t bytes);       /* 12 B, 1.5 KiB, 139.8 GiB */
struct text text_age(uint64_t milliseconds); /* 4s, 12m 3s, 2h 5m, 3d 4h */
struct text text_hash(const uint8_t hash[GMS_HASH_SIZE], unsigned digits); /* "" for no hash: all zero */
const char *text_mode(uint32_t mode);        /* RO, UPDATE ...; "-" for none */

/*
 * What may go to a terminal: a character that takes no column of its own (controls, direction marks, bytes that are no
 * text in this locale) becomes \xNN, a backslash two. Cut to `columns` if not 0. NULL: no memory. The caller frees it.
 */
char *text_escape(const char *s, size_t n, unsigned columns, unsigned *ret_width);
bool text_printable(const char *s, size_t n);

/* ---- table.c: aligned columns on stdout; escapes every cell */

struct column {
        const char *title; /* NULL in the first column: a table without titles */
        bool right;       /* numbers */
        unsigned columns; /* cells are cut to this width; 0: never */
};

struct table {
        const struct column *columns;
        size_t n_columns;
        struct table_cell *cells; /* row by row, titles first */
        size_t n_cells;
        bool failed; /* out of memory; table_print() says so */
};

void table_init(struct table *t, const struct column *columns, size_t n_columns);
void table_cell(struct table *t, const char *format, ...) _printf_(2, 3);
int table_print(struct table *t); /* and frees it; an exit code */

/* ---- json.c: one document on stdout */

#define JSON_N(n) ((json_int_t)(n))

json_t *json_text(const char *s);                  /* escaped as above where it is not UTF-8 */
json_t *json_hash(const uint8_t hash[GMS_HASH_SIZE]);
json_t *json_bytes(const void *bytes, size_t n);   /* as lower-case hex */
int json_print_consume(json_t *document);          /* an exit code; NULL: no memory */

/* ---- layout.c: a store and what rests in it, as read at one moment; how both look */

struct layout {
        struct gms_store store;
        struct gms_allocation *allocations;
        size_t n_allocations;
        struct gms_metadata_list metadata; /* all of it, tensors too */
        struct gms_tensor_list tensors;
        char *tensors_fault;               /* why there are none although an entry says so; NULL: there are */
};

int layout_read(struct layout *l, struct gms *g, const char *store, bool metadata); /* an exit code */
void layout_done(struct layout *l);

json_t *store_json(const struct gms_store *s);
json_t *stores_json(const struct gms_store *stores, size_t n);
json_t *allocations_json(const struct layout *l);
int stores_print(const struct gms_store *stores, size_t n);
int allocations_print(const struct layout *l);

/* ---- totals.c: the allocations by tag */

json_t *totals_json(const struct layout *l);
int totals_print(const struct layout *l);

/* ---- tensors.c */

json_t *tensors_json(const struct gms_tensor_list *tensors);
int tensors_print(const struct gms_tensor_list *tensors);

/* ---- progress.c: a line on stderr while bytes are copied; nothing when that is no terminal */

struct progress {
        bool shown;
        uint64_t total, done;
        uint64_t start_ns, drawn_ns;
};

void progress_start(struct progress *p, uint64_t total, bool quiet);
void progress_add(struct progress *p, uint64_t bytes);
void progress_end(struct progress *p);             /* takes the line away */
void progress_hide(void);                          /* until it is drawn again: something else is to be printed */
double progress_seconds(const struct progress *p); /* since start */

/* ---- weights.c: model files, worked on by threads of this process */

struct weights {
        struct gms_checkpoint *checkpoint;
        struct gms_checkpoint_progress totals; /* when the work has ended */
        double seconds;
        char identity[GMS_IDENTITY_SIZE];
};

/* Opens what follows the store on the command line. What the library returned, as below. */
int weights_open(struct weights *w, const struct ctl *ctl);
/* All of the work that has begun, with progress on stderr; a signal ends it. */
int weights_work(struct weights *w, const struct ctl *ctl);
void weights_done(struct weights *w);

/* ---- for cleanup attributes */

static inline void gms_closep(struct gms **g) {
        gms_close(*g);
}

static inline void array_freep(void *p) {
        gms_array_free(*(void **)p);
}

#define _cleanup_gms_ _cleanup_(gms_closep)
#define _cleanup_array_ _cleanup_(array_freep)
