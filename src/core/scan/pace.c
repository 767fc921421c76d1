#include "core/scan/pace.h"

uint32_t pace_percent(uint64_t done, uint64_t total)
{
    if (total == 0)
        return 0;
    if (done >= total)
        return 99;
    uint64_t percent =
        done > UINT64_MAX / 100 ? done / (total / 100) : done * 100 / total;
    return percent > 99 ? 99 : (uint32_t)percent;
}

uint32_t pace_rest_ms(uint64_t wall_us, uint64_t used_us, uint32_t percent)
{
    if (percent == 0 || percent > 99)
        return 0;
    uint64_t whole = used_us > UINT64_MAX / 100 ? UINT64_MAX : used_us * 100 / percent;
    if (whole <= wall_us)
        return 0;
    uint64_t ms = (whole - wall_us) / 1000;
    return ms > PACE_REST_MAX_MS ? PACE_REST_MAX_MS : (uint32_t)ms;
}
