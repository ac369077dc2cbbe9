// SPDX-License-Identifier: MIT
#pragma once
/*
 * Bytes that say where they belong: each 8-byte word is a mix of version, slot and its place. So a reader can verify
 * every byte by itself, and takes nothing else for them: not zeros, not another version, slot or offset.
 */
#include <stdint.h>

#define PATTERN_OK UINT64_MAX

/* `offset` is a multiple of 8; `bytes` may be any number. */
void pattern_fill(void *to, uint32_t version, uint64_t slot, uint64_t offset, uint64_t bytes);

/* PATTERN_OK, or the offset of the first word that is wrong. */
uint64_t pattern_verify(const void *from, uint32_t version, uint64_t slot, uint64_t offset, uint64_t bytes);
