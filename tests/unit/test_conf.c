/* redoubt.conf and agent.conf: parsing, every rule, printing, differences, key files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sys/stat.h>
#include <unistd.h>

#include "sys/conf/conf.h"

/* The least that makes a node. */
#define LEAST                                                                            \
    "[cluster]\nname=demo\nnode=node-a\npeer=node-b\n"                                   \
    "[share]\nstate=//fs/state\n[database]\nconninfo=host=dbms dbname=redoubt\n"         \
    "[address]\ninterface=eth0\nipv4=10.0.0.100/24\n"

static struct conf_errors errors;

static bool parses(const char *text, struct conf *out)
{
    return conf_parse(str_of(text), out, &errors) == ERR_OK;
}

/* Is there an error at this line that holds these words? */
static bool blamed(uint32_t line, const char *words)
{
    for (uint32_t i = 0; i < errors.count; i++)
        if (errors.at[i].line == line && strstr(errors.at[i].text, words))
            return true;
    conf_errors_print(&errors, "seen", stderr);
    return false;
}

static void the_least_file_is_completed(void **state)
{
    (void)state;
    struct conf c;

    assert_true(parses(LEAST, &c));
    assert_string_equal(c.cluster.peer, "node-b");
    assert_string_equal(c.database.conninfo, "host=dbms dbname=redoubt");
    assert_int_equal(c.cluster.profile, CONF_PROFILE_BALANCED);
    assert_int_equal(c.cluster.hold_ms, 1500);
    assert_int_equal(c.cluster.renew_ms, 250);
    assert_int_equal(c.cluster.share_timeout_ms, 1050);
    assert_int_equal(conf_wait_ms(c.cluster.hold_ms, c.cluster.margin_ms), 1695);
    assert_int_equal(c.share.dialect_max, CONF_SMB3_11);
    assert_string_equal(c.address.health_listen, "0.0.0.0:8008");
    assert_int_equal(c.service_count, 0);
}

static void a_profile_fills_what_is_not_overridden(void **state)
{
    (void)state;
    struct conf c;

    assert_true(parses(LEAST "[log]\n", &c));
    assert_true(parses("# comment\n; comment\r\n" LEAST
                       "[service web]\nexec = /bin/true  \nstandby=cold\n",
                       &c));
    assert_string_equal(c.service[0].exec, "/bin/true");
    assert_int_equal(c.service[0].standby, CONF_STANDBY_COLD);
    assert_true(
        parses("[cluster]\nprofile=patient\nhold_ms=20000\nname=demo\nnode=a\npeer"
               "=b\n[share]\nstate=//fs/s\n[database]\nconninfo=\thost=h # x\n"
               "[address]\nmode=none\n",
               &c));
    assert_int_equal(c.cluster.hold_ms, 20000);
    assert_int_equal(c.cluster.renew_ms, 2000);
    assert_int_equal(c.cluster.share_timeout_ms, 15000);
    assert_string_equal(c.database.conninfo, "host=h # x");
}

