/* Blobs on a real share and on this disk: whole or not there, whatever breaks meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "smbd.h"
#include "sys/blob/blob.h"

enum { SIZE = 9 * 1024 * 1024 + 123 }; /* some pieces and a bit */

static struct smbd server;
static struct smb_cred cred;
static struct err_info why;
static char folder[] = "/tmp/redoubt-blob-XXXXXX";
static char source[64], store[64];
static struct smb *smb;

static struct smb *connected(const char *share)
{
    const struct smb_options o = {
        .share = share,
        .cred = &cred,
        .min = SMB_DIALECT_2_02,
        .max = SMB_DIALECT_3_11,
        .port = server.port,
        .timeout_ms = 5000,
    };
    struct smb *s = NULL;

    assert_int_equal(smb_connect(&s, &o, &why), ERR_OK);
    return s;
}

/* A file of SIZE bytes that differ everywhere; seed: which ones. */
static int make_source(unsigned seed)
{
    static uint8_t bytes[SIZE];
    uint32_t x = seed * 2654435761u + 1;

    for (size_t i = 0; i < SIZE; i++) {
        x = x * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(x >> 24);
    }
    int fd = open(source, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_true(write(fd, bytes, SIZE) == SIZE);
    return fd;
}

static void share_path(char *out, size_t size, const char *name)
{
    char below[256];

    (void)snprintf(below, sizeof(below), "state/%s", name);
    smbd_path(&server, out, size, below);
}

static bool on_share(const char *name)
{
    char path[512];
    struct stat st;

    share_path(path, sizeof(path), name);
    return stat(path, &st) == 0;
}

/* How many parts lie in upload/, and the path of the last. */
static int parts(char *path, size_t size)
{
    char at[512];
    const struct dirent *d;
    int n = 0;

    share_path(at, sizeof(at), "upload");
    DIR *dir = opendir(at);
    assert_non_null(dir);
    while ((d = readdir(dir)) != NULL)
        if (strstr(d->d_name, ".part")) {
            (void)snprintf(path, size, "%.400s/%.100s", at, d->d_name);
            n++;
        }
    (void)closedir(dir);
    return n;
}

/* The exit code of a command of the shell. */
static int run_shell(const char *command)
{
    int status = -1;
    pid_t pid = fork();

    if (pid == 0) {
        (void)execl("/bin/sh", "sh", "-c", command, NULL);
        _exit(127);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void flip_byte(const char *path, off_t at)
{
    uint8_t c;
    int fd = open(path, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &c, 1, at), 1);
    c ^= 0x40;
    assert_int_equal(pwrite(fd, &c, 1, at), 1);
    (void)close(fd);
}

static int fresh(void **state)
{
    char command[128];

    (void)state;
    smbd_clear(&server);
    (void)snprintf(command, sizeof(command), "rm -rf %s/*", folder);
    assert_int_equal(run_shell(command), 0);
    smb = connected(server.share);
    return 0;
}

static int done(void **state)
{
    (void)state;
    smb_free(smb);
    smb = NULL;
    return 0;
}

/* A blob on the share, and what it is. */
static struct blob put_one(unsigned seed)
{
    struct blob_put put;
    int fd = make_source(seed);

    assert_int_equal(blob_put(smb, fd, NULL, &put, &why), ERR_OK);
    (void)close(fd);
    put.blob.mtime = 1700000000;
    return put.blob;
}

static bool stop_behind(void *arg, uint64_t at, uint64_t total)
{
    const uint64_t *limit = arg;

    assert_true(at <= total && total == SIZE);
    return at < *limit;
}

static void what_is_put_is_there_whole_and_under_its_digest(void **state)
{
    struct blob_put put;
    char path[512], command[700];
    int fd = make_source(1);

    (void)state;
    assert_int_equal(blob_put(smb, fd, NULL, &put, &why), ERR_OK);
    assert_false(put.was_there);
    assert_int_equal(put.resumed, 0);
    assert_true(put.blob.size == SIZE);
    assert_int_equal(parts(path, sizeof(path)), 0);
    share_path(path, sizeof(path), "blob");
    (void)snprintf(command, sizeof(command),
                   "cd %s && echo '%s  %s' | sha256sum -c --status", path,
                   put.blob.id.hex, put.blob.id.hex);
    assert_int_equal(run_shell(command), 0);
    assert_int_equal(blob_share_verify(smb, &put.blob, NULL, &why), ERR_OK);
    assert_int_equal(blob_put(smb, fd, NULL, &put, &why), ERR_OK);
    assert_true(put.was_there);
    (void)close(fd);
}

static void an_empty_file_is_a_blob_too(void **state)
{
    struct blob_put put;
    int fd = open(source, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    (void)state;
    assert_int_equal(blob_put(smb, fd, NULL, &put, &why), ERR_OK);
    assert_int_equal(put.blob.size, 0);
    assert_true(str_is((struct str){ put.blob.id.hex, 8 }, "e3b0c442"));
    put.blob.mtime = 1700000000;
    assert_int_equal(blob_fetch(smb, store, &put.blob, NULL, &why), ERR_OK);
    assert_int_equal(blob_local_verify(store, &put.blob, NULL, &why), ERR_OK);
    (void)close(fd);
}

static void an_upload_that_was_stopped_goes_on_where_it_was(void **state)
{
    uint64_t limit = 4 * 1024 * 1024;
    const struct blob_watch w = { .progress = stop_behind, .arg = &limit };
    struct blob_put put;
    char path[512];
    int fd = make_source(2);

    (void)state;
    assert_int_equal(blob_put(smb, fd, &w, &put, &why), ERR_STATE);
    assert_int_equal(parts(path, sizeof(path)), 1);
    assert_int_equal(blob_put(smb, fd, NULL, &put, &why), ERR_OK);
    assert_int_equal(put.resumed, limit);
    assert_int_equal(parts(path, sizeof(path)), 0);
    assert_int_equal(blob_share_verify(smb, &put.blob, NULL, &why), ERR_OK);
    (void)close(fd);
}

static void a_part_is_used_up_to_its_first_wrong_byte(void **state)
{
    uint64_t limit = 8 * 1024 * 1024;
    const struct blob_watch w = { .progress = stop_behind, .arg = &limit };
    struct blob_put put;
    char path[512];
    int fd = make_source(3);

    (void)state;
    assert_int_equal(blob_put(smb, fd, &w, &put, &why), ERR_STATE);
    assert_int_equal(parts(path, sizeof(path)), 1);
    flip_byte(path, 5 * 1024 * 1024);
    assert_int_equal(blob_put(smb, fd, NULL, &put, &why), ERR_OK);
    assert_int_equal(put.resumed, 4 * 1024 * 1024); /* whole pieces are compared */
    assert_int_equal(blob_share_verify(smb, &put.blob, NULL, &why), ERR_OK);
    (void)close(fd);
}

static bool kill_server_behind(void *arg, uint64_t at, uint64_t total)
{
    const uint64_t *limit = arg;

    (void)total;
    if (at >= *limit && server.pid)
        smbd_kill(&server);
    return true;
}

static void an_upload_cut_off_in_the_middle_leaves_no_blob_and_goes_on(void **state)
{
    uint64_t limit = 4 * 1024 * 1024;
    const struct blob_watch w = { .progress = kill_server_behind, .arg = &limit };
    struct blob_put put;
    int fd = make_source(4);

    (void)state;
    assert_int_not_equal(blob_put(smb, fd, &w, &put, &why), ERR_OK);
    assert_true(smb_is_lost(smb));
    smbd_start(&server, "");
    smb_free(smb);
    smb = connected(server.share);
    assert_int_equal(blob_put(smb, fd, NULL, &put, &why), ERR_OK);
    assert_true(put.resumed >= limit);
    assert_int_equal(blob_share_verify(smb, &put.blob, NULL, &why), ERR_OK);
    (void)close(fd);
}

static void a_full_share_is_refused_before_anything_is_there(void **state)
{
    struct smb *full = connected(server.full);
    struct blob_put put;
    struct blob_left left;
    int fd = make_source(5);

    (void)state;
    assert_int_equal(blob_put(full, fd, NULL, &put, &why), ERR_FULL);
    assert_non_null(strstr(why.what, "KiB free"));
    assert_int_equal(blob_share_clean(full, UINT64_MAX, NULL, NULL, &left, &why), ERR_OK);
    assert_int_equal(left.parts, 0);
    assert_int_equal(left.bytes, 0);
    smb_free(full);
    (void)close(fd);
}

static bool grow_source(void *arg, uint64_t at, uint64_t total)
{
    (void)arg, (void)at, (void)total;
    int fd = open(source, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(write(fd, "x", 1), 1);
    (void)close(fd);
    return true;
}

static void a_file_that_changes_while_it_is_sent_is_refused(void **state)
{
    const struct blob_watch w = { .progress = grow_source };
    struct blob_put put;
    int fd = make_source(6);

    (void)state;
    assert_int_equal(blob_put(smb, fd, &w, &put, &why), ERR_INVALID);
    (void)close(fd);
}

/* In processes of their own: one puts the source and dies in the middle; the others, which
 * have the end of a pipe, do not go on from there before it has. */
static bool die_or_wait(void *arg, uint64_t at, uint64_t total)
{
    const int *its_end = arg;
    char byte;

    if (at < total / 2)
        return true;
    if (*its_end < 0)
        _exit(42);
    return read(*its_end, &byte, 1) == 0;
}

static pid_t putter(int its_end)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    const struct blob_watch w = { die_or_wait, &its_end, 24 * 1024 * 1024 };
    struct smb *s = connected(server.share);
    struct blob_put put;
    int fd = open(source, O_RDONLY | O_CLOEXEC);
    enum err e = blob_put(s, fd, &w, &put, &why);

    if (e)
        fprintf(stderr, "# putter: %s: %s\n", err_name(e), why.what);
    _exit(e == ERR_OK ? 0 : 1);
}

static int ended(pid_t pid)
{
    int status = -1;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void several_who_put_the_same_file_do_not_harm_each_other(void **state)
{
    struct blob_put put;
    char path[512];
    int fd = make_source(7);

    (void)state;
    smb_free(smb); /* a child must not share its connection */
    smb = NULL;
    int end[2];
    assert_int_equal(pipe2(end, O_CLOEXEC), 0);
    pid_t dies = putter(-1);
    (void)close(end[1]); /* now only that one has it */
    pid_t a = putter(end[0]), b = putter(end[0]);
    assert_int_equal(ended(dies), 42);
    assert_int_equal(ended(a), 0);
    assert_int_equal(ended(b), 0);
    (void)close(end[0]);
    smb = connected(server.share);
    assert_int_equal(blob_put(smb, fd, NULL, &put, &why), ERR_OK);
    assert_true(put.was_there);
    assert_int_equal(blob_share_verify(smb, &put.blob, NULL, &why), ERR_OK);
    assert_int_equal(parts(path, sizeof(path)), 0);
    (void)close(fd);
}

static void what_is_fetched_is_verified_and_has_its_time(void **state)
{
    const struct blob b = put_one(8);
    char path[BLOB_PATH];
    struct stat st;

    (void)state;
    assert_int_equal(blob_local_prepare(store, &why), ERR_OK);
    assert_int_equal(blob_local_check(store, &b, &why), ERR_NOT_FOUND);
    assert_int_equal(blob_fetch(smb, store, &b, NULL, &why), ERR_OK);
    assert_int_equal(blob_local_check(store, &b, &why), ERR_OK);
    assert_int_equal(blob_local_verify(store, &b, NULL, &why), ERR_OK);
    assert_true(blob_local_path(store, &b.id, path));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0644);
    assert_int_equal(st.st_mtim.tv_sec, 1700000000);
    assert_int_equal(st.st_mtim.tv_nsec, 0);
}

static void a_fetch_goes_on_and_does_not_trust_what_it_finds(void **state)
{
    uint64_t limit = 4 * 1024 * 1024;
    const struct blob_watch w = { .progress = stop_behind, .arg = &limit };
    const struct blob b = put_one(9);
    char part[256];
    struct stat st;

    (void)state;
    assert_int_equal(blob_fetch(smb, store, &b, &w, &why), ERR_STATE);
    (void)snprintf(part, sizeof(part), "%s/part/%s", store, b.id.hex);
    assert_int_equal(stat(part, &st), 0);
    assert_true((uint64_t)st.st_size == limit);
    flip_byte(part, 1000);
    assert_int_equal(blob_fetch(smb, store, &b, NULL, &why), ERR_OK);
    assert_int_equal(blob_local_verify(store, &b, NULL, &why), ERR_OK);
    assert_int_not_equal(stat(part, &st), 0);
}

static void a_blob_damaged_on_the_share_is_found_and_healed_from_here(void **state)
{
    const struct blob b = put_one(10);
    struct blob_left left;
    char name[128], path[512];

    (void)state;
    assert_int_equal(blob_fetch(smb, store, &b, NULL, &why), ERR_OK);
    (void)snprintf(name, sizeof(name), "blob/%s", b.id.hex);
    share_path(path, sizeof(path), name);
    flip_byte(path, SIZE - 1);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_CORRUPT);
    assert_non_null(strstr(why.what, b.id.hex));
    char other[64];
    (void)snprintf(other, sizeof(other), "%s/other", folder);
    assert_int_equal(blob_fetch(smb, other, &b, NULL, &why), ERR_CORRUPT);
    assert_int_equal(blob_local_check(other, &b, &why), ERR_NOT_FOUND);

    assert_int_equal(blob_share_set_aside(smb, &b.id, &why), ERR_OK);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_NOT_FOUND);
    assert_int_equal(blob_heal_share(smb, store, &b, NULL, &why), ERR_OK);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_OK);
    assert_int_equal(blob_share_clean(smb, 0, NULL, NULL, &left, &why), ERR_OK);
    assert_int_equal(left.bad, 1);
    assert_int_equal(left.removed, 1);
}

