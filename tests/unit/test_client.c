// SPDX-License-Identifier: MIT
/*
 * The client library's connection against a peer that says whatever the test wants, before it is asked: serials are known.
 * And the small parts around it: events, errors, growing structs, pages, metadata lists.
 */
#undef NDEBUG
#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "../../libgmsclient/conn.h"
#include "../../libgmsclient/error.h"
#include "../../libgmsclient/metadata.h"
#include "../../libgmsclient/pages.h"
#include "../../libgmsclient/sized.h"
#include "channel.h"
#include "listing.h"

/* ---- a peer */

static struct events events;
static struct conn conn;
static int peer = -1;

static void connect_peer(void) {
        int pair[2];
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
        conn.fd = pair[0];
        conn.buf = malloc(CHANNEL_FRAME_MAX);
        ck_assert_ptr_nonnull(conn.buf);
        ck_assert_int_eq(events_watch(&events, conn.fd), 0);
        peer = pair[1];
}

static void setup(void) {
        ck_assert_int_eq(events_init(&events), 0);
        conn_init(&conn, &events);
        connect_peer();
}

static void teardown(void) {
        conn_close(&conn);
        conn_done(&conn);
        events_done(&events);
        peer = close_fd(peer);
}

static void say_with(Gms__Frame *frame, struct fdset *fds) {
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        ck_assert_int_eq(wire_pack(frame, fds ? fds->n : 0, &bytes, &len), 0);
        ck_assert_int_eq(channel_send(peer, bytes, len, fds), 0);
        fdset_free(fds);
}

static void say_done(uint64_t serial) {
        Gms__Done done = GMS__DONE__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        f.serial = serial;
        f.body_case = GMS__FRAME__BODY_DONE;
        f.done = &done;
        say_with(&f, NULL);
}

static void say_event(Gms__Event__Kind kind, uint64_t generation, const char *text) {
        Gms__Layout layout = GMS__LAYOUT__INIT;
        layout.generation = generation;
        Gms__Event event = GMS__EVENT__INIT;
        event.kind = kind;
        event.text = (char *)text;
        event.layout = generation ? &layout : NULL;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_EVENT;
        f.event = &event;
        say_with(&f, NULL);
}

/* How many requests have arrived, and the serial of the last. */
static unsigned heard(uint64_t *ret_serial) {
        static uint8_t buf[CHANNEL_FRAME_MAX];
        unsigned n = 0;
        for (;; n++) {
                size_t len;
                struct fdset *fds;
                if (channel_recv(peer, buf, &len, &fds) != 0)
                        return n;
                ck_assert_ptr_null(fds);
                _cleanup_frame_ Gms__Frame *frame = NULL;
                ck_assert_int_eq(wire_unpack(buf, len, 0, &frame), 0);
                *ret_serial = frame->serial;
        }
}

static int call(struct fdset **ret_fds) {
        Gms__Seal seal = GMS__SEAL__INIT;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_SEAL;
        request.seal = &seal;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        return conn_call(&conn, &request, GMS__FRAME__BODY_DONE, 0, &reply, ret_fds);
}

static bool readable(void) {
        struct pollfd p = { .fd = events.epoll_fd, .events = POLLIN };
        return poll(&p, 1, 0) == 1;
}

/* The connection must be gone, the owner told once, and nothing polls any more. */
static void assert_lost(void) {
        struct gms_event event;
        ck_assert(!conn_is_open(&conn));
        ck_assert(readable());
        ck_assert(events_pop(&events, &event));
        ck_assert_uint_eq(event.kind, GMS_EVENT_CLOSED);
        ck_assert(!events_pop(&events, &event));
        ck_assert(!readable());
        ck_assert_int_eq(call(NULL), -ENOTCONN);
        ck_assert_int_eq(conn_drain(&conn), 0);
}

/* ---- calls */

START_TEST(serials_rise) {
        uint64_t serial;
        for (uint64_t i = 1; i < 5; i++) {
                say_done(i);
                ck_assert_int_eq(call(NULL), 0);
                ck_assert_uint_eq(heard(&serial), 1);
                ck_assert_uint_eq(serial, i);
        }
}
END_TEST

