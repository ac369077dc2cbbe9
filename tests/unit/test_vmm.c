// SPDX-License-Identifier: MIT
/*
 * Every kind of memory by the same tests: "host", "host,huge", and "cuda:0" on the fake driver, whose knobs stage what
 * cannot be had otherwise. With --real the driver is the machine's, and what needs the fake is left out.
 *
 * Each test is a process of its own; none of their parents has called cuInit.
 */
#include "channel.h"
#include "fakecuda.h"
#include "fdset.h"
#include "vmm.h"

#include <check.h>
#include <dirent.h>
#include <libgen.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MIB (UINT64_C(1) << 20)
#define UNIT (2 * MIB)
#define SIZE (8 * MIB)

static const char *const kinds[] = { "host", "host,huge", "cuda:0" };
static bool real;

static struct vmm *vmm;
static bool cuda;
static char text[200];

#define ck_vmm(call) ck_r(call, 0)
#define ck_r(call, expected)                                                                                   \
        do {                                                                                                   \
                int r_ = (call);                                                                               \
                ck_assert_msg(r_ == (expected), "%s: %d, not %d: %s", #call, r_, expected, vmm ? vmm->text : text); \
        } while (0)

static void open_kind(const char *kind) {
        cuda = strncmp(kind, "cuda", 4) == 0;
        ck_r(vmm_open(&vmm, kind, text, sizeof(text)), 0);
}

static struct fakecuda *knobs(void) {
        struct fakecuda *f = fakecuda_open(getenv("FAKECUDA_DIR"));
        ck_assert_ptr_nonnull(f);
        return f;
}

static unsigned open_descriptors(void) {
        unsigned n = 0;
        DIR *dir = opendir("/proc/self/fd");
        ck_assert_ptr_nonnull(dir);
        while (readdir(dir))
                n++;
        (void)closedir(dir);
        return n;
}

static uint64_t room(void) {
        uint64_t total, bytes;
        ck_vmm(vmm_room(vmm, &total, &bytes));
        ck_assert_uint_le(bytes, total);
        return bytes;
}

static int create(uint64_t size) {
        int fd = -1;
        ck_vmm(vmm_create(vmm, size, &fd));
        ck_assert_int_ge(fd, 0);
        return fd;
}

static uint64_t attach(int fd, uint64_t size, enum vmm_access access) {
        uint64_t at;
        ck_vmm(vmm_attach(vmm, fd, 0, size, access, &at));
        return at;
}

static void detach(uint64_t at, uint64_t size) {
        ck_vmm(vmm_unmap(vmm, at, size));
        vmm_unreserve(vmm, at, size);
}

static void put(uint64_t at, const char *word) {
        ck_vmm(vmm_copy_in(vmm, at, word, strlen(word) + 1));
}

static void ck_holds(uint64_t at, const char *word) {
        char found[32];
        ck_vmm(vmm_copy_out(vmm, at, found, strlen(word) + 1));
        ck_assert_str_eq(found, word);
}

static void ck_child_ok(pid_t pid) {
        int status;
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_int_eq(status, 0);
}

/* ---- every kind */

START_TEST(describes_its_device) {
        open_kind(kinds[_i]);
        ck_assert_str_eq(vmm->device.name, cuda ? "cuda:0" : "host");
        ck_assert_uint_eq(vmm->device.granularity, _i == 0 ? (uint64_t)sysconf(_SC_PAGESIZE) : UNIT);
        ck_assert_uint_gt(vmm->device.total, 0);
        ck_assert_uint_eq(strlen(vmm->device.uuid), cuda ? 40 : 4);
        ck_assert_str_ne(vmm->device.model, "");
        (void)vmm_free(vmm);
        ck_assert_ptr_null(vmm_free(NULL));
}
END_TEST

START_TEST(refuses_odd_sizes_and_ranges) {
        static const uint64_t sizes[] = { 0, 1, UNIT + 1, UINT64_MAX };
        uint64_t at;
        int fd, mine;
        vmm_handle handle;
        open_kind(kinds[_i]);
        mine = create(SIZE);
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                vmm->text[0] = '\0';
                ck_r(vmm_create(vmm, sizes[i], &fd), -EINVAL);
                ck_assert_str_ne(vmm->text, "");
                ck_r(vmm_reserve(vmm, 0, sizes[i], &at), -EINVAL);
                ck_r(vmm_import(vmm, mine, sizes[i], &handle), -EINVAL);
                ck_r(vmm_attach(vmm, mine, 0, sizes[i], VMM_ACCESS_READ, &at), -EINVAL);
        }
        at = attach(mine, SIZE, VMM_ACCESS_READ);
        ck_r(vmm_protect(vmm, at, SIZE - 1, VMM_ACCESS_NONE), -EINVAL);
        ck_r(vmm_protect(vmm, at + 1, SIZE, VMM_ACCESS_NONE), -EINVAL);
        ck_r(vmm_unmap(vmm, at, 0), -EINVAL);
        ck_r(vmm_unmap(vmm, 0 - UNIT, 2 * UNIT), -EINVAL);
        ck_r(vmm_reserve(vmm, 1, SIZE, &at), -EINVAL);
}
END_TEST

