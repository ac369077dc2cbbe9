// SPDX-License-Identifier: MIT
#pragma once
/*
 * The text of a thread's last failure, and the one place where the daemon's and the driver's outcomes become errnos.
 *
 * Every failing path of the library ends in one error_*() call, made where most is known; callers above pass the number
 * up unchanged, or wrap the text with error_add().
 */
#include "base.h"
#include "gms.pb-c.h"
#include "vmm.h"

/* Sets the text and returns `error`, a negative errno. */
int error_set(int error, const char *format, ...) _printf_(2, 3);

/* Appends to the text and returns `error`: what a failure further down means for the call as a whole. */
int error_add(int error, const char *format, ...) _printf_(2, 3);

/* For a failed call into libc or proto: "WHAT: strerror". */
int error_errno(int error, const char *what);

/* A reply's status and text, as the daemon gave them. */
int error_status(Gms__Status status, const char *text);

/* What a vmm call returned, with the driver's words. */
int error_vmm(const struct vmm *v, int r, const char *what);
int error_vmm_text(const char *text, int r, const char *what);

/* All of these return something negative, whatever a compiler or an analyser can see of them. */
static inline int error_negative(int error) {
        if (error >= 0)
                __builtin_unreachable();
        return error;
}
#define error_set(...) error_negative((error_set)(__VA_ARGS__))
#define error_add(...) error_negative((error_add)(__VA_ARGS__))
#define error_errno(...) error_negative((error_errno)(__VA_ARGS__))
#define error_status(...) error_negative((error_status)(__VA_ARGS__))
#define error_vmm(...) error_negative((error_vmm)(__VA_ARGS__))
#define error_vmm_text(...) error_negative((error_vmm_text)(__VA_ARGS__))

/* Keeps the text over calls that may set another: cleaning up after the failure that matters. */
struct error_saved {
        char text[1024];
};
void error_save(struct error_saved *ret_saved);
void error_restore(const struct error_saved *saved);
