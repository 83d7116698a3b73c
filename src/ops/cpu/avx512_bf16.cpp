#define BUILD avx512_bf16
#include "build.inl"
