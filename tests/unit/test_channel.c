// SPDX-License-Identifier: MIT
/* Frames and descriptors over real sockets: whatever arrives, none is lost and none stays open. */
#undef NDEBUG
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "channel.h"

static int fds_before, a = -1, b = -1; /* the two ends */
static uint8_t buf[CHANNEL_FRAME_MAX];

/* Those that have all of `flags`, as of F_GETFD. */
static int count_fds_with(int flags) {
        DIR *d = opendir("/proc/self/fd");
        struct dirent *e;
        int n = 0;
        ck_assert_ptr_nonnull(d);
        while ((e = readdir(d)))
                n += (fcntl(atoi(e->d_name), F_GETFD) & flags) == flags;
        (void)closedir(d);
        return n;
}

static int count_fds(void) {
        return count_fds_with(0);
}

static void setup(void) {
        int pair[2];
        fds_before = count_fds();
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
        a = pair[0];
        b = pair[1];
}

static void teardown(void) {
        a = close_fd(a);
        b = close_fd(b);
        ck_assert_int_eq(count_fds(), fds_before);
}

/* A set of `n` descriptors of one new file, whose inode tells them from others. */
static struct fdset *files(unsigned n, bool owned, ino_t *ret_inode) {
        struct fdset *set;
        struct stat st;
        _cleanup_close_ int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(fstat(fd, &st), 0);
        ck_assert_int_eq(fdset_new(&set, n, owned), 0);
        for (unsigned i = 0; i < n; i++)
                fdset_add(set, fcntl(fd, F_DUPFD_CLOEXEC, 3));
        if (ret_inode)
                *ret_inode = st.st_ino;
        return set;
}

/* A borrowing set's descriptors are its maker's. */
static void close_all(struct fdset *set) {
        set->owned = true;
        fdset_free(set);
}

static bool hung_up(int fd) {
        struct pollfd p = { .fd = fd };
        return poll(&p, 1, 0) == 1 && (p.revents & POLLHUP);
}

/* ---- one frame */

static const unsigned counts[] = { 0, 1, 2, 252, 253 };

START_TEST(descriptors_arrive) {
        unsigned n = counts[_i];
        ino_t inode = 0;
        struct fdset *sent = n ? files(n, true, &inode) : NULL, *got = NULL;
        size_t len = 0;
        ck_assert_int_eq(channel_send(a, (const uint8_t *)"hello", 5, sent), 0);
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), 0);
        ck_assert_uint_eq(len, 5);
        ck_assert_mem_eq(buf, "hello", 5);
        ck_assert_uint_eq(got ? got->n : 0, n);
        ck_assert(!got || got->owned);
        for (unsigned i = 0; i < n; i++) {
                struct stat st;
                ck_assert_int_eq(fstat(got->fds[i], &st), 0);
                ck_assert_uint_eq(st.st_ino, inode);
                ck_assert_int_eq(fcntl(got->fds[i], F_GETFD), FD_CLOEXEC);
                ck_assert_int_ne(got->fds[i], sent->fds[i]);
        }
        fdset_free(sent);
        fdset_free(got);
}
END_TEST

START_TEST(steal_one) {
        struct fdset *set = files(3, true, NULL);
        _cleanup_close_ int mine = fdset_steal(set, 1);
        ck_assert_int_ge(mine, 0);
        ck_assert_int_eq(fdset_steal(set, 1), -1);
        fdset_free(set);
        ck_assert_int_eq(fcntl(mine, F_GETFD), FD_CLOEXEC);
        ck_assert_ptr_null(fdset_free(NULL));
}
END_TEST

START_TEST(largest_frame) {
        static uint8_t bytes[CHANNEL_FRAME_MAX];
        struct fdset *got = NULL;
        size_t len = 0;
        memset(bytes, 0x5a, sizeof(bytes));
        ck_assert_int_eq(channel_send(a, bytes, sizeof(bytes), NULL), 0);
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), 0);
        ck_assert_uint_eq(len, sizeof(bytes));
        ck_assert_mem_eq(buf, bytes, sizeof(bytes));
        ck_assert_ptr_null(got);
}
END_TEST

START_TEST(nothing_to_read) {
        struct fdset *got = NULL;
        size_t len = 0;
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), CHANNEL_E_AGAIN);
        ck_assert_int_eq(channel_recv(fds_before + 1000, buf, &len, &got), -EBADF);
        a = close_fd(a);
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), CHANNEL_E_EOF);
        ck_assert_int_eq(channel_send(b, (const uint8_t *)"x", 1, NULL), CHANNEL_E_EOF);
        ck_assert_ptr_null(got);
}
END_TEST

