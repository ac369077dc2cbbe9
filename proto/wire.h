// SPDX-License-Identifier: MIT
#pragma once
/*
 * Bytes to message and back. No I/O, no meaning: which message is allowed when is dispatch's business.
 */
#include "base.h"
#include "gms.pb-c.h"

/* The protocol versions this tree speaks. */
#define WIRE_PROTOCOL_MIN 1u
#define WIRE_PROTOCOL_MAX 1u

/* Limits on what a message may hold, so that a page of anything fits one frame. Both ends check them. */
#define WIRE_LABEL_MAX 64u       /* bytes, as are all of these */
#define WIRE_TAG_MAX 64u
#define WIRE_STORE_MAX 192u
#define WIRE_IDENTITY_MAX 512u
#define WIRE_KEY_MAX 512u
#define WIRE_VALUE_MAX 32768u
#define WIRE_BATCH_MAX 16384u    /* allocations in one request */
#define WIRE_PAYLOAD_MAX 60000u  /* what a page of entries may come to, leaving room for the frame around it */

enum {
        _WIRE_E_SUCCESS,
        WIRE_E_MALFORMED, /* not a Frame, no body, or not the number of descriptors it states */
        WIRE_E_TOO_LARGE, /* does not fit one frame */
};

/* Packs `frame` with `fds` set to `n_fds`. The bytes are the caller's to free. 0, WIRE_E_TOO_LARGE, -ENOMEM. */
int wire_pack(Gms__Frame *frame, unsigned n_fds, uint8_t **ret_bytes, size_t *ret_len);

/*
 * Unpacks a frame that came with `n_fds` descriptors; release it with wire_free(). A frame without body passes only when
 * its status is not OK. 0, WIRE_E_MALFORMED.
 */
int wire_unpack(const uint8_t *bytes, size_t len, unsigned n_fds, Gms__Frame **ret_frame);
void wire_free(Gms__Frame **frame);

/* Whether `text` is at most `max` bytes of UTF-8 without controls and direction marks: fit for a log and a terminal. */
bool wire_text_ok(const char *text, size_t max);

#define _cleanup_frame_ _cleanup_(wire_free)