static void a_blob_damaged_here_is_found_and_does_not_spread(void **state)
{
    const struct blob b = put_one(11);
    char path[BLOB_PATH];

    (void)state;
    assert_int_equal(blob_fetch(smb, store, &b, NULL, &why), ERR_OK);
    assert_true(blob_local_path(store, &b.id, path));
    flip_byte(path, 77);
    assert_int_equal(blob_local_verify(store, &b, NULL, &why), ERR_CORRUPT);
    assert_int_equal(blob_heal_share(smb, store, &b, NULL, &why), ERR_CORRUPT);
    assert_int_equal(truncate(path, 5), 0);
    assert_int_equal(blob_local_check(store, &b, &why), ERR_CORRUPT);
    assert_int_equal(blob_local_remove(store, &b.id, &why), ERR_OK);
    assert_int_equal(blob_fetch(smb, store, &b, NULL, &why), ERR_OK);
    assert_int_equal(blob_local_verify(store, &b, NULL, &why), ERR_OK);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_OK);
}

static void a_blob_of_another_length_is_replaced_by_a_put(void **state)
{
    const struct blob b = put_one(12);
    char name[128], path[512];

    (void)state;
    (void)snprintf(name, sizeof(name), "blob/%s", b.id.hex);
    share_path(path, sizeof(path), name);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_CORRUPT);
    struct blob again = put_one(12);
    assert_string_equal(again.id.hex, b.id.hex);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_OK);
}

