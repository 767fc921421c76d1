/* The quarantine: nothing lost, nothing left in clear, whatever happens in the middle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/quarantine/quarantine.h"

#define BODY "a harmless text that stands for a threat\n"

struct world {
    char top[64], folder[96], file[96];
    struct quarantine *q;
    struct quarantine_item item, seen;
    struct err_info info;
    unsigned count;
};

static const char *stop_at;

static void die_at(const char *step)
{
    if (strcmp(step, stop_at) == 0)
        _exit(7);
}

static void put_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0640);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    (void)close(fd);
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static void open_it(struct world *w)
{
    if (quarantine_open(w->folder, &w->q, &w->info) != ERR_OK)
        fail_msg("%s", w->info.what);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));

    (void)snprintf(w->top, sizeof(w->top), "/tmp/test_quarantine.XXXXXX");
    if (!mkdtemp(w->top))
        return -1;
    (void)snprintf(w->folder, sizeof(w->folder), "%s/quarantine", w->top);
    (void)snprintf(w->file, sizeof(w->file), "%s/evil", w->top);
    put_text(w->file, BODY);
    open_it(w);
    *state = w;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static int teardown(void **state)
{
    struct world *w = *state;

    quarantine_close(w->q);
    (void)nftw(w->top, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(w);
    return 0;
}

static enum err take(struct world *w)
{
    int fd = open(w->file, O_RDONLY);
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    enum err e = quarantine_take(w->q, w->file, fd, &st, "Own.Test", &w->item, &w->info);
    (void)close(fd);
    return e;
}

static void count_one(void *arg, const struct quarantine_item *item)
{
    struct world *w = arg;

    w->seen = *item;
    w->count++;
}

static unsigned listed(struct world *w)
{
    w->count = 0;
    assert_int_equal(quarantine_list(w->q, count_one, w, &w->info), ERR_OK);
    return w->count;
}

/* Does any file of the folder hold the text? */
static bool in_clear;
static int look_inside(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    char buf[8192];

    (void)at;
    if (kind != FTW_F || st->st_size > (off_t)sizeof(buf))
        return 0;
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, buf, sizeof(buf));
    (void)close(fd);
    in_clear = in_clear || (n > 0 && memmem(buf, (size_t)n, BODY, sizeof(BODY) - 1));
    return 0;
}

static bool is_clear(const char *folder)
{
    in_clear = false;
    assert_int_equal(nftw(folder, look_inside, 8, FTW_PHYS), 0);
    return in_clear;
}

static void a_file_goes_and_comes_back(void **state)
{
    struct world *w = *state;
    struct timespec times[2] = { { 1700000000, 5 }, { 1700000001, 7 } };
    struct stat st;
    char body[128] = "";

    assert_int_equal(chmod(w->file, 04711), 0);
    if (geteuid() == 0)
        assert_int_equal(chown(w->file, 12, 34), 0);
    assert_int_equal(chmod(w->file, 04711), 0);
    assert_int_equal(utimensat(AT_FDCWD, w->file, times, 0), 0);
    assert_int_equal(take(w), ERR_OK);
    assert_false(exists(w->file));
    assert_false(is_clear(w->top));
    assert_int_equal(listed(w), 1);
    assert_string_equal(w->seen.path, w->file);
    assert_string_equal(w->seen.threat, "Own.Test");
    assert_int_equal(w->seen.size, sizeof(BODY) - 1);
    assert_false(quarantine_is_allowed(w->q, w->item.sha256));

    quarantine_close(w->q);
    open_it(w);
    assert_int_equal(quarantine_restore(w->q, &w->seen.id, &w->item, &w->info), ERR_OK);
    assert_int_equal(stat(w->file, &st), 0);
    assert_int_equal(st.st_mode & 07777, 04711);
    assert_int_equal(st.st_mtim.tv_sec, 1700000001);
    assert_int_equal(st.st_mtim.tv_nsec, 7);
    if (geteuid() == 0)
        assert_true(st.st_uid == 12 && st.st_gid == 34);
    int fd = open(w->file, O_RDONLY);
    if (fd >= 0) /* mode 04711 is not for everybody to read */
        assert_int_equal(read(fd, body, sizeof(body)), sizeof(BODY) - 1);
    assert_string_equal(body, fd >= 0 ? BODY : "");
    (void)close(fd);
    assert_int_equal(listed(w), 0);
    assert_true(quarantine_is_allowed(w->q, w->item.sha256));
}

