// SPDX-License-Identifier: MIT
#pragma once
/*
 * Frames over a SEQPACKET socket: the only place that calls sendmsg and recvmsg. It moves bytes and descriptors and knows
 * nothing of what they mean.
 *
 * channel_recv() and channel_send() are one system call each; they work on blocking and non-blocking sockets.
 * A struct channel adds an output queue for sockets that must not block: frames go out in order, and what the kernel
 * does not take at once waits in the queue and owns its descriptors.
 */
#include "base.h"
#include "fdset.h"

#define CHANNEL_FRAME_MAX 65536u

enum {
        _CHANNEL_E_SUCCESS,
        CHANNEL_E_AGAIN,   /* nothing to read, or no room to write: wait for the socket */
        CHANNEL_E_REFS,    /* too many descriptors are in flight for this user: wait a little, polling will not tell */
        CHANNEL_E_EOF,     /* the peer is gone */
        CHANNEL_E_BROKEN,  /* the frame was cut, or its descriptors were: what came was closed, the peer must go */
};

/*
 * Receives one frame of at most CHANNEL_FRAME_MAX bytes into `buf`, which must have that room. *ret_fds is NULL when it
 * carried no descriptors, else an owning set of the caller's; all are close-on-exec.
 * 0, CHANNEL_E_AGAIN, CHANNEL_E_EOF, CHANNEL_E_BROKEN (also when this process has no descriptors left to receive
 * into), -EINTR, -ENOMEM, another negative errno of recvmsg.
 */
int channel_recv(int fd, uint8_t *buf, size_t *ret_len, struct fdset **ret_fds);

/*
 * Sends one frame. `fds` may be NULL and stays the caller's.
 * 0, CHANNEL_E_AGAIN, CHANNEL_E_REFS, CHANNEL_E_EOF, -EINTR, another negative errno of sendmsg.
 */
int channel_send(int fd, const uint8_t *bytes, size_t len, const struct fdset *fds);

struct channel {
        int fd;
        struct list queue; /* of channel_frame.link, oldest first */
        size_t queued;     /* bytes in the queue */
        unsigned held;     /* descriptors in the queue, duplicates of the sender's */
};

/* Takes `fd`, a non-blocking socket. */
void channel_init_consume(struct channel *ch, int fd);
void channel_done(struct channel *ch);

/*
 * Sends a frame, or queues it behind what is queued. A borrowing set is sent as it is, and turned into one that owns
 * duplicates only when it has to wait. Bytes and set belong to the channel from here on, whatever is returned.
 * `spare` is how many duplicates it may make. 0 (sent or queued), CHANNEL_E_EOF, -ENOMEM, -EMFILE (it would take more, or the
 * process has none left), other negative errno.
 */
int channel_post_consume(struct channel *ch, uint8_t *bytes, size_t len, struct fdset *fds, unsigned spare);

/* Sends what is queued. 0: all sent. CHANNEL_E_AGAIN, CHANNEL_E_REFS: some is left. CHANNEL_E_EOF, negative errno. */
int channel_flush(struct channel *ch);

static inline bool channel_idle(const struct channel *ch) {
        return list_empty(&ch->queue);
}
