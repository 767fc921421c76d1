#include "app/ctl/installer.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/ctl/run.h"

enum { OPEN_FOLDERS = 16, SCRIPT_BYTES = 8192 };

/* A connection that is cut in the middle leaves half a script: nothing runs before its end. */
static const char script[] =
    "#!/bin/sh\n"
    "# Installs the Network Agent of Redoubt on this Debian system and enrols the "
    "device.\n"
    "# Made by `redoubt package agent`; the package holds a token: do not pass it on.\n"
    "set -eu\n"
    "url='%s'\n"
    "pin='%s'\n"
    "sha256=%s\n"
    "enrolment=/etc/redoubt/enrolment.json\n"
    "\n"
    "fail() {\n"
    "    echo \"redoubt: $*\" >&2\n"
    "    exit 1\n"
    "}\n"
    "\n"
    "install_agent() {\n"
    "    [ \"$(id -u)\" -eq 0 ] || fail 'run it as root: ... | sudo sh'\n"
    "    command -v dpkg >/dev/null || fail 'this is no Debian system: there is no "
    "dpkg'\n"
    "    umask 077\n"
    "    folder=$(mktemp -d)\n"
    "    trap 'rm -rf \"$folder\"' EXIT\n"
    "    deb=$folder/redoubt-agent.deb\n"
    "    curl -fsS -k --pinnedpubkey \"$pin\" -o \"$deb\" \"$url\" ||\n"
    "        fail 'the package could not be downloaded'\n"
    "    echo \"$sha256  $deb\" | sha256sum --check --status ||\n"
    "        fail 'the package is not the one that this script was made for'\n"
    "    umask 022\n"
    "    if command -v apt-get >/dev/null; then\n"
    "        DEBIAN_FRONTEND=noninteractive apt-get -o APT::Sandbox::User=root -qq -y "
    "\\\n"
    "            --reinstall --allow-downgrades --no-install-recommends install \"$deb\" "
    "</dev/null ||\n"
    "            fail 'apt-get could not install the package'\n"
    "    else\n"
    "        dpkg -i \"$deb\" </dev/null || fail 'dpkg could not install the package'\n"
    "    fi\n"
    "    command -v clamd >/dev/null ||\n"
    "        echo 'redoubt: there is no engine here yet: apt-get install clamav-daemon' "
    ">&2\n"
    "    if [ ! -e \"$enrolment\" ]; then\n"
    "        echo 'redoubt: the agent is installed, and this device is enrolled.'\n"
    "    elif [ -d /run/systemd/system ]; then\n"
    "        echo 'redoubt: the agent is installed. It enrols as soon as the server "
    "answers.'\n"
    "    else\n"
    "        echo 'redoubt: the agent is installed, but this device is not enrolled "
    "yet.' "
    ">&2\n"
    "        exit 75\n"
    "    fi\n"
    "}\n"
    "\n"
    "install_agent\n";

/* One word that dpkg-deb says about a package. */
static enum err field(const char *deb, const char *name, char out[INSTALLER_WORD],
                      struct err_info *info)
{
    const char *const argv[] = { "dpkg-deb", "--field", deb, name, NULL };
    struct text t;

    text_init(&t, out, INSTALLER_WORD);
    enum err e = run_program(argv, &t, info);
    if (e != ERR_OK)
        return err_set(info, ERR_INVALID, 0, "%.100s is no Debian package", deb);
    out[strcspn(out, "\n")] = '\0';
    if (t.cut || !out[0] || strpbrk(out, " \t/'\""))
        return err_set(info, ERR_INVALID, 0, "%.100s names no %s", deb, name);
    return ERR_OK;
}

static enum err path(const struct installer *n, const char *name, char *out, size_t size,
                     struct err_info *info)
{
    struct text t;

    text_init(&t, out, size);
    text_add(&t, "%s/%s", n->folder, name);
    return t.cut ? err_set(info, ERR_LIMIT, 0, "the folder's name is too long") : ERR_OK;
}

enum err installer_begin(struct installer *n, const char *base, struct err_info *info)
{
    const char *temporary = getenv("TMPDIR");
    char name[INSTALLER_WORD], root[CONF_PATH + 32];
    const char *const argv[] = { "dpkg-deb", "--raw-extract", base, root, NULL };

    *n = (struct installer){ .folder = "" };
    enum err e = field(base, "Package", name, info);
    if (e == ERR_OK && strcmp(name, "redoubt-agent") != 0)
        e = err_set(info, ERR_INVALID, 0, "%.100s is a package of %.60s", base, name);
    if (e == ERR_OK)
        e = field(base, "Version", n->version, info);
    if (e == ERR_OK)
        e = field(base, "Architecture", n->platform, info);
    if (e != ERR_OK)
        return e;
    (void)snprintf(n->folder, sizeof(n->folder), "%.200s/redoubt-installer.XXXXXX",
                   temporary && temporary[0] ? temporary : "/tmp");
    if (!mkdtemp(n->folder)) {
        e = err_set(info, ERR_IO, errno, "make the folder %.100s", n->folder);
        n->folder[0] = '\0';
        return e;
    }
    e = path(n, "root", root, sizeof(root), info);
    return e == ERR_OK ? run_program(argv, NULL, info) : e;
}

