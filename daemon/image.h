// SPDX-License-Identifier: MIT
#pragma once
/*
 * A store as a message, and back: what a snapshot in the journal is made of. Descriptors are not in it: they come back by
 * the ids of their allocations.
 */
#include "journal.pb-c.h"
#include "store.h"

/*
 * The image of a store. Its strings and values point into the store, which must not change while it is used.
 * -ENOMEM. Release with image_free().
 */
int image_of_store(const struct store *s, const char *device_uuid, Gmsj__StoreImage **ret_image);
Gmsj__StoreImage *image_free(Gmsj__StoreImage *image);

/*
 * The store of an image; descriptors are -1, owners and device are NULL. -EBADMSG when the image makes no store that
 * store.c could have made, -ENOMEM.
 */
int image_to_store(const Gmsj__StoreImage *image, struct store **ret_store);

/* Frees a store whatever is in it, closing nothing. */
struct store *image_store_free(struct store *s);
