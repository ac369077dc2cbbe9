// SPDX-License-Identifier: MIT
#pragma once
/* A gmsd of the test's own, on host memory: for the fixtures of tests/client. */
#include <check.h>

#include "base.h"
#include "gmsclient.h"

#define OK(call) ck_assert_msg((call) == 0, #call ": %s", gms_last_error())

extern const char *daemon_program; /* the path of gmsd */

void daemon_start(void);
/* Demands that it ends well. */
void daemon_stop(void);

/* A handle; and one with a session. */
struct gms *daemon_handle(const char *store);
struct gms *daemon_session(const char *store, uint32_t mode);
