package benchcore

import (
	"context"
	"time"

	"launcher"
	"launcher/internal/errs"
)

// What runs in the workers.
var (
	noop    = launcher.Func0(func(context.Context) (struct{}, error) { return struct{}{}, nil }, launcher.Name("benchcore.noop"))
	putMany = launcher.Func(func(ctx context.Context, n int) ([]launcher.Ref[int], error) {
		refs := make([]launcher.Ref[int], n)
		for i := range refs {
			var err error
			if refs[i], err = launcher.Put(ctx, 1); err != nil {
				return nil, err
			}
		}
		return refs, nil
	}, launcher.Name("benchcore.putMany"))
	submitMany = launcher.Func(func(ctx context.Context, n int) (struct{}, error) {
		return struct{}{}, tasks(ctx, n)
	}, launcher.Name("benchcore.submitMany"), launcher.CPU(0))
	total = launcher.Func(func(_ context.Context, v []int) (int, error) {
		s := 0
		for _, x := range v {
			s += x
		}
		return s, nil
	}, launcher.Name("benchcore.total"))
	many = launcher.Func(func(_ context.Context, n int) ([]int, error) {
		v := make([]int, n)
		for i := range v {
			v[i] = i
		}
		return v, nil
	}, launcher.Name("benchcore.many"))
)

var workloads = []workload{
	{what: "tasks sync", unit: "tasks/s", units: 1, step: func(ctx context.Context, b *bench) error { return tasks(ctx, 1) }},
	{what: "tasks async", unit: "tasks/s", units: 1000, target: 200_000, step: func(ctx context.Context, b *bench) error { return tasks(ctx, 1000) }},
	{what: "tasks async, 4 submitters", unit: "tasks/s", units: 40_000, step: func(ctx context.Context, b *bench) error {
		refs := make([]launcher.Ref[struct{}], 4)
		for i := range refs {
			refs[i] = submitMany.Submit(ctx, 10_000)
		}
		_, err := launcher.Get(ctx, refs...)
		return err
	}},
	{what: "put calls", unit: "puts/s", units: 1000, step: func(ctx context.Context, b *bench) error {
		for range 1000 {
			r, err := launcher.Put(ctx, 0)
			if err != nil {
				return err
			}
			r.Release()
		}
		return nil
	}},
	{what: "get calls, inline", once: getInline},
	{what: "get calls, 1 MiB in shared memory", once: getShared},
	{what: "put of 800 MiB", once: putLarge},
	{what: "wait on 1,000 refs", unit: "waits/s", units: 1000, step: waitEach},
	{what: "get a list of 10,000 refs", unit: "gets/s", units: 1, step: func(ctx context.Context, b *bench) error {
		r := putMany.Submit(ctx, 10_000)
		refs, err := r.Get(ctx)
		if err != nil || len(refs) != 10_000 {
			return errs.Wrap(errs.Unknown, err, "%d references", len(refs))
		}
		for _, in := range refs {
			in.Release()
		}
		r.Release()
		return nil
	}},
	{what: "10,000 ref arguments", once: refArguments},
	{what: "3,000 returns", once: returns},
	{what: "10,000 objects in one get", once: manyObjects},
	{what: "1,000,000 queued tasks", once: queued},
}

// tasks submits n tasks and gets their results.
func tasks(ctx context.Context, n int) error {
	refs := make([]launcher.Ref[struct{}], n)
	for i := range refs {
		refs[i] = noop.Submit(ctx)
	}
	_, err := launcher.Get(ctx, refs...)
	for _, r := range refs {
		r.Release()
	}
	return err
}

func waitEach(ctx context.Context, b *bench) error {
	refs := make([]launcher.Ref[struct{}], 1000)
	for i := range refs {
		refs[i] = noop.Submit(ctx)
	}
	rest := refs
	for range refs {
		var ready []launcher.Ref[struct{}]
		all := rest
		if ready, rest = launcher.Wait(ctx, all, 1); len(ready) == 0 {
			return ctx.Err()
		}
		rest = append(ready[1:], rest...) // one at a time, as the definition has it
	}
	for _, r := range refs {
		r.Release()
	}
	return nil
}

