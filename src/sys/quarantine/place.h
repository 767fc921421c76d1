/*
 * place: the folder that a quarantined file came from, reached without symbolic links.
 *
 * Threads   one thread; calls block on the disk
 */
#ifndef SYS_QUARANTINE_PLACE_H
#define SYS_QUARANTINE_PLACE_H

#include "sys/quarantine/quarantine.h"

struct place {
    int folder;       /* O_PATH would not allow fsync: opened for reading */
    const char *name; /* last part of the path; points into the item */
    char ours[64];    /* ".redoubt-<uuid>" */
};

MUST_USE enum err place_open(const struct quarantine_item *item, struct place *out,
                             struct err_info *info);
void place_close(struct place *p);

/*
 * place_remove - remove the file if it is the one of the item.
 * fd    compared by device and inode; -1: by inode, size and time of change
 * gone  out: what stands there is not the item's file, or nothing is there
 */
MUST_USE enum err place_remove(const struct place *p, const struct quarantine_item *item,
                               int fd, bool *gone, struct err_info *info);

#endif
