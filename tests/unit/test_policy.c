/* Policies: what a document may say, what comes of it, and what is said of errors.
 * tests/contract/test_groups.py holds many more settings against the DBMS. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "core/policy/policy.h"

static struct policy policy, other;
static struct policy_errors errors;
static char text[2 * POLICY_DOCUMENT_MAX];

static const struct row {
    const char *json;
    const char *path, *why; /* of the first error; NULL: it is good */
    uint32_t more;          /* errors behind it */
} documents[] = {
    { "{}", NULL, NULL, 0 },
    { " { } ", NULL, NULL, 0 },
    { "{\"engine.threads\":64}", NULL, NULL, 0 },
    { "{\"engine.threads\":65}", "engine.threads", "must be a whole number from 1 to 64",
      0 },
    { "{\"engine.threads\":0}", "engine.threads", "must be a whole number from 1 to 64",
      0 },
    { "{\"engine.threads\":1}", NULL, NULL, 0 },
    { "{\"engine.threads\":18446744073709551618}", "engine.threads",
      "must be a whole number from 1 to 64", 0 },
    { "{\"engine.threads\":1e1}", "engine.threads", "must be a whole number from 1 to 64",
      0 },
    { "{\"engine.threads\":3,\"engine.threads\":4}", "engine.threads", "is there twice",
      0 },
    { "{\"a.newer.server\":{\"may\":[\"say\"]}}", NULL, NULL, 0 },
    { "{\"engine.threads\":{\"value\":3}}", "engine.threads",
      "must be a whole number from 1 to 64", 0 },
    { "{\"onaccess.mode\":\"block\"}", NULL, NULL, 0 },
    { "{\"onaccess.mode\":\"bloc\"}", "onaccess.mode",
      "must be one of: off, notify, block", 0 },
    { "{\"onaccess.mode\":\"notify|block\"}", "onaccess.mode",
      "must be one of: off, notify, block", 0 },
    { "{\"status.threat\":\"criticall\"}", "status.threat",
      "must be one of: ok, warning, critical", 0 },
    { "{\"exclusions.paths\":[\"/a\\u0041\"]}", "exclusions.paths",
      "may not contain control characters, \" or \\", 0 },
    { "{\"exclusions.paths\":[\"/a\",\"/b/..\"]}", "exclusions.paths",
      "must be an absolute path without \"..\"", 0 },
    { "{\"exclusions.paths\":[\"/a/../b\"]}", "exclusions.paths",
      "must be an absolute path without \"..\"", 0 },
    { "{\"exclusions.paths\":[\"/a/...\",\"/..a\"]}", NULL, NULL, 0 },
    { "{\"exclusions.paths\":{}}", "exclusions.paths", "must be a list of texts", 0 },
    { "{\"update.source\":\"\"}", NULL, NULL, 0 },
    { "{\"update.source\":\"cluster\"}", NULL, NULL, 0 },
    { "{\"update.source\":\"file:///x\"}", "update.source",
      "must begin with http:// or https:// and have no blanks", 0 },
    { "{\"engine.threads\":0,\"onaccess.mode\":1,\"scan.one_filesystem\":0}",
      "engine.threads", "must be a whole number from 1 to 64", 2 },
    { "", "", "must be an object of settings", 0 },
    { "[]", "", "must be an object of settings", 0 },
    { "{\"engine.threads\":3", "", "must be an object of settings", 0 },
    { "{\"engine.threads\":3}x", "", "must be an object of settings", 0 },
    { "{\"a\":[[[[[[[[1]]]]]]]]}", "", "must be an object of settings", 0 },
};

static void document_holds(void **state)
{
    const struct row *row = *state;
    enum err e;

    memset(&policy, 0x5a, sizeof(policy));
    memcpy(&other, &policy, sizeof(policy));
    e = policy_parse(&policy, str_of(row->json), &errors);
    if (!row->why) {
        assert_int_equal(e, ERR_OK);
        assert_int_equal(errors.count, 0);
        return;
    }
    assert_int_equal(e, ERR_INVALID);
    assert_int_equal(errors.count, 1 + row->more);
    assert_string_equal(errors.at[0].path, row->path);
    assert_string_equal(errors.at[0].why, row->why);
    assert_memory_equal(&policy, &other, sizeof(policy));
    assert_int_equal(policy_parse(&policy, str_of(row->json), NULL), ERR_INVALID);
}

