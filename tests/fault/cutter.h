/*
 * cutter: a TCP proxy before an SMB server that cuts the connection at a chosen message.
 *
 * Purpose   The server has done it, and the answer is lost (rule L8): nothing else produces
 *           this at will.  The cut is made once; after it the proxy is transparent.
 */
#ifndef TEST_CUTTER_H
#define TEST_CUTTER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum cut {
    CUT_NOTHING,
    CUT_CREATE_ANSWER, /* of a CREATE with FILE_CREATE: done, and the answer is lost */
    CUT_WRITE_ANSWER,
    CUT_WRITE,                 /* the WRITE itself is lost: not done */
    CUT_WRITE_ANSWER_FOR_GOOD, /* and nobody can connect any more */
    CUT_WRITE_AND_STOP, /* as CUT_WRITE, and nobody can connect before SIGCONT to pid */
};

struct cutter {
    pid_t pid;
    uint16_t port;
    enum cut *cut; /* what is still to be cut */
};

/* In a process of its own. */
void cutter_start(struct cutter *c, uint16_t server_port, enum cut cut);
void cutter_stop(struct cutter *c);

#endif