START_TEST(a_refusal_is_no_loss) {
        Gms__Frame f = GMS__FRAME__INIT;
        f.serial = 1;
        f.status = GMS__STATUS__CONFLICT;
        f.text = (char *)"it is so";
        say_with(&f, NULL);
        ck_assert_int_eq(call(NULL), -EBUSY);
        ck_assert_str_eq(gms_last_error(), "it is so");
        f.serial = 2;
        f.text = (char *)"";
        say_with(&f, NULL);
        ck_assert_int_eq(call(NULL), -EBUSY);
        ck_assert_str_ne(gms_last_error(), "");
        f.serial = 3;
        f.status = 99; /* of a later daemon */
        say_with(&f, NULL);
        ck_assert_int_eq(call(NULL), -EPROTO);
        say_done(4);
        ck_assert_int_eq(call(NULL), 0);
}
END_TEST

START_TEST(events_between) {
        struct gms_event event;
        say_event(GMS__EVENT__KIND__LOCK_WANTED, 0, "wanted");
        say_event(GMS__EVENT__KIND__PUBLISHED, 4, "four");
        say_event(GMS__EVENT__KIND__PUBLISHED, 5, "five");
        say_event(77, 0, "of a later daemon");
        say_done(1);
        ck_assert_int_eq(call(NULL), 0);
        ck_assert(readable());
        ck_assert(events_pop(&events, &event));
        ck_assert_uint_eq(event.kind, GMS_EVENT_LOCK_WANTED);
        ck_assert_str_eq(event.text, "wanted");
        ck_assert(events_pop(&events, &event));
        ck_assert_uint_eq(event.kind, GMS_EVENT_PUBLISHED);
        ck_assert_uint_eq(event.generation, 5);
        ck_assert(!events_pop(&events, &event));
        ck_assert(!readable());

        /* And without a call. */
        say_event(GMS__EVENT__KIND__LOCK_REVOKED, 0, "revoked");
        ck_assert(readable());
        ck_assert_int_eq(conn_drain(&conn), 0);
        ck_assert(events_pop(&events, &event));
        ck_assert_uint_eq(event.kind, GMS_EVENT_REVOKED);
}
END_TEST

/* The daemon was restarted in the middle: the request goes out again, and a second answer to it is passed over. */
START_TEST(resumed) {
        uint64_t serial;
        say_event(GMS__EVENT__KIND__RESUMED, 0, "resumed");
        say_done(1);
        say_done(1);
        ck_assert_int_eq(call(NULL), 0);
        ck_assert_uint_eq(heard(&serial), 2);
        ck_assert_uint_eq(serial, 1);
        say_done(2);
        ck_assert_int_eq(call(NULL), 0);
        say_done(2);
        ck_assert_int_eq(conn_drain(&conn), 0);
        ck_assert(conn_is_open(&conn));

        /* With nothing outstanding there is nothing to say again. */
        (void)heard(&serial);
        say_event(GMS__EVENT__KIND__RESUMED, 0, "resumed");
        ck_assert_int_eq(conn_drain(&conn), 0);
        ck_assert_uint_eq(heard(&serial), 0);
}
END_TEST

/* ---- the ways of a peer to go */

START_TEST(gone_before_and_after) {
        peer = close_fd(peer);
        ck_assert_int_eq(call(NULL), -ECONNRESET);
        assert_lost();
}
END_TEST

START_TEST(last_words_are_heard) {
        Gms__Frame f = GMS__FRAME__INIT;
        f.serial = 1;
        f.status = GMS__STATUS__LIMIT;
        f.text = (char *)"too many";
        say_with(&f, NULL);
        peer = close_fd(peer);
        ck_assert_int_eq(call(NULL), -ENOBUFS);
        ck_assert_str_eq(gms_last_error(), "too many");
        ck_assert_int_eq(conn_drain(&conn), -ECONNRESET);
        assert_lost();
}
END_TEST