static void every_error_is_told_with_its_place(void **state)
{
    (void)state;
    struct conf c = { .service_count = 77 };

    assert_false(parses("stray = 1\n"                      /* 1 */
                        "[cluster]\n"                      /* 2 */
                        "name = Demo Cluster\n"            /* 3 */
                        "node = node-a\n"                  /* 4 */
                        "node = node-c\n"                  /* 5 */
                        "hold_ms = soon\n"                 /* 6 */
                        "renew_ms = 5\n"                   /* 7 */
                        "profile = quick\n"                /* 8 */
                        "colour = red\n"                   /* 9 */
                        "just words\n"                     /* 10 */
                        "[share\n"                         /* 11 */
                        "[share]\n"                        /* 12 */
                        "state = \\\\fs\\state\n"          /* 13 */
                        "port = 0\n"                       /* 14 */
                        "[sahre]\n"                        /* 15 */
                        "data = //ignored\n"               /* 16 */
                        "[share]\n"                        /* 17 */
                        "[service a]\n"                    /* 18 */
                        "user = redoubt\n"                 /* 19 */
                        "[service a]\n"                    /* 20 */
                        "[service]\n"                      /* 21 */
                        "[address]\n"                      /* 22 */
                        "  ipv4 = 10.0.0.300/24\n"         /* 23 */
                        "ipv6 = fd00::1\n"                 /* 24 */
                        "interface = eth0123456789abcde\n" /* 25 */
                        "health_listen = ::1:80\n"         /* 26 */
                        "[log this]\n",                    /* 27 */
                        &c));
    assert_int_equal(c.service_count, 77); /* untouched */
    assert_true(blamed(1, "before the first [section]"));
    assert_true(blamed(3, "name must be a name of lower-case"));
    assert_true(blamed(5, "set before, in line 4"));
    assert_true(blamed(6, "hold_ms must be a whole number in ms, not 'soon'"));
    assert_true(blamed(7, "renew_ms must be 20 to 60000 ms, not 5"));
    assert_true(blamed(8, "profile must be fast, balanced or patient, not 'quick'"));
    assert_true(blamed(9, "unknown key colour in [cluster]"));
    assert_true(blamed(10, "neither [section] nor key = value"));
    assert_true(blamed(11, "']' is missing"));
    assert_true(blamed(13, "state must be //server/share"));
    assert_true(blamed(14, "port must be 1 to 65535, not 0"));
    assert_true(blamed(15, "unknown section [sahre]"));
    assert_true(blamed(17, "was there before, in line 12"));
    assert_true(blamed(18, "[service a] needs exec"));
    assert_true(blamed(20, "[service a] was there before, in line 18"));
    assert_true(blamed(21, "the name of a [service NAME]"));
    assert_true(blamed(23, "ipv4 must be an IPv4 address"));
    assert_true(blamed(24, "ipv6 must be an IPv6 address"));
    assert_true(blamed(25, "interface is too long"));
    assert_true(blamed(26, "health_listen must be host:port"));
    assert_true(blamed(27, "[log] takes no name"));
    assert_true(blamed(2, "[cluster] needs peer"));
    assert_true(blamed(0, "[database] needs conninfo"));
    /* Nothing about what was refused is said twice, nothing about line 16. */
    assert_int_equal(errors.count, 23);
    assert_false(errors.more);
    for (uint32_t i = 1; i < errors.count; i++) {
        assert_true(errors.at[i - 1].line <= errors.at[i].line);
        if (errors.at[i].line == 23)
            assert_int_equal(errors.at[i].column, 10);
    }
}

static void rules_between_keys_hold(void **state)
{
    (void)state;
    struct conf c;
    static const struct {
        const char *text, *words;
    } bad[] = {
        { "[cluster]\nname=x\nnode=a\npeer=a\n", "two names" },
        { "[cluster]\nname=x\nnode=a\npeer=b\nhold_ms=450\n", "steps down between" },
        { "[cluster]\nname=x\nnode=a\npeer=b\nhold_ms=690\n", "single late renewal" },
        { "[cluster]\nname=x\nnode=a\npeer=b\nshare_timeout_ms=1500\n",
          "share_timeout_ms 1500 must be less than hold_ms 1500" },
        { "[cluster]\nname=x\nnode=a\npeer=b\npoll_ms=400\n", "quarter" },
        { "[cluster]\nname=x\nnode=a\npeer=b\nmargin_ms=49\n", "50 to" },
        { "[cluster]\nname=x\nnode=Node-A\n", "node must be up to 31" },
        { "[cluster]\nname=x\nnode=a\npeer=b\nhold_ms=60001\n", "to 60000 ms" },
        { "[address]\nmode=virtual-ip\n", "needs interface" },
        { "[address]\ninterface=eth0\n", "needs ipv4 or ipv6" },
        { "[address]\nmode=none\nipv4=1.2.3.4/8\n", "does not go with" },
        { "[address]\nmode=none\nhealth_listen=\n", "no load balancer" },
        { "[share]\nstate=//f/s\ndialect_min=SMB3_00\ndialect_max=SMB2_10\n",
          "newer than" },
        { "[share]\nstate=//f/s\nencrypt=yes\ndialect_max=SMB2_10\n",
          "SMB3_00 or later" },
        { "[share]\nstate=//f/s\ndata=//f/s\n", "same folder" },
        { "[service x]\nexec=/x\nrestart_backoff_ms=20000\n", "exceeds" },
        { "[service x]\nexec=/x\nstart=exec\nstandby=cold\nwatchdog_ms=100\n", "notify" },
        { "[service x]\nexec=/x\nstart=exec\n", "cold or always" },
    };

    for (size_t i = 0; i < LEN(bad); i++) {
        bool found = false;

        assert_false(parses(bad[i].text, &c));
        for (uint32_t k = 0; k < errors.count; k++)
            found |= strstr(errors.at[k].text, bad[i].words) != NULL;
        if (!found)
            fail_msg("no error with '%s'", bad[i].words);
    }
}

