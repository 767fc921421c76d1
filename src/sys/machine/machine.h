/*
 * machine: what this computer is, so that two nodes can be compared.
 *
 * Purpose   The daemon publishes it in its node record; `redoubt check` and `status` tell
 *           what differs between the nodes.
 * Shape     Plain data; digests are the first 16 hex digits of a BLAKE2b of the file.
 * Errors    None: what cannot be read is "" or 0, and a program that cannot be read has
 *           the digest "missing".
 * Threads   any; reads files, so not from an event loop: once at start
 * Tests     tests/unit/test_machine.c
 */
#ifndef SYS_MACHINE_H
#define SYS_MACHINE_H

#include <stdint.h>

#include "base/str.h"

enum { MACHINE_PROGRAMS_MAX = 24 };

struct machine_program {
    char name[48]; /* the last part of its path */
    char digest[17];
};

struct machine {
    char cpu[80];
    uint32_t cpus;
    uint32_t memory_mib;
    char arch[66];
    char os[80];
    char kernel[72];
    char version[24]; /* of Redoubt */
    uint32_t program_count;
    struct machine_program program[MACHINE_PROGRAMS_MAX];
};

/* Fills all but the programs. */
void machine_read(struct machine *out);
/* Adds one program; a full table or a name that is there already is ignored. */
void machine_add_program(struct machine *m, const char *path);

/* {"cpu":...,"cpus":2,"memory_mib":...,"arch","os","kernel","version","programs":{name:
 * digest}} without a newline; at most MACHINE_JSON_BYTES. */
enum { MACHINE_JSON_BYTES = 4096 };
void machine_json(const struct machine *m, struct text *out);

#endif