START_TEST(import_map_protect_unmap) {
        vmm_handle handle;
        uint64_t at, same;
        open_kind(kinds[_i]);
        int fd = create(SIZE);
        ck_vmm(vmm_reserve(vmm, 0, 2 * SIZE, &at));
        for (int round = 0; round < 3; round++) {
                ck_vmm(vmm_import(vmm, fd, SIZE, &handle));
                ck_vmm(vmm_map(vmm, handle, at + SIZE, SIZE));
                vmm_release(vmm, handle, SIZE); /* the mapping keeps it */
                ck_vmm(vmm_protect(vmm, at + SIZE, SIZE, VMM_ACCESS_READ_WRITE));
                if (round == 0)
                        put(at + SIZE + 12345, "what was written");
                ck_holds(at + SIZE + 12345, "what was written");
                ck_vmm(vmm_unmap(vmm, at + SIZE, SIZE));
                ck_r(vmm_reserve(vmm, at, SIZE, &same), VMM_E_TAKEN); /* still ours, the one half and the other */
                ck_r(vmm_reserve(vmm, at + SIZE, SIZE, &same), VMM_E_TAKEN);
        }
        vmm_unreserve(vmm, at, 2 * SIZE);
}
END_TEST

START_TEST(a_mapping_has_no_access_at_first) {
        vmm_handle handle;
        uint64_t at;
        char byte;
        open_kind(kinds[_i]);
        ck_vmm(vmm_reserve(vmm, 0, SIZE, &at));
        ck_vmm(vmm_import(vmm, create(SIZE), SIZE, &handle));
        ck_vmm(vmm_map(vmm, handle, at, SIZE));
        vmm_release(vmm, handle, SIZE);
        ck_r(vmm_copy_out(vmm, at, &byte, 1), VMM_E_REFUSED);
        ck_r(vmm_copy_in(vmm, at, "x", 1), VMM_E_REFUSED);
        ck_vmm(vmm_protect(vmm, at, SIZE, VMM_ACCESS_READ));
        ck_vmm(vmm_copy_out(vmm, at, &byte, 1));
        ck_assert_int_eq(byte, 0);
}
END_TEST

START_TEST(attach_anywhere_and_in_a_reservation) {
        uint64_t base, a, b;
        open_kind(kinds[_i]);
        int fd = create(SIZE);
        a = attach(fd, SIZE, VMM_ACCESS_READ_WRITE);
        put(a + SIZE - 6, "hello");

        ck_vmm(vmm_reserve(vmm, 0, 3 * SIZE, &base));
        ck_vmm(vmm_attach(vmm, fd, base + SIZE, SIZE, VMM_ACCESS_READ, &b));
        ck_assert_uint_eq(b, base + SIZE);
        ck_holds(b + SIZE - 6, "hello");
        ck_r(vmm_copy_in(vmm, b, "x", 1), VMM_E_REFUSED);
        put(a + SIZE - 6, "again"); /* two mappings of one memory */
        ck_holds(b + SIZE - 6, "again");

        detach(a, SIZE);
        ck_r(vmm_copy_in(vmm, a, "x", 1), VMM_E_REFUSED);
        ck_vmm(vmm_unmap(vmm, b, SIZE));
        vmm_unreserve(vmm, base, 3 * SIZE);
}
END_TEST

START_TEST(many_mappings_at_once) {
        enum { N = 16 };
        uint64_t base, at;
        open_kind(kinds[_i]);
        ck_vmm(vmm_reserve(vmm, 0, N * UNIT, &base));
        for (uint64_t i = 0; i < N; i++) {
                int fd = create(UNIT);
                ck_vmm(vmm_attach(vmm, fd, base + i * UNIT, UNIT, VMM_ACCESS_NONE, &at));
                close_fd(fd);
        }
        ck_vmm(vmm_protect(vmm, base, N * UNIT, VMM_ACCESS_READ_WRITE));
        put(base + 5 * UNIT - 4, "across the seam");
        ck_vmm(vmm_protect(vmm, base, N * UNIT, VMM_ACCESS_READ));
        ck_holds(base + 5 * UNIT - 4, "across the seam");
        ck_r(vmm_copy_in(vmm, base + (N - 1) * UNIT, "x", 1), VMM_E_REFUSED);
        ck_vmm(vmm_unmap(vmm, base, N * UNIT));
        ck_r(vmm_copy_out(vmm, base, &at, 1), VMM_E_REFUSED);
        vmm_unreserve(vmm, base, N * UNIT);
}
END_TEST

START_TEST(protection_changes_in_place) {
        char byte;
        open_kind(kinds[_i]);
        uint64_t at = attach(create(SIZE), SIZE, VMM_ACCESS_READ_WRITE);
        put(at, "kept");
        ck_vmm(vmm_protect(vmm, at, SIZE, VMM_ACCESS_READ));
        ck_r(vmm_copy_in(vmm, at, "x", 1), VMM_E_REFUSED);
        ck_holds(at, "kept");
        ck_vmm(vmm_protect(vmm, at, SIZE, VMM_ACCESS_NONE));
        ck_r(vmm_copy_out(vmm, at, &byte, 1), VMM_E_REFUSED);
        ck_vmm(vmm_protect(vmm, at, SIZE, VMM_ACCESS_READ_WRITE));
        ck_holds(at, "kept");
        ck_vmm(vmm_copy_in(vmm, at, "x", 0)); /* nothing to do */
        put(at, "new");
        ck_holds(at, "new");
}
END_TEST

