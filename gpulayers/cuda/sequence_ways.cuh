// The loops of recurrent networks over the steps, by cells (see sequence.cuh). Each begins with what the recurrent
// weights' place asks for, and has one barrier a step.

// ---- one block, weights in any place

template <typename Acc, typename Cell, typename T>
__device__ __forceinline__ void go_ahead(Cell& cell, const Recurrent<T>& recurrent, int fours, unsigned char* memory)
{
    constexpr int STATES = Cell::STATES;
    const int batch = cell.way.batch, hidden = cell.way.hidden;
    const Seat seat = seat_of(batch);
    Weights<T, Acc> w = {recurrent, cut_of(hidden), seat.lane, fours};
    const int apart = LANES * w.cut.pitch;
    const int buffer = LANES * apart;
    Acc* const vectors = reinterpret_cast<Acc*>(memory);  // the first state before this step, and before the next
    Acc* const others = settle<Cell::GATES>(w, vectors + 2 * buffer) + seat.lane * hidden;
    clear(vectors, 2 * buffer);
    __syncthreads();
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
        const long long number = static_cast<long long>(seat.row) * hidden + unit;
        vectors[seat.lane * apart + place_of(w.cut, unit)] = static_cast<Acc>(begin(cell.way, 0, number));
#pragma unroll
        for (int k = 1; k < STATES; ++k)
            others[(k - 1) * LANES * hidden + unit] = static_cast<Acc>(begin(cell.way, k, number));
    }
    __syncthreads();
    for (int t = 0; t < cell.way.steps; ++t) {
        const Acc* const now = vectors + t % 2 * buffer;
        Acc* const next = vectors + (t + 1) % 2 * buffer;
        const long long example = static_cast<long long>(t) * batch + seat.row;
        for (int first = 0; first < hidden; first += seat.units) {
            const int unit = first + seat.first_unit;
            const bool works = seat.works && unit < hidden;
            typename Cell::Biases biases = {};
            if (works) {  // there after the products
                cell.ask(example, unit);
                biases = cell.biases(unit);
            }
            Acc sum[Cell::GATES];
            multiply<Cell::GATES>(w, now, unit, sum);
            if (!works) continue;
            const int spot = seat.lane * apart + place_of(w.cut, unit);
            Acc state[STATES] = {now[spot]};
#pragma unroll
            for (int k = 1; k < STATES; ++k) state[k] = others[(k - 1) * LANES * hidden + unit];
            cell.go(example, unit, biases, sum, state);
            next[spot] = state[0];
#pragma unroll
            for (int k = 1; k < STATES; ++k) others[(k - 1) * LANES * hidden + unit] = state[k];
        }
        __syncthreads();
    }
}

template <typename Acc, typename Cell, typename T>
__device__ __forceinline__ void go_back(Cell& cell, const Recurrent<T>& recurrent, int fours, unsigned char* memory)
{
    constexpr int STATES = Cell::STATES, FACTORS = Cell::FACTORS;
    const int batch = cell.way.batch, hidden = cell.way.hidden;
    const Seat seat = seat_of(batch);
    Weights<T, Acc> w = {recurrent, cut_of(hidden), seat.lane, fours};
    const int apart = LANES * w.cut.pitch;
    const int buffer = LANES * FACTORS * apart;
    Acc* const vectors = reinterpret_cast<Acc*>(memory);  // the factors of this step, and of the last one
    Acc* const carried = settle<FACTORS>(w, vectors + 2 * buffer) + seat.lane * hidden;
    const int between = LANES * hidden;  // two states' gradients
    clear(vectors, 2 * buffer);
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units)
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            carried[k * between + unit] =
                last_of<Acc>(cell.way, k, static_cast<long long>(seat.row) * hidden + unit);
    __syncthreads();
    for (int t = cell.way.steps - 1; t >= 0; --t) {
        Acc* const now = vectors + t % 2 * buffer;
        const long long example = static_cast<long long>(t) * batch + seat.row;
        for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
            cell.ask(example, unit);
            Acc state[STATES], factor[FACTORS];
#pragma unroll
            for (int k = 0; k < STATES; ++k)
                state[k] = ends_stretch(cell.way, t) ? static_cast<Acc>(0) : carried[k * between + unit];
            cell.go(example, unit, state, factor);
#pragma unroll
            for (int k = 0; k < FACTORS; ++k)
                now[(seat.lane * FACTORS + k) * apart + place_of(w.cut, unit)] = factor[k];
#pragma unroll
            for (int k = 0; k < STATES; ++k) carried[k * between + unit] = state[k];
        }
        __syncthreads();
        for (int first = 0; first < hidden; first += seat.units) {
            const int unit = first + seat.first_unit;
            Acc sum[1];
            multiply<FACTORS>(w, now, unit, sum);
            if (seat.works && unit < hidden) carried[unit] += sum[0];
        }
    }
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units)
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            cell.way.firsts[k][static_cast<long long>(seat.row) * hidden + unit] =
                static_cast<T>(carried[k * between + unit]);
}

