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

/* Disconnects, unmaps everything, gives all addresses back and frees the handle. NULL is allowed. */
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

/* All entries whose keys begin with `prefix` ("" or NULL: all). */
GMS_PUBLIC int gms_metadata_list(struct gms *g, const char *prefix, struct gms_metadata_list *ret);

/* Writers: deletes n keys, all or none within each 60,000 bytes of keys. -ENOENT, -EACCES, -EBUSY sealed. */
GMS_PUBLIC int gms_metadata_delete(struct gms *g, const char *const *keys, size_t n);

GMS_PUBLIC void gms_metadata_free(struct gms_metadata_list *list);

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
/* The resting (published, else sealed) layout of any store, without a lock and without a side effect. */
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
