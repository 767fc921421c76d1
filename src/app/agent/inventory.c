/* inventory: what this device is made of and which packages it has, in 16 KiB at most. */
#include <errno.h>
#include <mntent.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "app/agent/channel.h"
#include "app/agent/files.h"
#include "app/agent/worker.h"

enum {
    PACKAGES_S = 30,
    PACKAGES_BYTES = 2 << 20,
    LIST_BYTES = 12 * 1024, /* of names and versions; the event has 16 KiB */
    DISKS_MAX = 16,
};

/* The value behind `key` and a separator at the start of a line; "" if it is not there. */
static void line_value(const char *text, const char *key, char *out, size_t size)
{
    size_t n = strlen(key);

    out[0] = '\0';
    for (const char *at = text; at; at = strchr(at, '\n'), at = at ? at + 1 : NULL) {
        if (strncmp(at, key, n) != 0)
            continue;
        at += n;
        at += strspn(at, " \t:=\"");
        (void)snprintf(out, size, "%.*s", (int)strcspn(at, "\"\n"), at);
        return;
    }
}

static void from_file(const char *path, const char *key, char *out, size_t size)
{
    static char text[256 * 1024];
    size_t n;

    out[0] = '\0';
    if (file_load(path, text, sizeof(text), &n, NULL) == ERR_OK)
        line_value(text, key, out, size);
}

static json_t *system_part(void)
{
    char name[128];
    struct utsname u = { 0 };

    (void)uname(&u);
    from_file("/etc/os-release", "PRETTY_NAME", name, sizeof(name));
    return json_pack("{s:o,s:o,s:o,s:o}", "name", channel_text(name, sizeof(name)),
                     "kernel", channel_text(u.release, sizeof(u.release)), "arch",
                     channel_text(u.machine, sizeof(u.machine)), "host",
                     channel_text(u.nodename, sizeof(u.nodename)));
}

static json_t *cpu_part(void)
{
    char model[128];

    from_file("/proc/cpuinfo", "model name", model, sizeof(model));
    return json_pack("{s:o,s:I}", "model", channel_text(model, sizeof(model)), "count",
                     (json_int_t)sysconf(_SC_NPROCESSORS_ONLN));
}

static bool is_listed(const json_t *disks, const char *device)
{
    const json_t *d;
    size_t i;

    json_array_foreach(disks, i,
                       d) if (strcmp(job_text(d, "device"), device) == 0) return true;
    return false;
}

static json_t *disks_part(void)
{
    json_t *disks = json_array();
    FILE *f = setmntent("/proc/self/mounts", "r");
    struct mntent m;
    struct statvfs fs;
    char buf[4096];

    while (f && json_array_size(disks) < DISKS_MAX &&
           getmntent_r(f, &m, buf, sizeof(buf))) {
        if ((m.mnt_fsname[0] != '/' && strcmp(m.mnt_type, "overlay") != 0) ||
            is_listed(disks, m.mnt_fsname) || statvfs(m.mnt_dir, &fs) != 0 ||
            fs.f_blocks == 0)
            continue;
        (void)json_array_append_new(
            disks,
            json_pack("{s:o,s:o,s:o,s:I,s:I}", "device", channel_text(m.mnt_fsname, 100),
                      "mount", channel_text(m.mnt_dir, 100), "type",
                      channel_text(m.mnt_type, 32), "mib",
                      (json_int_t)(fs.f_blocks * fs.f_frsize >> 20), "free_mib",
                      (json_int_t)(fs.f_bavail * fs.f_frsize >> 20)));
    }
    if (f)
        (void)endmntent(f);
    return disks;
}

/* As many packages as fit, and how many there are. */
static json_t *list_packages(char *text)
{
    json_t *list = json_array();
    size_t used = 0, count = 0;
    char *save = NULL;

    for (char *line = strtok_r(text, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        size_t n = strnlen(line, 200) + 3; /* quotes and comma */

        count++;
        if (used + n > LIST_BYTES)
            continue;
        used += n;
        (void)json_array_append_new(list, channel_text(line, 200));
    }
    return json_pack("{s:I,s:I,s:o}", "count", (json_int_t)count, "left_out",
                     (json_int_t)(count - json_array_size(list)), "list", list);
}

static json_t *packages_part(struct worker *w)
{
    char *argv[] = { (char[]){ "dpkg-query" }, (char[]){ "-W" },
                     (char[]){ "-f=${Package} ${Version}\\n" }, NULL };
    struct command c = { argv, PACKAGES_S, malloc(PACKAGES_BYTES), PACKAGES_BYTES, true };
    int code = 0;
    json_t *out = NULL;

    if (c.out && command_run(w, &c, &code, NULL) == ERR_OK && code == 0)
        out = list_packages(c.out);
    free(c.out);
    return out ? out : json_null();
}

enum err inventory_job(struct worker *w, const json_t *job, json_t *out,
                       struct err_info *info)
{
    json_int_t memory = (json_int_t)sysconf(_SC_PHYS_PAGES) *
                        (json_int_t)sysconf(_SC_PAGESIZE) / (1 << 20);
    json_t *data = json_pack("{s:o,s:o,s:I,s:o,s:o}", "system", system_part(), "cpu",
                             cpu_part(), "memory_mib", memory, "disks", disks_part(),
                             "packages", packages_part(w));

    (void)job, (void)out;
    if (!data)
        return err_set(info, ERR_MEMORY, ENOMEM, "inventory");
    if (!w->cancelled)
        worker_event("inventory", "info", data);
    else
        json_decref(data);
    return ERR_OK;
}
