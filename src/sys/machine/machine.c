#include "sys/machine/machine.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/mac.h"

/* The value of the first line that begins with `key`, after the separator. */
static void line_value(const char *path, const char *key, char separator, char *out,
                       size_t size)
{
    char line[256];
    FILE *f = fopen(path, "re");

    if (!f)
        return;
    while (fgets(line, sizeof(line), f)) {
        const char *at = strchr(line, separator);

        if (strncmp(line, key, strlen(key)) != 0 || !at)
            continue;
        at += 1 + strspn(at + 1, " \t\"");
        (void)snprintf(out, size, "%.*s", (int)strcspn(at, "\"\n"), at);
        break;
    }
    (void)fclose(f); /* read only */
}

void machine_read(struct machine *out)
{
    struct sysinfo si;
    struct utsname u;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    *out = (struct machine){ .cpus = cpus > 0 ? (uint32_t)cpus : 0 };
    line_value("/proc/cpuinfo", "model name", ':', out->cpu, sizeof(out->cpu));
    line_value("/etc/os-release", "PRETTY_NAME", '=', out->os, sizeof(out->os));
    if (sysinfo(&si) == 0)
        out->memory_mib =
            (uint32_t)((uint64_t)si.totalram * si.mem_unit / (1024ull * 1024ull));
    if (uname(&u) == 0) {
        (void)snprintf(out->arch, sizeof(out->arch), "%s", u.machine);
        (void)snprintf(out->kernel, sizeof(out->kernel), "%s", u.release);
    }
    (void)snprintf(out->version, sizeof(out->version), "%s", REDOUBT_VERSION);
}

static void digest_of(const char *path, char out[17])
{
    static const struct mac_key no_key;
    struct mac mac = { { 0 } };
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    (void)snprintf(out, 17, "missing");
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);

        if (p != MAP_FAILED) {
            mac_of(&mac, &no_key, STR(""), (struct str){ p, (size_t)st.st_size });
            hex_encode(out, mac.bytes, 8);
            (void)munmap(p, (size_t)st.st_size); /* our own mapping */
        }
    }
    if (fd >= 0)
        (void)close(fd); /* read only */
}

void machine_add_program(struct machine *m, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;

    for (uint32_t i = 0; i < m->program_count; i++)
        if (strcmp(m->program[i].name, name) == 0)
            return;
    if (m->program_count == MACHINE_PROGRAMS_MAX)
        return;
    struct machine_program *p = &m->program[m->program_count++];

    (void)snprintf(p->name, sizeof(p->name), "%s", name);
    digest_of(path, p->digest);
}

static void add_quoted(struct text *t, const char *s)
{
    text_add(t, "\"");
    for (; *s; s++) {
        char c = (unsigned char)*s < ' ' || (unsigned char)*s > '~' ? '?' : *s;

        if (c == '"' || c == '\\')
            text_add(t, "\\");
        text_bytes(t, (struct str){ &c, 1 });
    }
    text_add(t, "\"");
}

void machine_json(const struct machine *m, struct text *out)
{
    const struct {
        const char *key, *value;
    } words[] = {
        { "cpu", m->cpu },       { "arch", m->arch },       { "os", m->os },
        { "kernel", m->kernel }, { "version", m->version },
    };

    text_add(out, "{\"cpus\":%u,\"memory_mib\":%u", m->cpus, m->memory_mib);
    for (size_t i = 0; i < LEN(words); i++) {
        text_add(out, ",\"%s\":", words[i].key);
        add_quoted(out, words[i].value);
    }
    text_add(out, ",\"programs\":{");
    for (uint32_t i = 0; i < m->program_count; i++) {
        text_add(out, "%s", i ? "," : "");
        add_quoted(out, m->program[i].name);
        text_add(out, ":\"%s\"", m->program[i].digest);
    }
    text_add(out, "}}");
}
