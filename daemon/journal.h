// SPDX-License-Identifier: MIT
#pragma once
/*
 * The journal: records, appended one after another to a memfd, each with a number and a checksum. It knows no record's
 * meaning. The memfd outlives the daemon when a service manager keeps it.
 *
 * A page in front says that the file is a journal, and when its daemon was last alive; records follow.
 */
#include "base.h"

enum {
        _JOURNAL_E_SUCCESS,
        JOURNAL_E_END,     /* no more records */
        JOURNAL_E_TAIL,    /* the rest is damaged or was cut off while it was written: nothing readable follows */
        JOURNAL_E_MIDDLE,  /* damaged, and readable records follow: what they say cannot be relied on */
        JOURNAL_E_FOREIGN, /* not a journal */
};

struct journal {
        int fd;
        struct journal_page *page;
        uint64_t end;      /* where the next record goes */
        uint64_t number;   /* of the last record */
};

/* An empty journal in a memfd of its own. 0, negative errno. */
int journal_new(struct journal **ret_journal);
/* Takes the memfd of an earlier one, to be read from the start. 0, JOURNAL_E_FOREIGN, negative errno. */
int journal_open_consume(struct journal **ret_journal, int fd);
struct journal *journal_free(struct journal *j);

/* Appends a record. 0; negative errno: nothing was appended. */
int journal_append(struct journal *j, const uint8_t *bytes, size_t len);

/*
 * Reads the next record; the bytes are the caller's to free. `at` is 0 before the first call and the journal's from then
 * on. 0, JOURNAL_E_END, JOURNAL_E_TAIL, JOURNAL_E_MIDDLE, -ENOMEM, -EIO.
 */
int journal_read(struct journal *j, uint64_t *at, uint8_t **ret_bytes, size_t *ret_len);

/* When the daemon that writes it was last known to be alive: CLOCK_MONOTONIC, ms. */
void journal_alive(struct journal *j, uint64_t now);
uint64_t journal_last_alive(const struct journal *j);
