/* SPDX-License-Identifier: MIT */
#ifndef GMSCLIENT_H
#define GMSCLIENT_H
/*
 * libgmsclient: GPU memory that outlives its processes.
 *
 * gmsd owns physical memory; a process attaches to it through a handle on one store. A store (DEVICE/NAME, such as
 * "cuda:0/weights" or "host/weights") is one lock and one published layout: ordered allocations, metadata over them, and
 * an identity. Connecting asks for the lock; the connection is the lock; disconnecting gives it back.
 *
 * Conventions
 *   - Every function returns 0 or a negative errno unless it says otherwise. gms_last_error() has the text of the last
 *     failure in the calling thread: what was asked, what is, what to do.
 *   - Texts (labels, tags, keys, identities, stores) are UTF-8 without control characters, or -EINVAL.
 *   - Sizes and offsets are bytes. Times are milliseconds. Addresses are device addresses for GPUs (CUdeviceptr), and
 *     ordinary pointers for host stores.
 *   - Structs that begin with `size` may grow: set it with GMS_INIT or to sizeof. Unused fields are 0. In an array of the
 *     caller's, the first one's size is that of all. An array that the library made is stepped through by its [0].size
 *     if the program may run with a later library than it was compiled for.
 *   - Thread-safe: calls on one handle are serialised. A call that waits holds its handle; other handles go on.
 *   - After fork() a handle works in the parent only. In the child every call on it returns -ECHILD; gms_close() there
 *     releases the child's memory and leaves the parent's lock and mappings alone.
 *   - The library prints nothing, starts no threads, installs no signal handlers and never calls the caller's code.
 *   - A reader's mappings are read-only in the page tables. That stops accidents. It does not stop a hostile process,
 *     which can map the same descriptor a second time as it likes.
 *
 * Errors that any call that talks to the daemon may return, besides those it lists
 *   -EINVAL        an argument that can never be right
 *   -ENOTCONN      not connected
 *   -ECONNRESET    the daemon has gone, and nobody kept the session; mappings stay valid, the lock is lost; connect again.
 *                  Under a service manager a session outlives its daemon: calls wait for the next one and succeed. A
 *                  handle of mode NONE has nothing to lose and connects again by itself
 *   -ETIMEDOUT     the daemon said nothing for a minute beyond any deadline; disconnected
 *   -EKEYREVOKED   an administrator took the lock away; disconnect and connect again
 *   -EPROTO        the daemon said something this library does not understand
 *   -EMFILE        no file descriptors are left in this process. When those that came with a reply were lost over it,
 *                  the handle is disconnected: raise the limit and connect again
 *   -ENOBUFS       a limit of the daemon is reached
 *   -EREMOTEIO     the daemon failed; its log says more
 *   -ENOMEM        no memory in this process or on the device
 *   -EIO           the device's driver refused; the text has its words
 *   -ECHILD        the handle was inherited over fork()
 */
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define GMS_PUBLIC __attribute__((visibility("default")))
#else
#define GMS_PUBLIC
#endif

struct gms;

