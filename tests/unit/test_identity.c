/*
 * app/agent/identity: renewal, trial, rollback, a new identity; with files in a folder.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <gnutls/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "app/agent/identity.h"
#include "app/agent/identity_files.h"

static const struct uuid own = { { 1 } }, clone = { { 2 } };

static struct {
    char folder[64];
    struct conf_agent conf;
    struct ca *ca;
    struct ca_pem ca_crt, ca_key;
    struct identity *i;
    struct ca_pem asked; /* the last request */
    uint32_t requests, changes;
    int64_t now;
} t;

static void on_request(void *arg, struct str csr)
{
    (void)arg;
    t.requests++;
    t.asked.n = csr.n;
    memcpy(t.asked.text, csr.p, csr.n);
}

static void on_changed(void *arg)
{
    (void)arg;
    t.changes++;
}

/* What the manager would answer to a request. */
static struct ca_pem issued(const struct ca_pem *csr, const struct uuid *id,
                            uint32_t days)
{
    struct ca_csr *r = NULL;
    struct ca_issued out;

    assert_int_equal(ca_csr_check(ca_pem_str(csr), &r, NULL), ERR_OK);
    assert_int_equal(ca_sign_device(t.ca, r, id, days, &out, NULL), ERR_OK);
    ca_csr_free(r);
    return out.pem;
}

static enum err open_identity(void)
{
    const struct identity_hooks hooks = { .request = on_request, .changed = on_changed };
    struct err_info why = { .what = "" };
    enum err e = identity_new(&t.conf, &hooks, &t.i, &why);

    if (e != ERR_OK)
        print_message("%s\n", why.what);
    return e;
}

static void enrolled(uint32_t days)
{
    struct ca_pem key, csr;

    assert_int_equal(ca_key_new(&key, NULL), ERR_OK);
    assert_int_equal(ca_csr_new(ca_pem_str(&key), "host", NULL, &csr, NULL), ERR_OK);
    struct ca_pem crt = issued(&csr, &own, days);
    assert_int_equal(identity_write(t.conf.key, ca_pem_str(&key), 0600, NULL), ERR_OK);
    assert_int_equal(identity_write(t.conf.certificate, ca_pem_str(&crt), 0644, NULL),
                     ERR_OK);
    assert_int_equal(identity_write(t.conf.ca, ca_pem_str(&t.ca_crt), 0644, NULL),
                     ERR_OK);
}

static int make(void **state)
{
    (void)state;
    memset(&t, 0, sizeof(t));
    (void)snprintf(t.folder, sizeof(t.folder), "/tmp/redoubt-identity-XXXXXX");
    assert_non_null(mkdtemp(t.folder));
    (void)snprintf(t.conf.certificate, CONF_PATH, "%s/in/device.pem", t.folder);
    (void)snprintf(t.conf.key, CONF_PATH, "%s/in/device.key", t.folder);
    (void)snprintf(t.conf.ca, CONF_PATH, "%s/in/ca.pem", t.folder);
    assert_int_equal(ca_create("Test", &t.ca_crt, &t.ca_key, NULL), ERR_OK);
    assert_int_equal(ca_load(ca_pem_str(&t.ca_crt), ca_pem_str(&t.ca_key), &t.ca, NULL),
                     ERR_OK);
    t.now = time(NULL);
    enrolled(90);
    return 0;
}

static int drop(void **state)
{
    static const char *const names[] = { "device.pem", "device.key", "ca.pem",
                                         "device.pem.new", "device.key.new" };
    char path[128];
    (void)state;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        (void)snprintf(path, sizeof(path), "%s/in/%s", t.folder, names[i]);
        (void)unlink(path);
    }
    (void)snprintf(path, sizeof(path), "%s/in", t.folder);
    (void)rmdir(path);
    (void)rmdir(t.folder);
    identity_free(t.i);
    ca_free(t.ca);
    return 0;
}

static const int64_t day = 86400;

static bool there(const char *path)
{
    return access(path, F_OK) == 0;
}

