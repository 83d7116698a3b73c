#define BUILD avx512
#include "build.inl"