// each is the time of one call of f, in microseconds: the least of several rounds, for
// calls that are too short for a clock reading each.
func (b *bench) each(calls int, f func() error) (Row, error) {
	var us []float64
	for range b.o.Rounds + 1 {
		begin := time.Now()
		for range calls {
			if err := f(); err != nil {
				return Row{}, err
			}
		}
		us = append(us, time.Since(begin).Seconds()*1e6/float64(calls))
	}
	us = us[1:]
	return Row{Value: mean(us), Sd: deviation(us), Unit: "us", Target: 0.3, Less: true}, nil
}

func getInline(ctx context.Context, b *bench) (Row, error) {
	r, err := launcher.Put(ctx, 0)
	if err != nil {
		return Row{}, err
	}
	defer r.Release()
	return b.each(b.scaled(1_000_000), func() error {
		_, err := r.Get(ctx)
		return err
	})
}

func getShared(ctx context.Context, b *bench) (Row, error) {
	r, err := launcher.Put(ctx, make([]byte, 1<<20))
	if err != nil {
		return Row{}, err
	}
	defer r.Release()
	return b.each(b.scaled(1_000_000), func() error {
		v, err := r.View(ctx)
		if err == nil {
			v.Release()
		}
		return err
	})
}

func putLarge(ctx context.Context, b *bench) (Row, error) {
	data := make([]int64, b.scaled(100<<20))
	for i := range data { // memory that nobody wrote is all one page
		data[i] = int64(i)
	}
	var rates []float64
	for i := range b.o.Rounds + 1 {
		begin := time.Now()
		r, err := launcher.Put(ctx, data)
		if err != nil {
			return Row{}, err
		}
		if i > 0 { // the first takes memory that no one has touched
			rates = append(rates, 8*float64(len(data))/time.Since(begin).Seconds()/1e9)
		}
		r.Release()
	}
	limit := memcpy(data)
	return Row{Value: mean(rates), Sd: deviation(rates), Unit: "GB/s", Limit: limit, Of: "memcpy", Target: 0.85}, nil
}

// seconds times f and makes the row of it.
func seconds(f func() error) (Row, error) {
	begin := time.Now()
	err := f()
	return Row{Value: time.Since(begin).Seconds(), Unit: "s", Less: true}, err
}

func refArguments(ctx context.Context, b *bench) (Row, error) {
	n := b.scaled(10_000)
	refs := make([]launcher.Ref[int], n)
	for i := range refs {
		var err error
		if refs[i], err = launcher.Put(ctx, 1); err != nil {
			return Row{}, err
		}
	}
	return seconds(func() error {
		s, err := total.SubmitArg(ctx, launcher.Gather(refs)).Get(ctx)
		if err == nil && s != n {
			err = errs.New(errs.Internal, "the sum of %d ones is %d", n, s)
		}
		return err
	})
}

func returns(ctx context.Context, b *bench) (Row, error) {
	n := b.scaled(3000)
	return seconds(func() error {
		v, err := launcher.Get(ctx, launcher.SubmitN(ctx, many, n, n)...)
		if err == nil && v[n-1] != n-1 {
			err = errs.New(errs.Internal, "value %d is %d", n-1, v[n-1])
		}
		return err
	})
}

func manyObjects(ctx context.Context, b *bench) (Row, error) {
	n := b.scaled(10_000)
	refs := make([]launcher.Ref[[]int], n)
	for i := range refs {
		v := make([]int, 10_000)
		v[9_999] = i
		var err error
		if refs[i], err = launcher.Put(ctx, v); err != nil {
			return Row{}, err
		}
	}
	return seconds(func() error {
		all, err := launcher.Get(ctx, refs...)
		for i, v := range all {
			if v[9_999] != i {
				return errs.New(errs.Internal, "object %d is another", i)
			}
		}
		return err
	})
}

func queued(ctx context.Context, b *bench) (Row, error) {
	n := b.scaled(1_000_000)
	return seconds(func() error {
		refs := make([]launcher.Ref[struct{}], n)
		for i := range refs {
			refs[i] = noop.Submit(ctx)
		}
		for _, r := range refs {
			if _, err := r.Get(ctx); err != nil {
				return err
			}
			r.Release()
		}
		return nil
	})
}
