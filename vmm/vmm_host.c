// SPDX-License-Identifier: MIT
/*
 * Host memory: an allocation is a memfd, a handle is a mapping of it that nobody may touch.
 *
 * Costs that shaped this (2,048 memfds of 2 MiB, Linux 6.18, per object): mmap anywhere 2.4 µs, mmap into a reservation
 * 3.3 µs (the reservation is split), fstat 0.6 µs, lseek and F_GET_SEALS 0.2 µs each, mremap of a mapping 5 µs. So
 * attach, which maps once and where it belongs, is what to use for many; import and map, through mremap, costs three
 * times as much and is for callers that must hold the new before they touch the old.
 */
#include "vmm_kinds.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE (UINT64_C(2) << 20)

struct vmm_host {
        struct vmm vmm;
        bool huge;
        int meminfo_fd; /* kept open: it is read before every create */
};

struct host_handle {
        void *address; /* NULL once mapped: the mapping has moved to its place */
};

static struct vmm_host *to_host(struct vmm *v) {
        return container_of(v, struct vmm_host, vmm);
}

static void *to_ptr(uint64_t address) {
        return (void *)(uintptr_t)address;
}

static struct vmm *host_free(struct vmm *v) {
        struct vmm_host *h = to_host(v);
        close_fd(h->meminfo_fd);
        free(h);
        return NULL;
}

/* ---- making memory */

static int meminfo_field(const char *text, const char *name, uint64_t *ret_bytes) {
        const char *at = strstr(text, name);
        unsigned long long kib;
        if (!at || sscanf(at + strlen(name), " %llu kB", &kib) != 1)
                return -ENODATA;
        *ret_bytes = kib * 1024;
        return 0;
}

/* A 64th of the machine is left to it: the kernel's estimate of what is available is only that. */
static int host_room(struct vmm *v, uint64_t *ret_total, uint64_t *ret_free) {
        char text[2048];
        ssize_t n = pread(to_host(v)->meminfo_fd, text, sizeof(text) - 1, 0);
        text[MAX(n, 0)] = '\0';

        uint64_t total = 0, available = 0;
        if (meminfo_field(text, "MemTotal:", &total) < 0 || meminfo_field(text, "MemAvailable:", &available) < 0)
                return vmm_fail(v, VMM_E_REFUSED, "/proc/meminfo does not tell the memory available");
        *ret_total = total;
        *ret_free = available > total / 64 ? available - total / 64 : 0;
        return 0;
}

static int no_memory(struct vmm *v, const char *what, int error) {
        if (error == ENOMEM || error == ENOSPC)
                return vmm_fail(v, VMM_E_NO_MEMORY, "%s: %s", what, strerror(error));
        return vmm_fail_errno(v, error, what);
}

/*
 * Committed by fallocate, so that no later touch can fail for want of memory. Sealed in size, so that no holder can make
 * the others fault, and the seals are sealed, so that none can forbid the others to write.
 */
