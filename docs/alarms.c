/* alarms: the list in docs/operations.md, from the table in src/base (tools/docs). */
#include "base/alarm.h"

int main(void)
{
    for (unsigned i = 0; i < ALARM_COUNT; i++) {
        const struct alarm_info *a = alarm_info((enum alarm)i);

        printf("%s### `%s` (%s)\n\n**%s.** %s\n\n*What to do:* %s\n", i == 0 ? "" : "\n",
               a->id, alarm_severity_name(a->severity), a->title, a->text, a->suggestion);
    }
    return 0;
}
