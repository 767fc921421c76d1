/*
 * master: the processes of the Administration Server as one service of the node.
 *
 * Purpose   Starts `workers` workers and, where it is installed beside this program, the
 *           manager; is to each of them what the node daemon is to a service, and to the
 *           node daemon one service: ready when all are, in a role when all are, alive
 *           while all are.
 * Safety    A role is acknowledged only after every process has.  When one of them ends,
 *           all end, and then this one with status 1.  When this one ends, the kernel
 *           kills them.
 * Threads   one thread
 * Source    docs/services.md
 */
#ifndef APP_SERVER_MASTER_H
#define APP_SERVER_MASTER_H

#include "sys/conf/conf.h"

enum { MASTER_TICKET_KEY = 64 };

/* What the environment holds of the contract with the node daemon; before service_start. */
struct master_env {
    int lease_fd;      /* -1: none; owned */
    char watchdog[24]; /* WATCHDOG_USEC, or "" */
};
void master_env_take(struct master_env *env);

struct redoubt_service;
/* Runs until told to stop; the exit status of the program.  conf_path: for the children. */
int master_run(struct redoubt_service *service, const struct master_env *env,
               const struct conf *conf, const char *conf_path);

/* The key that seals TLS tickets, as the master gave it to this worker; false: none. */
bool master_ticket_key(uint8_t key[MASTER_TICKET_KEY]);

#endif
