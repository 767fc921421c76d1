/* public: marks what the shared library exports; everything else is hidden. */
#ifndef LIB_PUBLIC_H
#define LIB_PUBLIC_H

#define PUBLIC __attribute__((visibility("default")))

#endif
