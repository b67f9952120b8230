// Batch normalisation of a pixel, with the activation and the 2 x 2 max pooling behind it: for norm.cu and conv_step.cu.
//
// x is the input (pixels, channels). `pooled`: outputs are windows of 2 x 2 pixels of images of `image_rows` x
// `image_cols`, and `winners` holds which of the four won, 4 where ReLU left zero. x_hat is not kept: it is worked out
// anew from x, of which a column is kept as `shift`, the distance of its mean from its first number, and `inverse`.

#define NO_WINNER 4

struct Picture {
    int rows, cols;
    bool pooled;
};

// The pixel that is the quarter-th (2 * row + column) of output `number`; without pooling the output itself.
template <typename Index>
__device__ __forceinline__ Index pixel_of(const Picture& picture, Index number, int quarter)
{
    if (!picture.pooled) return number;
    const int cols = picture.cols / 2;
    const int rows = picture.rows / 2;
    const Index line = number / cols;
    const Index image = line / rows;
    const Index row = image * picture.rows + 2 * (line - image * rows) + quarter / 2;
    return row * picture.cols + 2 * (number - line * cols) + quarter % 2;
}

// A column's normalisation; the first number is subtracted first, so that nothing cancels far from zero.
template <typename Acc>
struct Column {
    Acc origin, shift, inverse, scaler, intercept;
};

template <typename Acc>
__device__ __forceinline__ Acc standardized(const Column<Acc>& column, Acc value)
{
    return (value - column.origin - column.shift) * column.inverse;
}

// scaler * x_hat + intercept as T holds it, which the activation and the maximum are of.
template <typename T, typename Acc>
__device__ __forceinline__ Acc normalized(const Column<Acc>& column, Acc value)
{
    return static_cast<Acc>(static_cast<T>(column.scaler * standardized(column, value) + column.intercept));
}

template <typename T, typename Acc>
__device__ __forceinline__ Column<Acc> column_of(int number, const T* x, Acc shift, Acc inverse, const T* scaler,
                                                 const T* intercept)
{
    return {static_cast<Acc>(x[number]), shift, inverse, static_cast<Acc>(scaler[number]),
            static_cast<Acc>(intercept[number])};
}

// Whether the activation is a ReLU and lets nothing through to the input `value`; of a pooled one the winners tell that.
template <typename T, typename Acc>
__device__ __forceinline__ bool is_shut(const Column<Acc>& column, Acc value)
{
    return FUSED == RELU && !(normalized<T>(column, value) > static_cast<Acc>(0));
}

// The slope of the activation, ReLU's where it is open.
template <typename T, typename Acc>
__device__ __forceinline__ Acc slope_of(const Column<Acc>& column, Acc value)
{
    if (FUSED == RELU) return static_cast<Acc>(1);
    const Acc z = normalized<T>(column, value);
    return activation_slope<Acc>(FUSED, z, static_cast<Acc>(FUSED_ALPHA), static_cast<Acc>(FUSED_BETA));
}

// What of the gradient of output `number` gets through to the pixel it was made of, and that pixel's x_hat. Place is a
// type for places of numbers, as Index is for pixels.
template <typename Acc>
struct Passed {
    Acc gradient, x_hat;
};

template <typename Place, typename T, typename Acc, typename Index>
__device__ __forceinline__ Passed<Acc> passed_on(const Picture& picture, const T* __restrict__ x,
                                                 const unsigned char* __restrict__ winners, const Column<Acc>& column,
                                                 Index number, int channels, int channel, bool activated, Acc gradient)
{
    const Passed<Acc> none = {static_cast<Acc>(0), static_cast<Acc>(0)};
    const int winner = picture.pooled ? winners[static_cast<Place>(number) * channels + channel] : 0;
    if (winner == NO_WINNER) return none;
    const Place pixel = pixel_of(picture, number, winner);
    const Acc value = static_cast<Acc>(x[pixel * channels + channel]);
    if (activated && !picture.pooled && is_shut<T>(column, value)) return none;
    const Acc slope = activated ? slope_of<T>(column, value) : static_cast<Acc>(1);
    return {gradient * slope, standardized(column, value)};
}
