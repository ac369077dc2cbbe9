// SPDX-License-Identifier: MIT
#include "fake_device.h"

#include <pthread.h>
#include <signal.h>
#include <strings.h>
#include <sys/stat.h>

static char dir[4000];
static struct fakecuda *knobs;

static void set_up(void) {
        const char *env = getenv("FAKECUDA_DIR");
        if (env && *env)
                (void)snprintf(dir, sizeof(dir), "%s", env);
        else
                (void)snprintf(dir, sizeof(dir), "/dev/shm/fakecuda-%u", (unsigned)getuid());
        (void)mkdir(dir, 0777);
        knobs = fakecuda_open(dir);
        if (!knobs) {
                fprintf(stderr, "fakecuda: %s/knobs: %s\n", dir, strerror(errno));
                abort();
        }
}

static void set_up_once(void) {
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        (void)pthread_once(&once, set_up);
}

const char *fake_dir(void) {
        set_up_once();
        return dir;
}

unsigned fake_count(void) {
        const char *env = getenv("FAKECUDA_DEVICES");
        unsigned long n = env ? strtoul(env, NULL, 10) : 1;
        return (unsigned)MIN(n, FAKE_DEVICES_MAX);
}

uint64_t fake_capacity(void) {
        const char *env = getenv("FAKECUDA_MEMORY");
        char *end;
        uint64_t bytes = strtoull(env ? env : "1G", &end, 10);
        for (const char *units = "KMG"; *end && strchr(units, *end); units++) {
                bytes *= 1024;
                if (*units == *end)
                        break;
        }
        return bytes;
}

void fake_uuid(unsigned index, CUuuid *ret_uuid) {
        static const unsigned char base[16] = { 0xfa, 0x4e, 0xcd, 0xa0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 0 };
        memcpy(ret_uuid->bytes, base, sizeof(base));
        ret_uuid->bytes[3] = (char)(0xa0 + index); /* within what people abbreviate a UUID to */
        ret_uuid->bytes[15] = (char)index;
}

int fake_by_uuid(const char *text, size_t len) {
        for (unsigned i = 0; i < fake_count(); i++) {
                char uuid[48] = "GPU-";
                CUuuid u;
                fake_uuid(i, &u);
                for (unsigned b = 0, at = 4; b < 16; b++)
                        at += (unsigned)snprintf(uuid + at, sizeof(uuid) - at, "%s%02x",
                                                 b == 4 || b == 6 || b == 8 || b == 10 ? "-" : "", (unsigned char)u.bytes[b]);
                if (len > 4 && len <= strlen(uuid) && strncasecmp(uuid, text, len) == 0)
                        return (int)i;
        }
        return -1;
}

/* Takes one of the times a knob is to turn. */
static bool take_turn(struct fakecuda_knob *k) {
        uint32_t left = k->times;
        while (left != 0 && left != FAKECUDA_ALWAYS)
                if (atomic_compare_exchange_weak(&k->times, &left, left - 1))
                        return true;
        return left != 0;
}

int fake_enter(enum fakecuda_function f) {
        set_up_once();
        struct fakecuda_knob *k = &knobs->knobs[f];
        uint32_t cleared = knobs->cleared;
        bool turned = take_turn(k);
        k->calls++; /* whoever waits for this call may count on the turn being taken */
        (void)fakecuda_futex(&k->calls, FUTEX_WAKE, INT32_MAX, NULL);
        if (!turned)
                return 0;

        struct timespec rest = { k->delay_us / 1000000, (long)(k->delay_us % 1000000) * 1000 };
        while (nanosleep(&rest, &rest) < 0 && errno == EINTR)
                ;
        switch ((uint32_t)k->action) {
        case FAKECUDA_FAIL:
                return k->result;
        case FAKECUDA_HANG:
                while (knobs->cleared == cleared)
                        (void)fakecuda_futex(&knobs->cleared, FUTEX_WAIT, cleared, NULL);
                return 0;
        case FAKECUDA_CRASH:
                (void)raise(SIGKILL);
        }
        return 0;
}