static enum err write_text(const char *name, struct str text, mode_t mode,
                           struct err_info *info)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    enum err e = ERR_OK;

    if (fd < 0)
        return err_set(info, ERR_IO, errno, "create %s", name);
    if (write(fd, text.p, text.n) != (ssize_t)text.n || fchmod(fd, mode) != 0)
        e = err_set(info, ERR_IO, errno, "write %s", name);
    if (close(fd) != 0 && e == ERR_OK)
        e = err_set(info, ERR_IO, errno, "write %s", name);
    return e;
}

/* root/etc/redoubt/enrolment.json, as app/agent/enrol_file.h reads it. */
static enum err put_enrolment(const struct installer *n, const struct installer_brings *b,
                              struct err_info *info)
{
    static const char *const folders[] = { "root/etc", "root/etc/redoubt" };
    char name[CONF_PATH + 64];
    enum err e = ERR_OK;

    for (size_t i = 0; i < LEN(folders) && e == ERR_OK; i++) {
        e = path(n, folders[i], name, sizeof(name), info);
        if (e == ERR_OK && mkdir(name, 0755) != 0 && errno != EEXIST)
            e = err_set(info, ERR_IO, errno, "make %s", name);
        if (e == ERR_OK && chmod(name, 0755) != 0) /* whatever the umask */
            e = err_set(info, ERR_IO, errno, "set the rights of %s", name);
    }
    if (e == ERR_OK)
        e = path(n, "root/etc/redoubt/enrolment.json", name, sizeof(name), info);
    if (e != ERR_OK)
        return e;
    json_t *j =
        json_pack("{s:s, s:s, s:s}", "server", b->server, "token", b->token, "ca", b->ca);
    char *text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
    json_decref(j);
    if (!text)
        return err_set(info, ERR_INVALID, 0, "the address or the token is no text");
    e = write_text(name, str_of(text), 0600, info);
    free(text);
    return e;
}

static enum err digest(struct installer *n, struct err_info *info)
{
    crypto_hash_sha256_state state;
    unsigned char buf[65536], hash[BLOB_HASH_BYTES];
    ssize_t got;
    int fd = open(n->package, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return err_set(info, ERR_IO, errno, "open %s", n->package);
    (void)crypto_hash_sha256_init(&state);
    while ((got = read(fd, buf, sizeof(buf))) > 0)
        (void)crypto_hash_sha256_update(&state, buf, (size_t)got);
    int number = errno;
    (void)close(fd); /* read only */
    (void)crypto_hash_sha256_final(&state, hash);
    blob_id_of(&n->digest, hash);
    return got == 0 ? ERR_OK : err_set(info, ERR_IO, number, "read %s", n->package);
}

enum err installer_pack(struct installer *n, const struct installer_brings *b,
                        struct err_info *info)
{
    char root[CONF_PATH + 32];
    const char *const argv[] = { "dpkg-deb", "--root-owner-group", "--build",
                                 root,       n->package,           NULL };
    enum err e = put_enrolment(n, b, info);

    if (e == ERR_OK)
        e = path(n, "root", root, sizeof(root), info);
    if (e == ERR_OK)
        e = path(n, "redoubt-agent.deb", n->package, sizeof(n->package), info);
    if (e == ERR_OK)
        e = run_program(argv, NULL, info);
    return e == ERR_OK ? digest(n, info) : e;
}

enum err installer_script(struct installer *n, const char *pin, const char *url,
                          struct err_info *info)
{
    char text[SCRIPT_BYTES];
    struct text t;

    if (strpbrk(url, "'\n") || strpbrk(pin, "'\n"))
        return err_set(info, ERR_INVALID, 0, "the link holds a quotation mark");
    text_init(&t, text, sizeof(text));
    text_add(&t, script, url, pin, n->digest.hex);
    enum err e = t.cut ? err_set(info, ERR_LIMIT, 0, "the link is too long")
                       : path(n, "install.sh", n->script, sizeof(n->script), info);
    return e == ERR_OK ? write_text(n->script, (struct str){ t.p, t.n }, 0600, info) : e;
}

static int remove_one(const char *name, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    (void)remove(name); /* best effort */
    return 0;
}

void installer_end(struct installer *n)
{
    if (n->folder[0])
        (void)nftw(n->folder, remove_one, OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS);
    n->folder[0] = '\0';
}
