// SPDX-License-Identifier: MIT
#include "account.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bystander.h"
#include "cuda_driver.h"
#include "raw.h"

#define SETTLE_MS 5000
#define REAL_SLACK (UINT64_C(16) << 20) /* a real driver keeps a little for itself, now and then */

static struct account base;
static pid_t keeper;
static bool daemon_asked;
static char device_uuid[64];

/* ---- taking */

static uint64_t nvml_free(void) {
        const struct nvml *nvml = m.cuda ? nvml_get() : NULL;
        struct nvml_device *d;
        struct nvml_memory memory;
        if (!nvml || nvml->nvmlDeviceGetHandleByUUID(device_uuid, &d) != 0 || nvml->nvmlDeviceGetMemoryInfo(d, &memory) != 0)
                return 0;
        return memory.free;
}

/* Mappings of allocations in this process. */
static unsigned count_maps(void) {
        char arena[300] = "/memfd:gms ";
        unsigned n = 0;
        if (m.fake)
                (void)snprintf(arena, sizeof(arena), "%s/gpu0.memory", getenv("FAKECUDA_DIR"));
        _cleanup_free_ char *maps = read_text("/proc/self/maps");
        for (const char *at = maps; (at = strstr(at, arena)); at++)
                n++;
        return n;
}

void account_take(struct account *a) {
        *a = (struct account){};
        a->own_fds = count_fds(getpid());
        a->own_maps = count_maps();
        if (!daemon_asked)
                return;
        granted(&control, ask(&control, ABOUT, about));
        a->sessions = control.reply->daemon->sessions;
        a->allocations = control.reply->daemon->allocations;
        a->bytes = control.reply->daemon->bytes;
        granted(&control, ask(&control, LIST_STORES, list_stores));
        a->stores = control.reply->stores->n_stores;
        granted(&control, ask(&control, LIST_DEVICES, list_devices));
        for (size_t i = 0; i < control.reply->devices->n_devices; i++) {
                a->owned += control.reply->devices->devices[i]->owned;
                a->waiting += control.reply->devices->devices[i]->waiting;
        }
        a->gmsd_fds = count_fds(m.gmsd);
        a->workers = worker_pids(a->worker, ACCOUNT_WORKERS);
        for (unsigned i = 0; i < a->workers; i++)
                a->worker_fds = MAX(a->worker_fds, count_fds(a->worker[i]));
        a->device_free = nvml_free(); /* last: what the daemon has given back is back */
}

/* ---- comparing */

static void note(char *text, size_t room, const char *format, ...) _printf_(3, 4);
static void note(char *text, size_t room, const char *format, ...) {
        size_t len = strlen(text);
        va_list args;
        va_start(args, format);
        (void)vsnprintf(text + len, room - len, format, args);
        va_end(args);
}

/* A new worker has not opened yet all that it will need. */
static bool same_workers(const struct account *a) {
        return a->worker_fds <= base.worker_fds &&
               (m.test->respawns || memcmp(a->worker, base.worker, sizeof(base.worker)) == 0);
}

static bool differences(const struct account *a, char *text, size_t room) {
        static const struct {
                const char *what;
                size_t at;
        } amounts[] = {
                { "sessions", offsetof(struct account, sessions) },
                { "stores", offsetof(struct account, stores) },
                { "allocations of stores", offsetof(struct account, allocations) },
                { "bytes of stores", offsetof(struct account, bytes) },
                { "bytes of physical memory", offsetof(struct account, owned) },
                { "requests that wait for memory", offsetof(struct account, waiting) },
        };
        *text = '\0';
        for (size_t i = 0; i < ARRAY_SIZE(amounts); i++) {
                uint64_t is = *(const uint64_t *)((const char *)a + amounts[i].at);
                uint64_t was = *(const uint64_t *)((const char *)&base + amounts[i].at);
                if (is != was)
                        note(text, room, "%s: %lu, were %lu; ", amounts[i].what, is, was);
        }
        if (a->gmsd_fds != base.gmsd_fds)
                note(text, room, "descriptors of gmsd: %u, were %u; ", a->gmsd_fds, base.gmsd_fds);
        if (a->own_fds != base.own_fds)
                note(text, room, "descriptors of the test: %u, were %u; ", a->own_fds, base.own_fds);
        if (a->own_maps != base.own_maps)
                note(text, room, "mappings of the test: %u, were %u; ", a->own_maps, base.own_maps);
        if (!same_workers(a))
                note(text, room, "workers: %u (the first %d), one with %u descriptors, were %u (%d) with %u; ", a->workers,
                     a->worker[0], a->worker_fds, base.workers, base.worker[0], base.worker_fds);
        if (a->device_free + (m.fake ? 0 : REAL_SLACK) < base.device_free)
                note(text, room, "free memory of the GPU: %lu, was %lu; ", a->device_free, base.device_free);
        return *text != '\0';
}