static void hostile_files_are_refused(void **state)
{
    (void)state;
    static char big[CONF_FILE_BYTES_MAX + 2];
    struct conf c;

    memset(big, '\n', sizeof(big) - 1);
    assert_false(parses(big, &c));
    assert_true(blamed(0, "is longer than 65536 bytes"));
    memset(big, 'x', sizeof(big));
    for (size_t i = 1; i < CONF_FILE_BYTES_MAX; i += 2)
        big[i] = '\n';
    big[CONF_FILE_BYTES_MAX] = '\0';
    assert_false(parses(big, &c));
    assert_true(errors.more);
    assert_int_equal(errors.count, CONF_ERRORS_MAX);
    assert_int_equal(conf_parse((struct str){ "a\0b", 3 }, &c, &errors), ERR_CONFIG);
    assert_true(blamed(0, "NUL"));
    assert_int_equal(conf_parse((struct str){ NULL, 0 }, &c, &errors), ERR_CONFIG);
}

static void print_to(const struct conf *c, bool with_docs, char *buf, size_t size)
{
    FILE *f = fmemopen(buf, size, "w");

    assert_non_null(f);
    conf_print(c, with_docs, f);
    assert_int_equal(fclose(f), 0);
}

static void what_is_printed_parses_to_the_same(void **state)
{
    (void)state;
    static char text[32768];
    static struct conf a, b;

    assert_true(parses(LEAST "[service s1]\nexec=/a b\narguments=-x \"a # b\" ; c\n"
                             "[service s2]\nexec=/c\nstandby=always\norder=3\n"
                             "[web]\nhttps=\n[alert]\nhook=/h\n",
                       &a));
    for (int docs = 0; docs < 2; docs++) {
        memset(&b, 0x55, sizeof(b));
        print_to(&a, docs, text, sizeof(text));
        assert_true(parses(text, &b));
        assert_memory_equal(&a, &b, sizeof(a));
    }
    assert_true(parses("[cluster]\nname=x\nnode=a\npeer=b\nprofile=fast\nhold_ms=900\n"
                       "share_timeout_ms=300\n[share]\nstate=//f/s\n[database]\n"
                       "conninfo=x\n[address]\nmode=none\n",
                       &a));
    print_to(&a, true, text, sizeof(text));
    assert_non_null(strstr(text, "\nhold_ms = 900\n"));
    assert_non_null(strstr(text, "\n# renew_ms = 100 "));
    assert_true(parses(text, &b));
    assert_memory_equal(&a, &b, sizeof(a));
}

static char changes[512];

static void note_change(void *arg, const struct conf_change *change)
{
    size_t n = strlen(changes);

    (void)arg;
    (void)snprintf(changes + n, sizeof(changes) - n, "%s.%s=%d ", change->section,
                   change->key, change->reload);
}

