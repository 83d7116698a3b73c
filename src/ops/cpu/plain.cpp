#define BUILD plain
#include "build.inl"
