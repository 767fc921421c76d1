/*
 * mono: instants of CLOCK_BOOTTIME, which counts suspend and is never set.
 *
 * Units     struct mono is microseconds since boot; 0 means "never" or "not yet".
 *           Durations are uint32_t milliseconds with the suffix _ms.
 * Safety    An instant of one node is never compared with one of the other (rule L4).
 * Threads   any; pure
 */
#ifndef BASE_MONO_H
#define BASE_MONO_H

#include <stdbool.h>
#include <stdint.h>

struct mono {
    uint64_t us;
};

#define MONO_FOREVER ((struct mono){ UINT64_MAX })

static inline struct mono mono_after(struct mono t, uint32_t ms)
{
    uint64_t add = (uint64_t)ms * 1000u;

    return (struct mono){ t.us > UINT64_MAX - add ? UINT64_MAX : t.us + add };
}

/* t less ms, but not before 0. */
static inline struct mono mono_before(struct mono t, uint32_t ms)
{
    uint64_t sub = (uint64_t)ms * 1000u;

    return (struct mono){ t.us > sub ? t.us - sub : 0 };
}

static inline bool mono_reached(struct mono now, struct mono t)
{
    return now.us >= t.us;
}

static inline struct mono mono_min(struct mono a, struct mono b)
{
    return a.us < b.us ? a : b;
}

static inline bool mono_is_set(struct mono t)
{
    return t.us != 0;
}

/* Whole milliseconds from t to now, 0 if t lies ahead, saturating. */
static inline uint32_t mono_since_ms(struct mono now, struct mono t)
{
    uint64_t ms = now.us > t.us ? (now.us - t.us) / 1000u : 0;

    return ms > UINT32_MAX ? UINT32_MAX : (uint32_t)ms;
}

#endif
