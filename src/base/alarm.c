#include "base/alarm.h"

#include <string.h>

static const struct alarm_info alarms[ALARM_COUNT] = {
#define X(code, name, level, headline, words, advice)                                    \
    [code] = { .id = name,                                                               \
               .severity = level,                                                        \
               .title = headline,                                                        \
               .text = words,                                                            \
               .suggestion = advice },
    ALARM_MAP(X)
#undef X
};

const struct alarm_info *alarm_info(enum alarm a)
{
    CHECK((unsigned)a < ALARM_COUNT);
    return &alarms[a];
}

const struct alarm_info *alarm_find(const char *id)
{
    for (unsigned i = 0; i < ALARM_COUNT; i++)
        if (strcmp(alarms[i].id, id) == 0)
            return &alarms[i];
    return NULL;
}

const char *alarm_severity_name(enum alarm_severity s)
{
    static const char *const names[] = { "note", "warning", "error" };

    return (unsigned)s < LEN(names) ? names[s] : "unknown";
}
