/* What the Activation Proxy remembers of devices, as a table of rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "app/activation/devices.h"

static struct uuid device(uint32_t n)
{
    struct uuid id = { 0 };

    memcpy(id.bytes, &n, sizeof(n));
    return id;
}

static void a_device_may_ask_twice_its_minute_at_once_and_then_at_its_rate(void **state)
{
    struct devices *d = devices_new(30);
    struct uuid id = device(1);
    uint32_t wait = 0, n = 0;
    uint64_t now = 1000000;

    (void)state;
    while (devices_ask(d, devices_get(d, &id, now), now, &wait) == DEVICES_MAY)
        n++;
    assert_int_equal(n, 60);
    assert_int_equal(wait, 3); /* one in two seconds, rounded up */
    for (n = 0; n < 10; n++)
        assert_int_equal(devices_ask(d, devices_get(d, &id, now), now, &wait),
                         DEVICES_TOO_OFTEN); /* told once */
    /* Who goes on asking all the time gets what is due all the same. */
    for (uint64_t end = now + 20000, got = 0; now <= end; now++) {
        got += devices_ask(d, devices_get(d, &id, now), now, &wait) == DEVICES_MAY;
        if (now == end)
            assert_in_range(got, 9, 10);
    }
    struct uuid other = device(2);
    assert_int_equal(devices_ask(d, devices_get(d, &other, now), now, &wait),
                     DEVICES_MAY);
    devices_free(d);
}

static void a_flood_is_told_again_only_after_it_was_over(void **state)
{
    struct devices *d = devices_new(60);
    struct uuid id = device(1);
    uint64_t now = 5000;
    uint32_t wait, told = 0;

    (void)state;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 500; i++)
            told += devices_ask(d, devices_get(d, &id, now), now, &wait) ==
                    DEVICES_FLOOD_BEGINS;
        now += 10000; /* not long enough to be over */
    }
    assert_int_equal(told, 1);
    now += 3600000;
    for (int i = 0; i < 500; i++)
        told +=
            devices_ask(d, devices_get(d, &id, now), now, &wait) == DEVICES_FLOOD_BEGINS;
    assert_int_equal(told, 2);
    devices_free(d);
}

static void leases_are_remembered_until_they_are_forgotten(void **state)
{
    struct devices *d = devices_new(30);
    struct uuid id = device(9);
    struct device_record *r = devices_get(d, &id, 1);

    (void)state;
    assert_false(devices_has_lease(d, r));
    r->expires = 77;
    devices_lease(d, r);
    r = devices_get(d, &id, 2);
    assert_true(devices_has_lease(d, r));
    assert_int_equal(r->expires, 77);
    devices_forget(d);
    assert_false(devices_has_lease(d, devices_get(d, &id, 3)));
    devices_free(d);
}

static void more_devices_than_there_is_room_for_do_not_mix(void **state)
{
    const uint32_t many = 2u * DEVICES_SETS * DEVICES_WAYS;
    struct devices *d = devices_new(30);
    uint32_t kept = 0;

    (void)state;
    for (uint32_t n = 0; n < many; n++) {
        struct uuid id = device(n);
        struct device_record *r = devices_get(d, &id, n + 1);
        assert_false(devices_has_lease(d, r)); /* nobody else's */
        r->issued = n;
        devices_lease(d, r);
    }
    for (uint32_t n = many; n-- > 0;) {
        struct uuid id = device(n);
        struct device_record *r = devices_get(d, &id, many + 1);
        if (!devices_has_lease(d, r))
            continue;
        kept++;
        assert_int_equal(r->issued, n);
    }
    assert_in_range(kept, many / 8, many / 2);
    devices_free(d);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_may_ask_twice_its_minute_at_once_and_then_at_its_rate),
        cmocka_unit_test(a_flood_is_told_again_only_after_it_was_over),
        cmocka_unit_test(leases_are_remembered_until_they_are_forgotten),
        cmocka_unit_test(more_devices_than_there_is_room_for_do_not_mix),
    };

    return cmocka_run_group_tests_name("licence_devices", tests, NULL, NULL);
}
