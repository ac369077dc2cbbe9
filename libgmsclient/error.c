// SPDX-License-Identifier: MIT
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gmsclient.h"

static _Thread_local struct error_saved last;

const char *gms_last_error(void) {
        return last.text;
}

int (error_set)(int error, const char *format, ...) {
        assert(error < 0);
        /* An argument may be the present text. */
        struct error_saved next;
        va_list args;
        va_start(args, format);
        (void)vsnprintf(next.text, sizeof(next.text), format, args);
        va_end(args);
        memcpy(last.text, next.text, strlen(next.text) + 1);
        return error;
}

int (error_add)(int error, const char *format, ...) {
        assert(error < 0);
        size_t len = strlen(last.text);
        va_list args;
        va_start(args, format);
        (void)vsnprintf(last.text + len, sizeof(last.text) - len, format, args);
        va_end(args);
        return error;
}

int (error_errno)(int error, const char *what) {
        char buf[128];
        const char *why = strerror_r(-error, buf, sizeof(buf));
        if (error == -EMFILE || error == -ENFILE)
                return error_set(-EMFILE, "%s: no file descriptors are left in this %s; raise its limit", what,
                                 error == -EMFILE ? "process (ulimit -n, RLIMIT_NOFILE)" : "system (fs.file-max)");
        return error_set(error, "%s: %s", what, why);
}

static const struct {
        int error;
        const char *text; /* when the daemon gave none */
} statuses[] = {
        [GMS__STATUS__MALFORMED] = { -EPROTO, "the daemon could not read the request" },
        [GMS__STATUS__VERSION] = { -EPROTONOSUPPORT, "the daemon speaks no protocol version that this library does" },
        [GMS__STATUS__INVALID] = { -EINVAL, "the daemon refused a value" },
        [GMS__STATUS__NOT_FOUND] = { -ENOENT, "there is no such thing" },
        [GMS__STATUS__NO_DEVICE] = { -ENODEV, "the daemon has no such device" },
        [GMS__STATUS__NOT_PERMITTED] = { -EACCES, "this session's mode, or its user, does not allow it" },
        [GMS__STATUS__CONFLICT] = { -EBUSY, "it cannot be done in the present state" },
        [GMS__STATUS__WOULD_WAIT] = { -EBUSY, "it cannot be done at once, and the deadline was 0" },
        [GMS__STATUS__TIMED_OUT] = { -ETIMEDOUT, "the deadline passed" },
        [GMS__STATUS__NO_MEMORY] = { -ENOMEM, "the device has no room" },
        [GMS__STATUS__LIMIT] = { -ENOBUFS, "a limit of the daemon is reached" },
        [GMS__STATUS__FAULTED] = { -EIO, "the device is faulted" },
        [GMS__STATUS__STALE] = { -ESTALE, "the structure is another" },
        [GMS__STATUS__IDENTITY] = { -EKEYREJECTED, "what is published has another identity than demanded" },
        [GMS__STATUS__REVOKED] = { -EKEYREVOKED, "an administrator took the lock away; disconnect and connect again" },
        [GMS__STATUS__INTERNAL] = { -EREMOTEIO, "the daemon failed; its log says more" },
        [GMS__STATUS__TOO_LARGE] = { -EFBIG, "more was asked for than there can ever be" },
        [GMS__STATUS__OUT_OF_RANGE] = { -ERANGE, "an offset is not inside its allocation" },
};
_Static_assert(ARRAY_SIZE(statuses) == GMS__STATUS__OUT_OF_RANGE + 1, "a status without an errno");

int (error_status)(Gms__Status status, const char *text) {
        if (status <= GMS__STATUS__OK || (size_t)status >= ARRAY_SIZE(statuses))
                return error_set(-EPROTO, "the daemon answered with status %d, which this library does not know: %s",
                                 (int)status, text);
        return error_set(statuses[status].error, "%s", *text ? text : statuses[status].text);
}

int (error_vmm_text)(const char *text, int r, const char *what) {
        static const int errors[] = {
                [VMM_E_NO_DRIVER] = -ENODEV, [VMM_E_NO_DEVICE] = -ENODEV, [VMM_E_NO_MEMORY] = -ENOMEM,
                [VMM_E_TAKEN] = -EEXIST,     [VMM_E_REFUSED] = -EIO,
        };
        int error = r < 0 ? r : (size_t)r < ARRAY_SIZE(errors) && errors[r] ? errors[r] : -EIO;
        if (!*text)
                return error_errno(error, what);
        return error_set(error, "%s: %s", what, text);
}

int (error_vmm)(const struct vmm *v, int r, const char *what) {
        return error_vmm_text(v->text, r, what);
}

void error_save(struct error_saved *ret_saved) {
        memcpy(ret_saved->text, last.text, strlen(last.text) + 1);
}

void error_restore(const struct error_saved *saved) {
        memcpy(last.text, saved->text, strlen(saved->text) + 1);
}