// ---- one block, weights in registers; a thread has By::PAIRS of unit and example from the beginning to the end

// The last pair works only where all of them do: then nothing stands between one's instructions and another's, so that
// they need not wait for each other.
template <typename Block, typename Do>
__device__ __forceinline__ void each_pair(const Block& block, const Do& finish)
{
    if (block.works(Block::PAIRS - 1)) {
#pragma unroll
        for (int p = 0; p < Block::PAIRS; ++p) finish(p);
    } else {
#pragma unroll
        for (int p = 0; p + 1 < Block::PAIRS; ++p)
            if (block.works(p)) finish(p);
    }
}

template <typename By, typename Acc, typename Cell, typename T>
__device__ __forceinline__ void go_ahead_held(const Cell& cell, const Recurrent<T>& recurrent, unsigned char* memory)
{
    using Block = typename By::template Block<T, Acc, Cell::GATES, 1>;
    using Factor = typename Block::Factor;
    constexpr int STATES = Cell::STATES, PAIRS = Block::PAIRS;
    const int hidden = cell.way.hidden;
    Block block;
    block.sit(cell.way.batch, hidden);
    Factor* const vectors = reinterpret_cast<Factor*>(memory);  // the first state before this step, and before the next
    block.bring(recurrent, vectors);
    clear(vectors, 2 * block.size());
    __syncthreads();
    Cell cells[PAIRS];
    Acc state[PAIRS][STATES] = {};
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) cells[p] = cell;
    typename Cell::Biases biases[Block::UNITS] = {};
#pragma unroll
    for (int u = 0; u < Block::UNITS; ++u) {
        const int unit = block.unit(u * PAIRS / Block::UNITS);
        if (unit < hidden) biases[u] = cell.biases(unit);
    }
    each_pair(block, [&](int p) {
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            state[p][k] = static_cast<Acc>(
                begin(cell.way, k, static_cast<long long>(block.row(p)) * hidden + block.unit(p)));
        vectors[block.spot(p, 0)] = static_cast<Factor>(state[p][0]);
    });
    __syncthreads();
    for (int t = 0; t < cell.way.steps; ++t) {
        const long long example = static_cast<long long>(t) * cell.way.batch;
        // there after the products
        each_pair(block, [&](int p) { cells[p].ask(example + block.row(p), block.unit(p)); });
        Acc sum[PAIRS][Cell::GATES];
        block.sums(vectors + t % 2 * block.size(), sum);
        Factor* const next = vectors + (t + 1) % 2 * block.size();
        each_pair(block, [&](int p) {
            cells[p].go(example + block.row(p), block.unit(p), biases[p * Block::UNITS / PAIRS], sum[p], state[p]);
            next[block.spot(p, 0)] = static_cast<Factor>(state[p][0]);
        });
        __syncthreads();
    }
}