START_TEST(nonsense) {
        static const uint8_t garbage[] = { 0xff, 0xff, 0xff, 1, 2, 3 };
        switch (_i) {
        case 0: /* no frame */
                ck_assert_int_eq(channel_send(peer, garbage, sizeof(garbage), NULL), 0);
                break;
        case 1: /* an answer to what was not asked */
                say_done(2);
                break;
        case 2: { /* another answer than asked for */
                Gms__Layout layout = GMS__LAYOUT__INIT;
                Gms__Frame f = GMS__FRAME__INIT;
                f.serial = 1;
                f.body_case = GMS__FRAME__BODY_LAYOUT;
                f.layout = &layout;
                say_with(&f, NULL);
                break;
        }
        case 3: /* unasked, and no event */
                say_done(0);
                break;
        case 4: /* a refusal without a status is no frame either */
                ck_assert_int_eq(channel_send(peer, (const uint8_t[]){ 0x10, 1 }, 2, NULL), 0);
                break;
        }
        ck_assert_int_eq(call(NULL), -EPROTO);
        assert_lost();
}
END_TEST

static unsigned count_descriptors(void) {
        unsigned n = 0;
        for (int fd = 0; fd < 1024; fd++)
                n += fcntl(fd, F_GETFD) >= 0;
        return n;
}

static void say_done_with_descriptors(uint64_t serial, unsigned n) {
        struct fdset *fds;
        ck_assert_int_eq(fdset_new(&fds, n, false), 0);
        for (unsigned i = 0; i < n; i++)
                fdset_add(fds, 0);
        Gms__Done done = GMS__DONE__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        f.serial = serial;
        f.body_case = GMS__FRAME__BODY_DONE;
        f.done = &done;
        say_with(&f, fds);
}

START_TEST(descriptors) {
        unsigned before = count_descriptors();
        struct fdset *fds;
        say_done_with_descriptors(1, 3);
        ck_assert_int_eq(call(&fds), 0);
        ck_assert_uint_eq(fds->n, 3);
        ck_assert_uint_eq(count_descriptors(), before + 3);
        ck_assert(fcntl(fds->fds[0], F_GETFD) & FD_CLOEXEC);
        fdset_free(fds);

        /* Where none belong they are closed, and the peer is done with. */
        say_done_with_descriptors(2, 3);
        ck_assert_int_eq(call(NULL), -EPROTO);
        ck_assert_uint_eq(count_descriptors(), before - 1);
        assert_lost();
}
END_TEST

/* The process's limit is in the way: what came is closed, and the text says what to raise. */
START_TEST(descriptors_lost) {
        unsigned before = count_descriptors();
        struct fdset *fds;
        struct rlimit old, low;
        say_done_with_descriptors(1, 50);
        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
        low = (struct rlimit){ .rlim_cur = before + 10, .rlim_max = old.rlim_max };
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
        int r = call(&fds);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
        ck_assert_int_eq(r, -EMFILE);
        ck_assert_ptr_nonnull(strstr(gms_last_error(), "RLIMIT_NOFILE"));
        ck_assert_uint_eq(count_descriptors(), before - 1);
        assert_lost();
}
END_TEST

/* A child that forked off holds a copy of the socket: neither the lock nor the polling may hang on it. */
START_TEST(a_copy_of_the_socket) {
        _cleanup_close_ int copy = fcntl(conn.fd, F_DUPFD_CLOEXEC, 3);
        ck_assert_int_ge(copy, 0);
        conn_close(&conn);
        uint8_t buf[8];
        ck_assert_int_eq(recv(peer, buf, sizeof(buf), 0), 0);
        ck_assert(!readable());
}
END_TEST

/* ---- pages */

