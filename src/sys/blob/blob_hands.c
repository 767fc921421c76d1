#include "sys/blob/blob_hands.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/blob/blob_feed.h"

enum { LOOK_MS = 200 };

static_assert((int)BLOB_FEED > (int)BLOB_HANDS,
              "a piece must be free while all hands are busy");

struct order {
    const char *bytes; /* in the shared memory, which lies at the same place in a hand */
    size_t n;          /* 0: close the file and end */
    uint64_t at;
};

struct answer {
    enum err err;
    bool lost;
    struct err_info why;
};

struct hand {
    pid_t pid;
    int fd;
    bool busy;
};

struct blob_hands {
    struct smb *like;
    struct hand at[BLOB_HANDS];
    uint64_t given, answered; /* pieces */
};

/* --- in a process of its own --- */

static bool take_order(int fd, struct order *out)
{
    ssize_t n;

    do
        n = recv(fd, out, sizeof(*out), 0);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(*out);
}

static enum err carry_out(struct smb_file *f, const struct order *o, struct err_info *why)
{
    if (o->n == 0)
        return smb_file_close(f, why);
    enum err e = smb_file_seek(f, o->at, why);
    return e ? e : smb_file_write(f, (struct str){ o->bytes, o->n }, why);
}

static void be_a_hand(const struct smb *like, int fd, const char *name)
{
    struct answer a = { .err = ERR_OK };
    struct smb *s = NULL;
    struct smb_file f;
    struct order o;

    /* Ctrl-C is for the parent, which ends the hands when it is done. */
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGTERM, SIG_DFL);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    a.err = smb_connect_like(&s, like, &a.why);
    if (a.err == ERR_OK)
        a.err = smb_file_resume(&f, s, name, 0, &a.why);
    while (take_order(fd, &o)) {
        if (a.err == ERR_OK)
            a.err = carry_out(&f, &o, &a.why);
        a.lost = !s || smb_is_lost(s);
        if (send(fd, &a, sizeof(a), MSG_NOSIGNAL) != (ssize_t)sizeof(a) || o.n == 0)
            break;
    }
    _exit(0); /* nothing of the parent's is closed or written */
}

/* --- the parent --- */

static enum err start_one(struct hand *h, const struct smb *like, const char *name,
                          struct err_info *info)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return err_set(info, ERR_MEMORY, errno, "make a socket");
    pid_t pid = fork();
    if (pid == 0) {
        (void)close(ends[0]); /* the parent's end, by which the parent's end is seen */
        be_a_hand(like, ends[1], name);
    }
    (void)close(ends[1]); /* the hand has it */
    if (pid < 0) {
        (void)close(ends[0]);
        return err_set(info, ERR_MEMORY, errno, "start a process");
    }
    *h = (struct hand){ .pid = pid, .fd = ends[0] };
    return ERR_OK;
}

enum err blob_hands_start(struct blob_hands **out, struct smb *like, const char *name,
                          struct err_info *info)
{
    struct blob_hands *h = calloc(1, sizeof(*h));
    enum err e = ERR_OK;

    if (!h)
        return err_set(info, ERR_MEMORY, 0, "hands");
    h->like = like;
    for (size_t i = 0; i < BLOB_HANDS; i++)
        h->at[i].fd = -1;
    for (size_t i = 0; i < BLOB_HANDS && e == ERR_OK; i++)
        e = start_one(&h->at[i], like, name, info);
    if (e)
        blob_hands_free(h);
    else
        *out = h;
    return e;
}

/* Waits for the answer of a hand that is busy. */
static enum err wait_for(struct blob_hands *h, struct hand *one,
                         const struct blob_move *m, struct err_info *info)
{
    struct pollfd p = { .fd = one->fd, .events = POLLIN };
    struct answer a;

    while (poll(&p, 1, LOOK_MS) <= 0)
        if (!blob_move_told(m))
            return err_set(info, ERR_STATE, 0, "it was stopped");
    if (recv(one->fd, &a, sizeof(a), 0) != (ssize_t)sizeof(a))
        a = (struct answer){ .err =
                                 err_set(&a.why, ERR_IO, 0, "a process that sends died"),
                             .why = a.why };
    one->busy = false;
    h->answered++;
    if (a.err && a.lost)
        smb_mark_lost(h->like);
    if (a.err && info)
        *info = a.why;
    return a.err;
}

static enum err give(struct hand *one, const struct order *o, struct err_info *info)
{
    if (send(one->fd, o, sizeof(*o), MSG_NOSIGNAL) != (ssize_t)sizeof(*o))
        return err_set(info, ERR_IO, errno, "hand over a piece");
    one->busy = true;
    return ERR_OK;
}

enum err blob_hands_write(struct blob_hands *h, struct str piece, uint64_t at,
                          const struct blob_move *m, uint64_t *freed,
                          struct err_info *info)
{
    struct hand *one = &h->at[h->given % BLOB_HANDS];
    enum err e = one->busy ? wait_for(h, one, m, info) : ERR_OK;

    if (e == ERR_OK)
        e = give(one, &(struct order){ piece.p, piece.n, at }, info);
    if (e == ERR_OK)
        h->given++;
    *freed = h->answered;
    return e;
}

enum err blob_hands_end(struct blob_hands *h, const struct blob_move *m,
                        struct err_info *info)
{
    enum err e = ERR_OK;

    for (uint64_t i = 0; i < BLOB_HANDS && e == ERR_OK; i++) {
        struct hand *one = &h->at[(h->given + i) % BLOB_HANDS];

        if (one->busy)
            e = wait_for(h, one, m, info);
        if (e == ERR_OK)
            e = give(one, &(struct order){ .n = 0 }, info);
        if (e == ERR_OK)
            e = wait_for(h, one, m, info);
    }
    return e;
}

void blob_hands_free(struct blob_hands *h)
{
    if (!h)
        return;
    for (size_t i = 0; i < BLOB_HANDS; i++) {
        if (h->at[i].fd < 0)
            continue;
        (void)close(h->at[i].fd);
        (void)kill(h->at[i].pid, SIGKILL); /* it may be in a call that takes long */
        while (waitpid(h->at[i].pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    free(h);
}