static void defaults_are_valid_and_in_range(void **state)
{
    (void)state;
    policy_defaults(&policy);
    assert_int_equal(policy.engine_max_file_size_mib, 100);
    assert_int_equal(policy.onaccess_mode, POLICY_ONACCESS_NOTIFY);
    assert_int_equal(policy.onaccess_paths.count, 2);
    assert_string_equal(policy.onaccess_paths.at[1], "/tmp");
    assert_string_equal(policy.update_source, "");
    assert_true(policy.quarantine_enabled);
    assert_false(policy.engine_detect_pua);
    assert_int_equal(policy.status_threat, POLICY_CRITICAL);
    assert_int_equal(policy.status_realtime_off, POLICY_WARNING);
    assert_int_equal(policy.status_licence_missing, POLICY_OK);
    for (int i = 0; i < POLICY_SETTINGS; i++) {
        const struct policy_setting *s = &policy_catalogue[i];
        char json[200];

        (void)snprintf(json, sizeof(json), "{\"%s\":%s}", s->key, s->def);
        assert_int_equal(policy_validate_settings(str_of(json), &errors), ERR_OK);
        assert_true(s->min <= s->max && s->doc[0] != '\0');
    }
}

static void what_is_missing_has_its_default(void **state)
{
    (void)state;
    memset(&policy, 0x5a, sizeof(policy));
    assert_int_equal(policy_parse(&policy, STR("{\"scan.cpu_percent\":7}"), NULL),
                     ERR_OK);
    policy_defaults(&other);
    other.scan_cpu_percent = 7;
    assert_memory_equal(&policy, &other, sizeof(policy));
}

static void a_document_is_read_as_it_was_written(void **state)
{
    struct text t;

    (void)state;
    policy_defaults(&policy);
    policy.onaccess_mode = POLICY_ONACCESS_BLOCK;
    policy.engine_threads = 64;
    policy.scan_one_filesystem = false;
    policy.exclusions_paths.count = 2;
    (void)snprintf(policy.exclusions_paths.at[0], POLICY_ITEM_MAX, "/a b");
    (void)snprintf(policy.exclusions_paths.at[1], POLICY_ITEM_MAX, "/\xc3\xa9");
    (void)snprintf(policy.update_source, POLICY_ITEM_MAX, "https://m/x");
    text_init(&t, text, sizeof(text));
    policy_document(&policy, &t);
    assert_non_null(strstr(text, "\"exclusions.paths\":[\"/a b\", \"/\xc3\xa9\"],"
                                 "\"onaccess.mode\":\"block\""));
    assert_int_equal(policy_parse(&other, (struct str){ t.p, t.n }, &errors), ERR_OK);
    assert_memory_equal(&policy, &other, sizeof(policy));
}

static void fill(struct policy_list *list, const char *head)
{
    list->count = POLICY_LIST_MAX;
    for (int i = 0; i < POLICY_LIST_MAX; i++) {
        memset(list->at[i], 'x', POLICY_ITEM_MAX);
        memcpy(list->at[i], head, strlen(head));
        list->at[i][POLICY_ITEM_MAX] = '\0';
    }
}

static void the_longest_document_fits(void **state)
{
    struct text t;

    (void)state;
    policy_defaults(&policy);
    fill(&policy.exclusions_paths, "/");
    fill(&policy.onaccess_paths, "/");
    fill(&policy.scan_quick_paths, "/");
    fill(&policy.update_custom_urls, "https://");
    memset(policy.update_source, 'x', POLICY_ITEM_MAX);
    memcpy(policy.update_source, "http://", 7);
    text_init(&t, text, POLICY_DOCUMENT_MAX);
    policy_document(&policy, &t);
    assert_false(t.cut);
    assert_int_equal(policy_parse(&other, (struct str){ t.p, t.n }, &errors), ERR_OK);
    assert_memory_equal(&policy, &other, sizeof(policy));

    memset(text, ' ', sizeof(text));
    memcpy(text, "{}", 2);
    assert_int_equal(
        policy_parse(&other, (struct str){ text, POLICY_DOCUMENT_MAX }, NULL), ERR_OK);
    assert_int_equal(
        policy_parse(&other, (struct str){ text, POLICY_DOCUMENT_MAX + 1 }, &errors),
        ERR_INVALID);
    assert_string_equal(errors.at[0].why, "is too long");
}

