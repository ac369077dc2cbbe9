// SPDX-License-Identifier: MIT
/*
 * What we rely on a CUDA driver for, one rule a test. Runs unchanged on a real driver and on tests/fakecuda: where both
 * pass, what was tested on the fake was tested on a GPU. Rules only, no times; takes less than 2 GiB of the first device.
 *
 * Exits with 77, saying so, where there is no GPU.
 */
#include "cuda_driver.h"
#include "vmm.h"

#include <check.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define MIB (UINT64_C(1) << 20)
#define UNIT (2 * MIB)
#define SIZE (16 * MIB)
#define LARGE (512 * MIB) /* stands out from whatever else goes on in the device's memory */
#define SKIPPED 77

static const struct cuda_driver *d;
static CUmemAllocationProp prop;
static CUmemAccessDesc access_desc;

#define ck_result(call, expected)                                                                             \
        do {                                                                                                  \
                CUresult r_ = (call), e_ = (expected);                                                        \
                ck_assert_msg(r_ == e_, "%s: %s, not %s", #call, cuda_driver_error(d, r_), cuda_driver_error(d, e_)); \
        } while (0)
#define ck_ok(call) ck_result(call, CUDA_SUCCESS)

/* Every test runs in a process of its own, which must not be the child of one that has called cuInit. */
static void set_up(void) {
        char text[200];
        int r = cuda_driver_get(&d, text, sizeof(text));
        ck_assert_msg(r == 0, "%s", text);
        CUdevice device;
        ck_ok(d->cuDeviceGet(&device, 0));
        prop = (CUmemAllocationProp){
                .type = CU_MEM_ALLOCATION_TYPE_PINNED,
                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device },
        };
        access_desc.location = prop.location;
}

/* ---- what the tests are made of */

static CUmemGenericAllocationHandle create(uint64_t size) {
        CUmemGenericAllocationHandle handle;
        ck_ok(d->cuMemCreate(&handle, size, &prop, 0));
        return handle;
}

static int export(CUmemGenericAllocationHandle handle) {
        int fd = -1;
        ck_ok(d->cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
        ck_assert_int_ge(fd, 0);
        return fd;
}

/* Memory that is a descriptor and nothing else. */
static int create_fd(uint64_t size) {
        CUmemGenericAllocationHandle handle = create(size);
        int fd = export(handle);
        ck_ok(d->cuMemRelease(handle));
        return fd;
}

static CUresult try_import(int fd, CUmemGenericAllocationHandle *ret_handle) {
        return d->cuMemImportFromShareableHandle(ret_handle, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
}

static CUmemGenericAllocationHandle import(int fd) {
        CUmemGenericAllocationHandle handle;
        ck_ok(try_import(fd, &handle));
        return handle;
}

static CUdeviceptr reserve(uint64_t size) {
        CUdeviceptr at;
        ck_ok(d->cuMemAddressReserve(&at, size, 0, 0, 0));
        return at;
}

static CUresult try_protect(CUdeviceptr at, uint64_t size, CUmemAccess_flags flags) {
        access_desc.flags = flags;
        return d->cuMemSetAccess(at, size, &access_desc, 1);
}

static void protect(CUdeviceptr at, uint64_t size, CUmemAccess_flags flags) {
        ck_ok(try_protect(at, size, flags));
}

/* Maps a descriptor and lets go of everything but the mapping. */
static CUdeviceptr map_fd(int fd, uint64_t size, CUmemAccess_flags flags) {
        CUmemGenericAllocationHandle handle = import(fd);
        CUdeviceptr at = reserve(size);
        ck_ok(d->cuMemMap(at, size, 0, handle, 0));
        ck_ok(d->cuMemRelease(handle));
        protect(at, size, flags);
        return at;
}

static void unmap(CUdeviceptr at, uint64_t size) {
        ck_ok(d->cuMemUnmap(at, size));
        ck_ok(d->cuMemAddressFree(at, size));
}

static void enter_context(void) {
        CUcontext context;
        ck_ok(d->cuDevicePrimaryCtxRetain(&context, prop.location.id));
        ck_ok(d->cuCtxPushCurrent_v2(context));
}

static uint64_t *pattern(uint64_t size, uint64_t seed) {
        uint64_t *words = malloc(size);
        ck_assert_ptr_nonnull(words);
        for (uint64_t i = 0; i < size / sizeof(*words); i++)
                words[i] = (i + seed) * UINT64_C(0x9e3779b97f4a7c15);
        return words;
}

static void write_pattern(CUdeviceptr at, uint64_t size, uint64_t seed) {
        _cleanup_free_ uint64_t *words = pattern(size, seed);
        ck_ok(d->cuMemcpyHtoD_v2(at, words, size));
        ck_ok(d->cuStreamSynchronize(NULL));
}

static bool has_pattern(CUdeviceptr at, uint64_t size, uint64_t seed) {
        _cleanup_free_ uint64_t *words = pattern(size, seed), *found = calloc(1, size);
        ck_assert_ptr_nonnull(found);
        ck_ok(d->cuMemcpyDtoH_v2(found, at, size));
        return memcmp(words, found, size) == 0;
}

/* Free bytes of the device, asked without a context. */
static uint64_t free_memory(void) {
        const struct nvml *nvml = nvml_get();
        struct vmm_device device;
        struct nvml_device *handle;
        struct nvml_memory memory;
        size_t n;
        char text[200];
        ck_assert_msg(nvml, "no libnvidia-ml.so.1 beside the driver");
        ck_assert_int_eq(vmm_probe(&device, 1, &n, text, sizeof(text)), 0);
        ck_assert_int_eq(nvml->nvmlDeviceGetHandleByUUID(device.uuid, &handle), 0);
        ck_assert_int_eq(nvml->nvmlDeviceGetMemoryInfo(handle, &memory), 0);
        return memory.free;
}

static void ck_less_free(uint64_t before) {
        uint64_t now = free_memory();
        ck_assert_msg(now + LARGE / 2 < before, "%llu MiB free now, %llu before", (unsigned long long)(now / MIB),
                      (unsigned long long)(before / MIB));
}

static void ck_as_free(uint64_t before) {
        uint64_t now = free_memory();
        ck_assert_msg(now + LARGE / 2 > before, "%llu MiB free now, %llu before", (unsigned long long)(now / MIB),
                      (unsigned long long)(before / MIB));
}

/* ---- a second process */

static void send_fd(int socket, int fd) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int))];
        } control = { 0 };
        struct iovec iov = { "", 1 };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
        ck_assert_int_eq(sendmsg(socket, &msg, MSG_NOSIGNAL), 1);
}