/* What was sent before the peer went is still read; what it did not read itself resets the connection. */
START_TEST(last_words) {
        struct fdset *got = NULL;
        size_t len = 0;
        ck_assert_int_eq(channel_send(a, (const uint8_t *)"bye", 3, NULL), 0);
        a = close_fd(a);
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), 0);
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), CHANNEL_E_EOF);
        teardown();
        setup();
        ck_assert_int_eq(channel_send(b, (const uint8_t *)"unread", 6, NULL), 0);
        a = close_fd(a);
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), CHANNEL_E_EOF);
        ck_assert_int_eq(channel_send(b, (const uint8_t *)"x", 1, NULL), CHANNEL_E_EOF);
}
END_TEST

/* ---- what a peer should not send */

/* Sends with a control message of our own making: `n` times the descriptor `fd`. */
static ssize_t send_raw(int to, const void *bytes, size_t len, int fd, size_t n) {
        union {
                struct cmsghdr align;
                char room[CMSG_SPACE(300 * sizeof(int))];
        } control;
        struct iovec iov = { .iov_base = (void *)bytes, .iov_len = len };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        if (n) {
                msg.msg_control = &control;
                msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
                struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
                *c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n * sizeof(int)) };
                for (size_t i = 0; i < n; i++)
                        memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(fd));
        }
        return sendmsg(to, &msg, MSG_NOSIGNAL);
}

/* FDSET_MAX is what the kernel takes: one more does not even leave. */
START_TEST(too_many_to_send) {
        ck_assert_int_eq(send_raw(a, "x", 1, a, FDSET_MAX), 1);
        ck_assert_int_eq(send_raw(a, "x", 1, a, FDSET_MAX + 1), -1);
        ck_assert_int_eq(errno, EINVAL);
        struct fdset *got = NULL;
        size_t len = 0;
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), 0);
        ck_assert_uint_eq(got->n, FDSET_MAX);
        fdset_free(got);
}
END_TEST

/* Whether every copy of the write end is closed, also those that were on their way. */
static void check_gone(int pipe_fds[2]) {
        ck_assert(!hung_up(pipe_fds[0]));
        pipe_fds[1] = close_fd(pipe_fds[1]);
        ck_assert_msg(hung_up(pipe_fds[0]), "a descriptor that was refused is still open somewhere");
        pipe_fds[0] = close_fd(pipe_fds[0]);
}

static const struct {
        size_t len;
        unsigned fds;
        int outcome;
} bad_frames[] = {
        { CHANNEL_FRAME_MAX + 1, 0, CHANNEL_E_BROKEN },
        { CHANNEL_FRAME_MAX + 1, 5, CHANNEL_E_BROKEN },
        { 2 * CHANNEL_FRAME_MAX, 253, CHANNEL_E_BROKEN },
        { 0, 0, CHANNEL_E_EOF }, /* an empty frame looks like the end */
        { 0, 5, CHANNEL_E_EOF },
};

START_TEST(bad_frame) {
        static const uint8_t zeros[2 * CHANNEL_FRAME_MAX];
        struct fdset *got = NULL;
        size_t len = 0;
        int p[2];
        ck_assert_int_eq(pipe2(p, O_CLOEXEC), 0);
        ck_assert_int_eq(send_raw(a, zeros, bad_frames[_i].len, p[1], bad_frames[_i].fds), (ssize_t)bad_frames[_i].len);
        int before = count_fds();
        ck_assert_int_eq(channel_recv(b, buf, &len, &got), bad_frames[_i].outcome);
        ck_assert_int_eq(count_fds(), before);
        ck_assert_ptr_null(got);
        check_gone(p);
}
END_TEST

/* The limit that lets this process open `n` more descriptors. */
static rlim_t limit_for(unsigned n) {
        struct fdset *set;
        ck_assert_int_eq(fdset_new(&set, n + 1, true), 0);
        for (unsigned i = 0; i <= n; i++)
                fdset_add(set, fcntl(a, F_DUPFD_CLOEXEC, 0));
        int first_refused = set->fds[n];
        ck_assert_int_ge(first_refused, 0);
        fdset_free(set);
        return (rlim_t)first_refused;
}