START_TEST(fixed_addresses) {
        uint64_t wanted = 0x510000000000, elsewhere = 0x520000000000, at, other = 0;
        open_kind(kinds[_i]);
        ck_vmm(vmm_reserve(vmm, wanted, SIZE, &at));
        ck_assert_uint_eq(at, wanted);
        ck_r(vmm_reserve(vmm, wanted, SIZE, &other), VMM_E_TAKEN);
        ck_r(vmm_reserve(vmm, wanted + SIZE - UNIT, SIZE, &other), VMM_E_TAKEN);
        ck_assert_uint_eq(other, 0);
        ck_assert_ptr_nonnull(strstr(vmm->text, "in use"));
        ck_vmm(vmm_reserve(vmm, elsewhere, UNIT, &other)); /* although a driver would rather use up what it has */
        ck_assert_uint_eq(other, elsewhere);
        vmm_unreserve(vmm, wanted, SIZE);
        ck_vmm(vmm_reserve(vmm, wanted, SIZE, &at)); /* nothing of it was taken by the failures */
        ck_assert_uint_eq(at, wanted);
}
END_TEST

START_TEST(handles_hold_memory_and_no_descriptor) {
        enum { N = 20 };
        vmm_handle handles[N];
        uint64_t at, before;
        unsigned descriptors;
        int fd;
        open_kind(kinds[_i]);
        before = cuda ? room() : 0;
        fd = create(SIZE);
        descriptors = open_descriptors();
        for (int i = 0; i < N; i++)
                ck_vmm(vmm_import(vmm, fd, SIZE, &handles[i]));
        close(fd);
        ck_assert_uint_eq(open_descriptors(), descriptors - 1);
        ck_vmm(vmm_reserve(vmm, 0, SIZE, &at));
        ck_vmm(vmm_map(vmm, handles[0], at, SIZE));
        for (int i = 0; i < N; i++)
                vmm_release(vmm, handles[i], SIZE);
        ck_vmm(vmm_protect(vmm, at, SIZE, VMM_ACCESS_READ_WRITE));
        put(at, "alive");
        ck_holds(at, "alive");
        detach(at, SIZE);
        if (cuda && !real)
                ck_assert_uint_eq(room(), before);
}
END_TEST

START_TEST(leaves_no_descriptor) {
        uint64_t at;
        int fd;
        open_kind(kinds[_i]);
        at = attach(create(SIZE), SIZE, VMM_ACCESS_READ_WRITE); /* the driver's own come with the first */
        put(at, "x");
        unsigned before = open_descriptors();
        for (int i = 0; i < 5; i++) {
                fd = create(SIZE);
                at = attach(fd, SIZE, VMM_ACCESS_READ_WRITE);
                put(at, "x");
                detach(at, SIZE);
                close(fd);
        }
        ck_r(vmm_create(vmm, UINT64_C(1) << 50, &fd), VMM_E_NO_MEMORY);
        ck_assert_uint_eq(open_descriptors(), before);
        struct vmm *second;
        ck_vmm(vmm_open(&second, kinds[_i], text, sizeof(text)));
        (void)vmm_free(second);
        ck_assert_uint_eq(open_descriptors(), before);
}
END_TEST

START_TEST(descriptors_are_close_on_exec) {
        open_kind(kinds[_i]);
        ck_assert_int_eq(fcntl(create(SIZE), F_GETFD), FD_CLOEXEC);
}
END_TEST

START_TEST(refuses_foreign_descriptors) {
        vmm_handle handle;
        uint64_t at, base;
        int pipes[2], file, bare;
        open_kind(kinds[_i]);
        ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
        file = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        bare = memfd_create("shrinkable", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        ck_assert_int_eq(ftruncate(file, SIZE), 0);
        ck_assert_int_eq(ftruncate(bare, SIZE), 0);

        const int foreign[] = { pipes[0], file, bare };
        ck_vmm(vmm_reserve(vmm, 0, SIZE, &base));
        unsigned before = open_descriptors();
        for (size_t i = 0; i < ARRAY_SIZE(foreign); i++) {
                ck_r(vmm_import(vmm, foreign[i], SIZE, &handle), VMM_E_REFUSED);
                ck_r(vmm_attach(vmm, foreign[i], 0, SIZE, VMM_ACCESS_READ, &at), VMM_E_REFUSED);
                ck_r(vmm_attach(vmm, foreign[i], base, SIZE, VMM_ACCESS_READ, &at), VMM_E_REFUSED);
        }
        ck_r(vmm_import(vmm, -1, SIZE, &handle), -EBADF);
        ck_assert_uint_eq(open_descriptors(), before);
        ck_r(vmm_reserve(vmm, base, SIZE, &at), VMM_E_TAKEN);
}
END_TEST

START_TEST(refuses_to_map_more_than_there_is) {
        vmm_handle handle;
        uint64_t at, base;
        open_kind(kinds[_i]);
        int fd = create(SIZE);
        ck_vmm(vmm_reserve(vmm, 0, 2 * SIZE, &base));
        int r = vmm_import(vmm, fd, SIZE + UNIT, &handle);
        if (r == 0)
                r = vmm_map(vmm, handle, base, SIZE + UNIT);
        ck_r(r, VMM_E_REFUSED);
        ck_r(vmm_attach(vmm, fd, 0, SIZE + UNIT, VMM_ACCESS_READ, &at), VMM_E_REFUSED);
        ck_r(vmm_attach(vmm, fd, base, SIZE + UNIT, VMM_ACCESS_READ, &at), VMM_E_REFUSED);
        ck_vmm(vmm_attach(vmm, fd, base, SIZE, VMM_ACCESS_READ, &at)); /* nothing was left there */
}
END_TEST

/* The other process: opens the device itself, finds what was written, and answers in the memory. */
static int answer(int socket, const char *kind) {
        static uint8_t frame[CHANNEL_FRAME_MAX];
        struct fdset *fds = NULL;
        size_t len;
        uint64_t at;
        char found[8];
        if (channel_recv(socket, frame, &len, &fds) != 0 || !fds || fds->n != 1 ||
            vmm_open(&vmm, kind, text, sizeof(text)) != 0 ||
            vmm_attach(vmm, fds->fds[0], 0, SIZE, VMM_ACCESS_READ_WRITE, &at) != 0)
                return 1;
        (void)fdset_free(fds);
        if (vmm_copy_out(vmm, at + UNIT, found, sizeof(found)) != 0 || memcmp(found, "question", 8) != 0)
                return 2;
        return vmm_copy_in(vmm, at, "answer", 7) == 0 ? 0 : 3;
}

START_TEST(two_processes) {
        int sockets[2];
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0)
                _exit(answer(sockets[1], kinds[_i]));

        open_kind(kinds[_i]);
        int fd = create(SIZE);
        uint64_t at = attach(fd, SIZE, VMM_ACCESS_READ_WRITE);
        put(at + UNIT, "question");
        struct fdset *fds = NULL;
        ck_assert_int_eq(fdset_new(&fds, 1, true), 0);
        fdset_add(fds, fd);
        ck_assert_int_eq(channel_send(sockets[0], (const uint8_t *)"fd", 2, fds), 0);
        (void)fdset_free(fds);
        ck_child_ok(pid);
        ck_holds(at, "answer");
}
END_TEST