static void a_restore_replaces_nothing(void **state)
{
    struct world *w = *state;

    assert_int_equal(take(w), ERR_OK);
    put_text(w->file, "somebody's new file");
    assert_int_equal(quarantine_restore(w->q, &w->item.id, &w->seen, &w->info),
                     ERR_EXISTS);
    assert_int_equal(listed(w), 1);
    assert_int_equal(unlink(w->file), 0);
    assert_int_equal(quarantine_restore(w->q, &w->item.id, &w->seen, &w->info), ERR_OK);
    assert_int_equal(quarantine_restore(w->q, &w->item.id, &w->seen, &w->info),
                     ERR_NOT_FOUND);
}

static void a_link_is_not_followed(void **state)
{
    struct world *w = *state;
    char real[128], link[160], path[200];
    struct stat st;

    (void)snprintf(real, sizeof(real), "%s/real", w->top);
    (void)snprintf(link, sizeof(link), "%s/link", w->top);
    assert_int_equal(mkdir(real, 0700), 0);
    assert_int_equal(symlink(real, link), 0);
    (void)snprintf(path, sizeof(path), "%s/evil", real);
    put_text(path, BODY);
    int fd = open(path, O_RDONLY);
    assert_int_equal(fstat(fd, &st), 0);
    (void)snprintf(path, sizeof(path), "%s/evil", link);
    assert_int_not_equal(
        quarantine_take(w->q, path, fd, &st, "Own.Test", &w->item, &w->info), ERR_OK);
    (void)close(fd);
    assert_true(exists(path));
    assert_int_equal(listed(w), 0);
}

/* The name was given to another file after the scan: that one stays. */
static void another_file_in_its_place_stays(void **state)
{
    struct world *w = *state;
    struct stat st;
    char aside[128];

    int fd = open(w->file, O_RDONLY);
    assert_int_equal(fstat(fd, &st), 0);
    (void)snprintf(aside, sizeof(aside), "%s/aside", w->top);
    assert_int_equal(rename(w->file, aside), 0);
    put_text(w->file, "innocent");
    assert_int_equal(
        quarantine_take(w->q, w->file, fd, &st, "Own.Test", &w->item, &w->info),
        ERR_STATE);
    (void)close(fd);
    assert_true(exists(w->file) && exists(aside));
    assert_int_equal(listed(w), 0);
}

static void a_file_that_changed_is_not_taken(void **state)
{
    struct world *w = *state;
    struct stat st;

    int fd = open(w->file, O_RDONLY);
    assert_int_equal(fstat(fd, &st), 0);
    put_text(w->file, BODY "and more");
    assert_int_equal(
        quarantine_take(w->q, w->file, fd, &st, "Own.Test", &w->item, &w->info),
        ERR_STATE);
    (void)close(fd);
    assert_true(exists(w->file));
}

static void crash_at(struct world *w, const char *step, bool restore)
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        stop_at = step;
        quarantine_set_hook(w->q, die_at);
        if (restore)
            _exit(quarantine_restore(w->q, &w->item.id, &w->seen, &w->info) == ERR_OK);
        _exit(take(w) == ERR_OK);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(WEXITSTATUS(status), 7);
}

static void a_crash_loses_nothing(void **state)
{
    static const struct {
        const char *step;
        bool still_there; /* after the recovery */
    } rows[] = { { "written", true }, { "stored", false }, { "removed", false } };
    struct world *w = *state;

    for (size_t i = 0; i < LEN(rows); i++) {
        put_text(w->file, BODY);
        crash_at(w, rows[i].step, false);
        w->count = 0;
        assert_int_equal(quarantine_recover(w->q, count_one, w, &w->info), ERR_OK);
        assert_int_equal(w->count, rows[i].still_there ? 0 : 1);
        assert_int_equal(exists(w->file), rows[i].still_there);
        assert_int_equal(is_clear(w->top), rows[i].still_there);
        if (rows[i].still_there)
            continue;
        assert_int_equal(quarantine_restore(w->q, &w->seen.id, &w->item, &w->info),
                         ERR_OK);
        assert_true(exists(w->file));
    }
    assert_int_equal(listed(w), 0);
}

/* Recovery touches no file that only has the same name. */
static void recovery_leaves_a_new_file(void **state)
{
    struct world *w = *state;

    crash_at(w, "stored", false);
    assert_int_equal(unlink(w->file), 0);
    put_text(w->file, "written after the crash");
    assert_int_equal(quarantine_recover(w->q, count_one, w, &w->info), ERR_OK);
    assert_int_equal(w->count, 1);
    assert_true(exists(w->file));
}

