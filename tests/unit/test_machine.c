/* The description of a machine: complete, bounded, valid JSON whatever the names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/mac.h"
#include "sys/machine/machine.h"

static json_t *as_json(const struct machine *m)
{
    static char buf[MACHINE_JSON_BYTES];
    struct text t;

    text_init(&t, buf, sizeof(buf));
    machine_json(m, &t);
    assert_false(t.cut);
    json_t *j = json_loads(buf, JSON_REJECT_DUPLICATES, NULL);

    assert_non_null(j);
    return j;
}

static void this_machine_describes_itself(void **state)
{
    (void)state;
    struct machine m;

    assert_int_equal(mac_start(), ERR_OK);
    machine_read(&m);
    machine_add_program(&m, "/bin/true");
    machine_add_program(&m, "/nonexistent/program");
    machine_add_program(&m, "/usr/bin/true"); /* there already */
    json_t *j = as_json(&m), *p = json_object_get(j, "programs");

    assert_true(json_integer_value(json_object_get(j, "cpus")) > 0);
    assert_true(json_integer_value(json_object_get(j, "memory_mib")) > 0);
    assert_true(json_string_length(json_object_get(j, "kernel")) > 0);
    assert_int_equal(json_object_size(p), 2);
    assert_int_equal(json_string_length(json_object_get(p, "true")), 16);
    assert_string_equal(json_string_value(json_object_get(p, "program")), "missing");
    json_decref(j);
}

static void different_files_have_different_digests(void **state)
{
    (void)state;
    struct machine m = { 0 };

    machine_add_program(&m, "/bin/true");
    machine_add_program(&m, "/bin/false");
    assert_string_not_equal(m.program[0].digest, m.program[1].digest);
}

static void the_longest_description_fits(void **state)
{
    (void)state;
    struct machine m = { .cpus = UINT32_MAX, .memory_mib = UINT32_MAX };

    memset(m.cpu, '"', sizeof(m.cpu) - 1);
    memset(m.os, '\n', sizeof(m.os) - 1);
    memset(m.kernel, 'k', sizeof(m.kernel) - 1);
    memset(m.version, '\\', sizeof(m.version) - 1);
    m.program_count = MACHINE_PROGRAMS_MAX;
    for (uint32_t i = 0; i < m.program_count; i++) {
        memset(m.program[i].name, '"', sizeof(m.program[i].name) - 3);
        m.program[i].name[0] = (char)('a' + i);
        memset(m.program[i].digest, 'f', 16);
    }
    json_decref(as_json(&m));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(this_machine_describes_itself),
        cmocka_unit_test(different_files_have_different_digests),
        cmocka_unit_test(the_longest_description_fits),
    };

    return cmocka_run_group_tests_name("machine", tests, NULL, NULL);
}