static void say_page(uint64_t serial, uint64_t first, size_t n, uint64_t total, uint64_t generation) {
        Gms__Allocation a[4], *pointers[4];
        for (size_t i = 0; i < n; i++) {
                gms__allocation__init(&a[i]);
                a[i].id = 100 + first + i;
                a[i].slot = 2 * (first + i);
                a[i].size = a[i].aligned_size = 4096;
                pointers[i] = &a[i];
        }
        Gms__Allocations page = GMS__ALLOCATIONS__INIT;
        page.n_allocations = n;
        page.allocations = pointers;
        page.total = total;
        page.generation = generation;
        Gms__Frame f = GMS__FRAME__INIT;
        f.serial = serial;
        f.body_case = GMS__FRAME__BODY_ALLOCATIONS;
        f.allocations = &page;
        say_with(&f, NULL);
}

START_TEST(pages_as_they_come) {
        /* The daemon may send fewer than asked for. */
        _cleanup_(pages_done) struct pages p = { .conn = &conn, .end = PAGES_ALL };
        const Gms__Allocation *a;
        say_page(1, 0, 3, 5, 9);
        say_page(2, 3, 2, 5, 9);
        for (uint64_t i = 0; i < 5; i++) {
                ck_assert_int_eq(pages_next(&p, &a, NULL), 1);
                ck_assert_uint_eq(a->id, 100 + i);
        }
        ck_assert_int_eq(pages_next(&p, &a, NULL), 0);

        /* A part of it. */
        _cleanup_(pages_done) struct pages part = { .conn = &conn, .next = 1, .end = 3 };
        say_page(3, 1, 2, 5, 9);
        ck_assert_int_eq(pages_next(&part, &a, NULL), 1);
        ck_assert_int_eq(pages_next(&part, &a, NULL), 1);
        ck_assert_int_eq(pages_next(&part, &a, NULL), 0);

        /* Nothing at all. */
        _cleanup_(pages_done) struct pages none = { .conn = &conn, .end = PAGES_ALL };
        say_page(4, 0, 0, 0, 9);
        ck_assert_int_eq(pages_next(&none, &a, NULL), 0);
}
END_TEST

START_TEST(pages_that_make_no_sense) {
        const Gms__Allocation *a;
        _cleanup_(pages_done) struct pages empty = { .conn = &conn, .end = PAGES_ALL };
        say_page(1, 0, 0, 5, 9); /* would be asked for for ever */
        ck_assert_int_eq(pages_next(&empty, &a, NULL), -EPROTO);

        _cleanup_(pages_done) struct pages back = { .conn = &conn, .end = PAGES_ALL };
        say_page(2, 1, 1, 5, 9);
        say_page(3, 0, 2, 5, 9);
        ck_assert_int_eq(pages_next(&back, &a, NULL), 1);
        ck_assert_int_eq(pages_next(&back, &a, NULL), -EPROTO);

        _cleanup_(pages_done) struct pages bare = { .conn = &conn, .descriptors = true, .end = PAGES_ALL };
        say_page(4, 0, 2, 2, 9);
        ck_assert_int_eq(pages_next(&bare, &a, NULL), -EPROTO);

        _cleanup_(pages_done) struct pages more = { .conn = &conn, .next = 0, .end = 1 };
        say_page(5, 0, 2, 2, 9);
        ck_assert_int_eq(pages_next(&more, &a, NULL), -EPROTO);

        /* Another's store may be published in between, which is worth another try. */
        _cleanup_(pages_done) struct pages moved = { .conn = &conn, .store = "host/x", .end = PAGES_ALL };
        say_page(6, 0, 2, 3, 9);
        say_page(7, 2, 1, 3, 10);
        ck_assert_int_eq(pages_next(&moved, &a, NULL), 1);
        ck_assert_int_eq(pages_next(&moved, &a, NULL), 1);
        ck_assert_int_eq(pages_next(&moved, &a, NULL), -EAGAIN);
}
END_TEST

/* ---- the small parts */

