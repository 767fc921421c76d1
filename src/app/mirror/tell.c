/*
 * tell: what redoubt-node, the log and people hear of this mirror.
 */
#include <jansson.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "app/mirror/mirror.h"
#include "sys/log/log.h"
#include "wire/uuid.h"

enum { PACE_MS = 250, SIGN_OF_LIFE_MS = 10000 };

/* One packet: false: the daemon does not read just now, or is gone (see mirror_goes_on). */
static bool say(const struct mirror *m, const char *text)
{
    const size_t n = strlen(text);

    return m->daemon_fd >= 0 &&
           send(m->daemon_fd, text, n, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n;
}

const char *tell_text(char out[MIRROR_WHY], const char *text)
{
    const size_t n = strnlen(text, MIRROR_WHY - 1);
    size_t at = 0, k;

    while (at < n) {
        for (k = 1; k <= 4 && at + k <= n; k++)
            if (text_is_utf8((struct str){ text + at, k }))
                break;
        const bool ok = k <= 4 && at + k <= n;

        if (ok)
            memcpy(out + at, text + at, k);
        else
            out[at] = '?';
        at += ok ? k : 1;
    }
    out[n] = '\0';
    return out;
}

static json_t *state_json(const struct mirror *m)
{
    const struct list *l = m->list;
    char share[MIRROR_WHY], refused[MIRROR_WHY], why[MIRROR_WHY], detail[MIRROR_WHY];

    return json_pack(
        "{s:b, s:b, s:I, s:I, s:i, s:I, s:i, s:I, s:I, s:i, s:i, s:i, s:b, s:b, s:s, "
        "s:s, "
        "s:s, s:b, s:I, s:s, s:s, s:i}",
        "prepared", content_is_prepared(m), "known", l != NULL, "serial",
        l ? (json_int_t)l->head.serial : 0, "shown", (json_int_t)m->content.laid, "files",
        l ? (int)l->head.count : 0, "bytes", l ? (json_int_t)l->bytes : 0, "missing",
        (int)m->content.missing, "missing_bytes", (json_int_t)m->content.missing_bytes,
        "fetched_bytes", (json_int_t)(m->fetched_bytes + m->moving), "damaged_now",
        (int)m->broken.count, "damaged", (int)m->damaged, "healed", (int)m->healed,
        "share_ok", m->share.ok, "full", m->content.full, "share_why",
        tell_text(share, m->share.why), "refused", tell_text(refused, m->db.refused),
        "why", tell_text(why, m->content.why), "scrubbing", m->scrub.on, "scrubbed",
        (json_int_t)m->scrub.last_s, "signatures",
        mirror_is_active(m, NULL) ? m->signatures.status : "", "signatures_detail",
        tell_text(detail, m->signatures.detail), "lost", (int)m->content.lost);
}

void tell_state(struct mirror *m)
{
    if (!mirror_is_active(m, NULL))
        m->signatures.status[0] = '\0'; /* not of now, when it is active again */
    const struct mono now = mirror_now();
    const bool late = mono_reached(now, mono_after(m->told, SIGN_OF_LIFE_MS));
    json_t *v = state_json(m);
    char *text = json_dumps(v, JSON_COMPACT);
    const bool news = text && strcmp(text, m->told_text) != 0;
    /* Prepared or not is told at once, progress now and then. */
    const bool turn = text && strncmp(text, m->told_text, sizeof("{\"prepared\":t")) != 0;

    m->untold = news;
    if (text &&
        (late || turn || (news && mono_reached(now, mono_after(m->told, PACE_MS)))) &&
        say(m, text)) {
        m->told = now;
        m->untold = false;
        if (!str_copy(m->told_text, sizeof(m->told_text), str_of(text)))
            m->told_text[0] = '\0';
    }
    free(text);
    json_decref(v);
}

static void tell_event(const struct mirror *m, const char *event, const char *where,
                       const struct blob_id *id)
{
    json_t *v =
        json_pack("{s:s, s:s, s:s}", "event", event, "where", where, "blob", id->hex);
    char *text = json_dumps(v, JSON_COMPACT);

    log_event(LOG_LEVEL_WARNING, event, log_str("where", where),
              log_str("blob", id->hex));
    if (text)
        (void)say(m, text); /* the state tells the number of them in any case */
    free(text);
    json_decref(v);
}

static uint32_t place_of(const struct mirror *m, const struct blob_id *id)
{
    uint32_t i = 0;

    while (i < m->broken.count && strcmp(m->broken.id[i].hex, id->hex) != 0)
        i++;
    return i;
}

void tell_damage(struct mirror *m, bool on_share, const struct blob_id *id)
{
    if (place_of(m, id) < m->broken.count || m->broken.count == MIRROR_BROKEN)
        return;
    m->broken.id[m->broken.count] = *id;
    m->broken.on_share[m->broken.count++] = on_share;
    m->damaged++;
    tell_event(m, "blob_damaged", on_share ? "share" : "disk", id);
}

static void forget(struct mirror *m, uint32_t i)
{
    m->broken.count--;
    m->broken.id[i] = m->broken.id[m->broken.count];
    m->broken.on_share[i] = m->broken.on_share[m->broken.count];
}

void tell_healed(struct mirror *m, const struct blob_id *id)
{
    const struct blob_id which = *id;
    const uint32_t i = place_of(m, id);

    if (i >= m->broken.count)
        return;
    m->healed++;
    tell_event(m, "blob_healed", m->broken.on_share[i] ? "share" : "disk", &which);
    forget(m, i);
}

void tell_complete(struct mirror *m)
{
    for (uint32_t i = m->broken.count; i-- > 0;) {
        if (!list_has(m->list, &m->broken.id[i]))
            forget(m, i);
        else if (!m->broken.on_share[i])
            tell_healed(m, &m->broken.id[i]);
    }
}