template <typename By, typename Acc, typename Cell, typename T>
__device__ __forceinline__ void go_back_held(const Cell& cell, const Recurrent<T>& recurrent, unsigned char* memory)
{
    constexpr int STATES = Cell::STATES, FACTORS = Cell::FACTORS;
    using Block = typename By::template Block<T, Acc, 1, FACTORS>;
    using Factor = typename Block::Factor;
    constexpr int PAIRS = Block::PAIRS;
    const int hidden = cell.way.hidden, steps = cell.way.steps;
    Block block;
    block.sit(cell.way.batch, hidden);
    Factor* const vectors = reinterpret_cast<Factor*>(memory);  // the factors of this step, and of the last one
    block.bring(recurrent, vectors);
    clear(vectors, 2 * block.size());
    Cell cells[PAIRS];
    Acc state[PAIRS][STATES] = {};
    const auto ask = [&](int t) {
        const long long example = static_cast<long long>(t) * cell.way.batch;
        each_pair(block, [&](int p) { cells[p].ask(example + block.row(p), block.unit(p)); });
    };
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) cells[p] = cell;
    each_pair(block, [&](int p) {
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            state[p][k] =
                last_of<Acc>(cell.way, k, static_cast<long long>(block.row(p)) * hidden + block.unit(p));
    });
    ask(steps - 1);
    __syncthreads();
    for (int t = steps - 1; t >= 0; --t) {
        Factor* const now = vectors + t % 2 * block.size();
        const long long example = static_cast<long long>(t) * cell.way.batch;
        const bool alone = ends_stretch(cell.way, t);
        each_pair(block, [&](int p) {
            Acc factor[FACTORS];
#pragma unroll
            for (int k = 0; k < STATES; ++k)
                if (alone) state[p][k] = static_cast<Acc>(0);
            cells[p].go(example + block.row(p), block.unit(p), state[p], factor);
#pragma unroll
            for (int k = 0; k < FACTORS; ++k) now[block.spot(p, k)] = static_cast<Factor>(factor[k]);
        });
        __syncthreads();
        if (t > 0) ask(t - 1);
        Acc sum[PAIRS][1];
        block.sums(now, sum);
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) state[p][0] += sum[p][0];
    }
    each_pair(block, [&](int p) {
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            cell.way.firsts[k][static_cast<long long>(block.row(p)) * hidden + block.unit(p)] =
                static_cast<T>(state[p][k]);
    });
}

// ---- a group of blocks that have `units` units each and `rows` examples, `chunk` at a time

template <typename By, typename Acc, typename Cell, typename T>
__device__ __forceinline__ void go_ahead_together(Cell& cell, const T* weights, unsigned* arrived, int units, int rows,
                                                  int chunk, unsigned char* memory)
{
    constexpr int STATES = Cell::STATES, GATES = Cell::GATES;
    const int batch = cell.way.batch, hidden = cell.way.hidden;
    const Member me = member_of<By, T, GATES>(batch, hidden, units, rows, chunk);
    T* const kept = reinterpret_cast<T*>(memory);
    const Room<T, Acc> room = room_in<Acc>(By(), me, keep<GATES, false>(By(), kept, me, weights));
    for (int i = threadIdx.x; i < me.rows * me.units; i += blockDim.x)
#pragma unroll
        for (int k = 0; k < STATES; ++k) begin(cell.way, k, place_in(me, i).number);
    Acc state[STATES] = {};
    typename Cell::Biases biases = {};
    // what step t needs of this thread's example and unit, whatever the other members do
    const auto ask = [&](int t, int first) {
        const Spot spot = spot_of(me, first);
        if (!spot.works) return;
        const long long example = static_cast<long long>(t) * batch + spot.example;
        const int unit = me.first_unit + spot.unit;
        cell.ask(example, unit);
        biases = cell.biases(unit);
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            if (cell.needs(k)) state[k] = static_cast<Acc>(cell.way.states[k][example * hidden + unit]);
    };
    unsigned before = arrive(me, arrived);
    ask(0, 0);
    wait(me, arrived, before);
    for (int t = 0; t < cell.way.steps; ++t) {
        for (int first = 0; first < me.rows; first += chunk) {
            const Spot spot = spot_of(me, first);
            if (first > 0) ask(t, first);
            const T* const from =
                cell.way.states[0] + (static_cast<long long>(t) * batch + me.first_row + first) * hidden;
            sum_all<GATES>(By(), me, room, kept, from, min(chunk, me.rows - first));
            if (spot.works) {
                Acc sum[GATES];
                read_sums(By(), me, room, spot, sum);
                cell.go(static_cast<long long>(t) * batch + spot.example, me.first_unit + spot.unit, biases, sum,
                        state);
            }
            __syncthreads();
        }
        before = arrive(me, arrived);
        if (t + 1 < cell.way.steps) ask(t + 1, 0);
        wait(me, arrived, before);
    }
}

