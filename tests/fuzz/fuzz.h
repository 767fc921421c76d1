/*
 * fuzz: what each target defines.
 *
 * Purpose   One source file a target.  With -Dfuzz=true libFuzzer brings main() and makes
 *           up inputs; an ordinary build links replay.c, which feeds the target every file
 *           of its corpus, so that an input that once broke something is a test for ever.
 * Safety    A target states what must hold for any input with CHECK: no crash alone, but
 *           also "what was decoded encodes to the same", "nothing is read beyond the end".
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* Returns 0.  data is borrowed for the call, and is not NUL-terminated. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
