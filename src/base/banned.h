/*
 * banned: functions that nobody in this tree may call.
 *
 * Included before every translation unit by the build.  The system headers come first,
 * or the poison would hit their own declarations.
 */
#ifndef BASE_BANNED_H
#define BASE_BANNED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef REDOUBT_NO_BANNED
#pragma GCC poison strcpy strcat sprintf vsprintf strncpy strncat strtok atoi atol atof
#pragma GCC poison system popen gmtime localtime ctime asctime tmpnam mktemp
#endif

#endif
