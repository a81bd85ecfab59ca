package main

import (
	"context"

	"launcher"
	"launcher/collectives"
)

// join makes this process one of its gang; outside a run the gang is this process alone.
func join(ctx context.Context) (*group, error) {
	c, err := launcher.Collective(ctx)
	if err != nil {
		return nil, err
	}
	return &group{rank: c.Rank(), size: c.Size(), close: c.Close,
		sum: func(b []float64) error { return collectives.AllReduce(c, b, collectives.Sum) },
		empty: func(n int) ([]float64, error) {
			b, err := collectives.Empty[float64](c, n)
			clear(b)
			return b, err
		}}, nil
}
