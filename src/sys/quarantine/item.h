/*
 * item: one quarantined file on disk.
 *
 * Shape     magic "RDTQ\1\0\0\0", header of a secretstream (XChaCha20-Poly1305), then
 *           chunks: u32 length of the ciphertext (little-endian), ciphertext.  The first
 *           chunk holds the struct quarantine_item, the others up to 64 KiB of the file
 *           each; the last one carries the final tag, so a cut file is noticed.
 * Threads   one thread; calls block on the disk
 */
#ifndef SYS_QUARANTINE_ITEM_H
#define SYS_QUARANTINE_ITEM_H

#include "sys/quarantine/quarantine.h"

enum { ITEM_KEY_BYTES = 32 };

/* Encrypts what `from` holds behind the description; fails if it is not item->sha256. */
MUST_USE enum err item_write(int to, int from, const struct quarantine_item *item,
                             const uint8_t key[ITEM_KEY_BYTES], struct err_info *info);
/* Only the description. */
MUST_USE enum err item_describe(int from, const uint8_t key[ITEM_KEY_BYTES],
                                struct quarantine_item *out, struct err_info *info);
/* The description, and the file's bytes into `to`. */
MUST_USE enum err item_read(int from, int to, const uint8_t key[ITEM_KEY_BYTES],
                            struct quarantine_item *out, struct err_info *info);

#endif
