#include "sys/smb/smb_context.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * The whole configuration of the library.  Names are resolved by the system only, and not
 * remembered.  Signing costs nothing measurable next to the round trip, and without it
 * somebody on the wire could answer "epoch n+1 does not exist".
 */
static const char configuration[] = "[global]\n"
                                    "disable netbios = yes\n"
                                    "name resolve order = host\n"
                                    "name cache timeout = 0\n"
                                    "client signing = required\n"
                                    "client use spnego = yes\n"
                                    "client NTLMv2 auth = yes\n"
                                    "client min protocol = SMB2_02\n"
                                    "client max protocol = SMB3_11\n"
                                    "log level = 0\n";

static void no_log(void *arg, int level, const char *text)
{
    (void)arg, (void)level, (void)text;
}

static void log_on(SMBCCTX *ctx, const char *server, const char *share, char *domain,
                   int domain_n, char *user, int user_n, char *password, int password_n)
{
    const struct smb *s = smbc_getOptionUserData(ctx);

    (void)server, (void)share;
    if (s->cred.domain[0])
        (void)snprintf(domain, (size_t)domain_n, "%s", s->cred.domain);
    (void)snprintf(user, (size_t)user_n, "%s", s->cred.user);
    (void)snprintf(password, (size_t)password_n, "%s", s->cred.password);
}

/* libsmbclient asks this before each use of a connection, and makes another one if not. */
static int check_server(SMBCCTX *ctx, SMBCSRV *server)
{
    struct smb *s = smbc_getOptionUserData(ctx);
    int dead = s->check(ctx, server);

    if (dead) {
        s->lost = true;
        s->deaths++;
    }
    return dead;
}

static smbc_add_cached_srv_fn plain_add;

/* libsmbclient keeps each new connection by this before it uses it; refused, it is dropped. */
static int add_server(SMBCCTX *ctx, SMBCSRV *srv, const char *server, const char *share,
                      const char *workgroup, const char *user)
{
    struct smb *s = smbc_getOptionUserData(ctx);

    if (s->pinned) {
        s->lost = true;
        errno = ECONNRESET;
        return 1;
    }
    return plain_add(ctx, srv, server, share, workgroup, user);
}

static bool write_configuration(const char *home)
{
    char path[64];

    (void)snprintf(path, sizeof(path), "%s/.smb", home);
    if (mkdir(path, 0700) < 0)
        return false;
    (void)snprintf(path, sizeof(path), "%s/.smb/smb.conf", home);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    size_t n = sizeof(configuration) - 1;
    bool ok = write(fd, configuration, n) == (ssize_t)n;
    return close(fd) == 0 && ok;
}

static void remove_configuration(const char *home)
{
    char path[64];

    (void)snprintf(path, sizeof(path), "%s/.smb/smb.conf", home);
    (void)unlink(path); /* each may be missing after a failure halfway */
    (void)snprintf(path, sizeof(path), "%s/.smb", home);
    (void)rmdir(path);
    (void)rmdir(home);
}

/* libsmbclient reads its configuration with every context that is made. */
static SMBCCTX *new_context(struct err_info *info)
{
    char home[] = "/tmp/redoubt-smb-XXXXXX", *old = NULL;
    const char *now = getenv("HOME");
    SMBCCTX *ctx = NULL;

    if (!mkdtemp(home)) {
        (void)err_set(info, ERR_IO, errno, "make a folder in /tmp");
        return NULL;
    }
    if (now)
        old = strdup(now);
    if (write_configuration(home) && (old || !now) && setenv("HOME", home, 1) == 0) {
        ctx = smbc_new_context();
        (void)(old ? setenv("HOME", old, 1) : unsetenv("HOME"));
    }
    if (!ctx)
        (void)err_set(info, ERR_IO, errno, "start libsmbclient");
    remove_configuration(home);
    free(old);
    return ctx;
}

/*
 * Contexts that are not in use.  The library leaks some hundred bytes with every one that is
 * made, so they are used again: while a server is down, a node tries to connect many times
 * a second.
 */
static struct {
    SMBCCTX *at[4];
    size_t n;
} idle;

void smb_context_release(SMBCCTX *ctx)
{
    if (!ctx)
        return;
    /* Closes the connections; not 0 if a file is open, which only a broken one can be. */
    bool clean = smbc_getFunctionPurgeCachedServers(ctx)(ctx) == 0;
    if (clean && idle.n < LEN(idle.at))
        idle.at[idle.n++] = ctx;
    else
        (void)smbc_free_context(ctx, 1);
}

enum err smb_context_make(struct smb *s, const struct smb_options *o,
                          struct err_info *info)
{
    static smbc_check_server_fn plain_check;
    const bool used = idle.n > 0;
    SMBCCTX *ctx = used ? idle.at[--idle.n] : new_context(info);

    if (!ctx)
        return ERR_IO;
    smbc_setLogCallback(ctx, NULL, no_log);
    smbc_setDebug(ctx, 0);
    smbc_setOptionUserData(ctx, s);
    smbc_setFunctionAuthDataWithContext(ctx, log_on);
    smbc_setPort(ctx, o->port);
    smbc_setTimeout(ctx, o->timeout_ms < 1000 ? 1000 : (int)o->timeout_ms);
    smbc_setOptionUseKerberos(ctx, 0);
    smbc_setOptionFallbackAfterKerberos(ctx, 0);
    smbc_setOptionUseCCache(ctx, 0);
    smbc_setOptionNoAutoAnonymousLogin(ctx, 1);
    smbc_setOptionOneSharePerServer(ctx, 0);
    smbc_setOptionUrlEncodeReaddirEntries(ctx, 0);
    smbc_setOptionOpenShareMode(ctx, SMBC_SHAREMODE_DENY_NONE);
    smbc_setOptionSmbEncryptionLevel(ctx, o->encrypt ? SMBC_ENCRYPTLEVEL_REQUIRE
                                                     : SMBC_ENCRYPTLEVEL_NONE);
    if (!used && !smbc_init_context(ctx)) {
        int sys = errno;

        (void)smbc_free_context(ctx, 1);
        return err_set(info, ERR_IO, sys, "start libsmbclient");
    }
    if (!plain_check)
        plain_check = smbc_getFunctionCheckServer(ctx);
    s->check = plain_check;
    smbc_setFunctionCheckServer(ctx, check_server);
    if (!plain_add)
        plain_add = smbc_getFunctionAddCachedServer(ctx);
    smbc_setFunctionAddCachedServer(ctx, add_server);
    s->ctx = ctx;
    return ERR_OK;
}