/* This process can take only some of what came, from none to all but one: it takes none. */
START_TEST(descriptor_limit) {
        struct fdset *got = NULL;
        struct rlimit limit, low;
        size_t len = 0;
        int p[2];
        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
        ck_assert_int_eq(pipe2(p, O_CLOEXEC), 0);
        int before = count_fds();

        ck_assert_int_eq(send_raw(a, "x", 1, p[1], 8), 1);
        low = (struct rlimit){ .rlim_cur = limit_for((unsigned)_i), .rlim_max = limit.rlim_max };
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
        int r = channel_recv(b, buf, &len, &got);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
        ck_assert_int_eq(r, _i < 8 ? CHANNEL_E_BROKEN : 0);
        ck_assert_int_eq(got != NULL, _i == 8);
        fdset_free(got);
        ck_assert_int_eq(count_fds(), before);
        check_gone(p);
}
END_TEST

/* A user without privileges may have only so many descriptors on their way; the queue waits and loses nothing. */
START_TEST(too_many_in_flight) {
        struct rlimit low = { .rlim_cur = 64, .rlim_max = 64 };
        struct fdset *set = files(20, false, NULL), *got = NULL;
        size_t len = 0;
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
        if (geteuid() == 0)
                ck_assert_int_eq(setresuid(54321, 54321, 54321), 0);

        int sent = 0, r = 0;
        while (sent < 20 && (r = channel_send(a, (const uint8_t *)"x", 1, set)) == 0)
                sent++;
        ck_assert_int_eq(r, CHANNEL_E_REFS);
        ck_assert_int_ge(sent, 3);
        while (channel_recv(b, buf, &len, &got) == 0)
                got = fdset_free(got);
        ck_assert_int_eq(channel_send(a, (const uint8_t *)"x", 1, set), 0);
        close_all(set);
}
END_TEST

/* ---- the queue */

static void post(struct channel *ch, uint32_t number, struct fdset *fds) {
        uint8_t *bytes = calloc(1, 4096);
        ck_assert_ptr_nonnull(bytes);
        memcpy(bytes, &number, sizeof(number));
        ck_assert_int_eq(channel_post_consume(ch, bytes, 4096, fds, FDSET_MAX), 0);
}

/* Posts until the kernel takes no more, and `more` beyond that; returns how many in all. */
static uint32_t fill(struct channel *ch, uint32_t more) {
        uint32_t n = 0;
        while (channel_idle(ch))
                post(ch, n++, NULL);
        ck_assert_uint_gt(n, 1);
        for (uint32_t i = 0; i < more; i++)
                post(ch, n++, NULL);
        ck_assert_uint_eq(ch->queued, (more + 1) * 4096);
        return n;
}

static uint32_t read_number(struct fdset **ret_fds) {
        uint32_t number;
        size_t len = 0;
        ck_assert_int_eq(channel_recv(b, buf, &len, ret_fds), 0);
        ck_assert_uint_eq(len, 4096);
        memcpy(&number, buf, sizeof(number));
        return number;
}

START_TEST(queue_keeps_order) {
        struct fdset *got = NULL;
        struct channel ch;
        channel_init_consume(&ch, a);
        uint32_t n = fill(&ch, 500), next = 0;
        ck_assert_int_eq(channel_flush(&ch), CHANNEL_E_AGAIN);
        while (next < n) {
                ck_assert_uint_eq(read_number(&got), next++);
                /* what is posted behind a queue waits behind it, also when there is room */
                if (next % 64 == 0 && n < 1000)
                        post(&ch, n++, NULL);
                int r = channel_flush(&ch);
                ck_assert(r == CHANNEL_E_AGAIN || (r == 0 && channel_idle(&ch) && ch.queued == 0));
        }
        ck_assert_int_eq(channel_flush(&ch), 0);
        channel_done(&ch);
        ck_assert_int_eq(ch.fd, -1);
        a = -1;
}
END_TEST