static const struct row settings[] = {
    { "{\"engine.threads\":3}", NULL, NULL, 0 },
    { "{\"engine.threads\":{\"value\":3}}", NULL, NULL, 0 },
    { "{\"engine.threads\":{\"locked\":true,\"value\":3}}", NULL, NULL, 0 },
    { "{\"engine.threads\":{\"locked\":true}}", "engine.threads", "has no \"value\"", 0 },
    { "{\"engine.threads\":{\"locked\":\"yes\",\"value\":3}}", "engine.threads",
      "\"locked\" must be true or false", 0 },
    { "{\"engine.threads\":{\"value\":3,\"value\":4}}", "engine.threads",
      "may only have \"value\" and \"locked\"", 0 },
    { "{\"engine.threads\":{\"value\":3,\"x\":4}}", "engine.threads",
      "may only have \"value\" and \"locked\"", 0 },
    { "{\"engine.threads\":{\"value\":99}}", "engine.threads",
      "must be a whole number from 1 to 64", 0 },
    { "{\"engine.thread\":3}", "engine.thread", "there is no such setting", 0 },
};

static void settings_hold(void **state)
{
    const struct row *row = *state;
    enum err e = policy_validate_settings(str_of(row->json), &errors);

    assert_int_equal(e, row->why ? ERR_INVALID : ERR_OK);
    assert_int_equal(errors.count, row->why ? 1 : 0);
    if (row->why) {
        assert_string_equal(errors.at[0].path, row->path);
        assert_string_equal(errors.at[0].why, row->why);
    }
}

static void errors_are_counted_beyond_those_that_are_told(void **state)
{
    struct text t;

    (void)state;
    text_init(&t, text, sizeof(text));
    text_add(&t, "{\"%0300d\":1", 0);
    for (int i = 1; i < POLICY_ERRORS_MAX + 3; i++)
        text_add(&t, ",\"k%d\":1", i);
    text_add(&t, "}");
    assert_int_equal(policy_validate_settings((struct str){ t.p, t.n }, &errors),
                     ERR_INVALID);
    assert_int_equal(errors.count, POLICY_ERRORS_MAX);
    assert_int_equal(errors.unsaid, 3);
    assert_int_equal(strlen(errors.at[0].path), POLICY_KEY_MAX);
    assert_int_equal(policy_validate_settings(STR("{}"), &errors), ERR_OK);
    assert_int_equal(errors.count + errors.unsaid, 0);

    text_init(&t, text, sizeof(text));
    text_add(&t, "{\"%099d\xc3\xa9\":1}", 0); /* a character at the cut */
    assert_int_equal(policy_validate_settings((struct str){ t.p, t.n }, &errors),
                     ERR_INVALID);
    assert_int_equal(strlen(errors.at[0].path), POLICY_KEY_MAX - 1);
}

static void add_row(struct CMUnitTest tests[], char names[][40], size_t *n,
                    CMUnitTestFunction holds, const struct row *row)
{
    (void)snprintf(names[*n], 40, "%s %zu is %s",
                   holds == document_holds ? "document" : "text", *n,
                   row->why ? "refused" : "good");
    tests[*n] = (struct CMUnitTest){ .name = names[*n],
                                     .test_func = holds,
                                     .initial_state = (void *)(uintptr_t)row };
    (*n)++;
}

int main(void)
{
    static const struct CMUnitTest singles[] = {
        cmocka_unit_test(defaults_are_valid_and_in_range),
        cmocka_unit_test(what_is_missing_has_its_default),
        cmocka_unit_test(a_document_is_read_as_it_was_written),
        cmocka_unit_test(the_longest_document_fits),
        cmocka_unit_test(errors_are_counted_beyond_those_that_are_told),
    };
    static char names[LEN(documents) + LEN(settings)][40];
    struct CMUnitTest tests[LEN(names) + LEN(singles)];
    size_t n = 0;

    for (size_t i = 0; i < LEN(documents); i++)
        add_row(tests, names, &n, document_holds, &documents[i]);
    for (size_t i = 0; i < LEN(settings); i++)
        add_row(tests, names, &n, settings_hold, &settings[i]);
    for (size_t i = 0; i < LEN(singles); i++)
        tests[n++] = singles[i];
    return cmocka_run_group_tests_name("policy", tests, NULL, NULL);
}