static void a_crashed_restore_is_repeated(void **state)
{
    static const char *const steps[] = { "restored", "back" };
    struct world *w = *state;

    for (size_t i = 0; i < LEN(steps); i++) {
        assert_int_equal(take(w), ERR_OK);
        crash_at(w, steps[i], true);
        assert_int_equal(listed(w), 1);
        assert_int_equal(quarantine_restore(w->q, &w->item.id, &w->seen, &w->info),
                         ERR_OK);
        assert_int_equal(listed(w), 0);
        assert_true(exists(w->file));
    }
}

static void a_damaged_item_is_not_restored(void **state)
{
    struct world *w = *state;
    char path[200], id[UUID_TEXT];
    uint8_t byte;
    struct stat st;

    assert_int_equal(take(w), ERR_OK);
    uuid_format(id, &w->item.id);
    (void)snprintf(path, sizeof(path), "%s/%s", w->folder, id);
    int fd = open(path, O_RDWR);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(pread(fd, &byte, 1, st.st_size - 3), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, st.st_size - 3), 1);
    assert_int_equal(quarantine_restore(w->q, &w->item.id, &w->seen, &w->info),
                     ERR_CORRUPT);
    assert_false(exists(w->file));
    assert_int_equal(ftruncate(fd, st.st_size - 30), 0);
    assert_int_equal(quarantine_restore(w->q, &w->item.id, &w->seen, &w->info),
                     ERR_CORRUPT);
    (void)close(fd);
    assert_int_equal(quarantine_delete(w->q, &w->item.id, &w->seen, &w->info), ERR_OK);
    assert_false(exists(path));
}

static void bounds_delete_the_oldest(void **state)
{
    struct world *w = *state;
    struct quarantine_bounds b = { .before_us = 0, .max_bytes = 100, .need = 40 };
    struct uuid first;

    assert_int_equal(take(w), ERR_OK);
    first = w->item.id;
    put_text(w->file, BODY);
    assert_int_equal(take(w), ERR_OK); /* 2 x 41 bytes */
    w->count = 0;
    assert_int_equal(quarantine_trim(w->q, &b, count_one, w, &w->info), ERR_OK);
    assert_int_equal(w->count, 1);
    assert_true(uuid_eq(&w->seen.id, &first));
    b.before_us = INT64_MAX;
    assert_int_equal(quarantine_trim(w->q, &b, count_one, w, &w->info), ERR_OK);
    assert_int_equal(listed(w), 0);
    b.need = 101;
    assert_int_equal(quarantine_trim(w->q, &b, count_one, w, &w->info), ERR_LIMIT);
}

static void a_full_disk_leaves_the_file(void **state)
{
    struct world *w = *state;
    char small[128];
    struct quarantine *q;
    struct stat st;

    if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        skip(); /* only root can make a small disk */
    (void)snprintf(small, sizeof(small), "%s/small", w->top);
    assert_int_equal(mkdir(small, 0700), 0);
    assert_int_equal(mount("tmpfs", small, "tmpfs", 0, "size=64k"), 0);
    assert_int_equal(quarantine_open(small, &q, &w->info), ERR_OK);
    int fd = open(w->file, O_RDWR);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(quarantine_take(q, w->file, fd, &st, "Own.Test", &w->item, &w->info),
                     ERR_FULL);
    assert_true(exists(w->file));
    assert_int_equal(ftruncate(fd, 1000), 0); /* and there is room again */
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(quarantine_take(q, w->file, fd, &st, "Own.Test", &w->item, &w->info),
                     ERR_OK);
    (void)close(fd);
    quarantine_close(q);
    assert_int_equal(umount(small), 0);
}

static void a_key_for_all_to_read_is_refused(void **state)
{
    struct world *w = *state;
    char path[128];
    struct quarantine *q;

    (void)snprintf(path, sizeof(path), "%s/key", w->folder);
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(quarantine_open(w->folder, &q, &w->info), ERR_CORRUPT);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_file_goes_and_comes_back),       T(a_restore_replaces_nothing),
        T(a_link_is_not_followed),           T(another_file_in_its_place_stays),
        T(a_file_that_changed_is_not_taken), T(a_crash_loses_nothing),
        T(recovery_leaves_a_new_file),       T(a_crashed_restore_is_repeated),
        T(a_damaged_item_is_not_restored),   T(bounds_delete_the_oldest),
        T(a_full_disk_leaves_the_file),      T(a_key_for_all_to_read_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
