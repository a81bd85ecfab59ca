package benchcore

import (
	"context"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"launcher"
	"launcher/shm/channel"
)

// back is an actor that writes what it reads.
type back struct{}

var (
	backs = launcher.Actor0(func(context.Context) (*back, error) { return &back{}, nil }, launcher.Name("benchcore.back"))
	serve = launcher.Method((*back).Serve)
)

// Serve goes on until there is an empty value.
func (*back) Serve(ctx context.Context, ways []channel.Address) (struct{}, error) {
	there, err := channel.Open(ways[0])
	if err != nil {
		return struct{}{}, err
	}
	defer there.Free()
	here, err := channel.Open(ways[1])
	if err != nil {
		return struct{}{}, err
	}
	defer here.Free()
	r, err := there.Reader(0)
	if err != nil {
		return struct{}{}, err
	}
	w, err := here.Writer()
	if err != nil {
		return struct{}{}, err
	}
	for {
		v, err := r.Read(ctx)
		if err != nil || len(v.Data) == 0 {
			return struct{}{}, err
		}
		if err := w.Write(ctx, v); err != nil {
			return struct{}{}, err
		}
	}
}

var channelWorkloads = []workload{
	{what: "channel hop", once: func(ctx context.Context, b *bench) (Row, error) {
		row, err := b.hop(ctx, 8)
		row.Limit, row.Of, row.Target = word(), "a word of memory from core to core, both looking", 20
		return row, err
	}},
	{what: "channel hop, 1 MiB", once: func(ctx context.Context, b *bench) (Row, error) {
		row, err := b.hop(ctx, 1<<20)
		row.Limit, row.Of = copied(1<<20), "a copy of it"
		return row, err
	}},
}

// hop is the time from this process to an actor, or from there back.
func (b *bench) hop(ctx context.Context, size int) (row Row, err error) {
	there, err := channel.Create(1, 2, size)
	if err != nil {
		return row, err
	}
	defer there.Free()
	here, err := channel.Create(1, 2, size)
	if err != nil {
		return row, err
	}
	defer here.Free()
	h, err := backs.New(ctx)
	if err != nil {
		return row, err
	}
	defer h.Release()
	done := serve.Submit(ctx, h, []channel.Address{there.Address(), here.Address()})
	defer done.Release()
	w, err := there.Writer()
	if err != nil {
		return row, err
	}
	r, err := here.Reader(0)
	if err != nil {
		return row, err
	}
	v := channel.Value{Data: make([]byte, size)}
	both := func(ctx context.Context, _ *bench) error {
		if err := w.Write(ctx, v); err != nil {
			return err
		}
		_, err := r.Read(ctx)
		return err
	}
	if row, err = b.rate(ctx, workload{unit: "us", units: 2, step: both}); err != nil {
		return row, err
	}
	row.Value, row.Sd, row.Less = 1e6/row.Value, 1e6/row.Value*row.Sd/row.Value, true
	r.Release()
	if err := w.Write(ctx, channel.Value{}); err != nil {
		return row, err
	}
	_, err = done.Get(ctx)
	return row, err
}

// word is the time, in microseconds, in which a core sees what another wrote: the best of
// several.
func word() float64 {
	const n, long = 20, time.Second // long on a machine whose cores are taken
	var there, here struct {
		atomic.Uint32
		_ [60]byte
	}
	go func() {
		runtime.LockOSThread()
		for seen := uint32(0); seen != math.MaxUint32; {
			if v := there.Load(); v != seen {
				seen = v
				here.Store(v)
			}
		}
	}()
	best, i := math.Inf(1), uint32(0)
	for start := time.Now(); time.Since(start) < long; {
		begin := time.Now()
		for range n {
			i++
			there.Store(i)
			for here.Load() != i {
			}
		}
		best = min(best, time.Since(begin).Seconds())
	}
	there.Store(math.MaxUint32)
	return best / (2 * n) * 1e6
}

// copied is the time, in microseconds, of a copy to two places in turn, as a channel makes
// it: the best of several.
func copied(size int) float64 {
	const n = 20
	from, to := make([]byte, size), make([]byte, 2*size)
	for i := range from { // memory that nobody wrote is all one page
		from[i] = 1
	}
	best := math.Inf(1)
	for range 20 {
		begin := time.Now()
		for i := range n {
			copy(to[i%2*size:], from)
		}
		best = min(best, time.Since(begin).Seconds()/n)
	}
	return best * 1e6
}
