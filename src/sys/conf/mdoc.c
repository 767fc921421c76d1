#include "sys/conf/mdoc.h"

#include <string.h>

static void put_word(FILE *to, const char *word, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (word[i] == '\\')
            fputs("\\e", to);
        else
            fputc(word[i], to);
}

void mdoc_text(FILE *to, const char *text)
{
    size_t column = 0;

    while (*text) {
        size_t n = strcspn(text, " ");

        if (column > 0 && column + 1 + n > 76) {
            fputc('\n', to);
            column = 0;
        }
        if (column > 0)
            fputc(' ', to);
        else if (*text == '.' || *text == '\'')
            fputs("\\&", to); /* else the line would be a macro */
        put_word(to, text, n);
        column += n + 1;
        if (text[n - 1] == '.' && text[n] == ' ') {
            fputc('\n', to);
            column = 0;
        }
        text += n;
        text += strspn(text, " ");
    }
    if (column > 0)
        fputc('\n', to);
}
