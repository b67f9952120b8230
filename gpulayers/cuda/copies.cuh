// How factors come to shared memory, and from there to tensor cores (from sm_80 on): for stages.cuh, pipeline.cuh.

// ---- copies that go on by themselves (PTX ISA, "cp.async")

__device__ __forceinline__ unsigned shared_address(const void* place)
{
    return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

// 16 bytes, both addresses multiples of that; zeros if they are not `there`.
__device__ __forceinline__ void copy_run(unsigned to, const void* from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// The same of 4 or 8 bytes.
template <int BYTES>
__device__ __forceinline__ void copy_few(unsigned to, const void* from, bool there)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(there ? BYTES : 0)
                 : "memory");
}

// What this thread has asked for since the last time is a group.
__device__ __forceinline__ void close_group()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all groups of this thread but the last so many are there: for this thread.
template <int PENDING>
__device__ __forceinline__ void wait_for_groups()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- fragments from shared memory: four matrices of 8 rows of 16 bytes (PTX ISA, "ldmatrix")

// Lane l says where row l % 8 of matrix l / 8 is; of each matrix lane l gets word l % 4 of row l / 4.
__device__ __forceinline__ void load_matrices(unsigned& m0, unsigned& m1, unsigned& m2, unsigned& m3, unsigned row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m0), "=r"(m1), "=r"(m2), "=r"(m3)
                 : "r"(row));
}

// The same of the matrices' transposes, of 16-bit numbers.
__device__ __forceinline__ void load_transposed(unsigned& m0, unsigned& m1, unsigned& m2, unsigned& m3, unsigned row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m0), "=r"(m1), "=r"(m2), "=r"(m3)
                 : "r"(row));
}