/* Initialises a growing struct: struct gms_state s = GMS_INIT(struct gms_state); */
#ifdef __cplusplus
} /* a template has no C linkage */
template <typename T> inline T gms_init() {
        T t = T();
        t.size = sizeof(T);
        return t;
}
extern "C" {
#define GMS_INIT(type) gms_init<type>()
#else
#define GMS_INIT(type) { .size = sizeof(type) }
#endif

#define GMS_FOREVER UINT64_MAX /* a deadline: wait as long as it takes */
#define GMS_HASH_SIZE 16
#define GMS_TAG_SIZE 65        /* bytes, the closing 0 included */
#define GMS_LABEL_SIZE 65
#define GMS_STORE_SIZE 193
#define GMS_IDENTITY_SIZE 513
#define GMS_KEY_SIZE 513
#define GMS_VALUE_MAX 32768

enum {
        GMS_MODE_NONE = 0,     /* no lock: look, change nothing */
        GMS_MODE_RO = 1,       /* attach to what is published; waits for the first publication */
        GMS_MODE_UPDATE = 2,   /* build the next generation beside the readers of this one */
        GMS_MODE_RW = 3,       /* build a layout with nobody else in the store */
        GMS_MODE_RW_OR_RO = 4, /* attach if something is published, else build it */
        GMS_MODE_ADOPT = 5     /* take over a sealed layout; RW if there is none */
};

enum {
        GMS_ACCESS_NONE = 0,
        GMS_ACCESS_READ = 1,
        GMS_ACCESS_READ_WRITE = 2
};

/* ---- library */

/* The library's version, "1.0.0". Static. */
GMS_PUBLIC const char *gms_version(void);

/* The text of the calling thread's last failed call; "" if none failed yet. Valid until the thread's next call. */
GMS_PUBLIC const char *gms_last_error(void);

/* ---- a handle on a store */

/*
 * Makes a handle. `socket` NULL: $GMS_SOCKET, else /run/gms/gmsd.sock, or $XDG_RUNTIME_DIR/gms/gmsd.sock when not root.
 * `store` is DEVICE/NAME, or NULL for a handle that only looks at the daemon. Talks to nobody yet.
 * -EINVAL, -ENAMETOOLONG (the socket's path is over 107 bytes), -ENOMEM.
 */
GMS_PUBLIC int gms_open(struct gms **ret_handle, const char *socket, const char *store);

/*
 * Disconnects, unmaps everything, gives all addresses back and frees the handle; while a pool or an exported tensor needs it,
 * the last of those does. The caller uses it no more. NULL is allowed.
 */
GMS_PUBLIC void gms_close(struct gms *g);

struct gms_connect_options {
        uint32_t size;
        uint32_t mode;        /* GMS_MODE_*; NONE for a handle without store */
        uint64_t deadline_ms; /* for the lock: 0 now or never, GMS_FOREVER */
        const char *label;    /* for people, at most 64 bytes; NULL: the program's name */
        const char *identity; /* readers: demand this identity of what is published; NULL: any */
};

/*
 * Connects and waits for the lock. A daemon that dies before it has answered is asked again when it is back, within the
 * deadline. For RW_OR_RO and ADOPT, gms_state() tells what was granted. Events of an earlier
 * connection are dropped; its mappings stay as they are: after unmapping, gms_remap_all() brings them back if the
 * structure is the same.
 * -ENOENT       no socket there: gmsd is not running
 * -ECONNREFUSED a socket, but nobody listens: gmsd has died
 * -EACCES       the socket may not be used by this user; ADOPT: gmsd cannot see this process, so cannot tell its exit
 * -EPROTONOSUPPORT  no protocol version in common
 * -ENODEV       the daemon has no such device, or this process cannot see that GPU
 * -EIO          the device is faulted
 * -EBUSY        deadline 0 and the lock is not free
 * -ETIMEDOUT    the deadline passed; or the daemon said nothing for five seconds beyond it
 * -EKEYREJECTED another identity than demanded is published
 * -EISCONN      connected already
 * -EINTR        a signal arrived while waiting; not connected
 */
GMS_PUBLIC int gms_connect(struct gms *g, const struct gms_connect_options *options);

/* Gives the lock back. What was being built is freed unless sealed. Mappings and addresses stay. -ENOTCONN. */
GMS_PUBLIC int gms_disconnect(struct gms *g);

/* ---- allocations */

struct gms_allocation {
        uint32_t size;
        uint32_t access;       /* GMS_ACCESS_* of the mapping; NONE while unmapped */
        uint64_t id;
        uint64_t slot;         /* order of creation in the layout */
        uint64_t bytes;        /* asked for */
        uint64_t aligned;      /* bytes of physical memory and of address space */
        uint64_t address;      /* stable while the handle is open, mapped or not; 0 before the first mapping */
        char tag[GMS_TAG_SIZE];
};

/*
 * Writers: allocates physical memory and maps it read-write. Waits up to 5 s for memory unless gms_set_deadline() said
 * otherwise. `ret` may be NULL. One round trip to the daemon. What the handle remembers of an earlier layout is forgotten
 * with the first allocation of a new one, addresses included; it must be unmapped.
 * -EINVAL     size 0, or a tag over 64 bytes
 * -EACCES     the session is a reader
 * -EBUSY      the layout is sealed; or an earlier layout is still mapped: gms_unmap_all() first
 * -ENOMEM     no room on the device within the deadline; -EFBIG  more than the whole device
 * -EIO        the device is faulted
 */
GMS_PUBLIC int gms_allocate(struct gms *g, uint64_t bytes, const char *tag, struct gms_allocation *ret);

/*
 * Allocates n at once, all or none: bytes[i], tags[i] (tags may be NULL, and so may each). `ret` is NULL or an array of
 * n structs; the first one's `size` is set. Their addresses ascend without gaps. Round trips: one for each 253
 * allocations. Errors as gms_allocate().
 */
GMS_PUBLIC int gms_allocate_many(struct gms *g, size_t n, const uint64_t *bytes, const char *const *tags,
                                 struct gms_allocation *ret);

/* How long allocations wait for memory, from now on. Milliseconds; 0: not at all; GMS_FOREVER. The default is 5,000. */
GMS_PUBLIC int gms_set_deadline(struct gms *g, uint64_t deadline_ms);

/*
 * Writers: unmaps the allocation, gives its addresses back and frees it. Metadata that points at it goes with it.
 * -ENOENT no such id; -EACCES reader; -EBUSY sealed.
 */
GMS_PUBLIC int gms_free(struct gms *g, uint64_t id);

/*
 * Maps every allocation of the session's layout: readers read-only, writers that adopted a layout read-write. All or
 * nothing. What is mapped already stays. Addresses ascend in slot order inside one reservation. Of an earlier layout that
 * is unmapped, one of the same structure gets its addresses back; one of another is forgotten, addresses included.
 * Round trips: one for each 253 allocations; metadata needs none.
 * -EBUSY   another generation or layout is still mapped: gms_unmap_all() first
 * -EACCES  the session looks only
 */
GMS_PUBLIC int gms_attach(struct gms *g);

/*
 * How many allocations the handle knows (attached or allocated), connected or not; fills `ret`, an array of `room`
 * structs of which the first one's `size` is set, in slot order. No round trip.
 */
GMS_PUBLIC int gms_allocations(struct gms *g, struct gms_allocation *ret, size_t room, size_t *ret_n);

/* One allocation by its slot. -ENOENT. */
GMS_PUBLIC int gms_find(struct gms *g, uint64_t slot, struct gms_allocation *ret);

/* ---- addresses */

/*
 * Reserves `bytes` of address space for this handle's mappings, exactly at `address`, or anywhere when 0. Mappings are
 * placed in it in slot order from then on, so processes that reserve the same address see the same pointers, unless the
 * writer freed allocations in between. What does not fit goes elsewhere. It stays until the handle is closed.
 * -EEXIST the addresses are in use; -EINVAL not aligned to the granularity (gms_state() tells it); -ENODEV before the
 * handle's first connection with a lock, which tells the device.
 */
GMS_PUBLIC int gms_reserve(struct gms *g, uint64_t address, uint64_t bytes, uint64_t *ret_address);

/*
 * Gives all physical memory back and keeps every address. The session, if connected, keeps its lock. For GPUs the
 * caller makes sure that no work on the memory is under way. No round trip; the driver's work is by mapping (a GPU's is
 * 14-90 us each). -EIO some are still mapped; the text says how many.
 */
GMS_PUBLIC int gms_unmap_all(struct gms *g);

/*
 * Maps everything again at the same addresses, from the layout that the session holds now: all or nothing.
 * *ret_changed (may be NULL): 1 when the generation is another, so the contents may have changed; else 0.
 * -ESTALE  the structure differs from what was mapped before; the text says how. Nothing was mapped.
 * -EBUSY   something is still mapped
 * After -ESTALE gms_attach() takes the new structure, at new addresses.
 */
GMS_PUBLIC int gms_remap_all(struct gms *g, int *ret_changed);

/*
 * Readers: moves to the newest generation at the same addresses. *ret_changed (may be NULL): 0 when there is none newer.
 * Between the old bytes and the new each mapping is away for a moment: the caller makes sure that nobody reads.
 * While everything is unmapped only the session moves, and gms_remap_all() maps the new generation.
 * All or nothing: on failure the old generation is still mapped and, unless the connection was lost over it (-EMFILE,
 * -ECONNRESET), held. Should the driver refuse to map the old one
 * again, the text says so, and gms_attach() tries anew.
 * -ESTALE  the new structure differs, the text says how; a new connection attaches to it
 * -EKEYREJECTED not the identity demanded at connect
 * -ENOENT  nothing is published any more
 * -EBUSY   only a part is mapped, or what is mapped is of an earlier connection: gms_unmap_all(), gms_remap_all()
 * -EACCES  a writer
 */
GMS_PUBLIC int gms_refresh(struct gms *g, int *ret_changed);

/*
 * Changes the access of one mapping, or of all that are mapped with id GMS_ALL. A reader may lower its own access, never
 * raise it above read. All or nothing. -EACCES; -ENOENT no such id, or not mapped; -ENOTCONN only when it would raise
 * access; -EIO.
 */
#define GMS_ALL UINT64_MAX
GMS_PUBLIC int gms_protect(struct gms *g, uint64_t id, uint32_t access);

/*
 * Copies bytes into or out of a mapped allocation, host or GPU; returns when they are there.
 * -ENOENT no such id; -ERANGE past the end of the bytes asked for; -EACCES the mapping does not allow it, or is unmapped;
 * -EIO the driver refused.
 */
GMS_PUBLIC int gms_write(struct gms *g, uint64_t id, uint64_t offset, const void *from, uint64_t bytes);
GMS_PUBLIC int gms_read(struct gms *g, uint64_t id, uint64_t offset, void *to, uint64_t bytes);

/*
 * The descriptor of an allocation, for other transports (dma-buf, RDMA, another process). The caller closes it, and
 * knows: an open descriptor keeps the physical memory. Needs no mapping. One round trip. -ENOENT; -EACCES looks only.
 */
GMS_PUBLIC int gms_export(struct gms *g, uint64_t id, int *ret_fd);

/* ---- metadata: key → slot, offset, bytes */

struct gms_metadata {
        uint32_t size;
        uint32_t value_size; /* bytes, at most GMS_VALUE_MAX */
        const char *key;     /* 1 to 512 bytes */
        const void *value;   /* in lists of the library's: aligned to 8 bytes */
        uint64_t slot;
        uint64_t offset;     /* bytes into the allocation, below its size */
};

/* A list of entries that the library owns; release with gms_metadata_free(). */
struct gms_metadata_list {
        uint32_t size;
        uint32_t n;
        struct gms_metadata *entries; /* ascending by key for list, in the order asked for get */
};

/*
 * Writers: puts n entries, replacing those of the same keys, all or none within each 60,000 bytes, which is a round trip.
 * -ENOENT no such slot; -ERANGE the offset is not inside its allocation; -EACCES; -EBUSY sealed; -EFBIG a key or value
 * over the limits.
 */
GMS_PUBLIC int gms_metadata_put(struct gms *g, const struct gms_metadata *entries, size_t n);

/* The entries of n keys. -ENOENT when one is missing: the text names it. */
GMS_PUBLIC int gms_metadata_get(struct gms *g, const char *const *keys, size_t n, struct gms_metadata_list *ret);

/*
 * All entries whose keys begin with `prefix` ("" or NULL: all). One round trip for what lies in the first MiB of a layout that
 * is published or sealed (takes a descriptor for a moment); else one for each 60,000 bytes.
 */
GMS_PUBLIC int gms_metadata_list(struct gms *g, const char *prefix, struct gms_metadata_list *ret);

/* Writers: deletes n keys, all or none within each 60,000 bytes of keys. -ENOENT, -EACCES, -EBUSY sealed. */
GMS_PUBLIC int gms_metadata_delete(struct gms *g, const char *const *keys, size_t n);

GMS_PUBLIC void gms_metadata_free(struct gms_metadata_list *list);

/* ---- pools: many small pieces in few large allocations */

/*
 * Sub-allocation for writers. An allocation costs a reader 20-40 us and a descriptor to attach, however small it is; a
 * pool takes large ones (slabs) from the handle and hands out pieces of them. Slabs grow with the pool, from 32 MiB to an
 * eighth of what it has, so that a small one wastes little and a large one has few; what is larger than that gets one of its
 * own, of just its size. When the device is short of memory smaller slabs are tried before -ENOMEM. Allocating and freeing
 * are O(1), and any thread may do both; only who needs another slab waits, and who empties one that is not kept, for the round
 * trip that gives it back. What a piece is, metadata says: (slot, offset).
 */
struct gms_pool;

struct gms_pool_options {
        uint32_t size;
        uint32_t reserved;
        const char *tag;   /* of the slabs, as in gms_allocate(); NULL: "slab" */
        uint64_t expected; /* bytes that will be asked for in all, each rounded up to 256, when that is known: fewer and
                              fuller slabs. 0: unknown */
        uint64_t slab_max; /* bytes; the largest slab that is taken ahead of demand. 0: 2 GiB, 16 GiB when `expected` is given */
};

/* A piece of a slab. */
struct gms_piece {
        uint32_t size;
        uint32_t reserved;
        uint64_t slot;    /* of the slab */
        uint64_t offset;  /* bytes into it */
        uint64_t bytes;   /* asked for */
        uint64_t address; /* of the slab's mapping + offset */
};

/*
 * Makes a pool for the layout that the writer `g` builds; `options` may be NULL. Takes no memory yet. The handle stays open
 * until the pool is closed, even if gms_close() comes first. The slabs are the pool's: not to be freed by gms_free() while it
 * is open. -EINVAL, -ENOMEM, -EACCES not a writer, -ENOTCONN.
 */
GMS_PUBLIC int gms_pool_open(struct gms_pool **ret_pool, struct gms *g, const struct gms_pool_options *options);

/*
 * Forgets the pool, when nobody is inside of a call on it. Its slabs stay what they are: allocations of the layout. What
 * gms_torch_alloc() handed out keeps the handle open until it is freed, as the pool did. Waits for the work on what was freed
 * by gms_torch_free(); where that cannot be known, as what was freed during a capture was not trimmed since, the memory stays
 * mapped until the process ends, also when the handle is closed. NULL is allowed.
 */
GMS_PUBLIC void gms_pool_close(struct gms_pool *p);

/*
 * A piece of at least `bytes` at a multiple of `alignment`: a power of two up to the device's granularity, 0 for 256. No
 * round trip unless a slab is needed; then it waits for memory as gms_allocate(), but not when meanwhile room is made in the
 * pool.
 * -EINVAL bytes 0, or such an alignment; -ENOTCONN the session that the pool was opened in has ended; -EACCES it has
 * published; else as gms_allocate(). Of a sealed layout pieces can be had as far as its slabs go, then -EBUSY. Where there is
 * room the daemon is not asked: that it is gone, or has revoked the session, is seen with the next slab.
 */
GMS_PUBLIC int gms_pool_allocate(struct gms_pool *p, uint64_t bytes, uint64_t alignment, struct gms_piece *ret);

/*
 * Gives a piece back, by its address; for a GPU, when no work on it is under way. Neighbours that are free become one. A
 * slab of which nothing is used goes back to the device; some are kept for the next allocations, up to one that would be
 * taken now or a quarter of all. What was published or sealed since is only marked free. -ENOENT no piece begins there.
 */
GMS_PUBLIC int gms_pool_free(struct gms_pool *p, uint64_t address);

/*
 * Gives back all slabs of which nothing is used. Do so before gms_commit(). For a GPU, when no work is under way on what was
 * freed by gms_torch_free(): what was freed while its stream was captured waits for this call. Errors as gms_free().
 */
GMS_PUBLIC int gms_pool_trim(struct gms_pool *p);

struct gms_pool_stats {
        uint32_t size;
        uint32_t slabs;
        uint64_t reserved;     /* bytes of all slabs: what the device gives */
        uint64_t allocated;    /* bytes of all pieces, as rounded and aligned */
        uint64_t requested;    /* bytes of all pieces, as asked for */
        uint64_t largest_free; /* bytes of the largest free piece */
        uint64_t pieces;
        uint64_t reserved_peak;
        uint64_t requested_peak;
};

/*
 * Fragmentation by the field's definitions: internal is 1 - requested / allocated, external is 1 - largest_free /
 * (reserved - allocated), and reserved / requested is what a byte costs in all. -EINVAL.
 */
GMS_PUBLIC int gms_pool_stats(struct gms_pool *p, struct gms_pool_stats *ret);

/*
 * PyTorch's pluggable allocator: torch.cuda.memory.CUDAPluggableAllocator("libgmsclient.so.1", "gms_torch_alloc",
 * "gms_torch_free"), best inside a torch.cuda.MemPool. The pair carries neither session nor tag: gms_torch_use() says which
 * pool (and with it which session and tag) its device's allocations come from, for all threads of the process, until
 * gms_torch_clear() or gms_pool_close(). Neither synchronises: a freed piece is used again, or goes back with its slab, once
 * the work that its stream had then is done, which later calls find out.
 */
GMS_PUBLIC int gms_torch_use(struct gms_pool *p);   /* -EBUSY another pool is in use for this GPU; -ENODEV host memory */
GMS_PUBLIC int gms_torch_clear(struct gms_pool *p); /* -ENOENT it is not in use. Pieces stay, and can be freed */
/* `device` is the ordinal in this process, `stream` a CUstream. NULL: no pool is in use for it, or no memory; with a text. */
GMS_PUBLIC void *gms_torch_alloc(ptrdiff_t bytes, int device, void *stream);
/*
 * In whichever pool it is, in use, closed or not. Once, and only what gms_torch_alloc() returned. The last piece of a
 * pool that is closed waits for the work on what was freed, as gms_pool_close() does.
 */
GMS_PUBLIC void gms_torch_free(void *address, ptrdiff_t bytes, int device, void *stream);

/* ---- tensors: a manifest over metadata */

/*
 * A layout's tensors are metadata entries with the key "tensor/NAME" whose value is the message Tensor of gms.proto. The
 * layout hash covers them: names, types, shapes and places are structure, and what means the same is written the same.
 *
 * What is smaller than a byte is packed, and C-contiguous only; its elements fill whole bytes in all. The offset of any other
 * is a multiple of its element's size, in the allocation and in its storage: kernels read it so. A tensor without elements
 * has a place too, inside its allocation.
 */

enum {
        /* safetensors' types, by their names there */
        GMS_DTYPE_BOOL = 1,
        GMS_DTYPE_U8 = 2,
        GMS_DTYPE_I8 = 3,
        GMS_DTYPE_U16 = 4,
        GMS_DTYPE_I16 = 5,
        GMS_DTYPE_U32 = 6,
        GMS_DTYPE_I32 = 7,
        GMS_DTYPE_U64 = 8,
        GMS_DTYPE_I64 = 9,
        GMS_DTYPE_F16 = 10,
        GMS_DTYPE_BF16 = 11,
        GMS_DTYPE_F32 = 12,
        GMS_DTYPE_F64 = 13,
        GMS_DTYPE_C64 = 14,         /* complex: two F32 */
        GMS_DTYPE_F8_E4M3 = 15,
        GMS_DTYPE_F8_E5M2 = 16,
        GMS_DTYPE_F8_E8M0 = 17,
        GMS_DTYPE_F8_E4M3FNUZ = 18,
        GMS_DTYPE_F8_E5M2FNUZ = 19,
        GMS_DTYPE_F4 = 20,          /* E2M1; two elements a byte */
        GMS_DTYPE_F6_E2M3 = 21,     /* four elements in three bytes */
        GMS_DTYPE_F6_E3M2 = 22
};

/* "BF16"; NULL for what is no type. */
GMS_PUBLIC const char *gms_dtype_name(uint32_t dtype);
/* GMS_DTYPE_* by its name; 0 for what is none. */
GMS_PUBLIC uint32_t gms_dtype_find(const char *name);
/* Bits of one element; 0 for what is no type. */
GMS_PUBLIC uint32_t gms_dtype_bits(uint32_t dtype);

enum {
        GMS_TENSOR_PARAMETER = 1, /* shared by all readers, and read-only */
        GMS_TENSOR_BUFFER = 2     /* written by its users: each takes a copy of its own */
};

#define GMS_RANK_MAX 64

struct gms_tensor {
        uint32_t size;
        uint32_t dtype;           /* GMS_DTYPE_* */
        uint32_t kind;            /* GMS_TENSOR_*; 0: PARAMETER */
        uint32_t rank;            /* dimensions, at most GMS_RANK_MAX; 0: a scalar */
        const char *name;         /* 1 to 505 bytes */
        const int64_t *shape;     /* elements, `rank` of them */
        const int64_t *strides;   /* elements, not negative; NULL when put: C-contiguous. Never NULL in lists */
        uint64_t slot;
        uint64_t offset;          /* bytes into the allocation, of the first element */
        uint64_t bytes;           /* from the first element to the end of the last; ignored when put */
        uint64_t storage_offset;  /* bytes into the allocation: the storage that it is a view of, as others of the same ... */
        uint64_t storage_bytes;   /* ... place are. 0 when put: it is alone in a storage of just its bytes */
        uint64_t address;         /* of the first element; 0 while unmapped, and when put */
};

/* Tensors that the library owns, ascending by name (bytes); release with gms_tensors_free(). */
struct gms_tensor_list {
        uint32_t size;
        uint32_t n;
        struct gms_tensor *tensors;
};

/*
 * Writers: puts n tensors, replacing those of the same names; all are checked before the first is sent, and they go in batches
 * as those of gms_metadata_put(). Several names may have the same place (tied weights). -EINVAL a type, shape, stride, alignment
 * or name that cannot be: the text says which and why; -ERANGE not inside its allocation or storage; -ENOENT no such slot;
 * -EACCES; -EBUSY sealed.
 */
GMS_PUBLIC int gms_tensors_put(struct gms *g, const struct gms_tensor *tensors, size_t n);

/*
 * All tensors of the session's layout, with their addresses where that is mapped. One round trip for the first 9,000 or so of
 * what is published or sealed; one for each 60,000 bytes of the others, and of what is still being built. Whatever a writer
 * may have written, a tensor in a list has a type, shape and strides that can be, and what the handle knows of its layout
 * (after gms_attach(), or because it allocated it) contains it; where nothing is known, its first byte is inside.
 * -EBADMSG an entry "tensor/..." is no such tensor: the text says which and why. gms_metadata_list() shows all entries.
 */
GMS_PUBLIC int gms_tensors_list(struct gms *g, struct gms_tensor_list *ret);

/* The tensors of what rests in any store, without a lock; addresses are 0. Errors as gms_query_metadata(), and -EBADMSG. */
GMS_PUBLIC int gms_query_tensors(struct gms *g, const char *store, struct gms_tensor_list *ret);

/* By its name, in O(log n); NULL when there is none. The list's. */
GMS_PUBLIC const struct gms_tensor *gms_tensors_find(const struct gms_tensor_list *list, const char *name);

GMS_PUBLIC void gms_tensors_free(struct gms_tensor_list *list);

/*
 * A mapped tensor for any framework that takes DLPack: `versioned` 0 makes a DLManagedTensor, 1 a
 * DLManagedTensorVersioned of version 1.1, with the read-only flag when the mapping is (the other form cannot say it). No copy,
 * and nothing of the tensor's or its list's is kept. Its deleter may be called from any thread: until then the handle behind it
 * stays open with its lock and mapping, even if gms_close() comes first. gms_unmap_all() takes the memory away under it all the
 * same, and gms_remap_all() brings it back. Types of less than a byte have one lane, and a shape in elements.
 * -EACCES unmapped, or without access; -ENOENT the handle knows no such slot; -ESTALE the tensor was listed in another layout
 * than is mapped; -EINVAL and -ERANGE as gms_tensors_put().
 */
GMS_PUBLIC int gms_dlpack(struct gms *g, const struct gms_tensor *tensor, int versioned, void **ret_managed);

/* ---- checkpoints: safetensors files */

/*
 * Model files, to be read into a store or compared with one, once: each time they are opened anew. Nothing here starts a
 * thread: any number of the caller's share the work by calling gms_checkpoint_work(); eight to sixteen saturate a PCIe 5
 * link on an H200. What the page cache has is read from there, the rest with O_DIRECT; the bytes go through page-locked buffers.
 */
struct gms_checkpoint;

/*
 * Opens safetensors files, or one directory: by its *.safetensors.index.json if it has one, else all its *.safetensors.
 * Reads and checks the headers; talks to nobody.
 * -ENOENT and the like: a file cannot be opened; -EBADMSG a file is not what it should be: the text says which, where (byte
 * offset) and why; or the index and the files disagree; -EEXIST the same tensor twice, or several indexes; -EFBIG more than
 * 2^47 bytes of tensors; -ENOMEM.
 */
GMS_PUBLIC int gms_checkpoint_open(struct gms_checkpoint **ret_checkpoint, const char *const *paths, size_t n);

/*
 * Forgets it. No thread is inside gms_checkpoint_work() any more. Slabs of a load that gms_checkpoint_finish() did not end
 * well are freed, if the session still can. NULL is allowed.
 */
GMS_PUBLIC void gms_checkpoint_close(struct gms_checkpoint *c);

/*
 * Begins loading into what the writer `g` builds: allocates slabs for all of it. `tag` as in gms_allocate(). Errors as
 * there; -EBUSY it was begun before. The handle is the checkpoint's alone until gms_checkpoint_finish(), and stays open until
 * gms_checkpoint_close(), even if gms_close() comes first.
 */
GMS_PUBLIC int gms_checkpoint_load(struct gms_checkpoint *c, struct gms *g, const char *tag);

/*
 * Begins comparing with the attached layout of `g`, byte for byte. -ENOENT a tensor is missing there; -EBADMSG one has
 * another type, shape or order in memory, or is one too many there; -EACCES not mapped; -EBUSY it was begun before; errors
 * as gms_tensors_list(). Until gms_checkpoint_finish() nothing is unmapped.
 */
GMS_PUBLIC int gms_checkpoint_verify(struct gms_checkpoint *c, struct gms *g);

/*
 * Takes part in the work until none is left, it failed in any thread, or it was cancelled. Holds 8 MiB of page-locked
 * memory meanwhile.
 * -ECANCELED; -EIO a read failed, or the driver; -EBADMSG a file was cut short meanwhile; -EILSEQ verifying: bytes differ,
 * the text says where first; -ENOMEM; -EINVAL nothing was begun.
 */
GMS_PUBLIC int gms_checkpoint_work(struct gms_checkpoint *c);

/* From any thread, and from a signal handler: work ends with -ECANCELED once each thread has read its present 4 MiB at most. */
GMS_PUBLIC void gms_checkpoint_cancel(struct gms_checkpoint *c);

struct gms_checkpoint_progress {
        uint32_t size;
        uint32_t files;
        uint64_t tensors;
        uint64_t total; /* bytes of all tensors */
        uint64_t done;  /* of them */
        uint64_t direct; /* bytes read with O_DIRECT so far; the others came from the page cache */
};

/* From any thread, at any time; costs nothing. -EINVAL. */
GMS_PUBLIC int gms_checkpoint_progress(struct gms_checkpoint *c, struct gms_checkpoint_progress *ret);

/*
 * After all work is done. Loading: puts the tensors into the layout, which the caller then commits. Writes the content's
 * identity into `identity` of GMS_IDENTITY_SIZE bytes (may be NULL).
 * -EBUSY work is left, or none was begun; what the work failed with; -EBADMSG a file was changed meanwhile. Errors as
 * gms_tensors_put().
 *
 * The identity is a digest of names, types, shapes and bytes, the same however the tensors are ordered, spread over files, or
 * read. It finds accidents, not forgers. XXH3-128 throughout, with seed 0, each result as its 16 bytes in canonical order
 * (big-endian):
 *      leaf     of each 1,048,576 bytes of a tensor, the last one shorter; a tensor without bytes has none
 *      tensor   of its leaves, one behind the other
 *      content  of "gms checkpoint 1\n" and then, for all tensors ascending by the bytes of their names, numbers little-endian:
 *                       u32 length of the name, the name; u32 length of the type's name ("BF16"), that name;
 *                       u32 number of dimensions, u64 size of each; the tensor's 16 bytes
 * and the identity is "xxh3-128:" with the content's digest in 32 lower-case hexadecimal digits.
 */
GMS_PUBLIC int gms_checkpoint_finish(struct gms_checkpoint *c, char *identity);

/* ---- publishing */

/*
 * Writers: fixes the shape (allocations and metadata); contents stay writable, by this writer and by those who adopt the
 * layout after it. A sealed layout survives its writer and is not readable.
 * -EACCES reader, or gmsd cannot see this process (another PID namespace on a kernel before 6.9) and could not tell a
 * successor when it has exited; -EBUSY a generation is published: gms_discard() it first.
 */
GMS_PUBLIC int gms_seal(struct gms *g);

/* Writers: frees the layout that was published or sealed before, to make room. Its readers, if any, keep it. -EACCES. */
GMS_PUBLIC int gms_discard(struct gms *g);

#define GMS_COMMIT_LEAVE 1u /* give the lock back: the handle is disconnected; its mappings stay, read-only */

/*
 * Writers: publishes what was built, atomically, under `identity` (NULL: none), and protects the mappings in place. The
 * session goes on as a reader of it, with no moment between in which another writer can come in. An empty layout is
 * allowed. The caller's writes to the memory are finished (GPU: synchronised) before. -EACCES reader. -EIO or -ENOMEM with
 * a text that says "IS published": it is, and only making the mappings read-only failed; gms_protect() tries it again.
 */
GMS_PUBLIC int gms_commit(struct gms *g, const char *identity, uint32_t flags);

/* ---- state and events */

struct gms_state {
        uint32_t size;
        uint32_t mode;                /* granted: NONE, RO, UPDATE or RW */
        uint64_t session;
        uint64_t generation;          /* of the layout this session works on; 0 if not published yet */
        uint64_t newest;              /* generation the store has published; 0 none */
        uint64_t allocations;
        uint64_t bytes;               /* physical */
        uint64_t waiters;             /* sessions that wait for the store's lock */
        uint64_t granularity;         /* of the device */
        uint32_t sealed;
        uint32_t mapped;              /* 1 when everything the handle knows is mapped, and that is something */
        uint8_t hash[GMS_HASH_SIZE];  /* of the layout's structure */
        char store_state[16];         /* EMPTY, RW, COMMITTED, RO, SEALED */
        char identity[GMS_IDENTITY_SIZE];
        char device[48];              /* UUID of the GPU; "host" */
};

/* The session's and its store's state now. One round trip. */
GMS_PUBLIC int gms_state(struct gms *g, struct gms_state *ret);

enum {
        GMS_EVENT_LOCK_WANTED = 1, /* somebody waits for what this session holds */
        GMS_EVENT_PUBLISHED = 2,   /* a newer generation: gms_refresh() moves to it */
        GMS_EVENT_REVOKED = 3,     /* an administrator took the lock away */
        GMS_EVENT_RESUMED = 4,     /* the daemon was restarted; nothing was lost */
        GMS_EVENT_CLOSED = 5       /* the daemon is gone */
};

struct gms_event {
        uint32_t size;
        uint32_t kind;       /* GMS_EVENT_* */
        uint64_t generation; /* PUBLISHED */
        char text[256];
};

/*
 * A descriptor that polls readable while an event may be waiting; for any loop. The same over the handle's life, connected
 * or not. The handle's: do not read or close it. Or a negative errno.
 */
GMS_PUBLIC int gms_get_fd(struct gms *g);

/*
 * Takes the next event, without waiting for the daemon (another thread's call on the handle is waited for). Of each kind
 * the latest is kept. 1: *ret is filled. 0: there is none. Negative errno: -EINVAL, -ECHILD.
 */
GMS_PUBLIC int gms_dispatch(struct gms *g, struct gms_event *ret);

/* ---- looking at the daemon: any connected handle, mode NONE included. Snapshots are the caller's to free. */

struct gms_daemon {
        uint32_t size;
        uint32_t durable;      /* 1: a service manager keeps the memory over a death of gmsd */
        uint64_t pid;
        uint64_t uptime_ms;
        uint64_t sessions;
        uint64_t allocations;
        uint64_t bytes;
        uint64_t draining_bytes;
        char version[32];
        uint64_t restarts;     /* deaths of gmsd that what it keeps has survived */
        uint64_t away_ms;      /* without one, in all */
        uint64_t orphans;      /* allocations that nobody had been told of, freed at the last restart */
        uint64_t unaccounted;  /* allocations behind a damage in the journal: left alone */
};

struct gms_device {
        uint32_t size;
        uint32_t reserved;
        char name[32];         /* cuda:0, host */
        char uuid[48];
        char model[96];
        char state[16];        /* starting, ready, faulted */
        char text[256];        /* why it is faulted */
        uint64_t total;
        uint64_t free;
        uint64_t owned;        /* bytes that stores hold */
        uint64_t granularity;
        uint64_t waiting;      /* allocations that wait for memory */
};

struct gms_store {
        uint32_t size;
        uint32_t sealed;
        char name[GMS_STORE_SIZE];
        char state[16];        /* EMPTY, RW, COMMITTED, RO, SEALED */
        char identity[GMS_IDENTITY_SIZE];
        uint8_t hash[GMS_HASH_SIZE];
        uint64_t readers, writers, waiters;
        uint64_t bytes;        /* all that it holds: resting, being built, draining */
        uint64_t building_bytes;
        uint64_t draining_bytes;
        uint64_t draining_layouts;
        uint64_t allocations;  /* of the published or sealed layout, as are generation, hash, identity */
        uint64_t generation;
};

struct gms_session {
        uint32_t size;
        uint32_t mode;         /* asked for while waiting, granted when holding */
        uint32_t waiting;
        uint32_t reserved;
        uint64_t id, pid, uid;
        uint64_t age_ms;
        uint64_t bytes;        /* physical memory this session keeps from being freed */
        uint64_t generation;
        char label[GMS_LABEL_SIZE];
        char store[GMS_STORE_SIZE];
};

GMS_PUBLIC int gms_query_daemon(struct gms *g, struct gms_daemon *ret);
/* Each fills an array that the caller frees with gms_array_free(). */
GMS_PUBLIC int gms_query_devices(struct gms *g, struct gms_device **ret, size_t *ret_n);
/* `store` NULL: all, by name. -ENOENT when one was named and there is none. */
GMS_PUBLIC int gms_query_stores(struct gms *g, const char *store, struct gms_store **ret, size_t *ret_n);
GMS_PUBLIC int gms_query_sessions(struct gms *g, struct gms_session **ret, size_t *ret_n);
/*
 * The resting (published, else sealed) layout of any store, without a lock and without a side effect; what comes in several
 * answers is all of one layout. -ENOENT no such store, or nothing rests there; -EAGAIN it is replaced faster than it can be
 * read.
 */
GMS_PUBLIC int gms_query_layout(struct gms *g, const char *store, struct gms_allocation **ret, size_t *ret_n);
GMS_PUBLIC int gms_query_metadata(struct gms *g, const char *store, struct gms_metadata_list *ret);
GMS_PUBLIC void gms_array_free(void *array);

#define GMS_CLEAR_FORCE 1u /* revoke the locks of everybody in the store; for root and the daemon's own user */

/*
 * Frees what a store rests on (published or sealed). -EBUSY sessions hold its lock and force was not given; -ENOENT no
 * such store; -EPERM force is not this user's to use.
 */
GMS_PUBLIC int gms_clear(struct gms *g, const char *store, uint32_t flags);

#ifdef __cplusplus
}
#endif
#endif
