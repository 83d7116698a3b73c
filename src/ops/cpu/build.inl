// One build: everything for the instruction set that the compiler was told, under the name BUILD.

#include <type_traits>

#include "kernels.h"
#include "lanes.inl"
#include "product.inl"
#include "attention.inl"
#include "norms.inl"

#define NAME_OF(build) #build
#define NAME(build) NAME_OF(build)
#define TABLE_OF(build) tch_flux_kernels_##build
#define TABLE(build) TABLE_OF(build)

extern "C" const tch_flux::Kernels TABLE(BUILD);
const tch_flux::Kernels TABLE(BUILD) = {
    NAME(BUILD), HAS_BF16, HAS_INT8, product_scratch, product, attention_scratch, attention,
    modulate,    finish,   group_norm_scratch, group_norm,
};
