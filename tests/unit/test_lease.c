/* The lease page: what readers see of what the node daemon writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "redoubt/lease.h"
#include "sys/guard/page.h"

struct fixture {
    struct lease_writer w;
    const struct redoubt_lease_page *page;
};

static struct mono in_ms(int64_t ms)
{
    struct timespec t;

    assert_int_equal(clock_gettime(CLOCK_BOOTTIME, &t), 0);
    return (struct mono){ (uint64_t)((int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000 +
                                     ms * 1000) };
}

static int setup(void **state)
{
    static struct fixture f;

    f = (struct fixture){ 0 };
    assert_int_equal(lease_writer_init(&f.w, NULL), ERR_OK);
    f.page = redoubt_lease_map(f.w.fd);
    assert_non_null(f.page);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    redoubt_lease_unmap(f->page);
    lease_writer_release(&f->w);
    return 0;
}

static void without_a_page_there_is_no_lease(void **state)
{
    uint64_t epoch = 7;

    (void)state;
    assert_false(redoubt_lease_held(NULL, &epoch));
    assert_int_equal(epoch, 7);
    assert_int_equal(redoubt_lease_remaining_ms(NULL), 0);
}

static void a_fresh_page_holds_no_lease(void **state)
{
    struct fixture *f = *state;

    assert_false(redoubt_lease_held(f->page, NULL));
    assert_int_equal(redoubt_lease_remaining_ms(f->page), 0);
}

static void the_lease_is_held_until_the_deadline_only(void **state)
{
    struct fixture *f = *state;
    uint64_t epoch = 0;

    lease_writer_extend(&f->w, 41, in_ms(60000));
    assert_true(redoubt_lease_held(f->page, &epoch));
    assert_int_equal(epoch, 41);
    assert_in_range(redoubt_lease_remaining_ms(f->page), 50000, 60000);
    epoch = 0;
    lease_writer_extend(&f->w, 41, in_ms(-1));
    assert_false(redoubt_lease_held(f->page, &epoch));
    assert_int_equal(epoch, 0);
    assert_int_equal(redoubt_lease_remaining_ms(f->page), 0);
}

static void revoking_ends_it_at_once(void **state)
{
    struct fixture *f = *state;

    lease_writer_extend(&f->w, 41, in_ms(60000));
    lease_writer_revoke(&f->w);
    assert_false(redoubt_lease_held(f->page, NULL));
}

static void nobody_who_gets_the_page_can_write_it(void **state)
{
    struct fixture *f = *state;

    assert_ptr_equal(
        mmap(NULL, REDOUBT_LEASE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, f->w.fd, 0),
        MAP_FAILED);
    assert_int_equal(write(f->w.fd, "x", 1), -1);
    assert_int_equal(ftruncate(f->w.fd, 0), -1);
    assert_int_equal(
        mprotect((void *)(uintptr_t)f->page, REDOUBT_LEASE_BYTES, PROT_WRITE), -1);
}

static void what_is_not_a_lease_page_is_refused(void **state)
{
    int fd = memfd_create("other", MFD_CLOEXEC);

    (void)state;
    assert_null(redoubt_lease_map(-1));
    assert_int_equal(errno, EBADF);
    assert_int_equal(ftruncate(fd, 100), 0);
    assert_null(redoubt_lease_map(fd));
    assert_int_equal(errno, EPROTO);
    assert_int_equal(ftruncate(fd, REDOUBT_LEASE_BYTES), 0);
    assert_null(redoubt_lease_map(fd));
    assert_int_equal(errno, EPROTO);
    (void)close(fd);
}

/* Even epochs get a deadline far ahead, odd ones a past one: whoever sees an odd epoch
 * held has put an old deadline to a new epoch. */
static void an_old_deadline_never_goes_with_a_new_epoch(void **state)
{
    struct fixture *f = *state;
    struct mono far = in_ms(3600000), past = { 1 };
    uint64_t epoch = 0;
    pid_t writer = fork();

    assert_true(writer >= 0);
    if (writer == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint64_t e = 2;; e++)
            lease_writer_extend(&f->w, e,
                                e % 2 == 0 ? mono_after(far, (uint32_t)e) : past);
    }
    uint64_t seen_held = 0, seen_wrong = 0;

    for (int i = 0; i < 100000000 && seen_held < 200000; i++) {
        if (redoubt_lease_held(f->page, &epoch)) {
            seen_held++;
            seen_wrong += epoch % 2;
        }
    }
    assert_int_equal(kill(writer, SIGKILL), 0);
    assert_int_equal(waitpid(writer, NULL, 0), writer);
    assert_int_equal(seen_wrong, 0);
    assert_true(seen_held > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_page_there_is_no_lease),
        cmocka_unit_test_setup_teardown(a_fresh_page_holds_no_lease, setup, teardown),
        cmocka_unit_test_setup_teardown(the_lease_is_held_until_the_deadline_only, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(revoking_ends_it_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_who_gets_the_page_can_write_it, setup,
                                        teardown),
        cmocka_unit_test(what_is_not_a_lease_page_is_refused),
        cmocka_unit_test_setup_teardown(an_old_deadline_never_goes_with_a_new_epoch,
                                        setup, teardown),
    };

    return cmocka_run_group_tests_name("lease", tests, NULL, NULL);
}
