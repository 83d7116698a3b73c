#define BUILD amx
#include "build.inl"
