// SPDX-License-Identifier: MIT
#pragma once
/*
 * The physical memory of one fake device: lives as long as any descriptor or mapping of it in any process, and is counted
 * exactly, though nobody is told when the last one goes.
 *
 * An allocation is an open file description of the device's arena, a sparse file, that holds an OFD lock on its range.
 * The kernel drops the lock with the last descriptor or mapping of that description, after SIGKILL too; so a range
 * without lock is free. A ledger, shared by all processes, says which ranges were given out. Ranges are never given out
 * twice, so memory is always zeroed; a dead one is punched out of the file, when somebody needs the room or asks.
 * The file position of a description is its line in the ledger: that is how a descriptor says what it is.
 *
 * Not committed: the capacity is what the ledger says, the bytes come from the file system as they are touched.
 */
#include "fake_device.h"

/* Opens the memory of a device, of any of the machine's. NULL with errno. */
struct fake_memory *fake_memory_open(unsigned index);

/* A new allocation as a descriptor, to be mapped at *ret_offset. 0, -ENOMEM (the capacity), other negative errno. */
int fake_memory_create(struct fake_memory *m, uint64_t size, int *ret_fd, uint64_t *ret_offset);

/* Whether a descriptor is of this memory, and what it stands for. */
bool fake_memory_find(struct fake_memory *m, int fd, uint64_t *ret_offset, uint64_t *ret_size);

/* Bytes free now, and the number of living allocations. */
uint64_t fake_memory_room(struct fake_memory *m, unsigned *ret_allocations);