/* What the descriptors are, most often the answer to the question. */
static void list_fds(pid_t pid) {
        char path[300], link[256];
        (void)snprintf(path, sizeof(path), "/proc/%d/fd", pid);
        DIR *d = opendir(path);
        fprintf(stderr, "descriptors of process %d:", pid);
        for (struct dirent *e; d && (e = readdir(d));) {
                (void)snprintf(path, sizeof(path), "/proc/%d/fd/%s", pid, e->d_name);
                ssize_t n = readlink(path, link, sizeof(link) - 1);
                if (n > 0)
                        fprintf(stderr, " %s=%.*s", e->d_name, (int)n, link);
        }
        fprintf(stderr, "\n");
        if (d)
                (void)closedir(d);
}

/* ---- the books */

void account_begin(void) {
        daemon_asked = true;
        granted(&control, ask(&control, LIST_DEVICES, list_devices));
        (void)snprintf(device_uuid, sizeof(device_uuid), "%s", control.reply->devices->devices[0]->uuid);
        (void)nvml_free(); /* loads it */
        keeper = getpid();
        wait_for((account_take(&base), base.sessions == (m.test->no_bystander ? 1 : 2)));
        /* A worker sends what it has made before it closes it, and may rest in between. */
        struct account again;
        unsigned step = 0;
        for (uint64_t end = now_ms() + 4; until_(end, &step);) {
                account_take(&again);
                base.worker_fds = MIN(base.worker_fds, again.worker_fds);
        }
}

bool account_open(struct account *a) {
        if (keeper != getpid() || !daemon_asked)
                return false;
        account_take(a);
        return true;
}

void account_adjust(const struct account *before, const struct account *after) {
        base.own_fds += after->own_fds - before->own_fds;
        base.own_maps += after->own_maps - before->own_maps;
        base.device_free += after->device_free - before->device_free;
}

void account_without_daemon(void) {
        daemon_asked = false;
        /* Less the connection, and the line to the bystander. */
        base = (struct account){ .own_fds = base.own_fds - (m.test->no_bystander ? 1 : 2), .own_maps = base.own_maps };
}

static void clear_stores(void) {
        char names[64][WIRE_STORE_MAX + 1];
        size_t n = 0;
        granted(&control, ask(&control, LIST_STORES, list_stores));
        for (size_t i = 0; i < control.reply->stores->n_stores; i++)
                if (strcmp(control.reply->stores->stores[i]->name, store(BYSTANDER)) != 0)
                        (void)snprintf(names[n++], sizeof(names[0]), "%s", control.reply->stores->stores[i]->name);
        for (size_t i = 0; i < n; i++)
                (void)ask(&control, CLEAR, clear, b.store = names[i]); /* one that holds nothing is gone by now */
}

void account_settle(void) {
        struct account a;
        char text[1024];
        unsigned step = 0;
        bool left;
        for (uint64_t deadline = now_ms() + SETTLE_MS;;) {
                account_take(&a);
                left = differences(&a, text, sizeof(text));
                if (!left)
                        break;
                if (daemon_asked && a.sessions == base.sessions && a.stores != base.stores)
                        clear_stores();
                if (!until_(deadline, &step))
                        break;
        }
        if (left && a.gmsd_fds != base.gmsd_fds)
                list_fds(m.gmsd);
        if (left && a.own_fds != base.own_fds)
                list_fds(getpid());
        ck_assert_msg(!left, "left behind: %s", text);
}
