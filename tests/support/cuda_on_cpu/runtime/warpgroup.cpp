// Products of a warpgroup (PTX ISA, "wgmma") of factors in shared memory. A thread's sums are worked out when the product
// begins, and are NaN until it is waited for; then the factors must still be the same, since it may have read them as
// late as that.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace emu {

constexpr unsigned PATTERN = 1024, SWIZZLED = 128, RUN = 16, TERMS = 16;
constexpr uint64_t UNUSED_BITS = 0x3fffc000c000c000ull, SWIZZLE_128 = 1;

// PTX ISA, "Matrix descriptor format" and "Canonical layouts", for 16-bit numbers and the 128-byte swizzle.
struct Factor {
    unsigned start, lines_apart, apart;
    bool by_lines;

    // Of a number, from the beginning of dynamic shared memory on.
    unsigned place(unsigned line, unsigned term) const
    {
        const unsigned plain = by_lines ? line / 64 * lines_apart + line % 64 * 2 + term / 8 * apart + term % 8 * SWIZZLED
                                        : line / 8 * apart + line % 8 * SWIZZLED + term * 2;
        const unsigned whole = start + plain;
        return whole ^ (whole / SWIZZLED % 8 * RUN);
    }
};

static Factor decoded(uint64_t descriptor, bool by_lines, void* site)
{
    const auto field = [&](int bit) { return (unsigned)(descriptor >> bit & 0x3fff) * RUN; };
    const Factor factor{field(0), field(16), field(32), by_lines};
    const unsigned inside = by_lines ? 0 : SWIZZLED - 2 * RUN;  // how far into the pattern a factor may begin
    if (descriptor >> 62 != SWIZZLE_128 || descriptor & UNUSED_BITS || factor.start % PATTERN > inside ||
        factor.apart % PATTERN || (by_lines && factor.lines_apart % PATTERN)) {
        report("product-descriptor", site, nullptr, "%#lx is none of a factor as it is known here",
               (unsigned long)descriptor);
        end_thread();
    }
    return factor;
}

// The lines of a factor, a line 16 numbers; in the order of memory, so that each run of 16 bytes is met once.
static std::vector<uint16_t> read_lines(const Factor& factor, const std::vector<unsigned>& lines, void* site)
{
    std::vector<uint16_t> numbers(lines.size() * TERMS);
    unsigned last = ~0u;
    for (unsigned k = 0; k < numbers.size(); ++k) {
        const unsigned line = factor.by_lines ? k % lines.size() : k / TERMS;
        const unsigned term = factor.by_lines ? k / lines.size() : k % TERMS;
        const unsigned place = factor.place(lines[line], term), run = place / RUN * RUN;
        if (run != last) {
            if (run + RUN > dynamic_shared_bytes) {
                report("out-of-bounds-shared", site, nullptr, "a product reads byte %u of dynamic shared memory", place);
                end_thread();
            }
            if (site) checker_product_reads((uintptr_t)dynamic_shared + run, RUN, (uintptr_t)site);
            last = run;
        }
        memcpy(&numbers[line * TERMS + term], dynamic_shared + place, 2);
    }
    return numbers;
}

static void read_factors(Product& product, void* site)
{
    std::vector<unsigned> columns(product.columns);
    for (unsigned n = 0; n < columns.size(); ++n) columns[n] = n;
    const unsigned row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    product.left = read_lines(decoded(product.a, product.a_by_lines, site), {row, row + 8}, site);
    product.right = read_lines(decoded(product.b, product.b_by_lines, site), columns, site);
}

}  // namespace emu

using namespace emu;

extern "C" {

void emu_group_fence(void) { current->products_may_begin = true; }

void emu_group_commit(void) { ++current->product_groups; }

void emu_group_wait(int pending, void* site)
{
    std::vector<Product>& all = current->products;
    current->products_may_begin = false;
    size_t done = 0;
    for (; done < all.size() && all[done].group + pending < current->product_groups; ++done) {
        const Product& product = all[done];
        Product now = product;
        read_factors(now, nullptr);
        if (now.left != product.left || now.right != product.right) {
            report("product-source-changed", site, product.site, "a factor of a product has changed before its end");
            end_thread();
        }
        const auto same = [&](const Product& other) { return other.sums[0] == product.sums[0]; };
        if (std::any_of(all.begin() + done + 1, all.end(), same)) continue;  // a later one adds to these sums
        for (size_t i = 0; i < product.sums.size(); ++i) *product.sums[i] = product.results[i];
    }
    all.erase(all.begin(), all.begin() + done);
}

void emu_group_multiply(int kind, int columns, float* const* sums, unsigned long long a, unsigned long long b,
                        int a_by_lines, int b_by_lines, void* site)
{
    if (!current->products_may_begin) {
        report("no-product-fence", site, nullptr, "a product begins without wgmma.fence after the last wait");
        end_thread();
    }
    Product product{a, b, (unsigned)columns, a_by_lines != 0, b_by_lines != 0, current->product_groups, site};
    read_factors(product, site);
    const auto same = [&](const Product& other) { return other.sums[0] == sums[0]; };
    const auto before = std::find_if(current->products.rbegin(), current->products.rend(), same);
    const bool adds = before != current->products.rend();
    for (int i = 0; i < columns / 2; ++i) {
        const int row = i / 2 % 2, column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        double sum = adds ? before->results[i] : *sums[i];
        for (unsigned k = 0; k < TERMS; ++k)
            sum += (double)half_number(kind, product.left[row * TERMS + k]) *
                   half_number(kind, product.right[column * TERMS + k]);
        product.sums.push_back(sums[i]);
        product.results.push_back((float)sum);
    }
    for (float* const sum : product.sums) *sum = NAN;
    current->products.push_back(product);
}

void emu_show_to_products(void) { checker_show_to_products(); }
}