static void putting_a_file_again_heals_a_damaged_blob(void **state)
{
    const struct blob b = put_one(17);
    char name[128], path[512];

    (void)state;
    (void)snprintf(name, sizeof(name), "blob/%s", b.id.hex);
    share_path(path, sizeof(path), name);
    flip_byte(path, SIZE / 2);
    struct blob again = put_one(17);
    assert_string_equal(again.id.hex, b.id.hex);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_OK);
}

static enum err say_known(void *arg, const struct blob_id *id, bool *out,
                          struct err_info *info)
{
    (void)id, (void)info;
    *out = *(bool *)arg;
    return ERR_OK;
}

static enum err say_nothing(void *arg, const struct blob_id *id, bool *out,
                            struct err_info *info)
{
    (void)arg, (void)id, (void)out;
    return err_set(info, ERR_IO, 0, "no answer");
}

static void a_blob_is_removed_only_while_nobody_knows_it(void **state)
{
    const struct blob b = put_one(13);
    bool known = true, removed = true;
    uint64_t size = 0;

    (void)state;
    assert_int_equal(blob_share_remove(smb, &b.id, say_known, &known, &removed, &why),
                     ERR_OK);
    assert_false(removed);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_OK);
    assert_int_equal(blob_share_remove(smb, &b.id, say_nothing, NULL, &removed, &why),
                     ERR_IO);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_OK);
    known = false;
    assert_int_equal(blob_share_remove(smb, &b.id, say_known, &known, &removed, &why),
                     ERR_OK);
    assert_true(removed);
    assert_int_equal(blob_share_size(smb, &b.id, &size, &why), ERR_NOT_FOUND);
}

