#include "sys/conf/conf_table.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

/* Reads at most size bytes; a longer file is ERR_LIMIT.  fd is borrowed. */
static enum err read_all(int fd, char *buf, size_t size, size_t *ret_n, int *ret_errno)
{
    size_t n = 0;

    for (;;) {
        ssize_t got = read(fd, buf + n, size - n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            *ret_errno = errno;
            return ERR_IO;
        }
        if (got == 0)
            break;
        n += (size_t)got;
        if (n == size)
            return ERR_LIMIT;
    }
    *ret_n = n;
    return ERR_OK;
}

static const char *words(int number, char *buf, size_t size)
{
    return strerror_r(number, buf, size);
}

static enum err load(const struct conf_schema *schema, const char *path, void *out,
                     struct conf_errors *errors)
{
    char why[96];
    int number = 0;
    size_t n = 0;
    enum err e = ERR_MEMORY;

    memset(errors, 0, sizeof(*errors));
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        number = errno;
        conf_error_add(errors, 0, 0, "cannot be opened: %s",
                       words(number, why, sizeof(why)));
        return number == ENOENT ? ERR_NOT_FOUND : ERR_IO;
    }
    char *buf = malloc(CONF_FILE_BYTES_MAX + 1);

    if (buf)
        e = read_all(fd, buf, CONF_FILE_BYTES_MAX + 1, &n, &number);
    (void)close(fd); /* read only: nothing to lose */
    if (e == ERR_OK)
        e = conf_parse_schema(schema, (struct str){ buf, n }, out, errors);
    else if (e == ERR_LIMIT)
        conf_error_add(errors, 0, 0, "is longer than %u bytes",
                       (unsigned)CONF_FILE_BYTES_MAX);
    else
        conf_error_add(errors, 0, 0, "cannot be read: %s",
                       e == ERR_MEMORY ? "out of memory"
                                       : words(number, why, sizeof(why)));
    free(buf);
    return e == ERR_LIMIT ? ERR_CONFIG : e;
}

enum err conf_load(const char *path, struct conf *out, struct conf_errors *errors)
{
    return load(&conf_schema, path, out, errors);
}

enum err agent_conf_load(const char *path, struct agent_conf *out,
                         struct conf_errors *errors)
{
    return load(&agent_conf_schema, path, out, errors);
}

void conf_errors_print(const struct conf_errors *errors, const char *path, FILE *to)
{
    for (uint32_t i = 0; i < errors->count; i++) {
        const struct conf_error *e = &errors->at[i];

        if (e->line && e->column)
            fprintf(to, "%s:%u:%u: %s\n", path, e->line, e->column, e->text);
        else if (e->line)
            fprintf(to, "%s:%u: %s\n", path, e->line, e->text);
        else
            fprintf(to, "%s: %s\n", path, e->text);
    }
    if (errors->more)
        fprintf(to, "%s: and more errors\n", path);
}

bool conf_load_told(const char *path, struct conf *out)
{
    struct conf_errors *errors = calloc(1, sizeof(*errors));
    enum err e = errors ? conf_load(path, out, errors) : ERR_MEMORY;

    if (errors && e != ERR_OK)
        conf_errors_print(errors, path, stderr);
    free(errors);
    return e == ERR_OK;
}

static enum err denied(struct err_info *info, int number, const char *path)
{
    return err_set(info, number == ENOENT ? ERR_NOT_FOUND : ERR_DENIED, number, "open %s",
                   path);
}

enum err conf_load_key(const char *path, struct mac_key *out, struct err_info *info)
{
    char buf[2 * MAC_KEY_BYTES + 2];
    struct mac_key key;
    struct stat st;
    int number = 0;
    size_t n = 0;
    enum err e = ERR_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return denied(info, errno, path);
    if (fstat(fd, &st) != 0)
        e = err_set(info, ERR_IO, errno, "look at %s", path);
    else if (st.st_mode & (S_IRWXG | S_IRWXO))
        e = err_set(info, ERR_DENIED, 0,
                    "%s can be read by others than its owner: chmod 0600 it, and make a "
                    "new key if anybody may have read it",
                    path);
    else if (read_all(fd, buf, sizeof(buf), &n, &number) != ERR_OK && number != 0)
        e = err_set(info, ERR_IO, number, "read %s", path);
    (void)close(fd); /* read only */
    if (e != ERR_OK)
        return e;
    if (n > 0 && buf[n - 1] == '\n')
        n--;
    if (!hex_decode(key.bytes, sizeof(key.bytes), (struct str){ buf, n }))
        e = err_set(info, ERR_CORRUPT, 0, "%s must hold 64 hex digits and nothing else",
                    path);
    else
        *out = key;
    explicit_bzero(buf, sizeof(buf));
    explicit_bzero(&key, sizeof(key));
    return e;
}

static void check_exec(const struct conf_service *s, struct conf_errors *e)
{
    struct stat st;
    char why[96];

    if (stat(s->exec, &st) != 0)
        conf_error_add(e, 0, 0, "[service %s]: exec %s: %s", s->name, s->exec,
                       words(errno, why, sizeof(why)));
    else if (!S_ISREG(st.st_mode) || access(s->exec, X_OK) != 0)
        conf_error_add(e, 0, 0, "[service %s]: exec %s is not a program that can be run",
                       s->name, s->exec);
}

static void check_user(const struct conf_service *s, struct conf_errors *e)
{
    if (s->user[0] && !getpwnam(s->user))
        conf_error_add(e, 0, 0,
                       "[service %s]: there is no user %s on this machine; the package "
                       "makes redoubt and redoubt-web",
                       s->name, s->user);
}

static void check_private(const char *what, const char *path, struct conf_errors *e)
{
    struct stat st;
    char why[96];

    if (stat(path, &st) != 0)
        conf_error_add(e, 0, 0, "%s %s: %s", what, path, words(errno, why, sizeof(why)));
    else if (st.st_mode & (S_IRWXG | S_IRWXO))
        conf_error_add(e, 0, 0, "%s %s can be read by others: chmod 0600 it", what, path);
}

enum err conf_check_machine(const struct conf *conf, struct conf_errors *errors)
{
    memset(errors, 0, sizeof(*errors));
    check_private("[cluster] key_file", conf->cluster.key_file, errors);
    check_private("[share] credentials", conf->share.credentials, errors);
    if (conf->address.mode == CONF_ADDRESS_VIRTUAL_IP &&
        if_nametoindex(conf->address.interface) == 0)
        conf_error_add(errors, 0, 0, "[address] interface %s does not exist here",
                       conf->address.interface);
    for (uint32_t i = 0; i < conf->service_count; i++) {
        check_exec(&conf->service[i], errors);
        check_user(&conf->service[i], errors);
    }
    if (conf->alert.hook[0] && access(conf->alert.hook, X_OK) != 0)
        conf_error_add(errors, 0, 0, "[alert] hook %s is not a program that can be run",
                       conf->alert.hook);
    return errors->count == 0 ? ERR_OK : ERR_CONFIG;
}