static int make_memfd(struct vmm *v, uint64_t size, unsigned flags, int *ret_fd) {
        _cleanup_close_ int fd = memfd_create("gms", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
        if (fd < 0)
                return no_memory(v, "memfd_create", errno);
        if (ftruncate(fd, (off_t)size) < 0)
                return no_memory(v, "ftruncate", errno);

        int r;
        do
                r = fallocate(fd, 0, 0, (off_t)size);
        while (r < 0 && errno == EINTR);
        if (r < 0)
                return no_memory(v, "fallocate", errno);

        if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
                return vmm_fail_errno(v, errno, "F_ADD_SEALS");
        *ret_fd = steal_fd(&fd);
        return 0;
}

static int host_create(struct vmm *v, uint64_t size, int *ret_fd) {
        if (size > INT64_MAX)
                return vmm_fail(v, VMM_E_NO_MEMORY, "%llu bytes are more than any machine has", (unsigned long long)size);
        if (to_host(v)->huge && make_memfd(v, size, MFD_HUGETLB | MFD_HUGE_2MB, ret_fd) == 0)
                return 0;

        /* Asking first: the kernel would rather kill somebody than let fallocate fail. */
        uint64_t total = 0, room = 0;
        if (host_room(v, &total, &room) == 0 && size > room)
                return vmm_fail(v, VMM_E_NO_MEMORY, "%llu MiB asked, %llu MiB of host memory available",
                                (unsigned long long)size >> 20, (unsigned long long)room >> 20);
        return make_memfd(v, size, 0, ret_fd);
}

/* ---- addresses */

static int map_failed(struct vmm *v, const char *what) {
        int code = errno == ENOMEM ? -ENOMEM : VMM_E_REFUSED;
        return vmm_fail(v, code, "%s: %s", what, strerror(errno));
}

static int reserve_at(struct vmm *v, uint64_t address, uint64_t size) {
        void *p = mmap(to_ptr(address), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                       -1, 0);
        if (p == to_ptr(address))
                return 0;
        if (p == MAP_FAILED && errno != EEXIST)
                return map_failed(v, "mmap at a fixed address");
        if (p != MAP_FAILED) /* a kernel before 4.17 takes the address for a hint */
                (void)munmap(p, size);
        return vmm_fail(v, VMM_E_TAKEN, "0x%llx is in use", (unsigned long long)address);
}

/* What may be huge pages must begin at the edge of one, whatever this process thinks of the granularity. */
static int host_reserve(struct vmm *v, uint64_t address, uint64_t size, uint64_t *ret_address) {
        uint64_t extra = size % HUGE_PAGE == 0 ? HUGE_PAGE : 0, room;
        if (address != 0) {
                int r = reserve_at(v, address, size);
                if (r == 0)
                        *ret_address = address;
                return r;
        }
        if (__builtin_add_overflow(size, extra, &room))
                return vmm_fail_errno(v, ENOMEM, "reserve");

        void *p = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
                return map_failed(v, "mmap");
        uint64_t start = (uintptr_t)p, aligned = start;
        if (extra) {
                (void)align_up(start, HUGE_PAGE, &aligned);
                if (aligned != start)
                        (void)munmap(p, aligned - start);
                if (aligned != start + extra)
                        (void)munmap(to_ptr(aligned + size), start + extra - aligned);
        }
        *ret_address = aligned;
        return 0;
}

static void host_unreserve(struct vmm *v, uint64_t address, uint64_t size) {
        (void)v;
        (void)munmap(to_ptr(address), size);
}

static int host_unmap(struct vmm *v, uint64_t address, uint64_t size) {
        void *p = mmap(to_ptr(address), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        return p == MAP_FAILED ? map_failed(v, "unmap") : 0;
}

/* ---- mapping */

static int to_prot(enum vmm_access access) {
        static const int prot[] = {
                [VMM_ACCESS_NONE] = PROT_NONE,
                [VMM_ACCESS_READ] = PROT_READ,
                [VMM_ACCESS_READ_WRITE] = PROT_READ | PROT_WRITE,
        };
        assert((size_t)access < ARRAY_SIZE(prot));
        return prot[access];
}

/*
 * A mapping of a file that somebody can still shrink is a SIGBUS to come: only what is sealed against that, and large
 * enough, gets in. lseek tells the size at a third of what fstat costs; nobody uses the position of a memfd.
 */
static int check_memfd(struct vmm *v, int fd, uint64_t size) {
        int seals = fcntl(fd, F_GET_SEALS);
        if (seals < 0 && errno == EBADF)
                return vmm_fail_errno(v, EBADF, "import");
        if (seals < 0 || !(seals & F_SEAL_SHRINK))
                return vmm_fail(v, VMM_E_REFUSED, "the descriptor is not host memory sealed against shrinking");
        off_t has = lseek(fd, 0, SEEK_END);
        if (has < 0 || (uint64_t)has < size)
                return vmm_fail(v, VMM_E_REFUSED, "the descriptor has %lld bytes, %llu are needed", (long long)has,
                                (unsigned long long)size);
        return 0;
}

static int host_import(struct vmm *v, int fd, uint64_t size, vmm_handle *ret_handle) {
        int r = check_memfd(v, fd, size);
        if (r != 0)
                return r;
        struct host_handle *h = malloc(sizeof(*h));
        if (!h)
                return vmm_fail_errno(v, ENOMEM, "import");
        h->address = mmap(NULL, size, PROT_NONE, MAP_SHARED, fd, 0);
        if (h->address == MAP_FAILED) {
                r = map_failed(v, "mmap of an imported descriptor");
                free(h);
                return r;
        }
        *ret_handle = (uintptr_t)h;
        return 0;
}

static void host_release(struct vmm *v, vmm_handle handle, uint64_t size) {
        (void)v;
        struct host_handle *h = to_ptr(handle);
        if (h->address)
                (void)munmap(h->address, size);
        free(h);
}

static int host_map(struct vmm *v, vmm_handle handle, uint64_t address, uint64_t size) {
        struct host_handle *h = to_ptr(handle);
        if (!h->address)
                return vmm_fail(v, VMM_E_REFUSED, "the handle is mapped already");
        if (mremap(h->address, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to_ptr(address)) == MAP_FAILED) {
                int r = map_failed(v, "mremap");
                (void)host_unmap(v, address, size); /* the kernel may have cleared the place before it failed */
                return r;
        }
        h->address = NULL;
        return 0;
}

static int host_attach(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access,
                       uint64_t *ret_address) {
        int r = check_memfd(v, fd, size);
        if (r != 0)
                return r;

        /* The kernel aligns huge pages by itself; ordinary ones in the place of huge ones it does not. */
        uint64_t reserved = 0;
        if (address == 0 && to_host(v)->huge) {
                r = host_reserve(v, 0, size, &reserved);
                if (r != 0)
                        return r;
        }
        uint64_t at = address | reserved;
        void *p = mmap(to_ptr(at), size, to_prot(access), MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);
        if (p == MAP_FAILED) {
                r = map_failed(v, "mmap of an imported descriptor");
                if (reserved)
                        host_unreserve(v, reserved, size);
                else if (address)
                        (void)host_unmap(v, address, size);
                return r;
        }
        *ret_address = (uintptr_t)p;
        return 0;
}

static int host_attach_vacant(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access) {
        int r = check_memfd(v, fd, size);
        if (r != 0)
                return r;
        void *p = mmap(to_ptr(address), size, to_prot(access), MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
        if (p == to_ptr(address))
                return 0;
        if (p == MAP_FAILED && errno != EEXIST)
                return map_failed(v, "mmap of an imported descriptor");
        if (p != MAP_FAILED) /* a kernel before 4.17 takes the address for a hint */
                (void)munmap(p, size);
        return vmm_fail(v, VMM_E_TAKEN, "0x%llx is in use", (unsigned long long)address);
}

static int host_protect(struct vmm *v, uint64_t address, uint64_t size, enum vmm_access access) {
        return mprotect(to_ptr(address), size, to_prot(access)) < 0 ? map_failed(v, "mprotect") : 0;
}

/* ---- copying */

/*
 * Asks the kernel to make every page of the range ready for the access first. It answers with an error where the copy
 * itself would be a SIGSEGV, so that a copy into a read-only mapping is refused as the CUDA driver refuses it; and one
 * call is cheaper than a fault for every page. A kernel before 5.14 cannot, and the copy is just tried.
 */
static int make_ready(uint64_t address, uint64_t size, int advice, char *text, size_t text_size) {
        if (madvise(NULL, 0, advice) < 0)
                return 0;
        uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), start = address / page * page;
        if (madvise(to_ptr(start), address + size - start, advice) == 0)
                return 0;
        (void)snprintf(text, text_size, "%llu bytes at 0x%llx are not %s: %s", (unsigned long long)size,
                       (unsigned long long)address, advice == MADV_POPULATE_WRITE ? "writable" : "readable", strerror(errno));
        return VMM_E_REFUSED;
}

static int host_copy_in(struct vmm *v, uint64_t address, const void *from, uint64_t size) {
        int r = make_ready(address, size, MADV_POPULATE_WRITE, v->text, sizeof(v->text));
        if (r == 0)
                memcpy(to_ptr(address), from, size);
        return r;
}

static int host_copy_out(struct vmm *v, uint64_t address, void *to, uint64_t size) {
        int r = make_ready(address, size, MADV_POPULATE_READ, v->text, sizeof(v->text));
        if (r == 0)
                memcpy(to, to_ptr(address), size);
        return r;
}

static int host_stage_copy(struct vmm_stage *s, uint64_t address, void *memory, uint64_t size, bool in) {
        int r = make_ready(address, size, in ? MADV_POPULATE_WRITE : MADV_POPULATE_READ, s->text, sizeof(s->text));
        if (r == 0)
                memcpy(in ? to_ptr(address) : memory, in ? memory : to_ptr(address), size);
        return r;
}

static const struct vmm_ops host_ops = {
        .free = host_free,
        .create = host_create,
        .room = host_room,
        .reserve = host_reserve,
        .unreserve = host_unreserve,
        .import = host_import,
        .release = host_release,
        .map = host_map,
        .attach = host_attach,
        .vacate = host_unreserve,
        .attach_vacant = host_attach_vacant,
        .protect = host_protect,
        .unmap = host_unmap,
        .copy_in = host_copy_in,
        .copy_out = host_copy_out,
        .stage_copy = host_stage_copy,
};

int vmm_host_open(struct vmm **ret_vmm, bool huge) {
        struct vmm_host *h = malloc(sizeof(*h));
        if (!h)
                return -ENOMEM;
        *h = (struct vmm_host){
                .vmm.ops = &host_ops,
                .vmm.device = {
                        .name = "host",
                        .uuid = "host",
                        .model = "host memory",
                        .granularity = huge ? HUGE_PAGE : (uint64_t)sysconf(_SC_PAGESIZE),
                },
                .huge = huge,
                .meminfo_fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC),
        };
        uint64_t room;
        (void)host_room(&h->vmm, &h->vmm.device.total, &room);
        *ret_vmm = &h->vmm;
        return 0;
}