static struct ca_certificate stored(void)
{
    struct ca_certificate c;

    assert_int_equal(identity_load(&t.conf, &c, NULL), ERR_OK);
    return c;
}

static bool stored_is(const struct uuid *id)
{
    struct ca_certificate c = stored();

    return uuid_eq(&c.device, id);
}

/* A renewal up to the point where the new certificate is on trial. */
static struct ca_pem on_trial(void)
{
    assert_int_equal(open_identity(), ERR_OK);
    identity_accepted(t.i, t.now + 61 * day);
    assert_int_equal(t.requests, 1);
    struct ca_pem crt = issued(&t.asked, &own, 90);
    assert_int_equal(identity_offered(t.i, ca_pem_str(&crt), NULL), ERR_OK);
    assert_int_equal(t.changes, 1);
    return crt;
}

static void an_identity_is_read(void **state)
{
    struct stat st;
    (void)state;

    assert_int_equal(open_identity(), ERR_OK);
    assert_true(uuid_eq(identity_device(t.i), &own));
    assert_int_equal(strlen(identity_instance(t.i)), IDENTITY_INSTANCE - 1);
    assert_string_equal(identity_files(t.i).key, t.conf.key);
    assert_int_equal(stat(t.conf.key, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void without_an_identity_there_is_none(void **state)
{
    struct ca_pem key;
    (void)state;

    assert_int_equal(unlink(t.conf.certificate), 0);
    assert_int_equal(open_identity(), ERR_CONFIG);
    /* The key of somebody else. */
    enrolled(90);
    assert_int_equal(ca_key_new(&key, NULL), ERR_OK);
    assert_int_equal(identity_write(t.conf.key, ca_pem_str(&key), 0600, NULL), ERR_OK);
    assert_int_equal(open_identity(), ERR_CONFIG);
}

static void it_is_renewed_at_two_thirds_of_its_life(void **state)
{
    (void)state;
    assert_int_equal(open_identity(), ERR_OK);
    identity_tick(t.i, t.now + 80 * day); /* not connected */
    identity_accepted(t.i, t.now + 59 * day);
    assert_int_equal(t.requests, 0);
    identity_tick(t.i, t.now + 61 * day);
    assert_int_equal(t.requests, 1);
    struct ca_pem first = t.asked;
    identity_tick(t.i, t.now + 61 * day + IDENTITY_REPEAT_S - 1);
    assert_int_equal(t.requests, 1);
    identity_tick(t.i, t.now + 61 * day + IDENTITY_REPEAT_S);
    assert_int_equal(t.requests, 2);
    assert_string_equal(first.text, t.asked.text);
    /* Another connection: what was asked on the last may be lost. */
    identity_lost(t.i, false, t.now + 61 * day + 100);
    identity_tick(t.i, t.now + 61 * day + 101);
    assert_int_equal(t.requests, 2);
    identity_accepted(t.i, t.now + 61 * day + 102);
    assert_int_equal(t.requests, 3);
}

static void a_new_certificate_is_tried_and_then_kept(void **state)
{
    struct ca_certificate before = stored();
    (void)state;
    struct ca_pem crt = on_trial();

    assert_string_equal(identity_files(t.i).certificate + strlen(t.conf.certificate),
                        ".new");
    assert_string_equal(stored().serial, before.serial);
    identity_lost(t.i, false, t.now + 61 * day);
    identity_accepted(t.i, t.now + 1 * day); /* the clock is right again */
    assert_string_not_equal(stored().serial, before.serial);
    assert_string_equal(identity_files(t.i).certificate, t.conf.certificate);
    assert_int_equal(identity_offered(t.i, ca_pem_str(&crt), NULL), ERR_EXISTS);
    identity_tick(t.i, t.now + 59 * day);
    struct identity_status s;
    identity_status(t.i, &s);
    assert_false(s.trying || s.asking);
    assert_string_equal(s.trouble, "");
}

static void a_certificate_that_is_refused_is_dropped(void **state)
{
    struct ca_certificate before = stored();
    char path[CONF_PATH + 8];
    (void)state;

    (void)on_trial();
    for (int i = 0; i < IDENTITY_TRIES - 1; i++)
        identity_lost(t.i, true, t.now + 61 * day);
    identity_lost(t.i, false, t.now + 61 * day); /* nobody there: says nothing of it */
    assert_int_equal(t.changes, 1);
    identity_lost(t.i, true, t.now + 61 * day);
    assert_int_equal(t.changes, 2);
    assert_string_equal(identity_files(t.i).certificate, t.conf.certificate);
    assert_string_equal(stored().serial, before.serial);
    (void)snprintf(path, sizeof(path), "%s.new", t.conf.key);
    assert_false(there(path));
    identity_accepted(t.i, t.now + 61 * day + 1);
    assert_int_equal(t.requests, 1); /* not again at once */
    identity_tick(t.i, t.now + 61 * day + IDENTITY_PAUSE_S);
    assert_int_equal(t.requests, 2);
}

/* Of the key of a request and by our authority, but for the clone. */
static struct ca_pem of_another_device(const struct ca_pem *request)
{
    static const char name[] = "urn:uuid:02000000-0000-0000-0000-000000000000";
    const struct ca_pem *in[] = { request, &t.ca_crt, &t.ca_key };
    gnutls_datum_t pem[3];
    gnutls_x509_crt_t crt, ca;
    gnutls_x509_crq_t crq;
    gnutls_x509_privkey_t key;
    struct ca_pem out = { 0 };
    size_t n = sizeof(out.text) - 1;

    for (size_t i = 0; i < 3; i++)
        pem[i] = (gnutls_datum_t){ (unsigned char *)(uintptr_t)in[i]->text,
                                   (unsigned)in[i]->n };
    assert_true(gnutls_x509_crt_init(&crt) >= 0);
    assert_true(gnutls_x509_crt_init(&ca) >= 0);
    assert_true(gnutls_x509_crq_init(&crq) >= 0);
    assert_true(gnutls_x509_privkey_init(&key) >= 0);
    assert_true(gnutls_x509_crq_import(crq, &pem[0], GNUTLS_X509_FMT_PEM) >= 0);
    assert_true(gnutls_x509_crt_import(ca, &pem[1], GNUTLS_X509_FMT_PEM) >= 0);
    assert_true(gnutls_x509_privkey_import(key, &pem[2], GNUTLS_X509_FMT_PEM) >= 0);
    assert_true(gnutls_x509_crt_set_crq(crt, crq) >= 0);
    assert_true(gnutls_x509_crt_set_version(crt, 3) >= 0);
    assert_true(gnutls_x509_crt_set_serial(crt, "abc", 3) >= 0);
    assert_true(gnutls_x509_crt_set_activation_time(crt, t.now) >= 0);
    assert_true(gnutls_x509_crt_set_expiration_time(crt, t.now + 86400) >= 0);
    assert_true(gnutls_x509_crt_set_subject_alt_name(
                    crt, GNUTLS_SAN_URI, name, sizeof(name) - 1, GNUTLS_FSAN_SET) >= 0);
    assert_true(gnutls_x509_crt_sign2(crt, ca, key, GNUTLS_DIG_SHA256, 0) >= 0);
    assert_true(gnutls_x509_crt_export(crt, GNUTLS_X509_FMT_PEM, out.text, &n) >= 0);
    out.n = n;
    gnutls_x509_crt_deinit(crt);
    gnutls_x509_crt_deinit(ca);
    gnutls_x509_crq_deinit(crq);
    gnutls_x509_privkey_deinit(key);
    return out;
}

static void foreign_certificates_are_not_tried(void **state)
{
    struct err_info why = { .what = "" };
    struct ca_pem crt, key, csr, other_crt, other_key;
    struct ca *other = NULL, *ours = t.ca;
    (void)state;

    assert_int_equal(open_identity(), ERR_OK);
    assert_int_equal(ca_key_new(&key, NULL), ERR_OK);
    assert_int_equal(ca_csr_new(ca_pem_str(&key), "", &own, &csr, NULL), ERR_OK);
    crt = issued(&csr, &own, 90);
    assert_int_equal(identity_offered(t.i, ca_pem_str(&crt), &why),
                     ERR_DENIED); /* unasked */
    identity_accepted(t.i, t.now + 61 * day);
    assert_int_equal(identity_offered(t.i, ca_pem_str(&crt), &why),
                     ERR_DENIED); /* its key */
    crt = of_another_device(&t.asked);
    assert_int_equal(identity_offered(t.i, ca_pem_str(&crt), &why),
                     ERR_DENIED); /* its id */
    assert_non_null(strstr(why.what, "another device"));
    assert_int_equal(ca_create("Other", &other_crt, &other_key, NULL), ERR_OK);
    assert_int_equal(
        ca_load(ca_pem_str(&other_crt), ca_pem_str(&other_key), &other, NULL), ERR_OK);
    t.ca = other;
    crt = issued(&t.asked, &own, 90);
    t.ca = ours;
    ca_free(other);
    assert_int_equal(identity_offered(t.i, ca_pem_str(&crt), &why), ERR_DENIED);
    assert_int_equal(identity_offered(t.i, STR("rubbish"), &why), ERR_CORRUPT);
    assert_int_equal(t.changes, 0);
}

static void a_clone_takes_its_new_identity(void **state)
{
    struct uuid named;
    struct ca_csr *r = NULL;
    (void)state;

    assert_int_equal(open_identity(), ERR_OK);
    identity_accepted(t.i, t.now);
    identity_reassigned(t.i, &own, t.now); /* that is what it is */
    assert_int_equal(t.requests, 0);
    identity_reassigned(t.i, &clone, t.now);
    identity_reassigned(t.i, &clone, t.now + 1);
    assert_int_equal(t.requests, 1);
    assert_int_equal(ca_csr_check(ca_pem_str(&t.asked), &r, NULL), ERR_OK);
    assert_int_equal(ca_csr_device(r, &named), ERR_OK);
    assert_true(uuid_eq(&named, &clone));
    ca_csr_free(r);
    struct ca_pem crt = issued(&t.asked, &clone, 90);
    assert_int_equal(identity_offered(t.i, ca_pem_str(&crt), NULL), ERR_OK);
    assert_true(uuid_eq(identity_device(t.i), &clone));
    assert_true(stored_is(&own));
    identity_lost(t.i, false, t.now);
    identity_accepted(t.i, t.now);
    assert_true(stored_is(&clone));
    assert_true(uuid_eq(identity_device(t.i), &clone));
}

static void a_commit_that_was_broken_off_is_completed(void **state)
{
    char path[CONF_PATH + 8];
    struct ca_certificate before = stored();
    (void)state;

    (void)on_trial();
    (void)snprintf(path, sizeof(path), "%s.new", t.conf.key);
    assert_int_equal(rename(path, t.conf.key), 0); /* and then the power fails */
    identity_free(t.i);
    t.i = NULL;
    assert_int_equal(open_identity(), ERR_OK);
    assert_string_not_equal(stored().serial, before.serial);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_identity_is_read, make, drop),
        cmocka_unit_test_setup_teardown(without_an_identity_there_is_none, make, drop),
        cmocka_unit_test_setup_teardown(it_is_renewed_at_two_thirds_of_its_life, make,
                                        drop),
        cmocka_unit_test_setup_teardown(a_new_certificate_is_tried_and_then_kept, make,
                                        drop),
        cmocka_unit_test_setup_teardown(a_certificate_that_is_refused_is_dropped, make,
                                        drop),
        cmocka_unit_test_setup_teardown(foreign_certificates_are_not_tried, make, drop),
        cmocka_unit_test_setup_teardown(a_clone_takes_its_new_identity, make, drop),
        cmocka_unit_test_setup_teardown(a_commit_that_was_broken_off_is_completed, make,
                                        drop),
    };

    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}
