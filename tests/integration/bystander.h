// SPDX-License-Identifier: MIT
#pragma once
/*
 * Somebody who has nothing to do with the case: another process with a published layout that it reads, checks and asks
 * about without pause. What happens to others must not reach it.
 */
#define BYSTANDER "bystander"

void bystander_start(void);
/* Ends it; fails the test if anything happened to it. */
void bystander_stop(void);