// between: two turns of shares, see share_at.
template <typename By, typename Acc, typename Cell, typename T>
__device__ __forceinline__ void go_back_together(Cell& cell, const T* weights, Acc* between, unsigned* arrived,
                                                 int units, int rows, int chunk, unsigned char* memory)
{
    using Factor = typename By::template Factor<T, Acc>;
    constexpr int STATES = Cell::STATES, FACTORS = Cell::FACTORS;
    const int batch = cell.way.batch, hidden = cell.way.hidden;
    const Member me = member_of<By, T, FACTORS>(batch, hidden, units, rows, chunk);
    T* const kept = reinterpret_cast<T*>(memory);
    Factor* const now = reinterpret_cast<Factor*>(keep<FACTORS, true>(By(), kept, me, weights));  // of this step
    const int apart = apart_of(By(), me, kept);
    Acc* const carried = reinterpret_cast<Acc*>(now + chunk * apart);
    clear(now, chunk * apart);
    for (int i = threadIdx.x; i < me.rows * me.units; i += blockDim.x) {
        const Place place = place_in(me, i);
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            carried[k * rows * units + place.own] = last_of<Acc>(cell.way, k, place.number);
    }
    // what step t needs of this thread's example and unit, whatever the other members do
    const auto ask = [&](int t, int first) {
        const Spot spot = spot_of(me, first);
        if (spot.works) cell.ask(static_cast<long long>(t) * batch + spot.example, me.first_unit + spot.unit);
    };
    ask(cell.way.steps - 1, 0);
    __syncthreads();
    for (int t = cell.way.steps - 1; t >= 0; --t) {
        const bool alone = ends_stretch(cell.way, t);
        for (int first = 0; first < me.rows; first += chunk) {
            const Spot spot = spot_of(me, first);
            if (first > 0) ask(t, first);
            if (spot.works) {
                Acc state[STATES], factor[FACTORS];
#pragma unroll
                for (int k = 0; k < STATES; ++k)
                    state[k] = alone ? static_cast<Acc>(0) : carried[k * rows * units + spot.own];
                if (!alone && t + 1 < cell.way.steps)
                    state[0] += add_shares(me, between, (t + 1) % 2, first + spot.row, spot.unit);
                cell.go(static_cast<long long>(t) * batch + spot.example, me.first_unit + spot.unit, state, factor);
#pragma unroll
                for (int k = 0; k < FACTORS; ++k)
                    now[spot.row * apart + spot.unit * FACTORS + k] =
                        as_factor<Factor>(By(), static_cast<T>(factor[k]));
#pragma unroll
                for (int k = 0; k < STATES; ++k) carried[k * rows * units + spot.own] = state[k];
            }
            __syncthreads();
            share_all(By(), me, between, t % 2, now, kept, first, min(chunk, me.rows - first));
            __syncthreads();
        }
        const unsigned before = arrive(me, arrived);
        if (t > 0) ask(t - 1, 0);
        wait(me, arrived, before);
    }
    for (int i = threadIdx.x; i < me.rows * me.units; i += blockDim.x) {
        const Place place = place_in(me, i);
        carried[place.own] += add_shares(me, between, 0, place.row, place.unit);
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            cell.way.firsts[k][place.number] = static_cast<T>(carried[k * rows * units + place.own]);
    }
}
