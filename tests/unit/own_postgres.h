/*
 * own_postgres: a PostgreSQL server of the test's own, in a temporary folder.
 *
 * Purpose   own_postgres_start() makes a cluster, starts it on a Unix socket, and makes the
 *           role and database `redoubt`.  own_postgres_stop() leaves nothing behind.  The
 *           server dies with the test.
 * Limits    As root it runs as user postgres.  False, with a reason in `why`, where there
 *           is no PostgreSQL: skip then.
 */
#ifndef TESTS_OWN_POSTGRES_H
#define TESTS_OWN_POSTGRES_H

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <libpq-fe.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/str.h"

struct own_postgres {
    char folder[64], bin[128], conninfo[160], super[160];
    const char *why;
    pid_t pid;
};

/* A child that runs argv as user postgres (as root) and dies with the test. */
static inline pid_t own_postgres_spawn(const struct own_postgres *pg, char *const argv[])
{
    pid_t test = getpid(), pid = fork();

    if (pid != 0)
        return pid;
    struct passwd *pw = geteuid() == 0 ? getpwnam("postgres") : NULL;
    if (pw && (initgroups(pw->pw_name, pw->pw_gid) != 0 || setgid(pw->pw_gid) != 0 ||
               setuid(pw->pw_uid) != 0))
        _exit(126);
    (void)prctl(PR_SET_PDEATHSIG, SIGINT); /* for the postmaster: fast shutdown */
    if (getppid() != test || chdir(pg->folder) != 0)
        _exit(126);
    int null = open("/dev/null", O_RDWR);
    (void)dup2(null, 0);
    (void)dup2(null, 1);
    (void)dup2(null, 2);
    (void)setsid(); /* its own session: signals for the whole server reach only it */
    execv(argv[0], argv);
    _exit(127);
}

static inline bool own_postgres_run(const struct own_postgres *pg, char *const argv[])
{
    int status;
    pid_t pid = own_postgres_spawn(pg, argv);

    if (pid < 0)
        return false;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return false;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static inline bool own_postgres_accepts(const struct own_postgres *pg)
{
    for (int i = 0; i < 1600; i++) {
        bool up = PQping(pg->super) == PQPING_OK;
        if (up)
            return true;
        (void)poll(NULL, 0, 25);
    }
    return false;
}

static inline bool own_postgres_launch(struct own_postgres *pg)
{
    char postgres[160], folder[96];

    (void)snprintf(postgres, sizeof(postgres), "%s/postgres", pg->bin);
    (void)snprintf(folder, sizeof(folder), "%s/data", pg->folder);
    char *argv[] = { postgres,
                     (char *)"-D",
                     folder,
                     (char *)"-k",
                     pg->folder,
                     (char *)"-clisten_addresses=",
                     (char *)"-cfsync=off",
                     (char *)"-cshared_buffers=16MB",
                     (char *)"-cmax_connections=40",
                     NULL };
    pg->pid = own_postgres_spawn(pg, argv);
    return pg->pid > 0 && own_postgres_accepts(pg);
}

/* Ends the server: SIGINT closes sessions, SIGQUIT is as a crash. */
static inline void own_postgres_end(struct own_postgres *pg, int sig)
{
    if (pg->pid <= 0)
        return;
    (void)kill(pg->pid, sig);
    (void)kill(pg->pid, SIGCONT);
    while (waitpid(pg->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    pg->pid = 0;
}

static inline void own_postgres_stop(struct own_postgres *pg)
{
    char *argv[] = { (char *)"/bin/rm", (char *)"-rf", pg->folder, NULL };

    own_postgres_end(pg, SIGQUIT);
    if (pg->folder[0])
        (void)own_postgres_run(pg, argv);
}

static inline bool own_postgres_sql(const char *conninfo, const char *sql)
{
    PGconn *c = PQconnectdb(conninfo);
    PGresult *r = PQexec(c, sql);
    ExecStatusType st = PQresultStatus(r);

    if (st != PGRES_COMMAND_OK && st != PGRES_TUPLES_OK)
        fprintf(stderr, "# %s: %s", sql, PQerrorMessage(c));
    PQclear(r);
    PQfinish(c);
    return st == PGRES_COMMAND_OK || st == PGRES_TUPLES_OK;
}

static inline bool own_postgres_find(struct own_postgres *pg)
{
    glob_t g = { 0 };

    bool ok = glob("/usr/lib/postgresql/*/bin", 0, NULL, &g) == 0 &&
              str_copy(pg->bin, sizeof(pg->bin), str_of(g.gl_pathv[g.gl_pathc - 1]));
    globfree(&g);
    return ok;
}

static inline bool own_postgres_start(struct own_postgres *pg)
{
    struct passwd *pw = getpwnam("postgres");
    char initdb[160], folder[96];

    *pg = (struct own_postgres){ .why = "PostgreSQL is not installed" };
    if (!own_postgres_find(pg) || (geteuid() == 0 && !pw))
        return false;
    pg->why = "PostgreSQL does not start here";
    (void)snprintf(pg->folder, sizeof(pg->folder), "/tmp/redoubt-pg-XXXXXX");
    if (!mkdtemp(pg->folder) ||
        (geteuid() == 0 && chown(pg->folder, pw->pw_uid, pw->pw_gid) != 0))
        return false;
    (void)snprintf(initdb, sizeof(initdb), "%s/initdb", pg->bin);
    (void)snprintf(folder, sizeof(folder), "%s/data", pg->folder);
    (void)snprintf(pg->super, sizeof(pg->super), "host=%s dbname=postgres user=root",
                   pg->folder);
    (void)snprintf(pg->conninfo, sizeof(pg->conninfo),
                   "host=%s dbname=redoubt user=redoubt", pg->folder);
    char *argv[] = { initdb,
                     (char *)"-D",
                     folder,
                     (char *)"-Atrust",
                     (char *)"-Uroot",
                     (char *)"-N",
                     (char *)"-EUTF8",
                     (char *)"--locale=C",
                     NULL };
    return own_postgres_run(pg, argv) && own_postgres_launch(pg) &&
           own_postgres_sql(pg->super, "CREATE ROLE redoubt LOGIN") &&
           own_postgres_sql(pg->super, "CREATE DATABASE redoubt OWNER redoubt");
}

#endif