START_TEST(a_write_to_a_read_only_mapping_is_a_fault) {
        if (kinds[_i][0] == 'c' && real)
                return;
        open_kind(kinds[_i]);
        volatile char *p = (volatile char *)(uintptr_t)attach(create(SIZE), SIZE, VMM_ACCESS_READ);
        ck_assert_int_eq(*p, 0);
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                (void)signal(SIGSEGV, SIG_DFL);
                *p = 1;
                _exit(0);
        }
        int status;
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
        ck_assert_int_eq(*p, 0);
}
END_TEST

/* ---- stages */

#define STAGE (3 * MIB)

struct copier {
        uint64_t at, size;
        bool failed;
};

/* Through a stage of its own: in, and out again into another part of it. */
static void *copy_around(void *arg) {
        struct copier *c = arg;
        struct vmm_stage *s = NULL;
        char words[200];
        c->failed = vmm_stage_open(&s, vmm, STAGE, words, sizeof(words)) != 0;
        for (uint64_t done = 0, n; !c->failed && done < c->size; done += n) {
                n = MIN(STAGE / 2 - 7, c->size - done);
                char *from = vmm_stage_memory(s), *to = from + STAGE / 2;
                memset(from, (int)(done % 251 + 1), n);
                memset(to, 0, n);
                c->failed = vmm_stage_copy_in(s, c->at + done, from, n) != 0 || vmm_stage_copy_out(s, c->at + done, to, n) != 0 ||
                            vmm_stage_wait(s) != 0 || memcmp(from, to, n) != 0;
        }
        (void)vmm_stage_free(s);
        return NULL;
}

START_TEST(stages_copy_from_many_threads) {
        pthread_t threads[4];
        struct copier c[ARRAY_SIZE(threads)];
        open_kind(kinds[_i]);
        uint64_t size = SIZE * ARRAY_SIZE(threads), at = attach(create(size), size, VMM_ACCESS_READ_WRITE);
        for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
                c[i] = (struct copier){ .at = at + i * SIZE, .size = SIZE };
                ck_assert_int_eq(pthread_create(&threads[i], NULL, copy_around, &c[i]), 0);
        }
        for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
                ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
                ck_assert(!c[i].failed);
        }
        detach(at, size);
}
END_TEST

START_TEST(stages_keep_to_the_access) {
        struct vmm_stage *s;
        open_kind(kinds[_i]);
        uint64_t at = attach(create(SIZE), SIZE, VMM_ACCESS_READ);
        ck_r(vmm_stage_open(&s, vmm, 1, text, sizeof(text)), 0);
        char *memory = vmm_stage_memory(s);
        memory[0] = 'x';
        ck_assert_int_eq(vmm_stage_copy_in(s, at, memory, 1), VMM_E_REFUSED);
        ck_assert_str_ne(vmm_stage_text(s), "");
        ck_assert_int_eq(vmm_stage_copy_out(s, at, memory, 1), 0);
        ck_assert_int_eq(vmm_stage_wait(s), 0);
        ck_assert_int_eq(memory[0], 0);
        ck_assert_ptr_null(vmm_stage_free(s));
}
END_TEST

START_TEST(fences_pass) {
        uint64_t fence;
        open_kind(kinds[_i]);
        ck_vmm(vmm_fence_record(vmm, NULL, &fence));
        while (!vmm_fence_passed(vmm, fence))
                ;
        vmm_fence_free(vmm, fence);
}
END_TEST

