#define BUILD avx2
#include "build.inl"
