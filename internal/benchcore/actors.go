package benchcore

import (
	"context"

	"launcher"
)

// echo is an actor that does nothing.
type echo struct{}

var (
	echoes = launcher.Actor0(func(context.Context) (*echo, error) { return &echo{}, nil }, launcher.Name("benchcore.echo"))
	ping   = launcher.Method((*echo).Ping)
)

func (*echo) Ping(_ context.Context, n int) (int, error) { return n, nil }

var actorWorkloads = []workload{
	{what: "actor calls sync", unit: "calls/s", units: 1, step: func(ctx context.Context, b *bench) error { return b.calls(ctx, 1, 1) }},
	{what: "actor calls async", unit: "calls/s", units: 1000, step: func(ctx context.Context, b *bench) error { return b.calls(ctx, 1, 1000) }},
	{what: "actor calls async, 16 at a time", unit: "calls/s", units: 1000, step: func(ctx context.Context, b *bench) error { return b.calls(ctx, 16, 1000) }},
	{what: "100 actors made", once: madeActors},
}

// calls calls an actor of a concurrency n times and gets what it gives. The actor is made
// for the first of them.
func (b *bench) calls(ctx context.Context, concurrency, n int) error {
	h, ok := b.actors[concurrency]
	if !ok {
		var err error
		if h, err = echoes.New(ctx, launcher.MaxConcurrency(concurrency)); err != nil {
			return err
		}
		if b.actors == nil {
			b.actors = map[int]launcher.Handle[*echo]{}
		}
		b.actors[concurrency] = h
	}
	refs := make([]launcher.Ref[int], n)
	for i := range refs {
		refs[i] = ping.Submit(ctx, h, i)
	}
	_, err := launcher.Get(ctx, refs...)
	for _, r := range refs {
		r.Release()
	}
	return err
}

func madeActors(ctx context.Context, b *bench) (Row, error) {
	return seconds(func() error {
		handles := make([]launcher.Handle[*echo], b.scaled(100))
		refs := make([]launcher.Ref[int], len(handles))
		for i := range handles {
			var err error
			if handles[i], err = echoes.New(ctx); err != nil {
				return err
			}
			refs[i] = ping.Submit(ctx, handles[i], i)
		}
		_, err := launcher.Get(ctx, refs...)
		for _, h := range handles {
			h.Release()
		}
		return err
	})
}
