// SPDX-License-Identifier: MIT
#include "bare.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "channel.h"
#include "fdset.h"

/* Sends all descriptors for every byte that it receives. */
static void feed(int fd, void *arg) {
        const struct bare *b = arg;
        char order;
        while (recv(fd, &order, 1, 0) == 1)
                for (uint32_t i = 0; i < b->n; i += FDSET_MAX) {
                        struct fdset *set;
                        if (fdset_new(&set, FDSET_MAX, false) < 0)
                                _exit(1);
                        for (uint32_t k = i; k < MIN(i + FDSET_MAX, b->n); k++)
                                fdset_add(set, b->fds[k]);
                        if (channel_send(fd, (const uint8_t *)"", 1, set) != 0)
                                _exit(1);
                        fdset_free(set);
                }
}

void bare_init(struct bare *b, const char *device, const int *fds, const uint64_t *sizes, uint32_t n) {
        *b = (struct bare){ .fds = fds, .sizes = sizes, .n = n };
        for (uint32_t i = 0; i < n; i++)
                b->total += sizes[i];
        b->addresses = calloc(n, sizeof(*b->addresses));
        b->handles = calloc(n, sizeof(*b->handles));
        if (!b->addresses || !b->handles)
                bench_die("out of memory");
        if (strcmp(device, "host") == 0) {
                b->feeder = bench_fork(feed, b);
                return;
        }
        char text[200];
        b->ordinal = atoi(device + strlen("cuda:"));
        if (cuda_driver_get(&b->cu, text, sizeof(text)) != 0)
                bench_die("%s", text);
}

void bare_done(struct bare *b) {
        if (!b->cu)
                bench_join(&b->feeder);
        free(b->addresses);
        free(b->handles);
}

/* ---- host */

static void host_map(struct bare *b) {
        static uint8_t buf[CHANNEL_FRAME_MAX];
        if (send(b->feeder.fd, "", 1, MSG_NOSIGNAL) != 1)
                bench_die("the feeder has ended");
        for (uint32_t n = 0; n < b->n;) {
                struct fdset *set;
                size_t len;
                if (channel_recv(b->feeder.fd, buf, &len, &set) != 0 || !set)
                        bench_die("the feeder has ended");
                for (uint32_t i = 0; i < set->n; i++, n++) {
                        b->addresses[n] = mmap(NULL, b->sizes[n], PROT_READ, MAP_SHARED, set->fds[i], 0);
                        if (b->addresses[n] == MAP_FAILED)
                                bench_die("mmap: %s", strerror(errno));
                        (void)close(fdset_steal(set, i));
                }
                fdset_free(set);
        }
}

/* ---- GPU */

static void check(CUresult r, const char *call) {
        if (r != CUDA_SUCCESS)
                bench_die("%s: error %d", call, (int)r);
}

static void gpu_map(struct bare *b) {
        CUmemAccessDesc access = {
                .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = b->ordinal }, .flags = CU_MEM_ACCESS_FLAGS_PROT_READ,
        };
        CUdeviceptr at = b->at;
        for (uint32_t i = 0; i < b->n; at += b->sizes[i++]) {
                check(b->cu->cuMemImportFromShareableHandle(&b->handles[i], (void *)(intptr_t)b->fds[i],
                                                            CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), "import");
                check(b->cu->cuMemMap(at, b->sizes[i], 0, b->handles[i], 0), "cuMemMap");
                check(b->cu->cuMemSetAccess(at, b->sizes[i], &access, 1), "cuMemSetAccess");
        }
}

/* ---- either */

double bare_map(struct bare *b) {
        if (b->cu)
                check(b->cu->cuMemAddressReserve(&b->at, b->total, 0, 0, 0), "cuMemAddressReserve");
        double since = now_us();
        if (b->cu)
                gpu_map(b);
        else
                host_map(b);
        return now_us() - since;
}

double bare_release(struct bare *b) {
        double since = now_us();
        for (uint32_t i = 0; b->cu && i < b->n; i++)
                check(b->cu->cuMemRelease(b->handles[i]), "cuMemRelease");
        return now_us() - since;
}

double bare_unmap(struct bare *b) {
        double since = now_us();
        if (b->cu)
                check(b->cu->cuMemUnmap(b->at, b->total), "cuMemUnmap");
        for (uint32_t i = 0; !b->cu && i < b->n; i++)
                (void)munmap(b->addresses[i], b->sizes[i]);
        double took = now_us() - since;
        if (b->cu)
                check(b->cu->cuMemAddressFree(b->at, b->total), "cuMemAddressFree");
        return took;
}
