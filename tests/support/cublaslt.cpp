// The part of cuBLASLt that gpulayers calls, as documented, for matrices in the memory of the host: column by column,
// by loops, sums in double. Refuses what the real library would refuse, and counts its objects.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_64F = 1, COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_32F_FAST_TF32 = 77 };

struct Product {
    int compute, scale, transposed[2];
};
struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t line;
};
struct Preference {
    uint64_t workspace;
    uint32_t reduction, alignment[4];
};
struct Algo {
    uint64_t data[8];
};
struct Heuristic {
    Algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
int handle_object, preferences, computed_in;

double number(const void* values, int type, size_t place)
{
    return type == R_64F ? static_cast<const double*>(values)[place] : static_cast<const float*>(values)[place];
}

bool fits(const Product& product, const Layout& a, const Layout& b, const Layout& d)
{
    const uint64_t rows = product.transposed[0] ? a.cols : a.rows, terms = product.transposed[0] ? a.rows : a.cols;
    const uint64_t also = product.transposed[1] ? b.cols : b.rows, cols = product.transposed[1] ? b.rows : b.cols;
    const bool is_double = a.type == R_64F, tf32 = product.compute == COMPUTE_32F_FAST_TF32 && !is_double;
    const bool types = a.type == b.type && a.type == d.type && product.scale == a.type &&
                       (tf32 || product.compute == (is_double ? COMPUTE_64F : COMPUTE_32F));
    return types && terms == also && rows == d.rows && cols == d.cols;
}
}  // namespace

extern "C" {
int preferences_alive() { return preferences; }
int last_compute_type() { return computed_in; }

int cublasLtCreate(void** handle)
{
    *handle = &handle_object;
    return SUCCESS;
}

int cublasLtMatmulDescCreate(Product** product, int compute, int scale)
{
    *product = new Product{compute, scale, {0, 0}};
    return SUCCESS;
}

int cublasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t size)
{
    if ((attribute != 3 && attribute != 4) || size != sizeof(int32_t)) return INVALID_VALUE;
    std::memcpy(&product->transposed[attribute - 3], value, size);
    return SUCCESS;
}

int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t line)
{
    if (line < static_cast<int64_t>(rows)) return INVALID_VALUE;
    *layout = new Layout{type, rows, cols, line};
    return SUCCESS;
}

int cublasLtMatmulPreferenceCreate(Preference** preference)
{
    ++preferences;
    *preference = new Preference{0, 7, {256, 256, 256, 256}};
    return SUCCESS;
}

int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t size)
{
    if (attribute == 1 && size == 8) std::memcpy(&preference->workspace, value, size);
    else if (attribute == 3 && size == 4) std::memcpy(&preference->reduction, value, size);
    else if (attribute >= 5 && attribute <= 8 && size == 4) std::memcpy(&preference->alignment[attribute - 5], value, 4);
    else return INVALID_VALUE;
    return SUCCESS;
}

int cublasLtMatmulPreferenceDestroy(Preference* preference)
{
    --preferences;
    delete preference;
    return SUCCESS;
}

// The algorithm says what it was asked for, so that the product can check it.
int cublasLtMatmulAlgoGetHeuristic(void* handle, const Product* product, const Layout* a, const Layout* b,
                                   const Layout* c, const Layout* d, const Preference* preference, int wanted,
                                   Heuristic* found, int* count)
{
    *count = 0;
    if (handle != &handle_object || c != d || wanted < 1) return INVALID_VALUE;
    if (!fits(*product, *a, *b, *d)) return NOT_SUPPORTED;
    *found = {{{0x6c74, preference->reduction, preference->alignment[0], 0, 0, 0, 0, 0}}, 1000, SUCCESS, 1.0f, {}};
    if (preference->workspace < found->workspace) return NOT_SUPPORTED;
    *count = 1;
    return SUCCESS;
}

int cublasLtMatmul(void* handle, const Product* product, const void* alpha, const void* a_values, const Layout* a,
                   const void* b_values, const Layout* b, const void* beta, const void* c_values, const Layout* c,
                   void* d_values, const Layout* d, const Algo* algo, void* workspace, size_t workspace_bytes,
                   void* /*stream*/)
{
    if (handle != &handle_object || c_values != d_values || c != d || !fits(*product, *a, *b, *d)) return INVALID_VALUE;
    // in place sums differ from run to run; the workspace is as large as was said
    if (algo->data[0] != 0x6c74 || (algo->data[1] & 1) || workspace_bytes < 1000) return INVALID_VALUE;
    for (const void* values : {a_values, b_values, static_cast<const void*>(d_values)})
        if (reinterpret_cast<uintptr_t>(values) % algo->data[2]) return INVALID_VALUE;
    if (number(beta, d->type, 0) != 0.0) return INVALID_VALUE;
    computed_in = product->compute;
    std::memset(workspace, 0xee, workspace_bytes);
    const uint64_t terms = product->transposed[0] ? a->rows : a->cols;
    for (uint64_t col = 0; col < d->cols; ++col)
        for (uint64_t row = 0; row < d->rows; ++row) {
            double sum = 0;
            for (uint64_t k = 0; k < terms; ++k) {
                const size_t left = product->transposed[0] ? k + row * a->line : row + k * a->line;
                const size_t right = product->transposed[1] ? col + k * b->line : k + col * b->line;
                sum += number(a_values, a->type, left) * number(b_values, b->type, right);
            }
            sum *= number(alpha, d->type, 0);
            const size_t place = row + col * d->line;
            if (d->type == R_64F) static_cast<double*>(d_values)[place] = sum;
            else static_cast<float*>(d_values)[place] = static_cast<float>(sum);
        }
    return SUCCESS;
}
}