/* One that ended between renaming and removing. */
static void a_removal_that_was_cut_off_is_settled_later(void **state)
{
    const struct blob b = put_one(14);
    char from[128], to[128];
    struct blob_left left;
    bool known = true;

    (void)state;
    (void)snprintf(from, sizeof(from), "blob/%s", b.id.hex);
    (void)snprintf(to, sizeof(to), "upload/%s.old", b.id.hex);
    assert_int_equal(smb_rename(smb, from, to, &why), ERR_OK);
    assert_int_equal(blob_share_clean(smb, 3600, say_known, &known, &left, &why), ERR_OK);
    assert_int_equal(left.old, 1);
    assert_true(on_share(to)); /* it may still be going on */
    assert_int_equal(blob_share_clean(smb, 0, say_known, &known, &left, &why), ERR_OK);
    assert_int_equal(left.removed, 0);
    assert_int_equal(blob_share_verify(smb, &b, NULL, &why), ERR_OK);
    assert_int_equal(smb_rename(smb, from, to, &why), ERR_OK);
    known = false;
    assert_int_equal(blob_share_clean(smb, 0, say_known, &known, &left, &why), ERR_OK);
    assert_int_equal(left.removed, 1);
    assert_false(on_share(to));
}

struct listed {
    int n;
    uint64_t bytes, age_max;
};