/* As PyTorch captures: in the mode that other calls can spoil. */
START_TEST(fences_leave_captures_alone) {
        const struct cuda_driver *d;
        CUcontext context;
        CUstream captured, other;
        CUgraph graph;
        uint64_t fence, before, refused;
        open_kind("cuda:0");
        ck_assert_int_eq(cuda_driver_get(&d, text, sizeof(text)), 0);
        ck_assert_int_eq(d->cuDevicePrimaryCtxRetain(&context, 0), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuCtxPushCurrent_v2(context), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuStreamCreate(&captured, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuStreamCreate(&other, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
        ck_vmm(vmm_fence_record(vmm, other, &before));

        ck_assert_int_eq(d->cuStreamBeginCapture_v2(captured, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
        ck_vmm(vmm_fence_record(vmm, other, &fence));
        ck_r(vmm_fence_record(vmm, captured, &refused), VMM_E_REFUSED);
        ck_assert_uint_eq(refused, 0);
        while (!vmm_fence_passed(vmm, before) || !vmm_fence_passed(vmm, fence))
                ;
        ck_assert_int_eq(d->cuStreamEndCapture(captured, &graph), CUDA_SUCCESS);
        vmm_fence_free(vmm, before);
        vmm_fence_free(vmm, fence);
        ck_assert_int_eq(d->cuGraphDestroy(graph), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuStreamDestroy_v2(captured), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuStreamDestroy_v2(other), CUDA_SUCCESS);
}
END_TEST

START_TEST(out_of_descriptors) {
        open_kind(kinds[_i]);
        int fd = create(SIZE), fds[64], n = 0;
        uint64_t before = cuda ? room() : 0, at;
        vmm_handle handle;
        struct rlimit limit;
        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
        limit.rlim_cur = (rlim_t)fd + 8; /* the fake's own handles take one while they live */
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
        while (n < 64 && (fds[n] = fcntl(fd, F_DUPFD_CLOEXEC, 0)) >= 0)
                n++;

        int another = -1;
        ck_r(vmm_create(vmm, SIZE, &another), -EMFILE);
        ck_assert_int_eq(another, -1);
        ck_vmm(vmm_import(vmm, fd, SIZE, &handle)); /* a reader needs none */
        ck_vmm(vmm_attach(vmm, fd, 0, SIZE, VMM_ACCESS_READ, &at));
        vmm_release(vmm, handle, SIZE);
        while (n > 0)
                close(fds[--n]);
        if (cuda && !real)
                ck_assert_uint_eq(room(), before);
        close(create(SIZE));
}
END_TEST

START_TEST(more_than_there_is) {
        int fd = -1;
        open_kind(kinds[_i]);
        ck_r(vmm_create(vmm, (vmm->device.total / UNIT + 1) * UNIT, &fd), VMM_E_NO_MEMORY);
        ck_assert_ptr_nonnull(strstr(vmm->text, "MiB asked"));
        ck_r(vmm_create(vmm, UINT64_C(1) << 62, &fd), VMM_E_NO_MEMORY);
        ck_assert_int_eq(fd, -1);
}
END_TEST

/* ---- host only */

START_TEST(host_memory_keeps_its_size) {
        open_kind(kinds[_i]);
        int fd = create(SIZE);
        struct stat st;
        ck_assert_int_eq(fstat(fd, &st), 0);
        ck_assert_uint_eq((uint64_t)st.st_size, SIZE);
        ck_assert_uint_eq((uint64_t)st.st_blocks * 512, SIZE); /* committed */
        ck_assert_int_eq(ftruncate(fd, UNIT), -1);
        ck_assert_int_eq(ftruncate(fd, 2 * SIZE), -1);
        ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
}
END_TEST

START_TEST(host_room_is_told) {
        open_kind(kinds[_i]);
        ck_assert_uint_gt(room(), 0);
        ck_assert_uint_lt(room(), vmm->device.total);
}
END_TEST

/* ---- finding devices */

START_TEST(names_that_are_none) {
        static const char *const names[] = { "",        "gpu0",  "cuda", "cuda:", "cuda:x", "cuda:0x",
                                             "cuda:-1", "host:", "GPU",  "0" };
        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                text[0] = '\0';
                ck_r(vmm_open(&vmm, names[i], text, sizeof(text)), -EINVAL);
                ck_assert_str_ne(text, "");
        }
        ck_r(vmm_open(&vmm, "cuda:99", text, sizeof(text)), VMM_E_NO_DEVICE);
        ck_r(vmm_open(&vmm, "cuda:GPU-00000000-0000-0000-0000-000000000000", text, sizeof(text)), VMM_E_NO_DEVICE);
        ck_assert_ptr_nonnull(strstr(text, "GPU-00000000"));
}
END_TEST

START_TEST(devices_by_uuid) {
        struct vmm_device devices[8];
        size_t n;
        char name[64];
        ck_assert_int_eq(vmm_probe(devices, ARRAY_SIZE(devices), &n, text, sizeof(text)), 0);
        ck_assert_uint_ge(n, 1);
        for (size_t i = 0; i < n; i++)
                for (int prefix = 0; prefix < 2; prefix++) {
                        (void)snprintf(name, sizeof(name), "%s%s", prefix ? "cuda:" : "", devices[i].uuid);
                        ck_r(vmm_open(&vmm, name, text, sizeof(text)), 0);
                        ck_assert_str_eq(vmm->device.name, devices[i].name);
                        ck_assert_str_eq(vmm->device.uuid, devices[i].uuid);
                        vmm = vmm_free(vmm);
                }
        ck_assert_int_eq(vmm_probe(devices, 1, &n, text, sizeof(text)), 0);
        ck_assert_uint_eq(n, 1);
}
END_TEST

START_TEST(visible_devices_are_renumbered) {
        struct vmm_device devices[8];
        size_t n;
        ck_assert_int_eq(setenv("CUDA_VISIBLE_DEVICES", "GPU-fa4ecda1", 1), 0);
        ck_assert_int_eq(vmm_probe(devices, ARRAY_SIZE(devices), &n, text, sizeof(text)), 0);
        ck_assert_uint_eq(n, 1);
        ck_assert_str_eq(devices[0].name, "cuda:0");
        ck_assert_str_eq(devices[0].uuid, "GPU-fa4ecda1-0000-4000-8000-000000000001");
        ck_r(vmm_open(&vmm, "cuda:GPU-fa4ecda0-0000-4000-8000-000000000000", text, sizeof(text)), VMM_E_NO_DEVICE);
        open_kind("GPU-FA4ECDA1-0000-4000-8000-000000000001");
        close(create(SIZE));
}
END_TEST

START_TEST(no_visible_device_is_no_driver) {
        struct vmm_device device;
        size_t n;
        ck_assert_int_eq(setenv("CUDA_VISIBLE_DEVICES", "", 1), 0);
        ck_assert_int_eq(vmm_probe(&device, 1, &n, text, sizeof(text)), VMM_E_NO_DRIVER);
        ck_r(vmm_open(&vmm, "cuda:0", text, sizeof(text)), VMM_E_NO_DRIVER);
        ck_assert_ptr_nonnull(strstr(text, "CUDA_ERROR_NO_DEVICE"));
}
END_TEST

/* ---- the driver's bad days */

START_TEST(memory_comes_back_to_the_byte) {
        int fds[64], n = 0, extra;
        open_kind("cuda:0");
        uint64_t before = room();
        ck_assert_uint_eq(before, vmm->device.total);
        while (n < 64 && vmm_create(vmm, 32 * MIB, &fds[n]) == 0)
                n++;
        ck_assert_uint_eq((uint64_t)n, before / (32 * MIB));
        ck_assert_uint_eq(room(), before % (32 * MIB));
        close(fds[--n]);
        ck_vmm(vmm_create(vmm, 32 * MIB, &extra));
        ck_r(vmm_create(vmm, 32 * MIB, &fds[n]), VMM_E_NO_MEMORY);
        close(extra);
        while (n > 0)
                close(fds[--n]);
        ck_assert_uint_eq(room(), before);
}
END_TEST

START_TEST(nvml_is_asked_before_a_create_that_would_fail) {
        int fd;
        struct fakecuda *f = knobs();
        open_kind("cuda:0");
        uint32_t before = fakecuda_calls(f, "cuMemCreate");
        ck_r(vmm_create(vmm, vmm->device.total + UNIT, &fd), VMM_E_NO_MEMORY);
        ck_assert_uint_eq(fakecuda_calls(f, "cuMemCreate"), before);
}
END_TEST

START_TEST(without_nvml_it_is_tried) {
        int fd;
        uint64_t total, bytes;
        fakecuda_fail(knobs(), "nvmlInit_v2", 999, FAKECUDA_ALWAYS);
        open_kind("cuda:0");
        ck_r(vmm_room(vmm, &total, &bytes), VMM_E_REFUSED);
        close(create(SIZE));
        ck_r(vmm_create(vmm, vmm->device.total + UNIT, &fd), VMM_E_NO_MEMORY);
        ck_assert_str_eq(vmm->text, "cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY");
}
END_TEST

START_TEST(what_the_driver_says_is_told) {
        static const struct {
                const char *call;
                int expected;
        } calls[] = {
                { "cuMemCreate", VMM_E_REFUSED },
                { "cuMemExportToShareableHandle", VMM_E_REFUSED },
        };
        open_kind("cuda:0");
        uint64_t before = room();
        unsigned descriptors = open_descriptors();
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
                char expected[80];
                int fd;
                fakecuda_fail(knobs(), calls[i].call, CUDA_ERROR_UNKNOWN, 1);
                ck_r(vmm_create(vmm, SIZE, &fd), calls[i].expected);
                (void)snprintf(expected, sizeof(expected), "%s: CUDA_ERROR_UNKNOWN", calls[i].call);
                ck_assert_str_eq(vmm->text, expected);
                ck_assert_uint_eq(room(), before); /* and nothing is left behind */
                ck_assert_uint_eq(open_descriptors(), descriptors);
        }
}
END_TEST

START_TEST(a_failing_attach_leaves_nothing) {
        static const char *const calls[] = { "cuMemImportFromShareableHandle", "cuMemAddressReserve", "cuMemMap",
                                             "cuMemSetAccess" };
        open_kind("cuda:0");
        uint64_t before = room(), base, at;
        int fd = create(SIZE);
        ck_vmm(vmm_reserve(vmm, 0, SIZE, &base));
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
                fakecuda_fail(knobs(), calls[i], CUDA_ERROR_UNKNOWN, 1);
                ck_r(vmm_attach(vmm, fd, 0, SIZE, VMM_ACCESS_READ, &at), VMM_E_REFUSED);
                ck_assert_int_eq(strncmp(vmm->text, calls[i], strlen(calls[i])), 0);
                if (strcmp(calls[i], "cuMemAddressReserve") == 0)
                        continue;
                fakecuda_fail(knobs(), calls[i], CUDA_ERROR_UNKNOWN, 1);
                ck_r(vmm_attach(vmm, fd, base, SIZE, VMM_ACCESS_READ, &at), VMM_E_REFUSED);
                ck_vmm(vmm_attach(vmm, fd, base, SIZE, VMM_ACCESS_READ, &at));
                ck_vmm(vmm_unmap(vmm, base, SIZE));
        }
        close(fd);
        ck_assert_uint_eq(room(), before);
}
END_TEST

START_TEST(the_callers_context_stays_current) {
        const struct cuda_driver *d;
        CUcontext mine, popped;
        open_kind("cuda:0");
        uint64_t at = attach(create(SIZE), SIZE, VMM_ACCESS_READ_WRITE);
        ck_assert_int_eq(cuda_driver_get(&d, text, sizeof(text)), 0);
        ck_assert_int_eq(d->cuDevicePrimaryCtxRetain(&mine, 0), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuCtxPushCurrent_v2(mine), CUDA_SUCCESS);
        put(at, "x");
        ck_holds(at, "x");
        ck_r(vmm_copy_in(vmm, at + SIZE, "x", 1), VMM_E_REFUSED);
        struct vmm_stage *s;
        uint64_t fence;
        ck_r(vmm_stage_open(&s, vmm, 1, text, sizeof(text)), 0);
        ck_assert_int_eq(vmm_stage_copy_out(s, at, vmm_stage_memory(s), 1), 0);
        ck_assert_int_eq(vmm_stage_wait(s), 0);
        (void)vmm_stage_free(s);
        ck_vmm(vmm_fence_record(vmm, NULL, &fence));
        vmm_fence_free(vmm, fence);
        (void)vmm_free(vmm);
        ck_assert_int_eq(d->cuCtxPopCurrent_v2(&popped), CUDA_SUCCESS);
        ck_assert_ptr_eq(popped, mine);
        ck_assert_int_ne(d->cuCtxPopCurrent_v2(&popped), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuDevicePrimaryCtxRelease_v2(0), CUDA_SUCCESS);
        ck_assert_int_ne(d->cuDevicePrimaryCtxRelease_v2(0), CUDA_SUCCESS); /* vmm_free() gave its own back */
}
END_TEST

/* A process that makes memory and holds it until it is killed; its exit tells how that went otherwise. */
static pid_t start_creator(void) {
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                int fd;
                if (vmm_open(&vmm, "cuda:0", text, sizeof(text)) != 0)
                        _exit(10);
                _exit(vmm_create(vmm, SIZE, &fd) == 0 ? 0 : 11);
        }
        return pid;
}

START_TEST(a_creator_that_crashes_leaves_no_memory) {
        int status;
        fakecuda_crash(knobs(), "cuMemCreate", 1);
        pid_t pid = start_creator();
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        open_kind("cuda:0");
        ck_assert_uint_eq(room(), vmm->device.total);
}
END_TEST

START_TEST(a_hanging_creator_holds_its_memory_until_it_is_killed) {
        struct fakecuda *f = knobs();
        uint32_t calls = fakecuda_calls(f, "cuMemCreate");
        fakecuda_hang(f, "cuMemCreate", 1);
        pid_t pid = start_creator();
        ck_assert(fakecuda_wait(f, "cuMemCreate", calls + 1));
        open_kind("cuda:0");
        close(create(SIZE)); /* the knob was for one */
        kill(pid, SIGKILL);
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
        ck_assert_uint_eq(room(), vmm->device.total);
}
END_TEST

START_TEST(what_hangs_goes_on_when_cleared) {
        struct fakecuda *f = knobs();
        uint32_t calls = fakecuda_calls(f, "cuMemCreate");
        fakecuda_hang(f, "cuMemCreate", FAKECUDA_ALWAYS);
        pid_t pid = start_creator();
        ck_assert(fakecuda_wait(f, "cuMemCreate", calls + 1));
        ck_assert_int_eq(waitpid(pid, NULL, WNOHANG), 0);
        fakecuda_clear(f);
        ck_child_ok(pid);
}
END_TEST

START_TEST(delays_are_for_so_many_calls) {
        struct timespec a, b, c;
        open_kind("cuda:0");
        close(create(SIZE));
        fakecuda_delay(knobs(), "cuMemCreate", 100000, 1);
        clock_gettime(CLOCK_MONOTONIC, &a);
        close(create(SIZE));
        clock_gettime(CLOCK_MONOTONIC, &b);
        close(create(SIZE));
        clock_gettime(CLOCK_MONOTONIC, &c);
        ck_assert_int_ge((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec, 100000000);
        ck_assert_int_lt((c.tv_sec - b.tv_sec) * 1000000000 + c.tv_nsec - b.tv_nsec, 100000000);
}
END_TEST

static unsigned calls_of(const char *function) {
        return fakecuda_calls(knobs(), function);
}

START_TEST(a_stage_that_fails_leaves_nothing) {
        static const char *const calls[] = { "cuDevicePrimaryCtxRetain", "cuMemHostRegister_v2", "cuStreamCreate" };
        struct vmm_stage *s;
        open_kind("cuda:0");
        unsigned before = calls_of("cuMemHostUnregister");
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
                fakecuda_fail(knobs(), calls[i], CUDA_ERROR_OUT_OF_MEMORY, 1);
                ck_r(vmm_stage_open(&s, vmm, STAGE, text, sizeof(text)), VMM_E_REFUSED);
                ck_assert_int_eq(strncmp(text, calls[i], 10), 0);
        }
        ck_assert_uint_eq(calls_of("cuMemHostUnregister"), before + 1);
        ck_r(vmm_stage_open(&s, vmm, STAGE, text, sizeof(text)), 0);
        fakecuda_fail(knobs(), "cuStreamSynchronize", CUDA_ERROR_ILLEGAL_ADDRESS, 1);
        ck_assert_int_eq(vmm_stage_wait(s), VMM_E_REFUSED);
        ck_assert_str_eq(vmm_stage_text(s), "cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS");
        (void)vmm_stage_free(s);
}
END_TEST

START_TEST(a_fence_waits_for_the_driver) {
        uint64_t fence;
        open_kind("cuda:0");
        unsigned before = calls_of("cuEventDestroy_v2");
        fakecuda_fail(knobs(), "cuEventRecord", CUDA_ERROR_UNKNOWN, 1);
        ck_r(vmm_fence_record(vmm, NULL, &fence), VMM_E_REFUSED);
        ck_assert_uint_eq(calls_of("cuEventDestroy_v2"), before + 1);
        ck_vmm(vmm_fence_record(vmm, NULL, &fence));
        fakecuda_fail(knobs(), "cuEventQuery", CUDA_ERROR_NOT_READY, 2);
        ck_assert(!vmm_fence_passed(vmm, fence));
        ck_assert(!vmm_fence_passed(vmm, fence));
        ck_assert(vmm_fence_passed(vmm, fence));
        vmm_fence_free(vmm, fence);
}
END_TEST

static void clear_knobs(void) {
        fakecuda_clear(knobs());
}

/* ---- running them */

static void add_kinds(Suite *s) {
        TCase *t = tcase_create("every kind");
        int n = ARRAY_SIZE(kinds);
        tcase_set_timeout(t, 60);
        tcase_add_loop_test(t, describes_its_device, 0, n);
        tcase_add_loop_test(t, refuses_odd_sizes_and_ranges, 0, n);
        tcase_add_loop_test(t, import_map_protect_unmap, 0, n);
        tcase_add_loop_test(t, a_mapping_has_no_access_at_first, 0, n);
        tcase_add_loop_test(t, attach_anywhere_and_in_a_reservation, 0, n);
        tcase_add_loop_test(t, many_mappings_at_once, 0, n);
        tcase_add_loop_test(t, protection_changes_in_place, 0, n);
        tcase_add_loop_test(t, fixed_addresses, 0, n);
        tcase_add_loop_test(t, handles_hold_memory_and_no_descriptor, 0, n);
        tcase_add_loop_test(t, leaves_no_descriptor, 0, n);
        tcase_add_loop_test(t, descriptors_are_close_on_exec, 0, n);
        tcase_add_loop_test(t, refuses_foreign_descriptors, 0, n);
        tcase_add_loop_test(t, refuses_to_map_more_than_there_is, 0, n);
        tcase_add_loop_test(t, two_processes, 0, n);
        tcase_add_loop_test(t, a_write_to_a_read_only_mapping_is_a_fault, 0, n);
        tcase_add_loop_test(t, stages_copy_from_many_threads, 0, n);
        tcase_add_loop_test(t, stages_keep_to_the_access, 0, n);
        tcase_add_loop_test(t, fences_pass, 0, n);
        tcase_add_test(t, fences_leave_captures_alone);
        tcase_add_loop_test(t, out_of_descriptors, 0, n);
        tcase_add_loop_test(t, more_than_there_is, 0, n);
        tcase_add_loop_test(t, host_memory_keeps_its_size, 0, 2);
        tcase_add_loop_test(t, host_room_is_told, 0, 2);
        tcase_add_test(t, names_that_are_none);
        tcase_add_test(t, devices_by_uuid);
        suite_add_tcase(s, t);
}

static void add_bad_days(Suite *s) {
        TCase *t = tcase_create("fake driver");
        tcase_add_checked_fixture(t, clear_knobs, clear_knobs);
        tcase_set_timeout(t, 60);
        tcase_add_test(t, visible_devices_are_renumbered);
        tcase_add_test(t, no_visible_device_is_no_driver);
        tcase_add_test(t, memory_comes_back_to_the_byte);
        tcase_add_test(t, nvml_is_asked_before_a_create_that_would_fail);
        tcase_add_test(t, without_nvml_it_is_tried);
        tcase_add_test(t, what_the_driver_says_is_told);
        tcase_add_test(t, a_failing_attach_leaves_nothing);
        tcase_add_test(t, the_callers_context_stays_current);
        tcase_add_test(t, a_stage_that_fails_leaves_nothing);
        tcase_add_test(t, a_fence_waits_for_the_driver);
        tcase_add_test(t, a_creator_that_crashes_leaves_no_memory);
        tcase_add_test(t, a_hanging_creator_holds_its_memory_until_it_is_killed);
        tcase_add_test(t, what_hangs_goes_on_when_cleared);
        tcase_add_test(t, delays_are_for_so_many_calls);
        suite_add_tcase(s, t);
}

static int run(void) {
        Suite *s = suite_create("vmm");
        add_kinds(s);
        if (!real)
                add_bad_days(s);
        SRunner *runner = srunner_create(s);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed != 0;
}

/* The loader reads LD_LIBRARY_PATH once, at exec. The fake lies beside this program. */
static int run_with_fakecuda(char **argv) {
        char exe[4000] = "", path[4096], dir[] = "/dev/shm/fakecuda.XXXXXX", command[64];
        int status = 1;
        if (readlink("/proc/self/exe", exe, sizeof(exe) - 1) < 0 || !mkdtemp(dir))
                return 1;
        (void)snprintf(path, sizeof(path), "%s/fakecuda", dirname(exe));
        pid_t pid = fork();
        if (pid == 0) {
                (void)setenv("LD_LIBRARY_PATH", path, 1);
                (void)setenv("FAKECUDA_DIR", dir, 1);
                (void)setenv("FAKECUDA_DEVICES", "2", 1);
                (void)setenv("FAKECUDA_MEMORY", "258M", 1);
                (void)execv("/proc/self/exe", argv);
                _exit(126);
        }
        (void)waitpid(pid, &status, 0);
        (void)snprintf(command, sizeof(command), "rm -rf %s", dir);
        (void)!system(command);
        return status != 0;
}

int main(int argc, char **argv) {
        real = argc > 1 && strcmp(argv[1], "--real") == 0;
        if (!real && !getenv("FAKECUDA_DIR"))
                return run_with_fakecuda(argv);
        return run();
}
