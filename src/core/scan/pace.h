/*
 * pace: how far a scan is, and how long it must rest.
 *
 * Units     us of wall and processor time; percent of one processor, 0 or over 99: no limit
 * Threads   any; pure
 * Tests     tests/unit/test_scan.c
 */
#ifndef CORE_SCAN_PACE_H
#define CORE_SCAN_PACE_H

#include <stdint.h>

enum { PACE_REST_MAX_MS = 2000 };

/* 0..99: 100 is said by the end of the scan alone.  total may turn out too small. */
uint32_t pace_percent(uint64_t done, uint64_t total);

/*
 * pace_rest_ms - after `used_us` of processor time in `wall_us`, so long a rest makes it
 * `percent` of one processor; at most PACE_REST_MAX_MS.
 */
uint32_t pace_rest_ms(uint64_t wall_us, uint64_t used_us, uint32_t percent);

#endif