START_TEST(errors) {
        ck_assert_int_eq(error_set(-EINVAL, "first %d", 1), -EINVAL);
        ck_assert_int_eq(error_set(-EIO, "<%s>", gms_last_error()), -EIO); /* of itself */
        ck_assert_str_eq(gms_last_error(), "<first 1>");
        ck_assert_int_eq(error_add(-EIO, "; and %s", "more"), -EIO);
        ck_assert_str_eq(gms_last_error(), "<first 1>; and more");

        struct error_saved saved;
        error_save(&saved);
        (void)error_errno(-ENOENT, "other");
        ck_assert_str_eq(gms_last_error(), "other: No such file or directory");
        error_restore(&saved);
        ck_assert_str_eq(gms_last_error(), "<first 1>; and more");

        char flood[5000];
        memset(flood, 'x', sizeof(flood) - 1);
        flood[sizeof(flood) - 1] = '\0';
        (void)error_set(-EIO, "%s", flood);
        (void)error_add(-EIO, "%s", flood);
        ck_assert_uint_eq(strlen(gms_last_error()), 1023);

        ck_assert_int_eq(error_errno(-ENFILE, "x"), -EMFILE);
        for (int s = 1; s <= GMS__STATUS__OUT_OF_RANGE; s++) {
                ck_assert_int_lt(error_status((Gms__Status)s, ""), 0);
                ck_assert_str_ne(gms_last_error(), "");
        }
        ck_assert_int_eq(error_status(GMS__STATUS__STALE, "t"), -ESTALE);
        ck_assert_int_eq(error_status(GMS__STATUS__OUT_OF_RANGE, "t"), -ERANGE);
        ck_assert_int_eq(error_status(GMS__STATUS__TOO_LARGE, "t"), -EFBIG);
}
END_TEST

START_TEST(growing_structs) {
        struct {
                struct gms_event event;
                uint64_t later;
        } newer;
        struct gms_event full = { .size = sizeof(full), .kind = 3, .generation = 9 };

        /* An older caller gets what it has room for. */
        memset(&newer, 0xee, sizeof(newer));
        sized_store(&newer, offsetof(struct gms_event, generation), &full, sizeof(full));
        ck_assert_uint_eq(newer.event.size, offsetof(struct gms_event, generation));
        ck_assert_uint_eq(newer.event.kind, 3);
        ck_assert_uint_eq(newer.event.generation, UINT64_C(0xeeeeeeeeeeeeeeee));
        /* A newer one finds what is not known as 0. */
        sized_store(&newer, sizeof(newer), &full, sizeof(full));
        ck_assert_uint_eq(newer.event.generation, 9);
        ck_assert_uint_eq(newer.later, 0);

        memset(&full, 0xee, sizeof(full));
        newer.event.size = offsetof(struct gms_event, generation);
        sized_load(&full, sizeof(full), &newer);
        ck_assert_uint_eq(full.kind, 3);
        ck_assert_uint_eq(full.generation, 0);
        newer.event.size = 0;
        ck_assert_int_eq(sized_check(&newer, "x"), -EINVAL);
        ck_assert_int_eq(sized_check(NULL, "x"), -EINVAL);
}
END_TEST

START_TEST(metadata_in_one_block) {
        struct gather gather = {};
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
        ck_assert_int_eq(gather_finish(&gather, &list), 0);
        ck_assert_uint_eq(list.n, 0);
        gms_metadata_free(&list);

        for (unsigned reply = 0; reply < 50; reply++) {
                Gms__MetaEntry e[3], *pointers[3];
                char keys[3][32];
                for (unsigned i = 0; i < 3; i++) {
                        gms__meta_entry__init(&e[i]);
                        (void)snprintf(keys[i], sizeof(keys[i]), "key%u", 3 * reply + i);
                        e[i].key = keys[i];
                        e[i].slot = 3 * reply + i;
                        e[i].value = (ProtobufCBinaryData){ .len = i, .data = (uint8_t *)"ab" };
                        pointers[i] = &e[i];
                }
                Gms__Metadata m = GMS__METADATA__INIT;
                m.n_entries = 3;
                m.entries = pointers;
                ck_assert_int_eq(gather_add(&gather, &m), 0);
        }
        ck_assert_int_eq(gather_finish(&gather, &list), 0);
        gather_done(&gather);
        ck_assert_uint_eq(list.n, 150);
        for (unsigned i = 0; i < 150; i++) {
                char key[32];
                (void)snprintf(key, sizeof(key), "key%u", i);
                ck_assert_str_eq(list.entries[i].key, key);
                ck_assert_uint_eq(list.entries[i].slot, i);
                ck_assert_uint_eq(list.entries[i].value_size, i % 3);
                ck_assert_mem_eq(list.entries[i].value, "ab", i % 3);
                ck_assert_uint_eq((uintptr_t)list.entries[i].value % 8, 0);
        }
        gms_metadata_free(&list);
        gms_metadata_free(&list); /* twice is harmless */
        gms_metadata_free(NULL);
}
END_TEST