static int receive_fd(int socket) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int))];
        } control;
        char byte;
        int fd;
        struct iovec iov = { &byte, 1 };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        ck_assert_int_eq(recvmsg(socket, &msg, MSG_CMSG_CLOEXEC), 1);
        ck_assert_ptr_nonnull(CMSG_FIRSTHDR(&msg));
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
        return fd;
}

static void wait_for_kill(int socket) {
        send(socket, "", 1, MSG_NOSIGNAL);
        for (;;)
                pause();
}

/* Makes memory with a pattern in it, hands the descriptor over and stays, without leaving anything tidily. */
static void role_creator(int socket) {
        CUmemGenericAllocationHandle handle = create(LARGE);
        int fd = export(handle);
        CUdeviceptr at = map_fd(fd, LARGE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        enter_context();
        write_pattern(at, SIZE, 1);
        send_fd(socket, fd);
        wait_for_kill(socket);
}

/* Maps memory of its own and never hands it to anybody. */
static void role_owner(int socket) {
        (void)map_fd(create_fd(LARGE), LARGE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        wait_for_kill(socket);
}

/* Finds pattern 1 in the memory it gets, and leaves pattern 2. */
static void role_changer(int socket) {
        CUdeviceptr at = map_fd(receive_fd(socket), SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        enter_context();
        ck_assert(has_pattern(at, SIZE, 1));
        write_pattern(at, SIZE, 2);
}

static const struct role {
        const char *name;
        void (*play)(int socket);
} roles[] = {
        { "creator", role_creator },
        { "owner", role_owner },
        { "changer", role_changer },
};

static const struct role *role;
static int role_socket;

START_TEST(the_role) {
        role->play(role_socket);
}
END_TEST

/* Assertions work only below a runner of Check's. */
static int play(const char *name, int socket) {
        for (size_t i = 0; i < ARRAY_SIZE(roles); i++)
                if (strcmp(name, roles[i].name) == 0)
                        role = &roles[i];
        if (!role)
                return 2;
        role_socket = socket;

        Suite *s = suite_create(name);
        TCase *t = tcase_create(name);
        tcase_add_checked_fixture(t, set_up, NULL);
        tcase_add_test(t, the_role);
        suite_add_tcase(s, t);
        SRunner *runner = srunner_create(s);
        srunner_set_fork_status(runner, CK_NOFORK);
        srunner_run_all(runner, CK_SILENT);
        int failed = srunner_ntests_failed(runner);
        if (failed)
                fprintf(stderr, "contract: as %s: %s\n", name, tr_msg(srunner_failures(runner)[0]));
        srunner_free(runner);
        return failed != 0;
}

/* A process that shares nothing with this one but a socket: a fork alone would inherit the driver's state. */
static pid_t start(const char *name, int *ret_socket) {
        int sockets[2];
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                char number[16];
                (void)fcntl(sockets[1], F_SETFD, 0);
                (void)snprintf(number, sizeof(number), "%d", sockets[1]);
                (void)execl("/proc/self/exe", "contract", name, number, (char *)NULL);
                _exit(126);
        }
        close(sockets[1]);
        *ret_socket = sockets[0];
        return pid;
}

static void wait_ready(int socket) {
        char byte;
        ck_assert_msg(recv(socket, &byte, 1, 0) == 1, "the other process has failed");
}

static void kill_and_wait(pid_t pid) {
        int status;
        ck_assert_int_eq(kill(pid, SIGKILL), 0);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* ---- lifetime */

START_TEST(a_descriptor_outlives_its_killed_creator) {
        int socket;
        uint64_t before = free_memory();
        pid_t pid = start("creator", &socket);
        int fd = receive_fd(socket);
        wait_ready(socket);
        kill_and_wait(pid);

        ck_less_free(before);
        CUdeviceptr at = map_fd(fd, LARGE, CU_MEM_ACCESS_FLAGS_PROT_READ);
        enter_context();
        ck_assert(has_pattern(at, SIZE, 1));
}
END_TEST

START_TEST(a_killed_process_has_freed_when_it_is_reaped) {
        int socket;
        uint64_t before = free_memory();
        pid_t pid = start("owner", &socket);
        wait_ready(socket);
        ck_less_free(before);
        kill_and_wait(pid);
        ck_as_free(before);
}
END_TEST

START_TEST(two_processes_share_bytes) {
        int socket, status, fd = create_fd(SIZE);
        CUdeviceptr at = map_fd(fd, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        enter_context();
        write_pattern(at, SIZE, 1);

        pid_t pid = start("changer", &socket);
        send_fd(socket, fd);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_int_eq(status, 0);
        ck_assert(has_pattern(at, SIZE, 2));
}
END_TEST

START_TEST(import_again_and_again) {
        int fd = create_fd(SIZE);
        enter_context();
        for (uint64_t i = 0; i < 3; i++) {
                CUdeviceptr at = map_fd(fd, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
                if (i > 0)
                        ck_assert(has_pattern(at, SIZE, i - 1));
                write_pattern(at, SIZE, i);
                unmap(at, SIZE);
        }
}
END_TEST

START_TEST(two_mappings_of_one_allocation) {
        int fd = create_fd(SIZE);
        CUdeviceptr a = map_fd(fd, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        CUdeviceptr b = map_fd(fd, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READ);
        enter_context();
        write_pattern(a, SIZE, 5);
        ck_assert(has_pattern(b, SIZE, 5));
}
END_TEST

START_TEST(the_last_descriptor_frees) {
        uint64_t before = free_memory();
        int fd = create_fd(LARGE), copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        ck_less_free(before);
        close(fd);
        ck_less_free(before);
        close(copy);
        ck_as_free(before);
}
END_TEST

START_TEST(a_handle_keeps_without_descriptor) {
        uint64_t before = free_memory();
        int fd = create_fd(LARGE);
        CUmemGenericAllocationHandle handle = import(fd);
        close(fd);
        ck_less_free(before);
        ck_ok(d->cuMemRelease(handle));
        ck_as_free(before);
}
END_TEST

START_TEST(a_mapping_keeps_without_handle_or_descriptor) {
        uint64_t before = free_memory();
        int fd = create_fd(LARGE);
        CUdeviceptr at = map_fd(fd, LARGE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        close(fd);
        ck_less_free(before);
        unmap(at, LARGE);
        ck_as_free(before);
}
END_TEST

START_TEST(an_import_cannot_be_exported) {
        int fd;
        CUmemGenericAllocationHandle handle = import(create_fd(SIZE));
        ck_result(d->cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                  CUDA_ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(what_was_not_to_be_exported_is_not) {
        int fd;
        CUmemAllocationProp private = prop;
        CUmemGenericAllocationHandle handle;
        private.requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE;
        ck_ok(d->cuMemCreate(&handle, SIZE, &private, 0));
        ck_result(d->cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                  CUDA_ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(properties_of_an_import) {
        CUmemAllocationProp found;
        ck_ok(d->cuMemGetAllocationPropertiesFromHandle(&found, import(create_fd(SIZE))));
        ck_assert_int_eq(found.type, CU_MEM_ALLOCATION_TYPE_PINNED);
        ck_assert_int_eq(found.location.type, CU_MEM_LOCATION_TYPE_DEVICE);
        ck_assert_int_eq(found.location.id, prop.location.id);
        ck_assert_int_eq(found.requestedHandleTypes, CU_MEM_HANDLE_TYPE_NONE);
}
END_TEST

START_TEST(the_descriptor_is_close_on_exec) {
        int fd = create_fd(SIZE);
        ck_assert_int_eq(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}
END_TEST

START_TEST(new_memory_is_zeroed) {
        for (int i = 0; i < 2; i++) {
                int fd = create_fd(SIZE);
                CUdeviceptr at = map_fd(fd, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
                close(fd);
                if (i == 0)
                        enter_context();
                _cleanup_free_ char *found = malloc(SIZE);
                ck_assert_ptr_nonnull(found);
                ck_ok(d->cuMemcpyDtoH_v2(found, at, SIZE));
                ck_assert_msg(found[0] == 0 && memcmp(found, found + 1, SIZE - 1) == 0, "round %d: not all zeroes", i);
                write_pattern(at, SIZE, 9);
                unmap(at, SIZE);
        }
}
END_TEST

/* ---- calls and refusals */

START_TEST(granularity_is_2_mib) {
        size_t granularity;
        ck_ok(d->cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
        ck_assert_uint_eq(granularity, UNIT);
        ck_ok(d->cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
        ck_assert_uint_eq(granularity, UNIT);
}
END_TEST

START_TEST(sizes_must_be_whole_units) {
        CUmemGenericAllocationHandle handle;
        CUdeviceptr at;
        ck_result(d->cuMemCreate(&handle, 0, &prop, 0), CUDA_ERROR_INVALID_VALUE);
        ck_result(d->cuMemCreate(&handle, UNIT + 4096, &prop, 0), CUDA_ERROR_INVALID_VALUE);
        ck_result(d->cuMemAddressReserve(&at, 0, 0, 0, 0), CUDA_ERROR_INVALID_VALUE);
        ck_result(d->cuMemAddressReserve(&at, UNIT + 1, 0, 0, 0), CUDA_ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(more_than_there_is) {
        CUmemGenericAllocationHandle handle;
        size_t total;
        ck_ok(d->cuDeviceTotalMem_v2(&total, prop.location.id));
        ck_result(d->cuMemCreate(&handle, (total / UNIT + 1) * UNIT, &prop, 0), CUDA_ERROR_OUT_OF_MEMORY);
}
END_TEST

START_TEST(maps_whole_handles_only) {
        CUmemGenericAllocationHandle handle = create(SIZE);
        CUdeviceptr at = reserve(2 * SIZE);
        ck_result(d->cuMemMap(at, SIZE - UNIT, UNIT, handle, 0), CUDA_ERROR_NOT_SUPPORTED);
        ck_result(d->cuMemMap(at, SIZE - UNIT, 0, handle, 0), CUDA_ERROR_NOT_SUPPORTED);
        ck_result(d->cuMemMap(at, SIZE + UNIT, 0, handle, 0), CUDA_ERROR_NOT_SUPPORTED);
        ck_ok(d->cuMemMap(at, SIZE, 0, handle, 0));
}
END_TEST

START_TEST(maps_only_where_nothing_is) {
        CUmemGenericAllocationHandle a = create(SIZE), b = create(SIZE);
        CUdeviceptr at = reserve(2 * SIZE);
        ck_ok(d->cuMemMap(at, SIZE, 0, a, 0));
        ck_result(d->cuMemMap(at, SIZE, 0, b, 0), CUDA_ERROR_INVALID_VALUE);
        ck_result(d->cuMemMap(at + UNIT, SIZE, 0, b, 0), CUDA_ERROR_INVALID_VALUE);
        ck_ok(d->cuMemMap(at + SIZE, SIZE, 0, b, 0));
}
END_TEST

START_TEST(maps_only_into_reservations) {
        CUmemGenericAllocationHandle handle = create(SIZE);
        CUdeviceptr at = reserve(SIZE);
        ck_ok(d->cuMemAddressFree(at, SIZE));
        ck_result(d->cuMemMap(at, SIZE, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(unmaps_and_protects_whole_mappings_only) {
        CUdeviceptr at = map_fd(create_fd(SIZE), SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        ck_result(d->cuMemUnmap(at, UNIT), CUDA_ERROR_INVALID_VALUE);
        ck_result(d->cuMemUnmap(at + UNIT, SIZE - UNIT), CUDA_ERROR_INVALID_VALUE);
        ck_result(try_protect(at, UNIT, CU_MEM_ACCESS_FLAGS_PROT_READ), CUDA_ERROR_INVALID_VALUE);
        ck_result(try_protect(at + UNIT, SIZE - UNIT, CU_MEM_ACCESS_FLAGS_PROT_READ), CUDA_ERROR_INVALID_VALUE);
        enter_context();
        write_pattern(at, SIZE, 3); /* as it was */
        ck_assert(has_pattern(at, SIZE, 3));
}
END_TEST

START_TEST(unmaps_and_protects_many_mappings_at_once) {
        enum { N = 8 };
        CUdeviceptr at = reserve(N * UNIT);
        for (uint64_t i = 0; i < N; i++) {
                CUmemGenericAllocationHandle handle = create(UNIT);
                ck_ok(d->cuMemMap(at + i * UNIT, UNIT, 0, handle, 0));
                ck_ok(d->cuMemRelease(handle));
        }
        protect(at, N * UNIT, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        enter_context();
        write_pattern(at, N * UNIT, 4); /* one copy across all of them */
        protect(at + UNIT, 2 * UNIT, CU_MEM_ACCESS_FLAGS_PROT_READ);
        ck_assert(has_pattern(at, N * UNIT, 4));
        ck_ok(d->cuMemUnmap(at + UNIT, 3 * UNIT));
        ck_ok(d->cuMemUnmap(at + 4 * UNIT, (N - 4) * UNIT));
        ck_ok(d->cuMemUnmap(at, UNIT));
        ck_ok(d->cuMemAddressFree(at, N * UNIT));
}
END_TEST

START_TEST(protection_stops_at_a_gap) {
        CUdeviceptr at = reserve(4 * UNIT);
        for (uint64_t i = 0; i < 4; i += 2)
                ck_ok(d->cuMemMap(at + i * UNIT, UNIT, 0, create(UNIT), 0));
        ck_result(try_protect(at, 4 * UNIT, CU_MEM_ACCESS_FLAGS_PROT_READWRITE), CUDA_ERROR_INVALID_VALUE);
        protect(at, 3 * UNIT, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        enter_context();
        ck_ok(d->cuMemsetD8_v2(at, 1, UNIT));
        ck_result(d->cuMemsetD8_v2(at + 2 * UNIT, 1, UNIT), CUDA_ERROR_INVALID_VALUE); /* and no word of it */
        ck_ok(d->cuMemUnmap(at, 4 * UNIT)); /* that does not */
        ck_ok(d->cuMemAddressFree(at, 4 * UNIT));
}
END_TEST

START_TEST(nothing_is_accessible_before_protect) {
        char byte;
        CUdeviceptr at = reserve(SIZE);
        ck_ok(d->cuMemMap(at, SIZE, 0, create(SIZE), 0));
        enter_context();
        ck_result(d->cuMemcpyDtoH_v2(&byte, at, 1), CUDA_ERROR_INVALID_VALUE);
        ck_result(d->cuMemcpyHtoD_v2(at, "x", 1), CUDA_ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(protection_changes_in_place) {
        char byte;
        CUdeviceptr at = map_fd(create_fd(SIZE), SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        enter_context();
        write_pattern(at, SIZE, 6);

        protect(at, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READ);
        ck_assert(has_pattern(at, SIZE, 6));
        ck_result(d->cuMemcpyHtoD_v2(at, "x", 1), CUDA_ERROR_INVALID_VALUE);
        ck_result(d->cuMemsetD8_v2(at, 7, SIZE), CUDA_ERROR_INVALID_VALUE);
        ck_assert(has_pattern(at, SIZE, 6)); /* and the context is unharmed */

        protect(at, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        ck_ok(d->cuMemsetD8_v2(at, 7, SIZE));
        ck_ok(d->cuMemcpyDtoH_v2(&byte, at + SIZE - 1, 1));
        ck_assert_int_eq(byte, 7);

        protect(at, SIZE, CU_MEM_ACCESS_FLAGS_PROT_NONE);
        ck_result(d->cuMemcpyDtoH_v2(&byte, at, 1), CUDA_ERROR_INVALID_VALUE);
        protect(at, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READ);
        ck_ok(d->cuMemcpyDtoH_v2(&byte, at, 1));
}
END_TEST

START_TEST(what_is_not_mapped_cannot_be_protected_or_copied) {
        CUdeviceptr at = reserve(SIZE);
        ck_result(try_protect(at, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READ), CUDA_ERROR_INVALID_VALUE);
        ck_ok(d->cuMemUnmap(at, SIZE)); /* unmapping it is no error */
        enter_context();
        ck_result(d->cuMemcpyHtoD_v2(at, "x", 1), CUDA_ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(addresses_in_use_are_not_given_back) {
        CUdeviceptr at = map_fd(create_fd(SIZE), SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        ck_result(d->cuMemAddressFree(at, SIZE), CUDA_ERROR_INVALID_VALUE);
        ck_ok(d->cuMemUnmap(at, SIZE));
        ck_result(d->cuMemAddressFree(at, SIZE - UNIT), CUDA_ERROR_INVALID_VALUE); /* whole reservations only */
        ck_ok(d->cuMemAddressFree(at, SIZE));
        ck_result(d->cuMemAddressFree(at, SIZE), CUDA_ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(fixed_addresses) {
        static const CUdeviceptr wanted[] = { 0x500000000000, 0x200000000000, 0x7e0000000000 };
        for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
                CUdeviceptr first, second;
                ck_ok(d->cuMemAddressReserve(&first, SIZE, 0, wanted[i], 0));
                ck_assert_uint_eq(first, wanted[i]);
                ck_ok(d->cuMemAddressReserve(&second, SIZE, 0, wanted[i], 0)); /* it is in use: somewhere else */
                ck_assert_uint_ne(second, wanted[i]);
                ck_ok(d->cuMemAddressFree(second, SIZE));
                ck_ok(d->cuMemAddressFree(first, SIZE));
        }
        CUdeviceptr odd;
        ck_result(d->cuMemAddressReserve(&odd, SIZE, 0, wanted[0] + SIZE + 4096, 0), CUDA_ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(holding_what_came_instead_gets_what_was_asked_for) {
        CUdeviceptr other, at = 0, wanted = 0x200000000000, instead[16];
        int n = 0;
        ck_ok(d->cuMemAddressReserve(&other, UNIT, 0, 0x500000000000, 0)); /* room is left over beside it */
        while (n < 16) {
                ck_ok(d->cuMemAddressReserve(&at, UNIT, 0, wanted, 0));
                if (at == wanted)
                        break;
                instead[n++] = at;
        }
        ck_assert_uint_eq(at, wanted);
        while (n > 0)
                ck_ok(d->cuMemAddressFree(instead[--n], UNIT));
}
END_TEST

START_TEST(addresses_stay_reserved_after_unmap) {
        int fd = create_fd(SIZE);
        CUdeviceptr at = map_fd(fd, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE), other;
        enter_context();
        write_pattern(at, SIZE, 8);
        ck_ok(d->cuMemUnmap(at, SIZE));
        ck_ok(d->cuMemAddressReserve(&other, SIZE, 0, at, 0));
        ck_assert_uint_ne(other, at);

        CUmemGenericAllocationHandle handle = import(fd);
        ck_ok(d->cuMemMap(at, SIZE, 0, handle, 0));
        protect(at, SIZE, CU_MEM_ACCESS_FLAGS_PROT_READ);
        ck_assert(has_pattern(at, SIZE, 8));
}
END_TEST

START_TEST(large_reservations) {
        CUdeviceptr at = reserve(UINT64_C(16) << 40);
        ck_ok(d->cuMemAddressFree(at, UINT64_C(16) << 40));
}
END_TEST

START_TEST(open_to_network_cards) {
        int supported = 0;
        CUmemAllocationProp rdma = prop, found;
        CUmemGenericAllocationHandle handle;
        ck_ok(d->cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
                                      prop.location.id));
        rdma.allocFlags.gpuDirectRDMACapable = supported != 0;
        ck_ok(d->cuMemCreate(&handle, SIZE, &rdma, 0));
        close(export(handle));
        ck_ok(d->cuMemGetAllocationPropertiesFromHandle(&found, handle));
        ck_assert_int_eq(found.requestedHandleTypes, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
}
END_TEST

START_TEST(fabric_handles_need_a_channel) {
        CUmemAllocationProp fabric = prop;
        CUmemGenericAllocationHandle handle;
        if (access("/dev/nvidia-caps-imex-channels/channel0", F_OK) == 0)
                return;
        fabric.requestedHandleTypes = CU_MEM_HANDLE_TYPE_FABRIC;
        ck_result(d->cuMemCreate(&handle, SIZE, &fabric, 0), CUDA_ERROR_NOT_PERMITTED);
}
END_TEST

START_TEST(only_its_own_descriptors_are_imported) {
        CUmemGenericAllocationHandle handle;
        _cleanup_close_ int fd = memfd_create("not the driver's", MFD_CLOEXEC);
        ck_assert_int_eq(ftruncate(fd, SIZE), 0);
        ck_assert_int_ne(try_import(fd, &handle), CUDA_SUCCESS);
}
END_TEST

START_TEST(copies_need_a_context) {
        CUdeviceptr at = map_fd(create_fd(SIZE), SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        ck_result(d->cuMemcpyHtoD_v2(at, "x", 1), CUDA_ERROR_INVALID_CONTEXT);
}
END_TEST

/* Page-locked memory, as stages have it. */
static void *registered(uint64_t size) {
        void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ck_assert(p != MAP_FAILED);
        ck_ok(d->cuMemHostRegister_v2(p, size, 0));
        return p;
}

START_TEST(queued_copies_are_done_when_the_stream_is) {
        CUdeviceptr at = map_fd(create_fd(SIZE), SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        _cleanup_free_ uint64_t *words = pattern(SIZE, 12);
        CUstream stream;
        enter_context();
        char *from = registered(SIZE), *to = registered(SIZE);
        ck_ok(d->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        memcpy(from, words, SIZE);
        ck_ok(d->cuMemcpyHtoDAsync_v2(at, from, SIZE - 5, stream));
        ck_ok(d->cuMemcpyHtoDAsync_v2(at + SIZE - 5, from + SIZE - 5, 5, stream));
        ck_ok(d->cuMemcpyDtoHAsync_v2(to, at, SIZE, stream));
        ck_ok(d->cuStreamSynchronize(stream));
        ck_assert_int_eq(memcmp(to, words, SIZE), 0);
        ck_ok(d->cuStreamDestroy_v2(stream));
        ck_ok(d->cuMemHostUnregister(from));
        ck_ok(d->cuMemHostUnregister(to));
}
END_TEST

START_TEST(a_queued_copy_to_read_only_memory_is_refused_at_once) {
        CUdeviceptr at = map_fd(create_fd(SIZE), SIZE, CU_MEM_ACCESS_FLAGS_PROT_READ);
        CUstream stream;
        enter_context();
        char *memory = registered(UNIT);
        ck_ok(d->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        ck_result(d->cuMemcpyHtoDAsync_v2(at, memory, UNIT, stream), CUDA_ERROR_INVALID_VALUE);
        ck_ok(d->cuMemcpyDtoHAsync_v2(memory, at, UNIT, stream));
        ck_ok(d->cuStreamSynchronize(stream)); /* and the context is unharmed */
        ck_ok(d->cuStreamDestroy_v2(stream));
}
END_TEST

START_TEST(memory_is_registered_once) {
        enter_context();
        char *memory = registered(UNIT);
        ck_result(d->cuMemHostRegister_v2(memory, UNIT, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        ck_ok(d->cuMemHostUnregister(memory));
        ck_result(d->cuMemHostUnregister(memory), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}
END_TEST

START_TEST(an_event_passes_with_the_work_before_it) {
        CUdeviceptr at = map_fd(create_fd(SIZE), SIZE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        CUstream stream;
        CUevent event;
        enter_context();
        char *memory = registered(SIZE);
        ck_ok(d->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        ck_ok(d->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
        ck_ok(d->cuEventQuery(event)); /* never recorded: nothing to wait for */
        for (unsigned i = 0; i < 16; i++)
                ck_ok(d->cuMemcpyHtoDAsync_v2(at, memory, SIZE, stream));
        ck_ok(d->cuEventRecord(event, stream));
        CUresult r = d->cuEventQuery(event); /* which of the two is a matter of time */
        ck_assert(r == CUDA_SUCCESS || r == CUDA_ERROR_NOT_READY);
        CUcontext ours;
        ck_ok(d->cuCtxPopCurrent_v2(&ours));
        r = d->cuEventQuery(event); /* needs no context of the thread's */
        ck_assert(r == CUDA_SUCCESS || r == CUDA_ERROR_NOT_READY);
        ck_ok(d->cuCtxPushCurrent_v2(ours));
        ck_ok(d->cuStreamSynchronize(stream));
        ck_ok(d->cuEventQuery(event));
        ck_ok(d->cuStreamDestroy_v2(stream));
        ck_ok(d->cuCtxPopCurrent_v2(&ours));
        ck_ok(d->cuEventDestroy_v2(event));
}
END_TEST

/* Ends a capture, and says whether there was any harm done to it. */
static CUresult end_capture(CUstream stream) {
        CUgraph graph = NULL;
        CUresult r = d->cuStreamEndCapture(stream, &graph);
        if (r == CUDA_SUCCESS)
                ck_ok(d->cuGraphDestroy(graph));
        return r;
}

START_TEST(a_capture_is_spoilt_by_a_query_unless_the_thread_is_relaxed) {
        CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        CUstream captured, other;
        CUevent event;
        enter_context();
        ck_ok(d->cuStreamCreate(&captured, CU_STREAM_NON_BLOCKING));
        ck_ok(d->cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
        ck_ok(d->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
        ck_ok(d->cuEventRecord(event, other));

        ck_ok(d->cuStreamBeginCapture_v2(captured, CU_STREAM_CAPTURE_MODE_GLOBAL));
        ck_result(d->cuStreamSynchronize(other), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        ck_assert_int_ne(d->cuEventQuery(event), CUDA_SUCCESS);
        ck_assert_int_ne(end_capture(captured), CUDA_SUCCESS);

        ck_ok(d->cuStreamBeginCapture_v2(captured, CU_STREAM_CAPTURE_MODE_GLOBAL));
        ck_ok(d->cuThreadExchangeStreamCaptureMode(&mode));
        ck_assert_int_eq(mode, CU_STREAM_CAPTURE_MODE_GLOBAL); /* what every thread begins with */
        ck_ok(d->cuEventRecord(event, other));
        ck_ok(d->cuStreamSynchronize(other));
        ck_ok(d->cuEventQuery(event));
        ck_ok(d->cuThreadExchangeStreamCaptureMode(&mode));
        ck_ok(end_capture(captured));
        ck_ok(d->cuEventDestroy_v2(event));
        ck_ok(d->cuStreamDestroy_v2(captured));
        ck_ok(d->cuStreamDestroy_v2(other));
}
END_TEST

START_TEST(an_event_of_a_captured_stream_is_none) {
        CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        CUstreamCaptureStatus status;
        CUstream stream;
        CUevent event;
        enter_context();
        ck_ok(d->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        ck_ok(d->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
        ck_ok(d->cuStreamIsCapturing(stream, &status));
        ck_assert_int_eq(status, CU_STREAM_CAPTURE_STATUS_NONE);
        ck_ok(d->cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        ck_ok(d->cuStreamIsCapturing(stream, &status));
        ck_assert_int_eq(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
        ck_ok(d->cuEventRecord(event, stream));
        ck_ok(d->cuThreadExchangeStreamCaptureMode(&mode));
        CUresult r = d->cuEventQuery(event);
        ck_assert(r != CUDA_SUCCESS && r != CUDA_ERROR_NOT_READY);
        ck_ok(d->cuThreadExchangeStreamCaptureMode(&mode));
        (void)end_capture(stream);
        (void)d->cuEventDestroy_v2(event);
        ck_ok(d->cuStreamDestroy_v2(stream));
}
END_TEST

START_TEST(nothing_works_in_a_forked_child) {
        int status, n;
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0)
                _exit(d->cuDeviceGetCount(&n) != CUDA_ERROR_NOT_INITIALIZED || d->cuInit(0) != CUDA_ERROR_NOT_INITIALIZED);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_int_eq(status, 0);
}
END_TEST

/* Without set_up(). */
START_TEST(nothing_works_before_init) {
        int n;
        size_t granularity;
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        ck_assert_msg(library, "%s", dlerror());
        CUresult (*count)(int *) = (CUresult(*)(int *))dlsym(library, "cuDeviceGetCount");
        CUresult (*ask)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags) =
                (CUresult(*)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags))dlsym(
                        library, "cuMemGetAllocationGranularity");
        ck_assert_int_eq(count(&n), CUDA_ERROR_NOT_INITIALIZED);
        ck_assert_int_eq(ask(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM), CUDA_ERROR_NOT_INITIALIZED);
}
END_TEST

/* ---- running them */

/* In a process of its own, see set_up(). */
static bool has_gpu(void) {
        int status;
        pid_t pid = fork();
        if (pid == 0) {
                char text[200];
                int r = cuda_driver_get(&d, text, sizeof(text));
                if (r != 0)
                        fprintf(stderr, "contract: %s\n", text);
                _exit(r == VMM_E_NO_DRIVER ? SKIPPED : 0);
        }
        return pid > 0 && waitpid(pid, &status, 0) == pid && !(WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED);
}

static Suite *contract_suite(void) {
        Suite *s = suite_create("driver contract");

        TCase *lifetime = tcase_create("lifetime");
        tcase_add_checked_fixture(lifetime, set_up, NULL);
        tcase_set_timeout(lifetime, 60);
        tcase_add_test(lifetime, a_descriptor_outlives_its_killed_creator);
        tcase_add_test(lifetime, a_killed_process_has_freed_when_it_is_reaped);
        tcase_add_test(lifetime, two_processes_share_bytes);
        tcase_add_test(lifetime, import_again_and_again);
        tcase_add_test(lifetime, two_mappings_of_one_allocation);
        tcase_add_test(lifetime, the_last_descriptor_frees);
        tcase_add_test(lifetime, a_handle_keeps_without_descriptor);
        tcase_add_test(lifetime, a_mapping_keeps_without_handle_or_descriptor);
        tcase_add_test(lifetime, an_import_cannot_be_exported);
        tcase_add_test(lifetime, what_was_not_to_be_exported_is_not);
        tcase_add_test(lifetime, properties_of_an_import);
        tcase_add_test(lifetime, the_descriptor_is_close_on_exec);
        tcase_add_test(lifetime, new_memory_is_zeroed);
        suite_add_tcase(s, lifetime);

        TCase *calls = tcase_create("calls");
        tcase_add_checked_fixture(calls, set_up, NULL);
        tcase_set_timeout(calls, 60);
        tcase_add_test(calls, granularity_is_2_mib);
        tcase_add_test(calls, sizes_must_be_whole_units);
        tcase_add_test(calls, more_than_there_is);
        tcase_add_test(calls, maps_whole_handles_only);
        tcase_add_test(calls, maps_only_where_nothing_is);
        tcase_add_test(calls, maps_only_into_reservations);
        tcase_add_test(calls, unmaps_and_protects_whole_mappings_only);
        tcase_add_test(calls, unmaps_and_protects_many_mappings_at_once);
        tcase_add_test(calls, protection_stops_at_a_gap);
        tcase_add_test(calls, nothing_is_accessible_before_protect);
        tcase_add_test(calls, protection_changes_in_place);
        tcase_add_test(calls, what_is_not_mapped_cannot_be_protected_or_copied);
        tcase_add_test(calls, addresses_in_use_are_not_given_back);
        tcase_add_test(calls, fixed_addresses);
        tcase_add_test(calls, holding_what_came_instead_gets_what_was_asked_for);
        tcase_add_test(calls, addresses_stay_reserved_after_unmap);
        tcase_add_test(calls, large_reservations);
        tcase_add_test(calls, open_to_network_cards);
        tcase_add_test(calls, fabric_handles_need_a_channel);
        tcase_add_test(calls, only_its_own_descriptors_are_imported);
        tcase_add_test(calls, copies_need_a_context);
        tcase_add_test(calls, queued_copies_are_done_when_the_stream_is);
        tcase_add_test(calls, a_queued_copy_to_read_only_memory_is_refused_at_once);
        tcase_add_test(calls, memory_is_registered_once);
        tcase_add_test(calls, an_event_passes_with_the_work_before_it);
        tcase_add_test(calls, a_capture_is_spoilt_by_a_query_unless_the_thread_is_relaxed);
        tcase_add_test(calls, an_event_of_a_captured_stream_is_none);
        tcase_add_test(calls, nothing_works_in_a_forked_child);
        suite_add_tcase(s, calls);

        TCase *before = tcase_create("before cuInit");
        tcase_add_test(before, nothing_works_before_init);
        suite_add_tcase(s, before);
        return s;
}

int main(int argc, char **argv) {
        if (argc == 3)
                return play(argv[1], atoi(argv[2]));
        if (!has_gpu()) {
                printf("contract: skipped: no GPU\n");
                return SKIPPED;
        }
        SRunner *runner = srunner_create(contract_suite());
        srunner_run_all(runner, argc > 1 && strcmp(argv[1], "-v") == 0 ? CK_VERBOSE : CK_NORMAL);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed != 0;
}