/* A borrowed set that goes at once is not duplicated; one that has to wait is, and the lender may close its own. */
START_TEST(queue_owns_duplicates) {
        struct fdset *got = NULL;
        struct channel ch;
        int p[2];
        ck_assert_int_eq(pipe2(p, O_CLOEXEC), 0);
        channel_init_consume(&ch, a);

        int before = count_fds();
        struct fdset *set;
        ck_assert_int_eq(fdset_new(&set, 1, false), 0);
        fdset_add(set, p[1]);
        post(&ch, 0, set);
        ck_assert_int_eq(count_fds(), before);
        ck_assert_uint_eq(read_number(&got), 0);
        ck_assert_uint_eq(got->n, 1);
        got = fdset_free(got);

        uint32_t n = fill(&ch, 0);
        int closed_on_exec = count_fds_with(FD_CLOEXEC);
        ck_assert_int_eq(fdset_new(&set, 2, false), 0);
        fdset_add(set, p[1]);
        fdset_add(set, p[1]);
        post(&ch, n, set);
        ck_assert_int_eq(count_fds(), before + 2);
        ck_assert_int_eq(count_fds_with(FD_CLOEXEC), closed_on_exec + 2);
        p[1] = close_fd(p[1]);
        ck_assert(!hung_up(p[0]));
        for (uint32_t i = 0; i <= n; i++) {
                ck_assert_ptr_null(got);
                ck_assert_uint_eq(read_number(&got), i);
                int r = channel_flush(&ch);
                ck_assert(r == 0 || r == CHANNEL_E_AGAIN);
        }
        ck_assert_uint_eq(got->n, 2);
        ck_assert_int_eq(write(got->fds[1], "y", 1), 1);
        fdset_free(got);
        ck_assert(hung_up(p[0]));
        (void)close(p[0]);
        channel_done(&ch);
        a = -1;
}
END_TEST

/* What is still queued when the channel ends takes its descriptors with it. */
START_TEST(queue_dropped) {
        struct channel ch;
        ino_t inode;
        channel_init_consume(&ch, a);
        uint32_t n = fill(&ch, 3);
        int before = count_fds();
        for (unsigned i = 0; i < 10; i++)
                post(&ch, n, files(100, true, &inode));
        ck_assert_int_eq(count_fds(), before + 1000);
        channel_done(&ch);
        a = -1;
        ck_assert_uint_eq(ch.queued, 0);
        ck_assert_int_eq(count_fds(), before - 1);
}
END_TEST

START_TEST(queue_without_peer) {
        struct channel ch;
        channel_init_consume(&ch, a);
        (void)fill(&ch, 3);
        b = close_fd(b);
        ck_assert_int_eq(channel_flush(&ch), CHANNEL_E_EOF);
        channel_done(&ch);
        teardown();
        setup();
        channel_init_consume(&ch, a);
        b = close_fd(b);
        ck_assert_int_eq(channel_post_consume(&ch, calloc(1, 8), 8, files(5, true, NULL), FDSET_MAX), CHANNEL_E_EOF);
        channel_done(&ch);
        a = -1;
}
END_TEST

/* No descriptors left for the duplicates: the frame is refused, and the lender's are as they were. */
START_TEST(queue_at_the_limit) {
        struct rlimit limit, low;
        struct channel ch;
        channel_init_consume(&ch, a);
        struct fdset *lent = files(20, false, NULL), *set;
        (void)fill(&ch, 0);
        int before = count_fds();
        ck_assert_int_eq(fdset_new(&set, 20, false), 0);
        for (unsigned i = 0; i < 20; i++)
                fdset_add(set, lent->fds[i]);

        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
        low = (struct rlimit){ .rlim_cur = limit_for(10), .rlim_max = limit.rlim_max };
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
        int r = channel_post_consume(&ch, calloc(1, 8), 8, set, FDSET_MAX);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
        ck_assert_int_eq(r, -EMFILE);
        ck_assert_int_eq(count_fds(), before);
        close_all(lent);
        channel_done(&ch);
        a = -1;
}
END_TEST

int main(void) {
        Suite *s = suite_create("channel");
        TCase *t = tcase_create("one frame");
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_loop_test(t, descriptors_arrive, 0, (int)ARRAY_SIZE(counts));
        tcase_add_test(t, steal_one);
        tcase_add_test(t, largest_frame);
        tcase_add_test(t, nothing_to_read);
        tcase_add_test(t, last_words);
        suite_add_tcase(s, t);
        t = tcase_create("bad peers");
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_test(t, too_many_to_send);
        tcase_add_loop_test(t, bad_frame, 0, (int)ARRAY_SIZE(bad_frames));
        tcase_add_loop_test(t, descriptor_limit, 0, 9);
        tcase_add_test(t, too_many_in_flight);
        suite_add_tcase(s, t);
        t = tcase_create("queue");
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_test(t, queue_keeps_order);
        tcase_add_test(t, queue_owns_duplicates);
        tcase_add_test(t, queue_dropped);
        tcase_add_test(t, queue_without_peer);
        tcase_add_test(t, queue_at_the_limit);
        suite_add_tcase(s, t);

        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