/* What a reply calls a listing is looked at first. */
START_TEST(listings) {
        _cleanup_(fdset_freep) struct fdset *fds = NULL, *two = NULL;
        struct gather gather = {};
        uint8_t bytes[256];
        size_t size = 0;
        int fd;
        for (unsigned i = 0; i < 4; i++)
                size += listing_pack(bytes + size, &(struct listing_entry){ .key_size = 3, .key = i < 2 ? i ? "a/2" : "a/1" : "b/1" });
        ck_assert_int_eq(listing_seal(bytes, size, &fd), 0);
        ck_assert_int_eq(fdset_new(&fds, 1, true), 0);
        fdset_add(fds, fd);
        ck_assert_int_eq(fdset_new(&two, 2, false), 0);
        fdset_add(two, fd);
        fdset_add(two, fd);

        Gms__Metadata m = GMS__METADATA__INIT;
        ck_assert_int_eq(gather_add_listed(&gather, &m, NULL, "", ""), 0);
        ck_assert_int_eq(gather_add_listed(&gather, &m, fds, "", ""), -EPROTO);
        m.listing = size;
        ck_assert_int_eq(gather_add_listed(&gather, &m, NULL, "", ""), -EPROTO);
        ck_assert_int_eq(gather_add_listed(&gather, &m, two, "", ""), -EPROTO);
        ck_assert_uint_eq(gather.n, 0);
        m.listing = size + 1;
        ck_assert_int_eq(gather_add_listed(&gather, &m, fds, "", ""), -EPROTO);
        m.listing = size - 8;
        ck_assert_int_eq(gather_add_listed(&gather, &m, fds, "b", ""), -EPROTO);
        ck_assert_ptr_nonnull(strstr(gms_last_error(), "listing"));
        gather_done(&gather);
        m.listing = size;
        ck_assert_int_eq(gather_add_listed(&gather, &m, fds, "a/", "a/1"), 0);
        ck_assert_uint_eq(gather.n, 1);
        ck_assert_str_eq(gather.bytes + gather.last_key, "a/2");
        gather_done(&gather);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("client");
        TCase *tc = tcase_create("conn");
        tcase_add_checked_fixture(tc, setup, teardown);
        tcase_add_test(tc, serials_rise);
        tcase_add_test(tc, a_refusal_is_no_loss);
        tcase_add_test(tc, events_between);
        tcase_add_test(tc, resumed);
        tcase_add_test(tc, gone_before_and_after);
        tcase_add_test(tc, last_words_are_heard);
        tcase_add_loop_test(tc, nonsense, 0, 5);
        tcase_add_test(tc, descriptors);
        tcase_add_test(tc, descriptors_lost);
        tcase_add_test(tc, a_copy_of_the_socket);
        tcase_add_test(tc, pages_as_they_come);
        tcase_add_test(tc, pages_that_make_no_sense);
        suite_add_tcase(suite, tc);

        TCase *parts = tcase_create("parts");
        tcase_add_test(parts, errors);
        tcase_add_test(parts, growing_structs);
        tcase_add_test(parts, metadata_in_one_block);
        tcase_add_test(parts, listings);
        suite_add_tcase(suite, parts);

        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
}
