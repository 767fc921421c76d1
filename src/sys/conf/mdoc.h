/*
 * mdoc: text for the manual pages that are made from tables.
 *
 * Shape     mdoc(7) wants each sentence on a line of its own and short lines.
 * Threads   any
 */
#ifndef SYS_MDOC_H
#define SYS_MDOC_H

#include <stdio.h>

/* Sentences of plain text, escaped and folded, with a newline at the end. */
void mdoc_text(FILE *to, const char *text);

#endif