static bool note(void *arg, const struct blob *b, uint64_t age_s)
{
    struct listed *l = arg;

    l->n++;
    l->bytes += b->size;
    l->age_max = age_s > l->age_max ? age_s : l->age_max;
    return true;
}

static void lists_show_blobs_and_nothing_else(void **state)
{
    const struct blob b = put_one(15);
    struct listed share = { 0 }, local = { 0 };
    char path[256];

    (void)state;
    smbd_write(&server, "blob/README", "not one of ours");
    smbd_write(&server, "blob/ABCDEF", "nor this");
    assert_int_equal(blob_share_list(smb, note, &share, &why), ERR_OK);
    assert_int_equal(share.n, 1);
    assert_true(share.bytes == SIZE);
    assert_in_range(share.age_max, 0, 60);
    assert_int_equal(blob_fetch(smb, store, &b, NULL, &why), ERR_OK);
    (void)snprintf(path, sizeof(path), "%s/blob/x", store);
    (void)close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(blob_local_list(store, note, &local, &why), ERR_OK);
    assert_int_equal(local.n, 1);
}

static void only_digests_are_names(void **state)
{
    static const char good[] =
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    static const char *const bad[] = {
        "",
        "../../etc/passwd",
        "e3b0",
        "E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8550",
        "../c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8555",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85\n",
    };
    struct blob_id id, again;
    uint8_t hash[BLOB_HASH_BYTES];

    (void)state;
    for (size_t i = 0; i < LEN(bad); i++)
        assert_false(blob_id_parse(&id, str_of(bad[i])));
    assert_false(blob_id_parse(&id, (struct str){ "e3b0\0", 5 }));
    assert_true(blob_id_parse(&id, str_of(good)));
    blob_id_hash(&id, hash);
    blob_id_of(&again, hash);
    assert_string_equal(again.hex, good);
}

static double seconds(void)
{
    struct timespec t;

    assert_int_equal(clock_gettime(CLOCK_MONOTONIC, &t), 0);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void a_limit_of_the_bandwidth_is_kept(void **state)
{
    const struct blob_watch w = { .bytes_per_s = 12 * 1024 * 1024 };
    const struct blob b = put_one(16);
    double began = seconds();

    (void)state;
    assert_int_equal(blob_fetch(smb, store, &b, &w, &why), ERR_OK);
    assert_true(seconds() - began >= 0.99 * SIZE / (12.0 * 1024 * 1024));
}

static int start(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    (void)snprintf(source, sizeof(source), "%s/source", folder);
    (void)snprintf(store, sizeof(store), "%s/store", folder);
    smbd_init(&server);
    smbd_start(&server, "");
    return smb_cred_load(&cred, server.credentials, &why) == ERR_OK ? 0 : -1;
}

static int end(void **state)
{
    char command[128];

    (void)state;
    smbd_release(&server);
    (void)snprintf(command, sizeof(command), "rm -rf %s", folder);
    return run_shell(command);
}

#define T(f) cmocka_unit_test_setup_teardown(f, fresh, done)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        T(what_is_put_is_there_whole_and_under_its_digest),
        T(an_empty_file_is_a_blob_too),
        T(an_upload_that_was_stopped_goes_on_where_it_was),
        T(a_part_is_used_up_to_its_first_wrong_byte),
        T(an_upload_cut_off_in_the_middle_leaves_no_blob_and_goes_on),
        T(a_full_share_is_refused_before_anything_is_there),
        T(a_file_that_changes_while_it_is_sent_is_refused),
        T(several_who_put_the_same_file_do_not_harm_each_other),
        T(what_is_fetched_is_verified_and_has_its_time),
        T(a_fetch_goes_on_and_does_not_trust_what_it_finds),
        T(a_blob_damaged_on_the_share_is_found_and_healed_from_here),
        T(a_blob_damaged_here_is_found_and_does_not_spread),
        T(a_blob_of_another_length_is_replaced_by_a_put),
        T(putting_a_file_again_heals_a_damaged_blob),
        T(a_blob_is_removed_only_while_nobody_knows_it),
        T(a_removal_that_was_cut_off_is_settled_later),
        T(lists_show_blobs_and_nothing_else),
        T(only_digests_are_names),
        T(a_limit_of_the_bandwidth_is_kept),
    };
    const char *missing = smbd_missing();

    if (missing) {
        (void)printf("1..0 # SKIP %s\n", missing);
        return 0;
    }
    return cmocka_run_group_tests_name("blob", tests, start, end);
}