static void a_reload_knows_what_changed(void **state)
{
    (void)state;
    static struct conf a, b;

    assert_true(parses(LEAST "[service s]\nexec=/a\n[service t]\nexec=/t\n", &a));
    assert_true(parses(LEAST "[service u]\nexec=/u\n[service s]\nexec=/b\n"
                             "[log]\nlevel=debug\n[metrics]\nlisten=\n",
                       &b));
    changes[0] = '\0';
    assert_int_equal(conf_diff(&a, &a, note_change, NULL), 0);
    assert_string_equal(changes, "");
    assert_int_equal(conf_diff(&a, &b, note_change, NULL), 4);
    assert_string_equal(changes, "service s.exec=1 service t.exec=1 service u.exec=1 "
                                 "metrics.listen=1 log.level=0 ");
}

static void the_digest_is_that_of_both_nodes(void **state)
{
    (void)state;
    static struct conf a, b;
    char da[17], db[17];

    assert_int_equal(mac_start(), ERR_OK);
    assert_true(parses(LEAST, &a));
    b = a;
    (void)snprintf(b.cluster.node, CONF_NAME, "node-b");
    (void)snprintf(b.cluster.peer, CONF_NAME, "node-a");
    (void)snprintf(b.address.interface, sizeof(b.address.interface), "ens3");
    conf_digest(&a, da);
    conf_digest(&b, db);
    assert_string_equal(da, db);
    b.cluster.hold_ms++;
    conf_digest(&b, db);
    assert_string_not_equal(da, db);
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static void a_key_must_be_private_and_whole(void **state)
{
    (void)state;
    char path[] = "/tmp/redoubt-key-XXXXXX";
    int fd = mkstemp(path);
    char hex[70];
    struct err_info info;
    struct mac_key key;

    assert_true(fd >= 0);
    assert_int_equal(close(fd), 0);
    memset(hex, 'a', sizeof(hex));
    hex[64] = '\n';
    hex[65] = '\0';
    write_file(path, hex, 0600);
    assert_int_equal(conf_load_key(path, &key, &info), ERR_OK);
    assert_int_equal(key.bytes[31], 0xaa);
    write_file(path, hex, 0640);
    assert_int_equal(conf_load_key(path, &key, &info), ERR_DENIED);
    assert_non_null(strstr(info.what, "chmod 0600"));
    write_file(path, hex, 0604);
    assert_int_equal(conf_load_key(path, &key, &info), ERR_DENIED);
    hex[64] = 'a';
    write_file(path, hex, 0600);
    assert_int_equal(conf_load_key(path, &key, &info), ERR_CORRUPT);
    write_file(path, hex + 10, 0600);
    assert_int_equal(conf_load_key(path, &key, &info), ERR_CORRUPT);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(conf_load_key(path, &key, &info), ERR_NOT_FOUND);
}

static void addresses_are_split(void **state)
{
    (void)state;
    char host[16];
    uint16_t port;
    struct conf_ip ip;

    assert_int_equal(conf_listen_split("[fd00::1]:80", host, sizeof(host), &port),
                     ERR_OK);
    assert_string_equal(host, "fd00::1");
    assert_int_equal(port, 80);
    assert_int_equal(conf_listen_split("fd00::1:80", host, sizeof(host), &port),
                     ERR_INVALID);
    assert_int_equal(conf_listen_split("h:65536", host, sizeof(host), &port),
                     ERR_INVALID);
    assert_int_equal(conf_listen_split("h:", host, sizeof(host), &port), ERR_INVALID);
    assert_int_equal(conf_listen_split(":1", host, sizeof(host), &port), ERR_INVALID);
    assert_int_equal(conf_ip_parse("10.0.0.1/33", &ip), ERR_INVALID);
    assert_int_equal(conf_ip_parse("fd00::1/64", &ip), ERR_OK);
    assert_int_equal(ip.prefix, 64);
    assert_int_equal(ip.bytes[15], 1);
}

static void the_machine_is_compared_with_the_file(void **state)
{
    (void)state;
    static struct conf c;

    assert_true(parses(LEAST "[service a]\nexec=/bin/true\nuser=root\n"
                             "[service b]\nexec=/etc\nuser=no-such-user\n"
                             "[service c]\nexec=/nonexistent/c\n",
                       &c));
    (void)snprintf(c.cluster.key_file, CONF_PATH, "/nonexistent/key");
    (void)snprintf(c.address.interface, sizeof(c.address.interface), "none0");
    assert_int_equal(conf_check_machine(&c, &errors), ERR_CONFIG);
    assert_true(blamed(0, "key_file /nonexistent/key"));
    assert_true(blamed(0, "interface none0 does not exist"));
    assert_true(blamed(0, "[service b]: exec /etc is not a program"));
    assert_true(blamed(0, "[service b]: there is no user no-such-user"));
    assert_true(blamed(0, "[service c]: exec /nonexistent/c: No such file"));
    for (uint32_t i = 0; i < errors.count; i++)
        assert_null(strstr(errors.at[i].text, "[service a]"));
}

static void the_agent_has_its_own_file(void **state)
{
    (void)state;
    struct agent_conf a;

    assert_int_equal(
        agent_conf_parse(STR("[agent]\nserver=10.0.0.100:13000\n"), &a, &errors), ERR_OK);
    assert_int_equal(a.agent.report_ms, 10000);
    assert_string_equal(a.agent.clamd, "/run/clamav/clamd.ctl");
    assert_int_equal(
        agent_conf_parse(STR("[agent]\ndevice_id=X\n[cluster]\n"), &a, &errors),
        ERR_CONFIG);
    assert_true(blamed(1, "needs server"));
    assert_true(blamed(2, "device_id must be a UUID"));
    assert_true(blamed(3, "unknown section [cluster]"));
}

static void a_file_that_is_not_there_says_so(void **state)
{
    (void)state;
    struct conf c;

    assert_int_equal(conf_load("/nonexistent/redoubt.conf", &c, &errors), ERR_NOT_FOUND);
    assert_true(blamed(0, "cannot be opened"));
    assert_int_equal(conf_load("/dev/zero", &c, &errors), ERR_CONFIG);
    assert_true(blamed(0, "longer than"));
}

static void a_service_is_found_by_name_or_by_the_address_of_the_cluster(void **state)
{
    static struct conf c;
    char out[64];

    (void)state;
    assert_false(conf_address_of(&c, "[::]:8061", out, sizeof(out)));
    (void)snprintf(c.address.ipv6, sizeof(c.address.ipv6), "fd00::1/64");
    assert_true(conf_address_of(&c, "[::]:8061", out, sizeof(out)));
    assert_string_equal(out, "[fd00::1]:8061");
    (void)snprintf(c.address.ipv4, sizeof(c.address.ipv4), "10.0.0.1/24");
    assert_true(conf_address_of(&c, "0.0.0.0:80", out, sizeof(out)));
    assert_string_equal(out, "10.0.0.1:80");
    (void)snprintf(c.trust.names, sizeof(c.trust.names), "redoubt.example, other");
    assert_true(conf_address_of(&c, "[::]:8061", out, sizeof(out)));
    assert_string_equal(out, "redoubt.example:8061");
    assert_false(conf_address_of(&c, "", out, sizeof(out)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_file_is_completed),
        cmocka_unit_test(a_profile_fills_what_is_not_overridden),
        cmocka_unit_test(every_error_is_told_with_its_place),
        cmocka_unit_test(rules_between_keys_hold),
        cmocka_unit_test(hostile_files_are_refused),
        cmocka_unit_test(what_is_printed_parses_to_the_same),
        cmocka_unit_test(a_reload_knows_what_changed),
        cmocka_unit_test(the_digest_is_that_of_both_nodes),
        cmocka_unit_test(a_key_must_be_private_and_whole),
        cmocka_unit_test(addresses_are_split),
        cmocka_unit_test(the_machine_is_compared_with_the_file),
        cmocka_unit_test(the_agent_has_its_own_file),
        cmocka_unit_test(a_file_that_is_not_there_says_so),
        cmocka_unit_test(a_service_is_found_by_name_or_by_the_address_of_the_cluster),
    };

    return cmocka_run_group_tests_name("conf", tests, NULL, NULL);
}
